//! The tokens of a model: their bytes in one arena, their types, and a table from bytes to ids.
//!
//! The arena holds each token as it is written out: byte-level tokens decoded, SentencePiece's and WordPiece's '▁' as a
//! space, byte tokens as their byte. Nothing is allocated per token.

use super::hash::TextTable;
use super::load::VOCABULARY;
use crate::gguf::{GgufError, room};

/// The most bytes one token may have. The longest in published vocabularies have a few hundred.
pub(super) const LONGEST_TOKEN: usize = 16 * 1024;

/// Type of a token, as files give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// Steers the model: never part of a text, found in text only where that is allowed.
    Control,
    /// Text that is matched before everything else.
    UserDefined,
    /// Not in use.
    Unused,
    /// One byte.
    Byte,
}

impl TokenKind {
    pub(super) fn from_id(id: i64) -> Option<Self> {
        Some(match id {
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// True for tokens that are not rendered as text unless asked for.
    pub fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }
}

/// All tokens of a model.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    arena: Vec<u8>,
    /// Where each entry ends; the next one begins there. Tokens first, then aliases.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    /// The token each alias stands for.
    alias_of: Vec<u32>,
    table: TextTable,
    /// True if two entries have the same text.
    has_twins: bool,
}

impl Vocabulary {
    pub(super) fn with_room_for(file: &str, n_tokens: usize, bytes: usize) -> Result<Self, GgufError> {
        Ok(Self {
            arena: room(file, VOCABULARY, bytes)?,
            ends: room(file, VOCABULARY, n_tokens)?,
            kinds: room(file, VOCABULARY, n_tokens)?,
            alias_of: Vec::new(),
            table: TextTable::with_room_for(file, 0)?,
            has_twins: true,
        })
    }

    /// Appends a token, written by `write` at the end of the arena. All tokens come before the first alias.
    pub(super) fn push(&mut self, kind: TokenKind, write: impl FnOnce(&mut Vec<u8>)) {
        debug_assert!(self.alias_of.is_empty());
        write(&mut self.arena);
        self.ends.push(self.arena.len() as u32);
        self.kinds.push(kind);
    }

    /// Another text under which a token is found, though it is not written so.
    pub(super) fn push_alias(&mut self, id: u32, text: &[u8]) {
        self.arena.extend_from_slice(text);
        self.ends.push(self.arena.len() as u32);
        self.alias_of.push(id);
    }

    /// Builds the table from texts to ids: tokens that are `findable`, without special ones, and all aliases. Of two
    /// with the same text the normal one wins, then the later one.
    pub(super) fn index(&mut self, file: &str, findable: &[bool]) -> Result<(), GgufError> {
        let mut table = TextTable::with_room_for(file, self.ends.len())?;
        let mut has_twins = false;
        let n_tokens = self.kinds.len() as u32;
        for entry in 0..self.ends.len() as u32 {
            let id = self.id_of_entry(entry);
            let text = self.entry(entry);
            let kind = self.kind(id);
            let is_found = entry >= n_tokens || findable.get(id as usize) == Some(&true);
            if text.is_empty() || kind.is_special() || !is_found {
                continue;
            }
            table.insert(
                text,
                entry,
                |other| self.entry(other),
                |other| {
                    has_twins = true;
                    let other_kind = self.kind(self.id_of_entry(other));
                    kind == TokenKind::Normal || other_kind != TokenKind::Normal
                },
            );
        }
        self.table = table;
        self.has_twins = has_twins;
        Ok(())
    }

    #[inline]
    fn entry(&self, entry: u32) -> &[u8] {
        let entry = entry as usize;
        let start = if entry == 0 { 0 } else { self.ends.get(entry - 1).copied().unwrap_or(0) };
        let end = self.ends.get(entry).copied().unwrap_or(start);
        self.arena.get(start as usize..end as usize).unwrap_or(&[])
    }

    #[inline]
    fn id_of_entry(&self, entry: u32) -> u32 {
        let alias = (entry as usize).checked_sub(self.kinds.len());
        alias.and_then(|alias| self.alias_of.get(alias).copied()).unwrap_or(entry)
    }

    /// Number of tokens.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// What a token is written as; empty for an id outside the vocabulary.
    #[inline]
    pub(super) fn text(&self, id: u32) -> &[u8] {
        if (id as usize) < self.kinds.len() { self.entry(id) } else { &[] }
    }

    /// Its type; unused for an id outside the vocabulary.
    #[inline]
    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    pub(super) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    /// True if no two tokens, aliases among them, have the same text.
    pub(super) fn is_unique(&self) -> bool {
        !self.has_twins
    }

    /// The token that is written as `text`.
    #[inline]
    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        self.table.get(text, |entry| self.entry(entry)).map(|entry| self.id_of_entry(entry))
    }

    /// [`Vocabulary::find`] for many texts, which is quicker than one by one in a vocabulary that fills the caches.
    pub(super) fn find_all<'k>(&self, texts: impl Iterator<Item = &'k [u8]> + Clone, found: &mut Vec<Option<u32>>) {
        let (mut ends, mut bytes) = (0, 0);
        found.clear();
        found.extend(texts.clone().map(|text| self.table.guess(text)));
        // Where the guesses' texts lie, then the texts: each a round of reads that do not wait for one another.
        for guess in found.iter().flatten() {
            ends ^= self.ends.get(*guess as usize).copied().unwrap_or(0);
        }
        for guess in found.iter().flatten() {
            bytes ^= self.entry(*guess).first().copied().unwrap_or(0);
        }
        std::hint::black_box((ends, bytes));
        found.clear();
        found.extend(texts.map(|text| self.find(text)));
    }
}
