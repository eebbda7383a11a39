//! Vocabularies and chat templates out of damaged files: refused or usable, in bounded memory.
//!
//! Single defects of tokenizers, each with its message, stand in `tokenizer_files.rs`.

use std::cell::Cell;

use farpost_models::gguf::{File, OwnedValue, TensorData, Writer};
use farpost_models::template::{ChatTemplate, CivilTime, RenderInput};
use farpost_models::tokenizer::{Special, Tokenizer};
use proptest::prelude::*;
use serde_json::json;

use crate::edit::{any_edits, bytes_changed, edited};
use crate::memory::peak_of;

/// Building a tokenizer may take this many times its file's size: a token of one letter has 17 bytes in the file, a
/// place in every table in memory.
const MOST_TIMES: usize = 40;
/// And this many bytes: tables that every tokenizer has.
const MOST_MORE: usize = 1 << 20;

const TEXT: &str = " Héllo, wörld: 12345 <s></s><unk><|im_end|>\r\n\tab ba 漢字 🚀 don't ";

const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role | upper }}\n\
    {{ message['content'].strip() }}<|im_end|>\n{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What the three kinds of tokenizer have in common; `tokens` with their types and scores.
fn written(model: &str, pre: Option<&str>, tokens: &[(String, i32, f32)], merges: &[&str]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").set("general.name", "Phi-3 toy").set("tokenizer.ggml.model", model);
    if let Some(pre) = pre {
        writer.set("tokenizer.ggml.pre", pre);
    }
    writer.set("tokenizer.ggml.tokens", OwnedValue::texts(tokens.iter().map(|token| &token.0)));
    writer.set("tokenizer.ggml.token_type", &tokens.iter().map(|token| token.1).collect::<Vec<_>>()[..]);
    writer.set("tokenizer.ggml.scores", &tokens.iter().map(|token| token.2).collect::<Vec<_>>()[..]);
    writer.set("tokenizer.ggml.merges", merges);
    writer.set("tokenizer.ggml.bos_token_id", 1_u32).set("tokenizer.ggml.eos_token_id", 2_u32);
    writer.set("tokenizer.ggml.unknown_token_id", 0_u32).set("tokenizer.ggml.add_bos_token", true);
    writer.set("tokenizer.chat_template", TEMPLATE);
    writer.start("vocabulary.gguf", Vec::new()).and_then(TensorData::finish).unwrap()
}

/// One small file of each kind.
fn vocabularies() -> [Vec<u8>; 3] {
    let special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<think>", 4)];
    let special = special.map(|(text, kind)| (text.to_owned(), kind, 0.0));
    let with = |more: Vec<(String, i32, f32)>| [&special[..], &more].concat();

    let codes = (0x21..0x7F).chain(0xA1..0xAD).chain(0xAE..0x144);
    let mut bytes: Vec<_> = codes.map(|code| (char::from_u32(code).unwrap().to_string(), 1, 0.0)).collect();
    bytes.extend(["ab", "Ġa", "Ġab", "ll", "llo"].map(|text| (text.to_owned(), 1, 0.0)));

    let mut pieces: Vec<_> = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), 6, 0.0)).collect();
    let words = ["▁", "a", "b", "ab", "▁ab", "l", "ll", "o", "llo", "▁H", "d"];
    pieces.extend(words.iter().enumerate().map(|(at, text)| ((*text).to_owned(), 1, -(at as f32))));

    let words = ["▁h", "é", "▁ab", "llo", "▁,", "▁12", "345", "▁漢", "a", "b", "[CLS]", "[SEP]"];
    let words = words.map(|text| (text.to_owned(), 1, 0.0)).to_vec();
    [
        written("gpt2", Some("gpt-2"), &with(bytes), &["a b", "Ġ a", "Ġa b", "l l", "ll o"]),
        written("llama", None, &with(pieces), &[]),
        written("bert", None, &with(words), &[]),
    ]
}

/// Everything a tokenizer and a template can do, if the file has them. True if it had a tokenizer.
fn use_all(bytes: Vec<u8>) -> bool {
    let size = bytes.len();
    let Ok(file) = File::from_bytes("vocabulary.gguf", bytes.into()) else { return false };
    let (tokenizer, peak) = peak_of(|| Tokenizer::from_metadata(file.metadata()));
    assert!(peak <= MOST_TIMES * size + MOST_MORE, "{peak} bytes for a file of {size}");
    let tokenizer = match tokenizer {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("vocabulary.gguf") && error.len() < 1000, "{error}");
            return false;
        }
    };
    let most = tokenizer.n_vocab() as u32;
    for special in [Special::AsText, Special::Parse] {
        let ids = tokenizer.encode_prompt(TEXT, special);
        assert!(ids.iter().all(|&id| id < most));
        let mut stream = tokenizer.stream().with_special(true);
        let mut text: String = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
        text.push_str(&stream.finish());
        assert_eq!(text, String::from_utf8_lossy(&tokenizer.decode(&ids, true)));
    }
    let all: Vec<u32> = (0..most + 2).collect();
    tokenizer.decode(&all, true);
    tokenizer.decode_tidy(&all, false);
    assert!(tokenizer.stop_ids().iter().all(|&id| id < most));

    if let Ok(template) = ChatTemplate::from_metadata(file.metadata(), &tokenizer) {
        let messages = json!([{"role": "user", "content": TEXT}, {"role": "assistant", "content": "ab"}]);
        let tools = json!([{"name": "set_light", "parameters": {"on": true}}]);
        let input = RenderInput { tools, now: CivilTime::from_unix(0), ..RenderInput::new(messages) };
        // Both may fail, and with control tokens such as " " they may differ; see `template_rules.rs` for real ones.
        let _ = template.render(&input);
        if let Ok(prompt) = template.prompt(&tokenizer, &input) {
            assert!(prompt.encode(&tokenizer).iter().all(|&id| id < most));
        }
    }
    true
}

#[test]
fn the_vocabularies_are_right_at_first() {
    for bytes in vocabularies() {
        assert!(use_all(bytes));
    }
}

#[test]
fn vocabularies_with_any_edits_neither_panic_nor_take_much_memory() {
    for whole in vocabularies() {
        let n_usable = Cell::new(0);
        proptest!(ProptestConfig::with_cases(3000), |(edits in prop_oneof![any_edits(3), bytes_changed(1)])| {
            // The tokens themselves, their types, scores and the template make up most of such a file.
            n_usable.set(n_usable.get() + u32::from(use_all(edited(whole.clone(), &edits, 400))));
        });
        // Otherwise the edits would test nothing but the reader.
        let n_usable = n_usable.get();
        assert!(n_usable > 200, "{n_usable} of 3000");
    }
}

/// As many tokens as the bytes of a file can be.
#[test]
fn a_file_of_nothing_but_small_tokens_stays_within_the_bound() {
    let bytes: Vec<_> = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), 6, 0.0)).collect();
    for kind in [1, 3, 4] {
        let small = (0..50_000_u32).map(|number| (format!("{number:x}"), kind, 0.0));
        let tokens: Vec<_> = bytes.iter().cloned().chain(small).collect();
        assert!(use_all(written("llama", None, &tokens, &[])));
    }
}
