//! Who may ask: keys and their scopes, Host and Origin.

use serde_json::json;

use crate::chat::{PATH, ask};
use crate::http::{get, head, post_request, raw};
use crate::program::{TempFile, command, serve};

/// The hash of each is in [`KEYS`].
pub const KITCHEN: &str = "kitchen-key";
const SCRAPER: &str = "scraper-key";
pub const OTHER: &str = "other-key";

pub const KEYS: &str = r#"{"keys": [
    {"id": "kitchen", "sha256": "ba2d46571062179931aa28d5d344080a7895e64de9055ecd59790ad6ede212cb"},
    {"id": "scraper", "sha256": "fc599a17c4a7d8068ba48a04319b40b9d8b6e9c193a5cc26034930d7c24f4519", "scopes": ["metrics"]},
    {"id": "other", "sha256": "580843d03d2216ff1a275d0991bad66e4d1af871171d929e9de604b7959f9bca", "models": ["another"]}
]}"#;

#[test]
fn keys_open_what_they_are_for() {
    let keys = TempFile::new("keys.json", KEYS);
    let server = serve(&["--keys", keys.path()]);
    let chat = |header: &str| raw(server.address, post_request(PATH, &ask(json!({})).to_string(), header).as_bytes());
    let bearer = |key: &str| format!("Authorization: Bearer {key}\r\n");
    for header in ["", &bearer("wrong"), &bearer(""), "Authorization: Basic a2V5\r\n"] {
        let reply = chat(header);
        let error = reply.error(401);
        assert_eq!((&error["type"], &error["code"]), (&"authentication_error".into(), &"invalid_api_key".into()));
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    chat(&bearer(KITCHEN)).json(200);
    chat(&format!("api-key: {KITCHEN}\r\n")).json(200);
    assert_eq!(chat(&bearer(SCRAPER)).error(403)["type"], "permission_error");
    // The same as of a model that is not there.
    assert_eq!(chat(&bearer(OTHER)).error(404)["code"], "model_not_found");
    let with = |path: &str, key: &str| raw(server.address, head("GET", path, &bearer(key)).as_bytes());
    assert_eq!(with("/v1/models", OTHER).json(200)["data"], json!([]));
    assert_eq!(with("/v1/models/pocket", OTHER).error(404)["code"], "model_not_found");
    assert_eq!(with("/metrics", SCRAPER).status, 200);
    assert_eq!(with("/metrics", KITCHEN).status, 403);
    assert_eq!(get(server.address, "/metrics").status, 401);
    for path in ["/healthz", "/readyz", "/version"] {
        assert_eq!(get(server.address, path).status, 200, "{path}");
    }
    let page = with("/metrics", SCRAPER).body;
    assert!(page.contains("farpost_requests_total{model=\"pocket\",key=\"kitchen\",outcome=\"done\"} 2\n"), "{page}");
}

#[test]
fn a_page_that_calls_itself_otherwise_is_refused() {
    let server = serve(&["--allow-host", "farpost.lan", "--allow-origin", "https://example.org"]);
    let ask = |host: &str, more: &str| {
        raw(
            server.address,
            format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n").as_bytes(),
        )
    };
    let port = server.address.port();
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8080", "[::1]:80", "farpost.lan:80"] {
        assert_eq!(ask(host, "").status, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:80", "192.168.7.7", "localhost.evil.example", "127.0.0.1.nip.io", ""] {
        assert_eq!(ask(host, "").error(403)["code"], "host_refused", "{host}");
    }
    for origin in ["https://example.org", &format!("http://localhost:{port}")] {
        let reply = ask(&format!("localhost:{port}"), &format!("Origin: {origin}\r\n"));
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some(origin)));
    }
    for origin in ["https://evil.example", "null", "http://example.org", "http://localhost:1"] {
        let reply = ask(&format!("localhost:{port}"), &format!("Origin: {origin}\r\n"));
        assert_eq!(reply.error(403)["code"], "origin_refused", "{origin}");
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
    assert_eq!(ask("localhost", "").header("access-control-allow-origin"), None);
    let preflight = |origin: &str| {
        let more = format!("Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n");
        raw(server.address, head("OPTIONS", PATH, &more).as_bytes())
    };
    let reply = preflight("https://example.org");
    assert_eq!((reply.status, reply.header("access-control-allow-methods")), (204, Some("GET, POST")));
    assert_eq!(preflight("https://evil.example").status, 403);
}

#[test]
fn pages_of_listed_origins_send_what_official_clients_send_and_read_what_these_read() {
    const PAGE: &str = "https://example.org";
    let keys = TempFile::new("page-keys.json", KEYS);
    let server = serve(&["--allow-origin", PAGE, "--keys", keys.path()]);
    let own = format!("http://localhost:{}", server.address.port());
    let host = format!("Host: localhost:{}\r\n", server.address.port());
    let ask = |method: &str, path: &str, origin: &str, more: &str| {
        let request = head(method, path, &format!("Origin: {origin}\r\n{more}")).replace("Host: localhost\r\n", &host);
        raw(server.address, request.as_bytes())
    };
    let allowed = |origin: &str, wanted: &str| {
        let more = format!("Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {wanted}\r\n");
        let reply = ask("OPTIONS", PATH, origin, &more);
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (204, Some(origin)));
        reply.header("access-control-allow-headers").unwrap().to_owned()
    };
    let plain = "authorization, api-key, content-type, x-request-id";
    let wanted = "authorization,content-type,openai-organization,traceparent,x-stainless-os,x-stainless-retry-count";
    assert_eq!(allowed(PAGE, wanted), wanted.replace(',', ", "));
    // What is no list of names is not echoed, nor is anything to others.
    let long = format!("a{}", ",a".repeat(64));
    for (origin, wanted) in [(PAGE, "a b"), (PAGE, &*long), (PAGE, "a,,b"), (&*own, wanted)] {
        assert_eq!(allowed(origin, wanted), plain, "{origin} {wanted}");
    }
    let shown = |reply: &crate::http::Reply| reply.header("access-control-expose-headers").map(str::to_owned);
    // Refusals, too: why a key may not do something is for the page to tell.
    let key = format!("Authorization: Bearer {KITCHEN}\r\n");
    for (path, key, status) in [("/v1/models", &*key, 200), ("/v1/models", "", 401), ("/metrics", &*key, 403)] {
        let reply = ask("GET", path, PAGE, key);
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (status, Some(PAGE)), "{path}");
        let shown = shown(&reply).unwrap();
        for name in ["x-request-id", "retry-after", "openai-processing-ms", "x-ratelimit-remaining-tokens"] {
            assert!(shown.split(", ").any(|shown| shown == name), "{name}: {shown}");
        }
    }
    assert_eq!(shown(&ask("GET", "/healthz", &own, "")), None);
    let refused = ask("GET", "/healthz", "https://evil.example", "");
    assert_eq!((refused.status, shown(&refused), refused.header("access-control-allow-origin")), (403, None, None));
}

#[test]
fn other_machines_need_keys() {
    let refused = |args: &[&str]| {
        let output = command(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, err) = refused(&["--host", "0.0.0.0"]);
    assert_eq!(code, Some(2));
    assert!(err.starts_with("error: 0.0.0.0:0 is reached from other machines, and no keys are asked for"), "{err}");
    let keys = TempFile::new("broken.json", r#"{"keys": [{"id": "a"}]}"#);
    let (code, err) = refused(&["--keys", keys.path()]);
    assert_eq!(code, Some(2));
    assert!(err.contains("keys[0].sha256: expected 64 hexadecimal digits"), "{err}");
    assert_eq!(refused(&["--allow-origin", "*"]).0, Some(2));
    // On purpose.
    let server = serve(&["--host", "0.0.0.0", "--open"]);
    assert_eq!(get(([127, 0, 0, 1], server.address.port()).into(), "/healthz").status, 200);
}
