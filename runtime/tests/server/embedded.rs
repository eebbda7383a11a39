//! The server as a library: in this process, with settings that the program does not offer.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use farpost::engine::{Engine, EngineOptions, Models, ModelsOptions, Opened, Sampling};
use farpost::kernels::cpu::Cpu;
use farpost::server::{Served, Server, ServerOptions};
use farpost::{Model, ModelOptions};
use serde_json::json;

use crate::http::{connect, get, post_request, raw};
use crate::program::PATIENCE;
use crate::streams::wait_until;

const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

/// Runs a server while `test` asks it, once it is ready.
pub fn with_server(options: ServerOptions, engine: EngineOptions, test: impl FnOnce(SocketAddr)) {
    let options = ServerOptions { address: ([127, 0, 0, 1], 0).into(), is_quiet: true, ..options };
    let open = move |_: &str| {
        let path = farpost_firmware_tests::model(GEMMA);
        Ok(Opened::new(Model::open(&path, &ModelOptions::default())?, engine.clone()))
    };
    let models = Models::new(Box::new(open), Arc::new(Cpu::detect()), ModelsOptions::default());
    let served = vec![Served::new("g".to_owned(), Sampling::default())];
    let server = Server::bind(options, models, served).unwrap();
    let (address, handle) = (server.address(), server.handle());
    let (sender, ready) = mpsc::channel();
    let server = std::thread::spawn(move || server.run(move || sender.send(()).unwrap()));
    ready.recv_timeout(PATIENCE).unwrap();
    test(address);
    handle.stop();
    server.join().unwrap().unwrap();
}

#[test]
fn whoever_waits_sees_that_the_connection_lives() {
    let options = ServerOptions {
        ping_interval: Duration::from_millis(20),
        drain_timeout: Duration::ZERO,
        ..ServerOptions::default()
    };
    let engine = EngineOptions { max_running: 1, context: Some(1024), ..EngineOptions::default() };
    with_server(options, engine, |address| {
        let request = json!({ "model": "g", "prompt": "Once", "ignore_eos": true, "stream": true });
        let request = post_request("/v1/completions", &request.to_string(), "");
        let read_until = |stream: &mut std::net::TcpStream, part: &str| {
            let (mut seen, mut buffer) = (String::new(), [0; 1024]);
            while !seen.contains(part) {
                let n = stream.read(&mut buffer).unwrap();
                assert!(n > 0, "{seen}");
                seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
            }
            seen
        };
        let mut running = connect(address);
        running.write_all(request.as_bytes()).unwrap();
        read_until(&mut running, "data: ");
        let mut waiting = connect(address);
        waiting.write_all(request.as_bytes()).unwrap();
        let seen = read_until(&mut waiting, ": ping\n\n");
        assert!(!seen.contains("data: "), "{seen}");
        // Its turn comes when the other goes away.
        drop(running);
        read_until(&mut waiting, "data: ");
    });
}

#[test]
fn slow_clients_are_not_waited_for_and_others_are_served() {
    let options = ServerOptions {
        head_timeout: Duration::from_millis(50),
        body_timeout: Duration::from_millis(50),
        max_connections: 2,
        ..ServerOptions::default()
    };
    with_server(options, EngineOptions::default(), |address| {
        let mut silent = connect(address);
        silent.write_all(b"GET /healthz HT").unwrap();
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).unwrap();
        assert!(rest.starts_with(b"HTTP/1.1 408 Request Timeout\r\n"), "{}", String::from_utf8_lossy(&rest));
        assert_eq!(crate::http::parse(&rest).error(408)["code"], "request_timeout");
        // Whoever says nothing is told nothing.
        rest.clear();
        connect(address).read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        let half = "Content-Type: application/json\r\nContent-Length: 100\r\n";
        let reply = raw(address, (crate::http::head("POST", "/v1/completions", half) + "{").as_bytes());
        assert_eq!(reply.error(408)["code"], "request_timeout");
        assert_eq!(get(address, "/healthz").status, 200);
    });
}

#[test]
fn connections_that_idle_are_closed() {
    let options = ServerOptions { idle_timeout: Duration::from_millis(50), ..ServerOptions::default() };
    with_server(options, EngineOptions::default(), |address| {
        let mut kept = connect(address);
        let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        // Two on one connection, and then it ends by itself.
        kept.write_all(&[&request[..], request].concat()).unwrap();
        let mut bytes = Vec::new();
        kept.read_to_end(&mut bytes).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap().matches("HTTP/1.1 200 OK").count(), 2);
    });
}

#[test]
fn who_asks_while_a_model_is_loaded_is_held_or_told_when_to_come() {
    let path = farpost_firmware_tests::model("tiny-llama.gguf");
    // Each loading takes as long as the test wants.
    let (go_on, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let open = move |_: &str| {
        gate.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        Ok(Opened::new(Model::open(&path, &ModelOptions::default())?, EngineOptions::default()))
    };
    let options = ServerOptions {
        address: ([127, 0, 0, 1], 0).into(),
        is_quiet: true,
        load_wait: Duration::from_secs(60),
        ping_interval: Duration::from_millis(50),
        ..ServerOptions::default()
    };
    let models = Models::new(Box::new(open), Arc::new(Cpu::detect()), ModelsOptions::default());
    let served = vec![Served::new("t".to_owned(), Sampling::default())];
    let server = Server::bind(options, models, served).unwrap();
    let (address, handle) = (server.address(), server.handle());
    let server = std::thread::spawn(move || server.run(|| ()));
    let ask = move |is_stream: bool| {
        let request = json!({ "model": "t", "prompt": [5, 6], "max_tokens": 2, "stream": is_stream });
        raw(address, post_request("/v1/completions", &request.to_string(), "").as_bytes())
    };
    let state = || get(address, "/admin/models").json(200)["models"][0]["state"].clone();
    let refused = || {
        // A stream is silent for no longer than streams ever are.
        let reply = ask(true);
        let error = reply.error(503);
        assert_eq!((&error["type"], &error["code"]), (&"overloaded".into(), &"model_loading".into()));
        assert!(reply.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok()) >= Some(1));
    };
    let held = || std::thread::spawn(move || ask(false));
    let ready = get(address, "/readyz");
    let told = ready.json(503);
    assert_eq!((&told["status"], &told["server"]["state"]), (&"loading".into(), &"loading".into()));
    let expected = json!([{ "state": "loading", "reason": "it is being loaded", "name": "t" }]);
    assert_eq!(told["models"], expected);
    assert_eq!((&told["backends"][0]["state"], &told["degraded"]), (&"ok".into(), &json!(null)));
    assert!(ready.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok()) >= Some(1));
    assert_eq!(get(address, "/healthz").status, 200);
    refused();
    let waiting = held();
    go_on.send(()).unwrap();
    assert_eq!(waiting.join().unwrap().json(200)["usage"]["completion_tokens"], 2);
    wait_until(|| get(address, "/readyz").status == 200);
    assert_eq!(ask(true).status, 200);
    // The same when it is loaded again, though now it is known how long that takes.
    let unload = crate::http::head("POST", "/admin/models/t/unload", "Content-Length: 0\r\n");
    raw(address, unload.as_bytes()).json(200);
    assert_eq!(state(), "away");
    refused();
    assert_eq!(state(), "loading");
    let waiting = held();
    go_on.send(()).unwrap();
    assert_eq!(waiting.join().unwrap().status, 200);
    assert_eq!(ask(true).status, 200);
    handle.stop();
    server.join().unwrap().unwrap();
}

#[test]
fn what_needs_too_much_memory_is_told_whether_to_come_again() {
    let engine = EngineOptions { context: Some(2048), ..EngineOptions::default() };
    let model = Model::open(&farpost_firmware_tests::model(GEMMA), &ModelOptions::default()).unwrap();
    let memory = Engine::open(Arc::new(model), Arc::new(Cpu::detect()), &engine).unwrap().memory();
    // Choosing among all of its tokens takes some MiB a text: there is room for a few of them.
    let memory_cap = Some(memory.kv + memory.scratch + (32 << 20));
    let options = ServerOptions { drain_timeout: Duration::ZERO, ..ServerOptions::default() };
    with_server(options, EngineOptions { memory_cap, ..engine }, |address| {
        let request = |more: serde_json::Value| {
            let mut request = json!({ "model": "g", "prompt": "Once", "max_tokens": 1, "top_p": 0.9 });
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            post_request("/v1/completions", &request.to_string(), "")
        };
        let probe = || raw(address, request(json!({ "n": 3 })).as_bytes());
        let reply = raw(address, request(json!({ "n": 64 })).as_bytes());
        let error = reply.error(507);
        assert_eq!((&error["type"], &error["code"]), (&"insufficient_memory".into(), &"insufficient_memory".into()));
        assert_eq!(reply.header("retry-after"), None);
        assert_eq!(probe().status, 200);
        // What others hold is given back some day.
        let mut others = Vec::new();
        let refused = loop {
            assert!(others.len() < 16, "there is room without end");
            let mut other = connect(address);
            let long = json!({ "stream": true, "ignore_eos": true, "max_tokens": 2000 });
            other.write_all(request(long).as_bytes()).unwrap();
            let mut head = [0; 12];
            other.read_exact(&mut head).unwrap();
            others.push(other);
            let reply = if &head == b"HTTP/1.1 200" { probe() } else { break probe() };
            if reply.status != 200 {
                break reply;
            }
        };
        let error = refused.error(503);
        assert_eq!((&error["type"], &error["code"]), (&"overloaded".into(), &"insufficient_memory".into()));
        assert!(refused.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok()) >= Some(1));
        drop(others);
        wait_until(|| probe().status == 200);
    });
}

#[test]
fn one_address_has_so_many_connections_and_no_more() {
    let options = ServerOptions { max_connections_per_address: 2, ..ServerOptions::default() };
    with_server(options, EngineOptions::default(), |address| {
        let idle = connect(address);
        assert_eq!(get(address, "/healthz").status, 200);
        let mut other = connect(address);
        other.write_all(b"GET /healthz HT").unwrap();
        let mut refused = connect(address);
        let mut bytes = Vec::new();
        refused.read_to_end(&mut bytes).unwrap();
        let reply = crate::http::parse(&bytes);
        assert_eq!(
            (&reply.error(503)["code"], reply.header("retry-after")),
            (&"too_many_connections".into(), Some("1"))
        );
        // Others have places of their own.
        let local = SocketAddr::from(([127, 0, 0, 2], 0));
        let mut stream = connect_from(local, address);
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        bytes.clear();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(crate::http::parse(&bytes).status, 200);
        drop((idle, other));
        crate::streams::wait_until(|| get(address, "/healthz").status == 200);
    });
}

/// A connection from another address of this machine.
fn connect_from(local: SocketAddr, address: SocketAddr) -> std::net::TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(local).unwrap();
        let stream = socket.connect(address).await.unwrap().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    })
}
