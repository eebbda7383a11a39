//! Embeddings: texts or token ids to vectors of length 1.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use farpost_models::tokenizer::Special;
use hyper::body::{Frame, SizeHint};
use serde_json::{Value as Json, json};

use super::Turn;
use super::completions::ids;
use super::params::Terms;
use crate::engine::{Held, Request, shortened};
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

/// Bytes of a number as text, with what parts it from the next.
const NUMBER_BYTES: usize = 16;
/// Bytes of the answer that are handed to the connection at once.
const PART_BYTES: usize = 64 << 10;
/// Bytes of an embedding as JSON beside its numbers.
const ENTRY_BYTES: usize = 64;

/// What was asked for, once the engine has taken the first text of it.
pub(super) struct Taken {
    following: Following,
    asked: Asked,
    model: String,
}

/// Reads a request and hands it to the engine. All that can be wrong with it shows here.
pub(super) fn take(app: &Arc<App>, visit: &Visit, body: &Bytes, turn: &mut Turn) -> Result<Taken, Problem> {
    let mut fields = Fields::new(crate::server::json::object(body)?);
    let hosted = super::named(app, visit, &mut fields, turn)?;
    if hosted.engine.model().pooling().is_none() {
        let message = format!("{:?} writes text and makes no embeddings", hosted.name);
        return Err(Invalid { code: Some("unsupported_model"), ..Invalid::of("model", message) }.into());
    }
    let (asked, inputs) = read(fields, &hosted)?;
    let request = asked.terms.on(Request::embedding(Vec::new()), visit);
    let answer_bytes = inputs.len() * asked.entry_bytes();
    let following = Following::submit(app, visit, &hosted, request, inputs, answer_bytes)?;
    Ok(Taken { following, asked, model: hosted.name.clone() })
}

/// The answer, when it is complete.
pub(super) async fn whole(taken: Taken) -> Result<Body, Problem> {
    let Taken { mut following, asked, model } = taken;
    let n = following.n_choices();
    // As text they are kept once, each in the answer as soon as all before it are.
    let mut out = String::with_capacity(n * asked.entry_bytes() + model.len() + 256);
    out.push_str(r#"{"object":"list","data":["#);
    let (mut early, mut next) = (vec![None; n], 0);
    while let Some(said) = following.next().await {
        match said {
            Said::Embedding { choice, numbers } => {
                early[choice] = Some(shortened(numbers, asked.dimensions));
                while let Some(numbers) = early.get_mut(next).and_then(Option::take) {
                    let comma = if next > 0 { "," } else { "" };
                    // Writing to a string does not fail.
                    let _ = write!(out, r#"{comma}{{"object":"embedding","index":{next},"embedding":"#);
                    asked.encoding.write(&numbers, &mut out);
                    out.push('}');
                    next += 1;
                }
            }
            Said::Broken(problem) => return Err(problem),
            Said::Token { .. } | Said::Text { .. } | Said::Done { .. } => {}
        }
    }
    let n_tokens = following.usage().prompt_tokens;
    let usage = json!({ "prompt_tokens": n_tokens, "total_tokens": n_tokens });
    let _ = write!(out, r#"],"model":{},"usage":{usage}}}"#, Json::from(model));
    Ok(Body::new(Parts { rest: out.into(), _held: following.take_held() }))
}

/// An answer that may be large: its memory is held until most of it has gone.
struct Parts {
    rest: Bytes,
    _held: Option<Held>,
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let n_bytes = self.rest.len().min(PART_BYTES);
        let part = self.rest.split_to(n_bytes);
        Poll::Ready((n_bytes > 0).then(|| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

impl Asked {
    /// Most bytes of an embedding, in the answer or on its way there.
    fn entry_bytes(&self) -> usize {
        self.dimensions * NUMBER_BYTES + ENTRY_BYTES
    }
}

impl Encoding {
    /// As JSON.
    fn write(self, numbers: &[f32], out: &mut String) {
        match self {
            Self::Float => {
                for (place, number) in numbers.iter().enumerate() {
                    // Small ones with an exponent: none is longer than `NUMBER_BYTES`.
                    let _ = write!(out, "{}{number:?}", if place > 0 { "," } else { "[" });
                }
                out.push(']');
            }
            Self::Base64 => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                out.push('"');
                base64(&bytes, out);
                out.push('"');
            }
        }
    }
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for three in bytes.chunks(3) {
        let group = three.iter().fold(0_u32, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = (group >> (18 - 6 * place) & 63) as usize;
            out.push(if place <= three.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (bytes, expected) in cases {
            assert_eq!(written(|out| base64(bytes.as_bytes(), out)), expected);
        }
        assert_eq!(written(|out| base64(&[0xFB, 0xFF, 0xFE], out)), "+//+");
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        let numbers = [0.5, -1.0e-12, 0.1_f32, -1.000_001_2e-5, -1.175_494_4e-38, 1e-45, -0.999_999_94, 0.0];
        let text = written(|out| Encoding::Float.write(&numbers, out));
        let read: Vec<f32> = serde_json::from_str(&text).unwrap();
        assert_eq!(read, numbers);
        assert!(text.split(',').all(|number| number.len() < NUMBER_BYTES), "{text}");
        assert_eq!(written(|out| Encoding::Base64.write(&[1.0], out)), "\"AACAPw==\"");
    }
}
