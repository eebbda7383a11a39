//! `farpost eval`: perplexity as other software measures it.

use crate::program::{Folder, farpost, golden, model};

#[test]
fn perplexity_of_a_real_model_is_that_of_other_software() {
    let args = ["eval", "-m", &model("gemma-3-270m-q4_k_m.gguf"), "--file", &golden("text/eval.txt"), "--json"];
    let report = farpost(&args).json();
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(golden("models/gemma3-270m.json")).unwrap()).unwrap();
    let (found, expected) = (report["perplexity"].as_f64().unwrap(), golden["perplexity"]["value"].as_f64().unwrap());
    assert!((found / expected - 1.0).abs() < 0.01, "{found}, expected {expected}");
    assert_eq!(report["window"], golden["perplexity"]["window"]);
    assert_eq!(report["tokens_counted"].as_u64(), report["windows"].as_u64().map(|windows| windows * 255));
}

#[test]
fn the_window_is_at_most_the_models_context() {
    let folder = Folder::new("eval");
    let file = folder.with("text.txt", "turn on the porch light at nine. ".repeat(100).as_bytes());
    let report = farpost(&["eval", "--file", &file, "--json"]).json();
    assert_eq!(report["window"], 256);
    let shown = farpost(&["eval", "--file", &file, "--window", "64"]);
    assert!(shown.done().starts_with("perplexity ") && shown.text().contains(" windows of 64)"), "{}", shown.text());
    assert_eq!(
        farpost(&["eval", "--file", &file, "--window", "64"]).done().split(',').next(),
        shown.text().split(',').next()
    );
    let line = farpost(&["eval", "--file", &file, "--window", "4096"]).error(2).to_owned();
    assert_eq!(line, "--window is 4096, expected 4 to 256, the context of pocket.gguf (built in)");
    let short = folder.with("short.txt", b"turn on");
    let line = farpost(&["eval", "--file", &short]).error(2).to_owned();
    assert!(line.contains("expected at least one window of 256"), "{line}");
}
