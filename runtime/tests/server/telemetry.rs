//! What a collector is told, and that one that is not there harms nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value as Json, json};

use crate::chat::{PATH, ask};
use crate::http::{connect, get, post_request, raw};
use crate::program::{PATIENCE, Running, command, start_command};
use crate::streams::wait_until;

/// Takes messages and says yes to each.
fn collector() -> (SocketAddr, Receiver<(String, Json)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, messages) = channel();
    // Ends with the test.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length, mut path, mut secret) = (String::new(), 0, String::new(), String::new());
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                match line.trim().split_once(' ') {
                    Some(("POST", rest)) => rest.split(' ').next().unwrap_or("").clone_into(&mut path),
                    Some(("content-length:", value)) => length = value.parse().unwrap(),
                    Some(("x-secret:", value)) => value.clone_into(&mut secret),
                    _ => {}
                }
                line.clear();
            }
            assert_eq!(secret, "knock");
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
            if sender.send((path, serde_json::from_slice(&body).unwrap())).is_err() {
                return;
            }
        }
    });
    (address, messages)
}

fn serve_with(collector: SocketAddr) -> Running {
    let mut command = command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}"));
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-secret=knock").env("OTEL_SERVICE_NAME", "gate");
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "20");
    let mut running = start_command(command);
    running.wait_for("ready: ");
    running
}

/// The value of an attribute, as text.
fn attribute(of: &Json, key: &str) -> String {
    let list = of["attributes"].as_array().unwrap();
    let found = list.iter().find(|attribute| attribute["key"] == key);
    found.map_or(String::new(), |attribute| match &attribute["value"] {
        Json::Object(value) => value.values().next().unwrap().to_string().replace('"', ""),
        other => panic!("{other}"),
    })
}

#[test]
fn requests_and_times_are_told() {
    let (address, messages) = collector();
    let server = serve_with(address);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let headers = format!("traceparent: 00-{trace}-b7ad6b7169203331-01\r\nX-Request-Id: told\r\n");
    let usage =
        raw(server.address, post_request(PATH, &ask(json!({})).to_string(), &headers).as_bytes()).json(200)["usage"]
            .clone();
    // Who wants no trace gets none.
    let unwanted = headers.replace("-01\r", "-00\r").replace("told", "untold");
    raw(server.address, post_request(PATH, &ask(json!({})).to_string(), &unwanted).as_bytes()).json(200);
    // A request whose client goes away is told apart.
    let more = json!({ "ignore_eos": true, "stream": true });
    let mut gone = connect(server.address);
    gone.write_all(post_request(PATH, &ask(more).to_string(), &unwanted).as_bytes()).unwrap();
    gone.read_exact(&mut [0; 12]).unwrap();
    drop(gone);
    let (mut span, mut duration, mut all) = (Json::Null, Json::Null, Json::Null);
    while span.is_null() || duration.is_null() {
        let (path, message) = messages.recv_timeout(PATIENCE).unwrap();
        assert!(!message.to_string().contains("porch"), "{message}");
        match path.as_str() {
            "/v1/traces" => {
                let resource = &message["resourceSpans"][0];
                assert_eq!(attribute(&resource["resource"], "service.name"), "gate");
                let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
                assert_eq!(spans.len(), 1);
                span = spans[0].clone();
            }
            "/v1/metrics" => {
                let metrics = message["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].as_array().unwrap();
                let is_duration = |metric: &&Json| metric["name"] == "gen_ai.server.request.duration";
                let Some(metric) = metrics.iter().find(is_duration) else { continue };
                let points = &metric["histogram"]["dataPoints"];
                let good = points.as_array().unwrap().iter().find(|point| attribute(point, "error.type").is_empty());
                let n_broken = points.as_array().unwrap().len() - usize::from(good.is_some());
                if let Some(good) = good.filter(|good| good["count"] == "2" && n_broken == 1) {
                    duration = good.clone();
                    all = metrics.clone().into();
                }
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((&span["traceId"], &span["parentSpanId"]), (&trace.into(), &"b7ad6b7169203331".into()));
    assert_eq!((&span["name"], &span["kind"]), (&"chat pocket".into(), &2.into()));
    let expected = [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "pocket"),
        ("gen_ai.usage.input_tokens", &usage["prompt_tokens"].to_string()),
        ("gen_ai.usage.output_tokens", &usage["completion_tokens"].to_string()),
        ("gen_ai.response.finish_reasons", "{values:[{stringValue:stop}]}"),
        ("farpost.request.id", "told"),
    ];
    for (key, value) in expected {
        assert_eq!(attribute(&span, key), value, "{key}");
    }
    let time = |name: &str| span[name].as_str().unwrap().parse::<u128>().unwrap();
    assert!(time("startTimeUnixNano") < time("endTimeUnixNano"));
    assert_eq!(attribute(&duration, "gen_ai.operation.name"), "chat");
    let metric = |name: &str| {
        let found = all.as_array().unwrap().iter().find(|metric| metric["name"] == name);
        found.unwrap_or_else(|| panic!("{name}: {all}")).clone()
    };
    let points = metric("gen_ai.server.request.duration")["histogram"]["dataPoints"].clone();
    let errors: Vec<String> = points.as_array().unwrap().iter().map(|point| attribute(point, "error.type")).collect();
    assert!(errors.contains(&"cancelled".to_owned()), "{errors:?}");
    let tokens = metric("gen_ai.client.token.usage");
    assert_eq!(tokens["unit"], "{token}");
    for (kind, name) in [("input", "prompt_tokens"), ("output", "completion_tokens")] {
        let points = tokens["histogram"]["dataPoints"].as_array().unwrap();
        let point = points.iter().find(|point| attribute(point, "gen_ai.token.type") == kind).unwrap();
        // Two that are alike, and of the one that broke what there was of it.
        let least = 2.0 * usage[name].as_f64().unwrap();
        assert!((least..=least + 400.0).contains(&point["sum"].as_f64().unwrap()), "{kind}: {point}");
        assert_eq!(point["count"], "3");
    }
    let counts = duration["bucketCounts"].as_array().unwrap();
    assert_eq!(counts.len(), duration["explicitBounds"].as_array().unwrap().len() + 1);
    let n: u64 = counts.iter().map(|n| n.as_str().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!((n, attribute(&duration, "gen_ai.request.model").as_str()), (2, "pocket"));
}

#[test]
fn a_collector_that_is_not_there_harms_nothing() {
    // A port that nobody listens on, for now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut server = serve_with(address);
    let request = post_request(PATH, &ask(json!({})).to_string(), "");
    (0..3).for_each(|_| drop(raw(server.address, request.as_bytes()).json(200)));
    let failures = || {
        let page = get(server.address, "/metrics").body;
        let line = page.lines().find_map(|line| line.strip_prefix("farpost_otlp_failures_total ")?.parse::<u64>().ok());
        line.unwrap()
    };
    wait_until(|| failures() > 1);
    assert!(get(server.address, "/metrics").body.contains("farpost_otlp_spans_total 0\n"));
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_collector_without_an_address_is_refused() {
    for wrong in ["localhost:4318", "https://localhost:4318", "ftp://a"] {
        let output = command(&["--otlp-endpoint", wrong]).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && err.contains("expected http://HOST:PORT"), "{err}");
    }
}
