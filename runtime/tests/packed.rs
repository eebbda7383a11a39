//! Packed files: the same results to the bit, never both copies in memory, and nothing taken from a file that is stale,
//! of something else or damaged.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use farpost::{Model, ModelOptions, PackUse};
use farpost_firmware_tests::model;
use farpost_kernels::backend::{Answer, Backend, Batch, Limits, Output, Row, Want, WantKind};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::cpu::isa::Isa;
use farpost_models::families;
use farpost_models::gguf::File;
use farpost_models::pack;
use farpost_models::quantize::{self, Mixture, quantize_file};
use proptest::prelude::*;

/// The one class that packed files are for.
const CLASS: Isa = Isa::Avx512;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("packed-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A tiny model in the types of a mixture.
    fn quantized(&self, name: &str, mixture: &str) -> PathBuf {
        let (input, output) = (model(&format!("tiny-{name}.gguf")), self.0.join(format!("{name}-{mixture}.gguf")));
        let options = quantize::Options { mixture: Mixture::from_name(mixture).unwrap(), threads: 2 };
        quantize_file(&File::open(&input).unwrap(), &output, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        output
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Packs the model beside itself.
fn packed(path: &Path) -> PathBuf {
    let file = File::open(path).unwrap();
    let graph = families::build(&file, &families::Options { context: None }).unwrap().graph;
    let output = pack::path_for(&file, CLASS).unwrap();
    let summary = pack::write(&file, &graph, CLASS, &output, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(summary.output_bytes < summary.model_bytes + summary.model_bytes / 20 + (1 << 20));
    output
}

fn open(path: &Path, pack_for: Option<Isa>) -> Model {
    Model::open(path, &ModelOptions { pack_for, ..ModelOptions::default() }).unwrap()
}

/// Why the packed file is not used.
#[track_caller]
fn refusal(path: &Path) -> String {
    match open(path, Some(CLASS)).packed() {
        PackUse::Unused(why) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn used(path: &Path) -> Model {
    let model = open(path, Some(CLASS));
    assert!(matches!(model.packed(), PackUse::Used(_)), "{:?}", model.packed());
    model
}

/// Bits of all logits of a prompt, and of some rows one after the other.
fn logits(model: &Model, isa: Isa, prompt: usize) -> Vec<u32> {
    let limits = Limits { max_rows: prompt, kv_tokens: 64, threads: 2, ..Limits::default() };
    let mut plan = Cpu::new(isa).compile(model.graph(), &limits).unwrap();
    let sequence = plan.kv().open().unwrap();
    assert!(plan.kv().reserve(sequence, prompt + 6));
    let (mut out, mut bits) = (Output::default(), Vec::new());
    for rows in [0..prompt, prompt..prompt + 1, prompt + 1..prompt + 6] {
        let mut batch = Batch::default();
        for (number, position) in rows.enumerate() {
            batch.rows.push(Row { token: (position * 37 % 500) as u32, position, sequence });
            batch.want.push(Want { row: number, kind: WantKind::Logits });
        }
        plan.step(&batch, &mut out).unwrap();
        for answer in &out.results {
            let Answer::Logits(logits) = answer else { panic!("{answer:?}") };
            bits.extend(logits.iter().map(|logit| logit.to_bits()));
        }
    }
    bits
}

/// With the packed file and without.
fn check_same(path: &Path, prompt: usize) {
    packed(path);
    let with = used(path);
    // Packed files can be made and read on any processor, but kernels for them are not on all.
    if CLASS.is_available() {
        assert!(logits(&with, CLASS, prompt) == logits(&open(path, None), CLASS, prompt), "{}", path.display());
    }
}

#[test]
fn logits_are_the_same_to_the_bit_in_every_mixture() {
    let folder = Folder::new("mixtures");
    for mixture in ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4"] {
        check_same(&folder.quantized("llama", mixture), 21);
    }
}

#[test]
fn logits_are_the_same_to_the_bit_in_every_family() {
    let folder = Folder::new("families");
    for name in ["llama-freqs", "llama-moe", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3"] {
        check_same(&folder.quantized(name, "q4_0"), 37);
    }
}

#[test]
fn logits_of_gemma_are_the_same_to_the_bit_and_only_one_copy_is_in_memory() {
    let folder = Folder::new("gemma");
    let path = folder.0.join("gemma.gguf");
    fs::copy(model("gemma-3-270m-q4_k_m.gguf"), &path).unwrap();
    let packed = packed(&path);
    let model = used(&path);
    if !CLASS.is_available() {
        return;
    }
    let with = logits(&model, CLASS, 5);
    if cfg!(target_os = "linux") {
        let (own, packed_bytes) = (resident(&path), resident(&packed));
        let (size, packed_size) = (fs::metadata(&path).unwrap().len(), fs::metadata(&packed).unwrap().len());
        assert!(own < size / 10, "{own} bytes of the model are in memory");
        assert!(packed_bytes > packed_size / 2, "only {packed_bytes} bytes of the packed file are in memory");
    }
    drop(model);
    assert!(with == logits(&open(&path, None), CLASS, 5));
}

/// Bytes of a mapped file that this process has in memory.
fn resident(path: &Path) -> u64 {
    let path = fs::canonicalize(path).unwrap().display().to_string();
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut is_of_file, mut is_seen, mut kib) = (false, false, 0);
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or("");
        if !first.ends_with(':') {
            is_of_file = line.ends_with(&path);
            is_seen |= is_of_file;
        } else if first == "Rss:" && is_of_file {
            kib += line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap();
        }
    }
    assert!(is_seen, "{path} is not mapped");
    kib * 1024
}

#[test]
fn a_packed_file_is_stale_once_the_model_was_written_again() {
    let folder = Folder::new("stale");
    let path = folder.quantized("llama", "q4_0");
    packed(&path);
    used(&path);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
    let why = refusal(&path);
    assert!(why.contains("the packed file is stale: the time of last writing (ns) of the model is "), "{why}");
    file.set_modified(before).unwrap();
    used(&path);
    let size = file.metadata().unwrap().len();
    file.set_len(size + 32).unwrap();
    file.set_modified(before).unwrap();
    let why = refusal(&path);
    assert!(why.contains(&format!("stale: the size of the model is {}, when", size + 32)), "{why}");
    // Another model of the same size and time.
    file.set_len(size).unwrap();
    let whole = fs::read(&path).unwrap();
    let half = size as usize / 2;
    write_at(&path, half as u64, &whole[half..].iter().map(|byte| byte ^ 1).collect::<Vec<u8>>());
    file.set_modified(before).unwrap();
    let why = refusal(&path);
    assert!(why.contains("stale: a hash of some weights of the model is "), "{why}");
    write_at(&path, 0, &whole);
    // What these do not tell, the check does.
    let last = fs::read(&path).unwrap()[size as usize - 1];
    write_at(&path, size - 1, &[last ^ 1]);
    file.set_modified(before).unwrap();
    let why = check(&path).unwrap_err().to_string();
    assert!(why.contains("stale: the SHA-256 of the model is "), "{why}");
    write_at(&path, size - 1, &[last]);
    file.set_modified(before).unwrap();
    check(&path).unwrap();
}

fn check(path: &Path) -> Result<pack::Packed, pack::PackError> {
    let file = File::open(path).unwrap();
    let mut graph = families::build(&file, &families::Options { context: None }).unwrap().graph;
    let packed = pack::path_for(&file, CLASS).unwrap();
    pack::check(&packed, &file, &mut graph, CLASS, &mut |_, _| ControlFlow::Continue(()))
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn what_is_no_packed_file_of_this_model_is_refused_with_the_reason() {
    let folder = Folder::new("other");
    let path = folder.quantized("llama", "q4_0");
    let place = packed(&path);
    let whole = fs::read(&place).unwrap();
    let other = folder.quantized("qwen2", "q4_0");
    for (content, expected) in [
        (fs::read(&other).unwrap(), "general.architecture is \"qwen2\", expected farpost-pack"),
        (fs::read(packed(&other)).unwrap(), "stale: the size of the model"),
        (Vec::new(), "needs"),
        (b"something else that is long enough".to_vec(), "expected the magic bytes 'GGUF'"),
        (whole[..whole.len() - 1].to_vec(), "begins at byte"),
        (whole[..whole.len() - 8192].to_vec(), "past the data section"),
        ([&whole[..], &[0; 4096]].concat(), "begins at byte"),
    ] {
        fs::write(&place, content).unwrap();
        let why = refusal(&path);
        assert!(why.contains(expected), "{why}");
    }
    for cut in (0..whole.len()).step_by(whole.len() / 97) {
        fs::write(&place, &whole[..cut]).unwrap();
        refusal(&path);
    }
    fs::write(&place, &whole).unwrap();
    used(&path);
    // A damaged weight shows in the check.
    let last = whole.len() as u64 - 4096;
    write_at(&place, last, &[whole[last as usize] ^ 4]);
    let why = check(&path).unwrap_err().to_string();
    assert!(why.contains("the file is damaged: the SHA-256 of its weights is "), "{why}");
    // Of another class it would lie elsewhere.
    assert!(matches!(open(&path, Some(Isa::Avx2)).packed(), PackUse::NotAsked));
    fs::remove_file(&place).unwrap();
    assert!(matches!(open(&path, Some(CLASS)).packed(), PackUse::Absent(_)));
}

#[test]
fn a_damaged_head_is_refused_or_gives_the_same_weights() {
    let folder = Folder::new("head");
    let path = folder.quantized("llama", "q4_0");
    let place = packed(&path);
    let good = used(&path);
    let (PackUse::Used(pack), graph) = (good.packed(), good.graph()) else { panic!() };
    let head_bytes = pack.file().tensors()[0].offset();
    let weights: Vec<_> = graph.weights().map(|weight| (weight.order(), weight.bytes().as_slice().to_vec())).collect();
    let head = fs::read(&place).unwrap()[..head_bytes as usize].to_vec();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let flips = prop::collection::vec((0..head.len(), 0..8_u32), 1..4);
    runner
        .run(&flips, |flips| {
            let mut damaged = head.clone();
            for (at, bit) in flips {
                damaged[at] ^= 1 << bit;
            }
            write_at(&place, 0, &damaged);
            let model = open(&path, Some(CLASS));
            if let PackUse::Used(_) = model.packed() {
                let same = model
                    .graph()
                    .weights()
                    .zip(&weights)
                    .all(|(weight, (order, bytes))| weight.order() == *order && weight.bytes().as_slice() == bytes);
                prop_assert!(same);
            }
            Ok(())
        })
        .unwrap();
}
