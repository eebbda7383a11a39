//! Hash tables as a tokenizer needs them: built once, never changed, a few bytes an entry, no allocation per key.
//!
//! Keys come from files, so the hash is seeded once a process: nobody can prepare colliding tokens. Ids found never
//! depend on the seed.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

use super::load::VOCABULARY;
use crate::gguf::{GgufError, room};

const EMPTY: u32 = u32::MAX;
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| RandomState::new().build_hasher().finish() | 1)
}

#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline]
fn hash_bytes(bytes: &[u8], seed: u64) -> u64 {
    let mut state = seed ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let mut rest = bytes;
    while let Some((word, after)) = rest.split_first_chunk::<8>() {
        state = mix(state ^ u64::from_le_bytes(*word), MULTIPLIER ^ seed);
        rest = after;
    }
    let mut last = 0;
    for &byte in rest {
        last = last << 8 | u64::from(byte);
    }
    mix(state ^ last, MULTIPLIER ^ seed.rotate_left(32))
}

/// Slots for `n` keys: a power of two, at most two thirds full.
fn capacity(n: usize) -> usize {
    (n + n / 2 + 2).next_power_of_two()
}

/// From texts, kept elsewhere, to their numbers.
#[derive(Clone, Debug)]
pub(super) struct TextTable {
    /// Upper half of the hash, and the number.
    slots: Vec<(u32, u32)>,
    seed: u64,
}

impl TextTable {
    /// An empty table with room for `n` keys; more must not be inserted.
    pub(super) fn with_room_for(file: &str, n: usize) -> Result<Self, GgufError> {
        let mut slots = room(file, VOCABULARY, capacity(n))?;
        slots.resize(capacity(n), (0, EMPTY));
        Ok(Self { slots, seed: seed() })
    }

    #[inline]
    fn start(&self, key: &[u8]) -> (usize, u32) {
        let hash = hash_bytes(key, self.seed);
        (hash as usize & (self.slots.len() - 1), (hash >> 32) as u32)
    }

    /// Puts `number` there for `key`; `text_of` gives the key of a number. `replace` says, for the number already
    /// there, whether the new one takes its place.
    pub(super) fn insert<'a>(
        &mut self,
        key: &[u8],
        number: u32,
        text_of: impl Fn(u32) -> &'a [u8],
        replace: impl FnOnce(u32) -> bool,
    ) {
        let (mut slot, tag) = self.start(key);
        loop {
            let (found_tag, found) = self.slots[slot];
            if found == EMPTY {
                self.slots[slot] = (tag, number);
                return;
            }
            if found_tag == tag && text_of(found) == key {
                if replace(found) {
                    self.slots[slot] = (tag, number);
                }
                return;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    /// The number that is probably `key`'s, to be looked at before [`TextTable::get`] is asked for certain. Asked for many
    /// keys in a row, the memory behind them comes in side by side.
    #[inline]
    pub(super) fn guess(&self, key: &[u8]) -> Option<u32> {
        let (slot, _) = self.start(key);
        self.slots.get(slot).map(|&(_, number)| number).filter(|&number| number != EMPTY)
    }

    /// The number of `key`.
    #[inline]
    pub(super) fn get<'a>(&self, key: &[u8], text_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        let (mut slot, tag) = self.start(key);
        loop {
            let (found_tag, found) = self.slots[slot];
            if found == EMPTY {
                return None;
            }
            if found_tag == tag && text_of(found) == key {
                return Some(found);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }
}

/// What two neighbours become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    /// Which merge goes first: the lowest.
    pub(super) rank: u32,
    /// The id of the result.
    pub(super) merged: u32,
}

#[derive(Clone, Copy, Debug)]
struct PairSlot {
    left: u32,
    right: u32,
    merge: Merge,
}

/// From pairs of ids to their merge.
#[derive(Clone, Debug)]
pub(super) struct PairTable {
    slots: Vec<PairSlot>,
    seed: u64,
    shift: u32,
}

impl PairTable {
    /// An empty table with room for `n` pairs; more must not be inserted.
    pub(super) fn with_room_for(file: &str, n: usize) -> Result<Self, GgufError> {
        let empty = PairSlot { left: EMPTY, right: EMPTY, merge: Merge { rank: 0, merged: 0 } };
        let capacity = capacity(n);
        let mut slots = room(file, "the merges", capacity)?;
        slots.resize(capacity, empty);
        Ok(Self { slots, seed: seed(), shift: 64 - capacity.trailing_zeros() })
    }

    #[inline]
    fn start(&self, left: u32, right: u32) -> usize {
        let key = u64::from(left) << 32 | u64::from(right);
        (mix(key ^ self.seed, MULTIPLIER ^ self.seed) >> self.shift) as usize
    }

    /// Keeps the merge of a pair, the first one if the pair comes again.
    pub(super) fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let mut slot = self.start(left, right);
        while self.slots[slot].left != EMPTY {
            if self.slots[slot].left == left && self.slots[slot].right == right {
                return;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = PairSlot { left, right, merge };
    }

    /// Keeps the merges of several pairs, in order.
    pub(super) fn insert_all(&mut self, pairs: &[(u32, u32, Merge)]) {
        // Reads all slots first, so that the memory behind them comes in side by side.
        let touched = pairs.iter().fold(0, |sum, &(left, right, _)| sum ^ self.slots[self.start(left, right)].left);
        std::hint::black_box(touched);
        for &(left, right, merge) in pairs {
            self.insert(left, right, merge);
        }
    }

    /// The merge of a pair.
    #[inline]
    pub(super) fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let mut slot = self.start(left, right);
        loop {
            let found = &self.slots[slot];
            if found.left == EMPTY {
                return None;
            }
            if found.left == left && found.right == right {
                return Some(found.merge);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_found_again_and_no_other() {
        let texts: Vec<Vec<u8>> = (0..5000u32).map(|n| n.to_string().repeat(1 + n as usize % 4).into_bytes()).collect();
        let mut unique = texts.clone();
        unique.sort();
        unique.dedup();
        let of = |n: u32| &*unique[n as usize];
        let mut table = TextTable::with_room_for("m", unique.len()).unwrap();
        for (number, text) in unique.iter().enumerate() {
            table.insert(text, number as u32, of, |_| true);
        }
        for (number, text) in unique.iter().enumerate() {
            assert_eq!(table.get(text, of), Some(number as u32));
        }
        assert_eq!(table.get(b"", of), None);
        assert_eq!(table.get(b"no such text", of), None);
    }

    #[test]
    fn of_a_pair_given_twice_the_first_merge_counts() {
        let mut table = PairTable::with_room_for("m", 2).unwrap();
        table.insert(1, 2, Merge { rank: 0, merged: 7 });
        table.insert(1, 2, Merge { rank: 1, merged: 8 });
        table.insert(2, 1, Merge { rank: 2, merged: 9 });
        assert_eq!(table.get(1, 2), Some(Merge { rank: 0, merged: 7 }));
        assert_eq!(table.get(2, 1), Some(Merge { rank: 2, merged: 9 }));
        assert_eq!(table.get(1, 1), None);
    }

    #[test]
    fn a_table_for_no_keys_answers() {
        assert_eq!(PairTable::with_room_for("m", 0).unwrap().get(0, 0), None);
        assert_eq!(TextTable::with_room_for("m", 0).unwrap().get(b"x", |_| &[]), None);
    }
}
