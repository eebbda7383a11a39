//! `farpost run`: one prompt, one answer.

use farpost::engine::{Finish, Speculate};
use serde_json::json;

use super::console::Console;
use super::exit::Failure;
use super::generation::GenerationArgs;
use super::interrupt::Interrupt;
use super::pack::PackArgs;
use super::prompt::PromptArgs;
use super::reply::Reply;
use super::sampling::SamplingArgs;
use super::{amount, device, model};

/// Answer one prompt
///
/// Without --model the built-in model answers, which turns spoken-style commands into one JSON tool call:
/// farpost run "turn on the porch light at nine"
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    #[command(flatten)]
    packed: PackArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    /// Let a smaller model of the same vocabulary guess tokens ahead; each is chosen as without
    #[arg(long, value_name = "MODEL", conflicts_with = "speculate")]
    draft: Option<String>,
    /// Tell speed and memory on standard error
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Prints the answer as it comes, or all about it as one JSON object.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let mut options = args.generation.options(&args.sampling, args.model.is_built_in())?;
    let text = args.prompt.text()?;
    let model = args.model.load(args.generation.memory.context, args.packed, console)?;
    model::expect_writer(&model)?;
    let prompt = args.prompt.ids(&text, &model)?;
    let interrupt = Interrupt::listen()?;
    let memory = &args.generation.memory;
    let mut session = match &args.draft {
        Some(name) => {
            options.speculate = Speculate::draft();
            let draft = model::ModelArgs { model: Some(name.clone()) }.load(None, args.packed, console)?;
            device::open_with_draft(model, draft, memory, console)?
        }
        None => device::open(model, memory, console)?,
    };
    let name = session.model().name().to_owned();

    console.detail(&format!("answering a prompt of {}", amount::count(prompt.len() as u64, "token")));
    let reply = Reply {
        console,
        interrupt: &interrupt,
        options: &options,
        reading: "reading the prompt",
        full: "(the context is full)",
        tells_figures: args.stats,
    };
    let generated = reply.give(&mut session, &prompt, json!({ "model": name, "prompt_ids": prompt }))?;
    if generated.finish == Finish::Cancelled && interrupt.is_asked() {
        return Err(Failure::interrupted());
    }
    Ok(())
}
