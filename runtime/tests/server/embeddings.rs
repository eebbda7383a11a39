//! Embeddings over HTTP: every form of input and answer, what is refused, and that it is one request among others.

use std::io::Write;

use serde_json::{Value as Json, json};

use crate::chat::PATH as CHAT;
use crate::completions::held_bytes;
use crate::embedder::{apart, file, floats, golden};
use crate::http::{Reply, connect, get, post, post_request};
use crate::program::{Running, TempFile, serve};
use crate::streams::wait_until;

const PATH: &str = "/v1/embeddings";
const WIDTH: usize = 256;
/// Of a number; keys and values are rounded to halves.
const BOUND: f32 = 2e-3;

/// A server of one model that makes embeddings and of one that writes.
fn start(name: &str, entry: Json) -> (Running, TempFile, TempFile) {
    let model = TempFile::with(&format!("{name}.gguf"), &file(3));
    let mut embedder = json!({ "name": "e", "model": model.path() });
    embedder.as_object_mut().unwrap().extend(entry.as_object().unwrap().clone());
    let config = TempFile::new(&format!("{name}.json"), &json!({ "models": [{}, embedder] }).to_string());
    (serve(&["--config", config.path()]), model, config)
}

fn embed(server: &Running, input: Json, more: Json) -> Reply {
    let mut request = json!({ "model": "e", "input": input });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(server.address, PATH, &request)
}

/// The embeddings of an answer, whose places are checked.
#[track_caller]
fn vectors(reply: &Reply) -> Vec<Vec<f32>> {
    let json = reply.json(200);
    assert_eq!((&json["object"], &json["model"]), (&"list".into(), &"e".into()));
    let data = json["data"].as_array().unwrap().iter().enumerate();
    data.map(|(index, entry)| {
        assert_eq!((&entry["object"], &entry["index"]), (&"embedding".into(), &index.into()));
        floats(&entry["embedding"])
    })
    .collect()
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|number| number * number).sum::<f32>().sqrt()
}

#[test]
fn texts_and_ids_become_vectors_of_length_1() {
    let (server, _model, _config) = start("forms", json!({}));
    let (text, texts) = golden();
    let reply = embed(&server, json!(text), json!({ "user": "u" }));
    let one = vectors(&reply);
    assert!(one.len() == 1 && one[0].len() == WIDTH && (length(&one[0]) - 1.0).abs() < 1e-5);
    assert!(apart(&one[0], &texts[0].by("last")) < BOUND);
    let n_tokens = texts[0].ids.len();
    assert_eq!(reply.json(200)["usage"], json!({ "prompt_tokens": n_tokens, "total_tokens": n_tokens }));
    // Ids are taken as they are; the text was given its end token.
    let ids = |number: usize| json!(texts[number].ids);
    assert!(apart(&vectors(&embed(&server, ids(0), json!({})))[0], &one[0]) < BOUND);
    let reply = embed(&server, json!([text, ids(2), ids(1), text]), json!({}));
    let several = vectors(&reply);
    assert_eq!(several.len(), 4);
    for (found, number) in several.iter().zip([0, 2, 1, 0]) {
        assert!(apart(found, &texts[number].by("last")) < BOUND, "{number}");
    }
    let total = 2 * n_tokens + texts[1].ids.len() + texts[2].ids.len();
    assert_eq!(reply.json(200)["usage"]["total_tokens"], total);
    let short = &vectors(&embed(&server, json!(text), json!({ "dimensions": 8 })))[0];
    let expected: Vec<f32> = one[0][..8].iter().map(|number| number / length(&one[0][..8])).collect();
    assert!(short.len() == 8 && apart(short, &expected) < 1e-5);
}

/// The floats of text in base64.
fn decoded(text: &str) -> Vec<f32> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} is no digit"),
    };
    let digits: Vec<u32> = text.trim_end_matches('=').bytes().map(|c| u32::from(digit(c))).collect();
    let bytes: Vec<u8> = digits
        .chunks(4)
        .flat_map(|four| {
            let group = four.iter().fold(0, |group, digit| group << 6 | digit) << (6 * (4 - four.len()));
            group.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect();
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn base64_holds_the_same_numbers() {
    let (server, _model, _config) = start("base64", json!({}));
    for dimensions in [1, 2, 3, WIDTH] {
        let more = |format: &str| json!({ "encoding_format": format, "dimensions": dimensions });
        let plain = vectors(&embed(&server, json!([9, 8, 7]), more("float")));
        let json = embed(&server, json!([9, 8, 7]), more("base64")).json(200);
        let found = decoded(json["data"][0]["embedding"].as_str().unwrap());
        // The second time its beginning is in the cache.
        assert!(apart(&found, &plain[0]) < 1e-5, "{dimensions}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let (server, _model, _config) = start("wrong", json!({ "context": 64 }));
    let refused = |input: Json, more: Json, param: &str, part: &str| {
        let error = embed(&server, input, more).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(error["param"] == param && message.contains(part), "{error}");
        error["code"].clone()
    };
    let none = || json!({});
    refused(Json::Null, none(), "input", "is missing");
    refused(json!(7), none(), "input", "is a number, expected a string or token ids");
    refused(json!(""), none(), "input", "is empty, expected a character or more");
    refused(json!([]), none(), "input", "is empty, expected a token or more");
    refused(json!(["a", ""]), none(), "input[1]", "is empty");
    refused(json!([[1], []]), none(), "input[1]", "is empty");
    refused(json!(["a", 1]), none(), "input[1]", "is a number");
    refused(json!([1, "a"]), none(), "input", "has \"a\" as entry 1, expected the id of a token");
    refused(json!([[1], [512]]), none(), "input[1]", "has 512 as entry 0, the model has 512 tokens");
    refused(json!(vec!["a"; 2049]), none(), "input", "has 2049 entries, expected at most 2048");
    let code = refused(json!(["a", vec![1; 65]]), none(), "input[1]", "has 65 tokens, the context holds 64");
    assert_eq!(code, "context_length_exceeded");
    refused(json!("a"), json!({ "dimensions": 0 }), "dimensions", "expected a whole number, 1 to 256");
    refused(json!("a"), json!({ "dimensions": 257 }), "dimensions", "expected a whole number, 1 to 256");
    refused(json!("a"), json!({ "encoding_format": "hex" }), "encoding_format", "expected \"float\" or \"base64\"");
    refused(json!("a"), json!({ "user": 1 }), "user", "is a number");
    assert_eq!(refused(json!("a"), json!({ "dimension": 1 }), "dimension", "did you mean"), "unknown_parameter");
}

#[test]
fn each_model_does_what_it_is_made_for() {
    let (server, _model, _config) = start("kinds", json!({}));
    let error = post(server.address, PATH, &json!({ "model": "pocket", "input": "a" })).error(400);
    assert_eq!((&error["param"], &error["code"]), (&"model".into(), &"unsupported_model".into()));
    assert_eq!(error["message"], "model \"pocket\" writes text and makes no embeddings");
    let chat = json!({ "model": "e", "messages": [{ "role": "user", "content": "a" }] });
    let completion = json!({ "model": "e", "prompt": "a" });
    for (path, request) in [(CHAT, &chat), ("/v1/completions", &completion)] {
        let error = post(server.address, path, request).error(400);
        assert_eq!((&error["param"], &error["code"]), (&"model".into(), &"unsupported_model".into()));
        assert_eq!(error["message"], "model \"e\" makes embeddings and writes no text");
    }
    assert_eq!(
        post(server.address, PATH, &json!({ "model": "x", "input": "a" })).error(404)["code"],
        "model_not_found"
    );
    assert_eq!(get(server.address, PATH).error(405)["code"], "method_not_allowed");
    let version = get(server.address, "/version").json(200);
    assert_eq!((&version["models"][0]["pooling"], &version["models"][1]["pooling"]), (&Json::Null, &"last".into()));
    // Its tokenizer is as good as any.
    let tokens = post(server.address, "/tokenize", &json!({ "model": "e", "prompt": golden().0 })).json(200);
    assert_eq!(tokens["tokens"], json!(golden().1[0].ids));
}

#[test]
fn more_texts_than_the_queue_holds_come_one_after_the_other() {
    let (server, _model, _config) = start("many", json!({ "parallel": 2, "queue": 3 }));
    let (_, texts) = golden();
    let input: Vec<Json> = (0..200).map(|number| json!(texts[number % texts.len()].ids)).collect();
    // They are of one request: none supersedes another.
    let reply = embed(&server, json!(input), json!({ "supersede_key": "k", "deadline_ms": 60_000 }));
    let found = vectors(&reply);
    assert_eq!(found.len(), 200);
    for (number, found) in found.iter().enumerate() {
        assert!(apart(found, &texts[number % texts.len()].by("last")) < BOUND, "{number}");
    }
    let page = get(server.address, "/metrics").body;
    let n_tokens: usize = (0..200).map(|number| texts[number % texts.len()].ids.len()).sum();
    for line in [
        "farpost_requests_total{model=\"e\",key=\"\",outcome=\"done\"} 1\n".to_owned(),
        format!("farpost_prompt_tokens_total{{model=\"e\",key=\"\"}} {n_tokens}\n"),
    ] {
        assert!(page.contains(&line), "{line} is missing in {page}");
    }
}

#[test]
fn deadlines_and_clients_that_go_away_end_it() {
    let (server, _model, _config) = start("ends", json!({ "parallel": 1 }));
    let input = json!(vec![vec![7; 400]; 2048]);
    let error = embed(&server, input.clone(), json!({ "deadline_ms": 1 }));
    assert!(matches!(error.status, 503 | 504), "{}", error.body);
    let request = json!({ "model": "e", "input": input, "reproducible": true }).to_string();
    let mut stream = connect(server.address);
    stream.write_all(post_request(PATH, &request, "").as_bytes()).unwrap();
    let running = || get(server.address, "/metrics").body.contains("farpost_running{model=\"e\"} 1\n");
    wait_until(running);
    drop(stream);
    wait_until(|| {
        let page = get(server.address, "/metrics").body;
        page.lines().any(|line| line.starts_with("farpost_cancelled_total{model=\"e\"") && line.ends_with(" 1"))
            && page.contains("farpost_running{model=\"e\"} 0\n")
    });
}

#[test]
fn a_batch_whose_answer_can_never_fit_is_refused_at_once() {
    let model = TempFile::with("capped.gguf", &file(3));
    let args = ["--model", model.path(), "--alias", "e", "--context", "64", "--parallel", "2"];
    let held = held_bytes(&serve(&args));
    let server = serve(&[&args[..], &["--memory-cap", &(held + (4 << 20)).to_string()]].concat());
    let many = |n: usize| json!(vec![[9, 8, 7]; n]);
    assert_eq!(vectors(&embed(&server, many(500), json!({}))).len(), 500);
    // 16 bytes a number, at most.
    let reply = embed(&server, many(2000), json!({}));
    assert_eq!((reply.error(507)["code"].as_str(), reply.header("retry-after")), (Some("insufficient_memory"), None));
    assert_eq!(vectors(&embed(&server, many(2000), json!({ "dimensions": 64 }))).len(), 2000);
    wait_until(|| {
        get(server.address, "/metrics").body.contains("farpost_memory_bytes{model=\"e\",kind=\"requests\"} 0\n")
    });
}
