//! Finds special and user-defined tokens in text.
//!
//! User-defined tokens are matched everywhere, control tokens only where the caller allows them. At each place the
//! longest match wins, from left to right.

use std::ops::Range;

use super::vocabulary::{LONGEST_TOKEN, TokenKind, Vocabulary};

/// Token texts in byte order: all that begin with the bytes seen so far are one range.
#[derive(Debug, Default)]
struct Sorted {
    ids: Vec<u32>,
    /// Where the texts that begin with each byte start; one more entry ends the last.
    first: Vec<u32>,
}

impl Sorted {
    fn new(vocabulary: &Vocabulary, mut ids: Vec<u32>) -> Self {
        // Of equal texts the last id stays.
        ids.sort_by(|&a, &b| vocabulary.text(a).cmp(vocabulary.text(b)).then(b.cmp(&a)));
        ids.dedup_by(|later, kept| vocabulary.text(*later) == vocabulary.text(*kept));
        let starts =
            |byte: u32| ids.partition_point(|&id| vocabulary.text(id).first().is_none_or(|&b| u32::from(b) < byte));
        let first = (0..=256).map(|byte| starts(byte) as u32).collect();
        Self { ids, first }
    }

    #[inline]
    fn starts_with(&self, byte: u8) -> bool {
        self.first.get(usize::from(byte)) < self.first.get(usize::from(byte) + 1)
    }

    /// True if `text` begins with a token, or is the beginning of one.
    fn begins(&self, vocabulary: &Vocabulary, text: &[u8]) -> bool {
        let from = self.ids.partition_point(|&id| vocabulary.text(id) < text);
        let is_beginning = self.ids.get(from).is_some_and(|&id| vocabulary.text(id).starts_with(text));
        is_beginning || self.longest(vocabulary, text).is_some()
    }

    /// The longest token that `text` begins with: its id and length.
    fn longest(&self, vocabulary: &Vocabulary, text: &[u8]) -> Option<(u32, usize)> {
        let byte = usize::from(*text.first()?);
        let (mut low, mut high) = (*self.first.get(byte)? as usize, *self.first.get(byte + 1)? as usize);
        let mut found = None;
        for (depth, &byte) in text.iter().enumerate() {
            let range = self.ids.get(low..high)?;
            // All of the range agree with the text up to here, so a text that ends here is the first of it.
            let at = |id: u32| vocabulary.text(id).get(depth).copied();
            let from = range.partition_point(|&id| at(id) < Some(byte));
            let to = range.partition_point(|&id| at(id) <= Some(byte));
            (low, high) = (low + from, low + to);
            if low == high {
                break;
            }
            let first = *self.ids.get(low)?;
            if vocabulary.text(first).len() == depth + 1 {
                found = Some((first, depth + 1));
            }
        }
        found
    }
}

/// A token found in text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: u32,
    pub(super) range: Range<usize>,
}

/// The tokens that are looked for in text before it is taken apart.
#[derive(Debug)]
pub(super) struct Specials {
    /// Matched in any text.
    everywhere: Sorted,
    /// Matched in trusted text only.
    controls: Sorted,
    /// Last bytes of control tokens, and the length of the longest.
    last: [bool; 256],
    longest: usize,
}

/// True if `text` is one character.
fn is_single(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.chars().count() == 1)
}

impl Specials {
    /// `also` is looked for in trusted text whatever its type.
    pub(super) fn new(vocabulary: &Vocabulary, also: Option<u32>) -> Self {
        let of = |wanted: &dyn Fn(u32, TokenKind) -> bool| {
            let ids = (0..vocabulary.len() as u32).filter(|&id| wanted(id, vocabulary.kind(id)));
            // Text is cut at matches, so they must be whole characters.
            let matchable = |id: &u32| std::str::from_utf8(vocabulary.text(*id)).is_ok_and(|text| !text.is_empty());
            Sorted::new(vocabulary, ids.filter(matchable).collect())
        };
        let mut specials = Self {
            last: [false; 256],
            longest: 0,
            everywhere: of(&|_, kind| kind == TokenKind::UserDefined),
            // One character can't be broken up (see `break_up`), so it must not steer anything.
            controls: of(&|id, kind| (kind.is_special() || also == Some(id)) && !is_single(vocabulary.text(id))),
        };
        for &id in &specials.controls.ids {
            let text = vocabulary.text(id);
            specials.longest = specials.longest.max(text.len());
            specials.last[usize::from(text.last().copied().unwrap_or(0))] = true;
        }
        specials
    }

    /// True if some control token ends with `byte`.
    fn is_last(&self, byte: u8) -> bool {
        self.last[usize::from(byte)]
    }

    /// The token that is written as `name`.
    pub(super) fn named(&self, vocabulary: &Vocabulary, name: &str) -> Option<u32> {
        let bytes = name.as_bytes();
        let (id, len) = longer(self.everywhere.longest(vocabulary, bytes), self.controls.longest(vocabulary, bytes))?;
        (len == name.len()).then_some(id)
    }

    /// `text` with `marker` inside every control token, and inside whatever at its ends could be part of one. `None` if
    /// there is nothing to mark.
    pub(super) fn break_up(&self, vocabulary: &Vocabulary, text: &str, marker: char) -> Option<String> {
        let bytes = text.as_bytes();
        let mut breaks = Vec::new();
        for (at, first) in text.char_indices() {
            let byte = *bytes.get(at)?;
            if self.controls.starts_with(byte) && self.controls.begins(vocabulary, &bytes[at..]) {
                breaks.push(at + first.len_utf8());
            }
        }
        // The end of a token at the start of the text: what precedes it may be the token's beginning.
        for (at, last) in text.char_indices().take(LONGEST_TOKEN) {
            let end = at + last.len_utf8();
            let ends = |&id: &u32| {
                let token = vocabulary.text(id);
                token.len() > end && token.ends_with(&bytes[..end])
            };
            let may_end = bytes.get(end - 1).is_some_and(|&byte| self.is_last(byte));
            if end <= self.longest && may_end && self.controls.ids.iter().any(ends) {
                breaks.push(at);
            }
            if end >= self.longest {
                break;
            }
        }
        if breaks.is_empty() {
            return None;
        }
        breaks.sort_unstable();
        breaks.dedup();
        let mut marked = String::with_capacity(text.len() + breaks.len() * marker.len_utf8());
        let mut start = 0;
        for at in breaks {
            marked.push_str(&text[start..at]);
            marked.push(marker);
            start = at;
        }
        marked.push_str(&text[start..]);
        Some(marked)
    }

    /// The first token in `text` at or after `from`. Control tokens count only if they lie wholly in one of the
    /// `trusted` ranges, which are in order and do not overlap.
    pub(super) fn next(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        from: usize,
        trusted: &[Range<usize>],
    ) -> Option<Found> {
        let bytes = text.as_bytes();
        let mut ranges = trusted.iter().skip_while(|range| range.end <= from).peekable();
        for at in from..bytes.len() {
            while ranges.next_if(|range| range.end <= at).is_some() {}
            let byte = *bytes.get(at)?;
            let allowed =
                ranges.peek().filter(|range| range.start <= at).map_or(at, |range| range.end.min(bytes.len()));
            let mut best = None;
            if self.everywhere.starts_with(byte) {
                best = self.everywhere.longest(vocabulary, &bytes[at..]);
            }
            if allowed > at && self.controls.starts_with(byte) {
                let other = self.controls.longest(vocabulary, &bytes[at..allowed]);
                best = longer(best, other);
            }
            if let Some((id, len)) = best {
                return Some(Found { id, range: at..at + len });
            }
        }
        None
    }
}

/// The longer of two matches, the first on ties.
fn longer(a: Option<(u32, usize)>, b: Option<(u32, usize)>) -> Option<(u32, usize)> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.1 > a.1 { b } else { a }),
        _ => a.or(b),
    }
}
