//! Several models in one server: at the start and on demand, unloaded and loaded again, and those that can't be.

use serde_json::{Value as Json, json};

use crate::access::{KITCHEN, OTHER};
use crate::chat::{PATH, ask};
use crate::http::{Reply, get, head, post, raw};
use crate::program::{Running, TempFile, command, model, serve};
use crate::streams::wait_until;

const COMPLETIONS: &str = "/v1/completions";

fn complete(server: &Running, model: &str) -> Reply {
    post(
        server.address,
        COMPLETIONS,
        &json!({ "model": model, "prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": true }),
    )
}

/// A path of the admin routes, asked with POST and this header.
fn admin(server: &Running, path: &str, header: &str) -> Reply {
    raw(
        server.address,
        head("POST", &format!("/admin/models/{path}"), &format!("Content-Length: 0\r\n{header}")).as_bytes(),
    )
}

fn state(server: &Running, name: &str) -> Json {
    let list = get(server.address, "/admin/models").json(200);
    let found = list["models"].as_array().unwrap().iter().find(|model| model["name"] == name);
    found.map_or(Json::Null, |model| model["state"].clone())
}

#[test]
fn models_are_chosen_by_name_and_loaded_on_demand() {
    let config = TempFile::new(
        "models.json",
        &json!({ "models": [
            { "name": "commands" },
            { "name": "tiny", "model": model("tiny-llama.gguf"), "load": "demand", "context": 128, "parallel": 2 },
            { "name": "pinned", "model": model("tiny-qwen2.gguf"), "pinned": true, "context": 64 },
        ] })
        .to_string(),
    );
    let server = serve(&["--config", config.path()]);
    let listed = get(server.address, "/v1/models").json(200);
    let names: Vec<&Json> = listed["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["commands", "tiny", "pinned"]);
    get(server.address, "/v1/models/tiny").json(200);
    assert_eq!(
        [state(&server, "commands"), state(&server, "tiny"), state(&server, "pinned")],
        ["loaded", "away", "loaded"]
    );
    let mut chat = ask(json!({}));
    chat["model"] = "commands".into();
    assert_eq!(post(server.address, PATH, &chat).json(200)["model"], "commands");
    assert_eq!(complete(&server, "tiny").json(200)["usage"]["completion_tokens"], 3);
    assert_eq!(state(&server, "tiny"), "loaded");
    assert_eq!(complete(&server, "nothing").error(404)["code"], "model_not_found");
    // Each has its own settings.
    let long = json!({ "model": "pinned", "prompt": [5, 6, 7], "max_tokens": 100 });
    assert_eq!(post(server.address, COMPLETIONS, &long).error(400)["code"], "context_length_exceeded");
    let version = get(server.address, "/version").json(200);
    assert_eq!(
        (&version["models"][1]["state"], &version["models"][1]["context_tokens"]),
        (&"loaded".into(), &128.into())
    );
    let page = get(server.address, "/metrics").body;
    for line in [
        "farpost_model_loaded{model=\"tiny\"} 1\n",
        "farpost_model_loads_total{model=\"tiny\",outcome=\"loaded\"} 1\n",
        "farpost_generated_tokens_total{model=\"tiny\",key=\"\"} 3\n",
        "farpost_batch_rows_bucket{model=\"tiny\",le=\"4\"}",
        "farpost_health{component=\"model\",model=\"pinned\"} 0\n",
    ] {
        assert!(page.contains(line), "{line} is missing in {page}");
    }
    let unloaded = admin(&server, "tiny/unload", "").json(200);
    assert_eq!((&unloaded["state"], &unloaded["memory_bytes"]), (&"away".into(), &Json::Null));
    assert_eq!(admin(&server, "tiny/load", "").json(200)["state"], "loaded");
    admin(&server, "tiny/unload", "").json(200);
    complete(&server, "tiny").json(200);
    assert_eq!(admin(&server, "nothing/load", "").error(404)["code"], "model_not_found");
}

#[test]
fn what_idles_is_unloaded_and_comes_back() {
    let server = serve(&["--model", &model("tiny-llama.gguf"), "--alias", "tiny", "--idle-unload", "1"]);
    complete(&server, "tiny").json(200);
    wait_until(|| state(&server, "tiny") == "away");
    assert_eq!(get(server.address, "/readyz").status, 200);
    complete(&server, "tiny").json(200);
}

#[test]
fn a_model_that_can_not_be_loaded_harms_no_other() {
    for load in ["demand", "start"] {
        check_broken(load);
    }
}

/// Beside the built-in model one that can't be loaded.
fn check_broken(load: &str) {
    let broken = TempFile::new(&format!("broken-{load}.gguf"), "no model at all");
    let config = json!({ "models": [{ "name": "broken", "model": broken.path(), "load": load }, {}] });
    let config = TempFile::new(&format!("with-broken-{load}.json"), &config.to_string());
    let server = serve(&["--config", config.path()]);
    let reply = complete(&server, "broken");
    let error = reply.error(503);
    assert_eq!((&error["code"], &error["param"]), (&"model_failed".into(), &"model".into()));
    assert!(reply.header("retry-after").is_some() && !error["message"].as_str().unwrap().contains("broken-"));
    // Whoever runs the server is told why.
    let error = admin(&server, "broken/load", "").error(503);
    assert!(error["message"].as_str().unwrap().contains(broken.path()), "{error}");
    assert_eq!(state(&server, "broken"), "failed");
    post(server.address, PATH, &ask(json!({}))).json(200);
    assert_eq!(get(server.address, "/readyz").status, 200);
    assert!(get(server.address, "/metrics").body.contains("farpost_health{component=\"model\",model=\"broken\"} 2\n"));
}

#[test]
fn a_model_that_never_fits_is_refused_and_the_others_stay() {
    let tiny = model("tiny-llama.gguf");
    let config = json!({ "models": [
        { "name": "a", "model": tiny, "context": 128, "parallel": 1 },
        { "name": "b", "model": tiny, "context": 128, "parallel": 1, "load": "demand" },
        {
            "name": "large", "model": model("gemma-3-270m-q4_k_m.gguf"), "context": 8192, "parallel": 1,
            "load": "demand",
        },
    ] });
    let config = TempFile::new("never.json", &config.to_string());
    let server = serve(&["--config", config.path(), "--memory-cap", "64M"]);
    complete(&server, "b").json(200);
    let error = complete(&server, "large").error(507);
    assert_eq!((&error["code"], &error["param"]), (&"insufficient_memory".into(), &"model".into()));
    let message = error["message"].as_str().unwrap();
    let numbers: Vec<u64> = message.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(message.starts_with("the model needs ") && numbers[0] > numbers[1], "{message}");
    assert_eq!([state(&server, "a"), state(&server, "b"), state(&server, "large")], ["loaded", "loaded", "failed"]);
}

#[test]
fn a_template_of_its_own_takes_the_place_of_a_models() {
    let template = TempFile::new("own.jinja", "{{ bos_token }}{{ messages[0]['name'] }}: {{ messages[0]['content'] }}");
    let path = model("tiny-llama.gguf");
    let server = serve(&["--model", &path, "--alias", "t", "--template", template.path()]);
    let tokens = |message: Json| {
        let request = json!({ "model": "t", "messages": [message] });
        post(server.address, "/tokenize", &request).json(200)["tokens"].clone()
    };
    let named = tokens(json!({ "role": "user", "content": "hi", "name": "ann" }));
    assert_ne!(named, tokens(json!({ "role": "user", "content": "hi", "name": "bob" })));
    let broken = TempFile::new("broken.jinja", "{% if %}");
    let refused = |args: &[&str], expected: &str| {
        let output = command(args).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && err.contains(expected), "{err}");
    };
    refused(&["--model", &path, "--template", broken.path()], broken.path());
    refused(&["--model", &path, "--model", &path, "--template", template.path()], "--template is for one model");
}

#[test]
fn only_who_runs_the_server_loads_and_unloads() {
    let keys = json!({ "keys": [
        { "id": "user", "sha256": "ba2d46571062179931aa28d5d344080a7895e64de9055ecd59790ad6ede212cb" },
        {
            "id": "operator",
            "sha256": "580843d03d2216ff1a275d0991bad66e4d1af871171d929e9de604b7959f9bca",
            "scopes": ["admin"],
        },
    ] });
    let keys = TempFile::new("admin.json", &keys.to_string());
    let server = serve(&["--keys", keys.path()]);
    let bearer = |key: &str| format!("Authorization: Bearer {key}\r\n");
    assert_eq!(admin(&server, "pocket/unload", "").error(401)["code"], "invalid_api_key");
    assert_eq!(admin(&server, "pocket/unload", &bearer(KITCHEN)).error(403)["code"], "missing_scope");
    assert_eq!(admin(&server, "pocket/unload", &bearer(OTHER)).json(200)["state"], "away");
    // Running it is not asking it.
    let request = crate::http::post_request(PATH, &ask(json!({})).to_string(), &bearer(OTHER));
    assert_eq!(raw(server.address, request.as_bytes()).error(403)["code"], "missing_scope");
}

#[test]
fn what_ends_a_server_at_its_start_is_said_once() {
    let output = command(&["--memory-cap", "1M"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let why = err.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or_else(|| panic!("{err}"));
    assert!(output.status.code() == Some(4) && err.matches(why).count() == 1, "{err}");
}

#[test]
fn models_that_can_not_be_told_apart_are_refused() {
    let path = model("tiny-llama.gguf");
    let refused = |args: &[&str], expected: &str| {
        let output = command(args).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && err.contains(expected), "{err}");
    };
    refused(&["--model", &path, "--model", &path], "\"tiny-llama\" is no name for a model or that of two");
    refused(
        &["--model", &path, "--alias", "a", "--alias", "b"],
        "--alias is given 2 times, expected one for each of 1",
    );
    let config = TempFile::new("typo.json", r#"{"models": [{"modl": "x"}]}"#);
    refused(&["--config", config.path()], "did you mean model?");
    let config = TempFile::new("list.json", "[]");
    refused(&["--config", config.path()], "the file is an array, expected a JSON object");
    let config = TempFile::new("twice.json", r#"{"models": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}"#);
    refused(&["--config", config.path()], &format!("{}: models[2].name: \"a\" is the name of an ea", config.path()));
    for (args, expected) in [
        (["--alias", "a/b"], "\"a/b\" is no name for a model"),
        (["--queue", "0"], "1 or more"),
        (["--allow-host", "*"], "\"*\" is no name of a host"),
        (["--allow-host", "a b"], "\"a b\" is no name of a host"),
        (["--host", "farpost.invalid"], "such as localhost"),
    ] {
        refused(&args, expected);
    }
    let config = TempFile::new("gone.json", r#"{"models": [{}, {"name": "x", "model": "/nonexistent.gguf"}]}"#);
    let output = command(&["--config", config.path()]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let expected = format!("{}: models[1].model: /nonexistent.gguf: ", config.path());
    assert!(output.status.code() == Some(3) && err.contains(&expected), "{err}");
    let keys = TempFile::new("none.json", r#"{"keys": []}"#);
    refused(&["--keys", keys.path()], "keys is empty");
    assert!(serve(&["--host", "localhost"]).address.ip().is_loopback());
    let server = serve(&["--model", &path, "--model", &path, "--alias", "a", "--alias", "b"]);
    complete(&server, "a").json(200);
    complete(&server, "b").json(200);
}
