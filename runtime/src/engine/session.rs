//! One sequence on one plan, driven by its caller: what a program needs that has one conversation at a time.
//!
//! Invariant: `ids` are the tokens whose keys and values the plan's cache holds, no more and no less. Every step goes
//! through [`Session::run`], which keeps it so.

mod ahead;
mod file;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farpost_kernels::backend::{
    Activations, Answer, Backend, Batch, DeviceError, KvType, Limits, MemoryUse, Output, Placement, Plan, Row,
    Sequence, Want, WantKind,
};

use super::dry::Breakers;
use super::error::EngineError;
use super::generate::{Event, Finish, GenerateOptions, Generated, Timings};
use super::grammar;
use super::guesser::{Guesser, with_draft};
use super::lookup;
use super::options::DEFAULT_CONTEXT;
use super::pooling::Pooled;
use super::sampler::Sampler;
use super::stop::StopMatcher;
use crate::model::Model;
use ahead::Ahead;

/// What a session is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Tokens the context holds, no more than the model's; by default the model's, but at most 4,096.
    pub context: Option<usize>,
    /// Compute threads; 0 takes one per available core.
    pub threads: usize,
    /// Storage of keys and values.
    pub kv_type: KvType,
    /// How finely activations are rounded for products with quantized weights.
    pub activations: Activations,
    /// Most tokens of a prompt that are run in one step, 1 or more. Cancelling waits for one step.
    pub batch_rows: usize,
    /// Bytes that keys, values and scratch may take.
    pub memory_cap: Option<u64>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            context: None,
            threads: 0,
            kv_type: limits.kv_type,
            activations: limits.activations,
            batch_rows: limits.max_rows,
            memory_cap: None,
        }
    }
}

/// A conversation with a model. What a generation shares with the one before is not run again.
pub struct Session {
    model: Arc<Model>,
    plan: Box<dyn Plan>,
    sequence: Sequence,
    context: usize,
    kv_type: KvType,
    activations: Activations,
    batch_rows: usize,
    ids: Vec<u32>,
    batch: Batch,
    output: Output,
    guesser: Option<Guesser>,
    load_ms: f64,
}

/// How a prefill ended.
enum Prefill {
    Done,
    Cancelled,
}

impl Session {
    /// Compiles `model` for a device.
    ///
    /// # Errors
    /// Options out of range, and what the device refuses: most of all, too little memory.
    pub fn open(model: Arc<Model>, backend: &dyn Backend, options: &SessionOptions) -> Result<Self, EngineError> {
        Self::open_with(model, None, backend, options)
    }

    /// The same, with a draft model for [`super::Speculate::Draft`]: a smaller model of the same vocabulary.
    ///
    /// # Errors
    /// As [`Session::open`], and a draft model of another vocabulary.
    pub fn open_with_draft(
        model: Arc<Model>,
        draft: Arc<Model>,
        backend: &dyn Backend,
        options: &SessionOptions,
    ) -> Result<Self, EngineError> {
        Self::open_with(model, Some(draft), backend, options)
    }

    fn open_with(
        model: Arc<Model>,
        draft: Option<Arc<Model>>,
        backend: &dyn Backend,
        options: &SessionOptions,
    ) -> Result<Self, EngineError> {
        let start = Instant::now();
        let most = model.graph().max_context();
        let context = options.context.unwrap_or(most.min(DEFAULT_CONTEXT));
        if context == 0 || context > most {
            let expected = format!("1 to {most}, the context the model was opened for");
            return Err(EngineError::OutOfRange { parameter: "context", found: context, expected });
        }
        if options.batch_rows == 0 {
            return Err(EngineError::OutOfRange {
                parameter: "batch_rows",
                found: 0,
                expected: "1 or more".to_owned(),
            });
        }
        let batch_rows = options.batch_rows.min(context);
        let limits = Limits {
            max_rows: batch_rows,
            max_sequences: 1,
            kv_tokens: context,
            kv_type: options.kv_type,
            activations: options.activations,
            threads: options.threads,
            memory_cap: options.memory_cap,
            ..Limits::default()
        };
        let mut plan = backend.compile(model.graph(), &limits)?;
        let Some(sequence) = plan.kv().open() else {
            return Err(DeviceError::Refused("a new plan opens no sequence, expected one".to_owned()).into());
        };
        let MemoryUse { kv, scratch, .. } = plan.memory();
        let limits = Limits { memory_cap: limits.memory_cap.map(|cap| cap.saturating_sub(kv + scratch)), ..limits };
        let guesser = draft.map(|draft| Guesser::open(&model, draft, backend, &limits, context)).transpose()?;
        let load_ms = model.open_ms() + ms(start.elapsed());
        let (ids, batch, output) = (Vec::with_capacity(context), Batch::default(), Output::default());
        let SessionOptions { kv_type, activations, .. } = *options;
        Ok(Self {
            model,
            plan,
            sequence,
            context,
            kv_type,
            activations,
            batch_rows,
            ids,
            batch,
            output,
            guesser,
            load_ms,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens the context holds.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens in the cache.
    pub fn cached(&self) -> &[u32] {
        &self.ids
    }

    /// Bytes the plan takes, by kind; that of the draft model with it.
    pub fn memory(&self) -> MemoryUse {
        with_draft(self.plan.memory(), self.guesser.as_ref())
    }

    /// Dispatches to a device that a token takes; `None` on the processor.
    pub fn n_dispatches(&self) -> Option<usize> {
        self.plan.n_dispatches()
    }

    /// Where layers are, if not all are on one device.
    pub fn placement(&self) -> Option<Placement> {
        self.plan.placement()
    }

    /// Opening the model and compiling it, in milliseconds.
    pub fn load_ms(&self) -> f64 {
        self.load_ms
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.keep(0);
    }

    /// Goes on from `prompt` and tells what happens; `Break` from the receiver ends it, before the next step at the
    /// latest.
    ///
    /// # Errors
    /// Before any work: parameters out of range, a prompt that is empty or does not fit the context, ids that are no
    /// tokens. Afterwards: what the device or the file do. The session can be used again after every error.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generated, EngineError> {
        let start = Instant::now();
        let model = Arc::clone(&self.model);
        let tokenizer = model.tokenizer();
        self.check_prompt(prompt)?;
        if let Some(number) = options.stop.iter().position(String::is_empty) {
            return Err(EngineError::EmptyStop { number });
        }
        lookup::check(options.speculate, self.guesser.is_some())?;
        let dry = &options.sampling.dry;
        let breakers =
            if dry.multiplier > 0.0 { Breakers::of(&dry.sequence_breakers, tokenizer) } else { Breakers::default() };
        let sampler = Sampler::new(options.sampling.clone(), self.model.graph().n_vocab(), breakers)?;
        let mut sampler = sampler.with_constraint(grammar::constraint(&model, options)?);
        sampler.reserve()?;
        let mut detokenizer = tokenizer.stream_after(prompt).with_special(options.render_special);
        let mut matcher = StopMatcher::new(&options.stop);

        let cached_tokens = self.keep_common(prompt);
        let mut timings =
            Timings { load_ms: self.load_ms, prompt_tokens: prompt.len(), cached_tokens, ..Timings::default() };
        let mut generated = Generated { ids: Vec::new(), text: String::new(), finish: Finish::Length, timings };
        let most = options.max_tokens.unwrap_or(usize::MAX);
        let want = sampler.wants();
        let prefill = self.prefill(prompt, want, on_event)?;
        let mut ahead = Ahead::after(prompt, options.speculate);
        let mut first_token = None;
        generated.finish = loop {
            if matches!(prefill, Prefill::Cancelled) {
                break Finish::Cancelled;
            }
            if generated.ids.len() >= most {
                break Finish::Length;
            }
            if let Some(&last) = generated.ids.last()
                && !self.advance(&mut ahead, last, most - generated.ids.len(), want)?
            {
                break Finish::Length;
            }
            let chosen = sampler.choose(self.answer(&ahead)?, prompt, &generated.ids)?;
            ahead.choose(chosen.id);
            timings.generated_tokens += 1;
            first_token.get_or_insert_with(Instant::now);
            if tokenizer.is_stop(chosen.id) && !options.ignore_eos {
                break Finish::EndToken(chosen.id);
            }
            generated.ids.push(chosen.id);
            if on_event(Event::Token { id: chosen.id, logprobs: chosen.logprobs.as_ref() }).is_break() {
                break Finish::Cancelled;
            }
            let text = matcher.push(detokenizer.push(chosen.id));
            let told = tell(text, &mut generated.text, on_event);
            if let Some(number) = matcher.found() {
                break Finish::StopString(number);
            }
            if told.is_break() {
                break Finish::Cancelled;
            }
        };
        if !matches!(prefill, Prefill::Cancelled) {
            self.take_back(&mut ahead);
        }
        if matches!(generated.finish, Finish::EndToken(_) | Finish::Length) {
            let mut rest = matcher.push(&detokenizer.finish()).to_owned();
            if let Some(number) = matcher.found() {
                generated.finish = Finish::StopString(number);
            }
            rest.push_str(&matcher.finish());
            // There is nothing left to cancel.
            let _ = tell(&rest, &mut generated.text, on_event);
        }
        let end = Instant::now();
        let first_token = first_token.unwrap_or(end);
        timings.prefill_ms = ms(first_token - start);
        timings.decode_ms = ms(end - first_token);
        (timings.drafted_tokens, timings.accepted_tokens) = (ahead.drafted_tokens, ahead.accepted_tokens);
        generated.timings = timings;
        Ok(generated)
    }

    /// Natural logs of the probabilities that the model gives to each token of `ids` after those before it: one less
    /// than there are ids.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn score(&mut self, ids: &[u32]) -> Result<Vec<f64>, EngineError> {
        Ok(self.score_after(ids, 1, &mut |_| ControlFlow::Continue(()))?.unwrap_or_default())
    }

    /// As [`Session::score`], of the tokens from the place `first` on, which is 1 or more. `on_step` gets the tokens run
    /// so far after each step; `Break` ends it there, with `None`.
    pub fn score_after(
        &mut self,
        ids: &[u32],
        first: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<f64>>, EngineError> {
        self.check_prompt(ids)?;
        self.clear();
        let mut scores = Vec::with_capacity(ids.len().saturating_sub(first.max(1)));
        // Nothing comes after the last one: it need not be run.
        for chunk in ids[..ids.len() - 1].chunks(self.batch_rows) {
            let start = self.ids.len();
            self.run(chunk, |row| {
                let next = start + row + 1;
                ids.get(next).filter(|_| next >= first).map(|&id| WantKind::Score(id))
            })?;
            for answer in &self.output.results {
                match answer {
                    Answer::Score { logit, log_sum_exp } => scores.push(f64::from(*logit) - log_sum_exp),
                    _ => {
                        return Err(DeviceError::Wrong("a step answered something else than a score".to_owned()).into());
                    }
                }
            }
            if on_step(self.ids.len()).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(scores))
    }

    /// The embedding of a text, of length 1. `ids` are the text with all that the tokenizer puts around it
    /// ([`encode_prompt`](farpost_models::tokenizer::Tokenizer::encode_prompt)). `on_step` gets the tokens run so far after
    /// each step; `Break` ends it there, with `None`.
    ///
    /// # Errors
    /// A model that makes no embeddings, and as [`Session::generate`].
    pub fn embed(
        &mut self,
        ids: &[u32],
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<f32>>, EngineError> {
        let Some(pooling) = self.model.pooling() else {
            return Err(EngineError::NoEmbeddings { model: self.model.name().to_owned() });
        };
        self.check_prompt(ids)?;
        self.clear();
        let mut pooled = Pooled::new(pooling, ids.len(), self.model.graph().width());
        for chunk in ids.chunks(self.batch_rows) {
            let start = self.ids.len();
            self.run(chunk, |row| pooled.wants(start + row).then_some(WantKind::Hidden))?;
            for answer in &self.output.results {
                match answer {
                    Answer::Hidden(row) => pooled.add(row),
                    _ => return Err(DeviceError::Wrong("a step answered something else than a row".to_owned()).into()),
                }
            }
            if on_step(self.ids.len()).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(pooled.finish()))
    }

    fn check_prompt(&self, prompt: &[u32]) -> Result<(), EngineError> {
        check_prompt(prompt, self.context, self.model.graph().n_vocab())
    }

    /// Keeps what the cache and `prompt` have in common, but for its last token, whose answer is needed.
    fn keep_common(&mut self, prompt: &[u32]) -> usize {
        let common = self.ids.iter().zip(prompt).take_while(|(cached, wanted)| cached == wanted).count();
        let common = common.min(prompt.len().saturating_sub(1));
        self.keep(common)
    }

    /// Forgets tokens from `n_tokens` on, and more where windows of layers have passed: as many as are left.
    fn keep(&mut self, n_tokens: usize) -> usize {
        let n_kept = self.plan.kv().truncate(self.sequence, n_tokens);
        self.ids.truncate(n_kept);
        n_kept
    }

    /// Runs what is missing of `prompt`; the last row answers `want`.
    fn prefill(
        &mut self,
        prompt: &[u32],
        want: WantKind,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Prefill, EngineError> {
        let total_tokens = prompt.len();
        while self.ids.len() < total_tokens {
            let start = self.ids.len();
            let end = total_tokens.min(start + self.batch_rows);
            self.run(&prompt[start..end], |row| (start + row + 1 == total_tokens).then_some(want))?;
            if on_event(Event::Prefill { done_tokens: end, total_tokens }).is_break() {
                return Ok(Prefill::Cancelled);
            }
        }
        Ok(Prefill::Done)
    }

    /// One step: appends `ids` to the sequence; `want` says what each row is to answer.
    fn run(&mut self, ids: &[u32], want: impl Fn(usize) -> Option<WantKind>) -> Result<(), EngineError> {
        let (start, sequence) = (self.ids.len(), self.sequence);
        let end = start + ids.len();
        if !self.plan.kv().reserve(sequence, end) {
            return Err(EngineError::NoRoom { tokens: end });
        }
        self.batch.rows.clear();
        self.batch.rows.extend((start..).zip(ids).map(|(position, &token)| Row { token, position, sequence }));
        self.batch.want.clear();
        self.batch.want.extend((0..ids.len()).filter_map(|row| Some(Want { row, kind: want(row)? })));
        let stepped = self.plan.step(&self.batch, &mut self.output);
        let damaged = self.model.files().find(|file| file.is_damaged()).map(|file| file.name().to_owned());
        if let Some(file) = damaged {
            self.clear();
            return Err(EngineError::Damaged { file });
        }
        if let Err(error) = stepped {
            return Err(self.blame(error, start));
        }
        self.ids.extend_from_slice(ids);
        let (found, expected) = (self.output.results.len(), self.batch.want.len());
        if found != expected {
            return Err(DeviceError::Wrong(format!("{found} results of a step, expected {expected}")).into());
        }
        Ok(())
    }

    /// What a failed step is reported as. A file that was written to explains wrong results better than they do
    /// themselves, and then nothing in the cache is right.
    fn blame(&mut self, error: DeviceError, start: usize) -> EngineError {
        let changed = match error {
            DeviceError::Wrong(_) => self.model.files().find_map(|file| file.check_unchanged().err()),
            _ => None,
        };
        match changed {
            Some(changed) => {
                self.clear();
                EngineError::Changed(changed)
            }
            None => {
                self.keep(start);
                self.model.explained(error).into()
            }
        }
    }
}

/// Checks that a prompt has tokens, that they are some, and that they fit.
pub(super) fn check_prompt(prompt: &[u32], context_tokens: usize, n_vocab: usize) -> Result<(), EngineError> {
    if prompt.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    if prompt.len() > context_tokens {
        return Err(EngineError::PromptTooLong { prompt_tokens: prompt.len(), context_tokens });
    }
    match prompt.iter().position(|&id| id as usize >= n_vocab) {
        Some(place) => Err(EngineError::NoSuchToken { place, id: prompt[place], n_vocab }),
        None => Ok(()),
    }
}

/// Adds `new` to the text and tells it.
fn tell(new: &str, text: &mut String, on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
    if new.is_empty() {
        return ControlFlow::Continue(());
    }
    text.push_str(new);
    on_event(Event::Text(new))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(all(test, feature = "pocket"))]
mod ahead_tests;
#[cfg(all(test, feature = "pocket"))]
mod draft_tests;
#[cfg(all(test, feature = "pocket"))]
pub(super) mod tests;
