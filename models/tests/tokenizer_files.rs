//! Small vocabularies made for the purpose: rules one by one, and files that mean harm.

use farpost_firmware_tests::golden;
use farpost_models::gguf::{File, OwnedValue, Writer};
use farpost_models::tokenizer::{Special, Tokenizer, TokenizerError};
use proptest::prelude::*;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// A vocabulary and its metadata, to be changed before it is written.
#[derive(Clone)]
struct Draft {
    tokens: Vec<Vec<u8>>,
    kinds: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
    entries: Vec<(String, OwnedValue)>,
    without: Vec<&'static str>,
}

impl Draft {
    fn push(&mut self, text: &str, kind: i32, score: f32) -> u32 {
        self.tokens.push(text.as_bytes().to_vec());
        self.kinds.push(kind);
        self.scores.push(score);
        self.tokens.len() as u32 - 1
    }

    fn set(&mut self, key: &str, value: impl Into<OwnedValue>) {
        self.entries.retain(|(known, _)| known != key);
        self.entries.push((key.to_owned(), value.into()));
    }

    /// Unknown, BOS, EOS, 256 byte tokens, then some letters and words.
    fn sentence() -> Self {
        let mut draft = Self {
            tokens: Vec::new(),
            kinds: Vec::new(),
            scores: Vec::new(),
            merges: Vec::new(),
            entries: Vec::new(),
            without: vec!["tokenizer.ggml.merges"],
        };
        draft.push("<unk>", UNKNOWN, 0.0);
        draft.push("<s>", CONTROL, 0.0);
        draft.push("</s>", CONTROL, 0.0);
        for byte in 0..=255u8 {
            draft.push(&format!("<0x{byte:02X}>"), BYTE, 0.0);
        }
        for (text, score) in [
            ("▁", -1.0),
            ("a", -2.0),
            ("b", -3.0),
            ("ab", -4.0),
            ("▁a", -5.0),
            ("aa", -6.0),
            ("ba", -4.0),
            ("s>", -7.0),
        ] {
            draft.push(text, NORMAL, score);
        }
        draft.set("tokenizer.ggml.model", "llama");
        draft.set("tokenizer.ggml.bos_token_id", 1u32);
        draft.set("tokenizer.ggml.eos_token_id", 2u32);
        draft.set("tokenizer.ggml.unknown_token_id", 0u32);
        draft
    }

    /// All 256 bytes, one merge, two control tokens and a user-defined one.
    fn bytes() -> Self {
        let mut draft = Self::sentence();
        (draft.tokens, draft.kinds, draft.scores) = (Vec::new(), Vec::new(), Vec::new());
        for code in (0x21..0x7F).chain(0xA1..0xAD).chain(0xAE..0x100).chain(0x100..0x144) {
            draft.push(&char::from_u32(code).expect("a character").to_string(), NORMAL, 0.0);
        }
        draft.push("ab", NORMAL, 0.0);
        draft.push("<|im_start|>", CONTROL, 0.0);
        draft.push("<|im_end|>", CONTROL, 0.0);
        draft.push("<think>", USER_DEFINED, 0.0);
        draft.merges = vec!["a b".to_owned()];
        draft.without = vec!["tokenizer.ggml.scores"];
        draft.entries.clear();
        draft.set("tokenizer.ggml.model", "gpt2");
        draft.set("tokenizer.ggml.pre", "gpt-2");
        draft.set("tokenizer.ggml.eos_token_id", 257u32);
        draft
    }

    fn load(&self) -> Result<Tokenizer, TokenizerError> {
        let mut writer = Writer::new();
        writer.set("general.architecture", "llama");
        writer.set("tokenizer.ggml.tokens", OwnedValue::texts(&self.tokens));
        writer.set("tokenizer.ggml.token_type", &self.kinds[..]);
        writer.set("tokenizer.ggml.scores", &self.scores[..]);
        writer.set("tokenizer.ggml.merges", OwnedValue::texts(&self.merges));
        for (key, value) in &self.entries {
            writer.set(key, value.clone());
        }
        for key in &self.without {
            writer.remove(key);
        }
        let bytes = writer
            .start("test.gguf", Vec::new())
            .and_then(farpost_models::gguf::TensorData::finish)
            .expect("the draft can be written");
        let file = File::from_bytes("test.gguf", bytes.into()).expect("a good file, whatever its tokenizer");
        Tokenizer::from_metadata(file.metadata())
    }

    fn tokenizer(&self) -> Tokenizer {
        self.load().expect("a good tokenizer")
    }
}

fn texts(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| tokenizer.token_text(id)).collect()
}

/// The message with the place in the file left out, which it must name unless something is missing.
fn unplaced(error: &str) -> String {
    let Some((field, rest)) = error.split_once(" at byte ") else {
        assert!(error.contains("' is missing"), "{error}");
        return error.to_owned();
    };
    let (offset, problem) = rest.split_once(": ").expect(error);
    assert!(offset.replace(',', "").parse::<u64>().is_ok_and(|offset| offset >= 24), "{error}");
    format!("{field} at: {problem}")
}

#[test]
fn every_defect_is_refused_by_name() {
    type Change = fn(&mut Draft);
    let sentence: &[(&str, Change)] = &[
        ("'tokenizer.ggml.model' is missing", |d| d.without.push("tokenizer.ggml.model")),
        ("'tokenizer.ggml.model' at: is 'rwkv', supported are gpt2", |d| d.set("tokenizer.ggml.model", "rwkv")),
        ("'tokenizer.ggml.model'", |d| d.set("tokenizer.ggml.model", 7u32)),
        ("'tokenizer.ggml.tokens' at: has 0 entries", |d| d.tokens.clear()),
        ("'tokenizer.ggml.tokens' is missing", |d| d.without.push("tokenizer.ggml.tokens")),
        ("'tokenizer.ggml.tokens'", |d| d.set("tokenizer.ggml.tokens", &[1u32][..])),
        ("'tokenizer.ggml.token_type' at: has 2 entries, 267 were expected", |d| d.kinds.truncate(2)),
        ("'tokenizer.ggml.token_type' entry 5 at: the token has type 9, 0 to 6 were expected", |d| d.kinds[5] = 9),
        ("entry 5 at: the token has type -1", |d| d.kinds[5] = -1),
        ("'tokenizer.ggml.scores' is missing", |d| d.without.push("tokenizer.ggml.scores")),
        ("'tokenizer.ggml.scores' at: has 3 entries, 267 were expected", |d| d.scores.truncate(3)),
        ("'tokenizer.ggml.scores' entry 260 at: the token has a score that is not a number", |d| {
            d.scores[260] = f32::NAN;
        }),
        ("'tokenizer.ggml.scores'", |d| d.set("tokenizer.ggml.scores", &["1.0"][..])),
        ("'tokenizer.ggml.tokens' entry 3 at: the byte token is '<0x-1>', <0x00> to <0xFF> were expected", |d| {
            d.tokens[3] = b"<0x-1>".to_vec();
        }),
        ("entry 3 at: the byte token is '<0xZZ>'", |d| d.tokens[3] = b"<0xZZ>".to_vec()),
        ("entry 3 at: the byte token is ''", |d| d.tokens[3] = Vec::new()),
        ("entry 3 at: the byte token is '\u{fffd}", |d| d.tokens[3] = vec![0xFF; 60]),
        ("'tokenizer.ggml.tokens' entry 262 at: the token has 100000 bytes, at most 16384", |d| {
            d.tokens[262] = vec![b'x'; 100_000];
        }),
        ("is 267, the vocabulary has 267 tokens", |d| d.set("tokenizer.ggml.bos_token_id", 267u32)),
        ("is 4,000,000,000, the vocabulary has 267 tokens", |d| d.set("tokenizer.ggml.eos_token_id", 4_000_000_000u32)),
        ("'tokenizer.ggml.eos_token_id'", |d| d.set("tokenizer.ggml.eos_token_id", "two")),
        ("'tokenizer.ggml.add_bos_token'", |d| d.set("tokenizer.ggml.add_bos_token", 1u32)),
        ("'tokenizer.ggml.tokens' at: there is no token for byte 0x40 and no tokenizer.ggml.unknown_token_id", |d| {
            d.without.push("tokenizer.ggml.unknown_token_id");
            (d.tokens[3 + 0x40], d.kinds[3 + 0x40]) = (b"nothing".to_vec(), NORMAL);
        }),
    ];
    let bytes: &[(&str, Change)] = &[
        ("'tokenizer.ggml.pre' is missing, a byte-level vocabulary needs one of gpt-2, ", |d| {
            d.without.push("tokenizer.ggml.pre");
        }),
        ("'tokenizer.ggml.pre' at: is 'martian', supported pre-tokenizers are gpt-2, ", |d| {
            d.set("tokenizer.ggml.pre", "martian");
        }),
        ("'tokenizer.ggml.pre' at: is 'default'", |d| d.set("tokenizer.ggml.pre", "default")),
        ("'tokenizer.ggml.merges' is missing", |d| d.without.push("tokenizer.ggml.merges")),
        ("'tokenizer.ggml.merges' entry 0 at: is 'ab', two tokens with a space", |d| d.merges[0] = "ab".to_owned()),
        ("entry 0 at: is ''", |d| d.merges[0] = String::new()),
        ("entry 0 at: is 'a '", |d| d.merges[0] = "a ".to_owned()),
        ("'tokenizer.ggml.merges' entry 1 at: 'ab xyz' names 'xyz', which is not a token", |d| {
            d.merges.push("ab xyz".to_owned());
        }),
        ("entry 1 at: 'b a' names 'ba', which is not a token", |d| d.merges.push("b a".to_owned())),
        ("entry 1 at: 'a 漢' names '漢', which is not a token", |d| d.merges.push("a 漢".to_owned())),
        ("there is no token for byte 0x21", |d| d.tokens[0] = b"!!".to_vec()),
    ];
    let drafts = [(Draft::sentence(), sentence), (Draft::bytes(), bytes)];
    for (draft, defects) in drafts {
        draft.tokenizer();
        for (expected, change) in defects {
            let mut hostile = draft.clone();
            change(&mut hostile);
            let error = unplaced(&hostile.load().expect_err(expected).to_string());
            assert!(
                error.starts_with("test.gguf") && error.contains(expected),
                "found    {error}\nexpected {expected}"
            );
        }
    }
}

#[test]
fn an_id_outside_the_vocabulary_is_told_with_its_place_in_the_file() {
    let mut draft = Draft::sentence();
    draft.set("tokenizer.ggml.bos_token_id", 1_234u32);
    let error = draft.load().unwrap_err().to_string();
    let (key, place) = error.split_once(" at byte ").unwrap();
    assert!(key.ends_with(": metadata key 'tokenizer.ggml.bos_token_id'"), "{error}");
    let (offset, problem) = place.split_once(": ").unwrap();
    assert!(offset.replace(',', "").parse::<u64>().is_ok_and(|offset| offset >= 24), "{error}");
    assert_eq!(problem, "is 1,234, the vocabulary has 267 tokens");
}

#[test]
fn a_wordpiece_vocabulary_needs_an_unknown_token() {
    let mut draft = Draft::sentence();
    draft.kinds.fill(NORMAL);
    draft.set("tokenizer.ggml.model", "bert");
    draft.without.push("tokenizer.ggml.unknown_token_id");
    assert!(matches!(draft.load(), Err(TokenizerError::NoUnknown { .. })));
}

#[test]
fn merges_go_by_score_and_leftmost_on_ties() {
    let tokenizer = Draft::sentence().tokenizer();
    let of = |text: &str| texts(&tokenizer, &tokenizer.encode(text, Special::AsText));
    // "ab" and "ba" score alike: of "aba" the left pair goes first; both beat " a".
    assert_eq!(of("aba"), [" ", "ab", "a"]);
    assert_eq!(of("aa"), [" a", "a"]);
    assert_eq!(of("baa"), [" ", "ba", "a"]);
    assert_eq!(of(""), [""; 0]);
}

#[test]
fn what_the_vocabulary_lacks_becomes_bytes() {
    let tokenizer = Draft::sentence().tokenizer();
    let ids = tokenizer.encode("a§", Special::AsText);
    assert_eq!(ids, [263, 3 + 0xC2, 3 + 0xA7]);
    assert_eq!(tokenizer.decode(&ids, false), "a§".as_bytes());
}

#[test]
fn a_missing_byte_becomes_the_unknown_token() {
    let mut draft = Draft::sentence();
    (draft.tokens[3 + 0x40], draft.kinds[3 + 0x40]) = (b"nothing".to_vec(), NORMAL);
    assert_eq!(draft.tokenizer().encode("@", Special::AsText), [259, 0]);
}

#[test]
fn the_space_prefix_is_there_only_if_asked_for() {
    let mut draft = Draft::sentence();
    draft.set("tokenizer.ggml.add_space_prefix", false);
    let tokenizer = draft.tokenizer();
    assert_eq!(texts(&tokenizer, &tokenizer.encode("a b", Special::AsText)), ["a", " ", "b"]);
    assert_eq!(tokenizer.decode(&[259, 260], false), b" a");

    let tokenizer = Draft::sentence().tokenizer();
    assert_eq!(tokenizer.decode(&[259, 260], false), b"a");
    assert_eq!(tokenizer.decode(&[1, 259, 260], true), b"<s>a");
    let mut after_text = tokenizer.stream_after(&[1, 260]);
    assert_eq!(after_text.push(263), " a");
    let mut after_control = tokenizer.stream_after(&[1]);
    assert_eq!(after_control.push(263), "a");
}

#[test]
fn control_tokens_in_text_from_outside_are_text() {
    let tokenizer = Draft::bytes().tokenizer();
    let id = |name: &str| tokenizer.special_id(name).expect("it is in the vocabulary");
    let (start, end, think) = (id("<|im_start|>"), id("<|im_end|>"), id("<think>"));
    let text = "<|im_start|>ab<think><|im_end|>";
    let parsed = tokenizer.encode(text, Special::Parse);
    assert_eq!(parsed, [start, 256, think, end]);
    let plain = tokenizer.encode(text, Special::AsText);
    assert!(plain.contains(&think) && !plain.contains(&start) && !plain.contains(&end));
    assert_eq!(tokenizer.decode(&plain, false), text.as_bytes());
    assert_eq!(tokenizer.decode(&parsed, false), b"ab<think>");
    assert_eq!(tokenizer.decode(&parsed, true), text.as_bytes());
    // Trusted up to the middle of the last one.
    let part = tokenizer.encode_trusting(text, std::slice::from_ref(&(0..text.len() - 3)));
    assert!(part.contains(&start) && !part.contains(&end));
}

#[test]
fn sentence_pieces_never_merge_into_a_control_token() {
    // "s>" is a token, and "<" + "s>" would score best of all.
    let tokenizer = Draft::sentence().tokenizer();
    let ids = tokenizer.encode("<s>", Special::AsText);
    assert_eq!(texts(&tokenizer, &ids), [" ", "<", "s>"]);
    assert_eq!(tokenizer.encode("<s>", Special::Parse), [1]);
}

#[test]
fn stop_tokens_are_known_by_key_and_by_name() {
    let mut draft = Draft::bytes();
    draft.push("</s>", NORMAL, 0.0);
    let tokenizer = draft.tokenizer();
    let end = tokenizer.special_id("<|im_end|>").expect("it is there");
    assert_eq!(tokenizer.stop_ids(), [257, end]);
    assert!(tokenizer.is_stop(end) && !tokenizer.is_stop(0) && !tokenizer.is_stop(u32::MAX));
    assert_eq!(tokenizer.eot(), Some(end));
    // Struck-out text of HTML stops nothing and stays visible, yet a template may write it as one token.
    let strike = tokenizer.n_vocab() as u32 - 1;
    assert_eq!(tokenizer.decode(&[strike], false), b"</s>");
    assert_eq!(tokenizer.encode("</s>", Special::Parse), [strike]);
    assert_eq!(tokenizer.encode("</s>", Special::AsText).len(), 4);
}

#[test]
fn an_end_of_turn_that_a_file_types_as_text_is_a_control_token() {
    let mut draft = Draft::bytes();
    let id = draft.push("<end_of_turn>", USER_DEFINED, 0.0);
    let tokenizer = draft.tokenizer();
    assert!(tokenizer.is_stop(id));
    assert!(!tokenizer.encode("<end_of_turn>", Special::AsText).contains(&id));
    assert_eq!(tokenizer.decode(&[id], false), b"");
}

#[test]
fn prompts_begin_and_end_as_the_file_asks() {
    let mut draft = Draft::sentence();
    assert_eq!(draft.tokenizer().encode_prompt("a", Special::AsText), [1, 263]);
    draft.set("tokenizer.ggml.add_bos_token", false);
    draft.set("tokenizer.ggml.add_eos_token", true);
    assert_eq!(draft.tokenizer().encode_prompt("a", Special::AsText), [263, 2]);
    let tokenizer = Draft::bytes().tokenizer();
    assert!(!tokenizer.adds_bos() && tokenizer.bos().is_none());
    assert_eq!(tokenizer.encode_prompt("ab", Special::AsText), [256]);
}

#[test]
fn ids_outside_the_vocabulary_are_nothing() {
    let tokenizer = Draft::bytes().tokenizer();
    assert_eq!(tokenizer.decode(&[u32::MAX, 260, 100_000], true), b"");
    assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
}

#[test]
fn characters_are_held_back_until_they_are_whole() {
    let tokenizer = Draft::bytes().tokenizer();
    let ids = tokenizer.encode("é€🚀", Special::AsText);
    assert_eq!(ids.len(), 9);
    let mut stream = tokenizer.stream();
    let pushed: Vec<String> = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
    assert_eq!(pushed, ["", "é", "", "", "€", "", "", "", "🚀"]);
    assert_eq!(stream.finish(), "");

    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(ids[5]), "");
    assert!(stream.is_pending());
    assert_eq!(stream.push(256), "\u{fffd}ab");
    assert_eq!(stream.push(ids[5]), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

/// Work, not time, is bounded, by a test beside the merge loop; here it must only end.
#[test]
fn a_megabyte_of_one_letter_is_encoded() {
    for draft in [Draft::sentence(), Draft::bytes()] {
        let tokenizer = draft.tokenizer();
        for letter in ["a", " ", "\n", "é", "<", "漢"] {
            let text = letter.repeat((1 << 20) / letter.len());
            let ids = tokenizer.encode(&text, Special::Parse);
            assert_eq!(tokenizer.decode(&ids, true), text.as_bytes());
        }
    }
}

fn fixture(name: &str) -> Tokenizer {
    let file = File::open(&golden(&format!("vocab/{name}.gguf"))).expect("a fixture is a good file");
    Tokenizer::from_metadata(file.metadata()).expect("a fixture's tokenizer is supported")
}

fn any_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        4 => "[ -~]{0,12}",
        2 => "\\PC{0,6}",
        1 => any::<String>().prop_map(|text| text.chars().take(8).collect()),
        1 => prop::sample::select(vec!["<|im_end|>", "<|endoftext|>", "</s>", "<s>", "\u{0}", "▁", "é", "\r\n"])
            .prop_map(String::from),
    ];
    prop::collection::vec(word, 0..8).prop_map(|words| words.concat())
}

#[test]
fn any_text_comes_back_from_its_ids() {
    for name in ["gpt-2", "qwen2", "deepseek-coder", "llama-spm"] {
        let tokenizer = fixture(name);
        let is_sentence = name == "llama-spm";
        proptest!(ProptestConfig::with_cases(300), |(text in any_text())| {
            let ids = tokenizer.encode(&text, Special::AsText);
            prop_assert!(ids.iter().all(|&id| !tokenizer.kind(id).is_special()));
            let expected = if is_sentence { text.replace('▁', " ") } else { text.clone() };
            prop_assert_eq!(String::from_utf8(tokenizer.decode(&ids, false)).expect("whole"), expected);
            if !is_sentence {
                let parsed = tokenizer.encode(&text, Special::Parse);
                prop_assert_eq!(String::from_utf8(tokenizer.decode(&parsed, true)).expect("whole"), text);
            }
        });
    }
}

#[test]
fn any_ids_stream_as_they_decode_at_once() {
    for name in ["gpt-2", "llama-spm"] {
        let tokenizer = fixture(name);
        let most = tokenizer.n_vocab() as u32 + 3;
        // Few ids, so that bytes of broken characters meet often.
        let id = prop_oneof![0..most, 0..300u32, 90..260u32];
        proptest!(ProptestConfig::with_cases(500), |(ids in prop::collection::vec(id, 0..40), special: bool)| {
            let mut stream = tokenizer.stream().with_special(special);
            let mut text: String = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
            text.push_str(&stream.finish());
            let whole = tokenizer.decode(&ids, special);
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        });
    }
}
