//! Answers as JSON: what chat completions and completions have in common, and answers that are given as a whole.

use farpost_models::tokenizer::Tokenizer;
use serde_json::{Value as Json, json};

use super::params::Asked;
use crate::engine::{Logprobs, StopMatcher, fresh_seed};
use crate::server::app::unix_seconds;
use crate::server::catalogue::Hosted;
use crate::server::error::Problem;
use crate::server::following::{Following, Said, Usage};
use crate::server::json::Fields;
use crate::server::turn::{Piece, Reader};

/// Reads the prompts of a request, as ids, and what the answers may hold.
pub(super) type Prompts = fn(&mut Fields, &Hosted, &mut Asked) -> Result<Vec<Vec<u32>>, Problem>;

/// Where the two kinds of answers differ.
pub(super) struct Style {
    /// Before the number in ids.
    pub(super) id: &'static str,
    pub(super) object: &'static str,
    pub(super) chunk_object: &'static str,
    /// The parameter that has the prompt.
    pub(super) prompt_param: &'static str,
    /// Ids of the prompts of a request.
    pub(super) prompts: Prompts,
    /// How many alternatives to each token it wants to know.
    pub(super) logprobs: fn(&mut Fields) -> Result<Option<usize>, Problem>,
    /// A choice that is complete.
    pub(super) choice: fn(usize, &Message, &str, Option<&[TokenTold]>) -> Json,
    /// What a choice begins with in a stream.
    pub(super) role: Option<fn(usize) -> Json>,
    /// A part of one.
    pub(super) piece: fn(usize, &Piece, Option<&[TokenTold]>) -> Json,
    /// The end of a choice.
    pub(super) last: fn(usize, &str, Option<&[TokenTold]>) -> Json,
}

/// A token and what else might have stood in its place.
#[derive(Clone, Debug, Default)]
pub(super) struct TokenTold {
    pub(super) text: String,
    pub(super) bytes: Vec<u8>,
    pub(super) logprob: f32,
    pub(super) top: Vec<(String, Vec<u8>, f32)>,
    /// Characters of the tokens before it.
    pub(super) offset: usize,
    /// Bytes of the tokens before it.
    pub(super) start: usize,
}

/// What one choice says, as a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    pub(super) text: String,
    pub(super) thought: String,
    /// Names and arguments.
    pub(super) calls: Vec<(String, String)>,
}

impl Message {
    fn push(&mut self, piece: Piece) {
        match piece {
            Piece::Text(text) => self.text.push_str(&text),
            Piece::Thought(text) => self.thought.push_str(&text),
            Piece::Call { name, .. } => self.calls.push((name, String::new())),
            Piece::Arguments { place, text } => {
                if let Some((_, arguments)) = self.calls.get_mut(place) {
                    arguments.push_str(&text);
                }
            }
        }
    }
}

/// A choice that is being written.
#[derive(Clone, Debug)]
pub(super) struct Writing {
    reader: Reader,
    /// Looks for stop strings in the answer. Calls are no part of it: one that has begun is written to its end.
    stops: StopMatcher,
    /// Tokens that were not told yet, if anything is told of tokens.
    tokens: Option<Vec<TokenTold>>,
    /// Characters and bytes of all tokens that were chosen.
    n_chars: usize,
    n_bytes: usize,
    /// Bytes of text that came.
    n_came: usize,
    /// Of these, the first that are told or will not be: what is held back, as it may be a stop string or a call, is not
    /// among them.
    n_certain: usize,
    /// The text is over, and what was held back was no stop string.
    is_whole: bool,
    /// Tokens whose text has not come yet.
    n_waiting: usize,
    n_thought: usize,
}

impl Writing {
    /// `n` choices of what was asked for.
    pub(super) fn several(n: usize, asked: &Asked) -> Vec<Self> {
        let tokens = asked.tells_tokens().then(Vec::new);
        let (reader, stops) = (asked.turn.reader(), StopMatcher::new(&asked.stops_of_answer));
        let (n_chars, n_bytes, n_came, n_certain) = (0, 0, 0, 0);
        let (is_whole, n_waiting, n_thought) = (false, 0, 0);
        vec![Self { reader, stops, tokens, n_chars, n_bytes, n_came, n_certain, is_whole, n_waiting, n_thought }; n]
    }

    /// A token was chosen.
    pub(super) fn token(&mut self, id: u32, logprobs: Option<&Logprobs>, tokenizer: &Tokenizer) {
        self.n_waiting += 1;
        if let (Some(tokens), Some(logprobs)) = (&mut self.tokens, logprobs) {
            let token = TokenTold::new(id, logprobs, tokenizer, self.n_chars, self.n_bytes);
            self.n_chars += token.text.chars().count();
            self.n_bytes += token.bytes.len();
            tokens.push(token);
        }
    }

    /// The text goes on.
    pub(super) fn text(&mut self, text: &str) -> Vec<Piece> {
        self.n_came += text.len();
        let was_in_thought = self.reader.is_in_thought();
        let mut pieces = Vec::new();
        self.reader.push(text, &mut pieces);
        self.count(was_in_thought);
        let pieces = self.stop(pieces);
        if !self.is_stopped() {
            self.n_certain = self.n_came - self.reader.n_held() - self.stops.n_held();
        }
        pieces
    }

    /// What comes before a stop string. Of its beginnings nothing is told before it is certain that they are none; what
    /// is no text parts them from what follows.
    fn stop(&mut self, pieces: Vec<Piece>) -> Vec<Piece> {
        let mut out = Vec::with_capacity(pieces.len());
        for piece in pieces {
            if self.is_stopped() {
                break;
            }
            let text = match &piece {
                Piece::Text(text) => self.stops.push(text).to_owned(),
                _ => self.stops.finish(),
            };
            // Up to a stop string; without one it is set when all was looked at.
            self.n_certain += text.len();
            if !text.is_empty() {
                out.push(Piece::Text(text));
            }
            if !matches!(piece, Piece::Text(_)) {
                out.push(piece);
            }
        }
        out
    }

    /// A stop string ended the answer.
    pub(super) fn is_stopped(&self) -> bool {
        self.stops.found().is_some()
    }

    /// The text is over; a stop string has ended it, or something else.
    pub(super) fn finish(&mut self, is_stop_string: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.reader.finish(&mut pieces);
        self.count(self.reader.is_in_thought());
        let mut pieces = self.stop(pieces);
        let rest = self.stops.finish();
        if !rest.is_empty() && !self.is_stopped() {
            pieces.push(Piece::Text(rest));
        }
        if !self.is_stopped() {
            (self.n_certain, self.is_whole) = (self.n_came, !is_stop_string);
        }
        pieces
    }

    /// Tokens of the reasoning, those of its marks among them.
    fn count(&mut self, was_in_thought: bool) {
        let n = std::mem::take(&mut self.n_waiting);
        if was_in_thought || self.reader.is_in_thought() {
            self.n_thought += n;
        }
    }

    /// Tokens of the reasoning.
    pub(super) fn n_thought(&self) -> usize {
        self.n_thought
    }

    /// What is to be told of tokens since it was told last: of those that begin in text which is certain. Of a stop string
    /// nothing is told but what belongs to the token that it begins in.
    pub(super) fn take_tokens(&mut self) -> Option<Vec<TokenTold>> {
        let (n_certain, is_whole) = (self.n_certain, self.is_whole);
        self.tokens.as_mut().map(|tokens| {
            let n_told = tokens.iter().take_while(|token| is_whole || token.start < n_certain).count();
            tokens.drain(..n_told).collect()
        })
    }

    /// Why it ended.
    pub(super) fn finish_reason(&self, is_length: bool) -> &'static str {
        match (is_length, self.reader.n_calls()) {
            (true, _) => "length",
            (false, 0) => "stop",
            (false, _) => "tool_calls",
        }
    }
}

impl TokenTold {
    fn new(id: u32, logprobs: &Logprobs, tokenizer: &Tokenizer, offset: usize, start: usize) -> Self {
        let parts = |id: u32| (tokenizer.token_text(id), tokenizer.token_bytes(id).to_vec());
        let (text, bytes) = parts(id);
        let top = logprobs.top.iter().map(|&(id, logprob)| {
            let (text, bytes) = parts(id);
            (text, bytes, logprob)
        });
        Self { text, bytes, logprob: logprobs.chosen, top: top.collect(), offset, start }
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
    fingerprint: String,
    reproducible: bool,
    service_tier: Option<&'static str>,
}

impl Envelope {
    pub(super) fn new(style: &Style, hosted: &Hosted, asked: &Asked) -> Self {
        Self {
            id: format!("{}-{:016x}{:016x}", style.id, fresh_seed(), fresh_seed()),
            created: unix_seconds(),
            model: hosted.name.clone(),
            fingerprint: hosted.fingerprint(),
            reproducible: asked.terms.reproducible,
            service_tier: asked.hints.service_tier,
        }
    }

    pub(super) fn around(&self, object: &str, choices: &[Json]) -> Json {
        let mut json = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "reproducible": self.reproducible,
            "choices": choices,
        });
        if let Some(tier) = self.service_tier {
            json["service_tier"] = tier.into();
        }
        json
    }
}

/// `n_thought` is told where a model reasons.
pub(super) fn usage(usage: Usage, n_thought: Option<usize>) -> Json {
    let mut json = json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    });
    if let Some(n_thought) = n_thought {
        json["completion_tokens_details"] = json!({ "reasoning_tokens": n_thought });
    }
    json
}

/// Tokens of the reasoning of all choices, where a model reasons.
pub(super) fn n_thought(asked: &Asked, choices: &[Writing]) -> Option<usize> {
    asked.turn.thinking.map(|_| choices.iter().map(Writing::n_thought).sum())
}

/// The answer, when it is complete.
pub(super) async fn whole(
    mut following: Following,
    style: &Style,
    hosted: &Hosted,
    asked: &Asked,
) -> Result<Json, Problem> {
    let n = following.n_choices();
    let mut writing = Writing::several(n, asked);
    let mut messages = vec![Message::default(); n];
    let mut reasons = vec!["stop"; n];
    let tokenizer = hosted.engine.model().tokenizer();
    while let Some(said) = following.next().await {
        match said {
            Said::Token { choice, id, logprobs } => writing[choice].token(id, logprobs.as_ref(), tokenizer),
            Said::Text { choice, text } => {
                writing[choice].text(&text).into_iter().for_each(|piece| messages[choice].push(piece));
                if writing[choice].is_stopped() {
                    following.enough(choice);
                }
            }
            Said::Done { choice, is_length, is_stop_string } => {
                writing[choice].finish(is_stop_string).into_iter().for_each(|piece| messages[choice].push(piece));
                reasons[choice] = writing[choice].finish_reason(is_length);
            }
            Said::Broken(problem) => return Err(problem),
            // Nobody has asked for one.
            Said::Embedding { .. } => {}
        }
    }
    let told = (0..n).map(|index| {
        let tokens = writing[index].take_tokens();
        (style.choice)(index, &messages[index], reasons[index], tokens.as_deref())
    });
    let mut json = Envelope::new(style, hosted, asked).around(style.object, &told.collect::<Vec<_>>());
    json["usage"] = usage(following.usage(), n_thought(asked, &writing));
    Ok(json)
}
