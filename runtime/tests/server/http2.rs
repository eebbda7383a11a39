//! HTTP/2, in clear and over TLS: by a real client where it behaves, by frames where it does not.

use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, Method, Request, StatusCode};
use farpost::engine::EngineOptions;
use farpost::server::ServerOptions;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::chat::{PATH, ask};
use crate::embedded::with_server;
use crate::http::{connect, events, get};
use crate::program::{PATIENCE, model, serve};
use crate::streams::wait_until;
use crate::tls::{Authority, Files, client};

/// Runs what a client does, which may not take for ever.
fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let done = runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await });
    runtime.shutdown_background();
    done.expect("it does not hang")
}

/// A client on a connection that is open.
async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> SendRequest<Body> {
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// One that knows beforehand what is spoken.
async fn plain(address: SocketAddr) -> SendRequest<Body> {
    over(tokio::net::TcpStream::connect(address).await.unwrap()).await
}

fn request(method: Method, path: &str, body: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(format!("http://localhost{path}"));
    request.header("content-type", "application/json").body(Body::from(body.to_owned())).unwrap()
}

fn post(path: &str, body: &Json) -> Request<Body> {
    request(Method::POST, path, &body.to_string())
}

/// The next piece of a body; `None` at its end.
async fn piece(body: &mut Incoming) -> Option<String> {
    loop {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?.expect("it does not break");
        if let Ok(data) = frame.into_data() {
            return Some(String::from_utf8(data.to_vec()).unwrap());
        }
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    fn json(&self, status: u16) -> Json {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        serde_json::from_str(&self.text).unwrap()
    }
}

async fn send(client: &SendRequest<Body>, request: Request<Body>) -> Answer {
    sent(client.clone(), request).await
}

async fn sent(mut client: SendRequest<Body>, request: Request<Body>) -> Answer {
    let (head, mut body) = client.send_request(request).await.unwrap().into_parts();
    let mut text = String::new();
    while let Some(piece) = piece(&mut body).await {
        text.push_str(&piece);
    }
    Answer { status: head.status, headers: head.headers, text }
}

#[test]
fn requests_of_one_connection_are_answered_side_by_side() {
    let server = serve(&[]);
    let (whole, streamed) = (post(PATH, &ask(json!({}))), post(PATH, &ask(json!({ "stream": true }))));
    run(async {
        let client = plain(server.address).await;
        let requests = [whole, streamed, request(Method::GET, "/v1/models", ""), request(Method::GET, "/nothing", "")];
        let tasks = requests.map(|request| tokio::spawn(sent(client.clone(), request)));
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        let message = answers[0].json(200)["choices"][0]["message"]["content"].clone();
        assert!(answers[0].header("x-request-id").starts_with("req_"));
        assert_eq!((answers[1].status.as_u16(), answers[1].header("content-type")), (200, "text/event-stream"));
        let mut events = events(&answers[1].text);
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        let chunks = events.iter().map(|event| serde_json::from_str::<Json>(event).unwrap());
        let text: String =
            chunks.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect();
        assert_eq!(text, message);
        assert_eq!(answers[2].json(200)["data"][0]["id"], "pocket");
        assert_eq!(answers[3].json(404)["error"]["code"], "unknown_url");
        let wrong = send(&client, request(Method::DELETE, PATH, "")).await;
        assert_eq!(
            (wrong.json(405)["error"]["code"].clone(), wrong.header("allow")),
            ("method_not_allowed".into(), "POST")
        );
    });
    // Who speaks HTTP/1.1 is served as before, though it begins with the same letters.
    assert_eq!(
        crate::http::raw(server.address, &crate::http::head("PROPFIND", "/healthz", "").into_bytes()).status,
        405
    );
}

#[test]
fn hosts_and_origins_are_checked_as_everywhere() {
    let server = serve(&[]);
    run(async {
        let client = plain(server.address).await;
        let from = |authority: &str, origin: Option<&str>| {
            let request = Request::builder().uri(format!("http://{authority}/healthz"));
            let request = origin.into_iter().fold(request, |request, origin| request.header("origin", origin));
            request.body(Body::empty()).unwrap()
        };
        assert_eq!(send(&client, from("evil.example", None)).await.json(403)["error"]["code"], "host_refused");
        let port = server.address.port();
        let own = format!("localhost:{port}");
        assert_eq!(send(&client, from(&own, Some(&format!("http://{own}")))).await.status, 200);
        let answer = send(&client, from(&own, Some("http://evil.example"))).await;
        assert_eq!(answer.json(403)["error"]["code"], "origin_refused");
    });
}

#[test]
fn clients_choose_it_by_alpn() {
    let authority = Authority::new("farpost tests");
    let files = Files::new("http2", &authority.signs_well());
    let server = serve(&files.args());
    let mut config = (*client(&authority, None)).clone();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    run(async {
        let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let client = over(stream).await;
        assert_eq!(send(&client, post(PATH, &ask(json!({})))).await.json(200)["object"], "chat.completion");
    });
}

fn slow(more: &[&str]) -> crate::program::Running {
    let path = model("gemma-3-270m-q4_k_m.gguf");
    serve(&[&["--model", &path, "--alias", "g", "--context", "2048", "--threads", "1"], more].concat())
}

fn long(max_tokens: usize) -> Json {
    json!({ "model": "g", "prompt": "Once upon a time", "ignore_eos": true, "stream": true, "max_tokens": max_tokens })
}

#[test]
fn a_stream_that_is_reset_ends_its_request_and_no_other() {
    let server = slow(&[]);
    run(async {
        let client = plain(server.address).await;
        let begin = async |max_tokens: usize| {
            let sent = client.clone().send_request(post("/v1/completions", &long(max_tokens))).await.unwrap();
            let mut body = sent.into_body();
            let first = piece(&mut body).await.unwrap();
            (body, first)
        };
        let (reset, _) = begin(1900).await;
        let (mut kept, mut text) = begin(12).await;
        drop(reset);
        while let Some(piece) = piece(&mut kept).await {
            text.push_str(&piece);
        }
        assert_eq!(events(&text).last().map(String::as_str), Some("[DONE]"));
        // Nor does it end the connection.
        assert_eq!(send(&client, request(Method::GET, "/healthz", "")).await.status, 200);
    });
    wait_until(|| {
        let page = get(server.address, "/metrics").body;
        page.contains("farpost_cancelled_total{model=\"g\",key=\"\",phase=\"decode\"} 1\n")
            && page.contains("farpost_requests_total{model=\"g\",key=\"\",outcome=\"done\"} 1\n")
            && page.contains("farpost_running{model=\"g\"} 0\n")
    });
}

#[test]
fn an_answer_that_a_client_leaves_no_room_for_is_given_up() {
    let options = ServerOptions { write_timeout: Duration::from_millis(200), ..ServerOptions::default() };
    with_server(options, EngineOptions { context: Some(2048), ..EngineOptions::default() }, |address| {
        run(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            // A byte of each answer, and no more for as long as it is not read. Questions whether it lives are answered.
            client.initial_stream_window_size(1);
            let (mut client, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let sent = client.send_request(post("/v1/completions", &long(1900))).await.unwrap();
            assert_eq!(sent.status(), StatusCode::OK);
            let is_given_up = || {
                let page = get(address, "/metrics").body;
                page.contains("farpost_running{model=\"g\"} 0\n")
                    && page.contains("farpost_requests_total{model=\"g\",key=\"\",outcome=\"cancelled\"} 1\n")
            };
            while !is_given_up() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            drop(sent);
        });
    });
}

#[test]
fn what_runs_is_finished_when_the_server_ends() {
    let mut server = slow(&["--drain", "600"]);
    run(async {
        let client = plain(server.address).await;
        let sent = client.clone().send_request(post("/v1/completions", &long(12))).await.unwrap();
        let mut body = sent.into_body();
        let mut text = piece(&mut body).await.unwrap();
        server.signal("TERM");
        while let Some(piece) = piece(&mut body).await {
            text.push_str(&piece);
        }
        assert_eq!(events(&text).last().map(String::as_str), Some("[DONE]"));
    });
    assert_eq!(server.ended().code(), Some(0));
}

/// A frame: its type, flags, stream and content.
fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;

/// A connection whose client has said that it speaks HTTP/2.
fn begun(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    stream
}

/// The next frame: its type and content; `None` at the end.
fn read(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let mut content = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut content).ok()?;
    Some((head[3], content))
}

#[test]
fn a_connection_is_told_its_bounds_and_held_to_them() {
    let server = serve(&[]);
    let (kind, settings) = read(&mut begun(server.address)).unwrap();
    assert_eq!(kind, SETTINGS);
    let value = |id: u16| {
        let found = settings.chunks_exact(6).find(|entry| entry[..2] == id.to_be_bytes());
        found.map(|entry| u32::from_be_bytes(entry[2..].try_into().unwrap()))
    };
    // Streams at once, bytes of a stream's window, bytes of headers.
    assert_eq!([value(3), value(4), value(6)], [Some(64), Some(256 << 10), Some(16 << 10)]);
    run(async {
        let client = plain(server.address).await;
        let mut large = request(Method::GET, "/healthz", "");
        large.headers_mut().insert(HeaderName::from_static("x-large"), "y".repeat(20_000).parse().unwrap());
        assert_eq!(client.clone().send_request(large).await.unwrap().status(), 431);
        assert_eq!(send(&client, request(Method::GET, "/healthz", "")).await.status, 200);
    });
}

#[test]
fn requests_that_are_begun_and_reset_over_and_over_end_the_connection() {
    let server = serve(&[]);
    let mut stream = begun(server.address);
    let path = "/v1/completions";
    // POST http://localhost/v1/completions, whose body never comes.
    let mut head = vec![0x83, 0x86, 0x41, 9];
    head.extend(b"localhost");
    head.extend([&[0x44, path.len() as u8][..], path.as_bytes()].concat());
    head.extend([&[0x5F, 16][..], b"application/json"].concat());
    let (mut last, mut is_closed) = (None, false);
    for number in 0..2000_u32 {
        let id = 2 * number + 1;
        let both = [frame(HEADERS, END_HEADERS, id, &head), frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat();
        if stream.write_all(&both).is_err() {
            is_closed = true;
            break;
        }
        // Each is seen before it is reset.
        std::thread::yield_now();
    }
    while let Some(frame) = read(&mut stream) {
        last = Some(frame);
    }
    assert!(is_closed || last.is_some_and(|(kind, _)| kind == GOAWAY), "it goes on");
    assert_eq!(get(server.address, "/healthz").status, 200);
}

#[test]
fn connections_that_say_nothing_or_idle_are_closed() {
    let options = ServerOptions { head_timeout: Duration::from_millis(50), ..ServerOptions::default() };
    with_server(options, EngineOptions::default(), |address| {
        let mut bytes = Vec::new();
        for first in [&b""[..], b"PRI * HT"] {
            let mut silent = connect(address);
            silent.write_all(first).unwrap();
            silent.read_to_end(&mut bytes).unwrap();
            assert!(bytes.is_empty(), "{first:?}: {bytes:?}");
        }
        let mut idle = begun(address);
        // The settings come, then the notice that it ends, then the end.
        let kinds: Vec<u8> = std::iter::from_fn(|| read(&mut idle)).map(|(kind, _)| kind).collect();
        assert!(kinds.first() == Some(&SETTINGS) && kinds.contains(&GOAWAY), "{kinds:?}");
        run(async {
            let client = plain(address).await;
            assert_eq!(send(&client, request(Method::GET, "/healthz", "")).await.status, 200);
            let mut client = client;
            while !client.is_closed() {
                // It was closed, or will be.
                let _ = client.ready().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    });
}
