//! A draft model: a small model of the same vocabulary says what a large one is likely to say next (speculative decoding;
//! Leviathan et al. 2023, Chen et al. 2023). What it says never decides a token: it is run behind the last one, and what
//! was not chosen is taken back. So nothing it does can be an error of the text; if it fails, it guesses no more.
//!
//! Invariant: a [`Text`] holds the tokens whose keys and values the plan's cache has for its sequence.

use std::sync::Arc;

use farpost_kernels::backend::{
    Answer, Backend, Batch, DeviceError, Limits, MemoryUse, Output, Plan, Row, Sequence, Want, WantKind,
};
use farpost_models::tokenizer::Tokenizer;

use super::error::EngineError;
use crate::model::Model;

/// Cost of a row more in a step of few rows, in steps of one row; see `docs/decisions/010-lookup-speculation.md`.
const ROW_COST: f64 = 0.24;
/// A draft model as large as this share of the model can only guess what is all but sure.
const MOST_LEAST_CHANCE: f64 = 0.9;

/// Whose text.
pub(super) type Whose = (u64, usize);

/// A compiled draft model.
pub(super) struct Guesser {
    model: Arc<Model>,
    plan: Box<dyn Plan>,
    context: usize,
    max_rows: usize,
    texts: Vec<Text>,
    batch: Batch,
    output: Output,
    /// A token is guessed while the guess is right with this chance.
    least_chance: f64,
    is_broken: bool,
}

struct Text {
    whose: Whose,
    sequence: Sequence,
    ids: Vec<u32>,
}

impl Guesser {
    /// Compiles `draft` to guess for `model`, for texts of `context` tokens, within limits like those of the model.
    ///
    /// # Errors
    /// Another vocabulary; what the device refuses.
    pub(super) fn open(
        model: &Model,
        draft: Arc<Model>,
        backend: &dyn Backend,
        limits: &Limits,
        context: usize,
    ) -> Result<Self, EngineError> {
        check_vocabulary(model.tokenizer(), draft.tokenizer())?;
        let limits = Self::limits(&draft, limits, context);
        let context = context.min(draft.graph().max_context());
        let plan = backend.compile(draft.graph(), &limits)?;
        let bytes = |model: &Model| model.graph().weights().map(|weight| weight.bytes().len() as f64).sum::<f64>();
        // What is read for a token is what it costs.
        let cost = bytes(&draft) / bytes(model).max(1.0);
        Ok(Self {
            model: draft,
            plan,
            context,
            max_rows: limits.max_rows,
            texts: Vec::new(),
            batch: Batch::default(),
            output: Output::default(),
            least_chance: (ROW_COST + cost).min(MOST_LEAST_CHANCE),
            is_broken: false,
        })
    }

    /// What `draft` is compiled for, in place of `limits` like those of the model.
    pub(super) fn limits(draft: &Model, limits: &Limits, context: usize) -> Limits {
        Limits { kv_tokens: limits.kv_tokens.max(context.min(draft.graph().max_context())), ..limits.clone() }
    }

    /// Bytes that the plan takes.
    pub(super) fn memory(&self) -> MemoryUse {
        self.plan.memory()
    }

    /// Appends what may come after `text`, `most` tokens at most. A long text is caught up with over several calls, with
    /// no guesses meanwhile.
    pub(super) fn guess(&mut self, whose: Whose, text: &[u32], most: usize, out: &mut Vec<u32>) {
        let n_before = out.len();
        if self.is_broken || most == 0 || text.len() >= self.context {
            return;
        }
        if self.guess_more(whose, text, most, out).is_err() {
            out.truncate(n_before);
            self.is_broken = true;
            self.keep_only(|_| false);
        }
    }

    fn guess_more(&mut self, whose: Whose, text: &[u32], most: usize, out: &mut Vec<u32>) -> Result<(), DeviceError> {
        let Some(place) = self.place_of(whose) else { return Ok(()) };
        let held = &mut self.texts[place];
        let shared = held.ids.iter().zip(text).take_while(|(held, wanted)| held == wanted).count();
        let shared = shared.min(text.len() - 1);
        let shared = self.plan.kv().truncate(held.sequence, shared);
        held.ids.truncate(shared);
        let n_run = (text.len() - shared).min(self.max_rows);
        let is_whole = shared + n_run == text.len();
        if !self.run(place, &text[shared..shared + n_run], is_whole)? || !is_whole {
            return Ok(());
        }
        let mut chance = 1.0;
        for number in 1..=most {
            let Some((id, of_next)) = self.likeliest()? else { return Ok(()) };
            chance *= of_next;
            // Also where it is no number. What the model has no token for is no guess.
            let is_likely = chance >= self.least_chance;
            if !is_likely || id as usize >= self.model.tokenizer().n_vocab() {
                return Ok(());
            }
            out.push(id);
            if number == most || self.texts[place].ids.len() >= self.context || !self.run(place, &[id], true)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The place of a text, which is begun if there is room for one more.
    fn place_of(&mut self, whose: Whose) -> Option<usize> {
        if let Some(place) = self.texts.iter().position(|text| text.whose == whose) {
            return Some(place);
        }
        let sequence = self.plan.kv().open()?;
        self.texts.push(Text { whose, sequence, ids: Vec::new() });
        Some(self.texts.len() - 1)
    }

    /// Appends `ids` to a text, with an answer to the last one if it is wanted; false if there is no room.
    fn run(&mut self, place: usize, ids: &[u32], wants: bool) -> Result<bool, DeviceError> {
        let Self { plan, batch, output, texts, .. } = self;
        let text = &mut texts[place];
        let (start, sequence) = (text.ids.len(), text.sequence);
        if !plan.kv().reserve(sequence, start + ids.len()) {
            return Ok(false);
        }
        batch.rows.clear();
        batch.rows.extend((start..).zip(ids).map(|(position, &token)| Row { token, position, sequence }));
        batch.want.clear();
        batch.want.extend(wants.then(|| Want { row: ids.len() - 1, kind: WantKind::TopK(1) }));
        plan.step(batch, output)?;
        text.ids.extend_from_slice(ids);
        Ok(true)
    }

    /// The token that the last answer takes for the likeliest, and its chance.
    fn likeliest(&self) -> Result<Option<(u32, f64)>, DeviceError> {
        match self.output.results.first() {
            Some(Answer::TopK { best, log_sum_exp }) => {
                Ok(best.first().map(|&(id, logit)| (id, (f64::from(logit) - log_sum_exp).exp())))
            }
            _ => Err(DeviceError::Wrong("a step answered something else than the likeliest token".to_owned())),
        }
    }

    /// Forgets the texts of all others.
    pub(super) fn keep_only(&mut self, is_kept: impl Fn(Whose) -> bool) {
        let Self { texts, plan, .. } = self;
        texts.retain(|text| {
            let is_kept = is_kept(text.whose);
            if !is_kept {
                plan.kv().close(text.sequence);
            }
            is_kept
        });
    }

    /// Guesses whatever the chance.
    #[cfg(test)]
    pub(super) fn bold(mut self) -> Self {
        self.least_chance = 0.0;
        self
    }
}

/// Bytes of a plan and of a draft model's.
pub(super) fn with_draft(memory: MemoryUse, guesser: Option<&Guesser>) -> MemoryUse {
    let draft = guesser.map(Guesser::memory).unwrap_or_default();
    MemoryUse {
        weights_mapped: memory.weights_mapped + draft.weights_mapped,
        weights_packed: memory.weights_packed + draft.weights_packed,
        weights_copied: memory.weights_copied + draft.weights_copied,
        kv: memory.kv + draft.kv,
        scratch: memory.scratch + draft.scratch,
    }
}

/// Ids must stand for the same tokens.
fn check_vocabulary(model: &Tokenizer, draft: &Tokenizer) -> Result<(), EngineError> {
    let different = |reason: String| Err(EngineError::DraftModel { reason });
    let (n_model, n_draft) = (model.n_vocab(), draft.n_vocab());
    if n_model != n_draft {
        return different(format!("its vocabulary has {n_draft} tokens, expected the {n_model} of the model"));
    }
    let differs = |id: &u32| model.token_bytes(*id) != draft.token_bytes(*id) || model.kind(*id) != draft.kind(*id);
    match (0..n_model as u32).find(differs) {
        Some(id) => {
            let [found, expected] = [draft, model].map(|tokenizer| tokenizer.token_text(id));
            different(format!("token {id} of its vocabulary is {found:?}, expected {expected:?} as in the model"))
        }
        None => Ok(()),
    }
}
