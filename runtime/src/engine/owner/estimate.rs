//! How long a request would take, from how things stand and the measured times of steps.

use std::time::Duration;

use super::Owner;
use super::choice::Choice;
use crate::engine::request::Priority;

/// Tokens left to run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::engine) struct Backlog {
    /// Of prompts.
    pub(super) prompt: f64,
    /// Positions that these attend to, all together.
    pub(super) prompt_positions: f64,
    /// Of answers.
    pub(super) answer: f64,
    pub(super) n_choices: usize,
}

impl Backlog {
    /// So many tokens of a prompt, after so many.
    fn add_prompt(&mut self, n_tokens: usize, n_before: usize) {
        let n_tokens = n_tokens as f64;
        self.prompt += n_tokens;
        self.prompt_positions += n_tokens * (n_before as f64 + n_tokens / 2.0);
    }
}

/// How things stand: what an estimate needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::engine) struct Load {
    /// By lane, lowest first: all that waits and runs.
    pub(super) backlog: [Backlog; 3],
    pub(super) max_running: usize,
    /// Milliseconds of a row of a prompt, in steps as long as they are now, without what it attends to; `None` before a
    /// step was measured.
    pub(super) prompt_row_ms: Option<f64>,
    /// Milliseconds that a position adds to a step of a prompt.
    pub(super) prompt_position_ms: f64,
    /// Milliseconds of a step with as many answers as would run with one more, without what that one attends to; and of one
    /// with as many as may, as they are on average.
    pub(super) answer_step_ms: f64,
    pub(super) full_step_ms: f64,
    /// Milliseconds that a position adds to a step of answers.
    pub(super) answer_position_ms: f64,
    pub(super) mean_answer: f64,
    /// Milliseconds until a place in the queue is free; `None` before a step was measured.
    pub(super) place_ms: Option<f64>,
    /// What steps would take if nothing else ran.
    pub(super) idle: Idle,
}

/// How often answers come to an end of their own, of those that ended lately: before any limit of theirs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    n_ends: f64,
    n_tokens: f64,
}

impl Ends {
    /// Weight of all answers before the latest.
    const KEPT: f64 = 0.95;

    /// An answer of so many tokens ended.
    pub(super) fn learn(&mut self, n_tokens: usize, is_own: bool) {
        self.n_ends = Self::KEPT * self.n_ends + f64::from(u8::from(is_own));
        self.n_tokens = Self::KEPT * self.n_tokens + n_tokens as f64;
    }

    /// Ends a token.
    fn rate(&self) -> f64 {
        self.n_ends / self.n_tokens.max(1.0)
    }
}

/// Milliseconds as a time. There is no longest answer: what no clock would see is as long as can be.
fn time(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or(Duration::MAX)
}

/// The mean time to an end that comes at random, so often in a unit of time, but at `most` then.
fn mean_until(rate: f64, most: f64) -> f64 {
    if rate * most < 1e-6 { most } else { (1.0 - (-rate * most).exp()) / rate }
}

/// Milliseconds of steps of one request alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::engine) struct Idle {
    /// As those of [`Load`].
    pub(super) prompt_row_ms: Option<f64>,
    pub(super) prompt_position_ms: f64,
    pub(super) answer_step_ms: f64,
    pub(super) answer_position_ms: f64,
}

impl Load {
    /// Time until all `n` answers to a prompt would be complete; `None` before anything was measured. An answer without
    /// a limit counts as long as answers are on average.
    pub(in crate::engine) fn estimate(
        &self,
        priority: Priority,
        prompt_tokens: usize,
        max_tokens: Option<usize>,
        n: usize,
    ) -> Option<Duration> {
        let prompt_row_ms = self.prompt_row_ms?;
        let ahead = self.ahead(priority);
        let answer = max_tokens.map_or(self.mean_answer, |most| most as f64);
        let max_running = self.max_running.max(1);
        // With a place free it begins at once, behind the prompts that are being read; without, when enough answers end.
        let n_rounds = n.div_ceil(max_running);
        let mut prompts = ahead;
        prompts.add_prompt(prompt_tokens, 0);
        let prompts_ms = prompts.prompt * prompt_row_ms + prompts.prompt_positions * self.prompt_position_ms;
        let wait_ms = match ahead.n_choices + n > max_running {
            true => ahead.answer / max_running as f64 * self.full_step_ms,
            false => 0.0,
        };
        let step_ms = match n {
            0 | 1 => self.answer_step_ms + self.answer_position_ms * (prompt_tokens as f64 + answer / 2.0),
            _ => self.full_step_ms,
        };
        let own_ms = answer * n_rounds as f64 * step_ms;
        Some(time(prompts_ms + wait_ms + own_ms))
    }

    /// How things would stand with nothing to do.
    pub(in crate::engine) fn idle(&self) -> Self {
        let Idle { prompt_row_ms, prompt_position_ms, answer_step_ms, answer_position_ms } = self.idle;
        let backlog = Default::default();
        Self { backlog, prompt_row_ms, prompt_position_ms, answer_step_ms, answer_position_ms, ..*self }
    }

    /// Time until a place in the queue is free; `None` before anything was measured.
    pub(in crate::engine) fn until_place(&self) -> Option<Duration> {
        self.place_ms.map(time)
    }

    fn ahead(&self, priority: Priority) -> Backlog {
        let lanes = self.backlog.iter().skip(priority as usize);
        lanes.fold(Backlog::default(), |sum, lane| Backlog {
            prompt: sum.prompt + lane.prompt,
            prompt_positions: sum.prompt_positions + lane.prompt_positions,
            answer: sum.answer + lane.answer,
            n_choices: sum.n_choices + lane.n_choices,
        })
    }
}

impl Owner {
    /// How things stand.
    pub(super) fn load(&self) -> Load {
        let mut load = Load { max_running: self.max_running, mean_answer: self.mean_answer, ..Load::default() };
        for choice in self.waiting.iter().chain(&self.running) {
            let lane = &mut load.backlog[choice.job.priority as usize];
            let n_choices = 1 + choice.siblings.len();
            let left = choice.most_tokens(self.sizes.context).saturating_sub(choice.tokens.len()) as f64;
            let n_generated = choice.n_generated() as f64;
            let likely = if self.mean_answer > n_generated { left.min(self.mean_answer - n_generated) } else { left };
            lane.add_prompt(choice.n_missing(), choice.n_written);
            lane.answer += likely * n_choices as f64;
            lane.n_choices += n_choices;
        }
        let answers = self.running.iter().filter(|choice| choice.is_decoding());
        let (n_answers, positions) = answers.fold((0, 0), |(n, sum), choice| (n + 1, sum + choice.tokens.len()));
        let (max_rows, costs, positions) = (self.sizes.limits.max_rows, &self.costs, positions as f64);
        load.answer_step_ms = costs.step_ms_at(n_answers + 1, positions).unwrap_or(0.0);
        load.answer_position_ms = costs.attention(n_answers + 1).0;
        load.full_step_ms = costs.step_ms(self.max_running).unwrap_or(0.0);
        let prompt_rows = match n_answers {
            0 => Some(max_rows),
            n => self.prompt_rows(n, 1),
        };
        if let Some(rows) = prompt_rows {
            load.prompt_row_ms = costs.step_ms_at(n_answers + rows, positions).map(|ms| ms / rows as f64);
            load.prompt_position_ms = costs.attention(n_answers + rows).0;
        }
        load.idle = Idle {
            prompt_row_ms: costs.step_ms_at(max_rows, 0.0).map(|ms| ms / max_rows as f64),
            prompt_position_ms: costs.attention(max_rows).0,
            answer_step_ms: costs.step_ms_at(1, 0.0).unwrap_or(0.0),
            answer_position_ms: costs.attention(1).0,
        };
        load.place_ms = self.place_ms(&load);
        load
    }

    /// Milliseconds until a place in the queue is free: then the first request of which nothing has begun is begun. Before
    /// it come further choices of those that have, and whoever has lost a place.
    fn place_ms(&self, load: &Load) -> Option<f64> {
        load.prompt_row_ms?;
        let has_queue = self.waiting.iter().any(|choice| choice.begun.is_none() && choice.index == 0);
        if !has_queue || self.running.is_empty() {
            return Some(load.full_step_ms);
        }
        let n_answers = self.running.iter().filter(|choice| choice.is_decoding()).count();
        let n_prompts = self.running.len() - n_answers;
        let rows = match n_answers {
            0 => self.sizes.limits.max_rows,
            n => self.prompt_rows(n, n_prompts.max(1))?,
        };
        // Steps are longer for as long as there are prompts.
        let mixed_ms = self.costs.step_ms(n_answers + rows)?.max(f64::MIN_POSITIVE);
        let row_ms = mixed_ms / rows as f64;
        let step_ms = load.answer_step_ms.max(f64::MIN_POSITIVE);
        let steps_ms = |n_tokens: f64, prompts_ms: f64| match n_tokens * mixed_ms {
            ms if ms <= prompts_ms => ms,
            _ => prompts_ms + (n_tokens - prompts_ms / mixed_ms) * step_ms,
        };
        let left = |choice: &Choice| choice.most_tokens(self.sizes.context).saturating_sub(choice.tokens.len()) as f64;
        let prompt_ms = |choice: &Choice| if choice.is_decoding() { 0.0 } else { choice.n_missing() as f64 * row_ms };
        let all_prompts_ms: f64 = self.running.iter().map(prompt_ms).sum();
        // One prompt is read after the other.
        let ends = self.running.iter().scan(0.0, |read_ms, choice| {
            *read_ms += prompt_ms(choice);
            let begins_ms = if choice.is_decoding() { 0.0 } else { *read_ms };
            Some(begins_ms + steps_ms(left(choice), all_prompts_ms - begins_ms))
        });
        let rate = self.ends.rate();
        let first_ms = mean_until(rate * n_answers as f64 / step_ms, ends.fold(f64::INFINITY, f64::min));
        let nested = self.running.iter().flat_map(|choice| &choice.siblings);
        let before = self.waiting.iter().filter(|choice| choice.begun.is_some() || choice.index > 0).chain(nested);
        let before_ms: f64 = before
            .map(|choice| {
                // What lost its place is read again; further choices share their prompt.
                let n_missing = if choice.begun.is_some() { choice.n_missing() as f64 } else { 0.0 };
                n_missing * row_ms + mean_until(rate, left(choice)) * step_ms
            })
            .sum();
        Some(first_ms + before_ms / self.running.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(load: &Load, priority: Priority, max_tokens: Option<usize>, n: usize) -> u128 {
        load.estimate(priority, 100, max_tokens, n).unwrap().as_millis()
    }

    #[test]
    fn nothing_is_estimated_before_a_step_was_measured() {
        assert_eq!(Load::default().estimate(Priority::High, 1, Some(1), 1), None);
        assert_eq!(Load::default().until_place(), None);
    }

    #[test]
    fn an_answer_without_end_takes_as_long_as_can_be() {
        let load = Load { max_running: 2, prompt_row_ms: Some(0.5), answer_step_ms: 1e7, ..Load::default() };
        assert_eq!(load.estimate(Priority::Normal, 1, Some(usize::MAX), 1), Some(Duration::MAX));
    }

    #[test]
    fn only_what_is_not_lower_counts_as_ahead() {
        let mut load = Load {
            max_running: 2,
            prompt_row_ms: Some(0.5),
            answer_step_ms: 10.0,
            full_step_ms: 12.0,
            mean_answer: 20.0,
            ..Load::default()
        };
        assert_eq!(ms(&load, Priority::Normal, Some(8), 1), 50 + 80);
        assert_eq!(ms(&load, Priority::Normal, None, 1), 50 + 200);
        assert_eq!(ms(&load, Priority::Normal, Some(8), 4), 50 + 2 * 8 * 12);
        load.backlog[Priority::Normal as usize] =
            Backlog { prompt: 10.0, answer: 100.0, n_choices: 2, ..Backlog::default() };
        assert_eq!(ms(&load, Priority::High, Some(8), 1), 50 + 80);
        assert_eq!(ms(&load, Priority::Normal, Some(8), 1), 55 + 600 + 80);
        assert_eq!(ms(&load, Priority::Low, Some(8), 1), 55 + 600 + 80);
    }

    #[test]
    fn ends_at_random_come_sooner_than_the_limit() {
        assert_eq!(mean_until(0.0, 50.0), 50.0);
        assert!((mean_until(0.1, 1e6) - 10.0).abs() < 1e-9);
        assert!((9.9..10.0).contains(&mean_until(0.1, 50.0)));
        let mut ends = Ends::default();
        assert_eq!(ends.rate(), 0.0);
        (0..200).for_each(|number| ends.learn(20, number % 2 == 0));
        assert!((0.02..0.03).contains(&ends.rate()));
    }

    #[test]
    fn what_is_attended_to_counts() {
        let load = Load {
            max_running: 2,
            prompt_row_ms: Some(0.5),
            prompt_position_ms: 0.001,
            answer_step_ms: 10.0,
            answer_position_ms: 0.01,
            ..Load::default()
        };
        // A hundred tokens attend to fifty on average; eight answers to the prompt and four of their own.
        assert_eq!(ms(&load, Priority::Normal, Some(8), 1), 50 + 5 + 8 * 10 + 8);
        let long = load.estimate(Priority::Normal, 4000, Some(8), 1).unwrap().as_millis();
        assert_eq!(long, 2000 + 8000 + 80 + 320);
    }
}
