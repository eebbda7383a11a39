//! `farpost embed`: texts to embeddings.

use std::ops::ControlFlow;

use farpost_models::tokenizer::Special;

use super::console::Console;
use super::exit::Failure;
use super::generation::MemoryArgs;
use super::interrupt::Interrupt;
use super::pack::PackArgs;
use super::text::TextsArgs;
use super::{amount, device, model};

/// Tokens run in one step: enough to be fast, few enough that Ctrl-C need not wait long for a large model.
const STEP_ROWS: usize = 128;

/// Turn texts into embeddings: vectors of length 1 that lie close where texts mean alike
///
/// Needs a model that is made for it, such as Qwen3-Embedding: its file names a pooling_type. Each text gives one line of
/// numbers, with --json an array. How alike two texts are is the sum of the products of their numbers.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    #[command(flatten)]
    packed: PackArgs,
    #[command(flatten)]
    texts: TextsArgs,
    /// Keep the first N numbers, made of length 1 again; for models that are trained so
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = amount::whole::<u32>(1..))]
    dimensions: Option<u32>,
    #[command(flatten)]
    memory: MemoryArgs,
}

/// Prints the embedding of each text.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let input = args.texts.input()?;
    let model = args.model.load(args.memory.context, args.packed, console)?;
    let width = model.graph().width();
    let dimensions = args.dimensions.map_or(width, |n| n as usize);
    if dimensions > width {
        let message = format!("--dimensions is {dimensions}, expected 1 to {width}, the width of {}", model.name());
        return Err(Failure::usage(message));
    }
    let mut session = device::open_with(model, &args.memory, STEP_ROWS, console)?;
    let interrupt = Interrupt::listen()?;
    for text in args.texts.parts(&input) {
        let ids = session.model().tokenizer().encode_prompt(text, Special::AsText);
        let embedded = session.embed(&ids, &mut |_| match interrupt.is_asked() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        let Some(embedding) = embedded? else { return Err(Failure::interrupted()) };
        let numbers = farpost::engine::shortened(embedding, dimensions);
        if console.is_json() {
            console.print_json(&numbers.into())?;
        } else {
            let numbers: Vec<String> = numbers.iter().map(f32::to_string).collect();
            console.print(&(numbers.join(" ") + "\n"))?;
        }
    }
    Ok(())
}
