//! Streams: framing, the order of chunks, usage on request only, and what happens when the client goes away.

use std::io::{Read, Write};

use serde_json::{Value as Json, json};

use crate::chat::{PATH, ask};
use crate::http::{chunks, connect, events, get, post, post_request};
use crate::program::serve;

fn stream(more: Json) -> Json {
    let mut request = ask(more);
    request["stream"] = true.into();
    request
}

#[test]
fn chunks_come_in_the_order_of_the_protocol() {
    let server = serve(&[]);
    let whole = post(server.address, PATH, &ask(json!({}))).json(200);
    let chunks = chunks(&post(server.address, PATH, &stream(json!({}))));
    let names: Vec<&String> = chunks[0].as_object().unwrap().keys().collect();
    assert_eq!(names, ["id", "object", "created", "model", "system_fingerprint", "reproducible", "choices"]);
    for chunk in &chunks {
        assert_eq!((&chunk["id"], &chunk["created"]), (&chunks[0]["id"], &chunks[0]["created"]));
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["choices"].as_array().map(Vec::len), Some(1));
        assert_eq!(chunk["choices"][0]["index"], 0);
        // Null is there, not missing.
        assert!(chunk["choices"][0].as_object().unwrap().contains_key("finish_reason"));
        assert!(chunk.get("usage").is_none());
    }
    let (first, rest) = chunks.split_first().unwrap();
    let (last, texts) = rest.split_last().unwrap();
    assert_eq!(first["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert_eq!((&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]), (&json!({}), &"stop".into()));
    assert!(texts.len() > 3, "text comes as it is written");
    let mut text = String::new();
    for chunk in texts {
        assert_eq!(chunk["choices"][0]["finish_reason"], Json::Null);
        let delta = chunk["choices"][0]["delta"].as_object().unwrap();
        assert_eq!(delta.keys().collect::<Vec<_>>(), ["content"]);
        text.push_str(delta["content"].as_str().unwrap());
    }
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
}

#[test]
fn usage_comes_last_if_it_is_asked_for() {
    let server = serve(&[]);
    let whole = post(server.address, PATH, &ask(json!({}))).json(200);
    let reply = post(server.address, PATH, &stream(json!({ "stream_options": { "include_usage": true } })));
    let chunks = chunks(&reply);
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][name], whole["usage"][name], "{name}");
    }
    assert!(rest.iter().all(|chunk| chunk["usage"] == Json::Null && chunk.get("usage").is_some()));
}

#[test]
fn every_choice_has_its_role_its_text_and_its_end() {
    let server = serve(&[]);
    let more = json!({ "n": 3, "temperature": 1.5, "seed": 3, "max_tokens": 10, "ignore_eos": true });
    let whole = post(server.address, PATH, &ask(more.clone())).json(200);
    let chunks = chunks(&post(server.address, PATH, &stream(more)));
    for index in 0..3_usize {
        let own: Vec<&Json> =
            chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index).collect();
        assert_eq!(own[0]["delta"]["role"], "assistant");
        assert!(own[1..].iter().all(|choice| choice["delta"].get("role").is_none()));
        let ends: Vec<usize> = (0..own.len()).filter(|&place| !own[place]["finish_reason"].is_null()).collect();
        assert_eq!(ends, [own.len() - 1]);
        let text: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, whole["choices"][index]["message"]["content"].as_str().unwrap());
    }
}

#[test]
fn no_part_of_a_stop_string_is_shown() {
    let server = serve(&[]);
    let whole = post(server.address, PATH, &ask(json!({}))).json(200);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    for stop in ["\"arguments\"", "{", "porch", "never there"] {
        let chunks = chunks(&post(server.address, PATH, &stream(json!({ "stop": [stop] }))));
        let told: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(Some(told.as_str()), text.split(stop).next(), "{stop}");
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn log_probabilities_come_with_the_text_they_belong_to() {
    let server = serve(&[]);
    let more = json!({ "logprobs": true, "top_logprobs": 1 });
    let whole = post(server.address, PATH, &ask(more.clone())).json(200);
    let chunks = chunks(&post(server.address, PATH, &stream(more)));
    let told: Vec<Json> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(Json::from(told), whole["choices"][0]["logprobs"]["content"]);
}

#[test]
fn what_is_wrong_is_refused_before_the_stream() {
    let server = serve(&[]);
    let reply = post(server.address, PATH, &stream(json!({ "temperature": 9 })));
    assert_eq!(reply.error(400)["param"], "temperature");
}

/// A value of `/metrics`.
fn metric(server: &crate::program::Running, line: &str) -> f64 {
    let page = get(server.address, "/metrics").body;
    let value = page.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{line} is missing in {page}"))
}

#[test]
fn whoever_goes_away_is_not_worked_for() {
    let path = crate::program::model("gemma-3-270m-q4_k_m.gguf");
    let server = serve(&["--model", &path, "--alias", "g", "--context", "2048"]);
    for is_stream in [true, false] {
        let request = json!({ "model": "g", "prompt": "Once upon a time", "ignore_eos": true, "stream": is_stream });
        let mut stream = connect(server.address);
        stream.write_all(post_request("/v1/completions", &request.to_string(), "").as_bytes()).unwrap();
        if is_stream {
            let mut seen = Vec::new();
            let mut buffer = [0; 4096];
            while !String::from_utf8_lossy(&seen).contains("data: ") {
                let n = stream.read(&mut buffer).unwrap();
                assert!(n > 0);
                seen.extend_from_slice(&buffer[..n]);
            }
        } else {
            wait_until(|| metric(&server, "farpost_running{model=\"g\"}") == 1.0);
        }
        drop(stream);
        // Long before 2,048 tokens are written.
        wait_until(|| metric(&server, "farpost_running{model=\"g\"}") == 0.0);
    }
    let cancelled = metric(&server, "farpost_requests_total{model=\"g\",key=\"\",outcome=\"cancelled\"}");
    let done = metric(&server, "farpost_requests_total{model=\"g\",key=\"\",outcome=\"done\"}");
    assert_eq!((cancelled, done), (2.0, 0.0));
}

/// Waits for a fact, not for a time.
#[track_caller]
pub fn wait_until(is_so: impl Fn() -> bool) {
    let end = std::time::Instant::now() + crate::program::PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < end, "it never was so");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn characters_of_several_tokens_are_whole() {
    let path = crate::program::model("gemma-3-270m-q4_k_m.gguf");
    let server = serve(&["--model", &path, "--alias", "g", "--context", "512"]);
    let request = json!({
        "model": "g", "prompt": "Emojis: 🦊🐙🦩🫠🪿🦊🐙🦩🫠🪿🦊🐙🦩🫠🪿", "max_tokens": 24, "temperature": 1.5, "seed": 1, "stream": true,
    });
    let reply = post(server.address, "/v1/completions", &request);
    // That each event is UTF-8 was seen when it was parsed.
    assert_eq!(events(&reply.body).last().unwrap(), "[DONE]");
    assert!(reply.chunks.len() > 3, "events come one by one");
}
