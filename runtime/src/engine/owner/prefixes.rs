//! Who holds keys and values of what texts, found by the hashes of their beginnings, and the ended texts that are kept for
//! prompts that begin alike: least recently used are dropped first when room is needed.
//!
//! A text has one hash for every [`BLOCK`] of its tokens, of all tokens up to there. So texts that begin alike have
//! hashes in common, and the last in common is found by halving. What hashes promise is compared token by token.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use farpost_kernels::backend::{KvStore, Sequence};

/// Tokens of a block. Fewer in common are not worth sharing.
pub(in crate::engine) const BLOCK: usize = 8;

/// Hashes of the beginnings of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Hashes(Vec<u64>);

/// Makes hashes that nobody outside can foresee, so that nobody makes texts whose hashes meet.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Hashing(RandomState);

impl Hashing {
    /// Those whose prefixes are shared, as a number.
    pub(in crate::engine) fn scope(&self, name: &str) -> u64 {
        self.0.hash_one(name)
    }

    /// A scope that only one choice of one request knows.
    pub(super) fn own_scope(&self, number: u64, index: usize) -> u64 {
        self.0.hash_one((number, index))
    }

    /// Hashes of `tokens` in a scope: those of another scope have none in common with them.
    pub(in crate::engine) fn of(&self, tokens: &[u32], scope: u64) -> Hashes {
        let mut hash = scope;
        let next = |block: &[u32]| {
            hash = self.0.hash_one((hash, block));
            hash
        };
        Hashes(tokens.chunks_exact(BLOCK).map(next).collect())
    }
}

/// An ended text.
#[derive(Debug)]
struct Cached {
    sequence: Sequence,
    /// The tokens whose keys and values it holds.
    tokens: Vec<u32>,
    scope: u64,
    used: u64,
}

/// All that is held.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    hashing: Hashing,
    cached: Vec<Cached>,
    /// Who has a beginning of this hash, latest last.
    holders: HashMap<u64, Vec<Sequence>>,
    hashes: HashMap<Sequence, Hashes>,
    most: usize,
    clock: u64,
}

/// Where a prompt's beginning was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) sequence: Sequence,
    /// Tokens that are the same.
    pub(super) shared: usize,
    /// Whether these are all of a text that is kept.
    pub(super) is_whole: bool,
}

/// How many tokens two texts begin with in common.
pub(super) fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Prefixes {
    pub(super) fn new(most: usize, hashing: Hashing) -> Self {
        Self { most, hashing, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.cached.len()
    }

    /// Holders of beginnings of a text with `hashes`, those of the longest first, with how many tokens that is by their
    /// hashes.
    pub(super) fn holders(&self, hashes: &Hashes) -> impl Iterator<Item = (usize, &[Sequence])> {
        let n_known = hashes.0.partition_point(|hash| self.holders.contains_key(hash));
        let known = hashes.0[..n_known].iter().enumerate().rev();
        known.filter_map(|(block, hash)| Some(((block + 1) * BLOCK, self.holders.get(hash)?.as_slice())))
    }

    /// The tokens of an ended text that is kept.
    pub(super) fn tokens(&self, sequence: Sequence) -> Option<&[u32]> {
        let cached = self.cached.iter().find(|cached| cached.sequence == sequence)?;
        Some(&cached.tokens)
    }

    /// `sequence` is about to hold a text with `hashes`.
    pub(super) fn enter(&mut self, sequence: Sequence, hashes: Hashes) {
        self.leave(sequence);
        hashes.0.iter().for_each(|hash| self.holders.entry(*hash).or_default().push(sequence));
        self.hashes.insert(sequence, hashes);
    }

    /// `sequence` holds nothing any more.
    pub(super) fn leave(&mut self, sequence: Sequence) {
        for hash in self.hashes.remove(&sequence).unwrap_or_default().0 {
            let Some(holders) = self.holders.get_mut(&hash) else { continue };
            holders.retain(|holder| *holder != sequence);
            if holders.is_empty() {
                self.holders.remove(&hash);
            }
        }
    }

    /// Marks a kept text as used.
    pub(super) fn touch(&mut self, sequence: Sequence) {
        self.clock += 1;
        if let Some(cached) = self.cached.iter_mut().find(|cached| cached.sequence == sequence) {
            cached.used = self.clock;
        }
    }

    /// Gives a kept text to somebody who goes on with it.
    pub(super) fn take(&mut self, sequence: Sequence) {
        self.cached.retain(|cached| cached.sequence != sequence);
    }

    /// Whether a text of so many tokens is kept.
    pub(super) fn keeps(&self, n_tokens: usize) -> bool {
        self.most > 0 && n_tokens >= BLOCK
    }

    /// Keeps `sequence`, which holds `tokens`; those that are beginnings of it are dropped, and the least recently used
    /// if there are too many. Returns how many of those were.
    pub(super) fn keep(&mut self, sequence: Sequence, tokens: Vec<u32>, scope: u64, kv: &mut dyn KvStore) -> u64 {
        self.leave(sequence);
        // Beginnings are dropped where what is longer can be gone on with from their end.
        let begins = |kv: &dyn KvStore, short: &[u32], long: &[u32], of: Sequence| {
            long.starts_with(short) && kv.resumable(of, short.len()) == short.len()
        };
        let is_same_scope = |cached: &&Cached| cached.scope == scope;
        let mut same = self.cached.iter().filter(is_same_scope);
        let is_known = same.any(|cached| begins(&*kv, &tokens, &cached.tokens, cached.sequence));
        if !self.keeps(tokens.len()) || is_known {
            kv.close(sequence);
            return 0;
        }
        while let Some(place) = self
            .cached
            .iter()
            .position(|cached| is_same_scope(&cached) && begins(&*kv, &cached.tokens, &tokens, sequence))
        {
            self.drop_cached(place, kv);
        }
        let mut n_evicted = 0;
        while self.cached.len() >= self.most && self.evict(None, kv) {
            n_evicted += 1;
        }
        self.clock += 1;
        let hashes = self.hashing.of(&tokens, scope);
        self.enter(sequence, hashes);
        self.cached.push(Cached { sequence, tokens, scope, used: self.clock });
        n_evicted
    }

    /// Drops the least recently used but `kept`; false if there is none.
    pub(super) fn evict(&mut self, kept: Option<Sequence>, kv: &mut dyn KvStore) -> bool {
        let others = self.cached.iter().enumerate().filter(|(_, cached)| Some(cached.sequence) != kept);
        let Some((place, _)) = others.min_by_key(|(_, cached)| cached.used) else { return false };
        self.drop_cached(place, kv);
        true
    }

    fn drop_cached(&mut self, place: usize, kv: &mut dyn KvStore) {
        let sequence = self.cached.swap_remove(place).sequence;
        self.leave(sequence);
        kv.close(sequence);
    }

    /// Forgets all, whose cache is gone.
    pub(super) fn forget(&mut self) {
        self.cached.clear();
        self.holders.clear();
        self.hashes.clear();
    }

    /// True if nobody holds anything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.cached.is_empty() && self.holders.is_empty() && self.hashes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_found_by_what_texts_begin_with() {
        let hashing = Hashing::default();
        let text: Vec<u32> = (0..100).collect();
        let other: Vec<u32> = text[..40].iter().copied().chain(200..260).collect();
        let mut prefixes = Prefixes::new(4, hashing.clone());
        prefixes.enter(Sequence(1), hashing.of(&text, 0));
        prefixes.enter(Sequence(2), hashing.of(&other, 0));
        assert_eq!(prefixes.holders(&hashing.of(&text, 1)).count(), 0);
        let found = |prefixes: &Prefixes, tokens: &[u32]| -> Vec<(usize, Vec<Sequence>)> {
            prefixes.holders(&hashing.of(tokens, 0)).map(|(n, holders)| (n, holders.to_vec())).collect()
        };
        let both = vec![Sequence(1), Sequence(2)];
        assert_eq!(found(&prefixes, &text[..70])[..2], [(64, vec![Sequence(1)]), (56, vec![Sequence(1)])]);
        assert_eq!(found(&prefixes, &text[..47])[..2], [(40, both.clone()), (32, both)]);
        assert_eq!(found(&prefixes, &text[..7]), []);
        assert_eq!(found(&prefixes, &text[1..]), []);
        prefixes.leave(Sequence(1));
        assert_eq!(found(&prefixes, &text)[0], (40, vec![Sequence(2)]));
        prefixes.leave(Sequence(2));
        assert!(prefixes.is_empty());
    }
}
