//! Answers as chunks of a stream: role first, finish_reason once, usage only if it was asked for, `[DONE]` last.

use std::sync::Arc;

use serde_json::Value as Json;

use super::answer::{Envelope, Style, Writing, n_thought, usage};
use super::params::Asked;
use crate::engine::fresh_seed;
use crate::model::Model;
use crate::server::catalogue::Hosted;
use crate::server::following::{Said, Usage};
use crate::server::sse::{self, Narrator};
use crate::server::turn::Piece;

/// Parts whose size is to tell nothing have a multiple of so many bytes.
const PART_BYTES: usize = 256;

pub(super) struct Chunks {
    style: &'static Style,
    envelope: Envelope,
    model: Arc<Model>,
    asked: Asked,
    /// By choice.
    has_begun: Vec<bool>,
    choices: Vec<Writing>,
}

impl Chunks {
    pub(super) fn new(style: &'static Style, hosted: &Hosted, asked: Asked, n_choices: usize) -> Self {
        Self {
            style,
            envelope: Envelope::new(style, hosted, &asked),
            model: Arc::clone(hosted.engine.model()),
            has_begun: vec![false; n_choices],
            choices: Writing::several(n_choices, &asked),
            asked,
        }
    }

    fn chunk(&self, choices: &[Json], usage: Json, out: &mut String) {
        let mut json = self.envelope.around(self.style.chunk_object, choices);
        if self.asked.stream.has_usage {
            json["usage"] = usage;
        }
        if self.asked.stream.is_obfuscated && !choices.is_empty() {
            json["obfuscation"] = "".into();
            let n_bytes = json.to_string().len();
            json["obfuscation"] = noise(n_bytes.next_multiple_of(PART_BYTES) - n_bytes).into();
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

    /// Tells pieces of a choice, and its tokens with the first of them.
    fn pieces(&mut self, choice: usize, pieces: &[Piece], out: &mut String) {
        for piece in pieces {
            let tokens = self.choices[choice].take_tokens();
            self.chunk(&[(self.style.piece)(choice, piece, tokens.as_deref())], Json::Null, out);
        }
    }
}

/// Random letters and digits.
fn noise(n_bytes: usize) -> String {
    let mut noise = String::with_capacity(n_bytes + 16);
    while noise.len() < n_bytes {
        noise.push_str(&format!("{:016x}", fresh_seed()));
    }
    noise.truncate(n_bytes);
    noise
}

impl Narrator for Chunks {
    fn tell(&mut self, said: Said, out: &mut String) -> Option<usize> {
        match said {
            Said::Token { choice, id, logprobs } => {
                self.begin(choice, out);
                self.choices[choice].token(id, logprobs.as_ref(), self.model.tokenizer());
            }
            Said::Text { choice, text } => {
                self.begin(choice, out);
                let pieces = self.choices[choice].text(&text);
                self.pieces(choice, &pieces, out);
                return self.choices[choice].is_stopped().then_some(choice);
            }
            Said::Done { choice, is_length, is_stop_string } => {
                self.begin(choice, out);
                let pieces = self.choices[choice].finish(is_stop_string);
                self.pieces(choice, &pieces, out);
                // Tokens that left no text of their own.
                let tokens = self.choices[choice].take_tokens().filter(|tokens| !tokens.is_empty());
                let reason = self.choices[choice].finish_reason(is_length);
                self.chunk(&[(self.style.last)(choice, reason, tokens.as_deref())], Json::Null, out);
            }
            // Nobody has asked for one.
            Said::Embedding { .. } => {}
            Said::Broken(problem) => sse::data(out, &super::error(&problem).to_string()),
        }
        None
    }

    fn end(&mut self, told: Usage, out: &mut String) {
        if self.asked.stream.has_usage {
            let told = usage(told, n_thought(&self.asked, &self.choices));
            self.chunk(&[], told, out);
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
