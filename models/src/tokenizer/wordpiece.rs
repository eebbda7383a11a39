//! WordPiece (BERT): words of normalized text, each covered by its longest tokens from left to right.
//!
//! Files mark the start of a word with '▁', here a space. Text loses its accents and is put in lower case: of a
//! character that decomposes only the first part stays (of a Hangul syllable too, as in the reference), and marks go.

use unicode_normalization::char::decompose_canonical;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::class::{Class, class};
use super::vocabulary::Vocabulary;

/// What WordPiece needs beside the vocabulary.
#[derive(Debug)]
pub(super) struct WordPiece {
    pub(super) unknown: u32,
    /// Bytes of the longest token.
    longest: usize,
}

impl WordPiece {
    pub(super) fn new(vocabulary: &Vocabulary, unknown: u32) -> Self {
        let longest = (0..vocabulary.len() as u32).map(|id| vocabulary.text(id).len()).max().unwrap_or(0);
        Self { unknown, longest }
    }

    /// Appends the ids of `text`, which holds no special tokens.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, ids: &mut Vec<u32>) {
        // A word with the space before it; alone, the space is no word.
        let mut word = String::from(" ");
        let mut end = |word: &mut String| {
            if word.len() > 1 {
                self.encode_word(vocabulary, word.as_bytes(), ids);
                word.truncate(1);
            }
        };
        for character in text.chars().map(base) {
            let kind = class(character);
            if kind.is(Class::SPACE) {
                end(&mut word);
                continue;
            }
            let control = matches!(
                character.general_category(),
                GeneralCategory::Control
                    | GeneralCategory::Format
                    | GeneralCategory::PrivateUse
                    | GeneralCategory::Surrogate
            );
            if kind.is(Class::MARK) || character == '\0' || character == char::REPLACEMENT_CHARACTER || control {
                continue;
            }
            let alone = kind.is(Class::PUNCTUATION)
                || (character < '\x7F' && kind.is(Class::SYMBOL))
                || is_ideograph(character);
            if alone {
                end(&mut word);
            }
            word.extend(character.to_lowercase());
            if alone {
                end(&mut word);
            }
        }
        end(&mut word);
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &[u8], ids: &mut Vec<u32>) {
        let before = ids.len();
        let mut start = 0;
        while start < word.len() {
            let most = word.len().min(start + self.longest);
            let found = (start + 1..=most).rev().find_map(|end| Some((vocabulary.find(word.get(start..end)?)?, end)));
            let Some((id, end)) = found else {
                ids.truncate(before);
                ids.push(self.unknown);
                return;
            };
            ids.push(id);
            start = end;
        }
    }
}

/// The first character of the canonical decomposition.
fn base(character: char) -> char {
    let mut first = None;
    decompose_canonical(character, |part| first = first.or(Some(part)));
    first.unwrap_or(character)
}

/// Ideographs, each a word of its own (the list of BERT).
fn is_ideograph(character: char) -> bool {
    matches!(
        u32::from(character),
        0x4E00..=0x9FFF
            | 0x3400..=0x4DBF
            | 0x2_0000..=0x2_A6DF
            | 0x2_A700..=0x2_B73F
            | 0x2_B740..=0x2_B81F
            | 0x2_B920..=0x2_CEAF
            | 0xF900..=0xFAFF
            | 0x2_F800..=0x2_FA1F
    )
}
