//! Conversations with tools for templates that know none: the tools are told in words before the first message, calls
//! and their results become text.

use serde_json::Value as Json;

use super::CallFormat;

/// The conversation with nothing in it but roles and texts. `tools` are described if there are any.
pub(in crate::server) fn rewritten(messages: Vec<Json>, tools: &[Json], format: &CallFormat) -> Vec<Json> {
    let mut plain: Vec<Json> = Vec::with_capacity(messages.len() + 1);
    let mut is_result = false;
    for mut message in messages {
        let calls = message.as_object_mut().and_then(|message| message.shift_remove("tool_calls"));
        let was_result = is_result;
        is_result = message["role"] == "tool";
        let mut content = message["content"].as_str().unwrap_or_default().to_owned();
        if is_result {
            content = format!("<tool_response>\n{content}\n</tool_response>");
            message = serde_json::json!({ "role": "user" });
        }
        for call in calls.iter().filter_map(Json::as_array).flatten() {
            let CallFormat { open, close, .. } = format;
            let head = format.head(call["function"]["name"].as_str().unwrap_or_default());
            let line = if content.is_empty() { "" } else { "\n" };
            content += &format!("{line}{open}\n{head}{}}}\n{close}", call["function"]["arguments"]);
        }
        // Many templates want the roles to take turns.
        if let Some(last) =
            plain.last_mut().filter(|last| message["role"] == "user" && last["role"] == "user" && was_result)
        {
            let joined = format!("{}\n{content}", last["content"].as_str().unwrap_or_default());
            last["content"] = joined.into();
        } else {
            message["content"] = content.into();
            plain.push(message);
        }
    }
    if !tools.is_empty() {
        instruct(&mut plain, tools, format);
    }
    plain
}

/// Tells of the tools in the system message, or else in the first one: not every template has a system's turn.
fn instruct(messages: &mut Vec<Json>, tools: &[Json], format: &CallFormat) {
    let CallFormat { open, close, .. } = format;
    let list: Vec<String> = tools.iter().map(|tool| tool["function"].to_string()).collect();
    let head = format.head("NAME");
    let text = format!(
        "You may call these functions, described as JSON, one a line:\n{}\n\nTo call one, write\n{open}\n{head}{{...}}}}\n\
         {close}\nand nothing after it. Its result comes back between <tool_response> and </tool_response>.",
        list.join("\n"),
    );
    match messages.first_mut() {
        Some(first) if first["role"] != "assistant" => {
            let content = first["content"].as_str().unwrap_or_default();
            let joined =
                if first["role"] == "system" { format!("{content}\n\n{text}") } else { format!("{text}\n\n{content}") };
            first["content"] = joined.into();
        }
        _ => messages.insert(0, serde_json::json!({ "role": "user", "content": text })),
    }
}
