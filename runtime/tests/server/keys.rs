//! Keys while the server runs: read again, limited, and with nothing in common.

use std::io::{Read, Write};

use serde_json::{Value as Json, json};

use crate::access::{KITCHEN, OTHER};
use crate::chat::{PATH, ask};
use crate::http::{Reply, connect, head, post_request, raw};
use crate::program::{Running, TempFile, model, serve};
use crate::streams::wait_until;

const KITCHEN_HASH: &str = "ba2d46571062179931aa28d5d344080a7895e64de9055ecd59790ad6ede212cb";
const OTHER_HASH: &str = "580843d03d2216ff1a275d0991bad66e4d1af871171d929e9de604b7959f9bca";

/// A file of keys, each with its hash and other fields.
fn keys(entries: &[(&str, &str, Json)]) -> String {
    let entry = |(id, hash, more): &(&str, &str, Json)| {
        let mut entry = json!({ "id": id, "sha256": hash });
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    };
    json!({ "keys": entries.iter().map(entry).collect::<Vec<_>>() }).to_string()
}

fn chat(server: &Running, key: &str) -> Reply {
    let key = format!("Authorization: Bearer {key}\r\n");
    raw(server.address, post_request(PATH, &ask(json!({})).to_string(), &key).as_bytes())
}

#[test]
fn keys_are_read_again() {
    let file = TempFile::new("again.json", &keys(&[("kitchen", KITCHEN_HASH, json!({}))]));
    let mut server = serve(&["--keys", file.path()]);
    chat(&server, KITCHEN).json(200);
    chat(&server, OTHER).error(401);
    // What can't be used changes nothing.
    std::fs::write(&file.0, "{").unwrap();
    server.signal("HUP");
    let said = server.wait_for("what was read before stays in force");
    assert!(said.contains("again.json: "), "{said}");
    chat(&server, KITCHEN).json(200);
    std::fs::write(&file.0, keys(&[("other", OTHER_HASH, json!({}))])).unwrap();
    // Without a signal, too.
    wait_until(|| chat(&server, OTHER).status == 200);
    chat(&server, KITCHEN).error(401);
    let expired = [("other", OTHER_HASH, json!({ "expires": 1_000_000 })), ("kitchen", KITCHEN_HASH, json!({}))];
    std::fs::write(&file.0, keys(&expired)).unwrap();
    server.signal("HUP");
    wait_until(|| chat(&server, KITCHEN).status == 200);
    assert_eq!(chat(&server, OTHER).error(401)["message"], "the API key has expired");
}

#[test]
fn requests_and_tokens_are_limited() {
    let (few, little) = (json!({ "requests_per_minute": 2, "tokens_per_minute": 120 }), json!({ "tokens_per_day": 1 }));
    let file = TempFile::new("limits.json", &keys(&[("kitchen", KITCHEN_HASH, few), ("other", OTHER_HASH, little)]));
    let server = serve(&["--keys", file.path()]);
    let first = chat(&server, KITCHEN);
    let used = first.json(200)["usage"]["total_tokens"].as_u64().unwrap();
    let header = |reply: &Reply, name: &str| reply.header(&format!("x-ratelimit-{name}")).unwrap_or("").to_owned();
    assert_eq!([header(&first, "limit-requests"), header(&first, "remaining-requests")], ["2", "1"]);
    assert!(header(&first, "reset-requests").ends_with('s'));
    let remaining: u64 = header(&first, "remaining-tokens").parse().unwrap();
    assert!((120 - used..120).contains(&remaining), "{used} {remaining}");
    chat(&server, KITCHEN).json(200);
    let refused = chat(&server, KITCHEN);
    let error = refused.error(429);
    assert_eq!((&error["type"], &error["code"]), (&"rate_limit_error".into(), &"rate_limit_exceeded".into()));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds) && header(&refused, "remaining-requests") == "0");
    // Reading what there is does not count.
    let models = head("GET", "/v1/models", &format!("api-key: {KITCHEN}\r\n"));
    raw(server.address, models.as_bytes()).json(200);
    // Larger than all of a day: let in once, and then there is no more.
    chat(&server, OTHER).json(200);
    let refused = chat(&server, OTHER);
    assert_eq!(refused.error(429)["code"], "quota_exceeded");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 60);
}

#[test]
fn keys_do_not_share_what_prompts_begin_with() {
    let file = TempFile::new("apart.json", &keys(&[("a", KITCHEN_HASH, json!({})), ("b", OTHER_HASH, json!({}))]));
    let cached = |server: &Running, key: &str| {
        chat(server, key).json(200)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let server = serve(&["--keys", file.path()]);
    assert_eq!([cached(&server, KITCHEN), cached(&server, OTHER)], [0, 0]);
    assert!(cached(&server, OTHER) > 0);
    let server = serve(&["--keys", file.path(), "--share-prefixes"]);
    assert_eq!(cached(&server, KITCHEN), 0);
    assert!(cached(&server, OTHER) > 0);
}

#[test]
fn a_key_for_some_models_learns_no_name_of_another() {
    let all = json!(["infer", "metrics", "admin"]);
    let (some, every) = (json!({ "scopes": all, "models": ["pocket"] }), json!({ "scopes": all }));
    let file = TempFile::new("names.json", &keys(&[("kitchen", KITCHEN_HASH, some), ("other", OTHER_HASH, every)]));
    let config = json!({ "models": [
        { "name": "pocket" },
        { "name": "hidden-one", "model": model("tiny-llama.gguf"), "context": 128, "load": "demand" },
        { "name": "hidden-two", "model": model("gemma-3-270m-q4_k_m.gguf"), "context": 8192, "load": "demand" },
    ] });
    let config = TempFile::new("names-config.json", &config.to_string());
    let server = serve(&["--config", config.path(), "--keys", file.path(), "--memory-cap", "64M", "--drain", "600"]);
    let bearer = |key: &str| format!("Authorization: Bearer {key}\r\n");
    let get = |path: &str, key: &str| raw(server.address, head("GET", path, &bearer(key)).as_bytes());
    let complete = |model: &str, key: &str| {
        let request = json!({ "model": model, "prompt": "a b", "max_tokens": 2 }).to_string();
        raw(server.address, post_request("/v1/completions", &request, &bearer(key)).as_bytes())
    };
    // Something is known of all of them: counts of one, and why another is not there.
    complete("hidden-one", OTHER).json(200);
    complete("hidden-two", OTHER).error(507);
    let paths = ["/version", "/metrics", "/v1/models", "/admin/models"];
    for path in paths {
        let (told, all) = (get(path, KITCHEN), get(path, OTHER));
        assert_eq!((told.status, all.status), (200, 200), "{path}");
        assert!(told.body.contains("pocket") && !told.body.contains("hidden"), "{path}: {}", told.body);
        assert!(all.body.contains("hidden-one") && all.body.contains("hidden-two"), "{path}: {}", all.body);
    }
    // The same as of a model that is not there.
    for (path, method) in [("/admin/models/hidden-one/unload", "POST"), ("/v1/models/hidden-one", "GET")] {
        let header = format!("Content-Length: 0\r\n{}", bearer(KITCHEN));
        let found = raw(server.address, head(method, path, &header).as_bytes()).error(404);
        let none = raw(server.address, head(method, &path.replace("one", "not"), &header).as_bytes()).error(404);
        let message = found["message"].as_str().unwrap().replace("hidden-one", "hidden-not");
        assert_eq!((message.as_str(), &found["code"]), (none["message"].as_str().unwrap(), &none["code"]));
    }
    // What is wrong with each part is told while it drains.
    let mut running = connect(server.address);
    let request = ask(json!({ "n": 64, "temperature": 1, "ignore_eos": true, "stream": true })).to_string();
    running.write_all(post_request(PATH, &request, &bearer(KITCHEN)).as_bytes()).unwrap();
    assert!(running.read(&mut [0; 64]).unwrap() > 0);
    server.signal("TERM");
    wait_until(|| get("/readyz", KITCHEN).status == 503);
    let (told, all) = (get("/readyz", KITCHEN), get("/readyz", OTHER));
    assert_eq!(told.json(503)["models"].as_array().map(Vec::len), Some(3));
    assert!(told.body.contains("pocket") && !told.body.contains("hidden"), "{}", told.body);
    assert!(all.body.contains("hidden-two") && all.body.contains("bytes of memory"), "{}", all.body);
}
