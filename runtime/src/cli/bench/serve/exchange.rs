//! One request, from sending to the end of its stream, with the time of every piece of content.

use std::time::{Duration, Instant};

use serde_json::{Map, Value as Json, json};

use super::prompts::Prompt;
use super::sse::Events;
use super::target::{Failed, Reply, Target};

/// Which of the protocol's two routes for text is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// /v1/chat/completions: the prompt is the message of a user
    Chat,
    /// /v1/completions: the prompt is text to go on from
    Completions,
}

impl Api {
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
        }
    }
}

/// What all requests have in common.
#[derive(Clone, Debug)]
pub struct Manner {
    pub api: Api,
    pub model: String,
    pub ignore_eos: bool,
    /// Fields that all requests have beside.
    pub fields: Map<String, Json>,
    pub timeout: Duration,
}

/// A request to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When to send it, since the start; `None` as soon as a client is free.
    pub at: Option<Duration>,
    pub prompt: Prompt,
    /// Tokens that the prompt should have; `None` of a text that was given.
    pub wanted_tokens: Option<u32>,
    pub answer_tokens: u32,
    /// Its client goes away after so many pieces of content.
    pub cancel_after: Option<u32>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Its client went away, as was planned.
    Cancelled,
    Failed(Failed),
}

/// What was seen of a request. Times are seconds since it was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// When it was sent, since the start of the run.
    pub sent: f64,
    /// How much later than planned that was.
    pub late: f64,
    pub outcome: Outcome,
    /// When each piece of content came.
    pub pieces: Vec<f64>,
    pub end: f64,
    pub wanted_tokens: Option<u32>,
    /// As the server counted them, if it did.
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub counted_tokens: Option<u64>,
}

impl Record {
    /// Of a request that is sent at `now`, or would be.
    pub fn new(planned: &Planned, start: Instant, now: Instant) -> Self {
        let sent = now.duration_since(start).as_secs_f64();
        Self {
            sent,
            late: planned.at.map_or(0.0, |at| sent - at.as_secs_f64()),
            outcome: Outcome::Done,
            pieces: Vec::new(),
            end: 0.0,
            wanted_tokens: planned.wanted_tokens,
            prompt_tokens: None,
            cached_tokens: None,
            counted_tokens: None,
        }
    }

    /// To the first content.
    pub fn ttft(&self) -> Option<f64> {
        self.pieces.first().copied()
    }

    /// Tokens of the answer; where the server does not tell, pieces of content.
    pub fn answer_tokens(&self) -> u64 {
        self.counted_tokens.unwrap_or(self.pieces.len() as u64)
    }

    /// Mean time between tokens, from the first piece of content to the last.
    pub fn mean_itl(&self) -> Option<f64> {
        let (first, last) = (self.pieces.first()?, self.pieces.last()?);
        let n = self.answer_tokens().saturating_sub(1);
        (n > 0 && self.pieces.len() > 1).then(|| (last - first) / n as f64)
    }

    /// Since the start of the run.
    pub fn ended(&self) -> f64 {
        self.sent + self.end
    }
}

/// Sends a request that is not streamed, for one token of answer; gives the tokens of its prompt, if the server tells.
pub async fn probe(target: &Target, manner: &Manner, prompt: String) -> Result<Option<u64>, Failed> {
    let mut body = body(manner, &Prompt::Text(prompt), 1);
    body["stream"] = Json::Bool(false);
    body.as_object_mut().map(|fields| fields.remove("stream_options"));
    let answer = async { target.post(manner.api.path(), body.to_string()).await?.json().await };
    let answer = tokio::time::timeout(manner.timeout, answer).await.map_err(|_| timed_out(manner))??;
    Ok(answer["usage"]["prompt_tokens"].as_u64())
}

fn timed_out(manner: &Manner) -> Failed {
    Failed::new("timeout", format_args!("no answer in {} s", manner.timeout.as_secs_f64()))
}

/// Fields that this program sets itself.
pub const OWN_FIELDS: [&str; 7] =
    ["model", "messages", "prompt", "max_tokens", "max_completion_tokens", "stream", "stream_options"];

fn body(manner: &Manner, prompt: &Prompt, answer_tokens: u32) -> Json {
    let mut body = json!({
        "model": manner.model,
        "max_tokens": answer_tokens,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    match manner.api {
        Api::Chat => body["messages"] = json!([{ "role": "user", "content": prompt.json() }]),
        Api::Completions => body["prompt"] = prompt.json(),
    }
    if manner.ignore_eos {
        body["ignore_eos"] = true.into();
    }
    for (name, value) in &manner.fields {
        body[name] = value.clone();
    }
    body
}

/// Sends a request and reads its stream. `closed` is told when its client went away.
pub async fn exchange(
    target: &Target,
    manner: &Manner,
    planned: &Planned,
    start: Instant,
    closed: impl FnOnce(Instant),
) -> Record {
    let body = body(manner, &planned.prompt, planned.answer_tokens).to_string();
    let sent = Instant::now();
    let mut record = Record::new(planned, start, sent);
    let mut reading = Reading { record: &mut record, sent, cancel_after: planned.cancel_after };
    let followed = async {
        let reply = target.post(manner.api.path(), body).await?;
        // Dropped with this future, which closes its connection where it has not ended.
        reading.follow(reply).await
    };
    let outcome = tokio::time::timeout(manner.timeout, followed).await;
    record.end = sent.elapsed().as_secs_f64();
    record.outcome = match outcome {
        Ok(Ok(Outcome::Cancelled)) => {
            closed(Instant::now());
            Outcome::Cancelled
        }
        Ok(Ok(outcome)) => outcome,
        Ok(Err(failed)) => Outcome::Failed(failed),
        Err(_) => Outcome::Failed(timed_out(manner)),
    };
    record
}

struct Reading<'r> {
    record: &'r mut Record,
    sent: Instant,
    cancel_after: Option<u32>,
}

impl Reading<'_> {
    async fn follow(&mut self, mut reply: Reply<'_>) -> Result<Outcome, Failed> {
        if !reply.status.is_success() {
            return Err(reply.refusal().await);
        }
        let (mut events, mut data, mut is_done) = (Events::default(), Vec::new(), false);
        while let Some(piece) = reply.piece().await? {
            let now = self.sent.elapsed().as_secs_f64();
            let pushed = events.push(&piece, &mut data);
            pushed.map_err(|_| Failed::new("malformed", "an event has more than 1 MiB"))?;
            for data in data.drain(..) {
                if data.trim() == "[DONE]" {
                    is_done = true;
                    continue;
                }
                self.take(&data, now)?;
                let n = self.record.pieces.len();
                if self.cancel_after.is_some_and(|most| n >= most as usize) {
                    return Ok(Outcome::Cancelled);
                }
            }
        }
        match is_done {
            true => Ok(Outcome::Done),
            false => Err(Failed::new("broken", "the stream ended without [DONE]")),
        }
    }

    /// Notes what an event says.
    fn take(&mut self, data: &str, now: f64) -> Result<(), Failed> {
        let event: Json = serde_json::from_str(data)
            .map_err(|error| Failed::new("malformed", format_args!("an event is not JSON: {error}")))?;
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            let code = error["code"].as_str().map(|code| format!("stream_error {}", crate::plain::shortened(code, 40)));
            let message = error["message"].as_str().unwrap_or("the stream ended with an error");
            return Err(Failed::new(code.unwrap_or_else(|| "stream_error".to_owned()), message));
        }
        if has_content(&event) {
            self.record.pieces.push(now);
        }
        let usage = &event["usage"];
        let tokens = |name: &str| usage[name].as_u64();
        // Some servers tell it in every chunk; the last one has all of it.
        self.record.prompt_tokens = tokens("prompt_tokens").or(self.record.prompt_tokens);
        self.record.counted_tokens = tokens("completion_tokens").or(self.record.counted_tokens);
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        self.record.cached_tokens = cached.or(self.record.cached_tokens);
        Ok(())
    }
}

/// Whether a chunk has something of the answer: text, reasoning or calls of tools.
fn has_content(event: &Json) -> bool {
    let choices = event["choices"].as_array().map_or(&[][..], Vec::as_slice);
    choices.iter().any(|choice| {
        let is_text = |value: &Json| value.as_str().is_some_and(|text| !text.is_empty());
        let delta = &choice["delta"];
        let texts = [&choice["text"], &delta["content"], &delta["reasoning_content"], &delta["reasoning"]];
        texts.into_iter().any(is_text) || delta["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_text_reasoning_or_a_call_and_a_role_is_none() {
        for (event, expected) in [
            (json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] }), false),
            (json!({ "choices": [{ "delta": { "content": "a" } }] }), true),
            (json!({ "choices": [{ "delta": { "reasoning_content": "a" } }] }), true),
            (json!({ "choices": [{ "delta": { "tool_calls": [{ "index": 0 }] } }] }), true),
            (json!({ "choices": [{ "text": "a", "finish_reason": null }] }), true),
            (json!({ "choices": [], "usage": { "completion_tokens": 3 } }), false),
            (json!([1]), false),
        ] {
            assert_eq!(has_content(&event), expected, "{event}");
        }
    }
}
