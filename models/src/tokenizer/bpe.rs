//! Byte-level BPE: a word's bytes, merged by the rank of the file's merge list (GPT-2 and its descendants).

use std::sync::atomic::{AtomicU8, Ordering};

use super::byte_level;
use super::error::TokenizerError;
use super::hash::{Merge, PairTable};
use super::merge::{Merger, NONE, Symbol};
use super::pretokenize::Pre;
use super::vocabulary::Vocabulary;

/// Whether merging the bytes of a token gives that token; found out when the token is first met as a word.
const UNTRIED: u8 = 0;
const WHOLE: u8 = 1;
const SPLIT: u8 = 2;

/// Merges of a byte-level vocabulary.
#[derive(Debug)]
pub(super) struct Bpe {
    pub(super) pre: Pre,
    /// Token of each byte; [`NONE`] where the vocabulary has none.
    bytes: [u32; 256],
    merges: PairTable,
    /// A word that is a token is taken as it is.
    ignore_merges: bool,
    unknown: Option<u32>,
    wholes: Box<[AtomicU8]>,
}

impl Bpe {
    /// Reads the merge list. `vocabulary` must be indexed.
    pub(super) fn new<'a>(
        file: &str,
        vocabulary: &Vocabulary,
        merges: impl ExactSizeIterator<Item = &'a [u8]>,
        pre: Pre,
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let mut bytes = [NONE; 256];
        for (byte, id) in bytes.iter_mut().enumerate() {
            *id = vocabulary.find(&[byte as u8]).unwrap_or(NONE);
            // The other bytes do not occur in UTF-8.
            let needed = !matches!(byte, 0xC0 | 0xC1 | 0xF5..);
            if needed && *id == NONE && unknown.is_none() {
                return Err(TokenizerError::NoByte { file: file.to_owned(), byte: byte as u8 });
            }
        }
        let mut table = PairTable::with_room_for(merges.len());
        let mut text = Vec::new();
        // In most files merge n makes the token after that of merge n - 1.
        let mut expected = NONE;
        for (number, merge) in merges.enumerate() {
            let show = |bytes: &[u8]| String::from_utf8_lossy(bytes.get(..80).unwrap_or(bytes)).into_owned();
            let space = merge.iter().skip(1).position(|&b| b == b' ').map(|at| at + 1);
            let halves = space.and_then(|at| Some((merge.get(..at)?, merge.get(at + 1..)?)));
            let Some((left, right)) = halves.filter(|(_, right)| !right.is_empty()) else {
                return Err(TokenizerError::Merge { file: file.to_owned(), merge: number, found: show(merge) });
            };
            let missing = |text: &[u8]| TokenizerError::MergeOfUnknown {
                file: file.to_owned(),
                merge: number,
                found: show(merge),
                missing: show(text),
            };
            text.clear();
            let known = byte_level::decode(left, &mut text);
            let middle = text.len();
            if !known || middle == 0 {
                return Err(missing(left));
            }
            if !byte_level::decode(right, &mut text) {
                return Err(missing(right));
            }
            let (head, tail) = text.split_at(middle);
            let find = |part: &[u8]| match part {
                [byte] => Some(bytes[usize::from(*byte)]).filter(|&id| id != NONE),
                _ => vocabulary.find(part),
            };
            let left_id = find(head).ok_or_else(|| missing(left))?;
            let right_id = find(tail).ok_or_else(|| missing(right))?;
            let guess = Some(expected).filter(|&id| vocabulary.text(id) == text && vocabulary.find(&text) == Some(id));
            let merged = guess.or_else(|| vocabulary.find(&text)).ok_or_else(|| missing(&text))?;
            expected = merged.saturating_add(1);
            table.insert(left_id, right_id, Merge { rank: number as u32, merged });
        }
        let wholes = (0..vocabulary.len()).map(|_| AtomicU8::new(UNTRIED)).collect();
        let ignore_merges = pre.ignores_merges();
        Ok(Self { pre, bytes, merges: table, ignore_merges, unknown, wholes })
    }

    /// Appends the ids of `text`, which holds no special tokens.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        self.pre.split(text, &mut |word| self.encode_word(vocabulary, word.as_bytes(), merger, ids));
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &[u8], merger: &mut Merger, ids: &mut Vec<u32>) {
        let whole = if word.len() > 1 { vocabulary.find(word) } else { None };
        let fate = whole.and_then(|id| self.wholes.get(id as usize));
        if let Some(id) = whole
            && (self.ignore_merges || fate.is_some_and(|fate| fate.load(Ordering::Relaxed) == WHOLE))
        {
            ids.push(id);
            return;
        }
        merger.symbols.clear();
        merger.symbols.extend(word.iter().enumerate().map(|(at, &byte)| Symbol {
            start: at as u32,
            len: 1,
            id: self.bytes[usize::from(byte)],
        }));
        merger.run(|left, right| self.merges.get(left.id, right.id));
        if let Some(fate) = fate {
            let same = matches!(merger.symbols.as_slice(), [only] if Some(only.id) == whole);
            fate.store(if same { WHOLE } else { SPLIT }, Ordering::Relaxed);
        }
        let known = merger.symbols.iter().map(|symbol| symbol.id);
        // `new` made sure that there is an unknown token if some byte has none.
        ids.extend(known.filter_map(|id| if id == NONE { self.unknown } else { Some(id) }));
    }
}
