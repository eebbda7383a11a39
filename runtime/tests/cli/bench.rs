//! `farpost bench`: every form of its results, lists, comparisons, and what it refuses.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::program::{Folder, Ran, command, farpost, finish, interrupt, model};

/// The JSON lines of a run that went well.
fn lines(ran: &Ran) -> Vec<serde_json::Value> {
    ran.done().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(lines: &[serde_json::Value]) -> Vec<&str> {
    lines.iter().map(|line| line["test"].as_str().unwrap()).collect()
}

#[test]
fn every_test_is_a_line_of_json_with_its_share_of_the_roof() {
    let args = ["bench", "--pp", "16", "--tg", "4", "--pg", "8,2", "-r", "3", "--threads", "2", "--json"];
    let lines = lines(&farpost(&args));
    assert_eq!(names(&lines), ["pp16", "tg4", "pp8+tg2"]);
    for line in &lines {
        let number = |field: &str| line[field].as_f64().unwrap_or_else(|| panic!("{field} of {line}"));
        let samples: Vec<f64> = line["samples"].as_array().unwrap().iter().map(|rate| rate.as_f64().unwrap()).collect();
        assert!(samples.len() == 3 && samples.contains(&number("tokens_per_second")), "{line}");
        assert!(number("spread") >= 0.0);
        // The pocket model fits caches, and a busy machine is slow: the share says little, but it is one.
        assert!((1e-6..1e3).contains(&number("roof_share")), "{line}");
        for field in ["read_bytes_per_second", "int8_macs_per_second", "f32_macs_per_second"] {
            assert!(number(field) > 1e7, "{line}");
        }
        assert!(["read", "int8", "bf16", "f32"].contains(&line["bound"].as_str().unwrap()));
        assert_eq!((&line["threads"], &line["repetitions"]), (&2.into(), &3.into()));
        assert_eq!((&line["kv_type"], &line["model"]), (&"f16".into(), &"pocket.gguf (built in)".into()));
        assert_eq!(line["version"], env!("CARGO_PKG_VERSION"));
        assert!(line["model_bytes"].as_u64() > Some(100_000) && line["isa"].is_string());
        assert!(line["load"].is_null() || line["load"].as_f64() >= Some(0.0), "{line}");
        assert!(line.get("verdict").is_none() && line.get("before_model").is_none());
    }
}

#[test]
fn lists_are_combined_and_every_family_runs_deep_and_in_batches() {
    let path = model("tiny-gemma3.gguf");
    let args = ["bench", "-m", &path, "--tg", "3,2", "--depth", "0,40", "--batch", "1,3", "--kv-type", "f16,q8_0"];
    let lines = lines(&farpost(&[&args[..], &["--threads", "1,2", "-r", "1", "--warmup", "0", "--json"]].concat()));
    let tests = ["tg3", "tg3@b3", "tg2", "tg2@b3", "tg3@d40", "tg3@b3@d40", "tg2@d40", "tg2@b3@d40"];
    assert_eq!(names(&lines), tests.repeat(4));
    let settings: Vec<_> = lines
        .iter()
        .step_by(8)
        .map(|line| (line["threads"].as_u64().unwrap(), line["kv_type"].as_str().unwrap()))
        .collect();
    assert_eq!(settings, [(1, "f16"), (1, "q8_0"), (2, "f16"), (2, "q8_0")]);
    // One repetition says nothing of noise.
    assert!(lines.iter().all(|line| line["spread"].is_null()));
}

#[test]
fn without_any_test_named_prompt_and_writing_are_measured_within_the_models_context() {
    let ran = farpost(&["bench", "-r", "1", "--warmup", "0"]);
    let text = ran.done();
    assert!(text.starts_with("pocket.gguf (built in), ") && text.contains("; 1 repetition\n"), "{text}");
    assert!(text.contains("\nroof with ") && text.contains(" GB/s, int8 "), "{text}");
    let rows: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(rows.ends_with(&["test", "pp256", "tg64"]), "{text}");
}

#[test]
fn markdown_and_csv_have_the_same_columns_in_every_row() {
    let args = ["bench", "--pp", "8", "--tg", "2,1", "-r", "2", "--output"];
    let ran = farpost(&[&args[..], &["markdown"]].concat());
    let table: Vec<&str> = ran.done().lines().filter(|line| line.starts_with("| ")).collect();
    assert_eq!(table.len(), 5, "{}", ran.text());
    assert!(table.iter().all(|row| row.matches('|').count() == table[0].matches('|').count()));
    assert!(table[0].starts_with("| test | threads |") && table[2].starts_with("| pp8 |"), "{}", ran.text());
    let ran = farpost(&[&args[..], &["csv"]].concat());
    let rows: Vec<Vec<&str>> = ran.done().lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((rows.len(), &rows[0][..4]), (4, &["test", "tokens_per_second", "spread", "roof_share"][..]));
    assert!(rows[1..].iter().all(|row| row.len() == rows[0].len() && row[1].parse::<f64>().unwrap() > 0.0));
}

#[test]
fn a_run_is_compared_with_an_earlier_one() {
    let folder = Folder::new("compare");
    let args = ["bench", "--pp", "8", "--tg", "2", "-r", "2", "--threads", "1", "--json"];
    let first = farpost(&args);
    let lines_before = lines(&first);
    // As if the prompt had been a thousand times slower, and writing as much faster.
    let edited: String = lines_before
        .iter()
        .zip([1e-3, 1e3])
        .map(|(line, factor)| {
            let mut line = line.clone();
            line["tokens_per_second"] = (line["tokens_per_second"].as_f64().unwrap() * factor).into();
            line["roof_share"] = (line["roof_share"].as_f64().unwrap() * factor).into();
            format!("{line}\n")
        })
        .collect();
    let file = folder.with("before.jsonl", edited.as_bytes());
    let alike = farpost(&[&args[..], &["--compare", &file]].concat());
    let ran = lines(&alike);
    for (line, direction) in ran.iter().zip(["faster", "slower"]) {
        // Two repetitions on a machine with other work may be far apart.
        let noise = line["noise"].as_f64().unwrap();
        assert_eq!(line["verdict"], if noise > 0.25 { "unclear" } else { direction }, "{line}");
        for field in ["model", "isa", "packed", "activations"] {
            assert_eq!(line[format!("before_{field}")], line[field], "{line}");
        }
    }
    assert!(ran[0]["ratio"].as_f64() > Some(1.0) && ran[1]["ratio"].as_f64() < Some(1.0));
    assert!(!alike.err.contains("before.jsonl"), "{}", alike.err);
}

#[test]
fn what_a_run_is_compared_with_is_told_where_it_is_not_the_same() {
    let folder = Folder::new("unlike");
    let before = r#"{"test":"pp8","model":"other.gguf","threads":1,"kv_type":"f16","tokens_per_second":1.5,"isa":"none","packed":null,"activations":"int16"}"#;
    let file = folder.with("before.jsonl", before.as_bytes());
    let args = ["bench", "--pp", "8,9", "-r", "1", "--warmup", "0", "--threads", "1", "--compare", &file];
    let table = finish(command(&args).env("FARPOST_CPU", "scalar"), b"");
    assert!(table.done().contains("verdict") && table.text().contains("unclear (measured once)"), "{}", table.text());
    assert!(table.text().lines().any(|line| line.starts_with("  pp9") && line.ends_with('-')), "{}", table.text());
    let notes = [
        "before.jsonl: not measured alike: model was other.gguf and is pocket.gguf (built in), instruction set was none \
         and is scalar, type of activations was int16 and is auto\n",
        "before.jsonl: no such test in it: pp9 (1 thread, f16)\n",
    ];
    assert!(notes.iter().all(|note| table.err.contains(note)), "{}", table.err);
    let lines = lines(&farpost(&[&args[..], &["--json", "--quiet"]].concat()));
    let fields = ["before_model", "before_isa", "before_packed", "before_activations", "noise"];
    let null = serde_json::Value::Null;
    let expected = ["other.gguf".into(), "none".into(), null.clone(), "int16".into(), null.clone()];
    assert_eq!(fields.map(|field| lines[0].get(field)), expected.each_ref().map(Some), "{}", lines[0]);
    assert_eq!(fields.map(|field| lines[1].get(field)), [Some(&null); 5], "{}", lines[1]);
}

#[test]
fn what_cannot_be_measured_is_refused_with_the_reason() {
    let folder = Folder::new("bench");
    let line = farpost(&["bench", "--pp", "200", "--depth", "100"]).error(2).to_owned();
    assert_eq!(line, "test pp200@d100 takes a context of 300 tokens, expected no more than the model's 256");
    let ran = farpost(&["bench", "--memory-cap", "100K"]);
    assert!(ran.error(4).contains("out of memory") && ran.err.contains("hint: a smaller --depth"), "{}", ran.err);
    let file = folder.with("x.jsonl", b"{\"test\":1}\n");
    let ran = farpost(&["bench", "--compare", &file]);
    assert!(ran.error(1).ends_with("x.jsonl: line 1: field 'test' is 1, expected a text"), "{}", ran.err);
    let file = folder.with("x.bin", b"\x7fELF\xff");
    let ran = farpost(&["bench", "--compare", &file]);
    assert!(ran.error(1).ends_with("x.bin: byte 4 is not UTF-8, expected text"), "{}", ran.err);
    assert!(ran.err.contains("hint: write such a file with 'farpost bench --json > FILE'"), "{}", ran.err);
    assert!(farpost(&["bench", "--compare", "/no/such"]).error(1).starts_with("/no/such: cannot read it"));
    for (args, expected) in [
        (["--pp", "0"], "expected a whole number, 1 or more"),
        (["--tg", "1,x"], "invalid value 'x'"),
        (["--pg", "512"], "such as 512,64"),
        (["--batch", "0"], "expected a whole number, 1 to 1024"),
        (["--kv-type", "f16,q4"], "invalid value 'q4'"),
        (["--threads", "1,0"], "expected a whole number, 1 to 256"),
    ] {
        let ran = farpost(&[&["bench"], &args[..]].concat());
        assert!(ran.code == Some(2) && ran.err.contains(expected), "{args:?}: {}", ran.err);
    }
    let ran = farpost(&["bench", "--json", "--output", "csv"]);
    assert!(ran.code == Some(2) && ran.err.contains("cannot be used with"), "{}", ran.err);
}

#[test]
fn the_number_of_threads_may_stand_before_the_command_and_the_instructions_are_told() {
    let args = ["--threads", "2", "bench", "--tg", "1", "-r", "1", "--json"];
    let line = finish(command(&args).env("FARPOST_CPU", "scalar"), b"").json();
    assert_eq!((&line["threads"], &line["isa"]), (&2.into(), &"scalar".into()));
}

/// Names of the tests in a table or in Markdown.
fn rows(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.trim_start_matches(['|', ' ']).split(' ').next())
        .skip_while(|name| *name != "test")
        .collect()
}

#[test]
fn ctrl_c_ends_it_with_130_and_what_was_measured_is_told() {
    // The second test takes hundreds of times as long as the first.
    let args = ["bench", "--tg", "1,255", "-r", "1", "--warmup", "300", "--verbose"];
    let mut child = command(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // The notes come once signals are listened to.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("measuring 2 tests of pocket")));
    assert!(lines.any(|line| line.unwrap().starts_with("tg1 (")));
    interrupt(&child);
    let ended = child.wait_with_output().unwrap();
    let text = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(130));
    assert!(text.starts_with("pocket.gguf (built in), ") && rows(&text) == ["test", "tg1"], "{text}");
}

#[test]
fn a_test_that_fails_takes_no_earlier_one_with_it() {
    // Keys and values of 256 sequences take 9 MiB as q8_0 and 33 as f32.
    let args = ["bench", "--tg", "1", "--batch", "256", "--depth", "200", "--kv-type", "q8_0,f32", "-r", "1"];
    let options = ["--warmup", "0", "--threads", "1", "--memory-cap", "20M"];
    let ran = farpost(&[&args[..], &options, &["--output", "markdown"]].concat());
    assert_eq!((ran.code, rows(ran.text())), (Some(4), vec!["test", "---", "tg1@b256@d200"]), "{}", ran.text());
    assert!(ran.text().contains("| q8_0 |") && ran.err.contains("error: out of memory"), "{}{}", ran.text(), ran.err);
}
