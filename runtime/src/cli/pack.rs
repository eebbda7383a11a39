//! `farpost pack`: a model's weights once more, in the order that this processor reads fastest; and the option of other
//! commands that uses such a file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use farpost::{Model, PackUse};
use farpost_kernels::cpu::isa::Isa;
use farpost_models::families;
use farpost_models::gguf::{File, GgufError};
use farpost_models::pack::{self, PackError, Stage, Summary};
use serde_json::json;

use super::console::Console;
use super::exit::{Exit, Failure};
use super::interrupt::Interrupt;
use super::progress::{Progress, Unit};
use super::quantize::refuse_to_replace;
use super::{amount, device, model};

/// Write a model's weights once more, in the order this processor reads fastest
///
/// The packed file lies beside the model and is used in its place from then on: answers are the same to the bit, and
/// those of 4-bit models are written faster, several at once most of all. It is as large as the model, appears under its
/// name only when it is whole, and is left aside once the model's file was written again. Only types with one scale per
/// block have another order (Q4_0 and the like, not Q4_K); Q8_0 gains little.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model: a GGUF file, a folder with one, or the name of a model in the model folder
    #[arg(value_name = "MODEL")]
    model: String,
    /// The file to write [default: MODEL.CLASS.pack, the only place where it is looked for]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The processor class to pack for [default: that of this processor]
    #[arg(long = "for", value_name = "CLASS", value_parser = classes(), ignore_case = true)]
    class: Option<Isa>,
    /// Write nothing, but read model and packed file from end to end and compare their hashes
    #[arg(long)]
    check: bool,
    /// Replace the output even if it is no packed file (never the model)
    #[arg(short, long, conflicts_with = "check")]
    force: bool,
}

/// The option of commands that run a model.
#[derive(clap::Args, Debug, Clone, Copy)]
pub struct PackArgs {
    /// Read the model's own weights even where a packed file lies beside it (see 'pack')
    #[arg(long)]
    pub unpacked: bool,
}

impl PackArgs {
    /// The processor class whose packed file is looked for.
    pub fn class(self) -> Result<Option<Isa>, Failure> {
        if self.unpacked {
            return Ok(None);
        }
        device::isa().map(Some)
    }
}

fn classes() -> impl TypedValueParser<Value = Isa> {
    let known = Isa::all().filter(|&isa| pack::is_for(isa)).map(Isa::name);
    PossibleValuesParser::new(known).try_map(|name| Isa::from_name(&name).ok_or("no such class"))
}

/// Packs, or checks what was packed.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let class = args.class.map_or_else(device::isa, Ok)?;
    let input = model::open(&args.model)?;
    let mut graph = families::build(&input, &families::Options { context: None })
        .map_err(|error| Failure::from(farpost::ModelError::from(error)))?
        .graph;
    let path = match &args.output {
        Some(path) => path.clone(),
        None => pack::path_for(&input, class).ok_or_else(|| PackError::NoFile { file: input.name().to_owned() })?,
    };
    let interrupt = Interrupt::listen()?;
    let go_on = || if interrupt.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let start = Instant::now();
    if args.check {
        let mut progress: Option<Progress> = None;
        let packed = pack::check(&path, &input, &mut graph, class, &mut |done, total| {
            let progress = progress.get_or_insert_with(|| Progress::new(console, "checking", total, Unit::Bytes));
            progress.at(done, "");
            go_on()
        })?;
        drop(progress);
        let hash = packed.model_hash()?;
        if console.is_json() {
            return console
                .print_json(&json!({ "packed": path, "model": input.name(), "sha256": hash, "whole": true }));
        }
        return console.print(&format!("{}: whole, and of this model (SHA-256 {hash})\n", path.display()));
    }
    if !input.has_part_at(&path) && !pack::is_packed(&path) {
        refuse_to_replace(&path, args.force)?;
    }
    let mut progress: Option<Progress> = None;
    let result = pack::write(&input, &graph, class, &path, &mut |now| {
        let progress = progress.get_or_insert_with(|| Progress::new(console, "packing", now.total_bytes, Unit::Bytes));
        let what = match now.stage {
            Stage::Hashing => "reading the model",
            Stage::Summing => "reading the weights",
            Stage::Writing => "writing",
        };
        progress.at(now.done_bytes, what);
        go_on()
    });
    drop(progress);
    let summary = result.map_err(|error| {
        // The model was opened before: what the system refuses now is about the output.
        let is_writing = matches!(error, PackError::Gguf(GgufError::Io { .. }));
        let failure = Failure::from(error);
        if is_writing { failure.with_exit(Exit::Failed) } else { failure }
    })?;
    tell(&input, &path, class, &summary, start.elapsed(), console)
}

fn tell(
    input: &File,
    path: &Path,
    class: Isa,
    summary: &Summary,
    time: Duration,
    console: &Console,
) -> Result<(), Failure> {
    if console.is_json() {
        return console.print_json(&json!({
            "model": input.name(),
            "output": path,
            "class": class.name(),
            "sha256": summary.model_hash.to_string(),
            "tensors": summary.n_tensors,
            "side_by_side": summary.n_side_by_side,
            "model_bytes": summary.model_bytes,
            "output_bytes": summary.output_bytes,
            "seconds": time.as_secs_f64(),
        }));
    }
    console.print(&format!(
        "{}: {} for {class}, {} of {} with their rows side by side, in {}\n",
        path.display(),
        amount::bytes(summary.output_bytes),
        summary.n_side_by_side,
        amount::count(summary.n_tensors as u64, "tensor"),
        amount::duration(time)
    ))
}

/// Says what became of the packed file: at once where one is there and can't be used, else where details are wanted.
pub fn note(model: &Model, console: &Console) {
    match model.packed() {
        PackUse::Unused(why) => {
            console.note(&format!("{why}; reading the model's own file (farpost pack makes it anew)"));
        }
        PackUse::NotAsked => {}
        other => console.detail(&format!("packed file: {}", words(other))),
    }
}

/// What became of the packed file.
pub fn words(packed: &PackUse) -> String {
    match packed {
        PackUse::NotAsked => "not looked for".to_owned(),
        PackUse::Absent(path) => format!("none at {}", path.display()),
        PackUse::Unused(why) => format!("not used: {why}"),
        PackUse::Used(packed) => format!("used: {}", packed.path().display()),
    }
}

/// The packed file in use.
pub fn path_in_use(packed: &PackUse) -> Option<&Path> {
    match packed {
        PackUse::Used(packed) => Some(packed.path()),
        _ => None,
    }
}
