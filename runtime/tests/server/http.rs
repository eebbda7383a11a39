//! HTTP over a plain socket, taken apart byte by byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value as Json;

use crate::program::PATIENCE;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without the framing of chunks.
    pub body: String,
    /// Chunks as they came, of a body that came in chunks.
    pub chunks: Vec<String>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body, if the status is this one.
    #[track_caller]
    pub fn json(&self, status: u16) -> Json {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// What an error says, if it is one of this status.
    #[track_caller]
    pub fn error(&self, status: u16) -> Json {
        let json = self.json(status);
        let error = json["error"].as_object().unwrap_or_else(|| panic!("{json}"));
        let names: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(names, ["message", "type", "param", "code"]);
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(1));
        json["error"].clone()
    }
}

/// Opens a connection.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends bytes as they are and reads one answer to the end of the connection.
#[track_caller]
pub fn raw(address: SocketAddr, request: &[u8]) -> Reply {
    let mut stream = connect(address);
    // A server that has read enough may close before all is sent.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    parse(&bytes)
}

/// The head of a request with further header lines, each ended.
pub fn head(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n")
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    raw(address, head("GET", path, "").as_bytes())
}

pub fn post(address: SocketAddr, path: &str, body: &Json) -> Reply {
    post_text(address, path, &body.to_string())
}

pub fn post_text(address: SocketAddr, path: &str, body: &str) -> Reply {
    raw(address, post_request(path, body, "").as_bytes())
}

/// A whole request with a body of JSON.
pub fn post_request(path: &str, body: &str, more: &str) -> String {
    let more = format!("Content-Type: application/json\r\nContent-Length: {}\r\n{more}", body.len());
    head("POST", path, &more) + body
}

/// Takes an answer apart.
#[track_caller]
pub fn parse(bytes: &[u8]) -> Reply {
    let text = std::str::from_utf8(bytes).expect("answers are UTF-8, even where they are cut");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").expect("a header has a name and a value");
        (name.to_ascii_lowercase(), value.to_owned())
    };
    let headers: Vec<_> = lines.map(header).collect();
    let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let chunks = if is_chunked { unchunked(body) } else { Vec::new() };
    let body = if is_chunked { chunks.concat() } else { body.to_owned() };
    Reply { status: status.expect("an answer begins with its status"), headers, body, chunks }
}

/// The chunks of a body; the last one, which is empty, must be there.
fn unchunked(mut body: &str) -> Vec<String> {
    let mut chunks = Vec::new();
    loop {
        let (size, rest) = body.split_once("\r\n").unwrap_or_else(|| panic!("no chunk: {body:?}"));
        let size = usize::from_str_radix(size, 16).expect("a chunk begins with its size");
        let (chunk, rest) = rest.split_at(size);
        body = rest.strip_prefix("\r\n").expect("a chunk ends with a line break");
        if size == 0 {
            assert_eq!(body, "");
            return chunks;
        }
        chunks.push(chunk.to_owned());
    }
}

/// The events of a stream, each checked to be one line of data and a blank line. Comments are left out.
#[track_caller]
pub fn events(body: &str) -> Vec<String> {
    assert!(body.ends_with("\n\n"), "{body:?}");
    let blocks = body.strip_suffix("\n\n").unwrap().split("\n\n");
    let blocks = blocks.filter(|block| *block != ": ping");
    blocks
        .map(|block| {
            let data = block.strip_prefix("data: ").unwrap_or_else(|| panic!("no event: {block:?}"));
            assert!(!data.contains(['\n', '\r']), "{data:?}");
            data.to_owned()
        })
        .collect()
}

/// The chunks of a stream that ended well.
#[track_caller]
pub fn chunks(reply: &Reply) -> Vec<Json> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    let mut events = events(&reply.body);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).expect("an event is JSON")).collect()
}
