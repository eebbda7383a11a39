//! The hand-written scanners against the published regular expressions, run by a regex engine.

use fancy_regex::Regex;
use proptest::prelude::*;

use super::pretokenize::Pre;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Cuts of a name, applied one after the other to what the former left.
const EXPRESSIONS: &[(&str, &[&str])] = &[
    ("gpt-2", &[GPT2]),
    ("smollm", &[r"\p{N}", GPT2]),
    ("llama-bpe", &[LLAMA3]),
    ("qwen2", &[QWEN2]),
    ("qwen35", &[QWEN35]),
    ("gpt-4o", &[GPT4O]),
    ("tekken", &[TEKKEN]),
    ("deepseek-coder", &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
];

/// Matches and what lies between them, each a piece; expression after expression.
fn by_expressions(expressions: &[Regex], text: &str) -> Vec<String> {
    let mut pieces = vec![text.to_owned()];
    for expression in expressions {
        let cut = |piece: &String| {
            let mut parts = Vec::new();
            let mut end = 0;
            for found in expression.find_iter(piece) {
                let found = found.expect("these expressions do not run away");
                parts.push(piece[end..found.start()].to_owned());
                parts.push(found.as_str().to_owned());
                end = found.end();
            }
            parts.push(piece[end..].to_owned());
            parts.retain(|part| !part.is_empty());
            parts
        };
        pieces = pieces.iter().flat_map(cut).collect();
    }
    pieces
}

fn by_scanner(name: &str, text: &str) -> Vec<String> {
    let pre = Pre::from_name(name).expect("a name of the table");
    let mut words = Vec::new();
    pre.split(text, &mut |word| words.push(word.to_owned()));
    words
}

/// Characters of all classes that the expressions tell apart, and the contractions.
fn pieces_of_text() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        6 => prop::char::range(' ', '~'),
        2 => prop::sample::select(vec![' ', ' ', '\n', '\r', '\t', '\u{a0}', '\u{2009}', '\u{3000}', '\u{85}', '\u{2028}']),
        2 => prop::sample::select(vec!['\'', '/', '’', '1', '7', 'ſ', 'K', 'ʰ', 'ª', 'ǅ', '½', '²', '٣', 'Ⅻ']),
        1 => prop::char::range('\u{c0}', '\u{24f}'),
        1 => prop::char::range('\u{300}', '\u{36f}'),
        1 => prop::char::range('\u{391}', '\u{3a1}'),
        1 => prop::char::range('\u{410}', '\u{44f}'),
        1 => prop::char::range('\u{904}', '\u{94d}'),
        1 => prop::char::range('\u{e01}', '\u{e3a}'),
        1 => prop::char::range('\u{3041}', '\u{3096}'),
        1 => prop::char::range('\u{4e00}', '\u{9fa5}'),
        1 => prop::char::range('\u{ac00}', '\u{d7a3}'),
        1 => prop::char::range('\u{1f600}', '\u{1f64f}'),
        1 => prop::char::range('\u{1d400}', '\u{1d433}'),
        1 => prop::sample::select(vec!['\0', '\u{7f}', '\u{200d}', '\u{feff}', '\u{e000}', '\u{fe0f}', '\u{10fffd}']),
    ];
    let short = prop::sample::select(vec!["'s", "'RE", "'lL", "'ve", " 'd", "  ", "\r\n", "ABC", "aBc", "...\n\n"]);
    let piece = prop_oneof![4 => character.prop_map(String::from), 1 => short.prop_map(String::from)];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn scanners_cut_where_the_published_expressions_cut(text in pieces_of_text()) {
        thread_local! {
            static COMPILED: Vec<(&'static str, Vec<Regex>)> = EXPRESSIONS
                .iter()
                .map(|(name, sources)| {
                    (*name, sources.iter().map(|source| Regex::new(source).expect("an expression")).collect())
                })
                .collect();
        }
        COMPILED.with(|compiled| {
            for (name, expressions) in compiled {
                prop_assert_eq!(by_scanner(name, &text), by_expressions(expressions, &text), "{}", name);
            }
            Ok(())
        })?;
    }
}

#[test]
fn a_name_that_is_not_in_the_table_is_unknown() {
    for name in ["", "default", "GPT-2", "qwen3", "llama"] {
        assert_eq!(Pre::from_name(name), None);
    }
}
