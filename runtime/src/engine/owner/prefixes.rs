//! Keys and values of ended texts, kept for prompts that begin alike, and dropped when their room is needed: least
//! recently used first.

use farpost_kernels::backend::{KvStore, Sequence};

/// An ended text.
#[derive(Debug)]
struct Cached {
    sequence: Sequence,
    /// The tokens whose keys and values it holds.
    tokens: Vec<u32>,
    used: u64,
}

/// All that are kept.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    cached: Vec<Cached>,
    most: usize,
    clock: u64,
}

/// Where a prompt's beginning was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) sequence: Sequence,
    /// Tokens that are the same.
    pub(super) shared: usize,
    /// Whether these are all it has.
    pub(super) is_whole: bool,
}

/// How many tokens two texts begin with in common.
pub(super) fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Prefixes {
    pub(super) fn new(most: usize) -> Self {
        Self { cached: Vec::new(), most, clock: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.cached.len()
    }

    /// The one that shares most with `tokens`.
    pub(super) fn find(&self, tokens: &[u32]) -> Option<Found> {
        let found = |cached: &Cached| {
            let shared = shared(&cached.tokens, tokens);
            Found { sequence: cached.sequence, shared, is_whole: shared == cached.tokens.len() }
        };
        self.cached.iter().map(found).max_by_key(|found| found.shared)
    }

    /// Marks it as used.
    pub(super) fn touch(&mut self, sequence: Sequence) {
        self.clock += 1;
        if let Some(cached) = self.cached.iter_mut().find(|cached| cached.sequence == sequence) {
            cached.used = self.clock;
        }
    }

    /// Gives it to somebody who goes on with it.
    pub(super) fn take(&mut self, sequence: Sequence) {
        self.cached.retain(|cached| cached.sequence != sequence);
    }

    /// Keeps `sequence`, which holds `tokens`; those that are beginnings of it are dropped, and the least recently used
    /// if there are too many. Returns how many of those were.
    pub(super) fn keep(&mut self, sequence: Sequence, tokens: Vec<u32>, kv: &mut dyn KvStore) -> u64 {
        if self.most == 0 || tokens.is_empty() {
            kv.close(sequence);
            return 0;
        }
        if self.cached.iter().any(|cached| cached.tokens.starts_with(&tokens)) {
            kv.close(sequence);
            return 0;
        }
        self.cached.retain(|cached| {
            let is_beginning = tokens.starts_with(&cached.tokens);
            if is_beginning {
                kv.close(cached.sequence);
            }
            !is_beginning
        });
        let mut n_evicted = 0;
        while self.cached.len() >= self.most && self.evict(None, kv) {
            n_evicted += 1;
        }
        self.clock += 1;
        self.cached.push(Cached { sequence, tokens, used: self.clock });
        n_evicted
    }

    /// Drops the least recently used but `kept`; false if there is none.
    pub(super) fn evict(&mut self, kept: Option<Sequence>, kv: &mut dyn KvStore) -> bool {
        let others = self.cached.iter().enumerate().filter(|(_, cached)| Some(cached.sequence) != kept);
        let Some((place, _)) = others.min_by_key(|(_, cached)| cached.used) else { return false };
        kv.close(self.cached.swap_remove(place).sequence);
        true
    }

    /// Forgets all, whose cache is gone.
    pub(super) fn forget(&mut self) {
        self.cached.clear();
    }
}
