//! The rows of the next step, lane by lane, highest first: the last token of every answer that is being written, with
//! guesses behind it, and parts of prompts, as long as the highest answers keep their pace. A prompt of a higher lane does
//! not wait for the pace of lower ones.

use farpost_kernels::backend::Row;

use super::Owner;
use super::choice::{Choice, ms};
use crate::engine::error::EngineError;
use crate::engine::request::{MOST_CHOICES, Priority};

/// Rows that a step has beside the answers that set its pace, however slow it gets: the rest goes on.
const LEAST_ROWS_BESIDE: usize = 1;
/// Rows of a part of a prompt in a reproducible request; the same everywhere and forever.
const REPRODUCIBLE_ROWS: usize = 32;

/// The rows of one choice in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Of its request, and which of its choices.
    pub(super) number: u64,
    pub(super) index: usize,
    /// Where its rows begin.
    pub(super) row: usize,
    /// Tokens of its own.
    pub(super) n_rows: usize,
    /// Guesses behind them.
    pub(super) n_drafts: usize,
    /// Where its results begin.
    pub(super) want: usize,
    /// Results: of a text none while tokens are missing, otherwise one more than guesses; of an embedding one for each row
    /// that is part of it.
    pub(super) n_wants: usize,
}

impl Owner {
    /// The place of a part's choice among those that run.
    pub(super) fn place_of(&self, part: &Part) -> Option<usize> {
        self.running.iter().position(|choice| choice.job.number == part.number && choice.index == part.index)
    }

    /// Makes the batch and its parts; none if nobody can go on.
    pub(super) fn compose(&mut self) {
        self.batch.rows.clear();
        self.batch.want.clear();
        self.parts.clear();
        self.paced = None;
        if let Some(guesser) = &mut self.guesser {
            let running = &self.running;
            guesser.keep_only(|whose| running.iter().any(|choice| (choice.job.number, choice.index) == whose));
        }
        if self.running.is_empty() || self.compose_alone() {
            return;
        }
        self.alone = None;
        let max_rows = self.sizes.limits.max_rows;
        let mut has_prompt = false;
        for lane in Priority::ALL.into_iter().rev() {
            let of_lane = |is_wanted: &dyn Fn(&Choice) -> bool| -> Vec<(u64, usize)> {
                let wanted =
                    |choice: &&Choice| choice.job.priority == lane && !choice.job.reproducible && is_wanted(choice);
                let mut wanted: Vec<&Choice> = self.running.iter().filter(wanted).collect();
                // Where not all have room, they take turns. The sort is stable.
                wanted.sort_by_key(|choice| if choice.is_decoding() { choice.last_step } else { 0 });
                wanted.into_iter().map(|choice| (choice.job.number, choice.index)).collect()
            };
            let decoding = of_lane(&Choice::is_decoding);
            let prefilling = of_lane(&|choice| !choice.is_decoding());
            let is_lower = |choice: &Choice| choice.job.priority < lane && !choice.job.reproducible;
            let is_beside = !prefilling.is_empty() || self.running.iter().any(is_lower);
            // The highest answers set the pace, unless a prompt of a higher lane does not wait for them.
            let sets_pace = self.paced.is_none() && !has_prompt && !decoding.is_empty();
            let allowed = match self.paced {
                _ if sets_pace => self.rows_within_pace(decoding.len(), prefilling.len()),
                Some(_) => self.allowed,
                None => max_rows,
            };
            for (number, &id) in decoding.iter().enumerate() {
                // Those behind it have a row each. One answer alone may guess as much as pays; several share what is
                // allowed.
                let behind = decoding.len() - number - 1;
                let rows = if sets_pace && decoding.len() == 1 && !is_beside { max_rows } else { allowed };
                let free = match self.paced {
                    _ if sets_pace => rows.saturating_sub(self.batch.rows.len() + behind).max(1),
                    Some(_) => allowed.saturating_sub(self.batch.rows.len()).min(1),
                    // Beside a prompt of a higher lane a row is little.
                    None => max_rows.saturating_sub(self.batch.rows.len()).min(1),
                };
                if free > 0 {
                    self.add(id, free);
                }
            }
            if sets_pace && (is_beside || decoding.len() > 1) {
                self.paced = Some(decoding.len());
                self.allowed = allowed;
            }
            // A prompt has the step to itself among prompts, but for those of its lane.
            if has_prompt {
                continue;
            }
            // Answers of lower lanes go on beside a prompt that does not wait for them.
            let below = |choice: &&Choice| is_lower(choice) && choice.is_decoding();
            let n_below = if self.paced.is_none() { self.running.iter().filter(below).count() } else { 0 };
            let allowed = allowed.min(max_rows.saturating_sub(n_below).max(1));
            for id in prefilling {
                let free = allowed.saturating_sub(self.batch.rows.len());
                if free == 0 {
                    break;
                }
                has_prompt = true;
                self.add(id, free);
            }
        }
    }

    /// Milliseconds of a step in which so many answers keep their pace beside prompts of their lane; `None` before a step
    /// was measured.
    ///
    /// One prompt may make a step longer by what the pace allows, and each more by as much; where more prompts wait than
    /// answers run, they count for more in that proportion. If all were to share what one may have, the last of several
    /// that come together would wait for long, and steps would stay small that take little less time than large ones.
    fn pace_ms(&self, n_answers: usize, n_prompts: usize) -> Option<f64> {
        let alone_ms = self.pace.alone_ms(n_answers).or_else(|| self.costs.step_ms(n_answers))?;
        let (answers, prompts) = (n_answers.max(1) as f64, n_prompts.max(1) as f64);
        let more = (self.inter_token_percent as f64 / 100.0 - 1.0) * prompts * (prompts / answers).max(1.0);
        Some(alone_ms * (1.0 + more))
    }

    /// Rows that a step may have for `n_answers` to keep their pace beside prompts of their lane; none but theirs where
    /// that is to be measured.
    fn rows_within_pace(&self, n_answers: usize, n_prompts: usize) -> usize {
        let max_rows = self.sizes.limits.max_rows;
        match self.pace_ms(n_answers, n_prompts).filter(|_| self.pace.is_fresh(n_answers)) {
            Some(ms) => self.pace.rows(&self.costs, ms, n_answers + LEAST_ROWS_BESIDE, max_rows),
            None => n_answers,
        }
    }

    /// Rows of so many prompts, all together, in a step beside `n_answers`, by what is known of costs.
    pub(super) fn prompt_rows(&self, n_answers: usize, n_prompts: usize) -> Option<usize> {
        let ms = self.pace_ms(n_answers, n_prompts)?;
        let rows = self.costs.rows_within(ms, n_answers, self.sizes.limits.max_rows);
        Some(rows.saturating_sub(n_answers).max(LEAST_ROWS_BESIDE))
    }

    /// A step for one reproducible choice alone, if it is the turn of one: they take turns with each other, and all of
    /// them with the rest.
    fn compose_alone(&mut self) -> bool {
        let is_rest = |choice: &Choice| !choice.job.reproducible;
        let has_rest = self.running.iter().any(&is_rest);
        let key = |choice: &Choice| choice.job.number * MOST_CHOICES as u64 + choice.index as u64;
        let mut keys: Vec<u64> = self.running.iter().filter(|choice| !is_rest(choice)).map(&key).collect();
        keys.sort_unstable();
        let next = match self.alone {
            Some(last) => keys.iter().find(|&&key| key > last).or(keys.first().filter(|_| !has_rest)),
            None => keys.first(),
        };
        let Some(&next) = next else { return false };
        let Some(choice) = self.running.iter().find(|choice| !is_rest(choice) && key(choice) == next) else {
            return false;
        };
        // What was chosen is run again one by one, as it was at first.
        let in_prompt = choice.job.prompt_tokens.saturating_sub(choice.n_written);
        let most = REPRODUCIBLE_ROWS - choice.n_written % REPRODUCIBLE_ROWS;
        let n_rows = if in_prompt > 0 { in_prompt.min(most).min(self.sizes.limits.max_rows) } else { 1 };
        let id = (choice.job.number, choice.index);
        self.alone = Some(next);
        self.add(id, n_rows);
        true
    }

    /// Adds up to `free` rows of a choice, if there is room in the cache.
    fn add(&mut self, id: (u64, usize), free: usize) {
        let at = |owner: &Self| owner.running.iter().position(|choice| (choice.job.number, choice.index) == id);
        let Some(place) = at(self) else { return };
        let (context, choice) = (self.sizes.context, &self.running[place]);
        let n_rows = choice.n_missing().min(free);
        let (start, row) = (choice.n_written, self.batch.rows.len());
        let end = start + n_rows;
        let Some(sequence) = choice.sequence.filter(|_| n_rows > 0) else { return };
        let is_last = end == choice.tokens.len();
        let mut drafts = Vec::new();
        if let Some(drafter) = choice.drafter.as_ref().filter(|_| is_last && !choice.job.reproducible) {
            // The answer to the last guess is a token, too.
            let room = choice.job.max_tokens.saturating_sub(choice.n_generated() + 1);
            let room = room.min(context - end).min(free - n_rows);
            drafter.draft(room, &mut drafts);
        }
        if choice.max_draft > 0
            && choice.is_decoding()
            && let Some(guesser) = &mut self.guesser
        {
            let start = (self.clock)();
            let room = choice.job.max_tokens.saturating_sub(choice.n_generated() + 1);
            let room = room.min(context - end).min(free - n_rows).min(choice.max_draft);
            guesser.guess(id, &choice.tokens, room, &mut drafts);
            self.metrics.draft_ms += ms((self.clock)() - start);
        }
        // Nobody gives way for guesses.
        if !drafts.is_empty() && !self.plan.kv().reserve(sequence, end + drafts.len()) {
            drafts.clear();
        }
        if !self.make_room(id, end + drafts.len()) {
            return;
        }
        let Some(place) = at(self) else { return };
        let choice = &mut self.running[place];
        choice.promised_tokens = choice.promised_tokens.max(end);
        choice.last_step = self.metrics.steps + 1;
        let (want, n_drafts) = (self.batch.want.len(), drafts.len());
        choice.want(start, end, n_drafts, row, &mut self.batch.want);
        let n_wants = self.batch.want.len() - want;
        let tokens = choice.tokens[start..end].iter().copied().chain(drafts);
        self.batch.rows.extend((start..).zip(tokens).map(|(position, token)| Row { token, position, sequence }));
        self.parts.push(Part { number: id.0, index: id.1, row, n_rows, n_drafts, want, n_wants });
    }

    /// Room for `tokens` of a choice. What gives way, in this order: cached prefixes; those behind it that are not in the
    /// step yet, last first; itself.
    fn make_room(&mut self, id: (u64, usize), tokens: usize) -> bool {
        loop {
            let Some(place) = self.running.iter().position(|choice| (choice.job.number, choice.index) == id) else {
                return false;
            };
            let Some(sequence) = self.running[place].sequence else { return false };
            if self.plan.kv().reserve(sequence, tokens) {
                return true;
            }
            if self.evict(None) {
                continue;
            }
            let is_in_step = |choice: &Choice| {
                self.parts.iter().any(|part| (part.number, part.index) == (choice.job.number, choice.index))
            };
            match self.running.iter().rposition(|choice| !is_in_step(choice)) {
                // Alone with an empty cache there is room for a whole context, or the plan breaks its word.
                Some(last) if last == place && self.running.len() == 1 => {
                    self.fail(id.0, EngineError::NoRoom { tokens });
                    return false;
                }
                Some(last) => {
                    self.preempt(last);
                    // What it held is a cached prefix now, unless it is shared.
                    self.evict(None);
                    if last == place {
                        return false;
                    }
                }
                None => return false,
            }
        }
    }

    /// Only the rows of `part`, without guesses.
    pub(super) fn compose_again(&mut self, part: &Part) -> Option<Part> {
        let choice = &self.running[self.place_of(part)?];
        let (sequence, start) = (choice.sequence?, choice.n_written);
        self.batch.rows.clear();
        self.batch.want.clear();
        let end = (start + part.n_rows).min(choice.tokens.len());
        let tokens = &choice.tokens[start..end];
        self.batch.rows.extend((start..).zip(tokens).map(|(position, &token)| Row { token, position, sequence }));
        choice.want(start, end, 0, 0, &mut self.batch.want);
        let n_wants = self.batch.want.len();
        Some(Part { row: 0, want: 0, n_drafts: 0, n_wants, ..*part })
    }
}
