//! Chat completions: messages put into the model's chat template.

use farpost_models::template::RenderInput;
use serde_json::{Value as Json, json};

use super::answer::{Style, TokenTold, told};
use crate::server::catalogue::Hosted;
use crate::server::error::{Invalid, Problem};
use crate::server::json::{Fields, kind};

/// Alternatives that may be asked for.
const MOST_TOP: i64 = 20;

pub(super) static STYLE: Style = Style {
    id: "chatcmpl",
    object: "chat.completion",
    chunk_object: "chat.completion.chunk",
    prompts,
    logprobs: top_logprobs,
    choice,
    role: Some(|index| piece(index, &json!({ "role": "assistant", "content": "" }), None)),
    text: |index, text, tokens| piece(index, &json!({ "content": text }), tokens),
    last: |index, finish_reason, tokens| {
        let mut last = piece(index, &json!({}), tokens);
        last["finish_reason"] = finish_reason.into();
        last
    },
};

/// Fields that clients know and nothing here does.
const UNSUPPORTED: [&str; 11] = [
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "reasoning_effort",
    "prediction",
    "modalities",
    "audio",
    "web_search_options",
    "verbosity",
];

fn prompts(fields: &mut Fields, hosted: &Hosted) -> Result<Vec<Vec<u32>>, Problem> {
    fields.refuse_unsupported(&UNSUPPORTED)?;
    let messages = fields.take("messages");
    let messages = messages.ok_or_else(|| Invalid::of("messages", "is missing, expected an array".to_owned()))?;
    Ok(vec![encode(messages, hosted)?])
}

/// Ids of a conversation that is to be answered.
pub(super) fn encode(messages: Json, hosted: &Hosted) -> Result<Vec<u32>, Problem> {
    let messages = match messages {
        Json::Array(messages) if messages.is_empty() => {
            return Err(Invalid::of("messages", "is empty, expected a message or more".to_owned()).into());
        }
        Json::Array(messages) => messages,
        other => return Err(Invalid::of("messages", format!("is {}, expected an array", kind(&other))).into()),
    };
    let messages = messages.into_iter().enumerate();
    let messages: Vec<Json> = messages.map(|(place, json)| message(place, json)).collect::<Result<_, _>>()?;
    let model = hosted.engine.model();
    let template = model.require_template().map_err(|_| {
        Invalid::of("model", format!("is {:?}, which has no chat template: ask /v1/completions", hosted.name))
    })?;
    let rendered = template.encode(model.tokenizer(), &RenderInput::new(messages.into()));
    // What a template says is about the conversation as a whole.
    let refused = |message: String| Invalid { param: Some("messages".to_owned()), code: None, message };
    rendered.map_err(|error| refused(error.to_string()).into())
}

/// One message as templates know it.
fn message(place: usize, json: Json) -> Result<Json, Problem> {
    let mut fields = Fields::of(format!("messages[{place}]"), json)?;
    let role = fields.string("role")?;
    let role = match role.as_deref() {
        // Templates know the older name only.
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some(role @ ("tool" | "function")) => {
            return Err(
                Invalid::unsupported(&fields.name("role"), format!("is {role:?}, which is not supported")).into()
            );
        }
        found => {
            let found = found.map_or("missing".to_owned(), |role| format!("{role:?}"));
            let expected = "expected system, developer, user or assistant";
            return Err(Invalid::of(&fields.name("role"), format!("is {found}, {expected}")).into());
        }
    };
    let content = content(&mut fields)?;
    let name = fields.string("name")?;
    fields.refuse_unsupported(&["tool_calls", "tool_call_id", "function_call", "audio", "refusal"])?;
    fields.finish()?;
    let mut message = json!({ "role": role, "content": content });
    if let Some(name) = name {
        message["name"] = name.into();
    }
    Ok(message)
}

/// A text, or its parts with a line break between them.
fn content(fields: &mut Fields) -> Result<String, Problem> {
    let name = fields.name("content");
    let parts = match fields.take("content") {
        Some(Json::String(text)) => return Ok(text),
        Some(Json::Array(parts)) => parts,
        found => {
            let found = found.as_ref().map_or("missing", kind);
            return Err(Invalid::of(&name, format!("is {found}, expected a string or an array of parts")).into());
        }
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (place, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(format!("{name}[{place}]"), part)?;
        match part.string("type")?.as_deref() {
            Some("text") => {
                let text = part.string("text")?;
                let missing = || Invalid::of(&part.name("text"), "is missing, expected a string".to_owned());
                texts.push(text.ok_or_else(missing)?);
                part.finish()?;
            }
            found => {
                let found = found.map_or("missing".to_owned(), |found| format!("{found:?}"));
                let message = format!("is {found}, this model takes \"text\" only");
                return Err(Invalid::unsupported(&part.name("type"), message).into());
            }
        }
    }
    Ok(texts.join("\n"))
}

/// How many alternatives are to be told with each token; `None` if nothing is.
fn top_logprobs(fields: &mut Fields) -> Result<Option<usize>, Problem> {
    let is_wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0, MOST_TOP)?;
    match (is_wanted, top) {
        (false, Some(_)) => Err(Invalid::of("top_logprobs", "needs \"logprobs\": true".to_owned()).into()),
        (false, None) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

/// A choice that is complete.
fn choice(index: usize, text: &str, finish_reason: &str, tokens: Option<&[TokenTold]>) -> Json {
    json!({
        "index": index,
        "message": { "role": "assistant", "content": text, "refusal": null },
        "logprobs": logprobs(tokens),
        "finish_reason": finish_reason,
    })
}

/// A part of one.
fn piece(index: usize, delta: &Json, tokens: Option<&[TokenTold]>) -> Json {
    json!({ "index": index, "delta": delta, "logprobs": logprobs(tokens), "finish_reason": null })
}

fn logprobs(tokens: Option<&[TokenTold]>) -> Json {
    let Some(tokens) = tokens else { return Json::Null };
    let entry = |token: &TokenTold| {
        let mut json = told(&token.text, &token.bytes, token.logprob);
        json["top_logprobs"] = token.top.iter().map(|(text, bytes, logprob)| told(text, bytes, *logprob)).collect();
        json
    };
    json!({ "content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null })
}
