//! What is told of an answer beside its text: JSON for programs, figures for people.

use farpost::engine::{Generated, Logprobs, Sampling, Timings};
use farpost_kernels::backend::MemoryUse;
use farpost_models::tokenizer::Tokenizer;
use serde_json::{Value as Json, json};

use super::amount;

/// Log-probabilities of a chosen token and the likeliest in its place.
pub fn logprobs(id: u32, told: &Logprobs, tokenizer: &Tokenizer) -> Json {
    let entry = |id: u32, logprob: f32| {
        // A token need not be whole characters, so its bytes are told too.
        let (token, bytes) = (tokenizer.token_text(id), tokenizer.token_bytes(id));
        json!({ "id": id, "token": token, "bytes": bytes, "logprob": logprob })
    };
    let mut json = entry(id, told.chosen);
    json["top"] = told.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
    json
}

/// Adds an answer to the JSON object that tells of it.
pub fn report(object: &mut Json, generated: &Generated, sampling: &Sampling, logprobs: Vec<Json>) {
    object["ids"] = json!(generated.ids);
    object["text"] = json!(generated.text);
    object["finish_reason"] = json!(generated.finish.reason());
    object["seed"] = json!(sampling.seed);
    object["timings"] = timings(&generated.timings);
    if sampling.logprobs.is_some() {
        object["logprobs"] = logprobs.into();
    }
}

/// Times in milliseconds, counts and rates.
fn timings(timings: &Timings) -> Json {
    json!({
        "load_ms": amount::rounded(timings.load_ms),
        "prefill_ms": amount::rounded(timings.prefill_ms),
        "decode_ms": amount::rounded(timings.decode_ms),
        "prompt_tokens": timings.prompt_tokens,
        "cached_tokens": timings.cached_tokens,
        "generated_tokens": timings.generated_tokens,
        "drafted_tokens": timings.drafted_tokens,
        "accepted_tokens": timings.accepted_tokens,
        "prefill_tokens_per_second": timings.prefill_tokens_per_second().map(amount::rounded),
        "decode_tokens_per_second": timings.decode_tokens_per_second().map(amount::rounded),
    })
}

/// Four lines for people.
pub fn figures(generated: &Generated, memory: &MemoryUse) -> String {
    let timings = &generated.timings;
    let rate = |rate: Option<f64>| rate.map(|rate| format!(", {rate:.0} tokens/s")).unwrap_or_default();
    let run = timings.prompt_tokens.saturating_sub(timings.cached_tokens) as u64;
    let cached = match timings.cached_tokens {
        0 => String::new(),
        n => format!(" ({} more were there)", amount::grouped(n as u64)),
    };
    let ahead = match timings.drafted_tokens {
        0 => String::new(),
        drafted => {
            let (right, drafted) = (amount::grouped(timings.accepted_tokens as u64), amount::grouped(drafted as u64));
            format!(" ({right} of {drafted} guessed ahead were right)")
        }
    };
    format!(
        "load    {}\nprompt  {}{cached} in {}{}\nanswer  {} in {}{}{ahead}\nmemory  {} of weights, {} to work in",
        milliseconds(timings.load_ms),
        amount::count(run, "token"),
        milliseconds(timings.prefill_ms),
        rate(timings.prefill_tokens_per_second()),
        amount::count(timings.generated_tokens as u64, "token"),
        milliseconds(timings.decode_ms),
        rate(timings.decode_tokens_per_second()),
        amount::bytes(memory.weights_mapped + memory.weights_packed + memory.weights_copied),
        amount::bytes(memory.kv.saturating_add(memory.scratch)),
    )
}

fn milliseconds(ms: f64) -> String {
    amount::duration(std::time::Duration::from_secs_f64((ms / 1e3).max(0.0)))
}
