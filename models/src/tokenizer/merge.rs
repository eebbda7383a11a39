//! Joins neighbouring symbols, best pair first: the loop that byte-level BPE and SentencePiece BPE share.
//!
//! The lowest rank goes first, of equal ranks the leftmost. Short words are searched from end to end for each merge;
//! longer ones use a heap, so that work grows as n log n whatever the text is: a merge makes two new pairs at most,
//! so fewer than three pairs per symbol are ever looked up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::hash::Merge;

/// No token: a symbol that only bytes or the unknown token can stand for, or no neighbour.
pub(super) const NONE: u32 = u32::MAX;

/// Up to this many symbols, plain search beats the heap.
const SHORT: usize = 24;

const NO_MERGE: Merge = Merge { rank: u32::MAX, merged: NONE };

/// Part of a word: bytes `start..start + len` of it, and the token they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    pub(super) start: u32,
    pub(super) len: u32,
    pub(super) id: u32,
}

impl Symbol {
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// Symbol in a list whose members go away; `len` 0 marks one that is gone.
#[derive(Clone, Copy, Debug)]
struct Link {
    symbol: Symbol,
    previous: u32,
    next: u32,
}

/// A pair that may be merged: (rank, left symbol), length of both, result.
type Candidate = Reverse<(u64, u32, u32)>;

/// The loop's memory, kept from word to word.
#[derive(Debug, Default)]
pub(super) struct Merger {
    /// In: the word's smallest symbols. Out: what they became.
    pub(super) symbols: Vec<Symbol>,
    merges: Vec<Merge>,
    links: Vec<Link>,
    heap: BinaryHeap<Candidate>,
}

impl Merger {
    /// Merges `symbols` until no neighbours join.
    pub(super) fn run(&mut self, join: impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
        let join = |left: &Symbol, right: &Symbol| join(left, right).unwrap_or(NO_MERGE);
        if self.symbols.len() <= SHORT {
            self.run_short(join);
        } else {
            self.run_long(join);
        }
    }

    fn run_short(&mut self, join: impl Fn(&Symbol, &Symbol) -> Merge) {
        let Self { symbols, merges, .. } = self;
        merges.clear();
        merges.extend(symbols.windows(2).map(|pair| join(&pair[0], &pair[1])));
        loop {
            let mut best = (u32::MAX, usize::MAX);
            for (at, merge) in merges.iter().enumerate() {
                if merge.merged != NONE && (best.1 == usize::MAX || merge.rank < best.0) {
                    best = (merge.rank, at);
                }
            }
            let at = best.1;
            if at == usize::MAX {
                return;
            }
            // There are as many merges as neighbours, so `at + 1` is a symbol.
            symbols[at].len += symbols[at + 1].len;
            symbols[at].id = merges[at].merged;
            symbols.remove(at + 1);
            merges.remove(at);
            if at > 0 {
                merges[at - 1] = join(&symbols[at - 1], &symbols[at]);
            }
            if at < merges.len() {
                merges[at] = join(&symbols[at], &symbols[at + 1]);
            }
        }
    }

    fn run_long(&mut self, join: impl Fn(&Symbol, &Symbol) -> Merge) {
        let Self { symbols, links, heap, .. } = self;
        let last = symbols.len() - 1;
        links.clear();
        links.extend(symbols.iter().enumerate().map(|(at, &symbol)| Link {
            symbol,
            previous: if at == 0 { NONE } else { at as u32 - 1 },
            next: if at == last { NONE } else { at as u32 + 1 },
        }));
        let candidate = |links: &[Link], left: u32, right: u32| {
            let (a, b) = (&links[left as usize].symbol, &links[right as usize].symbol);
            let merge = join(a, b);
            let key = u64::from(merge.rank) << 32 | u64::from(left);
            (merge.merged != NONE).then_some(Reverse((key, a.len + b.len, merge.merged)))
        };
        // Filled at once: a heap is made of n entries in n steps.
        let mut first = std::mem::take(heap).into_vec();
        first.clear();
        first.extend((0..last as u32).filter_map(|left| candidate(links, left, left + 1)));
        *heap = BinaryHeap::from(first);
        while let Some(Reverse((key, len, merged))) = heap.pop() {
            let left = key as u32;
            let link = links[left as usize];
            // Gone, at the end, or not the pair that was meant: one of the two has grown since.
            if link.symbol.len == 0 || link.next == NONE {
                continue;
            }
            let right = links[link.next as usize];
            if link.symbol.len + right.symbol.len != len {
                continue;
            }
            links[link.next as usize].symbol.len = 0;
            links[left as usize].symbol.len = len;
            links[left as usize].symbol.id = merged;
            links[left as usize].next = right.next;
            if right.next != NONE {
                links[right.next as usize].previous = left;
                heap.extend(candidate(links, left, right.next));
            }
            if link.previous != NONE {
                heap.extend(candidate(links, link.previous, left));
            }
        }
        symbols.clear();
        symbols.extend(links.iter().map(|link| link.symbol).filter(|symbol| symbol.len > 0));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    fn symbols(text: &[u8]) -> Vec<Symbol> {
        text.iter().enumerate().map(|(at, &b)| Symbol { start: at as u32, len: 1, id: u32::from(b) }).collect()
    }

    /// Joins any two symbols of the same id into the next id, lower ids first.
    fn doubling(left: &Symbol, right: &Symbol) -> Option<Merge> {
        (left.id == right.id && left.id < 150).then_some(Merge { rank: left.id, merged: left.id + 1 })
    }

    #[test]
    fn work_on_a_million_equal_letters_is_bounded() {
        let n = 1 << 20;
        let mut merger = Merger { symbols: symbols(&vec![b'a'; n]), ..Merger::default() };
        let joins = Cell::new(0usize);
        merger.run(|left, right| {
            joins.set(joins.get() + 1);
            doubling(left, right)
        });
        assert_eq!(merger.symbols.len(), 1);
        assert_eq!(merger.symbols[0].len as usize, n);
        assert!(joins.get() < 3 * n, "{} pairs were looked up", joins.get());
    }

    #[test]
    fn of_equal_ranks_the_leftmost_pair_goes_first() {
        for n in [3, 5, 25, 31] {
            let mut merger = Merger { symbols: symbols(&vec![b'a'; n]), ..Merger::default() };
            merger.run(|left, right| doubling(left, right).filter(|_| left.id == u32::from(b'a')));
            let lens: Vec<_> = merger.symbols.iter().map(|symbol| symbol.len).collect();
            assert_eq!(lens.iter().filter(|&&len| len == 2).count(), n / 2);
            assert_eq!(lens.last(), Some(&1));
        }
    }

    proptest! {
        #[test]
        fn the_heap_gives_what_plain_search_gives(text in prop::collection::vec(b'a'..=b'd', 1..200), salt in 0u32..50) {
            let join = |left: &Symbol, right: &Symbol| {
                let mixed = (left.id * 31 + right.id * 17 + salt).wrapping_mul(2_654_435_761) >> 20;
                mixed.is_multiple_of(3).then_some(Merge { rank: mixed % 16, merged: mixed % 64 })
            };
            let short = &mut Merger { symbols: symbols(&text), ..Merger::default() };
            let long = &mut Merger { symbols: symbols(&text), ..Merger::default() };
            short.run_short(|left, right| join(left, right).unwrap_or(NO_MERGE));
            long.run_long(|left, right| join(left, right).unwrap_or(NO_MERGE));
            let of = |merger: &Merger| merger.symbols.iter().map(|s| (s.start, s.len, s.id)).collect::<Vec<_>>();
            prop_assert_eq!(of(short), of(long));
        }
    }
}
