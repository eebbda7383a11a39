//! DRY: penalises the token that would go on with a passage as it went on before.
//!
//! For the end of the text and each earlier place, the length of the passage they share is needed. Read backwards,
//! these are the common beginnings of the text and its own tails: the Z-function gives all of them in linear time.

use std::collections::HashSet;

use super::candidates::Candidates;
use super::sampling::Dry;
use farpost_models::tokenizer::{Special, Tokenizer};

/// No penalty is larger: it would only cost precision.
const MOST: f64 = 1e9;

/// Tokens that end a passage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breakers(HashSet<u32>);

impl Breakers {
    /// All tokens of a vocabulary whose text holds one of `texts`. For a text that no token holds, the last token of
    /// its encoding. Goes through the whole vocabulary: once a request, if DRY is on.
    pub fn of(texts: &[String], tokenizer: &Tokenizer) -> Self {
        let mut ids = HashSet::new();
        for text in texts.iter().filter(|text| !text.is_empty()) {
            let before = ids.len();
            let n_vocab = u32::try_from(tokenizer.n_vocab()).unwrap_or(u32::MAX);
            let holds = |id: &u32| contains(tokenizer.token_bytes(*id), text.as_bytes());
            let known = ids.iter().any(holds);
            ids.extend((0..n_vocab).filter(holds));
            if ids.len() == before && !known {
                ids.extend(tokenizer.encode(text, Special::AsText).last());
            }
        }
        Self(ids)
    }
}

impl FromIterator<u32> for Breakers {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Room to work in, kept between draws.
#[derive(Clone, Debug, Default)]
pub(super) struct Repeats {
    backwards: Vec<u32>,
    shared: Vec<usize>,
    /// Token that would repeat, and the length of the passage before it.
    found: Vec<(u32, usize)>,
}

impl Repeats {
    /// Applies the penalty for the text `seen`, latest token first.
    pub(super) fn penalise(
        &mut self,
        candidates: &mut Candidates,
        dry: &Dry,
        breakers: &Breakers,
        seen: impl Iterator<Item = u32>,
    ) {
        self.backwards.clear();
        self.backwards.extend(seen.take(dry.last_n.unwrap_or(usize::MAX)));
        let longest = self.backwards.iter().position(|id| breakers.0.contains(id)).unwrap_or(self.backwards.len());
        if longest < dry.allowed_length {
            return;
        }
        self.share();
        self.found.clear();
        for (&next, &shared) in self.backwards.iter().zip(self.shared.iter().skip(1)) {
            let shared = shared.min(longest);
            if shared >= dry.allowed_length && !breakers.0.contains(&next) {
                self.found.push((next, shared));
            }
        }
        self.found.sort_unstable();
        for equal in self.found.chunk_by(|a, b| a.0 == b.0) {
            let &(next, shared) = equal.last().expect("a chunk is not empty");
            let past = i32::try_from(shared - dry.allowed_length).unwrap_or(i32::MAX);
            let penalty = (f64::from(dry.multiplier) * f64::from(dry.base).powi(past)).min(MOST);
            candidates.change(next, |logit| logit - penalty as f32);
        }
    }

    /// The Z-function: `shared[n]` tokens of `backwards` equal those from `n` on.
    fn share(&mut self) {
        let text = &self.backwards;
        self.shared.clear();
        self.shared.resize(text.len(), 0);
        let (mut start, mut end) = (0, 0);
        for at in 1..text.len() {
            let mut shared = if at < end { self.shared[at - start].min(end - at) } else { 0 };
            while text.get(at + shared).is_some_and(|id| *id == text[shared]) {
                shared += 1;
            }
            if at + shared > end {
                (start, end) = (at, at + shared);
            }
            self.shared[at] = shared;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const N_VOCAB: usize = 6;

    fn penalties(dry: &Dry, breakers: &Breakers, text: &[u32]) -> Vec<f32> {
        let mut candidates = Candidates::default();
        candidates.set_row(&[0.0; N_VOCAB]);
        Repeats::default().penalise(&mut candidates, dry, breakers, text.iter().rev().copied());
        candidates.iter().map(|candidate| -candidate.logit).collect()
    }

    /// By the definition: for each token that was there, the longest passage before it that also ends the text.
    fn naive(dry: &Dry, breakers: &Breakers, text: &[u32]) -> Vec<f32> {
        let text = &text[text.len().saturating_sub(dry.last_n.unwrap_or(usize::MAX))..];
        let mut penalties = vec![0.0_f32; N_VOCAB];
        for next in 1..text.len() {
            if breakers.0.contains(&text[next]) {
                continue;
            }
            let before = text[..next].iter().rev();
            let shared = before.zip(text.iter().rev()).take_while(|(a, b)| a == b && !breakers.0.contains(a)).count();
            if shared >= dry.allowed_length {
                let penalty = dry.multiplier * dry.base.powi((shared - dry.allowed_length) as i32);
                let place = &mut penalties[text[next] as usize];
                *place = place.max(penalty);
            }
        }
        penalties
    }

    proptest! {
        #[test]
        fn penalties_are_those_of_the_definition(
            text in prop::collection::vec(0_u32..4, 0..60),
            breaker in prop::option::of(0_u32..6),
            allowed_length in 1_usize..5,
            last_n in prop::option::of(0_usize..70),
        ) {
            let dry = Dry { multiplier: 0.8, base: 1.25, allowed_length, last_n, sequence_breakers: vec![] };
            let breakers = breaker.into_iter().collect();
            let (quick, plain) = (penalties(&dry, &breakers, &text), naive(&dry, &breakers, &text));
            for (quick, plain) in quick.iter().zip(&plain) {
                prop_assert!((quick - plain).abs() <= plain * 1e-4, "{quick} {plain}");
            }
        }
    }

    #[test]
    fn a_long_repetition_gets_a_large_penalty_but_a_finite_one() {
        let dry = Dry { multiplier: 1.0, base: 16.0, ..Dry::default() };
        let penalties = penalties(&dry, &Breakers::default(), &[3; 5000]);
        assert_eq!(penalties[3], MOST as f32);
        assert_eq!(penalties[2], 0.0);
    }

    #[test]
    fn passages_do_not_reach_across_breakers() {
        let dry = Dry { multiplier: 1.0, base: 2.0, allowed_length: 1, ..Dry::default() };
        let text = [1, 5, 2, 3, 1, 5, 2];
        assert_eq!(penalties(&dry, &Breakers::default(), &text)[3], 4.0);
        assert_eq!(penalties(&dry, &[5].into_iter().collect(), &text)[3], 1.0);
        assert_eq!(penalties(&dry, &[2].into_iter().collect(), &text), [0.0; N_VOCAB]);
    }
}
