//! `farpost run`: one prompt, one answer.

use std::ops::ControlFlow;

use farpost::engine::{Event, Finish};
use serde_json::json;

use super::console::Console;
use super::exit::Failure;
use super::generation::GenerationArgs;
use super::interrupt::Interrupt;
use super::progress::{Progress, Unit};
use super::prompt::PromptArgs;
use super::sampling::SamplingArgs;
use super::{amount, answer, device, model};

/// Answer one prompt
///
/// Without --model the built-in model answers, which turns spoken-style commands into one JSON tool call:
/// farpost run "turn on the porch light at nine"
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    /// Tell speed and memory on standard error
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Prints the answer as it comes, or all about it as one JSON object.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let options = args.generation.options(&args.sampling, args.model.is_built_in())?;
    let text = args.prompt.text()?;
    let model = args.model.load(args.generation.memory.context)?;
    let prompt = args.prompt.ids(&text, &model)?;
    let interrupt = Interrupt::listen()?;
    let mut session = device::open(model, &args.generation.memory, console)?;
    let model = std::sync::Arc::clone(session.model());

    console.detail(&format!("answering a prompt of {}", amount::count(prompt.len() as u64, "token")));
    let mut stream = Stream::new(console);
    let mut logprobs = Vec::new();
    let mut progress = Some(Progress::new(console, "reading the prompt", prompt.len() as u64, Unit::Tokens));
    let generated = session.generate(&prompt, &options, &mut |event| {
        match event {
            Event::Prefill { done_tokens, .. } => {
                progress.as_mut().into_iter().for_each(|progress| progress.at(done_tokens as u64, ""));
            }
            Event::Token { id, logprobs: told } => {
                progress = None;
                logprobs.extend(told.map(|told| answer::logprobs(id, told, model.tokenizer())));
            }
            Event::Text(piece) => stream.push(piece),
        }
        if stream.has_failed() || interrupt.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(progress);
    stream.finish()?;
    let is_interrupted = interrupt.is_asked() && generated.finish == Finish::Cancelled;
    if console.is_json() {
        let mut report = json!({ "model": model.name(), "prompt_ids": prompt });
        answer::report(&mut report, &generated, &options.sampling, logprobs);
        console.print_json(&report)?;
    }
    if is_interrupted {
        return Err(Failure::interrupted());
    }
    if !console.is_json() && generated.finish == Finish::Length && args.generation.max_tokens.is_none() {
        console.note("(the context is full)");
    }
    let figures = answer::figures(&generated, &session.memory());
    if args.stats {
        console.note(&figures);
    } else {
        console.detail(&figures);
    }
    Ok(())
}

/// Text on its way to standard output: every piece at once, and a line break at the end.
pub struct Stream<'c> {
    console: &'c Console,
    is_silent: bool,
    ends_line: bool,
    failure: Option<Failure>,
}

impl<'c> Stream<'c> {
    /// Prints nothing where JSON is wanted.
    pub fn new(console: &'c Console) -> Self {
        Self { console, is_silent: console.is_json(), ends_line: false, failure: None }
    }

    /// Prints a piece.
    pub fn push(&mut self, piece: &str) {
        if self.is_silent || self.has_failed() {
            return;
        }
        self.ends_line = piece.ends_with('\n');
        self.failure = self.console.print_said(piece).err();
    }

    /// True once standard output takes no more.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Ends the line.
    pub fn finish(mut self) -> Result<(), Failure> {
        if !self.is_silent && !self.ends_line && !self.has_failed() {
            self.failure = self.console.print("\n").err();
        }
        self.failure.map_or(Ok(()), Err)
    }
}
