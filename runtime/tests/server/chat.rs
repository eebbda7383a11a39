//! Chat completions: the answer, what is refused and how, and every field in and out of its range.

use serde_json::{Value as Json, json};

use crate::http::{chunks, get, head, post, post_text, raw};
use crate::program::{Running, model, serve};

pub const PATH: &str = "/v1/chat/completions";

/// A request of the built-in model with further fields.
pub fn ask(more: Json) -> Json {
    let mut request = json!({
        "model": "pocket",
        "messages": [{ "role": "user", "content": "turn on the porch light at nine" }],
    });
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

/// The message of a request that is refused for a parameter.
#[track_caller]
pub fn refused(server: &Running, more: Json, param: &str) -> String {
    let error = post(server.address, PATH, &ask(more)).error(400);
    assert_eq!((&error["type"], &error["param"]), (&"invalid_request_error".into(), &param.into()), "{error}");
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn the_built_in_model_answers_with_a_tool_call() {
    let server = serve(&[]);
    let reply = post(server.address, PATH, &ask(json!({})));
    let answer = reply.json(200);
    let names: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(names, ["id", "object", "created", "model", "system_fingerprint", "reproducible", "choices", "usage"]);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&"chat.completion".into(), &"pocket".into()));
    let choice = &answer["choices"][0];
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(1));
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&0.into(), &"stop".into()));
    assert_eq!((&choice["message"]["role"], &choice["message"]["refusal"]), (&"assistant".into(), &Json::Null));
    let text = choice["message"]["content"].as_str().unwrap();
    let call: Json = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(call["tool"].is_string() && text.contains("porch"), "{text}");
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    assert!(count("prompt_tokens") > 5 && count("completion_tokens") > 5, "{usage}");
    for name in ["x-request-id", "openai-processing-ms", "x-farpost-version"] {
        assert!(reply.header(name).is_some(), "{name}");
    }
}

#[test]
fn messages_are_checked_and_their_places_named() {
    let server = serve(&[]);
    let messages = |messages: Json| json!({ "messages": messages });
    let user = json!({ "role": "user", "content": "close valve 3" });
    for ok in [
        json!([{ "role": "developer", "content": "be brief" }, user]),
        json!([{ "role": "user", "content": [{ "type": "text", "text": "close" }, { "type": "text", "text": "it" }] }]),
        json!([user, { "role": "assistant", "content": "{}" }, user]),
        json!([{ "role": "user", "content": "hi", "name": null }]),
    ] {
        post(server.address, PATH, &ask(messages(ok))).json(200);
    }
    let image = json!([user, { "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }]);
    let message = refused(&server, messages(image), "messages[1].content[0].type");
    assert_eq!(message, "messages[1].content[0].type is \"image_url\", this model takes \"text\" only");
    refused(&server, messages(json!([])), "messages");
    refused(&server, messages(json!([{ "role": "user", "content": [] }])), "messages[0].content");
    refused(&server, messages(json!([{ "role": "user", "content": "x", "name": "" }])), "messages[0].name");
    let named =
        json!([user, { "role": "assistant", "content": "{}" }, { "role": "user", "content": "x", "name": "ann" }]);
    let message = refused(&server, messages(named), "messages[2].name");
    assert!(message.contains("is not read by this model's chat template"), "{message}");
    refused(&server, messages(json!("hi")), "messages");
    refused(&server, messages(json!([1])), "messages[0]");
    refused(&server, messages(json!([{ "role": "wizard", "content": "x" }])), "messages[0].role");
    refused(&server, messages(json!([{ "content": "x" }])), "messages[0].role");
    refused(&server, messages(json!([{ "role": "user" }])), "messages[0].content");
    refused(&server, messages(json!([{ "role": "user", "content": 7 }])), "messages[0].content");
    let message =
        refused(&server, messages(json!([{ "role": "user", "content": "x", "nam": "y" }])), "messages[0].nam");
    assert!(message.ends_with("did you mean name?"), "{message}");
}

#[test]
fn every_field_has_its_range() {
    let server = serve(&[]);
    let good = [
        json!({ "temperature": 0, "top_p": 1, "n": 2, "seed": -5, "max_tokens": 3, "max_completion_tokens": 3 }),
        json!({ "temperature": 2, "top_p": 0.001, "presence_penalty": -2, "frequency_penalty": 2.0, "stop": "x" }),
        json!({ "stop": ["a", "b"], "logit_bias": { "5": -100, "6": 100 }, "user": "u", "metadata": { "a": "b" } }),
        json!({ "store": false, "service_tier": "auto", "response_format": { "type": "text" }, "tools": null }),
        json!({ "top_k": 3, "min_p": 0.1, "typical_p": 0.9, "temperature": 1, "repetition_penalty": 1.1, "priority": "high" }),
        json!({ "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "xtc_probability": 0.1, "temperature": 1 }),
        json!({ "mirostat_tau": 5, "temperature": 1, "deadline_ms": 60_000, "supersede_key": "k", "reproducible": true, "top_logprobs": null }),
        json!({ "speculate": "lookup", "cache_prompt": true, "seed": i64::MIN }),
    ];
    for more in good {
        let reply = post(server.address, PATH, &ask(more.clone()));
        assert_eq!(reply.status, 200, "{more}: {}", reply.body);
    }
    let bad = [
        json!({ "temperature": 2.1 }),
        json!({ "temperature": "hot" }),
        json!({ "top_p": 0 }),
        json!({ "n": 0 }),
        json!({ "n": 65 }),
        json!({ "seed": 1.5 }),
        json!({ "max_tokens": 0 }),
        json!({ "max_completion_tokens": -1 }),
        json!({ "presence_penalty": 2.5 }),
        json!({ "frequency_penalty": -3 }),
        json!({ "stop": "" }),
        json!({ "stop": ["a", ""] }),
        json!({ "stop": 5 }),
        json!({ "logit_bias": { "x": 1 } }),
        json!({ "logit_bias": { "1": 101 } }),
        json!({ "logit_bias": { "05": 1 } }),
        json!({ "logit_bias": { "+5": 1 } }),
        json!({ "metadata": "x" }),
        json!({ "metadata": { "a": 1 } }),
        json!({ "supersede_key": "" }),
        json!({ "cache_prompt": "no" }),
        json!({ "logit_bias": { "99999999": 1 } }),
        json!({ "top_logprobs": 3 }),
        json!({ "store": true }),
        json!({ "service_tier": "flex" }),
        json!({ "stream_options": { "include_usage": true } }),
        json!({ "priority": "urgent" }),
        json!({ "speculate": "draft" }),
        json!({ "mirostat_eta": 0.2 }),
        json!({ "stream": "yes" }),
        json!({ "tools": [] }),
        json!({ "tool_choice": "auto" }),
        json!({ "parallel_tool_calls": false }),
        json!({ "reasoning_effort": "low" }),
        json!({ "functions": [] }),
    ];
    for more in bad {
        let param = more.as_object().unwrap().keys().next().unwrap().clone();
        refused(&server, more, &param);
    }
    refused(&server, json!({ "response_format": { "type": "yaml" } }), "response_format.type");
    refused(&server, json!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema");
    refused(&server, json!({ "response_format": { "type": "text", "strict": true } }), "response_format.strict");
    refused(&server, json!({ "regex": "a", "grammar": "start: \"a\"" }), "grammar");
    refused(&server, json!({ "max_tokens": 3, "max_completion_tokens": 4 }), "max_tokens");
    let message = refused(&server, json!({ "seed": 1_u64 << 63 }), "seed");
    assert_eq!(
        message,
        "seed is 9223372036854775808, expected a whole number, -9223372036854775808 to 9223372036854775807"
    );
    // 2^70 has no other bound.
    let message = refused(&server, json!({ "max_tokens": 1_180_591_620_717_411_303_424_f64 }), "max_tokens");
    assert!(message.ends_with(", expected a whole number, 1 to 9223372036854775807"), "{message}");
    let assistant = json!({ "messages": [{ "role": "assistant", "content": "a", "tool_calls": [] }] });
    let message = refused(&server, assistant, "messages[0].tool_calls");
    assert_eq!(message, "messages[0].tool_calls is empty, expected an array of a call or more");
    assert_eq!(refused(&server, json!({ "x": 1 }), "x"), "x is no field that is known here");
    let message = refused(&server, json!({ "temprature": 1 }), "temprature");
    assert_eq!(message, "temprature is no field that is known here, did you mean temperature?");
}

#[test]
fn texts_have_the_form_that_is_asked_for() {
    let server = serve(&[]);
    let text = |more: Json| {
        let answer = post(server.address, PATH, &ask(more)).json(200);
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["room", "on"],
        "properties": { "room": { "enum": ["hall", "attic"] }, "on": { "type": "boolean" } },
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "light", "strict": true, "schema": schema } });
    for seed in 0..10 {
        let text = text(json!({ "response_format": format, "temperature": 2, "seed": seed }));
        let value: Json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(value["room"] == "hall" || value["room"] == "attic", "{value}");
        assert!(value["on"].is_boolean() && value.as_object().map(serde_json::Map::len) == Some(2), "{value}");
    }
    let object = text(json!({ "response_format": { "type": "json_object" } }));
    assert!(serde_json::from_str::<Json>(&object).is_ok_and(|value| value.is_object()), "{object}");
    assert!(["on", "off"].contains(&text(json!({ "regex": "on|off" })).as_str()));
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": { "unevaluatedItems": 1 } } });
    let error = post(server.address, PATH, &ask(json!({ "response_format": format }))).error(400);
    let param = "response_format.json_schema.schema#/unevaluatedItems";
    assert_eq!((&error["code"], &error["param"]), (&"unsupported_schema".into(), &param.into()));
    assert!(error["message"].as_str().unwrap().contains("unevaluatedItems"), "{error}");
    refused(&server, json!({ "regex": "(" }), "regex");
    let named = |name: Json| json!({ "type": "json_schema", "json_schema": { "name": name, "schema": {} } });
    for name in [Json::Null, json!("a b"), json!("")] {
        refused(&server, json!({ "response_format": named(name) }), "response_format.json_schema.name");
    }
}

#[test]
fn what_no_parser_can_follow_is_refused_before_the_answer_begins() {
    let server = serve(&[]);
    let format = |schema: Json| json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    let schema = "response_format.json_schema.schema";
    let circle = json!({ "$defs": { "n": { "$ref": "#/$defs/n" } }, "$ref": "#/$defs/n" });
    let long = |n: usize| "(a|b)*".repeat(n);
    for stream in [false, true] {
        for (field, value, place) in [
            ("response_format", format(circle.clone()), format!("{schema}#/$defs/n/$ref")),
            ("response_format", format(json!({ "allOf": [{ "$ref": "#" }] })), format!("{schema}#/allOf/0/$ref")),
            ("response_format", format(json!({ "pattern": long(2000) })), format!("{schema}#/pattern")),
            (
                "response_format",
                format(json!({ "type": "object", "required": ["a"], "additionalProperties": false })),
                schema.to_owned(),
            ),
            ("grammar", json!("start: start"), "grammar".to_owned()),
            ("grammar", json!(format!("start: {}", "/(a|b)*/ ".repeat(5000))), "grammar".to_owned()),
            ("grammar", json!(format!("start: \"{}\"", "x".repeat(70_000))), "grammar".to_owned()),
            ("grammar", json!("start: %json {\"foo\": 1}"), "grammar".to_owned()),
            ("regex", json!(long(500)), "regex".to_owned()),
            ("regex", json!(long(40_000)), "regex".to_owned()),
        ] {
            let start = std::time::Instant::now();
            let error = post(server.address, PATH, &ask(json!({ field: value, "stream": stream }))).error(400);
            assert_eq!((&error["code"], &error["param"]), (&"unsupported_schema".into(), &place.into()), "{error}");
            println!("{field}: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        }
    }
}

#[test]
fn a_form_that_ends_nowhere_is_told_without_its_text() {
    let mut server = serve(&[]);
    let grammar = "start: \"my secret answer \" a\na: a";
    let error = post(server.address, PATH, &ask(json!({ "grammar": grammar }))).error(400);
    assert_eq!(error["code"], "unsupported_schema");
    assert!(!error["message"].as_str().unwrap().contains("secret"), "{error}");
    let stream = post(server.address, PATH, &ask(json!({ "grammar": grammar, "stream": true })));
    assert!(stream.body.contains("\"error\"") && !stream.body.contains("internal_error"), "{}", stream.body);
    server.signal("TERM");
    let log = server.said();
    assert!(!log.contains("secret") && !log.contains("answer "), "{log}");
}

#[test]
fn a_prompt_that_does_not_fit_is_told_with_both_numbers() {
    let server = serve(&[]);
    let error = post(server.address, PATH, &ask(json!({ "max_tokens": 250 }))).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("250 more are asked for, the context holds 256"), "{message}");
    let long = json!({ "messages": [{ "role": "user", "content": "very ".repeat(400) }] });
    let error = post(server.address, PATH, &ask(long)).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
}

#[test]
fn unknown_models_and_broken_json_are_told() {
    let server = serve(&[]);
    let error = post(server.address, PATH, &ask(json!({ "model": "gpt-9" }))).error(404);
    assert_eq!((&error["code"], &error["param"]), (&"model_not_found".into(), &"model".into()));
    refused(&server, json!({ "model": null }), "model");
    for body in
        ["", "{", "[]", "{\"model\": \"pocket\", \"model\": \"pocket\"}", "{\"a\": 1e999}", "{\"a\": \"\\ud800\"}"]
    {
        let error = post_text(server.address, PATH, body).error(400);
        assert_eq!((&error["param"], &error["type"]), (&Json::Null, &"invalid_request_error".into()), "{body}");
    }
    let nested =
        |depth: usize| format!("{{\"model\": \"pocket\", \"metadata\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
    for body in [&nested(64)[..], &nested(1 << 20), "{\"model\": \"\0\"}", "\0", "{\"model\": \"pocket\"}\0"] {
        let error = post_text(server.address, PATH, body).error(400);
        assert_eq!((&error["param"], &error["code"]), (&Json::Null, &Json::Null), "{error}");
    }
    let no_text = b"{\"model\":\"\xC3\x28\"}";
    let more = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", no_text.len());
    let error = raw(server.address, &[head("POST", PATH, &more).as_bytes(), no_text].concat()).error(400);
    assert_eq!(error["type"], "invalid_request_error");
    // A NUL that is written as JSON writes it is a character like any other: no model is called so.
    let error = post_text(server.address, PATH, "{\"model\": \"pocket\\u0000\"}").error(404);
    assert_eq!(error["code"], "model_not_found");
    let error = post_text(server.address, PATH, "{\n  \"model\": x}").error(400);
    assert!(error["message"].as_str().unwrap().contains("line 2 column 12"), "{error}");
    let with_mark = format!("\u{FEFF}{}", ask(json!({})));
    assert_eq!(post_text(server.address, PATH, &with_mark).status, 200);
}

#[test]
fn the_same_seed_gives_the_same_answer_and_choices_differ() {
    let server = serve(&[]);
    let answers = |seed: i64| {
        let request = ask(json!({ "seed": seed, "n": 3, "temperature": 2, "max_tokens": 12, "ignore_eos": true }));
        let answer = post(server.address, PATH, &request).json(200);
        let choices = answer["choices"].as_array().unwrap().clone();
        assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(choices.iter().all(|choice| choice["finish_reason"] == "length"));
        choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = answers(7);
    assert_eq!(first, answers(7));
    assert_ne!(first, answers(-7));
    assert!(first[0] != first[1] || first[1] != first[2]);
}

#[test]
fn guesses_ahead_change_no_text_and_are_counted() {
    check_guesses("lookup", &["--speculate", "lookup"]);
    // As large as the model: it guesses what it is all but sure of.
    let gemma = model("gemma-3-270m-q4_k_m.gguf");
    check_guesses("draft", &["--model", &gemma, "--alias", "pocket", "--context", "512", "--draft", &gemma]);
}

/// A server that guesses as `how` says unless it is told otherwise.
fn check_guesses(how: &str, options: &[&str]) {
    let server = serve(options);
    let write = |more: Json| {
        let text = "turn on the porch light and the hall light and the porch light and the hall light and the";
        let mut request =
            json!({ "model": "pocket", "prompt": text, "max_tokens": 100, "ignore_eos": true, "temperature": 0 });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let answer = |how: &str| {
        let request = write(json!({ "speculate": how }));
        let answer = post(server.address, "/v1/completions", &request).json(200);
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let guessed = || {
        let page = get(server.address, "/metrics").body;
        let of = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        page.lines().filter(|line| line.starts_with("farpost_speculated_tokens_total")).map(of).sum::<f64>()
    };
    let plain = answer("off");
    assert_eq!(guessed(), 0.0);
    assert_eq!(answer(how), plain);
    assert!(guessed() > 0.0, "{how}: nothing is guessed in {plain:?}");
    let before = guessed();
    post(server.address, "/v1/completions", &write(json!({}))).json(200);
    assert!(guessed() > before, "the server's own choice is not used");
}

/// Tokens of a stop string are no part of an answer, in whatever way they are told.
#[test]
fn log_probabilities_end_where_a_stop_string_begins() {
    let server = serve(&[]);
    let whole = post(server.address, PATH, &ask(json!({}))).json(200);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let (from, to) = (text.len() / 2, text.len() / 2 + 6);
    // Beside tools, stop strings are looked for elsewhere.
    let other = json!([{ "type": "function", "function": { "name": "other" } }]);
    let request = |is_stream: bool, tools: &Json| {
        ask(json!({ "logprobs": true, "stop": &text[from..to], "stream": is_stream, "tools": tools }))
    };
    let check = |tokens: Vec<Json>, told: &str| {
        let bytes = |token: &Json| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap().len();
        let ends: Vec<usize> = tokens
            .iter()
            .scan(0, |sum, token| {
                *sum += bytes(token);
                Some(*sum)
            })
            .collect();
        assert!(told.len() <= from && !told.is_empty());
        let before = ends.iter().rev().nth(1).copied().unwrap_or(0);
        assert!(before < told.len() && ends.last().is_some_and(|end| *end >= told.len()), "{ends:?} of {told:?}");
    };
    for tools in [Json::Null, other] {
        let answer = post(server.address, PATH, &request(false, &tools)).json(200);
        let choice = &answer["choices"][0];
        let told = choice["message"]["content"].as_str().unwrap().to_owned();
        check(choice["logprobs"]["content"].as_array().unwrap().clone(), &told);
        let parts = chunks(&post(server.address, PATH, &request(true, &tools)));
        let tokens = parts.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
        check(tokens.flatten().cloned().collect(), &told);
    }
}

#[test]
fn log_probabilities_are_told_with_bytes() {
    let server = serve(&[]);
    let answer = post(server.address, PATH, &ask(json!({ "logprobs": true, "top_logprobs": 2 }))).json(200);
    let choice = &answer["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    let bytes = |token: &Json| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap();
    let text: Vec<u8> = tokens.iter().flat_map(bytes).collect();
    assert_eq!(String::from_utf8(text).unwrap(), choice["message"]["content"].as_str().unwrap());
    for token in tokens {
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        assert_eq!(token["top_logprobs"].as_array().map(Vec::len), Some(2));
        assert_eq!(token["top_logprobs"][0]["token"], token["token"], "the likeliest was taken");
    }
    let answer = post(server.address, PATH, &ask(json!({}))).json(200);
    assert_eq!(answer["choices"][0]["logprobs"], Json::Null);
}

#[test]
fn prompts_that_are_too_long_are_refused_with_what_is_to_become_shorter() {
    let server = serve(&[]);
    let of = |more: Json| post(server.address, PATH, &ask(more)).error(400);
    let error = of(json!({ "max_completion_tokens": 100_000 }));
    assert_eq!((&error["code"], &error["param"]), (&"context_length_exceeded".into(), &"max_completion_tokens".into()));
    assert_eq!(of(json!({ "max_tokens": 100_000 }))["param"], "max_tokens");
    // Not made into tokens: that takes seconds.
    let long = "a".repeat(7 << 20);
    let error = of(json!({ "messages": [{ "role": "user", "content": long }] }));
    assert_eq!((&error["code"], &error["param"]), (&"context_length_exceeded".into(), &"messages".into()));
    assert!(error["message"].as_str().unwrap().starts_with("the prompt has at least "), "{error}");
    let request = json!({ "model": "pocket", "prompt": long });
    let error = post(server.address, "/v1/completions", &request).error(400);
    assert_eq!((&error["code"], &error["param"]), (&"context_length_exceeded".into(), &"prompt".into()));
}

#[test]
fn answers_say_whether_they_are_reproducible_and_may_leave_the_cache_alone() {
    let server = serve(&[]);
    let answer = |more: Json| post(server.address, PATH, &ask(more)).json(200);
    let cached = |answer: &Json| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let alone = json!({ "cache_prompt": false });
    assert_eq!(cached(&answer(alone.clone())), 0);
    // It left nothing for others.
    let first = answer(json!({}));
    assert_eq!((cached(&first), &first["reproducible"]), (0, &false.into()));
    assert!(cached(&answer(json!({}))) > 0);
    assert_eq!(cached(&answer(alone)), 0);
    let exact = answer(json!({ "reproducible": true }));
    assert_eq!((cached(&exact), &exact["reproducible"]), (0, &true.into()));
}

#[test]
fn a_deadline_tells_what_was_done_and_is_counted() {
    let server = serve(&["--model", &crate::program::model("gemma-3-270m-q4_k_m.gguf"), "--alias", "g"]);
    let ask = |more: Json| {
        let mut request = json!({ "model": "g", "prompt": "Once", "ignore_eos": true });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(server.address, "/v1/completions", &request)
    };
    // Nobody knows how long an answer without a bound becomes; a slow machine knows that it does not begin in time.
    let deadlines = std::iter::successors(Some(1500), |ms| Some(2 * ms));
    let mut replies = deadlines.map(|ms| ask(json!({ "deadline_ms": ms, "stream": true })));
    let reply = replies.find(|reply| reply.status == 200).unwrap();
    let events = crate::http::events(&reply.body);
    let last: Json = serde_json::from_str(events.last().unwrap()).unwrap();
    let message = last["error"]["message"].as_str().unwrap();
    assert!(last["error"]["code"] == "deadline_exceeded" && message.ends_with(" tokens were written"), "{last}");
    let metrics = get(server.address, "/metrics").body;
    let line = "farpost_refused_total{reason=\"deadline_exceeded\",model=\"g\",key=\"\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");
    let reply = ask(json!({ "deadline_ms": 1, "max_tokens": 4000 }));
    assert_eq!(reply.error(503)["code"], "deadline_unreachable");
    // Nothing else runs: waiting is of no use.
    assert_eq!(reply.header("retry-after"), None);
}
