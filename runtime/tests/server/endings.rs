//! How a server ends and does not begin: drained in good order, at once when told twice, and with exit codes.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::http::{chunks, connect, get, parse, post_request};
use crate::program::{command, model, serve};
use crate::streams::wait_until;

const PATH: &str = "/v1/completions";

/// Begins a long stream and reads its first bytes.
fn begin(server: &crate::program::Running, max_tokens: usize) -> (TcpStream, Vec<u8>) {
    let request = json!({ "model": "g", "prompt": "Once upon a time", "ignore_eos": true, "stream": true, "max_tokens": max_tokens });
    let mut stream = connect(server.address);
    stream.write_all(post_request(PATH, &request.to_string(), "").as_bytes()).unwrap();
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&seen).contains("data: ") {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..n]);
    }
    (stream, seen)
}

fn slow(more: &[&str]) -> crate::program::Running {
    let path = model("gemma-3-270m-q4_k_m.gguf");
    serve(&[&["--model", &path, "--alias", "g", "--context", "2048"], more].concat())
}

#[test]
fn what_runs_is_finished_and_nothing_new_is_taken() {
    // Longer than it takes on any machine.
    let mut server = slow(&["--drain", "600"]);
    // Open before the end, used after it.
    let mut idle = connect(server.address);
    let (mut stream, mut seen) = begin(&server, 60);
    server.signal("TERM");
    wait_until(|| get(server.address, "/readyz").status == 503);
    let mut bytes = Vec::new();
    let keep = crate::http::head("GET", "/readyz", "").replace("Connection: close\r\n", "");
    idle.write_all(keep.as_bytes()).unwrap();
    idle.read_to_end(&mut bytes).unwrap();
    let ready = parse(&bytes);
    let told = ready.json(503);
    assert_eq!((&told["status"], &told["server"]["reason"]), (&"draining".into(), &"it is shutting down".into()));
    assert_eq!(told["models"], json!([{ "state": "loaded", "reason": null, "name": "g" }]));
    let request = json!({ "model": "g", "prompt": "and then", "max_tokens": 4 }).to_string();
    let refused = crate::http::raw(server.address, post_request(PATH, &request, "").as_bytes());
    assert_eq!(refused.error(503)["code"], "draining");
    for reply in [&ready, &refused] {
        assert_eq!((reply.header("connection"), reply.header("retry-after")), (Some("close"), Some("1")));
    }
    let health = "farpost_health{component=\"server\"} 1\n";
    assert!(get(server.address, "/metrics").body.contains(health));
    stream.read_to_end(&mut seen).unwrap();
    let chunks = chunks(&parse(&seen));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn what_is_not_done_in_time_is_told_so() {
    let mut server = slow(&["--drain", "0"]);
    let (mut stream, mut seen) = begin(&server, 1900);
    server.signal("TERM");
    stream.read_to_end(&mut seen).unwrap();
    let reply = parse(&seen);
    let events = crate::http::events(&reply.body);
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!((&last["error"]["code"], &last["error"]["type"]), (&"draining".into(), &"overloaded".into()));
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = slow(&[]);
    let (_stream, _) = begin(&server, 1900);
    server.signal("INT");
    wait_until(|| get(server.address, "/readyz").status == 503);
    server.signal("INT");
    assert_eq!(server.ended().code(), Some(130));
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = slow(&["--parallel", "1", "--queue", "1"]);
    let (_running, _) = begin(&server, 1900);
    // Its first token may be told before its place in the queue is free.
    wait_until(|| get(server.address, "/metrics").body.contains("farpost_running{model=\"g\"} 1\n"));
    let request = json!({ "model": "g", "prompt": "and then", "max_tokens": 4 }).to_string();
    let mut waiting = connect(server.address);
    waiting.write_all(post_request(PATH, &request, "").as_bytes()).unwrap();
    wait_until(|| {
        get(server.address, "/metrics").body.contains("farpost_queue_depth{model=\"g\",lane=\"normal\"} 1\n")
    });
    let reply = crate::http::raw(server.address, post_request(PATH, &request, "").as_bytes());
    let error = reply.error(429);
    assert_eq!((&error["type"], &error["code"]), (&"rate_limit_error".into(), &"queue_full".into()));
    assert!(reply.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok()) >= Some(1));
}

#[test]
fn a_deadline_that_no_waiting_helps_does_not_say_when_to_come_again() {
    let server = slow(&["--parallel", "1"]);
    let ask = |max_tokens: usize, deadline_ms: u64| {
        let request = json!({ "model": "g", "prompt": "Once", "max_tokens": max_tokens, "ignore_eos": true, "deadline_ms": deadline_ms });
        crate::http::raw(server.address, post_request(PATH, &request.to_string(), "").as_bytes())
    };
    // How long steps take is known from then on.
    ask(8, 60_000).json(200);
    let reply = ask(1900, 1);
    assert_eq!(reply.error(503)["code"], "deadline_unreachable");
    assert_eq!(reply.header("retry-after"), None);
    // Behind a long answer a short one is late for that alone.
    let (_running, _) = begin(&server, 1900);
    wait_until(|| get(server.address, "/metrics").body.contains("farpost_running{model=\"g\"} 1\n"));
    // One that is longer than answers are on average is expected to go on to its end.
    wait_until(|| {
        let page = get(server.address, "/metrics").body;
        let count = "farpost_inter_token_seconds_count{model=\"g\",key=\"\"} ";
        page.lines().any(|line| line.strip_prefix(count).is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n > 30)))
    });
    let reply = ask(1, 1500);
    assert_eq!(reply.error(503)["code"], "deadline_unreachable");
    assert!(reply.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok()) >= Some(1));
}

#[test]
fn a_server_that_can_not_begin_says_why() {
    let output = command(&["--model", "/nonexistent.gguf"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let server = serve(&[]);
    let port = server.address.port().to_string();
    let output = command(&["--port", &port]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains(&format!("cannot listen on 127.0.0.1:{port}")) && err.contains("hint: --port"), "{err}");
}
