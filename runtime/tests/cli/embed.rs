//! `farpost embed`: vectors as lines of numbers or JSON.

use serde_json::{Value as Json, json};

use crate::embedder::{apart, file, floats, golden};
use crate::program::{Folder, farpost};

#[test]
fn texts_become_lines_of_numbers() {
    let folder = Folder::new("embed");
    let model = folder.with("embedder.gguf", &file(3));
    let (text, texts) = golden();
    let expected = texts[0].by("last");
    // Of the tokens that are run the last one is the end token.
    assert_eq!(farpost(&["tokenize", "-m", &model, &text, "--json"]).json(), json!(texts[0].ids));
    let both = format!("{text}|a");
    let args = ["embed", "-m", &model, "--kv-type", "f32", &both, "--separator", "|"];
    let shown = farpost(&args);
    let lines: Vec<Vec<f32>> =
        shown.done().lines().map(|line| line.split(' ').map(|number| number.parse().unwrap()).collect()).collect();
    assert_eq!(lines.len(), 2);
    assert!(apart(&lines[0], &expected) < 1e-5);
    let json = farpost(&[&args[..], &["--json", "--dimensions", "4"]].concat());
    let first: Json = serde_json::from_str(json.done().lines().next().unwrap()).unwrap();
    let length = expected[..4].iter().map(|number| number * number).sum::<f32>().sqrt();
    let short: Vec<f32> = expected[..4].iter().map(|number| number / length).collect();
    assert!(apart(&floats(&first), &short) < 1e-5);
    let line = farpost(&["embed", "-m", &model, "a", "--dimensions", "257"]).error(2).to_owned();
    assert!(line.starts_with("--dimensions is 257, expected 1 to 256, the width of "), "{line}");
    let line = farpost(&["embed", "a"]).error(2).to_owned();
    assert!(line.contains("makes no embeddings, expected a model whose file names a pooling_type"), "{line}");
    // The other way round likewise, with the command that does it.
    for args in [["run", "-m", &model, "a"], ["chat", "-m", &model, "--no-history"]] {
        let ran = farpost(&args);
        assert!(ran.error(2).contains("makes embeddings and writes no text"), "{}", ran.text());
        assert!(ran.err.contains("'farpost embed'"), "{}", ran.err);
    }
}
