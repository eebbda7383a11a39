//! The tokenizer of a model: text to ids, ids to bytes.

use std::ops::Range;

use super::bpe::Bpe;
use super::merge::Merger;
use super::roles::{FillInMiddle, Roles};
use super::special::Specials;
use super::spm::Spm;
use super::stream::Detokenizer;
use super::tidy::tidy;
use super::vocabulary::{TokenKind, Vocabulary};
use super::wordpiece::WordPiece;

/// Whether control tokens are looked for in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// What looks like a control token is text. For anything that comes from outside.
    AsText,
    /// Control tokens are found by their names. For text that may steer the model.
    Parse,
}

/// The algorithm, with what it needs beside the vocabulary.
#[derive(Debug)]
pub(super) enum Algorithm {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
    WordPiece(WordPiece),
}

/// Control tokens that swallow the white space after them.
pub(super) type Swallowing = Vec<u32>;

/// What is added around a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Additions {
    pub(super) bos: bool,
    pub(super) eos: bool,
    pub(super) separator: bool,
}

/// Turns text into token ids and back. Made by [`Tokenizer::from_metadata`].
///
/// Holds no lock and changes nothing that a caller could see: share it between threads as it is.
#[derive(Debug)]
pub struct Tokenizer {
    pub(super) vocabulary: Vocabulary,
    pub(super) algorithm: Algorithm,
    pub(super) specials: Specials,
    pub(super) swallowing: Swallowing,
    pub(super) roles: Roles,
    pub(super) stops: Vec<u32>,
    pub(super) additions: Additions,
    pub(super) tidies: bool,
}

/// Longest text that is taken apart at once; positions inside are 32 bits wide.
const MOST_BYTES: usize = 1 << 30;

impl Tokenizer {
    /// Ids of `text`, without any that begin or end a text.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        match special {
            Special::AsText => self.encode_trusting(text, &[]),
            Special::Parse => self.encode_trusting(text, std::slice::from_ref(&(0..text.len()))),
        }
    }

    /// Ids of `text` with BOS, EOS and separator as the file asks for. A text that says BOS itself gets another.
    pub fn encode_prompt(&self, text: &str, special: Special) -> Vec<u32> {
        let body = self.encode(text, special);
        self.complete(body)
    }

    /// Ids of `text`, in which control tokens are looked for in the `trusted` byte ranges only. The ranges must be in
    /// order and may not overlap; words and merges go across their borders.
    pub fn encode_trusting(&self, text: &str, trusted: &[Range<usize>]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 4);
        let mut merger = Merger::default();
        let (mut at, mut after_special) = (0, true);
        while at < text.len() {
            let found = self.specials.next(&self.vocabulary, text, at, trusted);
            let end = found.as_ref().map_or(text.len(), |found| found.range.start);
            if at < end {
                self.encode_plain(&text[at..end], after_special, &mut merger, &mut ids);
            }
            let Some(found) = found else { break };
            ids.push(found.id);
            (at, after_special) = (found.range.end, true);
            if self.swallowing.contains(&found.id) {
                let rest = &text[at..];
                at += rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0B').len();
            }
        }
        ids
    }

    fn encode_plain(&self, text: &str, mut after_special: bool, merger: &mut Merger, ids: &mut Vec<u32>) {
        let mut rest = text;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.floor_char_boundary(MOST_BYTES));
            match &self.algorithm {
                Algorithm::Bpe(bpe) => bpe.encode(&self.vocabulary, part, merger, ids),
                Algorithm::Spm(spm) => spm.encode(&self.vocabulary, part, after_special, merger, ids),
                Algorithm::WordPiece(wordpiece) => wordpiece.encode(&self.vocabulary, part, ids),
            }
            (rest, after_special) = (after, false);
        }
    }

    /// Puts BOS, EOS and separator around `body` as the file asks for. A text that says BOS itself gets another.
    pub fn complete(&self, body: Vec<u32>) -> Vec<u32> {
        let mut ids = Vec::with_capacity(body.len() + 2);
        ids.extend(self.roles.bos.filter(|_| self.additions.bos));
        ids.extend(body);
        ids.extend(self.roles.separator.filter(|_| self.additions.separator));
        ids.extend(self.roles.eos.filter(|_| self.additions.eos));
        ids
    }

    /// Bytes of `ids`; control tokens are left out or written by name. Of the first text token of a vocabulary with a
    /// space prefix, that space is left out. The bytes need not be UTF-8: a model may stop within a character.
    pub fn decode(&self, ids: &[u32], render_special: bool) -> Vec<u8> {
        let mut piece = self.piece();
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(piece.next(self, id, render_special));
        }
        bytes
    }

    /// As [`Tokenizer::decode`], with spaces before punctuation and contractions tidied away where the vocabulary's
    /// reference implementation does so (GPT-2, Llama 3, BERT). Loses what the text was.
    pub fn decode_tidy(&self, ids: &[u32], render_special: bool) -> Vec<u8> {
        let mut bytes = self.decode(ids, render_special);
        if self.tidies {
            tidy(&mut bytes);
        }
        bytes
    }

    fn piece(&self) -> Piece {
        Piece { drops_space: matches!(&self.algorithm, Algorithm::Spm(spm) if spm.space_prefix) }
    }

    /// Decodes ids one by one, as [`Tokenizer::decode`] does without special tokens.
    pub fn stream(&self) -> Detokenizer<'_> {
        Detokenizer::new(self, self.piece())
    }

    /// Decodes what a model writes after `prompt`: a leading space stays where it belongs to the text, that is, unless
    /// the prompt is empty or ends in a control token.
    pub fn stream_after(&self, prompt: &[u32]) -> Detokenizer<'_> {
        let fresh = prompt.last().is_none_or(|&last| self.kind(last).is_special());
        Detokenizer::new(self, if fresh { self.piece() } else { Piece { drops_space: false } })
    }

    /// Bytes that a token is written as, control tokens by name; empty for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.text(id)
    }

    /// [`Tokenizer::token_bytes`] for people: with U+FFFD where they are no UTF-8.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// The control or user-defined token of this name.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.specials.named(&self.vocabulary, name)
    }

    /// `text` with `marker` inside all that is, or next to other text could become, a control token; `None` if there is
    /// no such thing. With the marker taken out again after whatever is done to the text, no control token may lie
    /// across the places where it was.
    pub fn break_control_tokens(&self, text: &str, marker: char) -> Option<String> {
        self.specials.break_up(&self.vocabulary, text, marker)
    }

    /// Type of a token; unused for an id outside the vocabulary.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.vocabulary.kind(id)
    }

    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.vocabulary.len()
    }

    /// Which tokens play which part.
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The token that ends a turn.
    pub fn eot(&self) -> Option<u32> {
        self.roles.eot
    }

    /// The tokens that ask for filling in the middle.
    pub fn fim(&self) -> &FillInMiddle {
        &self.roles.fim
    }

    /// True if [`Tokenizer::encode_prompt`] begins with BOS.
    pub fn adds_bos(&self) -> bool {
        self.additions.bos && self.roles.bos.is_some()
    }

    /// True if [`Tokenizer::encode_prompt`] ends with EOS.
    pub fn adds_eos(&self) -> bool {
        self.additions.eos && self.roles.eos.is_some()
    }

    /// True if the model has said all it wants to say.
    pub fn is_stop(&self, id: u32) -> bool {
        self.stops.binary_search(&id).is_ok()
    }

    /// All tokens that end a generation, in order.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stops
    }
}

/// Where a decoder stands: whether the next text begins with a space that nobody wrote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    drops_space: bool,
}

impl Piece {
    pub(super) fn next<'t>(&mut self, tokenizer: &'t Tokenizer, id: u32, render_special: bool) -> &'t [u8] {
        if tokenizer.kind(id).is_special() {
            return if render_special { tokenizer.token_bytes(id) } else { &[] };
        }
        let bytes = tokenizer.token_bytes(id);
        let drops_space = std::mem::take(&mut self.drops_space);
        if drops_space { bytes.strip_prefix(b" ").unwrap_or(bytes) } else { bytes }
    }
}
