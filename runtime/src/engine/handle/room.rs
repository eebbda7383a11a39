//! What a request takes of memory beside keys and values, at most: it is charged before anything is made for it.

use farpost_kernels::backend::{Backend, DeviceError, Limits};

use super::Inner;
use crate::engine::generate::GenerateOptions;
use crate::engine::grammar;
use crate::engine::ledger::{Charge, Holder};
use crate::engine::lookup::{Drafter, Speculate};
use crate::engine::owner::choice::Choice;
use crate::engine::pooling;
use crate::engine::request::{Refusal, Request};
use crate::engine::sampler::Sampler;
use crate::engine::stream;
use crate::model::Model;

/// What a request takes beside keys and values.
const WHAT: &str = "the text and its choosing";
/// A token of a text: itself, in a vector that may be half empty, its share of hashes, and of who holds them.
const TOKEN_BYTES: u64 = 8 + 12;
/// The parser of a form.
const FORM_BYTES: u64 = grammar::MOST_BYTES as u64;
/// What a request takes however short it is: strings, queues, the state of its text, and being told of its place in a
/// queue of a few hundred.
const REQUEST_BYTES: u64 = 32 << 10;

/// Bytes of what is known of cached texts.
pub(super) fn cached_bytes(max_cached: usize, context: usize) -> u64 {
    (max_cached as u64).saturating_mul(context as u64).saturating_mul(TOKEN_BYTES)
}

/// Bytes that an engine needs beside its plan: what is known of cached texts, and one plain request. An engine that has
/// no room left for a request would be of no use.
pub(super) fn beside_bytes(model: &Model, max_cached: usize, context: usize) -> u64 {
    let plain = Request::new(Vec::new(), GenerateOptions::default());
    let least_bytes = request_bytes(&plain, model.graph().n_vocab(), context);
    cached_bytes(max_cached, context).saturating_add(least_bytes)
}

/// Bytes of one answer, with the prompt, that may have `most_tokens` in all, of which `most_events` are told.
fn choice_bytes(request: &Request, n_vocab: usize, most_tokens: u64, most_events: u64) -> u64 {
    let options = &request.options;
    let (drafter, n_answers) = match options.speculate {
        Speculate::Lookup { max_draft } if !request.reproducible => (Drafter::bytes_for(most_tokens), 1 + max_draft),
        Speculate::Draft { max_draft } if !request.reproducible => (0, 1 + max_draft),
        _ => (0, 1),
    };
    let of_rows = most_tokens.saturating_mul(grammar::TOKEN_BYTES as u64);
    let form = if options.grammar.is_some() { FORM_BYTES.saturating_add(of_rows) } else { 0 };
    let choosing = Sampler::bytes_for(&options.sampling, options.grammar.is_some(), n_vocab, most_tokens, n_answers);
    let events = most_events.saturating_mul(stream::event_bytes(options.sampling.logprobs));
    let text = most_tokens.saturating_mul(TOKEN_BYTES);
    [size_of::<Choice>() as u64, drafter, form, choosing, events].into_iter().fold(text, u64::saturating_add)
}

impl Inner {
    /// Holds what a request takes, or refuses it.
    pub(super) fn charge(&self, request: &Request) -> Result<Charge, Refusal> {
        self.hold(WHAT, request.prompt.len(), self.request_bytes(request))
    }

    /// Holds so many bytes for a request with so many tokens of prompts, or refuses it.
    pub(super) fn hold(&self, what: &'static str, tokens: usize, needed_bytes: u64) -> Result<Charge, Refusal> {
        self.ledger.charge(Holder::Requests, needed_bytes).map_err(|short| {
            let may_fit = needed_bytes <= short.most_bytes;
            let allowed_bytes = if may_fit { short.free_bytes } else { short.most_bytes };
            let retry_after = may_fit.then(|| self.until_place());
            Refusal::Memory { what, tokens, needed_bytes, allowed_bytes, retry_after }
        })
    }

    /// Whether a request would fit if there were no other, and so many bytes beside it.
    #[cfg(feature = "server")]
    pub(super) fn check_room(&self, request: &Request, beside: u64) -> Result<(), Refusal> {
        let needed_bytes = self.request_bytes(request).saturating_add(beside);
        match self.ledger.most().filter(|most| needed_bytes > *most) {
            None => Ok(()),
            Some(allowed_bytes) => {
                let tokens = request.prompt.len();
                Err(Refusal::Memory { what: WHAT, tokens, needed_bytes, allowed_bytes, retry_after: None })
            }
        }
    }

    fn request_bytes(&self, request: &Request) -> u64 {
        let graph = self.model.graph();
        let embedding =
            self.model.pooling().filter(|_| request.is_embedding).map_or(0, |how| {
                pooling::bytes_for(how, request.prompt.len(), self.sizes.limits.max_rows, graph.width())
            });
        request_bytes(request, graph.n_vocab(), self.sizes.context).saturating_add(embedding)
    }
}

/// Bytes that a plan takes for keys, values and scratch. Nothing is taken.
pub(super) fn plan_bytes(model: &Model, backend: &dyn Backend, limits: &Limits) -> Result<u64, DeviceError> {
    // A plan that is refused takes nothing and says what it lacks: scratch first, with room for that keys and values.
    let mut bytes = 0_u64;
    for _ in 0..2 {
        match backend.compile(model.graph(), &Limits { memory_cap: Some(bytes), ..limits.clone() }) {
            Ok(plan) => return Ok(plan.memory().kv.saturating_add(plan.memory().scratch)),
            Err(DeviceError::OutOfMemory { needed_bytes, .. }) => bytes = bytes.saturating_add(needed_bytes),
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Bytes of a request, with all its answers.
pub(super) fn request_bytes(request: &Request, n_vocab: usize, context: usize) -> u64 {
    let prompt_tokens = request.prompt.len();
    let answer_tokens = request.options.max_tokens.unwrap_or(usize::MAX);
    // There is one more than the context holds: the last is not run.
    let most_tokens = prompt_tokens.saturating_add(answer_tokens).min(context + 1);
    // Prompts are told in parts of some tokens.
    let most_events = most_tokens.saturating_add(4);
    // What finds a stop string is shared; what is held back is not.
    let stops: usize = request.options.stop.iter().map(|stop| 10 * stop.len() + 256).sum();
    let held: usize = request.options.stop.iter().map(|stop| 2 * stop.len() + 128).sum();
    let choice = choice_bytes(request, n_vocab, most_tokens as u64, most_events as u64).saturating_add(held as u64);
    choice.saturating_mul(request.n as u64).saturating_add(REQUEST_BYTES).saturating_add(stops as u64)
}
