//! Runs a step and hands out its answers: samplers choose, guesses are taken or taken back, failures find their request.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use farpost_kernels::backend::{Answer, Batch, DeviceError, Interrupt, Output, Sequence};
use farpost_models::tokenizer::Tokenizer;

use super::Owner;
use super::choice::{Choice, ms};
use super::compose::Part;
use super::costs::Costs;
use super::no_plan::NoPlan;
use super::pace::Pace;
use crate::engine::error::EngineError;
use crate::engine::generate::Finish;
use crate::engine::sampler::SampleError;
use crate::engine::stream::Told;

/// Rows of a part of a prompt for which a step is interrupted when its request is cancelled.
const INTERRUPTED_ROWS: usize = 16;

impl Owner {
    /// Runs the composed batch.
    pub(super) fn work(&mut self) {
        self.batch.interrupt = self.interrupt();
        let stepped = self.step();
        self.batch.interrupt = None;
        match stepped {
            Ok(()) => {
                let n_before = self.metrics.generated_tokens;
                let parts = std::mem::take(&mut self.parts);
                for part in &parts {
                    self.hand_out(part);
                }
                self.parts = parts;
                if self.metrics.generated_tokens > n_before {
                    self.devices.worked();
                }
            }
            Err(EngineError::Device(DeviceError::Interrupted)) => {
                // Whoever is still there is composed anew.
                let parts = std::mem::take(&mut self.parts);
                parts.iter().for_each(|part| self.undo_drafts(part));
                self.parts = parts;
            }
            // Where there is another device, one that computes wrongly has had its time.
            Err(EngineError::Device(error @ DeviceError::Wrong(_))) if self.devices.has_next() => self.recover(error),
            Err(EngineError::Device(error @ (DeviceError::Wrong(_) | DeviceError::Refused(_)))) => self.isolate(error),
            Err(EngineError::Device(error)) => self.recover(error),
            Err(error) => {
                // The file is gone: nothing in the cache is right.
                self.fail_all(error);
            }
        }
    }

    /// What stops the step: that the request is cancelled which most of its rows are for. Others lose no more time by it
    /// than they win.
    fn interrupt(&self) -> Option<Interrupt> {
        let is_most = |part: &&Part| part.n_rows >= INTERRUPTED_ROWS && 2 * part.n_rows > self.batch.rows.len();
        let place = self.place_of(self.parts.iter().find(is_most)?)?;
        Some(self.running[place].job.teller.cancelled())
    }

    /// One step of the plan, timed.
    fn step(&mut self) -> Result<(), EngineError> {
        let start = self.now();
        let Self { plan, batch, output, .. } = self;
        let stepped = catch_unwind(AssertUnwindSafe(|| plan.step(batch, output)))
            .unwrap_or_else(|_| Err(DeviceError::Lost("the backend panicked".to_owned())));
        let time = self.now() - start;
        self.metrics.step_ms += ms(time);
        self.metrics.count_step(self.batch.rows.len());
        let damaged = self.model.files().find(|file| file.is_damaged()).map(|file| file.name().to_owned());
        if let Some(file) = damaged {
            self.metrics.failed_steps += 1;
            return Err(EngineError::Damaged { file });
        }
        let checked = stepped.and_then(|()| check(&self.output, &self.batch, self.model.graph().n_vocab()));
        if let Err(DeviceError::Interrupted) = checked {
            return Err(DeviceError::Interrupted.into());
        }
        if let Err(error) = checked {
            self.metrics.failed_steps += 1;
            if matches!(error, DeviceError::Wrong(_))
                && let Some(changed) = self.model.files().find_map(|file| file.check_unchanged().err())
            {
                return Err(EngineError::Changed(changed));
            }
            return Err(self.model.explained(error).into());
        }
        let n_rows = self.batch.rows.len();
        let positions = self.batch.rows.iter().map(|row| row.position + 1).sum();
        let foretold_ms = self.costs.step_ms(n_rows);
        self.costs.learn(n_rows, positions, time);
        self.pace.count_step();
        let is_answer = |part: &Part| part.n_rows == 1 && part.n_wants == 1;
        if n_rows == self.parts.len() && self.parts.iter().all(is_answer) {
            self.pace.learn_alone(n_rows, ms(time));
        }
        if self.paced.is_some_and(|n_answers| n_rows > n_answers)
            && let Some(foretold_ms) = foretold_ms
        {
            self.pace.learn(ms(time), foretold_ms);
        }
        Ok(())
    }

    /// Runs each part of a failed step alone, without guesses: those that fail again fail their request, and only it.
    fn isolate(&mut self, error: DeviceError) {
        let parts = std::mem::take(&mut self.parts);
        if let [part] = parts[..]
            && part.n_drafts == 0
        {
            self.undo(&part);
            self.fail(part.number, error.into());
        } else {
            for part in &parts {
                // The request may have failed with another of its choices.
                let Some(alone) = self.compose_again(part) else { continue };
                match self.step() {
                    Ok(()) => {
                        self.undo_drafts(&alone);
                        self.hand_out(&alone);
                    }
                    Err(EngineError::Device(error @ (DeviceError::Wrong(_) | DeviceError::Refused(_)))) => {
                        self.undo(part);
                        self.fail(part.number, error.into());
                    }
                    Err(EngineError::Device(error)) => return self.recover(error),
                    Err(error) => return self.fail_all(error),
                }
            }
        }
        self.parts = parts;
    }

    /// Gives room for guesses back that were not run.
    fn undo_drafts(&mut self, part: &Part) {
        if let Some(place) = self.place_of(part)
            && let Some(sequence) = self.running[place].sequence
        {
            let len = self.plan.kv().len(sequence);
            self.plan.kv().truncate(sequence, len);
        }
    }

    /// What a failed step may have left behind is not to be cached.
    fn undo(&mut self, part: &Part) {
        if let Some(place) = self.place_of(part)
            && let Some(sequence) = self.running[place].sequence.take()
        {
            self.prefixes.leave(sequence);
            self.plan.kv().close(sequence);
            self.running[place].n_written = 0;
        }
    }

    /// The device has failed: goes on with the next one, or begins the last anew.
    fn recover(&mut self, error: DeviceError) {
        let now = self.now();
        if self.devices.fail(&error, now) {
            self.begin_anew();
        } else {
            self.fail_all(error.into());
        }
        self.show_devices();
    }

    /// Compiles for the device that is used from now on, and has all keys and values made again from the tokens. Callers see
    /// a pause.
    pub(super) fn begin_anew(&mut self) {
        self.prefixes.forget();
        self.held = None;
        for mut choice in std::mem::take(&mut self.running) {
            (choice.sequence, choice.n_written, choice.promised_tokens) = (None, 0, 0);
            self.enqueue(choice);
        }
        // The memory of the one before is needed.
        (self.plan, self.has_plan) = (Box::new(NoPlan), false);
        // Times of another device say nothing.
        (self.costs, self.pace) = (Costs::default(), Pace::default());
        loop {
            match self.devices.compile(&self.model, &self.sizes.limits, self.sizes.context) {
                Ok(plan) => {
                    (self.plan, self.has_plan) = (plan, true);
                    self.metrics.recovered += 1;
                    break;
                }
                Err(error) => {
                    let now = self.now();
                    if !self.devices.fail(&error, now) {
                        self.running = std::mem::take(&mut self.waiting);
                        self.is_queue_changed = true;
                        self.fail_all(self.model.explained(error).into());
                        break;
                    }
                }
            }
        }
        self.show_devices();
    }

    /// Fails all that run and drops all that is cached.
    fn fail_all(&mut self, error: EngineError) {
        let error = Arc::new(error);
        for mut choice in std::mem::take(&mut self.running) {
            choice.tell_failed(&error);
            self.metrics.failed += 1 + choice.siblings.len() as u64;
            (0..=choice.siblings.len()).for_each(|_| self.shares.leave(&choice.job.caller));
            self.forget(&mut choice);
        }
        while self.evict(None) {}
    }

    /// Gives a part's answers to its choice.
    fn hand_out(&mut self, part: &Part) {
        let Some(place) = self.place_of(part) else { return };
        let output = std::mem::take(&mut self.output);
        let handed = self.advance(place, part, &output);
        self.output = output;
        match handed {
            Ok(()) => {}
            // Another device may know better.
            Err(EngineError::Sample(error @ (SampleError::Unusable { .. } | SampleError::WrongAnswer { .. })))
                if self.devices.has_next() =>
            {
                self.recover(DeviceError::Wrong(error.to_string()));
            }
            Err(error) => self.fail(part.number, error),
        }
    }

    fn advance(&mut self, place: usize, part: &Part, output: &Output) -> Result<(), EngineError> {
        let now = self.now();
        let choice = &mut self.running[place];
        choice.n_written += part.n_rows;
        self.shares.charge(&choice.job.caller, part.n_rows + part.n_drafts);
        if choice.n_generated() == 0 {
            self.metrics.prefill_tokens += part.n_rows as u64;
            let (done_tokens, total_tokens) = (choice.n_written, choice.job.prompt_tokens);
            choice.job.teller.tell(Told::Prefill { done_tokens, total_tokens });
        }
        if let Some(pooled) = &mut choice.pooled {
            let is_whole = choice.n_written == choice.tokens.len();
            for answer in &output.results[part.want..][..part.n_wants] {
                let Answer::Hidden(row) = answer else {
                    let found = "a step answered something else than a row".to_owned();
                    return Err(DeviceError::Wrong(found).into());
                };
                pooled.add(row);
            }
            if is_whole {
                choice.job.teller.tell(Told::Embedding(pooled.finish()));
                choice.finish = Some(Finish::Length);
            }
            return Ok(());
        }
        if part.n_wants == 0 {
            return Ok(());
        }
        let siblings = std::mem::take(&mut choice.siblings);
        let drafts = &self.batch.rows[part.row + part.n_rows..][..part.n_drafts];
        let tokenizer = self.model.tokenizer();
        let mut n_right = 0;
        for (number, answer) in output.results[part.want..][..part.n_wants].iter().enumerate() {
            let is_chosen = choose(choice, answer, tokenizer, self.sizes.context, now)?;
            self.metrics.generated_tokens += u64::from(is_chosen);
            let is_right = drafts.get(number).is_some_and(|draft| choice.tokens.last() == Some(&draft.token));
            // A token that ends the text is not among its own.
            if !is_right || choice.finish.is_some_and(|finish| matches!(finish, Finish::EndToken(_))) {
                break;
            }
            n_right += 1;
            if choice.finish.is_some() {
                break;
            }
        }
        choice.n_written += n_right;
        choice.drafted_tokens += part.n_drafts;
        choice.accepted_tokens += n_right;
        self.metrics.drafted_tokens += part.n_drafts as u64;
        self.metrics.accepted_tokens += n_right as u64;
        let (n_written, sequence) = (choice.n_written, choice.sequence);
        if let Some(sequence) = sequence.filter(|_| n_right < part.n_drafts) {
            self.plan.kv().truncate(sequence, n_written);
        }
        self.begin_siblings(siblings, sequence, &output.results[part.want], now)
    }

    /// Choices of the same prompt: they share its pages, and choose from the same answer.
    fn begin_siblings(
        &mut self,
        siblings: Vec<Choice>,
        sequence: Option<Sequence>,
        answer: &Answer,
        now: Instant,
    ) -> Result<(), EngineError> {
        let mut siblings = siblings.into_iter();
        while let Some(mut sibling) = siblings.next() {
            let n_prompt = sibling.job.prompt_tokens;
            let has_place = self.running.len() < self.max_running;
            let fork = sequence.filter(|_| has_place).and_then(|from| self.plan.kv().fork(from, n_prompt));
            let Some(fork) = fork else {
                self.enqueue(sibling);
                continue;
            };
            (sibling.sequence, sibling.n_written, sibling.cached_tokens) = (Some(fork), n_prompt, n_prompt);
            sibling.promised_tokens = n_prompt;
            sibling.begun = Some(now);
            self.prefixes.enter(fork, sibling.hashes.clone());
            let chosen = choose(&mut sibling, answer, self.model.tokenizer(), self.sizes.context, now);
            self.metrics.generated_tokens += u64::from(*chosen.as_ref().unwrap_or(&false));
            self.insert_running(sibling);
            if let Err(error) = chosen {
                // They fail together.
                siblings.for_each(|rest| self.enqueue(rest));
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Whether a step answered all that was wanted, with tokens that there are. Logits are looked at by who reads them.
fn check(output: &Output, batch: &Batch, n_vocab: usize) -> Result<(), DeviceError> {
    let (found, expected) = (output.results.len(), batch.want.len());
    if found != expected {
        return Err(DeviceError::Wrong(format!("{found} results of a step, expected {expected}")));
    }
    let is_token = |id: u32| (id as usize) < n_vocab;
    let is_right = |answer: &Answer| match answer {
        Answer::Greedy(id) => is_token(*id),
        Answer::TopK { best, log_sum_exp } => {
            log_sum_exp.is_finite() && best.iter().all(|(id, logit)| is_token(*id) && logit.is_finite())
        }
        Answer::Score { logit, log_sum_exp } => logit.is_finite() && log_sum_exp.is_finite(),
        Answer::Logits(_) => true,
        Answer::Hidden(row) => row.iter().all(|number| number.is_finite()),
    };
    match output.results.iter().all(is_right) {
        true => Ok(()),
        false => Err(DeviceError::Wrong("a result of a step that no model computes".to_owned())),
    }
}

/// Chooses the next token of a choice and tells it; false if none is wanted.
fn choose(
    choice: &mut Choice,
    answer: &Answer,
    tokenizer: &Tokenizer,
    context: usize,
    now: Instant,
) -> Result<bool, EngineError> {
    if choice.job.max_tokens == 0 {
        choice.finish = Some(Finish::Length);
        return Ok(false);
    }
    let (prompt, generated) = choice.tokens.split_at(choice.job.prompt_tokens);
    let chosen = choice.sampler.choose(answer, prompt, generated)?;
    choice.first_token.get_or_insert(now);
    if tokenizer.is_stop(chosen.id) && !choice.job.ignore_eos {
        choice.finish = Some(Finish::EndToken(chosen.id));
        return Ok(true);
    }
    choice.tokens.push(chosen.id);
    if let Some(drafter) = &mut choice.drafter {
        drafter.push(chosen.id);
    }
    choice.job.teller.tell(Told::Token { choice: choice.index, id: chosen.id, logprobs: chosen.logprobs });
    // The last token need not be run: there is one more than the context holds.
    if choice.n_generated() >= choice.job.max_tokens || choice.tokens.len() > context {
        choice.finish = Some(Finish::Length);
    }
    Ok(true)
}
