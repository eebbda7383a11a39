//! The best `k` of a stream: a heap with the worst of them on top.

/// A logit of an id.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u32,
    logit: f32,
}

impl Entry {
    /// The total order: larger logits first, lower ids first among equals.
    #[inline(always)]
    fn beats(self, other: Self) -> bool {
        self.logit > other.logit || (self.logit == other.logit && self.id < other.id)
    }
}

/// Up to `k` entries that beat all others seen. An entry never beats the one above it, so the first is the worst.
#[derive(Clone, Debug)]
pub(super) struct Best {
    k: usize,
    entries: Vec<Entry>,
}

impl Best {
    pub(super) fn new(max_k: usize) -> Self {
        Self { k: max_k, entries: Vec::with_capacity(max_k) }
    }

    pub(super) fn begin(&mut self, k: usize) {
        self.k = k;
        self.entries.clear();
        self.entries.reserve(k);
    }

    /// False if no logit up to `largest` can get in, whatever its id.
    #[inline(always)]
    pub(super) fn may_take(&self, largest: f32) -> bool {
        self.entries.len() < self.k || self.entries.first().is_some_and(|worst| largest >= worst.logit)
    }

    /// Lets a finite logit in if it is good enough.
    #[inline(always)]
    pub(super) fn take(&mut self, id: u32, logit: f32) {
        let entry = Entry { id, logit };
        if self.entries.len() < self.k {
            self.push(entry);
        } else if self.entries.first().is_some_and(|worst| entry.beats(*worst)) {
            self.replace_worst(entry);
        }
    }

    fn push(&mut self, entry: Entry) {
        let mut at = self.entries.len();
        self.entries.push(entry);
        while at > 0 {
            let above = (at - 1) / 2;
            if !self.entries[above].beats(entry) {
                break;
            }
            self.entries.swap(at, above);
            at = above;
        }
    }

    fn replace_worst(&mut self, entry: Entry) {
        let mut at = 0;
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let Some(mut worse) = self.entries.get(left).copied() else { break };
            let mut place = left;
            if let Some(other) = self.entries.get(right).filter(|other| worse.beats(**other)) {
                (worse, place) = (*other, right);
            }
            if !entry.beats(worse) {
                break;
            }
            self.entries[at] = worse;
            at = place;
        }
        self.entries[at] = entry;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for entry in &other.entries {
            self.take(entry.id, entry.logit);
        }
    }

    /// Id of the best.
    pub(super) fn first(&self) -> Option<u32> {
        self.entries
            .iter()
            .copied()
            .reduce(|best, entry| if entry.beats(best) { entry } else { best })
            .map(|best| best.id)
    }

    pub(super) fn sorted_into(&self, out: &mut Vec<(u32, f32)>) {
        out.clear();
        out.extend(self.entries.iter().map(|entry| (entry.id, entry.logit)));
        out.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
}
