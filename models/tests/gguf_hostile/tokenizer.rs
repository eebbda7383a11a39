//! Metadata that is whole but no tokenizer, no chat template or no model that is known: told with field and place.

use farpost_models::families::{self, Options};
use farpost_models::template::ChatTemplate;
use farpost_models::tokenizer::Tokenizer;

use crate::defect::{grouped, open};
use crate::raw::{Place, Raw, array, text};

// Numbers of the keys that `vocabulary` adds.
const MODEL: usize = 5;
const TOKENS: usize = 6;
const KINDS: usize = 7;
const SCORES: usize = 8;
const MERGES: usize = 9;
const PRE: usize = 10;
const UNKNOWN: usize = 11;
const TEMPLATE: usize = 12;
const STOPS: usize = 13;

/// Bytes of an array before its first entry, and of a text before its first character.
const ARRAY: usize = 12;
const TEXT: usize = 8;

fn texts(entries: &[&[u8]]) -> Vec<u8> {
    array(8, entries.len() as u64, &entries.iter().flat_map(|entry| text(entry)).collect::<Vec<_>>())
}

fn integers(entries: &[i32]) -> Vec<u8> {
    array(5, entries.len() as u64, &entries.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<_>>())
}

fn floats(entries: &[f32]) -> Vec<u8> {
    array(6, entries.len() as u64, &entries.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<_>>())
}

/// Four tokens of one of the kinds of tokenizer, and a template.
fn vocabulary(model: &str) -> Raw {
    let mut raw = Raw::valid();
    raw.key("tokenizer.ggml.model", 8, &text(model.as_bytes()));
    raw.key("tokenizer.ggml.tokens", 9, &texts(&[b"<unk>", b"a", b"b", b"ab"]));
    raw.key("tokenizer.ggml.token_type", 9, &integers(&[2, 1, 1, 1]));
    raw.key("tokenizer.ggml.scores", 9, &floats(&[0.0, -1.0, -2.0, -3.0]));
    raw.key("tokenizer.ggml.merges", 9, &texts(&[b"a b"]));
    raw.key("tokenizer.ggml.pre", 8, &text(b"gpt-2"));
    raw.key("tokenizer.ggml.unknown_token_id", 4, &0_u32.to_le_bytes());
    raw.key("tokenizer.chat_template", 8, &text(b"{{ messages[0].content }}"));
    raw.key("tokenizer.ggml.eos_token_ids", 9, &integers(&[1]));
    raw
}

/// The message with which tokenizer, template or family refuse `raw`, and where the value of each key begins.
fn refusal(raw: &Raw) -> (String, Vec<(Place, usize)>) {
    let (bytes, places) = raw.build();
    let file = open(bytes).expect("the file is whole");
    let refuse = || match Tokenizer::from_metadata(file.metadata()) {
        Err(error) => error.to_string(),
        Ok(tokenizer) => match ChatTemplate::from_metadata(file.metadata(), &tokenizer) {
            Err(error) => error.to_string(),
            Ok(_) => families::build(&file, &Options::default()).unwrap_err().to_string(),
        },
    };
    (refuse(), places)
}

/// Kind of tokenizer, change, number of the key that is at fault and bytes of its value before what is, how the field
/// is called beyond its key, and what is wrong with it.
type Case = (&'static str, fn(&mut Raw), usize, usize, &'static str, &'static str);

#[test]
fn what_cannot_be_used_is_told_with_file_field_and_place() {
    let cases: &[Case] = &[
        ("gpt2", |_| {}, 0, TEXT, "", "architecture 'toy' is not supported, supported are llama, "),
        (
            "rwkv",
            |_| {},
            MODEL,
            TEXT,
            "",
            "is 'rwkv', supported are gpt2 (byte-level BPE), llama (SentencePiece BPE), ",
        ),
        (
            "gpt2",
            |r| r.keys[TOKENS].value = texts(&[]),
            TOKENS,
            ARRAY,
            "",
            "has 0 entries, 1 to 268435456 were expected",
        ),
        (
            "gpt2",
            |r| r.keys[TOKENS].value = floats(&[1.0]),
            TOKENS,
            ARRAY,
            "",
            "is an array of 1 f32, expected an array",
        ),
        (
            "gpt2",
            |r| r.keys[KINDS].value = integers(&[1]),
            KINDS,
            ARRAY,
            "",
            "has 1 entries, 4 were expected, one per token",
        ),
        (
            "gpt2",
            |r| r.keys[KINDS].value = floats(&[1.0; 4]),
            KINDS,
            ARRAY,
            "",
            "is an array of 4 f32, expected an array of",
        ),
        (
            "gpt2",
            |r| r.keys[KINDS].value = integers(&[2, 1, 9, 1]),
            KINDS,
            ARRAY + 8,
            " entry 2",
            "the token has type 9, ",
        ),
        ("llama", |r| r.keys[SCORES].value = floats(&[0.0; 5]), SCORES, ARRAY, "", "has 5 entries, 4 were expected"),
        (
            "llama",
            |r| r.keys[SCORES].value = floats(&[0.0, 0.0, 0.0, f32::NAN]),
            SCORES,
            ARRAY + 12,
            " entry 3",
            "the token has a score that is not a number",
        ),
        (
            "llama",
            |r| r.keys[KINDS].value = integers(&[2, 6, 1, 1]),
            TOKENS,
            ARRAY + TEXT + 5 + TEXT,
            " entry 1",
            "the byte token is 'a', <0x00> to <0xFF> were expected",
        ),
        (
            "llama",
            |r| r.keys[TOKENS].value = texts(&[b"<unk>", b"a", b"b", &[b'x'; 16_385]]),
            TOKENS,
            ARRAY + 3 * TEXT + 7 + TEXT,
            " entry 3",
            "the token has 16385 bytes, at most 16384 were expected",
        ),
        (
            "gpt2",
            |r| r.keys[MERGES].value = texts(&[b"ab"]),
            MERGES,
            ARRAY + TEXT,
            " entry 0",
            "is 'ab', two tokens with a space between them were expected",
        ),
        (
            "gpt2",
            |r| r.keys[MERGES].value = texts(&[b"a b", b"b a"]),
            MERGES,
            ARRAY + TEXT + 3 + TEXT,
            " entry 1",
            "'b a' names 'ba', which is not a token",
        ),
        (
            "gpt2",
            |r| r.keys[MERGES].value = integers(&[1]),
            MERGES,
            ARRAY,
            "",
            "is an array of 1 i32, expected an array of",
        ),
        (
            "gpt2",
            |r| r.keys[PRE].value = text(b"martian"),
            PRE,
            TEXT,
            "",
            "is 'martian', supported pre-tokenizers are ",
        ),
        ("gpt2", |r| r.keys[UNKNOWN].value = vec![9, 0, 0, 0], UNKNOWN, 0, "", "is 9, the vocabulary has 4 tokens"),
        (
            "gpt2",
            |r| r.keys[UNKNOWN].name = b"toy.id".to_vec(),
            TOKENS,
            ARRAY,
            "",
            "there is no token for byte 0x00 and no ",
        ),
        ("llama", |r| r.keys[UNKNOWN].name = b"toy.id".to_vec(), TOKENS, ARRAY, "", "there is no token for byte 0x00"),
        (
            "bert",
            |r| r.keys[UNKNOWN].name = b"toy.id".to_vec(),
            TOKENS,
            ARRAY,
            "",
            "a WordPiece vocabulary needs a token",
        ),
        (
            "gpt2",
            |r| r.keys[STOPS].value = integers(&[1, 4]),
            STOPS,
            ARRAY + 4,
            " entry 1",
            "is 4, the vocabulary has 4 tokens",
        ),
        (
            "gpt2",
            |r| r.keys[STOPS].value = floats(&[1.0]),
            STOPS,
            ARRAY,
            "",
            "is an array of 1 f32, expected an array of",
        ),
        ("bert", |r| r.keys[TEMPLATE].value = text(b"{% if %}"), TEMPLATE, TEXT, "", "is no chat template: "),
    ];
    for (number, (model, change, key, after, entry, problem)) in cases.iter().enumerate() {
        let mut raw = vocabulary(model);
        change(&mut raw);
        let (error, places) = refusal(&raw);
        let value = places.iter().find(|(place, _)| *place == Place::KeyValue(*key)).unwrap().1;
        let name = String::from_utf8(raw.keys[*key].name.clone()).unwrap();
        let expected =
            format!("hostile.gguf: metadata key '{name}'{entry} at byte {}: {problem}", grouped(value + after));
        assert!(error.starts_with(&expected), "case {number}\nfound    {error}\nexpected {expected}");
    }
}
