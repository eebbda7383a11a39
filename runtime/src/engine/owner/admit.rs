//! Who begins: the highest lane, in it the caller served least, in it who came first. Whoever begins has a place and
//! room; a higher lane takes them from a lower one.

use std::cmp::Reverse;
use std::time::Instant;

use farpost_kernels::backend::{KvStore, Sequence};

use super::Owner;
use super::choice::Choice;
use super::prefixes::{BLOCK, Found, Hashes, Prefixes, shared};
use crate::engine::error::EngineError;
use crate::engine::pooling::Pooled;
use crate::engine::stream::Told;

/// Tokens of an answer that have room for sure, if there is not room enough for all it may have.
const SHORT_PROMISE: usize = 128;
/// Holders of the same beginning that are compared.
const MOST_COMPARED: usize = 8;

impl Owner {
    /// Begins as many as there are places and room for.
    pub(super) fn admit(&mut self, now: Instant) {
        let mut passed_over = Vec::new();
        while let Some(place) = self.next_waiting(&passed_over) {
            let (number, index) = (self.waiting[place].job.number, self.waiting[place].index);
            if self.awaits_prefix(&self.waiting[place]) {
                passed_over.push((number, index));
                continue;
            }
            let priority = self.waiting[place].job.priority;
            while !self.has_room_for(place) {
                let lower = |choice: &Choice| choice.job.priority < priority;
                if !self.preempt_last(lower) {
                    return;
                }
            }
            let choice = self.waiting.swap_remove(place);
            self.is_queue_changed = true;
            self.begin(choice, now);
        }
    }

    /// The place in the queue of whoever comes next.
    fn next_waiting(&self, passed_over: &[(u64, usize)]) -> Option<usize> {
        let order = |choice: &Choice| {
            let job = &choice.job;
            (Reverse(job.priority), self.shares.served(&job.caller), job.number, choice.index)
        };
        let is_open = |choice: &Choice| !passed_over.contains(&(choice.job.number, choice.index));
        let open = self.waiting.iter().enumerate().filter(|(_, choice)| is_open(choice));
        open.min_by_key(|(_, choice)| order(choice)).map(|(place, _)| place)
    }

    /// Whether somebody is about to run what `choice` begins with: then it waits rather than run the same again.
    fn awaits_prefix(&self, choice: &Choice) -> bool {
        if !choice.may_share() {
            return false;
        }
        // Whoever shares most. What it has not run yet is worth waiting for.
        let Some((_, holders)) = self.prefixes.holders(&choice.hashes).next() else { return false };
        let running = self.running.iter().filter(|other| other.sequence.is_some_and(|of| holders.contains(&of)));
        let missing = running.map(|other| {
            let common = shared(&other.tokens, &choice.tokens).min(choice.tokens.len() - 1);
            (common.saturating_sub(other.n_written), common)
        });
        let Some((n_missing, common)) = missing.min() else { return false };
        let is_kept = holders.iter().any(|holder| self.prefixes.tokens(*holder).is_some());
        !is_kept && n_missing > 0 && common >= BLOCK
    }

    /// Whether there is a place and room for the choice at `place` in the queue; sets its promise.
    fn has_room_for(&mut self, place: usize) -> bool {
        if self.running.len() >= self.max_running {
            return false;
        }
        let page = self.sizes.limits.page_tokens;
        let in_pages = |tokens: usize| tokens.div_ceil(page) * page;
        let promised: usize = self.running.iter().map(|choice| in_pages(choice.promised_tokens)).sum();
        let free = self.metrics.kv_tokens.saturating_sub(promised);
        let choice = &mut self.waiting[place];
        let most = choice.most_tokens(self.sizes.context);
        let short = most.min(choice.tokens.len() + SHORT_PROMISE);
        let promise = [most, short].into_iter().find(|&tokens| in_pages(tokens) <= free);
        choice.promised_tokens = promise.unwrap_or(0);
        promise.is_some()
    }

    /// Sends the last of those that may be preempted back to the queue; false if there is none.
    pub(super) fn preempt_last(&mut self, may_be: impl Fn(&Choice) -> bool) -> bool {
        let Some(place) = self.running.iter().rposition(may_be) else { return false };
        self.preempt(place);
        true
    }

    /// Sends a running choice back to the queue.
    pub(super) fn preempt(&mut self, place: usize) {
        let mut choice = self.running.remove(place);
        // What others have run is nothing to a reproducible choice, but what it has run itself is.
        choice.is_parked = choice.job.reproducible && choice.pooled.is_none();
        let scope = match choice.is_parked {
            true => self.hashing.own_scope(choice.job.number, choice.index),
            false => choice.job.scope,
        };
        self.set_aside(&mut choice, scope);
        choice.hashes = self.hashing.of(&choice.tokens, scope);
        self.metrics.preempted += 1;
        self.enqueue(choice);
    }

    /// Gives a choice a sequence, with what is cached of its tokens.
    fn begin(&mut self, mut choice: Choice, now: Instant) {
        let (sequence, n_written) = match self.find_prefix(&choice) {
            Some(found) => self.share(found),
            None => (self.open(), 0),
        };
        let Some(sequence) = sequence else {
            // There are as many sequences as may run and be cached: this is a plan that breaks its word.
            let (number, tokens) = (choice.job.number, choice.tokens.len());
            self.enqueue(choice);
            self.fail(number, EngineError::NoRoom { tokens });
            return;
        };
        (choice.sequence, choice.n_written) = (Some(sequence), n_written);
        choice.pooled.iter_mut().for_each(Pooled::restart);
        if choice.begun.is_none() {
            choice.cached_tokens = n_written;
            choice.begun = Some(now);
            let total_tokens = choice.job.prompt_tokens;
            choice.job.teller.tell(Told::Prefill { done_tokens: n_written, total_tokens });
        }
        self.metrics.cached_tokens += n_written as u64;
        self.prefixes.enter(sequence, choice.hashes.clone());
        self.insert_running(choice);
    }

    pub(super) fn insert_running(&mut self, choice: Choice) {
        let order = |choice: &Choice| (Reverse(choice.job.priority), choice.job.number, choice.index);
        let place = self.running.partition_point(|other| order(other) < order(&choice));
        self.running.insert(place, choice);
    }

    /// Where most of a choice's tokens are, if anywhere.
    fn find_prefix(&mut self, choice: &Choice) -> Option<Found> {
        if !choice.may_share() && !choice.is_parked {
            return None;
        }
        // The last token's answer is needed.
        let found = self.longest(&choice.hashes, &choice.tokens, choice.tokens.len() - 1)?;
        // Of what was run together, a part would have to be run again with other rows than at first.
        let is_all = self.prefixes.tokens(found.sequence).is_some_and(|kept| kept.len() == found.shared);
        (found.shared >= BLOCK && (is_all || !choice.is_parked)).then_some(found)
    }

    /// Where most of `tokens`, which have these hashes, are; up to `most` of them.
    pub(super) fn longest(&mut self, hashes: &Hashes, tokens: &[u32], most: usize) -> Option<Found> {
        let mut best: Option<Found> = None;
        let mut seen: Vec<Sequence> = Vec::new();
        let Self { prefixes, running, plan, .. } = self;
        for (n_tokens, holders) in prefixes.holders(hashes) {
            if best.is_some_and(|best| best.shared >= n_tokens) {
                break;
            }
            // The latest are as good as any.
            for &sequence in holders.iter().rev().take(MOST_COMPARED) {
                if !seen.contains(&sequence) {
                    seen.push(sequence);
                    let found = compare(prefixes, running, sequence, tokens).map(|found| {
                        // Where windows have passed, texts are gone on with from earlier, or not at all.
                        let shared = plan.kv().resumable(sequence, found.shared.min(most));
                        Found { shared, ..found }
                    });
                    best = best.into_iter().chain(found).max_by_key(|found| found.shared);
                }
            }
        }
        best
    }

    /// A sequence that goes on from what was found, and how many tokens it has.
    fn share(&mut self, found: Found) -> (Option<Sequence>, usize) {
        self.prefixes.touch(found.sequence);
        if found.is_whole {
            // Nothing else can come of it: what goes on from it holds all that it holds.
            self.prefixes.take(found.sequence);
            return (Some(found.sequence), self.plan.kv().truncate(found.sequence, found.shared));
        }
        loop {
            if let Some(sequence) = self.plan.kv().fork(found.sequence, found.shared) {
                return (Some(sequence), found.shared);
            }
            if !self.evict(Some(found.sequence)) {
                return (self.open(), 0);
            }
        }
    }

    pub(super) fn open(&mut self) -> Option<Sequence> {
        loop {
            if let Some(sequence) = self.plan.kv().open() {
                return Some(sequence);
            }
            if !self.evict(None) {
                return None;
            }
        }
    }

    /// Drops the cached prefix that was not used for longest, but never `kept`; after all of them, the text that is
    /// copied.
    pub(super) fn evict(&mut self, kept: Option<Sequence>) -> bool {
        let kv: &mut dyn KvStore = self.plan.kv();
        let is_evicted = self.prefixes.evict(kept, kv);
        self.metrics.evicted += u64::from(is_evicted);
        is_evicted || self.forget_held()
    }
}

/// How much of `tokens` a sequence has.
fn compare(prefixes: &Prefixes, running: &[Choice], sequence: Sequence, tokens: &[u32]) -> Option<Found> {
    if let Some(kept) = prefixes.tokens(sequence) {
        let shared = shared(kept, tokens);
        return Some(Found { sequence, shared, is_whole: shared == kept.len() });
    }
    let holder = running.iter().find(|choice| choice.sequence == Some(sequence))?;
    let written = &holder.tokens[..holder.n_written.min(holder.tokens.len())];
    Some(Found { sequence, shared: shared(written, tokens), is_whole: false })
}
