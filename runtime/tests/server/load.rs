//! `farpost bench serve` against the real server.

use std::process::{Command, Stdio};

use serde_json::{Value as Json, json};

use crate::access::{KEYS, KITCHEN};
use crate::http::get;
use crate::program::{Running, TempFile, serve};
use crate::tls::{Authority, Files};

/// Loads a server and gives code, standard output and errors.
fn load(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farpost"));
    command.args(["bench", "serve"]).args(args).env("LOAD_KEY", KITCHEN).env("NO_KEY", "").stdin(Stdio::null());
    let output = command.output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it writes text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn report(server: &Running, args: &[&str]) -> Json {
    let url = format!("http://{}", server.address);
    let (code, out, err) = load(&[&["--url", &url, "--json", "--warmup", "1"], args].concat());
    assert_eq!(code, Some(0), "{out}{err}");
    serde_json::from_str(&out).expect("it is one object")
}

#[test]
fn clients_that_wait_are_counted_as_the_server_counts_them() {
    let server = serve(&[]);
    let page = TempFile::new("load.html", "");
    let args = ["--clients", "3", "--requests", "9", "--prompt-tokens", "40..80", "--answer-tokens", "8"];
    let more = ["--api", "completions", "--ignore-eos", "--slo", "ttft=60s", "--html", page.path()];
    let report = report(&server, &[&args[..], &more].concat());
    assert_eq!((&report["done"], &report["failed"], &report["good"]), (&json!(9), &json!(0), &json!(9)), "{report}");
    assert_eq!((&report["model"], &report["load"]), (&json!("pocket"), &json!("3 clients")));
    assert_eq!((&report["answer_tokens"], &report["tokens_counted_by"]), (&json!(72), &json!("usage")));
    let asked = report["prompt_lengths"]["mean"].as_f64().unwrap();
    assert!((40.0..=80.0).contains(&asked), "{report}");
    for times in ["ttft_ms", "itl_ms", "e2e_ms"] {
        let of = |name: &str| report[times][name].as_f64().unwrap();
        assert!(of("p50") > 0.0 && of("p50") <= of("p99") && of("p99") <= of("max"), "{times}: {report}");
    }
    assert!(report["ttft_ms"]["p50"].as_f64() <= report["e2e_ms"]["p50"].as_f64(), "{report}");
    // Nine, one to warm up and two to learn the tokens of a word.
    let done = "farpost_requests_total{model=\"pocket\",key=\"\",outcome=\"done\"} 12\n";
    let metrics = get(server.address, "/metrics").body;
    assert!(metrics.contains(done), "{metrics}");
    let html = std::fs::read_to_string(page.path()).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.matches("<svg").count() == 6, "{html}");
    assert!(!html.contains("http://www") && !html.contains("https://") && !html.contains("<script"), "{html}");
}

#[test]
fn prompts_of_ids_have_exactly_their_length_and_fields_reach_the_server() {
    let server = serve(&[]);
    let args = ["--api", "completions", "--prompt-ids", "300..900", "--prompt-tokens", "70", "--shared-prefix", "64"];
    let more = ["-n", "6", "--clients", "3", "--fields", "{\"temperature\":0,\"priority\":\"low\"}", "--ignore-eos"];
    let report = report(&server, &[&args[..], &more, &["--answer-tokens", "5"]].concat());
    let lengths = &report["prompt_lengths"];
    assert_eq!(
        (&lengths["mean"], &lengths["max"], &report["answer_tokens"]),
        (&json!(70.0), &json!(70.0), &json!(30)),
        "{report}"
    );
    // Two pages of 32 tokens each, which the request to warm up has left.
    assert_eq!(report["cached_tokens"], 6 * 64, "{report}");
    let url = format!("http://{}", server.address);
    let refused = |args: &[&str]| {
        let (code, _, err) = load(&[&["--url", &url, "-n", "1"], args].concat());
        assert_ne!(code, Some(0));
        err
    };
    let err = refused(&["--fields", "{\"priority\":\"loud\"}"]);
    assert!(err.contains("priority is \"loud\""), "{err}");
    assert!(refused(&["--fields", "{\"stream\":false}"]).contains("'stream' is set by this command"));
    assert!(refused(&["--prompt-ids", "1..9"]).contains("expected --api completions"));
}

#[test]
fn arrivals_and_traces_are_sent_when_they_are_due_and_with_a_key() {
    let keys = TempFile::new("load-keys.json", KEYS);
    let server = serve(&["--keys", keys.path()]);
    let url = format!("http://{}/v1", server.address);
    let (code, _, err) = load(&["--url", &url]);
    assert!(code == Some(1) && err.contains("refuses what it is asked: 401: no API key was given"), "{err}");
    let with = |args: &[&str]| report(&server, &[&["--key", "LOAD_KEY", "--answer-tokens", "4"], args].concat());
    let arrived = with(&["--rate", "100", "-n", "8", "--prompt-tokens", "30", "--shared-prefix", "20"]);
    assert_eq!((&arrived["done"], &arrived["load"]), (&json!(8), &json!("100 requests/s")), "{arrived}");
    assert!(arrived["sent_late_ms"]["n"] == 8, "{arrived}");
    let lines = "{\"at\":0.2,\"prompt\":\"close the valve\",\"answer_tokens\":3}\n\
                 {\"at\":0,\"prompt_tokens\":20,\"answer_tokens\":2}\n";
    let trace = TempFile::new("load-trace.jsonl", lines);
    let url = format!("http://{}", server.address);
    let (code, out, err) = load(&["--url", &url, "--json", "--key", "LOAD_KEY", "--trace", trace.path()]);
    assert_eq!(code, Some(0), "{err}");
    let traced: Json = serde_json::from_str(&out).unwrap();
    assert!(traced["done"] == 2 && traced["seconds"].as_f64() >= Some(0.19), "{traced}");
}

#[test]
fn clients_that_go_away_are_noticed_by_the_server() {
    let server = serve(&[]);
    let args = ["--clients", "2", "-n", "6", "--cancel", "1", "--answer-tokens", "100", "--ignore-eos"];
    let report = report(&server, &[&args[..], &["--prompt-tokens", "40", "--seed", "3"]].concat());
    let cancelled = report["cancelled"].as_u64().unwrap();
    assert!(cancelled > 0 && report["failed"] == 0, "{report}");
    let seen = report["cancel_latency_ms"]["n"].as_u64().unwrap();
    assert!((1..=cancelled).contains(&seen), "{report}");
}

#[test]
fn servers_are_reached_by_https_if_somebody_vouches_for_them() {
    let authority = Authority::new("ours");
    let ca = TempFile::new("load-ca.pem", &authority.pem());
    let files = Files::new("load", &authority.signs_well());
    let server = serve(&files.args());
    let url = format!("https://localhost:{}", server.address.port());
    let (code, out, err) = load(&["--url", &url, "--ca", ca.path(), "--json", "--requests", "3", "--warmup", "1"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let report: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(report["done"], 3, "{report}");
    let other = TempFile::new("load-other.pem", &Authority::new("theirs").pem());
    let expired =
        Files::new("load-old", &authority.signs(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1)));
    let of_old = serve(&expired.args());
    let old = format!("https://localhost:{}", of_old.address.port());
    // Its name is not that of its address either.
    let by_address = format!("https://{}", server.address);
    for (url, ca, expected) in
        [(&url, other.path(), "UnknownIssuer"), (&old, ca.path(), "expired"), (&by_address, ca.path(), "not valid for")]
    {
        let (code, _, err) = load(&["--url", url, "--ca", ca]);
        assert!(code == Some(6) && err.contains(expected), "{expected}: {err}");
    }
}

#[test]
fn what_cannot_be_measured_is_told_with_the_option() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let (code, _, err) = load(&["--url", &url]);
    assert!(code == Some(6) && err.contains("gives no answer: "), "{err}");
    let trace = TempFile::new("bad-trace.jsonl", "{\"at\":0}\n");
    for (args, expected) in [
        (&["--trace", trace.path()][..], "--trace: "),
        (&["--key", "NO_KEY"], "--key: there is no key in the variable 'NO_KEY'"),
        (&["--url", "localhost"], "--url <URL>"),
        (&["--url", "ftp://localhost"], "--url <URL>"),
        (&["--ca", trace.path()], "--ca is for servers at https://"),
        (&["--url", "https://localhost", "--ca", trace.path()], "it holds no certificate, expected certificates"),
        (&["--insecure"], "unexpected argument '--insecure'"),
        (&["--rate", "0"], "--rate <R>"),
        (&["--seconds", "nan"], "--seconds <S>"),
        (&["--cancel", "2"], "--cancel <SHARE>"),
        (&["--slo", "ttft=1"], "--slo <BOUNDS>"),
        (&["--prompt-tokens", "9..8"], "--prompt-tokens <LENGTHS>"),
        (&["--clients", "2", "--rate", "1"], "cannot be used with"),
        (&["--requests", "0"], "expected a whole number, 1 or more"),
    ] {
        let (code, out, err) = load(args);
        assert!(code != Some(0) && out.is_empty() && err.contains(expected), "{args:?}: {err}");
    }
    // A file that is wrong is wrong usage.
    assert_eq!(load(&["--trace", trace.path()]).0, Some(2));
    let server = serve(&[]);
    let url = format!("http://{}", server.address);
    let (code, _, err) = load(&["--url", &url, "--model", "other"]);
    assert!(code == Some(1) && err.contains("refuses what it is asked: 404: "), "{err}");
    let (code, _, err) = load(&["--url", &url, "--prompt-tokens", "1000"]);
    assert!(code == Some(1) && err.contains("context_length_exceeded") && err.contains("hint: smaller"), "{err}");
}
