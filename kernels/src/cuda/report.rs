//! A test that compiles every kernel for every kind of device, where the compiler is, and keeps what they take.
//!
//! `compile` brings the compiler. `report.txt` is what it said, in the version named there: registers of a thread and bytes
//! of shared memory of a block. A kernel that spills registers or doesn't compile fails the test.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::compiler::Compiler;
use super::sources::Module;
use crate::backend::KvType;
use crate::device::layout::Layout;
use crate::keep::Nowhere;
use crate::tensor::DType;

/// Kinds of devices: Xavier, Ampere, Orin, Hopper.
const KINDS: [u32; 4] = [72, 80, 87, 90];

/// Modules that differ in more than numbers: offsets, and what tables hold.
fn modules() -> Vec<Module> {
    let mut modules = Vec::new();
    let mut seen = Vec::new();
    for dtype in DType::all() {
        let mut way = Layout::of(dtype).constants();
        way.retain(|(name, _)| !name.starts_with("TABLE_"));
        way.iter_mut().filter(|(name, _)| *name == "OFFSET").for_each(|(_, offset)| *offset = offset.min(1.0));
        if !seen.contains(&way) {
            seen.push(way);
            modules.extend([false, true].map(|is_fine| Module::products(&Layout::of(dtype), is_fine)));
        }
    }
    // Plain numbers are the same either way.
    modules.dedup();
    modules.extend([false, true].map(|is_fine| Module::Pointwise { is_fine }));
    for kv_type in [KvType::F16, KvType::Q8_0, KvType::F32] {
        modules.extend([1, 2, 4, 7, 8].map(|heads| Module::attention(kv_type, heads, 128)));
        modules.push(Module::attention(kv_type, 1, 1024));
    }
    modules
}

/// What a kernel takes: registers, bytes of shared memory; and whether it spills.
fn taken(log: &str) -> BTreeMap<String, (u32, u32, bool)> {
    let before = |text: &str, what: &str| -> u32 {
        let number = text.split(what).next().and_then(|before| before.split_whitespace().last());
        if text.contains(what) { number.and_then(|number| number.parse().ok()).unwrap_or(0) } else { 0 }
    };
    let mut kernels = BTreeMap::new();
    for text in log.split("Compiling entry function '").skip(1) {
        let name = text.split('\'').next().unwrap_or_default().to_owned();
        let spills = before(text, " bytes spill stores") + before(text, " bytes spill loads") > 0;
        let used = text.split("Used ").nth(1).unwrap_or_default().lines().next().unwrap_or_default();
        kernels.insert(name, (before(used, " registers"), before(used, " bytes smem"), spills));
    }
    kernels
}

#[test]
fn every_kernel_compiles_for_every_kind_of_device_and_none_spills() {
    let compiler = match Compiler::open(Arc::new(Nowhere)) {
        Ok(compiler) => compiler,
        Err(error) => return println!("skipped: {error}; kernels/src/cuda/compile brings it"),
    };
    let modules = modules();
    let jobs: Vec<(usize, u32)> = (0..modules.len()).flat_map(|module| KINDS.map(|kind| (module, kind))).collect();
    let (next, found, failed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some(&(module, kind)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let source = modules[module].source();
                    match compiler.compile(&source, kind, "") {
                        Ok(compiled) => {
                            for (kernel, (registers, shared, spills)) in taken(&compiled.log) {
                                if spills {
                                    let message = format!("{} {kernel} spills registers on {kind}", source.name);
                                    failed.lock().unwrap().push(message);
                                }
                                found.lock().unwrap().insert((module, kernel, kind), (registers, shared));
                            }
                        }
                        Err(error) => failed.lock().unwrap().push(format!("{kind}: {error}")),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let report = written(&compiler.version, &modules, &found.into_inner().unwrap());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda/report.txt");
    if std::env::var_os("FARPOST_WRITE_REPORT").is_some() {
        std::fs::write(path, report).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    // Another version counts otherwise.
    if kept.lines().next() == report.lines().next() {
        assert!(kept == report, "{path} is not of these kernels: kernels/src/cuda/compile --write writes it");
    }
}

fn written(version: &str, modules: &[Module], found: &BTreeMap<(usize, String, u32), (u32, u32)>) -> String {
    let mut report =
        format!("NVRTC {version}: registers of a thread and bytes of shared memory of a block, by kind of device\n");
    let mut line = |name: &str, kernel: &str, of: &dyn Fn(u32) -> String| {
        let kinds: Vec<String> = KINDS.into_iter().map(of).collect();
        let _ = writeln!(
            report,
            "{name:<76} {kernel:<13} {:>10} {:>10} {:>10} {:>10}",
            kinds[0], kinds[1], kinds[2], kinds[3]
        );
    };
    line("module", "kernel", &|kind| format!("sm_{kind}"));
    let mut kernels: Vec<(usize, &str)> = found.keys().map(|(module, kernel, _)| (*module, kernel.as_str())).collect();
    kernels.dedup();
    for (module, kernel) in kernels {
        let of = |kind| match found.get(&(module, kernel.to_owned(), kind)) {
            Some((registers, shared)) => format!("{registers}/{shared}"),
            None => "-".to_owned(),
        };
        line(&shortened(&modules[module].source().name), kernel, &of);
    }
    report
}

/// Without what tables hold, and what is zero.
fn shortened(name: &str) -> String {
    let is_kept = |part: &&str| !part.starts_with("TABLE_") && !part.ends_with("=0");
    name.split(' ').filter(is_kept).collect::<Vec<_>>().join(" ")
}
