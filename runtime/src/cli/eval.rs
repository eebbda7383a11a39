//! `farpost eval`: how well a model predicts a text.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use farpost::engine::{Perplexity, perplexity};
use farpost_models::tokenizer::Special;
use serde_json::json;

use super::console::Console;
use super::device::{BackendChoice, GpuLayers};
use super::exit::Failure;
use super::generation::{ActivationsChoice, KvChoice, MemoryArgs};
use super::interrupt::Interrupt;
use super::pack::PackArgs;
use super::progress::{Progress, Unit};
use super::{amount, device, model, text};

/// Measure the perplexity of a text: how surprised the model is by it, lower is better
///
/// The text is cut into windows that do not overlap; a rest shorter than a window is left out. Each window begins with
/// nothing known; of each the second half counts. Figures compare only between models with the same vocabulary.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    #[command(flatten)]
    packed: PackArgs,
    /// The text
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens in a window [default: 512, or the model's whole context where that is less]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = amount::whole::<u32>(4..))]
    window: Option<u32>,
    /// Device to compute on: cpu, wgpu, cuda or auto
    #[arg(
        long,
        value_name = "DEVICE",
        env = "FARPOST_BACKEND",
        hide_env = true,
        default_value = "auto",
        hide_possible_values = true
    )]
    backend: BackendChoice,
    /// Last layers to compute there; auto: what has room
    #[arg(long, value_name = "N", default_value = "auto")]
    gpu_layers: GpuLayers,
    /// How keys and values are kept: f16, q8_0 (half of that) or f32
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    kv_type: KvChoice,
    /// Bits that activations are rounded to for quantized weights: int8 (fast), int16, or int16 in small models only
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    activations: ActivationsChoice,
}

/// Tokens run in one step: enough to be fast, few enough that Ctrl-C need not wait long for a large model.
const STEP_ROWS: usize = 128;

/// Measures with progress.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let text = text::of_file(&args.file)?;
    let model = args.model.load(None, args.packed, console)?;
    let ids = model.tokenizer().encode_prompt(&text, Special::AsText);
    let interrupt = Interrupt::listen()?;
    let most = u32::try_from(model.graph().max_context()).unwrap_or(u32::MAX);
    let window = args.window.unwrap_or(most.min(512));
    if window > most {
        let most = amount::grouped(most.into());
        let message = format!("--window is {window}, expected 4 to {most}, the context of {}", model.name());
        return Err(Failure::usage(message));
    }
    let Args { backend, gpu_layers, kv_type, activations, .. } = *args;
    let context = Some(window);
    let memory = MemoryArgs { context, backend, gpu_layers, kv_type, activations, memory_cap: None };
    let mut session = device::open_with(model, &memory, STEP_ROWS, console)?;
    let start = Instant::now();
    let window = window as usize;
    let mut progress = Progress::new(console, "evaluating", (ids.len() / window * window) as u64, Unit::Tokens);
    let measured = perplexity(&mut session, &ids, window, &mut |done, so_far| {
        let figure = so_far.map_or(String::new(), |so_far| format!("perplexity {:.3}", so_far.value));
        progress.at(done as u64, &figure);
        if interrupt.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(progress);
    if interrupt.is_asked() {
        return Err(Failure::interrupted());
    }
    let Some(measured) = measured? else { return Err(Failure::interrupted()) };
    tell(window, &measured, ids.len(), start.elapsed().as_secs_f64(), session.model().name(), console)
}

fn tell(
    window: usize,
    measured: &Perplexity,
    n_tokens: usize,
    seconds: f64,
    model: &str,
    console: &Console,
) -> Result<(), Failure> {
    let n_run = measured.n_windows * window;
    let rate = n_run as f64 / seconds.max(1e-9);
    if console.is_json() {
        return console.print_json(&json!({
            "model": model,
            "perplexity": measured.value,
            "standard_error": measured.standard_error,
            "mean_surprise": measured.mean_surprise,
            "window": window,
            "windows": measured.n_windows,
            "tokens": n_tokens,
            "tokens_counted": measured.n_tokens,
            "seconds": amount::rounded(seconds),
            "tokens_per_second": amount::rounded(rate),
        }));
    }
    let paint = console.paint();
    console.print(&format!(
        "perplexity {} ± {:.3} over {} ({} of {}), {rate:.0} tokens/s\n",
        paint.bold(&format!("{:.3}", measured.value)),
        measured.standard_error,
        amount::count(measured.n_tokens as u64, "token"),
        amount::count(measured.n_windows as u64, "window"),
        window,
    ))
}
