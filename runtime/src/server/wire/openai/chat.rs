//! Chat completions: messages put into the model's chat template, and its turn told as text, reasoning and calls.

use serde_json::{Map, Value as Json, json};

use super::answer::{Message, Style, TokenTold, told};
use super::conversation;
use super::params::Asked;
use crate::engine::fresh_seed;
use crate::server::catalogue::Hosted;
use crate::server::error::{Invalid, Problem};
use crate::server::json::Fields;
use crate::server::turn::Piece;

/// Alternatives that may be asked for.
const MOST_TOP: i64 = 20;

pub(super) static STYLE: Style = Style {
    id: "chatcmpl",
    object: "chat.completion",
    chunk_object: "chat.completion.chunk",
    prompt_param: "messages",
    prompts,
    logprobs: top_logprobs,
    choice,
    role: Some(role),
    piece,
    last,
};

/// Fields of the protocol that nothing here does, and what can be done instead.
const UNSUPPORTED: [(&str, &str); 6] = [
    ("functions", "is the older form of tools and not supported, expected tools"),
    ("function_call", "is the older form of tool_choice and not supported, expected tool_choice"),
    ("prediction", "is not supported; \"speculate\": \"lookup\" guesses ahead by what the messages say"),
    ("audio", "is not supported, models here write text"),
    ("moderation", "is not supported, nothing is moderated here"),
    ("web_search_options", "is not supported, nothing is searched for here; a tool can be"),
];

fn prompts(fields: &mut Fields, hosted: &Hosted, asked: &mut Asked) -> Result<Vec<Vec<u32>>, Problem> {
    fields.refuse_unsupported(&UNSUPPORTED)?;
    modalities(fields)?;
    verbosity(fields)?;
    let conversation = conversation::read(fields, hosted)?;
    let prompt = conversation.prompt;
    asked.expect(conversation.turn, hosted)?;
    Ok(vec![prompt])
}

/// Answers are text.
fn modalities(fields: &mut Fields) -> Result<(), Problem> {
    match fields.take("modalities") {
        None => Ok(()),
        Some(Json::Array(kinds)) if kinds == ["text"] => Ok(()),
        Some(other) => {
            let message = format!("is {other}, but models here write text, expected [\"text\"]");
            Err(Invalid::unsupported("modalities", message).into())
        }
    }
}

/// No model here is told how much to say.
fn verbosity(fields: &mut Fields) -> Result<(), Problem> {
    match fields.string("verbosity")?.as_deref() {
        None | Some("medium") => Ok(()),
        Some(other) => {
            let message = format!("is {other:?}, which is not supported; tell the model in a message");
            Err(Invalid::unsupported("verbosity", message).into())
        }
    }
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

fn choice(index: usize, message: &Message, finish_reason: &str, tokens: Option<&[TokenTold]>) -> Json {
    let has_content = !message.text.is_empty() || message.calls.is_empty();
    let mut json = json!({
        "role": "assistant",
        "content": has_content.then_some(&message.text),
        "refusal": null,
    });
    if !message.thought.is_empty() {
        json["reasoning_content"] = message.thought.as_str().into();
    }
    if !message.calls.is_empty() {
        json["tool_calls"] = message.calls.iter().map(|(name, arguments)| Json::from(call(name, arguments))).collect();
    }
    json!({ "index": index, "message": json, "logprobs": logprobs(tokens), "finish_reason": finish_reason })
}

fn role(index: usize) -> Json {
    chunk(index, &json!({ "role": "assistant", "content": "" }), &Json::Null, None)
}

fn piece(index: usize, piece: &Piece, tokens: Option<&[TokenTold]>) -> Json {
    let delta = match piece {
        Piece::Text(text) => json!({ "content": text }),
        Piece::Thought(text) => json!({ "reasoning_content": text }),
        Piece::Call { place, name } => {
            let mut fields = Map::new();
            fields.insert("index".to_owned(), (*place).into());
            fields.extend(call(name, ""));
            json!({ "tool_calls": [fields] })
        }
        Piece::Arguments { place, text } => {
            json!({ "tool_calls": [{ "index": place, "function": { "arguments": text } }] })
        }
    };
    chunk(index, &delta, &Json::Null, tokens)
}

fn last(index: usize, finish_reason: &str, tokens: Option<&[TokenTold]>) -> Json {
    chunk(index, &json!({}), &finish_reason.into(), tokens)
}

/// A part of a choice.
fn chunk(index: usize, delta: &Json, finish_reason: &Json, tokens: Option<&[TokenTold]>) -> Json {
    json!({ "index": index, "delta": delta, "logprobs": logprobs(tokens), "finish_reason": finish_reason })
}

/// A call with an id that no other has.
fn call(name: &str, arguments: &str) -> Map<String, Json> {
    let id = format!("call_{:016x}{:08x}", fresh_seed(), fresh_seed() >> 32);
    let mut fields = Map::new();
    fields.insert("id".to_owned(), id.into());
    fields.insert("type".to_owned(), "function".into());
    fields.insert("function".to_owned(), json!({ "name": name, "arguments": arguments }));
    fields
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
