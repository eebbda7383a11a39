//! The log: one line a request, when it has ended, however it ended.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::{Value as Json, json};

use crate::http::{connect, get, head, post_request, raw};
use crate::program::{Running, model, serve};
use crate::streams::wait_until;

const COMPLETIONS: &str = "/v1/completions";

fn slow(more: &[&str]) -> Running {
    let path = model("gemma-3-270m-q4_k_m.gguf");
    serve(&[&["--model", &path, "--alias", "g", "--context", "2048", "--parallel", "1"], more].concat())
}

/// Sends a request for a long answer, under an id.
fn send(server: &Running, id: &str, more: Json) -> TcpStream {
    let mut request = json!({ "model": "g", "prompt": "Once upon a time", "ignore_eos": true });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut stream = connect(server.address);
    let text = post_request(COMPLETIONS, &request.to_string(), &format!("X-Request-Id: {id}\r\n"));
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

fn metric(server: &Running, line: &str) {
    wait_until(|| get(server.address, "/metrics").body.contains(&format!("{line}\n")));
}

/// Whether `time` is one as RFC 3339 has it, in UTC with milliseconds.
fn is_time(time: &str) -> bool {
    let form = "0000-00-00T00:00:00.000Z";
    time.len() == form.len()
        && time.bytes().zip(form.bytes()).all(|(c, form)| if form == b'0' { c.is_ascii_digit() } else { c == form })
}

#[test]
fn clients_that_go_away_are_in_the_log_with_how_far_they_were() {
    let mut server = slow(&["--json"]);
    let line = |server: &mut Running, id: &str| -> Json { serde_json::from_str(&server.wait_for(id)).unwrap() };
    // While it writes, another one waits.
    let writing = send(&server, "writes", json!({}));
    metric(&server, "farpost_running{model=\"g\"} 1");
    metric(&server, "farpost_time_to_first_token_seconds_count{model=\"g\",key=\"\"} 1");
    let waiting = send(&server, "waits", json!({}));
    metric(&server, "farpost_queue_depth{model=\"g\",lane=\"normal\"} 1");
    drop(waiting);
    let told = line(&mut server, "waits");
    assert_eq!((&told["status"], &told["phase"], &told["path"]), (&499.into(), &"queue".into(), &COMPLETIONS.into()));
    drop(writing);
    let told = line(&mut server, "writes");
    assert_eq!((&told["status"], &told["phase"], &told["reason"]), (&499.into(), &"decode".into(), &Json::Null));
    // Streamed, it has been told 200 by then.
    let mut streamed = send(&server, "streams", json!({ "stream": true }));
    let mut seen = [0; 12];
    streamed.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"HTTP/1.1 200");
    metric(&server, "farpost_running{model=\"g\"} 1");
    drop(streamed);
    assert_eq!(line(&mut server, "streams")["status"], 499);
    // Whoever closes a half of the connection, too, and gets no answer.
    let mut half = send(&server, "half", json!({}));
    metric(&server, "farpost_running{model=\"g\"} 1");
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half.read(&mut seen).unwrap(), 0);
    assert_eq!(line(&mut server, "half")["status"], 499);
    server.signal("TERM");
    let said = server.said();
    for id in ["waits", "writes", "streams", "half"] {
        assert_eq!(said.matches(&format!("\"request\":\"{id}\"")).count(), 1, "{id}: {said}");
    }
    assert!(!said.contains("Once upon"), "{said}");
}

#[test]
fn a_stream_has_its_line_when_it_ends_with_its_whole_time() {
    let mut server = slow(&[]);
    let mut stream = send(&server, "whole", json!({ "stream": true, "max_tokens": 12 }));
    let start = std::time::Instant::now();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let elapsed = start.elapsed().as_millis() as u64;
    let line = server.wait_for("whole");
    let words: Vec<&str> = line.split(' ').collect();
    let [time, "POST", "\"/v1/completions\"", "200", ms, "ms", "whole"] = words[..] else { panic!("{line}") };
    // Twelve steps take a time; its first token took less than all of them.
    let ms: u64 = ms.parse().unwrap();
    assert!(is_time(time) && ms > 0 && ms <= elapsed + 1, "{line} {elapsed}");
    // What breaks off is in the same line.
    let mut stream = send(&server, "broken", json!({ "stream": true, "deadline_ms": 1 }));
    bytes.clear();
    stream.read_to_end(&mut bytes).unwrap();
    let line = server.wait_for("broken");
    assert!(line.contains(" ms broken reason=deadline_"), "{line}");
    raw(server.address, head("HEAD", "/healthz", "X-Request-Id: empty\r\n").as_bytes());
    assert!(server.wait_for("empty").contains("HEAD \"/healthz\" 200 "));
    server.signal("TERM");
    let said = server.said();
    assert!(said.lines().all(|line| line.split_once(' ').is_some_and(|(time, _)| is_time(time))), "{said}");
    assert_eq!(said.matches(" broken").count(), 1, "{said}");
}

#[test]
fn models_that_are_unloaded_are_told() {
    let tiny = model("tiny-llama.gguf");
    let mut server = serve(&["--model", &tiny, "--alias", "tiny", "--idle-unload", "1"]);
    server.wait_for("model \"tiny\" was unloaded: nobody asked for it");
    let change = |what: &str| {
        let request = head("POST", &format!("/admin/models/tiny/{what}"), "Content-Length: 0\r\n");
        raw(server.address, request.as_bytes()).json(200)
    };
    change("load");
    change("unload");
    server.wait_for("model \"tiny\" was unloaded: that was asked for");
}
