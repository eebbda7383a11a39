//! Finds special and user-defined tokens in text.
//!
//! User-defined tokens are matched everywhere, control tokens only where the caller allows them. At each place the
//! longest match wins, from left to right.

use std::ops::Range;

use super::vocabulary::{TokenKind, Vocabulary};

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
    /// Matched in trusted text, together with the former.
    trusted: Sorted,
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
        Self {
            everywhere: of(&|_, kind| kind == TokenKind::UserDefined),
            trusted: of(&|id, kind| kind == TokenKind::UserDefined || kind.is_special() || also == Some(id)),
        }
    }

    /// The token that is written as `name`.
    pub(super) fn named(&self, vocabulary: &Vocabulary, name: &str) -> Option<u32> {
        let (id, len) = self.trusted.longest(vocabulary, name.as_bytes())?;
        (len == name.len()).then_some(id)
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
            if allowed > at && self.trusted.starts_with(byte) {
                let other = self.trusted.longest(vocabulary, &bytes[at..allowed]);
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
