//! A made-up byte-level BPE vocabulary of any size: 256 byte tokens, merges that build on one another, six control
//! tokens. Every merge joins two tokens that exist before it, so the whole is what a trained tokenizer looks like.

use std::collections::HashSet;

use super::random::Random;
use crate::gguf::OwnedValue;

/// llama.cpp looks up the first four by name in models called Phi 3, and refuses files without them.
const CONTROL: [&str; 6] = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Longest token in characters.
const LONGEST: usize = 14;
const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Metadata of a vocabulary of `size` tokens (at least 262).
pub(super) fn generated(size: usize) -> Vec<(String, OwnedValue)> {
    let (mut tokens, merges) = merged(size.saturating_sub(CONTROL.len()));
    let mut kinds = vec![1_i32; tokens.len()];
    tokens.extend(CONTROL.map(str::to_owned));
    kinds.extend([3; CONTROL.len()]);
    let id = |name: &str| {
        let from_end = CONTROL.iter().rev().position(|&control| control == name).expect("it is one of them");
        OwnedValue::from((tokens.len() - 1 - from_end) as u32)
    };
    let named = |name: &str| format!("tokenizer.ggml.{name}");
    vec![
        (named("model"), "gpt2".into()),
        (named("pre"), "gpt-2".into()),
        (named("tokens"), OwnedValue::texts(&tokens)),
        (named("token_type"), OwnedValue::from(&kinds[..])),
        (named("merges"), OwnedValue::texts(&merges)),
        (named("bos_token_id"), id("<s>")),
        (named("eos_token_id"), id("</s>")),
        (named("eot_token_id"), id("<|im_end|>")),
        (named("add_bos_token"), false.into()),
        ("tokenizer.chat_template".to_owned(), TEMPLATE.into()),
    ]
}

/// The printable character that stands for a byte in byte-level vocabularies.
fn symbol(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|&byte| !is_printable(byte)).count() as u32;
    char::from_u32(256 + hidden_before).expect("256 to 323 are characters")
}

/// `size` tokens and the merges that make all but the first 256 of them.
fn merged(size: usize) -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> = (0..=255).map(|byte| symbol(byte).to_string()).collect();
    let mut seen: HashSet<String> = tokens.iter().cloned().collect();
    let mut merges = Vec::with_capacity(size.saturating_sub(tokens.len()));
    let space = symbol(b' ');
    // Frequent letters come often, as in English; every token of letters may grow, a leading space may start one.
    let mut tails: Vec<String> = "eeeetttaaaooiinnsshrrdlucmwfygpbvkxjqz".chars().map(String::from).collect();
    let mut heads = tails.clone();
    heads.extend(std::iter::repeat_n(space.to_string(), 6));
    let mut random = Random::new(size as u64);
    while tokens.len() < size {
        let (head, tail) = (&heads[random.below(heads.len())], &tails[random.below(tails.len())]);
        let joined = format!("{head}{tail}");
        if joined.chars().count() > LONGEST || seen.contains(&joined) {
            continue;
        }
        merges.push(format!("{head} {tail}"));
        tokens.push(joined.clone());
        // Words grow by short pieces, which keeps most of them short.
        if joined.chars().count() <= 3 && !joined.starts_with(space) {
            tails.push(joined.clone());
        }
        heads.push(joined.clone());
        seen.insert(joined);
    }
    tokens.truncate(size);
    (tokens, merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_merge_joins_tokens_that_exist_before_it_into_the_next_token() {
        for size in [256, 300, 5_000, 60_000] {
            let (tokens, merges) = merged(size);
            assert_eq!((tokens.len(), merges.len()), (size, size - 256));
            let mut known: HashSet<&str> = tokens[..256].iter().map(String::as_str).collect();
            assert_eq!(known.len(), 256);
            for (merge, token) in merges.iter().zip(&tokens[256..]) {
                let (head, tail) = merge.split_once(' ').unwrap();
                assert!(known.contains(head) && known.contains(tail), "{merge}");
                assert_eq!(format!("{head}{tail}"), *token);
                assert!(known.insert(token), "{token} twice");
            }
        }
    }

    #[test]
    fn control_tokens_come_last_and_are_named_by_their_ids() {
        let metadata = generated(300);
        let value = |name: &str| &metadata.iter().find(|(key, _)| key.ends_with(name)).unwrap().1;
        assert_eq!(
            *value("ggml.tokens"),
            OwnedValue::texts([merged(294).0, CONTROL.map(str::to_owned).to_vec()].concat())
        );
        for (key, id) in [("bos_token_id", 295_u32), ("eos_token_id", 296), ("eot_token_id", 299)] {
            assert_eq!(*value(key), OwnedValue::from(id), "{key}");
        }
    }

    #[test]
    fn bytes_stand_as_the_characters_byte_level_vocabularies_use() {
        assert_eq!([b' ', b'\n', b'A', 0xAD, 0x00].map(symbol), ['Ġ', 'Ċ', 'A', 'Ń', 'Ā']);
    }
}
