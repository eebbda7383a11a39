//! Routes beside those for text: health, version, metrics, models; and what is said where there is nothing.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use serde_json::{Value as Json, json};

use crate::chat::{PATH, ask};
use crate::http::{get, head, post, raw};
use crate::program::{TempFile, serve, start};

#[test]
fn health_version_and_models_are_told() {
    let mut server = start(&[]);
    assert_eq!(get(server.address, "/healthz").json(200), json!({ "status": "ok" }));
    server.wait_for("ready: ");
    assert_eq!(get(server.address, "/readyz").json(200), json!({ "status": "ready" }));
    let version = get(server.address, "/version").json(200);
    assert_eq!((&version["program"], &version["version"]), (&"farpost".into(), &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(version["models"][0]["name"], "pocket");
    let commit = version["commit"].as_str().unwrap();
    assert!(commit == "unknown" || commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{version}");
    assert!(version["built"].as_u64() > Some(1_600_000_000), "{version}");
    assert_eq!(version["features"], json!(["pocket", "grammar", "server"]));
    let backend = &version["backends"][0];
    assert!(backend["state"] == "ok" && backend["reason"].as_str().unwrap().starts_with("computes with "), "{version}");
    assert!(version["models"][0]["quantization"].is_string(), "{version}");
    let line = format!("farpost_build_info{{version=\"{}\",commit=\"{commit}\"}} 1\n", env!("CARGO_PKG_VERSION"));
    assert!(get(server.address, "/metrics").body.contains(&line));
    crate::streams::wait_until(|| {
        let version = get(server.address, "/version").json(200);
        version["models"][0]["sha256"].as_str().is_some_and(|hash| hash.len() == 64)
    });
    let models = get(server.address, "/v1/models").json(200);
    let model = models["data"][0].clone();
    assert_eq!(
        (&models["object"], &model["id"], &model["object"]),
        (&"list".into(), &"pocket".into(), &"model".into())
    );
    assert_eq!(get(server.address, "/v1/models/pocket").json(200), model);
    assert_eq!(get(server.address, "/v1/models/other").error(404)["code"], "model_not_found");
    let reply = post(server.address, PATH, &ask(json!({})));
    let answer = reply.json(200);
    let print = answer["system_fingerprint"].as_str().unwrap().strip_prefix("fp_").unwrap();
    let (version, print) = print.split_once('_').unwrap();
    assert_eq!(reply.header("x-farpost-version"), Some(&*format!("{version} model={print}")));
}

#[test]
fn a_model_has_one_fingerprint_from_its_first_answer_on() {
    let server = serve(&["--model", &crate::program::model("gemma-3-270m-q4_k_m.gguf"), "--alias", "g"]);
    let ask = json!({ "model": "g", "prompt": "a", "max_tokens": 1 });
    let first = post(server.address, "/v1/completions", &ask).json(200)["system_fingerprint"].clone();
    assert!(first.as_str().is_some_and(|text| text.starts_with("fp_")), "{first}");
    crate::streams::wait_until(|| !get(server.address, "/version").json(200)["models"][0]["sha256"].is_null());
    let later = post(server.address, "/v1/completions", &ask).json(200)["system_fingerprint"].clone();
    assert_eq!((&first, &first), (&later, &get(server.address, "/version").json(200)["models"][0]["fingerprint"]));
}

#[test]
fn the_page_is_whole_and_may_ask_this_server_only() {
    let keys = TempFile::new("page-keys.json", crate::access::KEYS);
    let server = serve(&["--keys", keys.path()]);
    let page = get(server.address, "/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    for (path, kind) in [("/page.css", "text/css; charset=utf-8"), ("/page.js", "text/javascript; charset=utf-8")] {
        let file = get(server.address, path);
        assert_eq!((file.status, file.header("content-type")), (200, Some(kind)));
        assert!(page.body.contains(&format!("=\"{path}\"")), "{path}");
        let policy = file.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'; ") && !policy.contains("unsafe"),
            "{policy}"
        );
        // Names of vocabularies apart, nothing in it leads elsewhere.
        let text = file.body.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("://") && !page.body.contains("://"), "{path}");
    }
    // The page is free, what it shows is not.
    assert_eq!([get(server.address, "/metrics").status, get(server.address, "/v1/models").status], [401, 401]);
    assert_eq!(get(server.address, "/page").error(401)["code"], "invalid_api_key");
}

#[test]
fn errors_have_one_shape_everywhere() {
    let server = serve(&[]);
    for path in ["/nothing", "/v1", "/v1/models/", "//v1/models", "/v1/chat/completions/", "/v1/models/a/b"] {
        let error = get(server.address, path).error(404);
        assert_eq!((&error["type"], &error["code"]), (&"not_found_error".into(), &"unknown_url".into()), "{path}");
    }
    let reply = get(server.address, PATH);
    assert_eq!((&reply.error(405)["code"], reply.header("allow")), (&"method_not_allowed".into(), Some("POST")));
    let reply = post(server.address, "/healthz", &json!({}));
    assert_eq!((&reply.error(405)["param"], reply.header("allow")), (&Json::Null, Some("GET,HEAD")));
    let reply = raw(server.address, head("HEAD", "/v1/models", "").as_bytes());
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    let text = "Content-Type: text/plain\r\nContent-Length: 2\r\n";
    assert_eq!(
        raw(server.address, (head("POST", PATH, text) + "{}").as_bytes()).error(415)["code"],
        "unsupported_media_type"
    );
    let large = "Content-Type: application/json; charset=utf-8\r\nContent-Length: 99999999\r\n";
    assert_eq!(raw(server.address, head("POST", PATH, large).as_bytes()).error(413)["code"], "request_too_large");
    let chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let request = head("POST", PATH, chunked) + &chunk.repeat(9) + "0\r\n\r\n";
    assert_eq!(raw(server.address, request.as_bytes()).error(413)["code"], "request_too_large");
    let header = format!("X: {}\r\n", "y".repeat(20_000));
    let reply = raw(server.address, head("GET", "/healthz", &header).as_bytes());
    assert_eq!(reply.error(431)["code"], "head_too_large");
    assert!(reply.header("x-request-id").is_some_and(|id| id.starts_with("req_")));
    let both = "Content-Length: 2\r\nContent-Length: 3\r\n";
    for malformed in [head("POST", PATH, both) + "{}", "GET\r\n\r\n".to_owned(), "\x16\x03\x01 TLS\r\n\r\n".to_owned()]
    {
        let error = raw(server.address, malformed.as_bytes()).error(400);
        assert_eq!((&error["type"], &error["code"]), (&"invalid_request_error".into(), &"malformed_head".into()));
    }
    assert!(
        get(server.address, "/metrics")
            .body
            .contains("farpost_refused_total{reason=\"malformed_head\",model=\"\",key=\"\"} 3\n")
    );
}

#[test]
fn bodies_come_in_chunks_byte_by_byte_and_after_a_go_ahead() {
    let server = serve(&[]);
    let body = ask(json!({})).to_string();
    let chunks: String = body.chars().map(|c| format!("{:x}\r\n{c}\r\n", c.len_utf8())).collect();
    let chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
    raw(server.address, (head("POST", PATH, chunked) + &chunks + "0\r\n\r\n").as_bytes()).json(200);
    let more = format!("Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n", body.len());
    let mut stream = crate::http::connect(server.address);
    stream.write_all(head("POST", PATH, &more).as_bytes()).unwrap();
    let mut go_ahead = [0; 25];
    stream.read_exact(&mut go_ahead).unwrap();
    assert_eq!(&go_ahead, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    crate::http::parse(&bytes).json(200);
}

#[test]
fn a_request_may_come_a_byte_at_a_time() {
    let server = serve(&[]);
    let mut stream = crate::http::connect(server.address);
    stream.set_nodelay(true).unwrap();
    for byte in crate::http::post_request(PATH, &ask(json!({})).to_string(), "").bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    crate::http::parse(&bytes).json(200);
}

#[test]
fn nothing_is_smuggled_behind_a_request() {
    let server = serve(&[]);
    let behind = "0\r\n\r\nGET /version HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let request = |lengths: &str| {
        let kind = "Content-Type: application/json";
        format!("POST {PATH} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n{lengths}\r\n\r\n{behind}")
    };
    let answers = |request: &str| {
        let mut stream = crate::http::connect(server.address);
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        // It ends: a connection that may have been misunderstood is of no more use.
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches("HTTP/1.1 400").count(), 1, "{text}");
        assert!(!text.contains("HTTP/1.1 200"), "{text}");
        crate::http::parse(text.as_bytes()).error(400)["code"].clone()
    };
    for malformed in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length : 5",
        "Content-Length:\r\n 5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
    ] {
        assert_eq!(answers(&request(malformed)), "malformed_head", "{malformed}");
    }
}

#[test]
fn the_catalogue_of_metrics_is_whole() {
    // Nobody listens there.
    let server = serve(&["--otlp-endpoint", "http://127.0.0.1:1"]);
    let page = get(server.address, "/metrics").body;
    let shown: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let text = include_str!("../../../docs/operations.md");
    let section = text.split("\n## ").find_map(|section| section.strip_prefix("Metrics\n")).unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `farpost_")?.split(" | ").next());
    let names = cells.flat_map(|cell| cell.split('`').step_by(2)).map(|name| name.split('{').next().unwrap());
    let told: Vec<String> = names
        .filter(|name| !name.is_empty())
        .map(|name| if name.starts_with("farpost_") { name.to_owned() } else { format!("farpost_{name}") })
        .collect();
    assert_eq!(told.iter().map(String::as_str).collect::<BTreeSet<_>>(), shown);
    assert_eq!(told.len(), shown.len(), "each stands there once");
}

#[test]
fn request_ids_are_kept_and_made() {
    let server = serve(&[]);
    let with = |id: &str| {
        let reply = raw(server.address, head("GET", "/healthz", &format!("X-Request-Id: {id}\r\n")).as_bytes());
        reply.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(with("my-id_1.2"), "my-id_1.2");
    let made = [with("a b"), with(&"x".repeat(65))];
    assert!(made.iter().all(|id| id.starts_with("req_")) && made[0] != made[1], "{made:?}");
}

#[test]
fn metrics_agree_with_a_counted_run() {
    let server = serve(&[]);
    let usage: Vec<Json> =
        (0..3).map(|_| post(server.address, PATH, &ask(json!({}))).json(200)["usage"].clone()).collect();
    post(server.address, PATH, &ask(json!({ "n": 0 }))).error(400);
    let reply = get(server.address, "/metrics");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let value = |line: &str| {
        let found =
            reply.body.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse::<f64>().ok());
        found.unwrap_or_else(|| panic!("{line} is missing in {}", reply.body))
    };
    let sum = |name: &str| usage.iter().map(|usage| usage[name].as_f64().unwrap()).sum::<f64>();
    let labels = "{model=\"pocket\",key=\"\"}";
    assert_eq!(value(&format!("farpost_prompt_tokens_total{labels}")), sum("prompt_tokens"));
    assert_eq!(value(&format!("farpost_generated_tokens_total{labels}")), sum("completion_tokens"));
    assert_eq!(value("farpost_requests_total{model=\"pocket\",key=\"\",outcome=\"done\"}"), 3.0);
    assert_eq!(value("farpost_refused_total{reason=\"invalid_request\",model=\"pocket\",key=\"\"}"), 1.0);
    for name in ["time_to_first_token", "queue", "request"] {
        assert_eq!(value(&format!("farpost_{name}_seconds_count{labels}")), 3.0, "{name}");
    }
    for line in reply.body.lines() {
        let is_comment = line.starts_with("# HELP farpost_") || line.starts_with("# TYPE farpost_");
        let is_sample =
            || line.rsplit_once(' ').is_some_and(|(name, n)| name.starts_with("farpost_") && n.parse::<f64>().is_ok());
        assert!(is_comment || is_sample(), "{line}");
    }
}

#[test]
fn logs_hold_ids_and_no_prompts() {
    let keys = TempFile::new("logs.json", crate::access::KEYS);
    let mut server = serve(&["--json", "--keys", keys.path()]);
    let key = format!("Authorization: Bearer {}\r\nX-Request-Id: find-me\r\n", crate::access::KITCHEN);
    let request = crate::http::post_request(PATH, &ask(json!({})).to_string(), &key);
    raw(server.address, request.as_bytes()).json(200);
    let line: Json = serde_json::from_str(&server.wait_for("find-me")).unwrap();
    assert_eq!((&line["path"], &line["status"], &line["key"]), (&PATH.into(), &200.into(), &"kitchen".into()));
    server.signal("TERM");
    let said = server.said();
    // "another" is a model that a key may ask and that is not there.
    for part in ["listening on", "ready: ", "may ask \\\"another\\\""] {
        assert!(said.contains(part), "{part}: {said}");
    }
    said.lines().for_each(|line| drop(serde_json::from_str::<Json>(line).expect(line)));
    assert!(!said.contains("porch") && !said.contains(crate::access::KITCHEN), "{said}");
}
