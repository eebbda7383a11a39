//! Heads of requests that two on their way may read in two ways, heads that come slowly, and connections without end.

use std::io::{Read, Write};

use serde_json::json;

use crate::chat::{PATH, ask};
use crate::http::{Reply, connect, get, head, parse, raw};
use crate::program::{Running, serve};

/// The answer to a request on a connection that is to be kept, and whether it was closed after it.
fn kept(server: &Running, request: &str) -> (Reply, bool) {
    let request = request.replace("Connection: close\r\n", "");
    let mut stream = connect(server.address);
    // Whether the second one is answered says whether the connection went on.
    stream.write_all((request + &head("GET", "/healthz", "")).as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let second = text.rfind("HTTP/1.1 200 OK").filter(|place| *place > 0);
    (parse(&text.as_bytes()[..second.unwrap_or(text.len())]), second.is_none())
}

#[test]
fn what_can_be_read_in_two_ways_is_refused_and_ends_the_connection() {
    let server = serve(&[]);
    let body = ask(json!({})).to_string();
    let json_type = "Content-Type: application/json\r\n";
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let post = |more: &str, body: &str| head("POST", PATH, &format!("{json_type}{more}")) + body;
    let length = format!("Content-Length: {}\r\n", body.len());
    for bad in [
        post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", &chunked),
        post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &chunked),
        post("Transfer-Encoding: gzip, chunked\r\n", &chunked),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &chunked),
        post(&format!("{length}Host: localhost\r\n"), &body),
        post(&format!("{length}{length}"), &body),
        head("GET", "/healthz", "Host: evil.com\r\n"),
        head("GET", "/healthz", "").replace("Host: localhost\r\n", ""),
        head("GET", "http://localhost/healthz", "").replace("Host: localhost\r\n", ""),
    ] {
        let (reply, is_closed) = kept(&server, &bad);
        let error = reply.error(400);
        assert_eq!(
            (&error["type"], &error["code"]),
            (&"invalid_request_error".into(), &"malformed_head".into()),
            "{bad}"
        );
        assert!(is_closed && reply.header("connection") == Some("close"), "{bad}");
        for name in ["x-request-id", "x-farpost-version", "openai-processing-ms", "date"] {
            assert!(reply.header(name).is_some(), "{name}: {bad}");
        }
    }
    for good in [post("Transfer-Encoding: chunked\r\n", &chunked), post(&length, &body), head("GET", "/healthz", "")] {
        let (reply, is_closed) = kept(&server, &good);
        assert!(reply.status == 200 && !is_closed, "{good}: {}", reply.body);
    }
    let gzip = post(&format!("{length}Content-Encoding: gzip\r\n"), &body);
    assert_eq!(raw(server.address, gzip.as_bytes()).error(415)["code"], "unsupported_media_type");
}

#[test]
fn answers_from_below_the_routes_have_the_fields_of_all_answers() {
    let server = serve(&[]);
    let usual = get(server.address, "/healthz");
    let long = "x".repeat(17_000);
    for (bad, status) in [
        ("GET\r\n\r\n".to_owned(), 400),
        (head("GET", &format!("/{long}"), ""), 414),
        (head("GET", "/", &format!("X: {long}\r\n")), 431),
    ] {
        let reply = raw(server.address, bad.as_bytes());
        reply.error(status);
        let named = |name: &str| reply.header(name).unwrap_or_else(|| panic!("{name}: {status}"));
        assert_eq!(named("x-farpost-version"), usual.header("x-farpost-version").unwrap());
        assert_eq!(named("openai-processing-ms"), "0");
        // The same form: `Sun, 06 Nov 1994 08:49:37 GMT`.
        let date = named("date");
        assert!(date.len() == 29 && date.ends_with(" GMT") && &date[3..5] == ", ", "{date}");
        assert_eq!(date[8..16], usual.header("date").unwrap()[8..16], "{date}");
    }
}

#[test]
fn the_host_of_the_target_counts() {
    let server = serve(&[]);
    let ask = |target: &str| raw(server.address, head("GET", target, "").as_bytes());
    assert_eq!(ask("http://evil.com/healthz").error(403)["code"], "host_refused");
    assert_eq!(ask("http://localhost/healthz").status, 200);
}

#[test]
fn addresses_that_are_too_long_are_told_from_heads() {
    let server = serve(&[]);
    let request = |path: &str, more: &str| {
        let mut stream = connect(server.address);
        let _ = stream.write_all(head("GET", path, more).as_bytes());
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8(bytes).unwrap()
    };
    let long = "x".repeat(17_000);
    let said = request(&format!("/{long}"), "");
    assert!(said.starts_with("HTTP/1.1 414 URI Too Long\r\n") && said.contains("\"uri_too_long\""), "{said}");
    let said = request("/healthz", &format!("X: {long}\r\n"));
    assert!(said.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{said}");
    let metrics = get(server.address, "/metrics").body;
    let line = "farpost_refused_total{reason=\"uri_too_long\",model=\"\",key=\"\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");
}
