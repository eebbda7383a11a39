//! Byte-level BPE: a word's bytes, merged by the rank of the file's merge list (GPT-2 and its descendants).

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use super::byte_level;
use super::error::TokenizerError;
use super::hash::{Merge, PairTable};
use super::load::{MERGES, TOKENS, VOCABULARY};
use super::merge::{Merger, NONE, Symbol};
use super::pretokenize::Pre;
use super::vocabulary::Vocabulary;
use crate::gguf::{Metadata, room};

/// Whether merging the bytes of a token gives that token; found out when the token is first met as a word.
const UNTRIED: u8 = 0;
const WHOLE: u8 = 1;
const SPLIT: u8 = 2;

/// Merges that are looked up together.
const BATCH: usize = 64;

/// What the merge list is read against.
struct Merges<'v> {
    metadata: &'v Metadata,
    vocabulary: &'v Vocabulary,
    findable: &'v [bool],
}

/// The start of a text, for messages.
fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..80).unwrap_or(bytes)).into_owned()
}

impl Merges<'_> {
    fn read<'a>(&self, merges: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<PairTable, TokenizerError> {
        let mut table = PairTable::with_room_for(self.metadata.file_name(), merges.len())?;
        let mut merges = merges.enumerate().peekable();
        let mut batch = Batch::default();
        // In most files a merge makes the same token as the one before it, or the next.
        let mut expected = 0u32;
        while merges.peek().is_some() {
            batch.clear();
            for (number, merge) in merges.by_ref().take(BATCH) {
                self.parse(number, merge, &mut batch)?;
            }
            self.vocabulary.find_all(batch.halves.iter().map(|half| &batch.text[half.clone()]), &mut batch.found);
            for (&(number, merge), (halves, found)) in
                batch.merges.iter().zip(batch.halves.chunks_exact(2).zip(batch.found.chunks_exact(2)))
            {
                let text = &batch.text[halves[0].start..halves[1].end];
                let missing = |text: &[u8]| self.missing(number, merge, text);
                let left = found[0].ok_or_else(|| missing(&batch.text[halves[0].clone()]))?;
                let right = found[1].ok_or_else(|| missing(&batch.text[halves[1].clone()]))?;
                let guess = [expected, expected.saturating_add(1)].into_iter().find(|&id| self.is_surely(id, text));
                expected = guess.or_else(|| self.vocabulary.find(text)).ok_or_else(|| missing(text))?;
                batch.pairs.push((left, right, Merge { rank: number as u32, merged: expected }));
            }
            table.insert_all(&batch.pairs);
        }
        Ok(table)
    }

    /// True if `text` is found as `id` and no other.
    fn is_surely(&self, id: u32, text: &[u8]) -> bool {
        self.vocabulary.is_unique()
            && self.findable.get(id as usize) == Some(&true)
            && !self.vocabulary.kind(id).is_special()
            && self.vocabulary.text(id) == text
    }

    fn missing(&self, merge: usize, found: &[u8], missing: &[u8]) -> TokenizerError {
        let place = self.metadata.place_of_entry(MERGES, merge);
        TokenizerError::MergeOfUnknown { place, found: show(found), missing: show(missing) }
    }

    /// Takes a merge apart, which is two texts with a space between them.
    fn parse<'a>(&self, number: usize, merge: &'a [u8], batch: &mut Batch<'a>) -> Result<(), TokenizerError> {
        let space = merge.iter().skip(1).position(|&b| b == b' ').map(|at| at + 1);
        let halves = space.and_then(|at| Some((merge.get(..at)?, merge.get(at + 1..)?)));
        let Some((left, right)) = halves.filter(|(_, right)| !right.is_empty()) else {
            let (place, found) = (self.metadata.place_of_entry(MERGES, number), show(merge));
            return Err(TokenizerError::Merge { place, found });
        };
        for half in [left, right] {
            let start = batch.text.len();
            if !byte_level::decode(half, &mut batch.text) {
                return Err(self.missing(number, merge, half));
            }
            batch.halves.push(start..batch.text.len());
        }
        batch.merges.push((number, merge));
        Ok(())
    }
}

/// Some merges on their way into the table.
#[derive(Default)]
struct Batch<'a> {
    merges: Vec<(usize, &'a [u8])>,
    /// Texts of the merges, decoded, and where the two halves of each lie, next to each other.
    text: Vec<u8>,
    halves: Vec<Range<usize>>,
    found: Vec<Option<u32>>,
    pairs: Vec<(u32, u32, Merge)>,
}

impl Batch<'_> {
    fn clear(&mut self) {
        self.merges.clear();
        self.text.clear();
        self.halves.clear();
        self.pairs.clear();
    }
}

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
    /// Reads the merge list. `vocabulary` must be indexed by `findable`.
    pub(super) fn new<'a>(
        metadata: &Metadata,
        vocabulary: &Vocabulary,
        findable: &[bool],
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
                return Err(TokenizerError::NoByte { place: metadata.place(TOKENS), byte: byte as u8 });
            }
        }
        let merges = Merges { metadata, vocabulary, findable }.read(merges)?;
        let mut wholes = room(metadata.file_name(), VOCABULARY, vocabulary.len())?;
        wholes.resize_with(vocabulary.len(), || AtomicU8::new(UNTRIED));
        let wholes = wholes.into_boxed_slice();
        let ignore_merges = pre.ignores_merges();
        Ok(Self { pre, bytes, merges, ignore_merges, unknown, wholes })
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
