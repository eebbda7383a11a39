//! The model's own vocabulary: byte-level BPE learned from the corpus, and pieces of canonical JSON as whole tokens.
//!
//! Pre-tokenization is the one files name "qwen2" (words with one character before them, single digits, runs of
//! other signs). The tokens of [`crate::call::scaffold`] and the words of names are user-defined: they are found in
//! the text before BPE, so that a name is the same tokens in the question and in the answer, and copying it is easy.

use crate::call;
use crate::names;
use std::collections::{BTreeMap, HashMap};

/// Ends an answer.
pub const END: u32 = 0;
/// Stands before what the user says.
pub const USER: u32 = 1;
/// Stands before the answer.
pub const ASSISTANT: u32 = 2;
/// In capitals: the chat template makes messages lower case, so that none of them can come to name one.
const CONTROL: [&str; 3] = ["<|END|>", "<|USER|>", "<|ASSISTANT|>"];

/// Value of `tokenizer.ggml.token_type` for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Kind {
    /// Learned or a byte.
    Normal = 1,
    /// A marker, never plain text.
    Control = 3,
    /// A whole piece of text.
    UserDefined = 4,
}

/// Tokens, their kinds and the merges between them, and an encoder for training.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// Token texts, as GGUF stores them.
    pub tokens: Vec<String>,
    /// Their kinds.
    pub kinds: Vec<Kind>,
    /// "left right", best first.
    pub merges: Vec<String>,
    ids: HashMap<String, u32>,
    ranks: HashMap<(String, String), usize>,
    whole: Vec<(String, u32)>,
}

/// The printable character that stands for a byte in token texts (the GPT-2 table).
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let index = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + index).expect("256..324 are characters")
}

/// Splits text as the "qwen2" expression does, for characters whose class is plain (no combining marks).
fn pretokens(text: &str) -> Vec<&str> {
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let is = |at: usize, class: fn(char) -> bool| chars.get(at).is_some_and(|(_, c)| class(*c));
    let letter = |at: usize| is(at, char::is_alphabetic);
    let digit = |at: usize| is(at, char::is_numeric);
    let space = |at: usize| is(at, char::is_whitespace);
    let sign = |at: usize| is(at, |c| !c.is_alphabetic() && !c.is_numeric() && !c.is_whitespace());
    let offset = |at: usize| chars.get(at).map_or(text.len(), |(offset, _)| *offset);
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let lower: String = chars[at..].iter().take(3).map(|(_, c)| c.to_ascii_lowercase()).collect();
        let contraction = ["'re", "'ve", "'ll", "'s", "'t", "'m", "'d"].iter().find(|c| lower.starts_with(**c));
        let mut end = at;
        if let Some(contraction) = contraction {
            end += contraction.len();
        } else if letter(at) || (!digit(at) && !is(at, |c| matches!(c, '\r' | '\n')) && letter(at + 1)) {
            end += 1;
            while letter(end) {
                end += 1;
            }
        } else if digit(at) {
            end += 1;
        } else if sign(at) || (is(at, |c| c == ' ') && sign(at + 1)) {
            end += 1;
            while sign(end) {
                end += 1;
            }
        } else {
            while space(end) {
                end += 1;
            }
            // White space before a word leaves its last character to that word.
            if end < chars.len() && end - at > 1 {
                end -= 1;
            }
        }
        pieces.push(&text[offset(at)..offset(end)]);
        at = end;
    }
    pieces
}

fn symbols(piece: &str) -> Vec<String> {
    piece.bytes().map(|byte| byte_char(byte).to_string()).collect()
}

impl Vocabulary {
    /// Learns `size` tokens from `texts`; ties go to the pair that sorts first, so the result depends on them alone.
    pub fn learn(texts: impl Iterator<Item = String>, size: usize) -> Self {
        let mut scaffold = call::scaffold();
        scaffold.extend(names::words());
        let whole: Vec<(String, u32)> = by_length(scaffold.iter().map(|piece| (piece.clone(), 0)).collect());
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for text in texts {
            for part in split_whole(&text, &whole) {
                if let Part::Text(text) = part {
                    for piece in pretokens(text) {
                        *counts.entry(piece.to_owned()).or_default() += 1;
                    }
                }
            }
        }
        let mut words: Vec<(Vec<String>, u64)> = counts.iter().map(|(piece, n)| (symbols(piece), *n)).collect();
        let n_merges = size.saturating_sub(CONTROL.len() + scaffold.len() + 256);
        let mut merges: Vec<(String, String)> = Vec::new();
        while merges.len() < n_merges {
            let mut pairs: BTreeMap<(&str, &str), u64> = BTreeMap::new();
            for (word, n) in &words {
                for pair in word.windows(2) {
                    *pairs.entry((&pair[0], &pair[1])).or_default() += n;
                }
            }
            let mut best: Option<((&str, &str), u64)> = None;
            for (pair, n) in pairs {
                if best.is_none_or(|(_, most)| n > most) {
                    best = Some((pair, n));
                }
            }
            let Some(((left, right), _)) = best else { break };
            let (left, right) = (left.to_owned(), right.to_owned());
            for (word, _) in &mut words {
                merge(word, &left, &right);
            }
            merges.push((left, right));
        }
        let mut tokens: Vec<String> = CONTROL.map(str::to_owned).into();
        let mut kinds = vec![Kind::Control; CONTROL.len()];
        kinds.extend(scaffold.iter().map(|_| Kind::UserDefined));
        tokens.extend(scaffold);
        tokens.extend((0..=255).map(|byte| byte_char(byte).to_string()));
        tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
        kinds.resize(tokens.len(), Kind::Normal);
        let merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        Self::new(tokens, kinds, merges)
    }

    /// A vocabulary from its parts.
    pub fn new(tokens: Vec<String>, kinds: Vec<Kind>, merges: Vec<String>) -> Self {
        let ids = tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect();
        let ranks = merges
            .iter()
            .enumerate()
            .filter_map(|(rank, line)| line.split_once(' ').map(|(l, r)| ((l.to_owned(), r.to_owned()), rank)))
            .collect();
        let whole = tokens
            .iter()
            .zip(&kinds)
            .zip(0..)
            .filter(|((_, kind), _)| **kind == Kind::UserDefined)
            .map(|((token, _), id)| (token.clone(), id))
            .collect();
        let whole = by_length(whole);
        Self { tokens, kinds, merges, ids, ranks, whole }
    }

    /// Token ids of `text`; control tokens are never found in it.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for part in split_whole(text, &self.whole) {
            match part {
                Part::Whole(id) => ids.push(id),
                Part::Text(text) => {
                    for piece in pretokens(text) {
                        self.encode_piece(piece, &mut ids);
                    }
                }
            }
        }
        ids
    }

    fn encode_piece(&self, piece: &str, ids: &mut Vec<u32>) {
        let mut word = symbols(piece);
        loop {
            let best = word
                .windows(2)
                .filter_map(|pair| self.ranks.get(&(pair[0].clone(), pair[1].clone())).map(|rank| (*rank, pair)))
                .min_by_key(|(rank, _)| *rank);
            let Some((_, pair)) = best else { break };
            let (left, right) = (pair[0].clone(), pair[1].clone());
            merge(&mut word, &left, &right);
        }
        ids.extend(word.iter().filter_map(|symbol| self.ids.get(symbol)));
    }
}

fn merge(word: &mut Vec<String>, left: &str, right: &str) {
    let mut at = 0;
    while at + 1 < word.len() {
        if word[at] == left && word[at + 1] == right {
            let tail = word.remove(at + 1);
            word[at].push_str(&tail);
        }
        at += 1;
    }
}

enum Part<'a> {
    Text(&'a str),
    Whole(u32),
}

fn by_length(mut whole: Vec<(String, u32)>) -> Vec<(String, u32)> {
    whole.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
    whole
}

/// Cuts the `whole` pieces (longest first) out of `text`.
fn split_whole<'a>(text: &'a str, whole: &[(String, u32)]) -> Vec<Part<'a>> {
    let mut parts = vec![Part::Text(text)];
    for (piece, id) in whole {
        let mut next = Vec::with_capacity(parts.len());
        for part in parts {
            let Part::Text(mut text) = part else {
                next.push(part);
                continue;
            };
            while let Some(at) = text.find(piece.as_str()) {
                if at > 0 {
                    next.push(Part::Text(&text[..at]));
                }
                next.push(Part::Whole(*id));
                text = &text[at + piece.len()..];
            }
            if !text.is_empty() {
                next.push(Part::Text(text));
            }
        }
        parts = next;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Vocabulary {
        let texts = ["turn on the porch light", "turn off the porch light at 9:30"];
        Vocabulary::learn(texts.iter().map(|text| (*text).to_owned()), 360)
    }

    #[test]
    fn pretokens_split_digits_and_keep_one_sign_with_a_word() {
        assert_eq!(
            pretokens("it's 21:05 at the_den, ok?"),
            ["it", "'s", " ", "2", "1", ":", "0", "5", " at", " the", "_den", ",", " ok", "?"]
        );
        assert_eq!(pretokens("to 21°c, 5° now"), ["to", " ", "2", "1", "°c", ",", " ", "5", "°", " now"]);
    }

    #[test]
    fn answers_are_mostly_whole_pieces() {
        let ids = small().encode(r#"{"tool":"set_light","arguments":{"room":"porch","state":"on"}}"#);
        assert!(ids.len() <= 12, "{ids:?}");
    }

    #[test]
    fn learning_is_deterministic_and_encoding_loses_nothing() {
        let (a, b) = (small(), small());
        assert_eq!(a.tokens, b.tokens);
        let text = "turn on the kitchen light at 21:05";
        let joined: String = a.encode(text).iter().map(|id| a.tokens[*id as usize].as_str()).collect();
        assert_eq!(joined, text.replace(' ', "\u{120}"));
    }
}
