//! `farpost synth`: files of real shape with random weights, for benchmarks.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use farpost_models::gguf::GgufError;
use farpost_models::synth::{self, Options, Shape, Types, Vocabulary};
use serde_json::json;

use super::columns::{Side, aligned};
use super::console::Console;
use super::exit::{Exit, Failure};
use super::interrupt::Interrupt;
use super::progress::{Progress, Unit};
use super::{amount, model, quantize};

/// Write a model of real shape with random weights, for benchmarks
///
/// The file has the shape, metadata and size of a published model; what it says is noise. The same options give the same
/// bytes on every machine.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shape, such as qwen2.5-0.5b; --list shows all
    #[arg(long, value_name = "NAME", required_unless_present = "list", value_parser = shape)]
    shape: Option<&'static Shape>,
    /// Types of the weight matrices: a mixture, as quantize makes it, or one type for all
    #[arg(short = 't', long = "type", value_name = "TYPE", default_value = "q4_0", ignore_case = true, value_parser = types())]
    types: Types,
    /// The file to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Decides every weight
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = amount::whole::<u64>(0..))]
    seed: u64,
    /// Take the vocabulary of this GGUF file instead of a made-up one of the real size
    #[arg(long, value_name = "MODEL")]
    vocabulary: Option<String>,
    /// Fewer or more layers than the real model has
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = amount::whole::<u16>(1..=1024))]
    layers: Option<u16>,
    /// Replace the output file if it is there
    #[arg(short, long)]
    force: bool,
    /// List the shapes
    #[arg(long, conflicts_with_all = ["shape", "out"])]
    list: bool,
}

fn types() -> impl TypedValueParser<Value = Types> {
    PossibleValuesParser::new(Types::names()).try_map(|name| Types::from_name(&name).ok_or("it is no type"))
}

fn shape(name: &str) -> Result<&'static Shape, String> {
    synth::find(name).ok_or_else(|| {
        let names: Vec<&str> = synth::shapes().iter().map(|shape| shape.name).collect();
        format!("there is no such shape, there are {}", names.join(", "))
    })
}

/// Writes the file with progress, or lists the shapes.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let (Some(shape), Some(out)) = (args.shape, &args.out) else { return list(console) };
    let vocabulary = args.vocabulary.as_deref().map(model::open).transpose()?;
    if vocabulary.as_ref().is_some_and(|file| file.has_part_at(out)) {
        return Err(Failure::usage(format_args!("{}: the output would replace the vocabulary", out.display())));
    }
    quantize::refuse_to_replace(out, args.force)?;
    let options = Options {
        types: args.types,
        seed: args.seed,
        vocabulary: vocabulary.as_ref().map_or(Vocabulary::Generated, Vocabulary::Of),
        layers: args.layers.map(usize::from),
    };
    let interrupt = Interrupt::listen()?;
    let start = Instant::now();
    let mut progress = None;
    let result = synth::write(shape, &options, out, &mut |done, total| {
        progress.get_or_insert_with(|| Progress::new(console, "writing", total, Unit::Bytes)).at(done, "");
        if interrupt.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(progress);
    if interrupt.is_asked() {
        return Err(Failure::interrupted());
    }
    let size = result.map_err(failure)?;
    if console.is_json() {
        return console.print_json(&json!({
            "file": out,
            "shape": shape.name,
            "type": args.types.name(),
            "seed": args.seed,
            "size_bytes": size,
            "seconds": start.elapsed().as_secs_f64(),
        }));
    }
    console.print(&format!("{}: {} in {}\n", out.display(), amount::bytes(size), amount::duration(start.elapsed())))
}

/// What the system refuses here is about the output, not about a model.
fn failure(error: GgufError) -> Failure {
    let is_writing = matches!(error, GgufError::Io { .. });
    let failure = Failure::from(error);
    if is_writing { failure.with_exit(Exit::Failed) } else { failure }
}

fn list(console: &Console) -> Result<(), Failure> {
    if console.is_json() {
        let shapes = synth::shapes().iter().map(|shape| {
            json!({
                "name": shape.name,
                "architecture": shape.architecture,
                "layers": shape.layers,
                "width": shape.width,
                "vocabulary": shape.vocabulary,
                "context": shape.context,
            })
        });
        return console.print_json(&shapes.collect());
    }
    let paint = console.paint();
    let header = ["shape", "architecture", "layers", "width", "vocabulary"].map(|text| paint.dim(text)).to_vec();
    let rows = synth::shapes().iter().map(|shape| {
        vec![
            paint.cyan(shape.name),
            shape.architecture.to_owned(),
            shape.layers.to_string(),
            amount::grouped(shape.width as u64),
            amount::grouped(shape.vocabulary as u64),
        ]
    });
    let sides = [Side::Left, Side::Left, Side::Right, Side::Right, Side::Right];
    console.print(&aligned(std::iter::once(header).chain(rows), &sides))
}
