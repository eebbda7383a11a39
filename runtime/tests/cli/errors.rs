//! Wrong usage and unusable files: the right exit code, one line that names what and where, never a panic.

use farpost_models::gguf::Writer;

use crate::program::{Folder, command, farpost, finish, golden, model};

#[test]
fn wrong_usage_ends_with_2_and_says_what_is_wrong() {
    let cases: [(&[&str], &str); 7] = [
        (&["dance"], "unrecognized subcommand 'dance'"),
        (&["inspect", "--dance"], "unexpected argument '--dance'"),
        (&["quantize", "a", "b"], "--type <TYPE>"),
        (&["quantize", "a", "b", "--type", "q4_m"], "invalid value 'q4_m' for '--type <TYPE>'"),
        (&["synth", "--shape", "gpt-5", "--out", "x"], "there is no such shape, there are llama-3.2-1b"),
        (&["doctor", "--threads", "0"], "expected a whole number, 1 to 256"),
        (&["doctor", "--quiet", "--verbose"], "cannot be used with"),
    ];
    for (args, expected) in cases {
        let ran = farpost(args);
        assert_eq!(ran.code, Some(2), "{args:?}");
        assert_eq!(ran.text(), "");
        assert!(ran.err.starts_with("error: ") && ran.err.contains(expected), "{args:?}: {}", ran.err);
    }
}

#[test]
fn every_option_asks_for_a_whole_number_in_the_same_words() {
    for (args, expected) in [
        (&["run", "--seed", "-1", "x"][..], "0 or more"),
        (&["synth", "--list", "--seed", "x"], "0 or more"),
        (&["bench", "--pp", "x"], "1 or more"),
        (&["bench", "--depth", "-1"], "0 or more"),
        (&["bench", "--batch", "2,0"], "1 to 1024"),
        (&["chat", "--context", "1.5"], "1 or more"),
        (&["eval", "--file", "x", "--window", "3"], "4 or more"),
    ] {
        let ran = farpost(args);
        assert_eq!(ran.code, Some(2), "{args:?}");
        assert!(ran.err.contains(&format!("expected a whole number, {expected}\n")), "{args:?}: {}", ran.err);
    }
}

#[test]
fn no_command_at_all_shows_help_and_ends_with_2() {
    let ran = farpost(&[]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("Usage: farpost"), "{}", ran.err);
}

#[test]
fn a_model_that_is_not_there_ends_with_3_and_a_hint() {
    let ran = farpost(&["inspect", "--model", "no-such-model"]);
    let line =
        "no-such-model: there is no such file, and there is no model folder /nonexistent/.local/share/farpost/models";
    assert_eq!(ran.error(3), line);
    assert!(ran.err.contains("hint: 'farpost doctor' lists the models"), "{}", ran.err);
    let line = farpost(&["tokenize", "--model", "/no/such.gguf", "x"]).error(3).to_owned();
    assert!(line.starts_with("/no/such.gguf: there is no such file"), "{line}");
}

/// Files that are no models, each with what must be said about it.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let head = |version: u32, n_tensors: u64, n_keys: u64| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_keys.to_le_bytes());
        bytes
    };
    let mut escape = head(3, 0, 1);
    let key = "\u{1b}[31mred\u{1b}]0;title\u{7}\n";
    escape.extend((key.len() as u64).to_le_bytes());
    escape.extend(key.as_bytes());
    escape.extend(99_u32.to_le_bytes());
    escape.extend([0; 32]);
    let whole = std::fs::read(model("tiny-llama.gguf")).unwrap();
    vec![
        ("empty", Vec::new(), "magic"),
        ("text", b"Once upon a time there was a model.".to_vec(), "expected the magic bytes 'GGUF'"),
        ("page", b"<!DOCTYPE html><html></html>".to_vec(), "a web page, not the model"),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "Git LFS pointer"),
        ("old", head(1, 0, 0), "version 1 is not supported"),
        ("big-endian", [b"GGUF".as_slice(), &3_u32.to_be_bytes(), &[0; 32]].concat(), "big-endian"),
        ("many-tensors", head(3, u64::MAX, 0), "tensor count"),
        ("many-keys", head(3, 0, u64::MAX), "metadata count"),
        ("escapes", escape, "\\u{1b}[31mred"),
        ("cut-head", whole[..1000].to_vec(), "byte"),
        ("cut-data", whole[..whole.len() - 1000].to_vec(), "data section"),
    ]
}

#[test]
fn files_that_are_no_models_end_with_3_and_a_line_that_names_them() {
    let folder = Folder::new("hostile");
    for (name, bytes, expected) in hostile() {
        let path = folder.with(&format!("{name}.gguf"), &bytes);
        let (run, chat) = (vec!["run", "-m", &path, "text"], vec!["chat", "-m", &path]);
        for args in [vec!["inspect", &path], vec!["tokenize", "-m", &path, "text"], quantize(&path), run, chat] {
            let ran = farpost(&args);
            let line = ran.error(3);
            assert!(line.contains(&format!("{name}.gguf")) && line.contains(expected), "{args:?}: {line}");
        }
    }
    let folder_itself = folder.path().to_str().unwrap();
    assert!(farpost(&["inspect", folder_itself]).error(3).contains("the folder holds 11 models, name one: big-endian"));
}

fn quantize(path: &str) -> Vec<&str> {
    vec!["quantize", path, "/tmp/never-written.gguf", "--type", "q8_0"]
}

#[test]
fn a_file_broken_anywhere_in_its_head_never_breaks_the_program() {
    let folder = Folder::new("broken");
    let whole = std::fs::read(model("tiny-qwen2.gguf")).unwrap();
    // A fixed walk over the head: every run changes the same bytes.
    for step in 0_usize..60 {
        let mut bytes = whole.clone();
        let at = (step * 7919) % 12_000;
        bytes[at] ^= 1 << (step % 8);
        let path = folder.with("broken.gguf", &bytes);
        let ran = farpost(&["inspect", &path]);
        assert!(matches!(ran.code, Some(0 | 3)), "byte {at}: {:?} {}", ran.code, ran.err);
        assert!(!ran.err.contains("panicked"), "byte {at}: {}", ran.err);
    }
}

#[test]
fn a_file_without_a_tokenizer_says_which_key_is_missing() {
    let folder = Folder::new("bare");
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama");
    let path = folder.with("bare.gguf", &writer.start("bare", Vec::new()).unwrap().finish().unwrap());
    let line = farpost(&["tokenize", "--model", &path, "text"]).error(3).to_owned();
    assert!(line.contains("tokenizer.ggml.model") && line.contains("is missing"), "{line}");
    let report = farpost(&["inspect", &path]);
    assert!(report.done().contains("unknown: "), "{}", report.text());
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused() {
    let ran = finish(command(&["doctor", "--quick"]).env("FARPOST_CPU", "mmx"), b"");
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.starts_with("error: FARPOST_CPU: instruction set 'mmx' is not available"), "{}", ran.err);
}

#[test]
fn input_that_is_no_text_is_refused_with_its_place() {
    let folder = Folder::new("latin");
    let path = folder.with("latin.txt", b"caf\xe9");
    let line = farpost(&["tokenize", "--file", &path]).error(1).to_owned();
    assert!(line.ends_with("latin.txt: byte 3 is not UTF-8, expected text"), "{line}");
    let line = farpost(&["tokenize", "--decode", "1 2 4294967296"]).error(2).to_owned();
    assert_eq!(line, "id 4294967296 is outside the vocabulary of 1,024 tokens");
    for word in ["abc", "-1", "1.5", "0x10"] {
        let line = farpost(&["tokenize", "--decode", &format!("[1, 2]\n3 {word}")]).error(2).to_owned();
        assert_eq!(line, format!("'{word}' is no token id, expected whole numbers"));
    }
    let vocabulary = golden("vocab/gpt-2.gguf");
    assert!(farpost(&["tokenize", "-m", &vocabulary, "--decode", "50257"]).error(2).contains("50,257 tokens"));
}
