//! `farpost tokenize` against golden ids, and back.

use serde_json::{Value, json};

use crate::program::{Folder, farpost, farpost_with, golden};

/// Stands in none of the golden texts.
const SEPARATOR: &str = "\n<<<next text>>>\n";

fn lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(golden(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn ids_of_many_texts_are_the_golden_ones_with_and_without_special_tokens() {
    let texts: Vec<String> = lines("tokens/texts.jsonl").iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    assert!(!texts.iter().any(|text| text.contains(SEPARATOR)));
    let folder = Folder::new("texts");
    let file = folder.with("texts.txt", texts.join(SEPARATOR).as_bytes());
    for name in ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "bert-bge", "deepseek-coder"] {
        let model = golden(&format!("vocab/{name}.gguf"));
        let expected = lines(&format!("tokens/{name}.jsonl"));
        let base = ["tokenize", "--model", &model, "--json", "--file", &file, "--separator", r"\n<<<next text>>>\n"];
        for (field, extra) in [("special", None), ("ids", Some("--no-special"))] {
            let args: Vec<&str> = base.into_iter().chain(extra).collect();
            let ran = farpost(&args);
            let found: Vec<Value> = ran.done().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(found.len(), expected.len(), "{name}");
            for ((found, expected), text) in found.iter().zip(&expected).zip(&texts) {
                assert_eq!(found, &expected[field], "{name} {field}: {text:?}");
            }
        }
    }
}

#[test]
fn standard_input_is_taken_as_it_is_line_break_and_all() {
    let model = golden("vocab/gpt-2.gguf");
    let ids = |input: &str| farpost_with(&["tokenize", "-m", &model, "--json"], input.as_bytes()).json();
    assert_eq!(ids("hello world"), json!([31373, 995]));
    assert_eq!(ids("hello world\n"), json!([31373, 995, 198]));
    let argument = farpost(&["tokenize", "-m", &model, "--json", "hello world"]).json();
    assert_eq!(argument, json!([31373, 995]));
    assert_eq!(farpost(&["tokenize", "-m", &model, "--json", ""]).json(), json!([]));
}

#[test]
fn control_tokens_are_parsed_unless_special_is_off() {
    let model = golden("vocab/qwen2.gguf");
    let args = ["tokenize", "-m", &model, "--json", "<|im_end|>"];
    assert_eq!(farpost(&args).json(), json!([151_645]));
    let as_text = farpost(&[&args[..], &["--no-special"]].concat()).json();
    assert!(as_text.as_array().unwrap().len() > 1, "{as_text}");
}

#[test]
fn ids_turn_back_into_the_bytes_of_the_text() {
    let model = golden("vocab/llama-bpe.gguf");
    let text = "naïve \u{1F980} 東京\n\ttabs";
    let ids = farpost_with(&["tokenize", "-m", &model, "--json", "--no-special"], text.as_bytes());
    let back = farpost_with(&["tokenize", "-m", &model, "--decode"], ids.done().as_bytes());
    assert_eq!(back.done(), text);
    // Half a character is given as it is to a pipe, and as U+FFFD in JSON, which has no bytes.
    let first = farpost(&["tokenize", "-m", &model, "--json", "--no-special", "\u{1F980}"]).json()[0].to_string();
    let half = farpost(&["tokenize", "-m", &model, "--decode", &first]);
    assert!(half.code == Some(0) && std::str::from_utf8(&half.out).is_err(), "{half:?}");
    let half = farpost(&["tokenize", "-m", &model, "--decode", "--json", &first]).json();
    assert!(half["text"].as_str().unwrap().contains('\u{FFFD}'));
}

#[test]
fn people_see_pieces_and_kinds() {
    let model = golden("vocab/qwen2.gguf");
    let text = farpost(&["tokenize", "-m", &model, "open the \"valve\"<|im_end|>"]);
    insta::assert_snapshot!(text.done(), @r#"
    7 tokens
       2508  "open"
        279  " the"
        330  " \""
        831  "val"
        586  "ve"
          1  "\""
     151645  "<|im_end|>"  control
    "#);
}
