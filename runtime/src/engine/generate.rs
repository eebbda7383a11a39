//! What is asked of a session and what it tells: options, events, the result and its timings.

use super::grammar::Grammar;
use super::lookup::Speculate;
use super::sampler::Logprobs;
use super::sampling::Sampling;

/// One generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens to generate; `None` goes on until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts at which generation ends. They are not part of the text, not even in part.
    pub stop: Vec<String>,
    /// Go on after tokens that end a text, as if they were ordinary ones.
    pub ignore_eos: bool,
    /// Write out control tokens in the text.
    pub render_special: bool,
    /// The form that the text must have. It ends when the form is complete and the model ends it; not with `ignore_eos`.
    pub grammar: Option<Grammar>,
    /// Guess tokens ahead and run them in one step.
    pub speculate: Speculate,
}

/// What happens during a generation, as it happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// A part of the prompt was run.
    Prefill {
        /// Tokens of the prompt in the cache, those that were there before among them.
        done_tokens: usize,
        /// Tokens of the prompt.
        total_tokens: usize,
    },
    /// A token was chosen. Its text may come later, or not at all.
    Token {
        /// The token.
        id: u32,
        /// If they were asked for.
        logprobs: Option<&'a Logprobs>,
    },
    /// The text goes on. Never empty.
    Text(&'a str),
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the text with this token, which is not among the ids.
    EndToken(u32),
    /// This one of the stop strings came, counted from 0.
    StopString(usize),
    /// As many tokens as were asked for, or as the context holds.
    Length,
    /// The receiver of the events did not want more.
    Cancelled,
    /// A newer request of the same caller with the same supersede key took its place.
    Superseded,
    /// Its deadline passed.
    Deadline,
    /// The engine was shut down.
    Closed,
}

impl Finish {
    /// "stop", "length", "cancelled", "superseded", "deadline" or "closed".
    pub fn reason(self) -> &'static str {
        match self {
            Self::EndToken(_) | Self::StopString(_) => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::Deadline => "deadline",
            Self::Closed => "closed",
        }
    }
}

/// The result of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Tokens chosen, without the one that ended the text; with those of a stop string.
    pub ids: Vec<u32>,
    /// All text that was told.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// How long it took.
    pub timings: Timings,
}

/// Times and counts of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Opening the model and compiling it for the device; the same for every generation of a session.
    pub load_ms: f64,
    /// From submission until work began; 0 in a session.
    pub queue_ms: f64,
    /// From the start of work until the first token was chosen.
    pub prefill_ms: f64,
    /// From then to the end.
    pub decode_ms: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were still in the cache.
    pub cached_tokens: usize,
    /// Tokens chosen, with the one that ended the text.
    pub generated_tokens: usize,
    /// Tokens that were guessed and run ahead.
    pub drafted_tokens: usize,
    /// How many of them were chosen: steps that were saved.
    pub accepted_tokens: usize,
}

impl Timings {
    /// Tokens of the prompt that were run, a second.
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        rate(self.prompt_tokens.saturating_sub(self.cached_tokens), self.prefill_ms)
    }

    /// Tokens after the first, a second.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        rate(self.generated_tokens.saturating_sub(1), self.decode_ms)
    }
}

fn rate(n_tokens: usize, ms: f64) -> Option<f64> {
    (n_tokens > 0 && ms > 0.0).then(|| n_tokens as f64 * 1e3 / ms)
}
