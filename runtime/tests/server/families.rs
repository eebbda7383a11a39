//! Models of several families: small ones with random weights, given the chat templates that are published with real
//! ones. What they write is held to their family's form, and read back from it.

use std::sync::atomic::{AtomicUsize, Ordering};

use farpost_models::gguf::{File, Writer};
use serde_json::{Value as Json, json};

use crate::chat::{PATH, refused};
use crate::http::post;
use crate::program::{Running, TempFile, model, serve};
use crate::tools::{both, only_call, tools};

/// A small model with the template of a real one.
fn with_template(name: &str) -> (Running, TempFile) {
    let file = File::open(std::path::Path::new(&model("tiny-qwen3.gguf"))).unwrap();
    let template = farpost_firmware_tests::golden(&format!("templates/{name}.jinja"));
    let mut writer = Writer::with_metadata_of(file.metadata());
    // Tools take their room.
    writer.set("qwen3.context_length", 2048_u32);
    writer.set("tokenizer.chat_template", std::fs::read_to_string(template).unwrap().as_str());
    for tensor in file.tensors() {
        writer.tensor(tensor.name(), tensor.dtype(), tensor.dims()).unwrap();
    }
    let mut data = writer.start("model", Vec::new()).unwrap();
    for tensor in file.tensors() {
        data.append(tensor.name(), tensor.weight().view().bytes).unwrap();
    }
    static N_FILES: AtomicUsize = AtomicUsize::new(0);
    let number = N_FILES.fetch_add(1, Ordering::Relaxed);
    let path = TempFile::with(&format!("{name}-{number}.gguf"), &data.finish().unwrap());
    let server = serve(&["--model", path.path(), "--alias", "pocket"]);
    (server, path)
}

fn ask(more: Json) -> Json {
    let mut request =
        json!({ "model": "pocket", "temperature": 1, "messages": [{ "role": "user", "content": "valve 3" }] });
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

#[test]
fn calls_are_forced_and_read_in_every_form() {
    for name in [
        "Qwen-Qwen2.5-7B-Instruct",
        "meta-llama-Llama-3.1-8B-Instruct",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "ibm-granite-granite-3.3-2B-Instruct",
        "google-gemma-2-2b-it",
    ] {
        let (server, _file) = with_template(name);
        let more = json!({
            "tools": [tools()[1]], "tool_choice": "required", "parallel_tool_calls": false, "seed": 1, "max_tokens": 300,
        });
        let answer = post(server.address, PATH, &ask(more)).json(200);
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{name}: {choice}");
        let (tool, arguments) = only_call(&choice["message"]);
        assert_eq!(tool, "set_valve");
        assert!((0..=100).contains(&arguments["percent"].as_i64().unwrap()), "{name}: {arguments}");
        // A conversation with calls and results has its place in every template.
        let call = json!({ "id": "call_1", "type": "function", "function": { "name": "set_valve", "arguments": "{\"valve\": \"valve_3\"}" } });
        let messages = json!([
            { "role": "user", "content": "valve 3" },
            { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "call_1", "content": "done" },
        ]);
        let answer =
            post(server.address, PATH, &ask(json!({ "messages": messages, "tools": tools(), "max_tokens": 4 })));
        assert_eq!(answer.status, 200, "{name}: {}", answer.body);
    }
}

#[test]
fn a_tool_that_is_named_is_called_once() {
    for name in ["Qwen-Qwen2.5-7B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407"] {
        let (server, _file) = with_template(name);
        let choice = json!({ "type": "function", "function": { "name": "set_valve" } });
        for seed in 0..4 {
            let more = json!({ "tools": tools(), "tool_choice": choice, "seed": seed, "max_tokens": 400 });
            let answer = post(server.address, PATH, &ask(more)).json(200);
            let choice = &answer["choices"][0];
            if choice["finish_reason"] == "tool_calls" {
                assert_eq!(only_call(&choice["message"]).0, "set_valve", "{name}");
            }
        }
    }
}

#[test]
fn reasoning_is_no_part_of_the_answer() {
    // Its prompts end within the reasoning.
    let (server, _file) = with_template("Qwen3.5-4B");
    let (message, reason) = both(&server, &ask(json!({ "max_tokens": 20, "seed": 1 })));
    assert_eq!((reason.as_str(), &message["content"]), ("length", &"".into()));
    assert!(!message["reasoning_content"].as_str().unwrap().is_empty());
    let answer = post(server.address, PATH, &ask(json!({ "max_tokens": 20, "seed": 1 }))).json(200);
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 20);
    for off in [json!({ "reasoning_effort": "none" }), json!({ "chat_template_kwargs": { "enable_thinking": false } })]
    {
        let mut request = ask(json!({ "max_tokens": 20, "seed": 1 }));
        request.as_object_mut().unwrap().extend(off.as_object().unwrap().clone());
        let (message, _) = both(&server, &request);
        assert_eq!(message.get("reasoning_content"), None);
        assert!(!message["content"].as_str().unwrap().is_empty());
        // A form holds for the answer.
        request["regex"] = "on|off".into();
        let (message, _) = both(&server, &request);
        assert!(message["content"] == "on" || message["content"] == "off", "{message}");
    }
    refused(&server, json!({ "reasoning_effort": "low" }), "reasoning_effort");
    refused(&server, json!({ "reasoning_effort": "very" }), "reasoning_effort");
    refused(&server, json!({ "chat_template_kwargs": { "messages": [] } }), "chat_template_kwargs.messages");
    refused(&server, json!({ "chat_template_kwargs": { "unknown": 1 } }), "chat_template_kwargs.unknown");
    let both_given = json!({ "reasoning_effort": "none", "chat_template_kwargs": { "enable_thinking": true } });
    refused(&server, both_given, "reasoning_effort");
    let plain = serve(&[]);
    refused(&plain, json!({ "reasoning_effort": "low" }), "reasoning_effort");
}
