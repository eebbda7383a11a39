//! Answers as chunks of a stream: role first, finish_reason once, usage only if it was asked for, `[DONE]` last.

use std::sync::Arc;

use serde_json::Value as Json;

use super::answer::{Envelope, Style, TokenTold, Tokens, finish_reason, usage};
use super::params::Asked;
use crate::model::Model;
use crate::server::catalogue::Hosted;
use crate::server::following::{Said, Usage};
use crate::server::sse::{self, Narrator};

pub(super) struct Chunks {
    style: &'static Style,
    envelope: Envelope,
    model: Arc<Model>,
    wants_usage: bool,
    /// By choice.
    has_begun: Vec<bool>,
    /// Tokens whose text has not come yet, by choice; `None` if nothing is told of tokens.
    tokens: Option<Vec<Tokens>>,
}

impl Chunks {
    pub(super) fn new(style: &'static Style, hosted: &Hosted, asked: &Asked, n_choices: usize) -> Self {
        Self {
            style,
            envelope: Envelope::new(style, hosted),
            model: Arc::clone(hosted.engine.model()),
            wants_usage: asked.wants_usage,
            has_begun: vec![false; n_choices],
            tokens: asked.tells_tokens().then(|| vec![Tokens::default(); n_choices]),
        }
    }

    fn chunk(&self, choices: &[Json], usage: Json, out: &mut String) {
        let mut json = self.envelope.around(self.style.chunk_object, choices);
        if self.wants_usage {
            json["usage"] = usage;
        }
        sse::data(out, &json.to_string());
    }

    fn begin(&mut self, choice: usize, out: &mut String) {
        if !std::mem::replace(&mut self.has_begun[choice], true)
            && let Some(role) = self.style.role
        {
            self.chunk(&[role(choice)], Json::Null, out);
        }
    }

    /// What is to be told of the tokens of a choice since it was told last.
    fn take_tokens(&mut self, choice: usize) -> Option<Vec<TokenTold>> {
        self.tokens.as_mut().map(|tokens| tokens[choice].take())
    }
}

impl Narrator for Chunks {
    fn tell(&mut self, said: Said, out: &mut String) {
        match said {
            Said::Token { choice, id, logprobs } => {
                self.begin(choice, out);
                if let (Some(tokens), Some(logprobs)) = (&mut self.tokens, logprobs) {
                    tokens[choice].push(id, &logprobs, self.model.tokenizer());
                }
            }
            Said::Text { choice, text } => {
                self.begin(choice, out);
                let tokens = self.take_tokens(choice);
                self.chunk(&[(self.style.text)(choice, &text, tokens.as_deref())], Json::Null, out);
            }
            Said::Done { choice, is_length } => {
                self.begin(choice, out);
                // Tokens that left no text of their own.
                let tokens = self.take_tokens(choice).filter(|tokens| !tokens.is_empty());
                let last = (self.style.last)(choice, finish_reason(is_length), tokens.as_deref());
                self.chunk(&[last], Json::Null, out);
            }
            Said::Broken(problem) => sse::data(out, &super::error(&problem).to_string()),
        }
    }

    fn end(&mut self, told: Usage, out: &mut String) {
        if self.wants_usage {
            self.chunk(&[], usage(told), out);
        }
        sse::data(out, "[DONE]");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_framed_exactly() {
        let mut out = String::new();
        sse::data(&mut out, &json!({ "a": "b\nc" }).to_string());
        assert_eq!(out, "data: {\"a\":\"b\\nc\"}\n\n");
    }
}
