//! Every field of the protocol as official clients have it: supported, taken because it asks for what is done anyway, or
//! refused by its name with what to do instead; and fields that would have no effect beside others.

use serde_json::{Value as Json, json};

use crate::chat::{PATH as CHAT, ask, refused};
use crate::http::{Reply, chunks, post};
use crate::program::{model, serve};

/// A field, a value that is taken, if there is one, and one that is refused, with a part of the words.
type Field = (&'static str, Option<Json>, Option<(Json, &'static str)>);

/// Fields of chat completions in `openai` 3.57 for Python and 7.59 for Node.
fn chat_fields() -> Vec<Field> {
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } });
    let custom = json!({ "type": "custom", "custom": { "name": "x" } });
    vec![
        ("model", Some(json!("pocket")), Some((json!(7), "expected a string"))),
        ("messages", None, Some((json!([]), "is empty"))),
        ("audio", None, Some((json!({ "voice": "alloy", "format": "wav" }), "write text"))),
        ("frequency_penalty", Some(json!(1.5)), Some((json!(3), "-2 to 2"))),
        ("function_call", None, Some((json!("auto"), "expected tool_choice"))),
        ("functions", None, Some((json!([{ "name": "f" }]), "expected tools"))),
        ("logit_bias", Some(json!({ "5": -100 })), Some((json!({ "5": 101 }), "-100 to 100"))),
        ("logprobs", Some(json!(true)), Some((json!(2), "true or false"))),
        ("max_completion_tokens", Some(json!(4)), Some((json!(0), "1 or more"))),
        ("max_tokens", Some(json!(4)), Some((json!(0), "1 or more"))),
        ("metadata", Some(json!({ "a": "b" })), Some((json!({ "a": 1 }), "expected a string"))),
        ("modalities", Some(json!(["text"])), Some((json!(["text", "audio"]), "expected [\"text\"]"))),
        ("moderation", None, Some((json!({ "model": "omni-moderation-latest" }), "nothing is moderated"))),
        ("n", Some(json!(2)), Some((json!(65), "1 to 64"))),
        ("parallel_tool_calls", None, Some((json!(true), "needs tools"))),
        ("prediction", None, Some((json!({ "type": "content", "content": "x" }), "speculate"))),
        ("presence_penalty", Some(json!(-1)), Some((json!(-3), "-2 to 2"))),
        ("prompt_cache_key", Some(json!("a")), Some((json!(1), "expected a string"))),
        ("prompt_cache_options", Some(json!({ "mode": "implicit" })), Some((json!("implicit"), "expected an object"))),
        ("prompt_cache_retention", Some(json!("in_memory")), Some((json!("24h"), "expected \"in_memory\""))),
        (
            "reasoning_effort",
            Some(json!("none")),
            Some((json!("max"), "is not supported by this model's chat template")),
        ),
        ("response_format", Some(json!({ "type": "text" })), Some((json!("text"), "expected an object"))),
        ("safety_identifier", Some(json!("a")), Some((json!(1), "expected a string"))),
        ("seed", Some(json!(1)), Some((json!("1"), "expected a whole number"))),
        ("service_tier", Some(json!("auto")), Some((json!("flex"), "priority"))),
        ("stop", Some(json!(["x"])), Some((json!(""), "expected a character"))),
        ("store", Some(json!(false)), Some((json!(true), "nothing is stored"))),
        ("stream", Some(json!(false)), Some((json!(1), "true or false"))),
        ("stream_options", None, Some((json!({ "include_usage": true }), "\"stream\": true"))),
        ("temperature", Some(json!(1)), Some((json!(3), "0 to 2"))),
        ("tool_choice", Some(json!("none")), Some((json!("auto"), "needs tools"))),
        ("tools", Some(json!([tool])), Some((json!("f"), "expected an array"))),
        ("tools", None, Some((json!([custom]), "expected \"function\""))),
        ("top_logprobs", None, Some((json!(3), "needs \"logprobs\""))),
        ("top_p", Some(json!(0.5)), Some((json!(0), "above 0"))),
        ("user", Some(json!("a")), Some((json!(1), "expected a string"))),
        ("verbosity", Some(json!("medium")), Some((json!("low"), "in a message"))),
        ("web_search_options", None, Some((json!({}), "nothing is searched for"))),
    ]
}

#[test]
fn every_field_of_chat_completions_is_supported_or_refused_by_its_name() {
    let server = serve(&[]);
    for (field, good, bad) in chat_fields() {
        // Null is the same as not given.
        let nothing = matches!(field, "model" | "messages");
        if !nothing {
            let reply = post(server.address, CHAT, &ask(json!({ field: null, "max_tokens": 2 })));
            assert_eq!(reply.status, 200, "{field}: null: {}", reply.body);
        }
        if let Some(value) = good {
            let reply = post(server.address, CHAT, &ask(json!({ field: value })));
            assert_eq!(reply.status, 200, "{field}: {}", reply.body);
        }
        if let Some((value, words)) = bad {
            let error = post(server.address, CHAT, &ask(json!({ field: value }))).error(400);
            let (param, message) = (error["param"].as_str().unwrap(), error["message"].as_str().unwrap());
            assert!(param.starts_with(field) && message.contains(words), "{field}: {error}");
            assert_ne!(error["code"], "unknown_parameter", "{field}");
        }
    }
}

#[test]
fn every_field_of_completions_is_supported_or_refused_by_its_name() {
    let server = serve(&["--model", &model("tiny-llama.gguf"), "--alias", "t"]);
    let ask = |more: Json| -> Reply {
        let mut request = json!({ "model": "t", "prompt": "a b", "max_tokens": 2 });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(server.address, "/v1/completions", &request)
    };
    for (field, good, bad) in [
        ("best_of", json!(1), json!(2)),
        ("echo", json!(false), json!(true)),
        ("frequency_penalty", json!(1), json!(3)),
        ("logit_bias", json!({ "5": 1 }), json!(1)),
        ("logprobs", json!(5), json!(6)),
        ("max_tokens", json!(1), json!(0)),
        ("n", json!(2), json!(0)),
        ("presence_penalty", json!(1), json!(3)),
        ("prompt", json!([5, 6]), json!([])),
        ("seed", json!(1), json!(1.5)),
        ("stop", json!("x"), json!([""])),
        ("stream", json!(false), json!("no")),
        ("stream_options", Json::Null, json!({})),
        ("suffix", Json::Null, json!("x")),
        ("temperature", json!(0), json!(-1)),
        ("top_p", json!(1), json!(2)),
        ("user", json!("u"), json!([])),
    ] {
        let reply = ask(json!({ field: good }));
        assert_eq!(reply.status, 200, "{field}: {}", reply.body);
        let error = ask(json!({ field: bad })).error(400);
        assert_eq!(error["param"], field, "{error}");
        assert_ne!(error["code"], "unknown_parameter", "{field}");
    }
    assert_eq!(ask(json!({ "n": 3, "best_of": 3 })).status, 200);
}

#[test]
fn fields_within_fields_are_taken_or_refused_likewise() {
    let server = serve(&[]);
    let part = |more: Json| {
        let mut part = json!({ "type": "text", "text": "close valve 3" });
        part.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "messages": [{ "role": "user", "content": [part] }] })
    };
    let said = |more: Json| {
        let mut message = json!({ "role": "assistant" });
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let user = json!({ "role": "user", "content": "close valve 3" });
        json!({ "messages": [user, message, user] })
    };
    let call = |index: usize| json!({ "id": "a", "type": "function", "index": index, "function": { "name": "f", "arguments": "{}" } });
    let annotation = json!({ "type": "url_citation", "url_citation": { "url": "x" } });
    for more in [
        part(json!({ "prompt_cache_breakpoint": { "mode": "explicit" } })),
        said(json!({ "content": "{}", "refusal": null, "audio": null, "function_call": null, "annotations": [] })),
        said(json!({ "content": null, "refusal": "no" })),
        said(json!({ "content": "no", "refusal": "" })),
        said(json!({ "content": [{ "type": "refusal", "refusal": "no" }] })),
        said(json!({ "content": null, "tool_calls": [call(0)] })),
        json!({ "tool_choice": "none" }),
    ] {
        let reply = post(server.address, CHAT, &ask(more.clone()));
        assert_eq!(reply.status, 200, "{more}: {}", reply.body);
    }
    let point = "messages[0].content[0].prompt_cache_breakpoint";
    for (more, param) in [
        (part(json!({ "prompt_cache_breakpoint": { "mode": "explicit", "ttl": "12h" } })), &*format!("{point}.ttl")),
        (part(json!({ "prompt_cache_breakpoint": {} })), &format!("{point}.mode")),
        (said(json!({ "content": "a", "refusal": "no" })), "messages[1].refusal"),
        (said(json!({ "content": "a", "annotations": [annotation] })), "messages[1].annotations"),
        (said(json!({ "content": "a", "audio": { "id": "x" } })), "messages[1].audio"),
        (said(json!({ "content": null, "tool_calls": [call(1)] })), "messages[1].tool_calls[0].index"),
        (said(json!({ "content": "a", "function_call": { "name": "f" } })), "messages[1].function_call"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "refusal", "refusal": "no" }] }] }),
            "messages[0].content[0].type",
        ),
        (json!({ "prompt_cache_options": { "mode": "explicit" } }), "prompt_cache_options.mode"),
        (json!({ "prompt_cache_options": { "ttl": "30m" } }), "prompt_cache_options.ttl"),
        (
            json!({ "stream": true, "stream_options": { "include_obfuscation": 1 } }),
            "stream_options.include_obfuscation",
        ),
    ] {
        refused(&server, more, param);
    }
    let tokens = |message: Json| {
        let request = json!({ "model": "pocket", "messages": [{ "role": "user", "content": "x" }, message] });
        post(server.address, "/tokenize", &request).json(200)["tokens"].clone()
    };
    let content = tokens(json!({ "role": "assistant", "content": "I may not" }));
    assert_eq!(tokens(json!({ "role": "assistant", "content": null, "refusal": "I may not" })), content);
}

#[test]
fn fields_that_would_have_no_effect_are_refused() {
    let server = serve(&[]);
    for (more, param, words) in [
        (json!({ "mirostat_tau": 5 }), "mirostat_tau", "this model's default"),
        (json!({ "mirostat_tau": 5, "temperature": 0 }), "mirostat_tau", "at temperature 0: "),
        (json!({ "typical_p": 0.5, "temperature": 0 }), "typical_p", "temperature 0"),
        (json!({ "xtc_probability": 0.5, "temperature": 0 }), "xtc_probability", "temperature 0"),
        (json!({ "mirostat_tau": 5, "temperature": 1, "top_k": 5 }), "top_k", "beside mirostat_tau"),
        (json!({ "mirostat_tau": 5, "temperature": 1, "top_p": 0.5 }), "top_p", "beside mirostat_tau"),
        (json!({ "mirostat_tau": 5, "temperature": 1, "min_p": 0.5 }), "min_p", "beside mirostat_tau"),
        (json!({ "mirostat_tau": 5, "temperature": 1, "typical_p": 0.5 }), "typical_p", "beside mirostat_tau"),
        (
            json!({ "mirostat_tau": 5, "temperature": 1, "xtc_probability": 1 }),
            "xtc_probability",
            "beside mirostat_tau",
        ),
        (json!({ "mirostat_eta": 0.2 }), "mirostat_eta", "needs mirostat_tau"),
        (json!({ "dry_base": 2 }), "dry_base", "needs dry_multiplier"),
        (json!({ "dry_allowed_length": 3, "dry_multiplier": 0 }), "dry_allowed_length", "needs dry_multiplier"),
        (json!({ "xtc_threshold": 0.2 }), "xtc_threshold", "needs xtc_probability"),
        (json!({ "speculate": "lookup", "reproducible": true }), "speculate", "reproducible"),
    ] {
        let message = refused(&server, more.clone(), param);
        assert!(message.contains(words), "{more}: {message}");
    }
    // As they are by default they ask for nothing.
    for more in [
        json!({ "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1, "xtc_probability": 0, "xtc_threshold": 0.1 }),
        json!({ "dry_multiplier": 0, "dry_base": 1.75, "dry_allowed_length": 2, "mirostat_eta": 0.1 }),
        json!({ "mirostat_tau": 5, "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1 }),
        // The likeliest token is among them.
        json!({ "temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.1 }),
        json!({ "speculate": "off", "reproducible": true }),
    ] {
        let reply = post(server.address, CHAT, &ask(more.clone()));
        assert_eq!(reply.status, 200, "{more}: {}", reply.body);
    }
}

#[test]
fn the_tier_is_told_where_one_was_asked_for() {
    let server = serve(&[]);
    let answer = post(server.address, CHAT, &ask(json!({ "service_tier": "auto" }))).json(200);
    assert_eq!(answer["service_tier"], "default");
    let parts = chunks(&post(server.address, CHAT, &ask(json!({ "service_tier": "default", "stream": true }))));
    assert!(parts.iter().all(|part| part["service_tier"] == "default"));
    assert_eq!(post(server.address, CHAT, &ask(json!({}))).json(200).get("service_tier"), None);
}

#[test]
fn the_size_of_parts_tells_nothing_where_that_is_asked_for() {
    let server = serve(&[]);
    let text = |parts: &[Json]| -> String {
        parts.iter().filter_map(|part| part["choices"][0]["delta"]["content"].as_str()).collect()
    };
    let plain = chunks(&post(server.address, CHAT, &ask(json!({ "stream": true }))));
    let options = json!({ "stream": true, "stream_options": { "include_obfuscation": true, "include_usage": true } });
    let reply = post(server.address, CHAT, &ask(options));
    let padded = chunks(&reply);
    assert_eq!(text(&padded), text(&plain));
    let (usage, parts) = padded.split_last().unwrap();
    assert!(usage["usage"].is_object() && usage.get("obfuscation").is_none());
    assert!(parts.iter().all(|part| part["obfuscation"].is_string()) && plain[0].get("obfuscation").is_none());
    let events = crate::http::events(&reply.body);
    let sizes: std::collections::BTreeSet<usize> = events[..parts.len()].iter().map(String::len).collect();
    assert_eq!(sizes.len(), 1, "{sizes:?}");
}
