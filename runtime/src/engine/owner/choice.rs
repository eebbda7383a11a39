//! One answer on its way: waiting, running or set aside. It is its tokens; everything else can be made from them again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use farpost_kernels::backend::{Sequence, Want, WantKind};

use super::prefixes::Hashes;
use crate::engine::error::EngineError;
use crate::engine::generate::{Finish, Timings};
use crate::engine::ledger::Charge;
use crate::engine::lookup::Drafter;
use crate::engine::pooling::Pooled;
use crate::engine::request::Priority;
use crate::engine::sampler::Sampler;
use crate::engine::stream::{Teller, Told};

/// What the choices of a request have in common.
#[derive(Debug)]
pub(in crate::engine) struct Job {
    /// In order of arrival.
    pub(in crate::engine) number: u64,
    pub(in crate::engine) teller: Teller,
    pub(in crate::engine) priority: Priority,
    pub(in crate::engine) submitted: Instant,
    pub(in crate::engine) deadline: Option<Instant>,
    pub(in crate::engine) caller: Arc<str>,
    /// With whom it shares prefixes.
    pub(in crate::engine) scope: u64,
    pub(in crate::engine) supersede: Option<Arc<str>>,
    /// With whom it was asked for; 0 for nobody.
    pub(in crate::engine) group: u64,
    pub(in crate::engine) reproducible: bool,
    pub(in crate::engine) ignore_eos: bool,
    /// Most tokens of an answer.
    pub(in crate::engine) max_tokens: usize,
    pub(in crate::engine) prompt_tokens: usize,
    /// Memory that it holds until it is gone.
    pub(in crate::engine) _charge: Arc<Charge>,
}

/// One answer.
#[derive(Debug)]
pub(in crate::engine) struct Choice {
    pub(in crate::engine) job: Arc<Job>,
    pub(in crate::engine) index: usize,
    /// The prompt and what was chosen so far.
    pub(in crate::engine) tokens: Vec<u32>,
    /// Whether a reproducible choice lost its place: what it had run is kept for it, and not for others.
    pub(in crate::engine) is_parked: bool,
    /// Of its tokens when it last began to wait.
    pub(in crate::engine) hashes: Hashes,
    /// Where its keys and values are, while it runs.
    pub(in crate::engine) sequence: Option<Sequence>,
    /// How many of `tokens` have keys and values there.
    pub(in crate::engine) n_written: usize,
    /// What is known of the embedding, if that is wanted.
    pub(in crate::engine) pooled: Option<Pooled>,
    pub(in crate::engine) sampler: Sampler,
    pub(in crate::engine) drafter: Option<Drafter>,
    /// Tokens that the draft model may guess at once; 0 for none.
    pub(in crate::engine) max_draft: usize,
    /// Choices of the same request that begin when the prompt is in the cache.
    pub(in crate::engine) siblings: Vec<Choice>,
    pub(in crate::engine) cached_tokens: usize,
    pub(in crate::engine) drafted_tokens: usize,
    pub(in crate::engine) accepted_tokens: usize,
    pub(in crate::engine) begun: Option<Instant>,
    pub(in crate::engine) first_token: Option<Instant>,
    /// Tokens that it was promised room for, while it runs.
    pub(in crate::engine) promised_tokens: usize,
    /// When rows of it were in a step last, counted in steps.
    pub(in crate::engine) last_step: u64,
    /// Why its last step ended it.
    pub(in crate::engine) finish: Option<Finish>,
    /// Told last of its place in the queue.
    pub(in crate::engine) ahead: Option<usize>,
}

impl Choice {
    /// Tokens that must be run before the next one can be chosen.
    pub(super) fn n_missing(&self) -> usize {
        self.tokens.len() - self.n_written
    }

    pub(super) fn n_generated(&self) -> usize {
        self.tokens.len() - self.job.prompt_tokens
    }

    /// Whether the next step chooses a token of it, and nothing else is left to run.
    pub(super) fn is_decoding(&self) -> bool {
        self.n_missing() <= 1 && self.n_generated() > 0
    }

    /// Tokens that it may have in the end, within a context of so many.
    pub(super) fn most_tokens(&self, context: usize) -> usize {
        self.job.prompt_tokens.saturating_add(self.job.max_tokens).min(context)
    }

    /// Adds what a step must answer for its tokens from `start` to `end`, which are the rows from `row` on, and `n_drafts`
    /// guesses behind them: rows of an embedding, or the next token once nothing is missing.
    pub(super) fn want(&self, start: usize, end: usize, n_drafts: usize, row: usize, want: &mut Vec<Want>) {
        if let Some(pooled) = &self.pooled {
            let positions = (start..end).filter(|&position| pooled.wants(position));
            want.extend(positions.map(|position| Want { row: row + position - start, kind: WantKind::Hidden }));
        } else if end == self.tokens.len() {
            let (last, kind) = (row + end - start - 1, self.sampler.wants());
            want.extend((last..=last + n_drafts).map(|row| Want { row, kind }));
        }
    }

    /// Whether what it begins with may be taken from the cache.
    pub(super) fn may_share(&self) -> bool {
        !self.job.reproducible && self.pooled.as_ref().is_none_or(Pooled::may_skip)
    }

    pub(super) fn timings(&self, now: Instant) -> Timings {
        let begun = self.begun.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Timings {
            load_ms: 0.0,
            queue_ms: ms(begun - self.job.submitted),
            prefill_ms: ms(first_token.saturating_duration_since(begun)),
            decode_ms: ms(now.saturating_duration_since(first_token)),
            prompt_tokens: self.job.prompt_tokens,
            cached_tokens: self.cached_tokens,
            generated_tokens: self.n_generated(),
            drafted_tokens: self.drafted_tokens,
            accepted_tokens: self.accepted_tokens,
        }
    }

    /// Tells that it ended; with `end`, a token more was chosen that is not among its own.
    pub(super) fn tell_end(&self, finish: Finish, now: Instant) {
        let mut timings = self.timings(now);
        timings.generated_tokens += usize::from(matches!(finish, Finish::EndToken(_)));
        self.job.teller.tell(Told::End { choice: self.index, finish, timings });
    }

    pub(super) fn tell_failed(&self, error: &Arc<EngineError>) {
        self.job.teller.tell(Told::Failed(Arc::clone(error)));
    }
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
