//! One answer of a model: shown as it comes, its line ended, and told about as the user asked.

use std::ops::ControlFlow;
use std::sync::Arc;

use farpost::engine::{Event, Finish, GenerateOptions, Generated, Session};
use serde_json::Value as Json;

use super::answer;
use super::console::Console;
use super::exit::Failure;
use super::interrupt::Interrupt;
use super::progress::{Progress, Unit};

/// How answers are given.
pub struct Reply<'a> {
    pub console: &'a Console,
    /// Ends the answer when the user asks for it.
    pub interrupt: &'a Interrupt,
    pub options: &'a GenerateOptions,
    /// What is said while the prompt is read.
    pub reading: &'static str,
    /// What is said of an answer that the context cut short.
    pub full: &'static str,
    /// Whether speed and memory are told to everybody, or only where details are wanted.
    pub tells_figures: bool,
}

impl Reply<'_> {
    /// Lets the model go on from `prompt`; `report` is what JSON tells before the answer.
    pub fn give(&self, session: &mut Session, prompt: &[u32], mut report: Json) -> Result<Generated, Failure> {
        let Self { console, interrupt, options, .. } = *self;
        let model = Arc::clone(session.model());
        let mut stream = Stream::new(console);
        let mut logprobs = Vec::new();
        let mut progress = Some(Progress::new(console, self.reading, prompt.len() as u64, Unit::Tokens));
        let generated = session.generate(prompt, options, &mut |event| {
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
        if console.is_json() {
            // Why the answer ended is told in it.
            answer::report(&mut report, &generated, &options.sampling, logprobs);
            console.print_json(&report)?;
        } else if generated.finish == Finish::Length && options.max_tokens.is_none_or(|most| generated.ids.len() < most)
        {
            console.note(self.full);
        }
        let figures = answer::figures(&generated, &session.memory());
        if self.tells_figures {
            console.note(&figures);
        } else {
            console.detail(&figures);
        }
        Ok(generated)
    }
}

/// Text on its way to standard output: every piece at once, and a line break at the end.
struct Stream<'c> {
    console: &'c Console,
    is_silent: bool,
    ends_line: bool,
    failure: Option<Failure>,
}

impl<'c> Stream<'c> {
    /// Prints nothing where JSON is wanted.
    fn new(console: &'c Console) -> Self {
        Self { console, is_silent: console.is_json(), ends_line: false, failure: None }
    }

    /// Prints a piece.
    fn push(&mut self, piece: &str) {
        if self.is_silent || self.has_failed() {
            return;
        }
        self.ends_line = piece.ends_with('\n');
        self.failure = self.console.print_said(piece).err();
    }

    /// True once standard output takes no more.
    fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Ends the line.
    fn finish(mut self) -> Result<(), Failure> {
        if !self.is_silent && !self.ends_line && !self.has_failed() {
            self.failure = self.console.print("\n").err();
        }
        self.failure.map_or(Ok(()), Err)
    }
}
