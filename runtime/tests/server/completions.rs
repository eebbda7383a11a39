//! Completions: texts and token ids as prompts, several at once.

use serde_json::{Value as Json, json};

use crate::http::{chunks, post};
use crate::program::{model, serve};

const PATH: &str = "/v1/completions";

fn ask(prompt: Json, more: Json) -> Json {
    let mut request = json!({ "model": "tiny-llama", "prompt": prompt, "max_tokens": 6, "temperature": 0 });
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

#[test]
fn prompts_are_texts_or_ids_one_or_many() {
    let server = serve(&["--model", &model("tiny-llama.gguf")]);
    let texts = |prompt: Json| {
        let answer = post(server.address, PATH, &ask(prompt, json!({}))).json(200);
        assert_eq!(answer["object"], "text_completion");
        assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
        let choices = answer["choices"].as_array().unwrap().clone();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let one = texts(json!("the first"));
    let other = texts(json!([5, 9, 12]));
    assert_eq!((one.len(), other.len()), (1, 1));
    assert_eq!(texts(json!(["the first", [5, 9, 12]])), [one[0].clone(), other[0].clone()]);
    assert_eq!(texts(json!(["the first"])), one);
    let answer = post(server.address, PATH, &ask(json!(["a b", "c d"]), json!({ "n": 2 }))).json(200);
    let indices: Vec<u64> =
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    // Prompts of one request do not supersede each other.
    let more = json!({ "supersede_key": "k" });
    let answer = post(server.address, PATH, &ask(json!(["a b", "c d"]), more)).json(200);
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(2));
    for (wrong, param) in [
        (json!(null), "prompt"),
        (json!([]), "prompt"),
        (json!([[]]), "prompt[0]"),
        (json!([1, "x"]), "prompt"),
        (json!(["x", 1]), "prompt"),
        (json!([[1.5]]), "prompt[0]"),
        (json!([99_999_999]), "prompt"),
        (json!({}), "prompt"),
        (json!([]), "prompt"),
        (json!(""), "prompt"),
        (json!([""]), "prompt[0]"),
        (json!(["x", [1], [], "y"]), "prompt[2]"),
    ] {
        let error = post(server.address, PATH, &ask(wrong.clone(), json!({}))).error(400);
        assert_eq!(error["param"], param, "{wrong}: {error}");
    }
    for more in [
        json!({ "echo": true }),
        json!({ "suffix": "x" }),
        json!({ "best_of": 2 }),
        json!({ "messages": [] }),
        json!({ "ignore_eos": true, "regex": "a" }),
    ] {
        let param = more.as_object().unwrap().keys().next().unwrap().clone();
        let error = post(server.address, PATH, &ask(json!("x"), more)).error(400);
        assert_eq!(error["param"], param.as_str(), "{error}");
    }
}

/// Bytes that the engines of a server hold for keys, values and scratch.
pub fn held_bytes(server: &crate::program::Running) -> u64 {
    let page = crate::http::get(server.address, "/metrics").body;
    let is_held = |line: &&str| {
        line.starts_with("farpost_memory_bytes")
            && ["kv", "scratch"].iter().any(|kind| line.contains(&format!("\"{kind}\"")))
    };
    page.lines().filter(is_held).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn prompts_of_one_request_need_not_have_room_all_at_once() {
    let path = model("tiny-llama.gguf");
    let args = ["--model", &path, "--context", "128", "--parallel", "1", "--queue", "1"];
    let server = serve(&args);
    let many = |n: usize| json!(vec!["the first"; n]);
    let texts = |server: &crate::program::Running, prompt: Json, more: Json| {
        let answer = post(server.address, PATH, &ask(prompt, more)).json(200);
        let choices = answer["choices"].as_array().unwrap().clone();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let one = texts(&server, json!("the first"), json!({}));
    assert_eq!(texts(&server, many(64), json!({ "n": 2 })), vec![one[0].clone(); 128]);
    let form = json!({ "regex": "[ab]{3}" });
    let written = texts(&server, many(20), form.clone());
    assert!(written.len() == 20 && written.iter().all(|text| text.len() == 3), "{written:?}");
    // Room for the parser of one form, and not for that of two.
    let cap = (held_bytes(&server) + (7 << 20)).to_string();
    let server = serve(&[&args[..], &["--memory-cap", &cap]].concat());
    assert_eq!(texts(&server, many(20), form), written);
    // Its answers are to be written together: it never fits, and says so at once.
    let reply = post(server.address, PATH, &ask(many(2), json!({ "regex": "[ab]{3}", "n": 3 })));
    let error = reply.error(507);
    assert_eq!((&error["code"], reply.header("retry-after")), (&"insufficient_memory".into(), None));
    let message = error["message"].as_str().unwrap();
    let numbers: Vec<u64> = message.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] > numbers[1] && numbers[1] <= 7 << 20, "{message}");
    // One that is wrong is told before any is begun.
    let error = post(server.address, PATH, &ask(json!(["a", "b", [99_999_999]]), json!({ "stream": true }))).error(400);
    assert_eq!(error["param"], "prompt");
}

#[test]
fn pieces_of_a_stream_are_the_whole_text_with_its_log_probabilities() {
    let server = serve(&["--model", &model("tiny-llama.gguf")]);
    let more = json!({ "logprobs": 2 });
    let whole = post(server.address, PATH, &ask(json!("the first"), more)).json(200);
    let chunks =
        chunks(&post(server.address, PATH, &ask(json!("the first"), json!({ "logprobs": 2, "stream": true }))));
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, whole["choices"][0]["text"].as_str().unwrap());
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let told: Vec<Json> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["logprobs"][name].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(Json::from(told), whole["choices"][0]["logprobs"][name], "{name}");
        assert_eq!(whole["choices"][0]["logprobs"][name].as_array().map(Vec::len), Some(6));
    }
}

#[test]
fn a_model_without_a_template_does_not_chat() {
    let server = serve(&["--model", &model("tiny-llama.gguf")]);
    let request = json!({ "model": "tiny-llama", "messages": [{ "role": "user", "content": "hi" }] });
    let error = post(server.address, "/v1/chat/completions", &request).error(400);
    assert_eq!(error["param"], "model");
    assert!(error["message"].as_str().unwrap().contains("ask /v1/completions"), "{error}");
}

#[test]
fn texts_become_tokens_and_tokens_texts() {
    let server = serve(&["--model", &model("gemma-3-270m-q4_k_m.gguf"), "--alias", "g"]);
    let tokens = |request: Json| post(server.address, "/tokenize", &request).json(200);
    let told = tokens(json!({ "model": "g", "prompt": "The capital of France", "return_token_strs": true }));
    let ids = told["tokens"].as_array().unwrap();
    assert_eq!(
        (told["count"].as_u64(), told["token_strs"].as_array().map(Vec::len)),
        (Some(ids.len() as u64), Some(ids.len()))
    );
    let bare = tokens(json!({ "model": "g", "prompt": "The capital of France", "add_special_tokens": false }));
    assert_eq!(bare["tokens"].as_array().unwrap()[..], ids[1..], "the first one begins a text");
    let back = post(server.address, "/detokenize", &json!({ "model": "g", "tokens": bare["tokens"] })).json(200);
    assert_eq!(back["prompt"], "The capital of France");
    for (request, param) in [
        (json!({ "model": "g" }), "prompt"),
        (json!({ "model": "g", "prompt": "x", "messages": [] }), "prompt"),
        (json!({ "model": "g", "prompt": "x", "text": "y" }), "text"),
        (
            json!({ "model": "g", "messages": [{ "role": "user", "content": "x" }], "add_special_tokens": false }),
            "add_special_tokens",
        ),
    ] {
        assert_eq!(post(server.address, "/tokenize", &request).error(400)["param"], param);
    }
    for tokens in [json!(null), json!("x"), json!([-1]), json!([9_999_999])] {
        let error = post(server.address, "/detokenize", &json!({ "model": "g", "tokens": tokens })).error(400);
        assert_eq!(error["param"], "tokens");
    }
}

#[test]
fn texts_that_are_made_into_tokens_or_of_them_are_bounded() {
    let server = serve(&[]);
    let most = 1 << 20;
    let request = json!({ "model": "pocket", "prompt": "a".repeat(most + 1) });
    let error = post(server.address, "/tokenize", &request).error(400);
    assert_eq!(error["message"], "prompt has 1048577 bytes, expected at most 1048576");
    let tokens = |prompt: &str| {
        let request =
            json!({ "model": "pocket", "prompt": prompt, "add_special_tokens": false, "return_token_strs": true });
        post(server.address, "/tokenize", &request).json(200)
    };
    let told = tokens("a \"b\"");
    let texts: String = serde_json::from_value::<Vec<String>>(told["token_strs"].clone()).unwrap().concat();
    assert_eq!(texts, "a \"b\"");
    let ids: Vec<u64> = serde_json::from_value(told["tokens"].clone()).unwrap();
    assert_eq!(tokens("")["token_strs"], json!([]));
    let request = json!({ "model": "pocket", "tokens": vec![ids[0]; most + 1] });
    let error = post(server.address, "/detokenize", &request).error(400);
    assert!(error["param"] == "tokens" && error["message"].as_str().unwrap().contains("is a text of "), "{error}");
}

#[test]
fn what_a_user_writes_is_no_control_token() {
    let server = serve(&[]);
    let count = |text: &str| {
        let request = json!({ "model": "pocket", "messages": [{ "role": "user", "content": text }] });
        post(server.address, "/tokenize", &request).json(200)["count"].as_u64().unwrap()
    };
    assert!(count("<|USER|>") > count("") + 1);
}
