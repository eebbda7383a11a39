//! Text to tokens and back, without running the model: `/tokenize` and `/detokenize`, as vLLM has them beside OpenAI's
//! routes.

use farpost_models::tokenizer::Special;
use serde_json::{Value as Json, json};

use crate::server::catalogue::Hosted;
use crate::server::error::{Invalid, Problem};
use crate::server::json::{Fields, kind};

/// Ids of a text, or of a conversation as the model is given it; and how many they are.
pub(super) fn tokenize(mut fields: Fields, hosted: &Hosted) -> Result<Json, Problem> {
    let tokenizer = hosted.engine.model().tokenizer();
    let adds_special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let wants_texts = fields.flag("return_token_strs")?.unwrap_or(false);
    let ids = match (fields.string("prompt")?, fields.is_given("messages")) {
        (Some(text), false) if adds_special => tokenizer.encode_prompt(&text, Special::AsText),
        (Some(text), false) => tokenizer.encode(&text, Special::AsText),
        (None, true) => super::conversation::read(&mut fields, hosted)?.prompt,
        (None, false) => return Err(Invalid::of("prompt", "is missing, or messages".to_owned()).into()),
        (Some(_), true) => return Err(Invalid::of("prompt", "and messages are both given".to_owned()).into()),
    };
    fields.finish()?;
    let texts = wants_texts.then(|| ids.iter().map(|&id| tokenizer.token_text(id)).collect::<Vec<_>>());
    Ok(json!({
        "count": ids.len(),
        "max_model_len": hosted.engine.context(),
        "tokens": ids,
        "token_strs": texts,
    }))
}

/// The text of ids; bytes that are no text are replaced.
pub(super) fn detokenize(mut fields: Fields, hosted: &Hosted) -> Result<Json, Problem> {
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
    Ok(json!({ "prompt": String::from_utf8_lossy(&tokenizer.decode(&ids, true)) }))
}
