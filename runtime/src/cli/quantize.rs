//! `farpost quantize`: a model file written anew in smaller types.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use farpost_models::gguf::GgufError;
use farpost_models::quantize::{Mixture, Options, QuantizeError, Summary, quantize_file};
use serde_json::json;

use super::console::Console;
use super::exit::{Exit, Failure};
use super::interrupt::Interrupt;
use super::progress::{Progress, Unit};
use super::{amount, model};

/// Write a model file anew in smaller types
///
/// Works through the file in small pieces on all threads: memory does not grow with the model. The output appears under
/// its name only when it is whole. Names such as q4_k_m are mixtures: most matrices get the type, those that matter more
/// a better one.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model to read: a GGUF file (of any types), a folder with one, or the name of a model in the model folder
    #[arg(value_name = "IN")]
    input: String,
    /// The file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The types to write
    #[arg(short = 't', long = "type", value_name = "TYPE", value_parser = mixtures(), ignore_case = true)]
    mixture: &'static Mixture,
    /// Replace the output file if it is there (never the input)
    #[arg(short, long)]
    force: bool,
}

fn mixtures() -> impl TypedValueParser<Value = &'static Mixture> {
    let value = |mixture: &'static Mixture| {
        let value = PossibleValue::new(mixture.name());
        match mixture.name().strip_suffix("_m") {
            Some(short) => value.alias(short),
            None => value,
        }
    };
    PossibleValuesParser::new(Mixture::all().map(value)).try_map(|name| Mixture::from_name(&name))
}

/// Quantizes with progress.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let input = model::open(&args.input)?;
    if !input.has_part_at(&args.output) {
        refuse_to_replace(&args.output, args.force)?;
    }
    let interrupt = Interrupt::listen()?;
    let start = Instant::now();
    let total = input.tensors().iter().map(|tensor| tensor.weight().bytes().len() as u64).sum();
    let options = Options { mixture: args.mixture, threads: console.threads() };
    console.detail(&format!("quantizing {} to {}", input.name(), args.mixture.name()));
    let mut progress = Progress::new(console, "quantizing", total, Unit::Bytes);
    let result = quantize_file(&input, &args.output, &options, &mut |now| {
        progress.at(now.done_bytes, now.tensor);
        if interrupt.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(progress);
    let summary = result.map_err(failure)?;
    tell(args, &summary, start.elapsed(), console)
}

/// The input was opened before: what the system refuses now is about the output.
fn failure(error: QuantizeError) -> Failure {
    let is_writing = matches!(error, QuantizeError::Gguf(GgufError::Io { .. }));
    let failure = Failure::from(error);
    if is_writing { failure.with_exit(Exit::Failed) } else { failure }
}

/// Refuses an output that is there already, unless that was foreseen. What is no plain file is refused by the writer,
/// whether foreseen or not.
pub fn refuse_to_replace(output: &Path, is_forced: bool) -> Result<(), Failure> {
    if is_forced || !output.is_file() {
        return Ok(());
    }
    Err(Failure::usage(format_args!("{}: the file exists already", output.display())).hint("--force replaces it"))
}

fn tell(args: &Args, summary: &Summary, time: std::time::Duration, console: &Console) -> Result<(), Failure> {
    let bits = summary.output_bytes as f64 * 8.0 / summary.n_weights.max(1) as f64;
    if console.is_json() {
        let substituted =
            summary.substituted.iter().map(|(tensor, wanted)| json!({ "tensor": tensor, "wanted": wanted.name() }));
        return console.print_json(&json!({
            "input": args.input,
            "output": args.output,
            "type": args.mixture.name(),
            "tensors": summary.n_tensors,
            "weights": summary.n_weights,
            "input_bytes": summary.input_bytes,
            "output_bytes": summary.output_bytes,
            "bits_per_weight": bits,
            "substituted": substituted.collect::<Vec<_>>(),
            "seconds": time.as_secs_f64(),
        }));
    }
    if !summary.substituted.is_empty() {
        let n = summary.substituted.len() as u64;
        console.note(&format!(
            "{} got another type, because rows are not whole blocks of the one wanted",
            amount::count(n, "tensor")
        ));
    }
    console.print(&format!(
        "{}: {} of weights became {}, {bits:.2} bits a weight, in {}\n",
        args.output.display(),
        amount::bytes(summary.input_bytes),
        amount::bytes(summary.output_bytes),
        amount::duration(time)
    ))
}
