//! Drafts of what comes next, looked up in the text so far: where its last tokens stood before, it may go on as it did
//! there (prompt lookup decoding; Saxena 2023, Yang et al. 2023).
//!
//! Texts that quote, edit or list repeat themselves; a step that runs several rows costs less than as many steps. What a
//! draft says never decides a token: the session runs it behind the last token and takes back what was not chosen.

mod index;
mod odds;

use super::error::EngineError;
use index::{Index, Match};
use odds::{Odds, Witness};

/// Most tokens of a draft that a request may ask for.
pub const MOST_DRAFT: usize = 64;

/// Whether tokens are guessed ahead and run in one step. The text is the same; see `docs/sampling.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculate {
    /// One token a step.
    #[default]
    Off,
    /// Guesses are looked up in the prompt and the answer so far.
    Lookup {
        /// Most tokens guessed at once, 1 to [`MOST_DRAFT`].
        max_draft: usize,
    },
    /// Guesses are what the draft model says that session or engine was opened with.
    Draft {
        /// Most tokens guessed at once, 1 to [`MOST_DRAFT`].
        max_draft: usize,
    },
}

impl Speculate {
    /// Lookup with drafts of up to 15 tokens: steps of 16 rows.
    pub const fn lookup() -> Self {
        Self::Lookup { max_draft: 15 }
    }

    /// What a draft model says, up to 7 tokens: steps of 8 rows.
    pub const fn draft() -> Self {
        Self::Draft { max_draft: 7 }
    }
}

/// Checks the parameters.
pub(super) fn check(speculate: Speculate, has_draft_model: bool) -> Result<(), EngineError> {
    let max_draft = match speculate {
        Speculate::Off => return Ok(()),
        Speculate::Draft { .. } if !has_draft_model => return Err(EngineError::NoDraftModel),
        Speculate::Lookup { max_draft } | Speculate::Draft { max_draft } => max_draft,
    };
    match max_draft {
        1..=MOST_DRAFT => Ok(()),
        found => {
            let expected = format!("1 to {MOST_DRAFT}");
            Err(EngineError::OutOfRange { parameter: "max_draft", found, expected })
        }
    }
}

/// Looks up drafts for one text.
#[derive(Clone, Debug)]
pub(super) struct Drafter {
    index: Index,
    odds: Odds,
    max_draft: usize,
    /// Where the end of the text was before.
    guess: Option<Match>,
}

impl Drafter {
    /// For a text that begins with `prompt`.
    pub(super) fn new(prompt: &[u32], max_draft: usize) -> Self {
        let mut index = Index::new();
        prompt.iter().for_each(|&token| index.push(token));
        let guess = index.find();
        Self { index, odds: Odds::new(), max_draft, guess }
    }

    /// Bytes for a text of so many tokens at most.
    pub(super) fn bytes_for(most_tokens: u64) -> u64 {
        Index::bytes_for(most_tokens).saturating_add(size_of::<Odds>() as u64)
    }

    /// The text goes on with `token`, which tells what the guess was worth.
    pub(super) fn push(&mut self, token: u32) {
        let known = self.guess.and_then(|guess| Some((guess, self.witnesses(guess).next()?)));
        if let Some((guess, witness)) = known {
            self.odds.learn(witness, guess.shared, self.index.tokens()[guess.place] == token);
        }
        self.index.push(token);
        self.guess = self.index.find();
    }

    /// Appends what is worth running of the tokens that may come next, `room` at most.
    pub(super) fn draft(&self, room: usize, out: &mut Vec<u32>) {
        let Some(guess) = self.guess else { return };
        let n = self.odds.worth(guess.shared, self.witnesses(guess).take(room.min(self.max_draft)));
        out.extend(self.from(guess.place).take(n));
    }

    /// The tokens from `place` on. Behind the end of the text come the same again: a passage may overlap what follows it.
    fn from(&self, place: usize) -> impl Iterator<Item = u32> {
        self.index.tokens()[place..].iter().copied().cycle()
    }

    /// What the other place says of each token of a draft. Once the two differ, it has no more to say.
    fn witnesses(&self, guess: Match) -> impl Iterator<Item = Witness> {
        let mut other = guess.other.map(|place| self.from(place));
        self.from(guess.place).map(move |token| match other.as_mut().and_then(Iterator::next) {
            None => Witness::None,
            Some(same) if same == token => Witness::Agrees,
            Some(_) => {
                other = None;
                Witness::Differs
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(drafter: &Drafter, room: usize) -> Vec<u32> {
        let mut out = Vec::new();
        drafter.draft(room, &mut out);
        out
    }

    #[test]
    fn a_draft_goes_on_as_the_passage_did() {
        let text: Vec<u32> = (10..60).collect();
        let prompt = [&text[..], &[1, 2], &text[..20]].concat();
        let drafter = Drafter::new(&prompt, 8);
        assert_eq!(draft(&drafter, 100), text[20..28]);
        assert_eq!(draft(&drafter, 3), text[20..23]);
        assert_eq!(draft(&drafter, 0), [0_u32; 0]);
        assert_eq!(draft(&Drafter::new(&prompt, 4), 100), text[20..24]);
        assert_eq!(draft(&Drafter::new(&text, 15), 100), [0_u32; 0]);
    }

    #[test]
    fn a_draft_of_a_text_that_goes_round_goes_round() {
        let text = [7, 8, 9].repeat(12);
        assert_eq!(draft(&Drafter::new(&text, 7), 15), [7, 8, 9, 7, 8, 9, 7]);
    }

    #[test]
    fn a_text_whose_repeats_say_nothing_turns_drafts_off_until_they_do() {
        let mut drafter = Drafter::new(&[], 15);
        let record = |new: u32| [1, 2, 3, 4, 5, 6, new];
        (100..130).flat_map(record).for_each(|token| drafter.push(token));
        // Six tokens are the same in every record, and what follows them never is.
        let mut lengths = Vec::new();
        for token in record(130) {
            drafter.push(token);
            lengths.push(draft(&drafter, 15).len());
        }
        assert_eq!(lengths, [5, 4, 3, 2, 1, 0, 0]);
        (0..20).flat_map(|_| record(131)).for_each(|token| drafter.push(token));
        record(131)[..6].iter().for_each(|&token| drafter.push(token));
        assert!(draft(&drafter, 15).len() > 8);
    }
}
