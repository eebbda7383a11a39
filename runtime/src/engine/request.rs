//! What is asked of an engine, and why it may say no.

use std::time::Duration;

use super::error::EngineError;
use super::generate::GenerateOptions;
use super::sampling::Sampling;

/// Most choices that one request may ask for.
pub const MOST_CHOICES: usize = 64;

/// One request: a prompt, how to go on from it, and what the engine should know to serve it among others.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids; at least one, no more than the context holds.
    pub prompt: Vec<u32>,
    /// How to go on from it. Nothing in it changes an embedding.
    pub options: GenerateOptions,
    /// What is wanted is not a text that goes on from the prompt but the embedding of the prompt, in
    /// [`super::StreamEvent::Embedding`]. For models that are made for it, see [`Model::pooling`](crate::Model::pooling).
    pub is_embedding: bool,
    /// Independent answers to the same prompt, 1 to [`MOST_CHOICES`]. Choice `i` is drawn with `sampling.seed + i`.
    pub n: usize,
    /// Its lane.
    pub priority: Priority,
    /// All answers must be complete within this time from submission. A request that cannot make it is refused at
    /// once; one that does not make it all the same ends with [`super::Finish::Deadline`] and what it has.
    pub deadline: Option<Duration>,
    /// Who asks. Callers of one lane get equal shares of the work; empty for nobody in particular, who is one caller.
    pub caller: String,
    /// Requests of the same scope share what they begin with; how soon an answer begins tells nothing of what was asked
    /// in others. Empty by default, a scope as any other.
    pub prefix_scope: String,
    /// A newer request of the same caller with the same key ends this one, queued or running.
    pub supersede: Option<String>,
    /// Requests of one group do not end each other so; 0 for a request that belongs to none.
    pub group: u64,
    /// Same seed, same text, whatever else the engine does meanwhile. Slower: its rows run in steps of their own, in
    /// parts of the same size each time, and nothing is guessed ahead.
    pub reproducible: bool,
}

impl Request {
    /// A request of nobody in particular in the middle lane.
    pub fn new(prompt: Vec<u32>, options: GenerateOptions) -> Self {
        Self {
            prompt,
            options,
            is_embedding: false,
            n: 1,
            priority: Priority::default(),
            deadline: None,
            caller: String::new(),
            prefix_scope: String::new(),
            supersede: None,
            group: 0,
            reproducible: false,
        }
    }

    /// One for the embedding of a text, with all that the tokenizer puts around it
    /// ([`encode_prompt`](farpost_models::tokenizer::Tokenizer::encode_prompt)).
    pub fn embedding(text: Vec<u32>) -> Self {
        let options =
            GenerateOptions { sampling: Sampling::greedy(), max_tokens: Some(0), ..GenerateOptions::default() };
        Self { is_embedding: true, ..Self::new(text, options) }
    }
}

/// Lanes: work of a lower one waits while there is work of a higher one, and gives way to it when room is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// For whenever there is nothing else.
    Low,
    /// For most.
    #[default]
    Normal,
    /// Somebody waits for every token.
    High,
}

impl Priority {
    /// All lanes, lowest first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// "low", "normal" or "high".
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// Why a request was not taken. Nothing was done for it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The queue is full.
    #[error("the queue is full with {waiting} requests, try again in {} ms", retry_after.as_millis())]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
        /// When a place should be free, from measured times; one second if nothing was measured yet.
        retry_after: Duration,
    },
    /// It would not be done in time.
    #[error("the deadline is in {} ms, it would take {} ms", deadline.as_millis(), estimate.as_millis())]
    Deadline {
        /// What was asked for.
        deadline: Duration,
        /// What it would take with what runs and waits now, from measured times.
        estimate: Duration,
        /// When enough of that should be done; `None` if it would take too long alone, too.
        retry_after: Option<Duration>,
    },
    /// More memory than there is under the cap.
    #[error("{needed_bytes} bytes are needed for {what} of a prompt of {tokens} tokens, {allowed_bytes} are free")]
    Memory {
        /// For what: "keys and values", or "the text and its choosing".
        what: &'static str,
        /// Tokens of the prompt.
        tokens: usize,
        /// Bytes that are needed.
        needed_bytes: u64,
        /// Bytes that it may take now.
        allowed_bytes: u64,
        /// When there may be as much; `None` if there never will.
        retry_after: Option<Duration>,
    },
    /// The request is wrong in itself.
    #[error(transparent)]
    Invalid(#[from] EngineError),
    /// The engine takes no more requests.
    #[error("the engine is shutting down and takes no more requests")]
    Closed,
}
