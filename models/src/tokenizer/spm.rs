//! SentencePiece BPE: characters merged by score, the rest as bytes (Llama 1 and 2, Gemma, Phi-3).
//!
//! Spaces are '▁' in files and plain spaces here. There are no words in this scheme, a merge may join anything. But
//! only into a token: where no token holds some character followed by a space, no merge crosses that point. Text is
//! cut there, which changes nothing but speed.

use std::borrow::Cow;
use std::collections::HashSet;

use super::hash::Merge;
use super::load::VOCABULARY;
use super::merge::{Merger, NONE, Symbol};
use super::vocabulary::{TokenKind, Vocabulary};
use crate::gguf::{GgufError, room};

/// How files write a space.
pub(super) const SPACE: &str = "▁";

/// Scores of a SentencePiece vocabulary.
#[derive(Debug)]
pub(super) struct Spm {
    /// Merge order of each token, lowest first.
    ranks: Vec<u32>,
    /// Token of each byte, for what the vocabulary cannot say otherwise; [`NONE`] where there is none.
    bytes: [u32; 256],
    /// Tokens of one ASCII character.
    ascii: [u32; 128],
    /// Characters that stand before a space inside some token, sorted.
    before_space: Vec<char>,
    longest: usize,
    unknown: Option<u32>,
    /// Text, and text after a special token, begins with a space that the user did not write.
    pub(super) space_prefix: bool,
}

/// Lower for higher scores; 0.0 and -0.0 are one.
fn rank(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    // Order of floats as unsigned integers, turned around.
    !(if bits >> 31 == 1 { !bits } else { bits | 1 << 31 })
}

impl Spm {
    /// `scores` are numbers, one per token; `bytes` the byte tokens found. `vocabulary` must be indexed.
    pub(super) fn new(
        file: &str,
        vocabulary: &Vocabulary,
        scores: &[f32],
        bytes: [u32; 256],
        unknown: Option<u32>,
        space_prefix: bool,
    ) -> Result<Self, GgufError> {
        let mut ascii = [NONE; 128];
        for (character, id) in ascii.iter_mut().enumerate() {
            *id = vocabulary.find(&[character as u8]).unwrap_or(NONE);
        }
        let (mut before_space, mut longest) = (HashSet::new(), 0);
        for id in 0..vocabulary.len() as u32 {
            if !matches!(vocabulary.kind(id), TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused) {
                continue;
            }
            let text = vocabulary.text(id);
            longest = longest.max(text.len());
            if text.len() < 2 || !text[1..].contains(&b' ') {
                continue;
            }
            let text = String::from_utf8_lossy(text);
            let pairs = text.chars().zip(text.chars().skip(1));
            before_space
                .extend(pairs.filter(|&(before, after)| after == ' ' && before != ' ').map(|(before, _)| before));
        }
        let mut before_space: Vec<char> = before_space.into_iter().collect();
        before_space.sort_unstable();
        let mut ranks = room(file, VOCABULARY, scores.len())?;
        ranks.extend(scores.iter().map(|&score| rank(score)));
        Ok(Self { ranks, bytes, ascii, before_space, longest, unknown, space_prefix })
    }

    /// Appends the ids of `text`, which holds no special tokens; `after_special` says that none precedes it but a
    /// special token or nothing.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        after_special: bool,
        merger: &mut Merger,
        ids: &mut Vec<u32>,
    ) {
        let mut text = Cow::Borrowed(text);
        if text.contains(SPACE) {
            text = Cow::Owned(text.replace(SPACE, " "));
        }
        if self.space_prefix && after_special {
            text = Cow::Owned(format!(" {text}"));
        }
        let mut start = 0;
        let mut previous = ' ';
        for (at, character) in text.char_indices() {
            if character == ' ' && previous != ' ' && self.before_space.binary_search(&previous).is_err() {
                self.encode_piece(vocabulary, &text[start..at], merger, ids);
                start = at;
            }
            previous = character;
        }
        self.encode_piece(vocabulary, &text[start..], merger, ids);
    }

    fn encode_piece(&self, vocabulary: &Vocabulary, piece: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        let bytes = piece.as_bytes();
        merger.symbols.clear();
        merger.symbols.extend(piece.char_indices().map(|(at, character)| {
            let len = character.len_utf8();
            let id = match self.ascii.get(character as usize) {
                Some(&id) => id,
                None => vocabulary.find(&bytes[at..at + len]).unwrap_or(NONE),
            };
            Symbol { start: at as u32, len: len as u32, id }
        }));
        merger.run(|left, right| {
            let joined = left.start as usize..right.range().end;
            if joined.len() > self.longest {
                return None;
            }
            let merged = vocabulary.find(&bytes[joined])?;
            Some(Merge { rank: *self.ranks.get(merged as usize)?, merged })
        });
        for symbol in &merger.symbols {
            if symbol.id != NONE {
                ids.push(symbol.id);
                continue;
            }
            for &byte in &bytes[symbol.range()] {
                let id = Some(self.bytes[usize::from(byte)]).filter(|&id| id != NONE);
                // Loading made sure that there is an unknown token if some byte has none.
                ids.extend(id.or(self.unknown));
            }
        }
    }
}

/// The byte that a byte token such as `<0x0A>` stands for.
pub(super) fn byte_of(text: &[u8]) -> Option<u8> {
    let [b'<', b'0', b'x', high, low, b'>'] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(*high)? << 4 | digit(*low)?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_rank_first_and_the_zeros_are_one() {
        let ordered = [f32::INFINITY, 3.5, 1e-40, 0.0, -1e-40, -1.0, -1000.0, f32::NEG_INFINITY];
        assert!(ordered.windows(2).all(|pair| rank(pair[0]) < rank(pair[1])));
        assert_eq!(rank(0.0), rank(-0.0));
    }

    #[test]
    fn only_two_hexadecimal_digits_make_a_byte() {
        assert_eq!(byte_of(b"<0x0A>"), Some(10));
        assert_eq!(byte_of(b"<0xff>"), Some(255));
        for bad in ["<0x-1>", "<0xZZ>", "<0x1>", "<0x123>", "<0x+1>", "0x0A", "", "<0x 1>"] {
            assert_eq!(byte_of(bad.as_bytes()), None, "{bad}");
        }
    }
}
