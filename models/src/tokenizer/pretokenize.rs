//! Cuts text into the words that byte-level BPE merges within: one scanner per published regular expression.
//!
//! The expressions stand above the scanners. They are written out by hand because the words of a text are most of what
//! a tokenizer looks at; that they agree is a property test (`pretokenize_tests.rs`). A name that is not in the table
//! is refused and never guessed: a wrong pre-tokenizer gives plausible, slightly wrong ids.

use super::class::{Class, class};

/// How a vocabulary's words are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Gpt2,
    /// Single digits first, then as GPT-2.
    Digits,
    /// Llama 3 and its kin: up to this many digits together, marks as letters or not.
    Llama3 {
        digits: usize,
        marks: bool,
    },
    /// As the former, with words cut where case changes.
    Cased {
        digits: usize,
        contractions: bool,
    },
    DeepseekCoder,
}

/// A pre-tokenizer and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pre {
    scheme: Scheme,
    ignores_merges: bool,
    adds_bos: bool,
    tidies: bool,
}

impl Pre {
    const fn new(scheme: Scheme) -> Self {
        Self { scheme, ignores_merges: false, adds_bos: false, tidies: false }
    }

    const fn tidy(self) -> Self {
        Self { tidies: true, ..self }
    }

    const fn whole_words(self) -> Self {
        Self { ignores_merges: true, ..self }
    }

    const fn with_bos(self) -> Self {
        Self { adds_bos: true, ..self }
    }
}

const GPT2: Pre = Pre::new(Scheme::Gpt2);
const DIGITS: Pre = Pre::new(Scheme::Digits);
const LLAMA3: Pre = Pre::new(Scheme::Llama3 { digits: 3, marks: false });
const QWEN2: Pre = Pre::new(Scheme::Llama3 { digits: 1, marks: false });
const QWEN35: Pre = Pre::new(Scheme::Llama3 { digits: 1, marks: true });
const GPT4O: Pre = Pre::new(Scheme::Cased { digits: 3, contractions: true });
const TEKKEN: Pre = Pre::new(Scheme::Cased { digits: 1, contractions: false });

/// Names in files, in the order in which messages list them.
const NAMES: &[(&str, Pre)] = &[
    ("gpt-2", GPT2.tidy()),
    ("phi-2", GPT2.tidy()),
    ("mpt", GPT2.tidy()),
    ("olmo", GPT2.tidy()),
    ("jais", GPT2.tidy()),
    ("exaone4", GPT2.tidy()),
    ("trillion", GPT2),
    ("granite-docling", GPT2),
    ("smollm", DIGITS),
    ("starcoder", DIGITS.tidy()),
    ("refact", DIGITS.tidy()),
    ("command-r", DIGITS),
    ("codeshell", DIGITS.tidy()),
    ("exaone", DIGITS.tidy()),
    ("minerva-7b", DIGITS.tidy()),
    ("llama-bpe", LLAMA3.whole_words().with_bos().tidy()),
    ("llama3", LLAMA3.whole_words().with_bos().tidy()),
    ("llama-v3", LLAMA3.whole_words().with_bos().tidy()),
    ("falcon3", LLAMA3.whole_words().with_bos().tidy()),
    ("falcon-h1", LLAMA3.whole_words().with_bos().tidy()),
    ("pixtral", LLAMA3.whole_words().with_bos().tidy()),
    ("lfm2", LLAMA3.whole_words().with_bos().tidy()),
    ("dbrx", LLAMA3.tidy()),
    ("smaug-bpe", LLAMA3.tidy()),
    ("glm4", LLAMA3.tidy()),
    ("chatglm-bpe", LLAMA3.tidy()),
    ("qwen2", QWEN2),
    ("deepseek-r1-qwen", QWEN2),
    ("megrez", QWEN2.tidy()),
    ("stablelm2", QWEN2.tidy()),
    ("hunyuan", QWEN2),
    ("grok-2", QWEN2),
    ("qwen35", QWEN35),
    ("gpt-4o", GPT4O),
    ("llama4", GPT4O),
    ("tekken", TEKKEN.whole_words().with_bos()),
    ("deepseek-coder", Pre::new(Scheme::DeepseekCoder)),
];

/// Names of all pre-tokenizers, for messages and documentation.
pub(super) fn supported() -> String {
    NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

impl Pre {
    /// The pre-tokenizer of this name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, pre)| *pre)
    }

    /// True if a word that is a token is taken without merging.
    pub(super) fn ignores_merges(&self) -> bool {
        self.ignores_merges
    }

    /// True if texts begin with BOS unless the file says otherwise.
    pub(super) fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// True if the reference tidies spaces before punctuation when it turns ids into text.
    pub(super) fn tidies(&self) -> bool {
        self.tidies
    }

    /// Gives all words of `text` in order to `word`. Joined they are the text.
    pub(super) fn split(&self, text: &str, word: &mut impl FnMut(&str)) {
        match self.scheme {
            Scheme::Gpt2 => each(text, gpt2, word),
            Scheme::Digits => {
                matches(text, number, &mut |piece, _| each(piece, gpt2, word));
            }
            Scheme::Llama3 { digits, marks } => each(text, |rest| llama3(rest, digits, marks), word),
            Scheme::Cased { digits, contractions } => each(text, |rest| cased(rest, digits, contractions), word),
            Scheme::DeepseekCoder => deepseek_coder(text, word),
        }
    }
}

/// Applies a scanner, which gives the length of the word that a text begins with, until the text is used up.
fn each(text: &str, scan: impl Fn(&str) -> usize, word: &mut impl FnMut(&str)) {
    let mut rest = text;
    while !rest.is_empty() {
        // No scanner gives 0; if one did, this would still end.
        let (head, tail) = rest.split_at(scan(rest).max(first(rest).len_utf8()));
        word(head);
        rest = tail;
    }
}

/// Cuts `text` into the matches of `scan` (true), which gives the length of a match at the start of a text or 0, and
/// what lies between (false).
fn matches(text: &str, scan: impl Fn(&str) -> usize, piece: &mut impl FnMut(&str, bool)) {
    let (mut start, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        let len = scan(rest);
        if len == 0 {
            at += first(rest).len_utf8();
            continue;
        }
        if start < at {
            piece(&text[start..at], false);
        }
        piece(&rest[..len], true);
        at += len;
        start = at;
    }
    if start < text.len() {
        piece(&text[start..], false);
    }
}

/// The first character; callers have made sure there is one.
#[inline]
fn first(text: &str) -> char {
    text.chars().next().unwrap_or('\0')
}

/// Length of the longest start of `text` whose characters are all so.
#[inline]
fn run(text: &str, is: impl Fn(char) -> bool) -> usize {
    text.char_indices().find(|&(_, c)| !is(c)).map_or(text.len(), |(at, _)| at)
}

#[inline]
fn run_of(text: &str, classes: Class) -> usize {
    run(text, |c| class(c).is(classes))
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

/// `'s|'t|'re|'ve|'m|'ll|'d`, in lower case only or in any.
fn contraction(text: &str, any_case: bool) -> usize {
    let Some(b"'") = text.as_bytes().get(..1) else { return 0 };
    let at = |index: usize| {
        let byte = text.as_bytes().get(index).copied().unwrap_or(0);
        if any_case { byte.to_ascii_lowercase() } else { byte }
    };
    if any_case && text.starts_with("'ſ") {
        // The long s is an s in another case.
        return "'ſ".len();
    }
    match (at(1), at(2)) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r' | b'v', b'e') | (b'l', b'l') => 3,
        _ => 0,
    }
}

/// `\s+(?!\S)|\s+` for a text that begins with white space: what follows keeps one of several.
fn spaces(text: &str) -> usize {
    let len = run_of(text, Class::SPACE);
    if len == text.len() {
        return len;
    }
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if last < len { len - last } else { len }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+` for a text that begins with white space.
fn spaces_by_line(text: &str) -> usize {
    let blank = &text[..run_of(text, Class::SPACE)];
    blank.rfind(is_newline).map_or_else(|| spaces(text), |at| at + 1)
}

const WORDS: Class = Class::LETTER.or(Class::NUMBER).or(Class::SPACE);

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn gpt2(text: &str) -> usize {
    let short = contraction(text, false);
    if short > 0 {
        return short;
    }
    let body = text.strip_prefix(' ').unwrap_or(text);
    let prefix = text.len() - body.len();
    let kind = body.chars().next().map_or(Class::SPACE, class);
    if kind.is(Class::LETTER) {
        prefix + run_of(body, Class::LETTER)
    } else if kind.is(Class::NUMBER) {
        prefix + run_of(body, Class::NUMBER)
    } else if kind.is(Class::SPACE) {
        spaces(text)
    } else {
        prefix + run(body, |c| !class(c).is(WORDS))
    }
}

/// `\p{N}`
fn number(text: &str) -> usize {
    let c = first(text);
    if class(c).is(Class::NUMBER) { c.len_utf8() } else { 0 }
}

/// Length of up to `most` numbers.
fn numbers(text: &str, most: usize) -> usize {
    text.chars().take(most).take_while(|&c| class(c).is(Class::NUMBER)).map(char::len_utf8).sum()
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|` and lines; with
/// `marks`, `[\p{L}\p{M}]+` for `\p{L}+` and no marks among the others.
fn llama3(text: &str, digits: usize, marks: bool) -> usize {
    let short = contraction(text, true);
    if short > 0 {
        return short;
    }
    let letters = if marks { Class::LETTER.or(Class::MARK) } else { Class::LETTER };
    let start = first(text);
    let kind = class(start);
    if kind.is(letters) {
        return run_of(text, letters);
    }
    if kind.is(Class::NUMBER) {
        return numbers(text, digits);
    }
    let after = &text[start.len_utf8()..];
    if !is_newline(start) {
        let word = run_of(after, letters);
        if word > 0 {
            return start.len_utf8() + word;
        }
    }
    let body = if start == ' ' { after } else { text };
    let others = run(body, |c| !class(c).is(WORDS.or(letters)));
    if others > 0 {
        let end = text.len() - body.len() + others;
        return end + run(&text[end..], is_newline);
    }
    spaces_by_line(text)
}

/// The expression of o200k, with U = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, L = `[\p{Ll}\p{Lm}\p{Lo}\p{M}]` and C the
/// contractions in any case, where there are such:
/// `[^\r\n\p{L}\p{N}]?U*L+C?|[^\r\n\p{L}\p{N}]?U+L*C?|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n/]*|` and lines.
fn cased(text: &str, digits: usize, contractions: bool) -> usize {
    let start = first(text);
    let kind = class(start);
    // The optional first character is taken if it can be; a mark may be it, or part of the word, or both in turn.
    let skip = if is_newline(start) || kind.is(Class::LETTER.or(Class::NUMBER)) { 0 } else { start.len_utf8() };
    for scan in [lower_word, upper_word] {
        for prefix in [skip, 0] {
            let word = scan(&text[prefix..]);
            if word > 0 {
                let end = prefix + word;
                return end + if contractions { contraction(&text[end..], true) } else { 0 };
            }
        }
    }
    if kind.is(Class::NUMBER) {
        return numbers(text, digits);
    }
    let body = text.strip_prefix(' ').unwrap_or(text);
    let others = run(body, |c| !class(c).is(WORDS));
    if others > 0 {
        let end = text.len() - body.len() + others;
        return end + run(&text[end..], |c| is_newline(c) || c == '/');
    }
    spaces_by_line(text)
}

/// `U*L+`: the longest start of U that leaves an L, then all L.
fn lower_word(text: &str) -> usize {
    let upper = run(text, |c| class(c).may_begin_cased());
    let lower = run(&text[upper..], |c| class(c).may_end_cased());
    if lower > 0 {
        return upper + lower;
    }
    let last = text[..upper].char_indices().rev().find(|&(_, c)| class(c).may_end_cased());
    last.map_or(0, |(at, c)| at + c.len_utf8())
}

/// `U+L*`
fn upper_word(text: &str) -> usize {
    let upper = run(text, |c| class(c).may_begin_cased());
    if upper == 0 { 0 } else { upper + run(&text[upper..], |c| class(c).may_end_cased()) }
}

/// Five cuts, one after the other: `[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`, `[一-龥ࠀ-一가-퟿]+`, `\p{N}`
fn deepseek_coder(text: &str, word: &mut impl FnMut(&str)) {
    let newline = |rest: &str| usize::from(rest.starts_with(is_newline));
    let east = |rest: &str| run(rest, |c| matches!(c, '\u{0800}'..='\u{9FA5}' | '\u{AC00}'..='\u{D7FF}'));
    matches(text, newline, &mut |piece, is_newline| {
        if is_newline {
            return word(piece);
        }
        matches(piece, |rest| spaced(rest, Class::LETTER), &mut |piece, _| {
            matches(piece, |rest| spaced(rest, Class::PUNCTUATION), &mut |piece, _| {
                matches(piece, east, &mut |piece, _| matches(piece, number, &mut |piece, _| word(piece)));
            });
        });
    });
}

/// `\s?` and one or more of `classes`.
fn spaced(text: &str, classes: Class) -> usize {
    let start = first(text);
    let prefix = if class(start).is(Class::SPACE) { start.len_utf8() } else { 0 };
    let len = run_of(&text[prefix..], classes);
    if len == 0 { 0 } else { prefix + len }
}
