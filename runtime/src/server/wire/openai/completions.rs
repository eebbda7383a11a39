//! Completions: texts or token ids to go on from, as they are.

use farpost_models::tokenizer::Special;
use serde_json::{Map, Value as Json, json};

use super::answer::{Message, Style, TokenTold, rounded};
use super::params::{Asked, check_length};
use crate::server::catalogue::Hosted;
use crate::server::error::{Invalid, Problem};
use crate::server::json::{Fields, kind};
use crate::server::turn::Piece;

/// Prompts that a request may have.
const MOST_PROMPTS: usize = 64;
/// Alternatives that may be asked for.
const MOST_TOP: i64 = 5;

pub(super) static STYLE: Style = Style {
    id: "cmpl",
    object: "text_completion",
    chunk_object: "text_completion",
    prompt_param: "prompt",
    prompts,
    logprobs: top_logprobs,
    choice,
    role: None,
    piece,
    last,
};

fn prompts(fields: &mut Fields, hosted: &Hosted, asked: &mut Asked) -> Result<Vec<Vec<u32>>, Problem> {
    fields.refuse_unsupported(&[("suffix", "is not supported, models here write on from the prompt only")])?;
    if let Some(best_of) = fields.count("best_of", 1, i64::MAX)?.filter(|best_of| *best_of != asked.n) {
        let message = format!("is {best_of}, n is {}, expected the same: all answers are told", asked.n);
        return Err(Invalid::unsupported("best_of", message).into());
    }
    if fields.flag("echo")? == Some(true) {
        return Err(Invalid::unsupported("echo", "is true, which is not supported".to_owned()).into());
    }
    let tokenizer = hosted.engine.model().tokenizer();
    let refuse = |message: String| Err(Invalid::of("prompt", message).into());
    // What a client sends is text; control tokens can be given as ids.
    let encode = |text: &str| {
        check_length("prompt", text.len(), hosted)?;
        Ok::<_, Problem>(tokenizer.encode_prompt(text, Special::AsText))
    };
    let mut is_list = false;
    let prompts = match fields.take("prompt") {
        None => return refuse("is missing, expected a string, token ids, or an array of either".to_owned()),
        Some(Json::String(text)) => vec![encode(&text)?],
        Some(Json::Array(items)) if items.first().is_some_and(Json::is_number) => vec![ids("prompt", &items)?],
        Some(Json::Array(items)) if items.len() <= MOST_PROMPTS => {
            is_list = true;
            let mut prompts = Vec::with_capacity(items.len());
            for (place, item) in items.iter().enumerate() {
                prompts.push(match item {
                    Json::String(text) => encode(text)?,
                    Json::Array(items) => ids(&format!("prompt[{place}]"), items)?,
                    other => return refuse(format!("has {} as entry {place}, expected a string or ids", kind(other))),
                });
            }
            prompts
        }
        Some(Json::Array(items)) => {
            return refuse(format!("has {} entries, expected at most {MOST_PROMPTS}", items.len()));
        }
        Some(other) => return refuse(format!("is {}, expected a string or an array", kind(&other))),
    };
    let empty = prompts.iter().position(Vec::is_empty).or(prompts.is_empty().then_some(0));
    let Some(place) = empty else { return Ok(prompts) };
    let param = if is_list && !prompts.is_empty() { format!("prompt[{place}]") } else { "prompt".to_owned() };
    Err(Invalid::of(&param, "is empty, expected a token or more").into())
}

/// Token ids; the engine checks that they are of its vocabulary.
pub(super) fn ids(param: &str, items: &[Json]) -> Result<Vec<u32>, Problem> {
    let id = |(place, item): (usize, &Json)| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Invalid::of(param, format!("has {item} as entry {place}, expected the id of a token")).into())
    };
    items.iter().enumerate().map(id).collect()
}

/// How many alternatives are to be told with each token; `None` if nothing is.
fn top_logprobs(fields: &mut Fields) -> Result<Option<usize>, Problem> {
    fields.count("logprobs", 0, MOST_TOP)
}

fn choice(index: usize, message: &Message, finish_reason: &str, tokens: Option<&[TokenTold]>) -> Json {
    chunk(index, &message.text, &finish_reason.into(), tokens)
}

fn piece(index: usize, piece: &Piece, tokens: Option<&[TokenTold]>) -> Json {
    // All is text where nothing else is expected.
    let text = if let Piece::Text(text) = piece { text } else { "" };
    chunk(index, text, &Json::Null, tokens)
}

fn last(index: usize, finish_reason: &str, tokens: Option<&[TokenTold]>) -> Json {
    chunk(index, "", &finish_reason.into(), tokens)
}

/// A choice, or a part of one.
fn chunk(index: usize, text: &str, finish_reason: &Json, tokens: Option<&[TokenTold]>) -> Json {
    json!({ "text": text, "index": index, "logprobs": logprobs(tokens), "finish_reason": finish_reason })
}

/// A token as text; one whose bytes are no text is told as its bytes, as OpenAI writes them.
fn label(text: &str, bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(_) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |label, byte| format!("{label}\\x{byte:02x}")),
    }
}

/// Four lists of equal length.
fn logprobs(tokens: Option<&[TokenTold]>) -> Json {
    let Some(tokens) = tokens else { return Json::Null };
    let top = |token: &TokenTold| -> Map<String, Json> {
        let mut labels = Map::new();
        for (text, bytes, logprob) in &token.top {
            // The likelier one comes first.
            labels.entry(label(text, bytes)).or_insert_with(|| rounded(*logprob).into());
        }
        labels
    };
    json!({
        "tokens": tokens.iter().map(|token| label(&token.text, &token.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| rounded(token.logprob)).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_no_text_are_told_as_bytes_and_none_is_lost() {
        let broken = |byte: u8| ("\u{fffd}".to_owned(), vec![0xe2, byte], -1.0);
        let top = vec![broken(0x80), broken(0x81), ("a".to_owned(), b"a".to_vec(), -2.0)];
        let told = TokenTold {
            text: "\u{fffd}".to_owned(),
            bytes: vec![0xe2, 0x80],
            logprob: -1.0,
            top,
            ..TokenTold::default()
        };
        let json = logprobs(Some(&[told]));
        assert_eq!(json["tokens"], json!([r"bytes:\xe2\x80"]));
        assert_eq!(json["top_logprobs"], json!([{ r"bytes:\xe2\x80": -1.0, r"bytes:\xe2\x81": -1.0, "a": -2.0 }]));
    }
}
