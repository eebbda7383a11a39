//! Messages of a conversation, as templates know them.

use serde_json::{Map, Value as Json, json};

use super::hints;
use super::tools::{expect_function, name_of};
use crate::server::error::{Invalid, Problem};
use crate::server::json::{Fields, kind};

/// Reads a conversation. Arguments of calls, which are text for clients, become objects, and results get their tool's
/// name.
pub(super) fn read(messages: Json) -> Result<Vec<Json>, Problem> {
    let messages = match messages {
        Json::Array(messages) if messages.is_empty() => {
            return Err(Invalid::of("messages", "is empty, expected a message or more".to_owned()).into());
        }
        Json::Array(messages) => messages,
        other => return Err(Invalid::of("messages", format!("is {}, expected an array", kind(&other))).into()),
    };
    // Calls so far: id and name.
    let mut calls = Vec::new();
    let messages = messages.into_iter().enumerate();
    messages.map(|(place, json)| message(place, json, &mut calls)).collect()
}

/// One message.
fn message(place: usize, json: Json, calls: &mut Vec<(String, String)>) -> Result<Json, Problem> {
    let mut fields = Fields::of(format!("messages[{place}]"), json)?;
    let role = fields.string("role")?;
    let mut message = match role.as_deref() {
        // Templates know the older name only.
        Some("system" | "developer") => json!({ "role": "system", "content": content(&mut fields)? }),
        Some("user") => json!({ "role": "user", "content": content(&mut fields)? }),
        Some("assistant") => assistant(&mut fields, calls)?,
        Some("tool") => result(&mut fields, calls)?,
        Some("function") => {
            let message = "is \"function\", which is not supported, expected \"tool\"".to_owned();
            return Err(Invalid::unsupported(&fields.name("role"), message).into());
        }
        found => {
            let found = found.map_or("missing".to_owned(), |role| format!("{role:?}"));
            let expected = "expected system, developer, user, assistant or tool";
            return Err(Invalid::of(&fields.name("role"), format!("is {found}, {expected}")).into());
        }
    };
    let name_param = fields.name("name");
    let name = fields.string("name")?;
    fields.refuse_unsupported(&[
        ("function_call", "is the older form of tool_calls and not supported, expected tool_calls"),
        ("audio", "is not supported, this model takes text only"),
    ])?;
    fields.finish()?;
    if let Some(name) = name {
        if name.is_empty() {
            return Err(Invalid::of(&name_param, "is empty, expected a character or more").into());
        }
        // A result has the name of its tool.
        if let Some(tool) = message["name"].as_str().filter(|tool| *tool != name) {
            return Err(Invalid::of(&name_param, format!("is {name:?}, the call was one of {tool:?}")).into());
        }
        message["name"] = name.into();
    }
    Ok(message)
}

/// What a model said: text, calls or both, and what it thought.
fn assistant(fields: &mut Fields, calls: &mut Vec<(String, String)>) -> Result<Json, Problem> {
    let name = fields.name("tool_calls");
    let list = match fields.take("tool_calls") {
        None => Vec::new(),
        Some(Json::Array(list)) if !list.is_empty() => list,
        Some(other) => {
            let found = if other.is_array() { "empty" } else { kind(&other) };
            return Err(Invalid::of(&name, format!("is {found}, expected an array of a call or more")).into());
        }
    };
    // Templates put the text together with others: no text is an empty one.
    let found = fields.take("content");
    let is_left_out = found.is_none() && !list.is_empty();
    let content = match (refusal(fields)?, found) {
        (None, None) if is_left_out => String::new(),
        (None, found) => text(&fields.name("content"), found, true)?,
        // It is what the model said.
        (Some(refusal), None) => refusal,
        (Some(_), Some(_)) => {
            let message = "and content are both given, expected one of them";
            return Err(Invalid::of(&fields.name("refusal"), message).into());
        }
    };
    annotations(fields)?;
    let mut message = json!({ "role": "assistant", "content": content });
    if let Some(thought) = fields.string("reasoning_content")? {
        message["reasoning_content"] = thought.into();
    }
    if !list.is_empty() {
        let list = list.into_iter().enumerate();
        let list = list.map(|(place, item)| call(place, format!("{name}[{place}]"), item, calls));
        message["tool_calls"] = list.collect::<Result<Vec<_>, _>>()?.into();
    }
    Ok(message)
}

/// What a model said where it would not answer.
fn refusal(fields: &mut Fields) -> Result<Option<String>, Problem> {
    // Answers of some servers have both texts, one of them empty.
    Ok(fields.string("refusal")?.filter(|refusal| !refusal.is_empty()))
}

/// Answers that were sent back have a list of them, which is empty where nothing was searched for.
fn annotations(fields: &mut Fields) -> Result<(), Problem> {
    match fields.take("annotations") {
        None => Ok(()),
        Some(Json::Array(list)) if list.is_empty() => Ok(()),
        Some(other) => {
            let found = if other.is_array() { "not empty" } else { kind(&other) };
            let message = format!("is {found}, which is not supported: no model here reads them, expected none");
            Err(Invalid::unsupported(&fields.name("annotations"), message).into())
        }
    }
}

/// A call that was made earlier.
fn call(place: usize, path: String, json: Json, calls: &mut Vec<(String, String)>) -> Result<Json, Problem> {
    let mut fields = Fields::of(path, json)?;
    expect_function(&mut fields, "type")?;
    // The official clients leave it in calls that they have put together from a stream.
    if let Some(index) = fields.count("index", 0, i64::MAX)?.filter(|index| *index != place) {
        return Err(Invalid::of(&fields.name("index"), format!("is {index}, expected {place}, its place")).into());
    }
    let name = fields.name("id");
    let id = fields.string("id")?.filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| Invalid::of(&name, "is missing, expected a string".to_owned()))?;
    if calls.iter().any(|(other, _)| *other == id) {
        return Err(Invalid::of(&name, format!("is {id:?}, as that of another call")).into());
    }
    let name = fields.name("function");
    let missing = || Invalid::of(&name, "is missing, expected an object with a name".to_owned());
    let mut function = Fields::of(name.clone(), fields.take("function").ok_or_else(missing)?)?;
    fields.finish()?;
    let tool = name_of(&mut function)?;
    let name = function.name("arguments");
    let arguments = function.string("arguments")?.unwrap_or_default();
    function.finish()?;
    // Some servers tell a call without arguments as an empty text.
    let written = if arguments.is_empty() { "{}" } else { arguments.as_str() };
    let arguments: Map<String, Json> = serde_json::from_str(written).map_err(|error| {
        Invalid::of(&name, format!("is {arguments:?}, expected the text of a JSON object: {error}"))
    })?;
    calls.push((id.clone(), tool.clone()));
    Ok(json!({ "id": id, "type": "function", "function": { "name": tool, "arguments": arguments } }))
}

/// What came of a call.
fn result(fields: &mut Fields, calls: &[(String, String)]) -> Result<Json, Problem> {
    let name = fields.name("tool_call_id");
    let id = fields.string("tool_call_id")?;
    let id = id.ok_or_else(|| Invalid::of(&name, "is missing, expected the id of a call".to_owned()))?;
    let Some((_, tool)) = calls.iter().find(|(known, _)| *known == id) else {
        return Err(Invalid::of(&name, format!("is {id:?}, which is no call of an earlier message")).into());
    };
    Ok(json!({ "role": "tool", "content": content(fields)?, "tool_call_id": id, "name": tool }))
}

/// A text, or its parts with a line break between them.
fn content(fields: &mut Fields) -> Result<String, Problem> {
    let found = fields.take("content");
    text(&fields.name("content"), found, false)
}

/// The same of the field called `name`. What a model said may be parts in which it would not answer, too.
fn text(name: &str, found: Option<Json>, is_of_model: bool) -> Result<String, Problem> {
    let parts = match found {
        Some(Json::String(text)) => return Ok(text),
        Some(Json::Array(parts)) if !parts.is_empty() => parts,
        Some(Json::Array(_)) => {
            return Err(Invalid::of(name, "is empty, expected a part or more".to_owned()).into());
        }
        found => {
            let found = found.as_ref().map_or("missing", kind);
            return Err(Invalid::of(name, format!("is {found}, expected a string or an array of parts")).into());
        }
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (place, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(format!("{name}[{place}]"), part)?;
        match part.string("type")?.as_deref() {
            Some(kind) if kind == "text" || (kind == "refusal" && is_of_model) => {
                let field = if kind == "text" { "text" } else { "refusal" };
                let text = part.string(field)?;
                let missing = || Invalid::of(&part.name(field), "is missing, expected a string".to_owned());
                texts.push(text.ok_or_else(missing)?);
                hints::breakpoint(&mut part)?;
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
