//! Steps with drafts behind the last token, and how what was not chosen is taken back.
//!
//! The answers of such a step are those of as many plain steps for as long as each chosen token is the draft that was
//! run behind it. The sampler sees them one by one, so its state and its random numbers are those of plain steps.

use farpost_kernels::backend::{Answer, DeviceError, WantKind};

use super::Session;
use crate::engine::error::EngineError;
use crate::engine::lookup::{Drafter, Speculate};

/// The rows of the last step, as far as they answer what comes next.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    guesses: Guesses,
    /// The tokens of the last step that answer: the last chosen one, then its drafts.
    rows: Vec<u32>,
    /// How many of them are sure: their answers were asked for.
    n_sure: usize,
    /// Whether the last token chosen is the draft behind the sure ones.
    is_right: bool,
    pub(super) drafted_tokens: usize,
    pub(super) accepted_tokens: usize,
}

/// Where drafts come from.
#[derive(Debug, Default)]
enum Guesses {
    #[default]
    None,
    Lookup(Box<Drafter>),
    /// The session's draft model, which is told the whole text.
    Model {
        text: Vec<u32>,
        max_draft: usize,
    },
}

impl Ahead {
    /// For a text that goes on from `prompt`, whose last token the last step has run.
    pub(super) fn after(prompt: &[u32], speculate: Speculate) -> Self {
        let guesses = match speculate {
            Speculate::Off => Guesses::None,
            Speculate::Lookup { max_draft } => Guesses::Lookup(Box::new(Drafter::new(prompt, max_draft))),
            Speculate::Draft { max_draft } => Guesses::Model { text: prompt.to_vec(), max_draft },
        };
        let rows = prompt.last().copied().into_iter().collect();
        Self { guesses, rows, n_sure: 1, ..Self::default() }
    }

    /// A token was chosen from the answer.
    pub(super) fn choose(&mut self, id: u32) {
        self.is_right = self.rows.get(self.n_sure) == Some(&id);
        self.accepted_tokens += usize::from(self.is_right);
    }
}

impl Session {
    /// Makes sure that there is an answer to what follows `last`, the token chosen last; false if the context is full.
    /// `room` is how many tokens more may follow it.
    pub(super) fn advance(
        &mut self,
        ahead: &mut Ahead,
        last: u32,
        room: usize,
        want: WantKind,
    ) -> Result<bool, EngineError> {
        match &mut ahead.guesses {
            Guesses::None => {}
            Guesses::Lookup(drafter) => drafter.push(last),
            Guesses::Model { text, .. } => text.push(last),
        }
        if ahead.is_right {
            ahead.is_right = false;
            ahead.n_sure += 1;
            return Ok(true);
        }
        self.take_back(ahead);
        let Some(free) = (self.context - self.ids.len()).checked_sub(1) else { return Ok(false) };
        ahead.rows.clear();
        ahead.rows.push(last);
        ahead.n_sure = 1;
        // The answer to the last draft is a token, too.
        let room = room.saturating_sub(1).min(free).min(self.batch_rows - 1);
        match (&ahead.guesses, &mut self.guesser) {
            (Guesses::Lookup(drafter), _) => drafter.draft(room, &mut ahead.rows),
            (Guesses::Model { text, max_draft }, Some(guesser)) => {
                guesser.guess((0, 0), text, room.min(*max_draft), &mut ahead.rows);
            }
            _ => {}
        }
        match self.run(&ahead.rows, |_| Some(want)) {
            // A draft that no text would hold may be what the model makes no numbers of.
            Err(EngineError::Device(DeviceError::Wrong(_))) if ahead.rows.len() > 1 => {
                ahead.rows.truncate(1);
                self.run(&ahead.rows, |_| Some(want))?;
            }
            other => other?,
        }
        ahead.drafted_tokens += ahead.rows.len() - 1;
        Ok(true)
    }

    /// What the last step answered to the last token that is sure.
    pub(super) fn answer(&self, ahead: &Ahead) -> Result<&Answer, EngineError> {
        let none = || DeviceError::Wrong("no result of a step, expected one".to_owned());
        Ok(self.output.results.get(ahead.n_sure - 1).ok_or_else(none)?)
    }

    /// Forgets the drafts that are not sure.
    pub(super) fn take_back(&mut self, ahead: &mut Ahead) {
        let n_unsure = ahead.rows.len() - ahead.n_sure;
        if n_unsure > 0 {
            self.keep(self.ids.len() - n_unsure);
            ahead.rows.truncate(ahead.n_sure);
        }
    }
}
