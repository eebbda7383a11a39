//! Where the end of a text was before: chains of the places behind the same last tokens, latest first.
//!
//! The method is that of LZ77 compressors with hash chains: a token more costs two entries, and a search looks at a
//! bounded number of places. There is a chain by the last four tokens, one by the last two and one by the last: the
//! first lead past the many places that share only one.

/// Lengths of the passages that chains are kept for, longest first.
const CHAINS: [usize; 3] = [4, 2, 1];
/// Longer passages count as this long: nothing more is learnt from them.
pub(super) const MOST_SHARED: usize = 32;
/// Places of a chain that a search looks at.
const MOST_PLACES: usize = 16;
/// Heads of a chain, as a power of two: 64 KiB.
const HEAD_BITS: u32 = 14;
/// No place: nothing stands before the first token.
const NONE: u32 = 0;

/// A place in the text before which stands what the text ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Index of the token that went on there.
    pub(super) place: usize,
    /// Tokens before it that are also the last of the text, 1 to [`MOST_SHARED`].
    pub(super) shared: usize,
    /// The next best place of the same chain, if there is one.
    pub(super) other: Option<usize>,
}

/// A text and its chains: 16 bytes a token, and 192 KiB.
#[derive(Clone, Debug)]
pub(super) struct Index {
    tokens: Vec<u32>,
    chains: [Chain; CHAINS.len()],
}

#[derive(Clone, Debug)]
struct Chain {
    /// The latest place behind each passage, by its hash.
    heads: Vec<u32>,
    /// For each place but 0: the one before it whose passage has the same hash.
    before: Vec<u32>,
}

/// Where the head for a passage is.
fn slot(passage: &[u32]) -> usize {
    let mix = |hash: u64, &token: &u32| (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let hash = passage.iter().fold(0, mix).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (hash >> (64 - HEAD_BITS)) as usize
}

impl Index {
    pub(super) fn new() -> Self {
        let chain = || Chain { heads: vec![NONE; 1 << HEAD_BITS], before: Vec::new() };
        Self { tokens: Vec::new(), chains: [chain(), chain(), chain()] }
    }

    /// Bytes for a text of so many tokens at most: vectors that grow may be half empty.
    pub(super) fn bytes_for(most_tokens: u64) -> u64 {
        let entries = most_tokens
            .saturating_mul(2 * (1 + CHAINS.len() as u64))
            .saturating_add((CHAINS.len() as u64) << HEAD_BITS);
        entries.saturating_mul(size_of::<u32>() as u64)
    }

    /// The text.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The text goes on.
    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
        let place = self.tokens.len();
        for (chain, n) in self.chains.iter_mut().zip(CHAINS) {
            let before = self.tokens.last_chunk_of(n).map_or(NONE, |passage| {
                // A context of 2^32 tokens is out of reach.
                std::mem::replace(&mut chain.heads[slot(passage)], place as u32)
            });
            chain.before.push(before);
        }
    }

    /// Of the places looked at, the one that shares most with the end of the text; of equals, the latest.
    pub(super) fn find(&self) -> Option<Match> {
        self.chains.iter().zip(CHAINS).find_map(|(chain, n)| {
            let [mut best, mut second] = [(0, 0); 2];
            for place in chain.places() {
                let shared = self.shared(place);
                if shared < n {
                    // Another passage with the same hash.
                } else if shared > best.0 {
                    (best, second) = ((shared, place), best);
                } else if shared > second.0 {
                    second = (shared, place);
                }
            }
            let (shared, place) = best;
            (shared > 0).then_some(Match { place, shared, other: (second.0 > 0).then_some(second.1) })
        })
    }

    /// How many tokens before `place` are also the last of the text.
    fn shared(&self, place: usize) -> usize {
        let (before, end) = (self.tokens[..place].iter().rev(), self.tokens.iter().rev());
        before.zip(end).take(MOST_SHARED).take_while(|(a, b)| a == b).count()
    }
}

impl Chain {
    /// Places before the end of the text whose passage has the hash of the last one, latest first.
    fn places(&self) -> impl Iterator<Item = usize> {
        let before = |place: u32| Some(self.before[(place as usize).checked_sub(1)?]).filter(|&place| place != NONE);
        let last = u32::try_from(self.before.len()).ok().and_then(before);
        std::iter::successors(last, move |&place| before(place)).take(MOST_PLACES).map(|place| place as usize)
    }
}

/// The last tokens of a text.
trait LastTokens {
    /// The last `n`, if there are as many.
    fn last_chunk_of(&self, n: usize) -> Option<&[u32]>;
}

impl LastTokens for Vec<u32> {
    fn last_chunk_of(&self, n: usize) -> Option<&[u32]> {
        self.get(self.len().checked_sub(n)?..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the definition reads, without any index.
    fn naive(text: &[u32], places: impl Fn(usize) -> Vec<usize>) -> Option<Match> {
        CHAINS.into_iter().find_map(|n| {
            let shared = |place: usize| {
                (0..place.min(MOST_SHARED))
                    .take_while(|back| text[place - 1 - back] == text[text.len() - 1 - back])
                    .count()
            };
            let all = places(n).into_iter().map(|place| (shared(place), place));
            let mut found: Vec<_> = all.filter(|found| found.0 >= n).collect();
            found.sort_unstable();
            let (shared, place) = found.pop()?;
            Some(Match { place, shared, other: found.pop().map(|(_, place)| place) })
        })
    }

    fn index(text: &[u32]) -> Index {
        let mut index = Index::new();
        text.iter().for_each(|&token| index.push(token));
        index
    }

    /// Texts that repeat themselves: pieces of what there is, now and then something new.
    fn text(most: usize) -> impl Strategy<Value = Vec<u32>> {
        let piece = (any::<prop::sample::Index>(), 1_usize..40, prop::collection::vec(0_u32..6, 0..4));
        prop::collection::vec(piece, 1..20).prop_map(move |pieces| {
            let mut text = vec![1, 2];
            for (from, n, new) in pieces {
                let from = from.index(text.len());
                text.extend_from_within(from..text.len().min(from + n));
                text.extend(new);
            }
            text.truncate(most);
            text
        })
    }

    proptest! {
        #[test]
        fn a_match_is_the_one_a_naive_search_of_the_same_places_finds(text in text(600)) {
            let places = |n: usize| {
                let Some(end) = text.len().checked_sub(n) else { return vec![] };
                let is_alike = |place: &usize| slot(&text[place - n..*place]) == slot(&text[end..]);
                (n..text.len()).rev().filter(is_alike).take(MOST_PLACES).collect()
            };
            prop_assert_eq!(index(&text).find(), naive(&text, places));
        }

        #[test]
        fn of_few_places_the_longest_passage_of_all_is_found(text in text(MOST_PLACES)) {
            // So short a text has no more places than a search looks at.
            prop_assert_eq!(index(&text).find(), naive(&text, |n| (n..text.len()).collect()));
        }
    }

    #[test]
    fn the_longest_passage_wins_and_of_equals_the_latest() {
        let find = |text: &[u32]| index(text).find().map(|found| (found.place, found.shared, found.other));
        assert_eq!(find(&[5, 6, 7, 8, 9, 1, 6, 7, 8, 9, 5, 6, 7, 8]), Some((4, 4, None)));
        assert_eq!(find(&[1, 2, 3, 1, 2, 4, 1, 2]), Some((5, 2, Some(2))));
        assert_eq!(find(&[9, 1, 2, 3, 1, 2, 4, 9, 1, 2]), Some((3, 3, Some(6))));
        assert_eq!(find(&[1, 2, 3, 2]), Some((2, 1, None)));
        assert_eq!(find(&[1, 2, 3]), None);
        assert_eq!(find(&[1, 1, 1]), Some((2, 2, None)), "a passage may overlap itself");
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[3; 90]), Some((89, MOST_SHARED, Some(88))));
    }
}
