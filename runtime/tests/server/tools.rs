//! Tools: which calls may come, how they are told whole and in a stream, and what is refused.

use serde_json::{Value as Json, json};

use crate::chat::{PATH, ask, refused};
use crate::http::{chunks, post};
use crate::program::{Running, serve};

/// Two tools that the built-in model knows; the second one is strict.
pub fn tools() -> Json {
    json!([
        { "type": "function", "function": {
            "name": "set_light", "description": "Switches a light.",
            "parameters": {
                "type": "object", "required": ["room", "state"],
                "properties": {
                    "room": { "enum": ["porch", "hall"] }, "state": { "enum": ["on", "off"] }, "at": { "type": "string" },
                },
            },
        } },
        { "type": "function", "function": {
            "name": "set_valve", "strict": true,
            "parameters": {
                "type": "object", "required": ["valve", "percent"], "additionalProperties": false,
                "properties": {
                    "valve": { "type": "string", "pattern": "^valve_[0-9]$" },
                    "percent": { "type": "integer", "minimum": 0, "maximum": 100 },
                },
            },
        } },
    ])
}

/// The message and finish reason of a request: asked whole and as a stream, which must say the same.
#[track_caller]
pub fn both(server: &Running, request: &Json) -> (Json, String) {
    let whole = post(server.address, PATH, request).json(200);
    let choice = &whole["choices"][0];
    let mut stream = request.clone();
    stream["stream"] = true.into();
    let chunks = chunks(&post(server.address, PATH, &stream));
    let (mut content, mut thought, mut calls) = (String::new(), String::new(), Vec::<(String, String)>::new());
    let mut ids = Vec::new();
    for chunk in &chunks {
        let delta = &chunk["choices"][0]["delta"];
        content += delta["content"].as_str().unwrap_or_default();
        thought += delta["reasoning_content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let arguments = call["function"]["arguments"].as_str().unwrap();
            let fields: Vec<&String> = call.as_object().unwrap().keys().collect();
            if index == calls.len() {
                assert_eq!(fields, ["index", "id", "type", "function"]);
                assert_eq!((&call["type"], arguments), (&"function".into(), ""));
                ids.push(call["id"].as_str().unwrap().to_owned());
                calls.push((call["function"]["name"].as_str().unwrap().to_owned(), String::new()));
            } else {
                assert_eq!(fields, ["index", "function"]);
                assert_eq!(call["function"].as_object().map(serde_json::Map::len), Some(1));
                calls[index].1 += arguments;
            }
        }
    }
    assert!(ids.iter().all(|id| id.starts_with("call_") && ids.iter().filter(|other| *other == id).count() == 1));
    let message = &choice["message"];
    let told: Vec<(String, String)> = message["tool_calls"].as_array().into_iter().flatten().map(call).collect();
    assert_eq!((content.as_str(), &calls), (message["content"].as_str().unwrap_or_default(), &told));
    assert_eq!(thought, message["reasoning_content"].as_str().unwrap_or_default());
    let reason = choice["finish_reason"].as_str().unwrap();
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], reason);
    (message.clone(), reason.to_owned())
}

/// Name and arguments.
fn call(call: &Json) -> (String, String) {
    let text = |field: &str| call["function"][field].as_str().unwrap().to_owned();
    (text("name"), text("arguments"))
}

/// The one call of a message, with its arguments read.
#[track_caller]
pub fn only_call(message: &Json) -> (String, Json) {
    assert_eq!(message["content"], Json::Null, "{message}");
    let calls = message["tool_calls"].as_array().unwrap_or_else(|| panic!("{message}"));
    assert_eq!(calls.len(), 1, "{message}");
    let (name, arguments) = call(&calls[0]);
    let arguments = serde_json::from_str(&arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"));
    (name, arguments)
}

fn says(text: &str) -> Json {
    json!([{ "role": "user", "content": text }])
}

#[test]
fn what_the_model_calls_is_told_as_a_call() {
    let server = serve(&[]);
    let (message, reason) = both(&server, &ask(json!({ "tools": [tools()[0]] })));
    let arguments = json!({ "room": "porch", "state": "on", "at": "09:00" });
    assert_eq!((only_call(&message), reason.as_str()), (("set_light".to_owned(), arguments), "tool_calls"));
    // Held to a schema, it is told while it is written, and its text is the same.
    let (message, reason) = both(&server, &ask(json!({ "tools": tools(), "parallel_tool_calls": false })));
    assert_eq!((only_call(&message).0.as_str(), reason.as_str()), ("set_light", "tool_calls"));
    // A call of what was not offered is what the model says.
    for more in [json!({ "tools": [tools()[0]] }), json!({ "tools": tools() })] {
        let mut request = ask(more);
        request["messages"] = says("tell me a joke");
        let (message, reason) = both(&server, &request);
        assert_eq!(message["content"], r#"{"tool":"none","arguments":{"reason":"out_of_scope"}}"#);
        assert_eq!((reason.as_str(), message.get("tool_calls")), ("stop", None));
    }
}

#[test]
fn the_choice_of_tools_holds() {
    let server = serve(&[]);
    let with = |more: Json| {
        let mut request = ask(json!({ "tools": tools(), "temperature": 2, "max_tokens": 200 }));
        request["messages"] = says("tell me a joke");
        for (name, value) in more.as_object().unwrap() {
            request[name] = value.clone();
        }
        both(&server, &request)
    };
    let valve = json!({ "type": "function", "function": { "name": "set_valve" } });
    for seed in 0..4 {
        let (message, reason) = with(json!({ "tool_choice": "required", "seed": seed }));
        let (name, arguments) = only_call(&message);
        assert_eq!(reason, "tool_calls");
        if name == "set_light" {
            assert!(arguments["room"] == "porch" || arguments["room"] == "hall", "{arguments}");
        }
        let allowed = json!({ "mode": "required", "tools": [valve] });
        for choice in [valve.clone(), json!({ "type": "allowed_tools", "allowed_tools": allowed })] {
            let (name, arguments) = only_call(&with(json!({ "tool_choice": choice, "seed": seed })).0);
            assert_eq!(name, "set_valve");
            let valve = arguments["valve"].as_str().unwrap();
            assert!(valve.len() == 7 && valve.starts_with("valve_"), "{valve}");
            assert!((0..=100).contains(&arguments["percent"].as_i64().unwrap()));
        }
    }
    let request = ask(json!({ "tools": tools(), "tool_choice": "none" }));
    let (message, reason) = both(&server, &request);
    assert!(message["content"].as_str().unwrap().starts_with(r#"{"tool":"set_light""#), "{message}");
    assert_eq!(reason, "stop");
    // What is cut off is told as that.
    let (_, reason) = both(&server, &ask(json!({ "tools": tools(), "tool_choice": "required", "max_tokens": 2 })));
    assert_eq!(reason, "length");
}

#[test]
fn an_answer_with_a_form_and_calls_are_told_apart() {
    let server = serve(&[]);
    let schema = json!({
        "type": "object", "properties": { "sum": { "type": "integer", "maximum": 99 } }, "required": ["sum"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "sum", "schema": schema } });
    for seed in 0..4 {
        let more = json!({ "tools": [tools()[1]], "response_format": format, "temperature": 2, "seed": seed });
        let (message, reason) = both(&server, &ask(more));
        match reason.as_str() {
            "tool_calls" => assert_eq!(only_call(&message).0, "set_valve"),
            "stop" => {
                let content: Json = serde_json::from_str(message["content"].as_str().unwrap()).unwrap();
                assert!(content["sum"].is_i64(), "{content}");
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn results_are_answered() {
    let server = serve(&[]);
    let call = json!({ "id": "c1", "type": "function", "function": { "name": "set_light", "arguments": "{\"room\": \"hall\"}" } });
    let history = |id: &str| {
        json!([
            { "role": "user", "content": "light in the hall" },
            { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": id, "content": "done" },
            { "role": "user", "content": "close valve 3" },
        ])
    };
    let mut request = ask(json!({ "tools": tools(), "tool_choice": "none" }));
    request["messages"] = history("c1");
    post(server.address, PATH, &request).json(200);
    // Without tools, too: the conversation is what it is.
    post(server.address, PATH, &ask(json!({ "messages": history("c1") }))).json(200);
    refused(&server, json!({ "messages": history("c2") }), "messages[2].tool_call_id");
    let broken = |field: &str, value: Json| {
        let mut messages = history("c1");
        messages[1]["tool_calls"][0]["function"][field] = value;
        json!({ "messages": messages })
    };
    let path = "messages[1].tool_calls[0].function";
    let message = refused(&server, broken("arguments", "{".into()), &format!("{path}.arguments"));
    assert!(message.contains("expected the text of a JSON object"), "{message}");
    refused(&server, broken("arguments", "[]".into()), &format!("{path}.arguments"));
    refused(&server, broken("arguments", json!({})), &format!("{path}.arguments"));
    refused(&server, broken("name", "".into()), &format!("{path}.name"));
    let twice = json!([
        { "role": "assistant", "tool_calls": [call] }, { "role": "assistant", "tool_calls": [call] },
    ]);
    refused(&server, json!({ "messages": twice }), "messages[1].tool_calls[0].id");
}

#[test]
fn what_is_wrong_with_tools_is_told_with_its_place() {
    let server = serve(&[]);
    let tool = |function: Json| json!({ "tools": [{ "type": "function", "function": function }] });
    refused(&server, json!({ "tools": [] }), "tools");
    refused(&server, json!({ "tools": "x" }), "tools");
    refused(&server, json!({ "tools": [{ "function": { "name": "f" } }] }), "tools[0].type");
    refused(&server, json!({ "tools": [{ "type": "custom", "custom": { "name": "f" } }] }), "tools[0].type");
    refused(&server, tool(json!({})), "tools[0].function.name");
    refused(&server, tool(json!({ "name": "a b" })), "tools[0].function.name");
    refused(&server, tool(json!({ "name": "f", "parameters": [] })), "tools[0].function.parameters");
    let array = json!({ "type": "array" });
    refused(&server, tool(json!({ "name": "f", "parameters": array })), "tools[0].function.parameters.type");
    refused(&server, tool(json!({ "name": "f", "nam": 1 })), "tools[0].function.nam");
    let twice = json!({ "tools": [tools()[0], tools()[0]] });
    refused(&server, twice, "tools[1].function.name");
    refused(&server, json!({ "tool_choice": "auto" }), "tool_choice");
    refused(&server, json!({ "parallel_tool_calls": true }), "parallel_tool_calls");
    for (choice, param) in [
        (json!("maybe"), "tool_choice"),
        (json!(1), "tool_choice"),
        (json!({ "type": "custom" }), "tool_choice.type"),
        (json!({ "type": "function" }), "tool_choice.function"),
        (json!({ "type": "function", "function": { "name": "unknown" } }), "tool_choice"),
        (json!({ "type": "allowed_tools", "allowed_tools": { "tools": [] } }), "tool_choice.allowed_tools.mode"),
        (json!({ "type": "allowed_tools", "allowed_tools": { "mode": "auto" } }), "tool_choice.allowed_tools.tools"),
    ] {
        refused(&server, json!({ "tools": tools(), "tool_choice": choice }), param);
    }
    // What has to be enforced and can't be is refused with its keyword; what is only told to the model is not.
    let schema = json!({ "type": "object", "unevaluatedProperties": false });
    let mut more = tool(json!({ "name": "f", "parameters": schema, "strict": true }));
    let error = post(server.address, PATH, &ask(more.clone())).error(400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&"unsupported_schema".into(), &"tools[0].function.parameters#/unevaluatedProperties".into())
    );
    assert!(error["message"].as_str().unwrap().contains("unevaluatedProperties"), "{error}");
    more["tools"][0]["function"]["strict"] = false.into();
    post(server.address, PATH, &ask(more.clone())).json(200);
    more["tool_choice"] = "required".into();
    refused(&server, more.clone(), "tools[0].function.parameters#/unevaluatedProperties");
    // Calls that must come leave no room for a form, and end.
    for (field, form) in [
        ("regex", json!("a")),
        ("grammar", json!("start: \"a\"")),
        ("response_format", json!({ "type": "json_object" })),
    ] {
        refused(&server, json!({ "tools": tools(), "tool_choice": "required", field: form }), field);
    }
    refused(&server, json!({ "tools": tools(), "tool_choice": "required", "ignore_eos": true }), "ignore_eos");
    refused(&server, json!({ "regex": "a", "ignore_eos": true }), "ignore_eos");
}

#[test]
fn stop_strings_end_the_answer_and_never_a_call() {
    let server = serve(&[]);
    let stops = json!(["arg", "{", "valve", "\""]);
    for choice in [json!("required"), json!({ "type": "function", "function": { "name": "set_valve" } })] {
        for seed in 0..3 {
            let more = json!({ "tools": tools(), "tool_choice": choice, "stop": stops, "temperature": 2, "seed": seed,
                "max_tokens": 200 });
            let (message, reason) = both(&server, &ask(more));
            assert_eq!(reason, "tool_calls");
            only_call(&message);
        }
    }
    // Beside calls that may come, the answer ends at one.
    let mut request = ask(json!({ "tools": [tools()[1]], "temperature": 0, "max_tokens": 60 }));
    request["messages"] = says("turn on the porch light at nine");
    let (whole, _) = both(&server, &request);
    let text = whole["content"].as_str().unwrap();
    let (before, _) = text.split_once("light").expect(text);
    request["stop"] = "light".into();
    let (message, reason) = both(&server, &request);
    assert_eq!((message["content"].as_str(), reason.as_str()), (Some(before), "stop"));
}
