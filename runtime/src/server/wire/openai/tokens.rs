//! Text to tokens and back, without running the model: `/tokenize` and `/detokenize`, as vLLM has them beside OpenAI's
//! routes. Both sides are bounded: neither has a place in the ledger of an engine.

use std::fmt::Write as _;

use farpost_models::tokenizer::Special;
use serde_json::{Value as Json, json};

use crate::server::catalogue::Hosted;
use crate::server::error::{Invalid, Problem};
use crate::server::json::{Fields, kind};

/// Bytes of a text that is made into tokens or of them.
const LONGEST: usize = 1 << 20;

/// Ids of a text, or of a conversation as the model is given it; and how many they are.
pub(super) fn tokenize(mut fields: Fields, hosted: &Hosted) -> Result<String, Problem> {
    let tokenizer = hosted.engine.model().tokenizer();
    let special = fields.flag("add_special_tokens")?;
    let wants_texts = fields.flag("return_token_strs")?.unwrap_or(false);
    let ids = match (fields.string("prompt")?, fields.is_given("messages")) {
        (Some(text), false) if text.len() > LONGEST => {
            let message = format!("has {} bytes, expected at most {LONGEST}", text.len());
            return Err(Invalid::of("prompt", message).into());
        }
        (Some(text), false) if special.unwrap_or(true) => tokenizer.encode_prompt(&text, Special::AsText),
        (Some(text), false) => tokenizer.encode(&text, Special::AsText),
        (None, true) if special.is_some() => {
            let message = "goes with prompt: what is around messages is up to the chat template";
            return Err(Invalid::of("add_special_tokens", message).into());
        }
        (None, true) => super::conversation::read(&mut fields, hosted)?.prompt,
        (None, false) => return Err(Invalid::of("prompt", "is missing, or messages".to_owned()).into()),
        (Some(_), true) => return Err(Invalid::of("prompt", "and messages are both given".to_owned()).into()),
    };
    fields.finish()?;
    let mut out = format!(r#"{{"count":{},"max_model_len":{},"tokens":["#, ids.len(), hosted.engine.context());
    // Writing to a string does not fail.
    for (place, id) in ids.iter().enumerate() {
        let _ = write!(out, "{}{id}", if place > 0 { "," } else { "" });
    }
    out.push_str(r#"],"token_strs":"#);
    if wants_texts {
        for (place, &id) in ids.iter().enumerate() {
            let _ = write!(out, "{}{}", if place > 0 { "," } else { "[" }, Json::from(tokenizer.token_text(id)));
        }
        out.push_str(if ids.is_empty() { "[]" } else { "]" });
    } else {
        out.push_str("null");
    }
    out.push('}');
    Ok(out)
}

/// The text of ids; bytes that are no text are replaced.
pub(super) fn detokenize(mut fields: Fields, hosted: &Hosted) -> Result<String, Problem> {
    let tokenizer = hosted.engine.model().tokenizer();
    let items = match fields.take("tokens") {
        Some(Json::Array(items)) => items,
        found => {
            let found = found.as_ref().map_or("missing", kind);
            return Err(Invalid::of("tokens", format!("is {found}, expected an array of ids")).into());
        }
    };
    fields.finish()?;
    let ids = super::completions::ids("tokens", &items)?;
    let n_vocab = tokenizer.n_vocab();
    if let Some(place) = ids.iter().position(|&id| id as usize >= n_vocab) {
        let message = format!("has {} as entry {place}, the model has {n_vocab} tokens", ids[place]);
        return Err(Invalid::of("tokens", message).into());
    }
    let n_bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id).len()).sum();
    if n_bytes > LONGEST {
        let message = format!("is a text of {n_bytes} bytes, expected at most {LONGEST}");
        return Err(Invalid::of("tokens", message).into());
    }
    Ok(json!({ "prompt": String::from_utf8_lossy(&tokenizer.decode(&ids, true)) }).to_string())
}
