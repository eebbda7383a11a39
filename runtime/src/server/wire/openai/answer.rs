//! Answers as JSON: what chat completions and completions have in common, and answers that are given as a whole.

use farpost_models::tokenizer::Tokenizer;
use serde_json::{Value as Json, json};

use super::params::Asked;
use crate::engine::{Logprobs, fresh_seed};
use crate::server::app::unix_seconds;
use crate::server::catalogue::Hosted;
use crate::server::error::Problem;
use crate::server::following::{Following, Said, Usage};
use crate::server::json::Fields;

/// Reads the prompts of a request, as ids.
pub(super) type Prompts = fn(&mut Fields, &Hosted) -> Result<Vec<Vec<u32>>, Problem>;

/// Where the two kinds of answers differ.
pub(super) struct Style {
    /// Before the number in ids.
    pub(super) id: &'static str,
    pub(super) object: &'static str,
    pub(super) chunk_object: &'static str,
    /// Ids of the prompts of a request.
    pub(super) prompts: Prompts,
    /// How many alternatives to each token it wants to know.
    pub(super) logprobs: fn(&mut Fields) -> Result<Option<usize>, Problem>,
    /// A choice that is complete.
    pub(super) choice: fn(usize, &str, &str, Option<&[TokenTold]>) -> Json,
    /// What a choice begins with in a stream.
    pub(super) role: Option<fn(usize) -> Json>,
    /// A piece of text.
    pub(super) text: fn(usize, &str, Option<&[TokenTold]>) -> Json,
    /// The end of a choice.
    pub(super) last: fn(usize, &str, Option<&[TokenTold]>) -> Json,
}

/// A token and what else might have stood in its place.
#[derive(Clone, Debug)]
pub(super) struct TokenTold {
    pub(super) text: String,
    pub(super) bytes: Vec<u8>,
    pub(super) logprob: f32,
    pub(super) top: Vec<(String, Vec<u8>, f32)>,
    /// Characters of the tokens before it.
    pub(super) offset: usize,
}

/// The tokens of a choice that were not told yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    waiting: Vec<TokenTold>,
    n_chars: usize,
}

impl Tokens {
    pub(super) fn push(&mut self, id: u32, logprobs: &Logprobs, tokenizer: &Tokenizer) {
        let token = TokenTold::new(id, logprobs, tokenizer, self.n_chars);
        self.n_chars += token.text.chars().count();
        self.waiting.push(token);
    }

    pub(super) fn take(&mut self) -> Vec<TokenTold> {
        std::mem::take(&mut self.waiting)
    }
}

impl TokenTold {
    fn new(id: u32, logprobs: &Logprobs, tokenizer: &Tokenizer, offset: usize) -> Self {
        let parts = |id: u32| (tokenizer.token_text(id), tokenizer.token_bytes(id).to_vec());
        let (text, bytes) = parts(id);
        let top = logprobs.top.iter().map(|&(id, logprob)| {
            let (text, bytes) = parts(id);
            (text, bytes, logprob)
        });
        Self { text, bytes, logprob: logprobs.chosen, top: top.collect(), offset }
    }
}

/// One token with its log-probability. A token need not be whole characters, so its bytes are told too.
pub(super) fn told(text: &str, bytes: &[u8], logprob: f32) -> Json {
    json!({ "token": text, "logprob": rounded(logprob), "bytes": bytes })
}

/// With the digits it has as f32. JSON knows no infinity; the protocol writes -9999 for what is as good as impossible.
pub(super) fn rounded(logprob: f32) -> f64 {
    let logprob = logprob.max(-9999.0);
    logprob.to_string().parse().unwrap_or(-9999.0)
}

/// What all parts of an answer say of it.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    pub(super) id: String,
    created: u64,
    model: String,
    fingerprint: Option<String>,
}

impl Envelope {
    pub(super) fn new(style: &Style, hosted: &Hosted) -> Self {
        Self {
            id: format!("{}-{:016x}{:016x}", style.id, fresh_seed(), fresh_seed()),
            created: unix_seconds(),
            model: hosted.name.clone(),
            fingerprint: hosted.fingerprint(),
        }
    }

    pub(super) fn around(&self, object: &str, choices: &[Json]) -> Json {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

pub(super) fn usage(usage: Usage) -> Json {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

/// "length" or "stop".
pub(super) fn finish_reason(is_length: bool) -> &'static str {
    if is_length { "length" } else { "stop" }
}

/// The answer, when it is complete.
pub(super) async fn whole(
    mut following: Following,
    style: &Style,
    hosted: &Hosted,
    asked: &Asked,
) -> Result<Json, Problem> {
    struct Choice {
        text: String,
        tokens: Tokens,
        finish_reason: &'static str,
    }
    let empty = |_| Choice { text: String::new(), tokens: Tokens::default(), finish_reason: "stop" };
    let mut choices: Vec<Choice> = (0..following.n_choices()).map(empty).collect();
    let tokenizer = hosted.engine.model().tokenizer();
    while let Some(said) = following.next().await {
        match said {
            Said::Token { choice, id, logprobs: Some(logprobs) } => {
                choices[choice].tokens.push(id, &logprobs, tokenizer);
            }
            Said::Token { .. } => {}
            Said::Text { choice, text } => choices[choice].text.push_str(&text),
            Said::Done { choice, is_length } => choices[choice].finish_reason = finish_reason(is_length),
            Said::Broken(problem) => return Err(problem),
        }
    }
    let told = choices.into_iter().enumerate().map(|(index, mut choice)| {
        let tokens = asked.tells_tokens().then(|| choice.tokens.take());
        (style.choice)(index, &choice.text, choice.finish_reason, tokens.as_deref())
    });
    let mut json = Envelope::new(style, hosted).around(style.object, &told.collect::<Vec<_>>());
    json["usage"] = usage(following.usage());
    Ok(json)
}
