//! Embeddings: texts or token ids to vectors of length 1.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Bytes;
use farpost_models::tokenizer::Special;
use serde_json::{Value as Json, json};

use super::completions::ids;
use super::params::Terms;
use crate::engine::{Request, shortened};
use crate::server::app::App;
use crate::server::catalogue::Hosted;
use crate::server::error::{Invalid, Problem};
use crate::server::following::{Following, Said};
use crate::server::guard::Visit;
use crate::server::json::{Fields, kind};

/// Texts that a request may have.
const MOST_INPUTS: usize = 2048;

/// How the numbers of an embedding are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Float,
    /// Of their bytes, 32 bits each, little-endian.
    Base64,
}

/// What a request asks for.
pub(super) struct Asked {
    encoding: Encoding,
    /// Numbers of each embedding: the first of them, which models that are trained so allow.
    dimensions: usize,
    terms: Terms,
}

/// What a request asks for, and its texts as ids.
pub(super) fn read(mut fields: Fields, hosted: &Hosted) -> Result<(Asked, Vec<Vec<u32>>), Problem> {
    let encoding = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(other) => {
            let message = format!("is {other:?}, expected \"float\" or \"base64\"");
            return Err(Invalid::of("encoding_format", message).into());
        }
    };
    let width = hosted.engine.model().graph().width();
    let dimensions = fields.count("dimensions", 1, width as i64)?.unwrap_or(width);
    fields.string("user")?;
    let terms = Terms::read(&mut fields)?;
    let inputs = inputs(&mut fields, hosted)?;
    fields.finish()?;
    Ok((Asked { encoding, dimensions, terms }, inputs))
}

fn refuse<T>(param: &str, message: String) -> Result<T, Problem> {
    Err(Invalid::of(param, message).into())
}

fn inputs(fields: &mut Fields, hosted: &Hosted) -> Result<Vec<Vec<u32>>, Problem> {
    let one = |param: &str, input: Json| {
        let ids = match input {
            Json::String(text) if text.is_empty() => {
                return refuse(param, "is empty, expected a character or more".to_owned());
            }
            // What a client sends is text; control tokens can be given as ids.
            Json::String(text) => hosted.engine.model().tokenizer().encode_prompt(&text, Special::AsText),
            Json::Array(items) if items.is_empty() => {
                return refuse(param, "is empty, expected a token or more".to_owned());
            }
            Json::Array(items) => known(param, ids(param, &items)?, hosted)?,
            other => return refuse(param, format!("is {}, expected a string or token ids", kind(&other))),
        };
        let (n_tokens, context_tokens) = (ids.len(), hosted.engine.context());
        if n_tokens > context_tokens {
            let message = format!("has {n_tokens} tokens, the context holds {context_tokens}");
            let code = Some("context_length_exceeded");
            return Err(Invalid { code, ..Invalid::of(param, message) }.into());
        }
        Ok(ids)
    };
    match fields.take("input") {
        None => refuse("input", "is missing, expected a string, token ids, or an array of either".to_owned()),
        Some(Json::Array(items)) if !items.first().is_none_or(Json::is_number) => {
            if items.len() > MOST_INPUTS {
                return refuse("input", format!("has {} entries, expected at most {MOST_INPUTS}", items.len()));
            }
            items.into_iter().enumerate().map(|(place, input)| one(&format!("input[{place}]"), input)).collect()
        }
        Some(input) => Ok(vec![one("input", input)?]),
    }
}

/// Ids, if all are of the vocabulary: the engine would say so only when it comes to this text.
fn known(param: &str, ids: Vec<u32>, hosted: &Hosted) -> Result<Vec<u32>, Problem> {
    let n_vocab = hosted.engine.model().graph().n_vocab();
    match ids.iter().position(|&id| id as usize >= n_vocab) {
        Some(place) => refuse(param, format!("has {} as entry {place}, the model has {n_vocab} tokens", ids[place])),
        None => Ok(ids),
    }
}

/// What was asked for, once the engine has taken the first text of it.
pub(super) struct Taken {
    following: Following,
    asked: Asked,
    model: String,
}

/// Reads a request and hands it to the engine. All that can be wrong with it shows here.
pub(super) fn take(app: &Arc<App>, visit: &Visit, body: &Bytes) -> Result<Taken, Problem> {
    let mut fields = Fields::new(crate::server::json::object(body)?);
    let hosted = super::named(app, visit, &mut fields)?;
    if hosted.engine.model().pooling().is_none() {
        let message = format!("{:?} writes text and makes no embeddings", hosted.name);
        return Err(Invalid { code: Some("unsupported_model"), ..Invalid::of("model", message) }.into());
    }
    let (asked, inputs) = read(fields, &hosted)?;
    let requests = inputs.into_iter().map(|ids| asked.terms.on(Request::embedding(ids), visit)).collect();
    // They are as many as there are texts: all of them need not have room in the queue at once.
    let following = Following::submit(app, visit, &hosted, requests, 1)?;
    Ok(Taken { following, asked, model: hosted.name.clone() })
}

/// The answer, when it is complete.
pub(super) async fn whole(Taken { mut following, asked, model }: Taken) -> Result<String, Problem> {
    let mut written = vec![String::new(); following.n_choices()];
    while let Some(said) = following.next().await {
        match said {
            // As text they are kept once, whatever their number.
            Said::Embedding { choice, numbers } => {
                written[choice] = asked.encoding.write(&shortened(numbers, asked.dimensions));
            }
            Said::Broken(problem) => return Err(problem),
            Said::Token { .. } | Said::Text { .. } | Said::Done { .. } => {}
        }
    }
    let n_tokens = following.usage().prompt_tokens;
    let usage = json!({ "prompt_tokens": n_tokens, "total_tokens": n_tokens });
    let mut out = String::with_capacity(written.iter().map(|text| text.len() + 64).sum());
    out.push_str(r#"{"object":"list","data":["#);
    for (index, embedding) in written.into_iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        // Writing to a string does not fail.
        let _ = write!(out, r#"{comma}{{"object":"embedding","index":{index},"embedding":{embedding}}}"#);
    }
    let _ = write!(out, r#"],"model":{},"usage":{usage}}}"#, Json::from(model));
    Ok(out)
}

impl Encoding {
    /// As JSON.
    fn write(self, numbers: &[f32]) -> String {
        match self {
            Self::Float => {
                let mut out = String::with_capacity(numbers.len() * 14 + 2);
                for (place, number) in numbers.iter().enumerate() {
                    let _ = write!(out, "{}{number}", if place > 0 { "," } else { "[" });
                }
                out + "]"
            }
            Self::Base64 => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                format!("\"{}\"", base64(&bytes))
            }
        }
    }
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let group = three.iter().fold(0_u32, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = (group >> (18 - 6 * place) & 63) as usize;
            out.push(if place <= three.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (bytes, expected) in cases {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xFB, 0xFF, 0xFE]), "+//+");
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        let numbers = [0.5, -1.0e-12, 0.1_f32];
        let read: Vec<f32> = serde_json::from_str(&Encoding::Float.write(&numbers)).unwrap();
        assert_eq!(read, numbers);
        assert_eq!(Encoding::Base64.write(&[1.0]), "\"AACAPw==\"");
    }
}
