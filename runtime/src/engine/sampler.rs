//! The sampler of one request: from what a step answers to the next token.
//!
//! Pure: its state is the random stream, mirostat's bound and room to work in. The same answers in the same order
//! give the same tokens.

use farpost_kernels::backend::{Answer, DeviceError, WantKind};

use super::candidates::{Candidate, Candidates, best};
use super::dry::{Breakers, Repeats};
use super::filters::Filters;
use super::grammar::Constraint;
use super::mirostat::Surprise;
use super::penalties;
use super::random::Random;
use super::sampling::{Sampling, SamplingError};
use super::softmax;

/// Tokens of a word of a mask.
const WORD: usize = u32::BITS as usize;

/// The next token.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The token.
    pub id: u32,
    /// If [`Sampling::logprobs`] asks for them.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities in the model's own distribution: before bias, penalties, filters and
/// temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The likeliest tokens, best first, as many as were asked for. The chosen one need not be among them.
    pub top: Vec<(u32, f32)>,
}

/// Why no token could be chosen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The model computed something that is no number.
    #[error("the logit of token {id} is {logit:e}, expected a number between -1e30 and 1e30")]
    Unusable {
        /// The token.
        id: u32,
        /// What was found.
        logit: f32,
    },
    /// The text's form cannot be followed. Says nothing of the text.
    #[error("the form of the text cannot be followed any further: {reason}")]
    Constraint {
        /// What kind of failure it is.
        reason: &'static str,
    },
    /// Every token is forbidden.
    #[error("every token is forbidden by logit_bias or the form of the text, none is left to choose")]
    NothingLeft,
    /// The step answered something else than [`Sampler::wants`] asked for.
    #[error("the step answered {found}, expected {expected}")]
    WrongAnswer {
        /// What came.
        found: String,
        /// What was asked for.
        expected: String,
    },
}

/// Chooses the tokens of one text.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    n_vocab: usize,
    breakers: Breakers,
    random: Random,
    surprise: Option<Surprise>,
    constraint: Option<Constraint>,
    candidates: Candidates,
    filters: Filters,
    repeats: Repeats,
    counts: Vec<u32>,
    top: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for a text that has not begun. `breakers` are those of [`super::sampling::Dry::sequence_breakers`];
    /// without DRY there need be none.
    ///
    /// # Errors
    /// As [`Sampling::validate`], and for a bias of a token outside the vocabulary.
    pub fn new(sampling: Sampling, n_vocab: usize, breakers: Breakers) -> Result<Self, SamplingError> {
        sampling.validate()?;
        if let Some((&id, _)) = sampling.logit_bias.last_key_value().filter(|(id, _)| **id as usize >= n_vocab) {
            return Err(SamplingError::NoSuchToken { id, n_vocab });
        }
        Ok(Self {
            random: Random::new(sampling.seed),
            surprise: sampling.mirostat.map(Surprise::new),
            constraint: None,
            sampling,
            n_vocab,
            breakers,
            candidates: Candidates::default(),
            filters: Filters::default(),
            repeats: Repeats::default(),
            counts: Vec::new(),
            top: Vec::new(),
        })
    }

    /// Chooses only what `constraint` allows.
    pub(super) fn with_constraint(self, constraint: Option<Constraint>) -> Self {
        Self { constraint, ..self }
    }

    /// Takes the memory that choosing needs.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn reserve(&mut self) -> Result<(), DeviceError> {
        if self.wants() != WantKind::Logits {
            return Ok(());
        }
        self.candidates.reserve(self.n_vocab).map_err(|needed_bytes| DeviceError::OutOfMemory {
            what: "choosing among all tokens",
            needed_bytes,
            free_bytes: None,
        })
    }

    /// The least that a step must answer for [`Sampler::choose`] to choose as from all logits.
    pub fn wants(&self) -> WantKind {
        wants(&self.sampling, self.constraint.is_some(), self.n_vocab)
    }

    /// Bytes that choosing takes at most, with `n_answers` of a step, for a text of so many tokens at most.
    pub(super) fn bytes_for(
        sampling: &Sampling,
        is_constrained: bool,
        n_vocab: usize,
        most_tokens: u64,
        n_answers: usize,
    ) -> u64 {
        let kind = wants(sampling, is_constrained, n_vocab);
        let (candidates, row_bytes) = match kind {
            WantKind::Logits => (n_vocab, n_vocab * size_of::<f32>()),
            WantKind::TopK(k) => (k, k * size_of::<(u32, f32)>()),
            WantKind::Greedy | WantKind::Score(_) | WantKind::Hidden => (1, 0),
        };
        // Which ones a form allows, as bits, where they are worked out and where they are kept; tokens that were seen, for
        // penalties and repeats.
        let masks = if is_constrained { 2 * n_vocab.div_ceil(8) } else { 0 };
        let seen = if kind == WantKind::Logits { most_tokens.saturating_mul(48) } else { 0 };
        let answers = (n_answers as u64).saturating_mul(row_bytes as u64);
        let chosen_of = Candidates::bytes_for(candidates) + Filters::bytes_for(candidates) + masks as u64;
        chosen_of.saturating_add(answers).saturating_add(seen)
    }

    /// Chooses the token after `prompt` and `generated` from the answer of the step that ran the last one of them.
    ///
    /// All logits will always do, whatever [`Sampler::wants`] says.
    ///
    /// # Errors
    /// If a logit is no usable number, if no token is left, or if the answer does not suffice.
    pub fn choose(&mut self, answer: &Answer, prompt: &[u32], generated: &[u32]) -> Result<Chosen, SampleError> {
        match answer {
            Answer::Logits(row) if row.len() == self.n_vocab => self.choose_from_row(row, prompt, generated),
            Answer::TopK { best, log_sum_exp } if matches!(self.wants(), WantKind::TopK(k) if best.len() >= k) => {
                self.choose_from_best(best, *log_sum_exp)
            }
            Answer::Greedy(id) if self.wants() == WantKind::Greedy => Ok(Chosen { id: *id, logprobs: None }),
            other => {
                let expected = match self.wants() {
                    WantKind::Logits => format!("{} logits", self.n_vocab),
                    kind => format!("{kind:?}"),
                };
                Err(SampleError::WrongAnswer { found: describe(other), expected })
            }
        }
    }

    fn choose_from_row(&mut self, row: &[f32], prompt: &[u32], generated: &[u32]) -> Result<Chosen, SampleError> {
        if let Some(place) = softmax::first_unusable(row) {
            return Err(SampleError::Unusable { id: place as u32, logit: row[place] });
        }
        let broken = |reason| SampleError::Constraint { reason };
        let is_constrained = self.constraint.is_some();
        // The best of all is the best of those allowed if it is allowed itself, which is found out sooner than which are.
        let mut allowed_best = None;
        if let Some(constraint) = &mut self.constraint {
            if self.sampling.is_greedy() && !self.sampling.changes_logits() {
                let place = softmax::first_of_largest(row);
                allowed_best = constraint.allows(place as u32).map_err(broken)?.then_some(place);
            }
            if allowed_best.is_none() {
                constraint.advance().map_err(broken)?;
            }
        }
        if let Some(place) = allowed_best {
            self.candidates.set(std::iter::once((place as u32, row[place])));
        } else if self.sampling.changes_logits() {
            self.candidates.set_row(row);
            self.change_logits(prompt, generated);
            self.keep_allowed();
        } else if is_constrained {
            self.set_allowed(row);
        } else if self.sampling.is_greedy() {
            self.candidates.set_best(row, 1);
        } else if self.sampling.top_k > 0 && self.sampling.mirostat.is_none() {
            self.candidates.set_best(row, self.sampling.top_k);
        } else {
            self.candidates.set_row(row);
        }
        let id = self.draw()?;
        if let Some(constraint) = &mut self.constraint {
            constraint.push(id).map_err(broken)?;
        }
        let logprobs = self.sampling.logprobs.map(|told| {
            let log_sum_exp = softmax::log_sum_exp(row);
            best((0..).zip(row).map(|(id, &logit)| Candidate { id, logit }), told, &mut self.top);
            let top = self.top.iter().map(|candidate| (candidate.id, candidate.logit));
            logprobs(row[id as usize], top, log_sum_exp)
        });
        Ok(Chosen { id, logprobs })
    }

    /// Candidates are those that the constraint allows.
    fn set_allowed(&mut self, row: &[f32]) {
        let Some(constraint) = &self.constraint else { return };
        self.candidates.clear();
        for (word, (&mask, logits)) in constraint.mask().iter().zip(row.chunks(WORD)).enumerate() {
            self.candidates.push_masked((word * WORD) as u32, logits, mask);
        }
    }

    /// Of the candidates stay those that the constraint allows.
    fn keep_allowed(&mut self) {
        let Some(constraint) = &self.constraint else { return };
        let mask = constraint.mask();
        let word = |id: u32| mask.get(id as usize / WORD).copied().unwrap_or(0);
        self.candidates.retain(|candidate| word(candidate.id) >> (candidate.id as usize % WORD) & 1 == 1);
    }

    fn choose_from_best(&mut self, best: &[(u32, f32)], log_sum_exp: f64) -> Result<Chosen, SampleError> {
        if let Some(&(id, logit)) = best.iter().find(|(_, logit)| softmax::is_unusable(*logit)) {
            return Err(SampleError::Unusable { id, logit });
        }
        let k = if self.sampling.is_greedy() { 1 } else { self.sampling.top_k };
        self.candidates.set(best.iter().copied().take(k));
        let id = self.draw()?;
        let logprobs = self.sampling.logprobs.and_then(|told| {
            let (_, logit) = best.iter().find(|(other, _)| *other == id)?;
            Some(logprobs(*logit, best.iter().copied().take(told), log_sum_exp))
        });
        Ok(Chosen { id, logprobs })
    }

    /// Bias, penalties and DRY, on all logits.
    fn change_logits(&mut self, prompt: &[u32], generated: &[u32]) {
        let prompt = if self.sampling.penalise_prompt { prompt } else { &[] };
        let seen = || generated.iter().rev().chain(prompt.iter().rev()).copied();
        penalties::add_bias(&mut self.candidates, &self.sampling);
        if self.sampling.has_penalties() {
            penalties::penalise(&mut self.candidates, &self.sampling, seen(), &mut self.counts);
        }
        if self.sampling.dry.multiplier > 0.0 {
            self.repeats.penalise(&mut self.candidates, &self.sampling.dry, &self.breakers, seen());
        }
        if self.sampling.logit_bias.values().any(|bias| *bias == f32::NEG_INFINITY) {
            self.candidates.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
        }
    }

    /// Filters, temperature and the draw.
    fn draw(&mut self) -> Result<u32, SampleError> {
        let temperature = self.sampling.temperature;
        let chosen = if self.sampling.is_greedy() {
            self.candidates.best()
        } else if let Some(surprise) = &mut self.surprise {
            surprise.choose(&mut self.candidates, temperature, self.random.unit())
        } else {
            self.filters.apply(&mut self.candidates, &self.sampling, || self.random.unit());
            let total = self.candidates.weigh(temperature);
            self.candidates.draw(total, self.random.unit())
        };
        chosen.map(|candidate| candidate.id).ok_or(SampleError::NothingLeft)
    }
}

/// See [`Sampler::wants`].
fn wants(sampling: &Sampling, is_constrained: bool, n_vocab: usize) -> WantKind {
    let told = sampling.logprobs.unwrap_or(0);
    if sampling.changes_logits() || is_constrained {
        WantKind::Logits
    } else if sampling.is_greedy() {
        if sampling.logprobs.is_some() { WantKind::TopK(told.clamp(1, n_vocab)) } else { WantKind::Greedy }
    } else if sampling.top_k > 0 && sampling.mirostat.is_none() && sampling.top_k < n_vocab {
        WantKind::TopK(sampling.top_k.max(told).min(n_vocab))
    } else {
        WantKind::Logits
    }
}

fn logprobs(chosen: f32, top: impl Iterator<Item = (u32, f32)>, log_sum_exp: f64) -> Logprobs {
    let of = |logit: f32| (f64::from(logit) - log_sum_exp) as f32;
    Logprobs { chosen: of(chosen), top: top.map(|(id, logit)| (id, of(logit))).collect() }
}

/// An answer without its numbers.
fn describe(answer: &Answer) -> String {
    match answer {
        Answer::Greedy(_) => "Greedy".to_owned(),
        Answer::TopK { best, .. } => format!("TopK({})", best.len()),
        Answer::Logits(row) => format!("{} logits", row.len()),
        Answer::Score { .. } => "Score".to_owned(),
        Answer::Hidden(_) => "Hidden".to_owned(),
    }
}

#[cfg(test)]
mod tests;
