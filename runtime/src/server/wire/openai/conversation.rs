//! A conversation that is to be answered: its prompt, and what the answer may hold.

use farpost_models::template::{ChatTemplate, Prompt, RenderInput};
use serde_json::{Map, Value as Json};

use super::messages;
use super::params::check_length;
use super::tools::Tools;
use crate::model::Model;
use crate::server::catalogue::Hosted;
use crate::server::error::{Invalid, Problem};
use crate::server::json::{Fields, kind};
use crate::server::turn::{CallFormat, Marks, Teller, Turn, rewritten};

pub(super) struct Conversation {
    /// Ids.
    pub(super) prompt: Vec<u32>,
    pub(super) turn: Turn,
}

/// What templates get from elsewhere than from `chat_template_kwargs`.
const RESERVED: [&str; 8] = [
    "messages",
    "tools",
    "available_tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "strftime_now",
    "raise_exception",
];

/// Reads messages, tools and what is said of reasoning.
pub(super) fn read(fields: &mut Fields, hosted: &Hosted) -> Result<Conversation, Problem> {
    let messages = fields.take("messages");
    let messages = messages.ok_or_else(|| Invalid::of("messages", "is missing, expected an array".to_owned()))?;
    let messages = messages::read(messages)?;
    let tools = Tools::read(fields)?;
    let model = hosted.engine.model();
    let template = model.require_template().map_err(|_| {
        Invalid::of("model", format!("is {:?}, which has no chat template: ask /v1/completions", hosted.name))
    })?;
    let extra = variables(fields, template)?;
    // Where a variable of this name turns it on, it is off without.
    let is_off = template.uses("thinking") && extra.get("thinking") != Some(&Json::Bool(true));
    let has_calls = messages.iter().any(|message| message.get("tool_calls").is_some());
    let format = (has_calls || tools.may_be_called()).then(|| CallFormat::of(template, model.tokenizer()));
    let calls = format.map_or(Ok(None), |format| tools.calls(model, format))?;
    // Tools that may not be called are not shown, so that the model does not try.
    let described = if calls.is_some() { tools.described } else { Vec::new() };
    let render = |messages| prompt(model, template, messages, described.clone(), format, extra.clone());
    let named = messages.iter().any(is_named).then(|| messages.clone());
    let prompt = render(messages)?;
    if let Some(messages) = named {
        check_names(&messages, &prompt, render)?;
    }
    check_length("messages", prompt.text.len(), hosted)?;
    let thinking = Marks::of(template);
    let is_thinking = thinking.is_some_and(|marks| marks.is_open_in(&prompt.text));
    let has_thought = is_off || thinking.is_some_and(|marks| marks.is_over_in(&prompt.text));
    let turn = Turn { thinking, is_thinking, has_thought, calls };
    Ok(Conversation { prompt: prompt.encode_with_bos(model.tokenizer()), turn })
}

/// Whether a client has given it a name. That of a result is its tool's, told whether or not it is given.
fn is_named(message: &Json) -> bool {
    message.get("name").is_some() && message["role"] != "tool"
}

/// Refuses names that the template does not read: without them the prompt is the same.
fn check_names(
    messages: &[Json],
    prompt: &Prompt,
    render: impl Fn(Vec<Json>) -> Result<Prompt, Problem>,
) -> Result<(), Problem> {
    for role in ["system", "user", "assistant"] {
        let has_name = |message: &Json| message["role"] == role && is_named(message);
        let Some(place) = messages.iter().position(has_name) else { continue };
        let mut nameless = messages.to_vec();
        for fields in nameless.iter_mut().filter(|message| message["role"] == role).filter_map(Json::as_object_mut) {
            fields.shift_remove("name");
        }
        if render(nameless)? == *prompt {
            let message = format!("is not read by this model's chat template in messages of the role {role:?}");
            return Err(Invalid::unsupported(&format!("messages[{place}].name"), message).into());
        }
    }
    Ok(())
}

fn prompt(
    model: &Model,
    template: &ChatTemplate,
    messages: Vec<Json>,
    described: Vec<Json>,
    format: Option<&CallFormat>,
    extra: Map<String, Json>,
) -> Result<Prompt, Problem> {
    let mut input = match format {
        Some(format) if format.teller == Teller::Instruction => {
            RenderInput::new(rewritten(messages, &described, format).into())
        }
        format => {
            let tools = if described.is_empty() { Json::Null } else { described.into() };
            let messages = if format.is_some() { with_ids(messages, template) } else { messages };
            RenderInput { tools, ..RenderInput::new(messages.into()) }
        }
    };
    input.extra = extra;
    // What a template says is about the conversation as a whole.
    let refused = |message: String| Invalid { param: Some("messages".to_owned()), code: None, message };
    template.prompt(model.tokenizer(), &input).map_err(|error| refused(error.to_string()).into())
}

/// Mistral's templates take ids of nine letters and digits only: there calls are numbered anew.
fn with_ids(mut messages: Vec<Json>, template: &ChatTemplate) -> Vec<Json> {
    if !template.source().contains("length != 9") {
        return messages;
    }
    let mut ids: Vec<String> = Vec::new();
    for message in &mut messages {
        for call in message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
            let id = call["id"].as_str().unwrap_or_default().to_owned();
            call["id"] = format!("call{:05}", ids.len()).into();
            ids.push(id);
        }
        if let Some(id) = message.get_mut("tool_call_id")
            && let Some(number) = ids.iter().position(|known| Some(known.as_str()) == id.as_str())
        {
            *id = format!("call{number:05}").into();
        }
    }
    messages
}

/// Further variables of the template: `chat_template_kwargs`, and `reasoning_effort`.
fn variables(fields: &mut Fields, template: &ChatTemplate) -> Result<Map<String, Json>, Problem> {
    let mut variables = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Json::Object(variables)) => variables,
        Some(other) => {
            let message = format!("is {}, expected an object", kind(&other));
            return Err(Invalid::of("chat_template_kwargs", message).into());
        }
    };
    let is_unknown = |name: &&String| RESERVED.contains(&name.as_str()) || !template.uses(name);
    if let Some(name) = variables.keys().find(is_unknown) {
        let message = "is no variable of this model's chat template".to_owned();
        return Err(Invalid::unsupported(&format!("chat_template_kwargs.{name}"), message).into());
    }
    if let Some(effort) = fields.string("reasoning_effort")?
        && let Some((name, value)) = reasoning(&effort, template)?
    {
        if variables.contains_key(name) {
            let message = format!("and chat_template_kwargs.{name} are both given");
            return Err(Invalid::of("reasoning_effort", message).into());
        }
        variables.insert(name.to_owned(), value);
    }
    Ok(variables)
}

/// The variable that says how much a model reasons, where its template has one; `None` where it does not reason anyway.
fn reasoning(effort: &str, template: &ChatTemplate) -> Result<Option<(&'static str, Json)>, Problem> {
    const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
    if !EFFORTS.contains(&effort) {
        let message = format!("is {effort:?}, expected one of {}", EFFORTS.join(", "));
        return Err(Invalid::of("reasoning_effort", message).into());
    }
    if template.uses("reasoning_effort") {
        Ok(Some(("reasoning_effort", effort.into())))
    } else if template.uses("enable_thinking") && effort == "none" {
        Ok(Some(("enable_thinking", false.into())))
    } else if effort == "none" && Marks::of(template).is_none() {
        Ok(None)
    } else {
        let message = if template.uses("enable_thinking") {
            format!("is {effort:?}, but this model reasons or does not, expected \"none\" or nothing")
        } else {
            "is not supported by this model's chat template".to_owned()
        };
        Err(Invalid::unsupported("reasoning_effort", message).into())
    }
}
