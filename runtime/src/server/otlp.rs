//! Traces and metrics for a collector, as OpenTelemetry's OTLP in JSON over HTTP, with its conventions for generative
//! AI: a span for each request for text, and histograms of times. Prompts and answers are never in them.
//!
//! Nothing here may hold a request up or take memory without bound: spans wait in a queue of fixed length, what does not
//! fit or can't be delivered is dropped and counted. Formats: opentelemetry-proto 1.x, JSON encoding.

mod client;
mod counts;
mod encode;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::Value as Json;
use tokio::sync::Notify;

use super::app::App;
use super::endpoint::Endpoint;
use crate::engine::fresh_seed;
use client::Failure;
use counts::AllCounts;
pub(super) use counts::{Counts, Kind};

/// Spans that wait for a collector, at most.
const MOST_WAITING: usize = 2048;
/// Spans of one message, at most.
const MOST_SENT: usize = 512;
/// At the end of a server, what waits is delivered in this time or not at all.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where traces and metrics go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpOptions {
    /// The collector. HTTPS is not spoken to it.
    pub endpoint: Endpoint,
    /// What it calls this server.
    pub service_name: String,
    /// Header fields of each message, such as keys.
    pub headers: Vec<(String, String)>,
    /// How often to send.
    pub interval: Duration,
}

/// A position in a trace, as `traceparent` tells it (W3C Trace Context, version 00).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    trace: u128,
    span: u64,
    is_sampled: bool,
}

impl Parent {
    pub(super) fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |text: &str, n: usize| text.len() == n && text.bytes().all(|c| c.is_ascii_hexdigit());
        if version != "00" || parts.next().is_some() || !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2) {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let span = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
        Some(Self { trace, span, is_sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1 })
    }
}

/// What is told of one request.
#[derive(Clone, Debug)]
pub(super) struct Span {
    /// "chat", "text_completion" or "embeddings".
    pub(super) operation: &'static str,
    pub(super) model: String,
    pub(super) request_id: Arc<str>,
    pub(super) caller: String,
    pub(super) start: SystemTime,
    pub(super) duration: Duration,
    pub(super) first_token: Option<Duration>,
    pub(super) input_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) output_tokens: usize,
    pub(super) finish_reasons: Vec<&'static str>,
    /// Why it broke, if it did.
    pub(super) error: Option<&'static str>,
}

/// What is on its way to the collector, and what became of the rest.
#[derive(Debug)]
pub(super) struct Otlp {
    options: OtlpOptions,
    waiting: Mutex<Vec<Json>>,
    counts: AllCounts,
    /// Much waits, or it is over.
    wake: Notify,
    is_over: AtomicBool,
    pub(super) exported: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) failures: AtomicU64,
}

impl Otlp {
    pub(super) fn new(options: OtlpOptions) -> Self {
        Self {
            options,
            waiting: Mutex::default(),
            counts: AllCounts::default(),
            wake: Notify::new(),
            is_over: AtomicBool::new(false),
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// What is counted of requests of a kind while they run.
    pub(super) fn counts(&self, kind: &Kind) -> Arc<Counts> {
        self.counts.of(kind)
    }

    /// A request has ended: counts it, and takes its span.
    pub(super) fn end_of(&self, kind: &Kind, span: &Span, parent: Option<Parent>) {
        self.counts.count(kind, span);
        self.tell(span, parent);
    }

    /// Takes a span, if there is room for it and its trace is wanted.
    fn tell(&self, span: &Span, parent: Option<Parent>) {
        if parent.is_some_and(|parent| !parent.is_sampled) {
            return;
        }
        let trace = parent.map_or_else(|| (u128::from(fresh_seed()) << 64) | u128::from(fresh_seed()), |of| of.trace);
        let json = encode::span(span, trace, fresh_seed(), parent.map(|parent| parent.span));
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MOST_WAITING {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.push(json);
        if waiting.len() == MOST_SENT {
            self.wake.notify_one();
        }
    }

    /// Ends [`Otlp::work`], once what waits was delivered or could not be.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// Sends what there is from time to time, until it is ended.
    pub(super) async fn work(&self, app: &App) {
        let mut is_over = false;
        while !is_over {
            // Full, over or in time: each is a reason to send.
            let _ = tokio::time::timeout(self.options.interval, self.wake.notified()).await;
            is_over = self.is_over.load(Ordering::SeqCst);
            let sent = async {
                self.send_spans().await;
                self.send_metrics(app).await;
            };
            match is_over {
                true => drop(tokio::time::timeout(LAST_WORDS, sent).await),
                false => sent.await,
            }
        }
    }

    async fn send_spans(&self) {
        loop {
            let spans: Vec<Json> = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let n = waiting.len().min(MOST_SENT);
                waiting.drain(..n).collect()
            };
            if spans.is_empty() {
                return;
            }
            let body = encode::traces(&self.options.service_name, &spans);
            match client::post(&self.options, "/v1/traces", body).await {
                Ok(()) => {
                    self.exported.fetch_add(spans.len() as u64, Ordering::Relaxed);
                }
                Err(failure) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    return self.keep(spans, failure);
                }
            }
        }
    }

    /// Keeps spans for another try, as far as there is room; the oldest go first.
    fn keep(&self, mut spans: Vec<Json>, failure: Failure) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let room = match failure {
            Failure::Passing => MOST_WAITING.saturating_sub(waiting.len()),
            Failure::Lasting => 0,
        };
        let n_dropped = spans.len().saturating_sub(room);
        spans.drain(..n_dropped);
        waiting.splice(..0, spans);
        self.dropped.fetch_add(n_dropped as u64, Ordering::Relaxed);
    }

    async fn send_metrics(&self, app: &App) {
        let Some(body) = encode::metrics(&self.options.service_name, app.started_at, &self.counts.all()) else {
            return;
        };
        if client::post(&self.options, "/v1/metrics", body).await.is_err() {
            // They are sums: the next message has all of it.
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_as_they_are_written() {
        let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = Parent::parse(header).unwrap();
        assert_eq!((parent.trace, parent.span), (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331));
        assert!(parent.is_sampled && !Parent::parse(&header.replace("-01", "-00")).unwrap().is_sampled);
        let zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        for wrong in
            ["", "00", zero, &header.replace("00-", "01-"), &format!("{header}-x"), &header.replace("0af", "+af")]
        {
            assert_eq!(Parent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn spans_without_a_collector_are_dropped_and_counted() {
        let endpoint = "http://127.0.0.1:9".parse().unwrap();
        let options = OtlpOptions {
            endpoint,
            service_name: "test".to_owned(),
            headers: Vec::new(),
            interval: Duration::from_secs(1),
        };
        let otlp = Otlp::new(options);
        let span = Span {
            operation: "chat",
            model: "m".to_owned(),
            request_id: "r".into(),
            caller: String::new(),
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            first_token: None,
            input_tokens: 1,
            cached_tokens: 0,
            output_tokens: 1,
            finish_reasons: vec!["stop"],
            error: None,
        };
        (0..MOST_WAITING + 3).for_each(|_| otlp.tell(&span, None));
        assert_eq!(otlp.dropped.load(Ordering::Relaxed), 3);
        let spans = |n| vec![Json::Null; n];
        otlp.keep(spans(5), Failure::Passing);
        assert_eq!(otlp.dropped.load(Ordering::Relaxed), 8);
        otlp.waiting.lock().unwrap().truncate(10);
        otlp.keep(spans(5), Failure::Passing);
        otlp.keep(spans(5), Failure::Lasting);
        assert_eq!((otlp.waiting.lock().unwrap().len(), otlp.dropped.load(Ordering::Relaxed)), (15, 13));
    }
}
