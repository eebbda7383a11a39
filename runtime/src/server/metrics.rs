//! What the server counts, per model and key, and how Prometheus reads it. Counting a token takes no lock.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::app::App;
use crate::engine::Metrics as Counts;

/// Upper bounds of the buckets of times: 1 ms to 131 s, each twice the one before.
const N_BUCKETS: usize = 18;

/// Times, in buckets.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; N_BUCKETS],
    n: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    pub(super) fn add(&self, time: Duration) {
        let ms = time.as_secs_f64() * 1e3;
        let place = (0..N_BUCKETS).find(|&place| ms <= f64::from(1_u32 << place));
        if let Some(bucket) = place.and_then(|place| self.buckets.get(place)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.n.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (place, bucket) in self.buckets.iter().enumerate() {
            below += bucket.load(Ordering::Relaxed);
            let bound = f64::from(1_u32 << place) / 1e3;
            line(out, &format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), below);
        }
        let n = self.n.load(Ordering::Relaxed).max(below);
        line(out, &format!("{name}_bucket"), &format!("{labels}{comma}le=\"+Inf\""), n);
        line(out, &format!("{name}_sum"), labels, self.micros.load(Ordering::Relaxed) as f64 / 1e6);
        line(out, &format!("{name}_count"), labels, n);
    }
}

/// How a request that was taken ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All its answers are complete.
    Done,
    /// It failed, missed its deadline, was superseded or shut down.
    Failed,
    /// The client went away.
    Cancelled(Phase),
}

/// How far a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Queue,
    Prefill,
    Decode,
}

/// What is counted for one key.
#[derive(Debug, Default)]
pub(super) struct KeyMetrics {
    pub(super) first_token: Histogram,
    pub(super) inter_token: Histogram,
    pub(super) queue: Histogram,
    pub(super) whole: Histogram,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    pub(super) prefix_hit_tokens: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    cancelled: [AtomicU64; 3],
}

impl KeyMetrics {
    pub(super) fn count(&self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Done => &self.done,
            Outcome::Failed => &self.failed,
            Outcome::Cancelled(phase) => &self.cancelled[phase as usize],
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Names of a model and a key.
type Names = (String, String);

/// All counts of a server.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Of pairs that have met. Models are configured and keys are known: there are few.
    counts: Mutex<BTreeMap<Names, Arc<KeyMetrics>>>,
    /// Reasons are names in this program, so there are few.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    /// Files of settings read again: what they are, and whether they could be used.
    reloads: Mutex<BTreeMap<(&'static str, bool), u64>>,
}

impl Metrics {
    /// Counts of a model and a key; the key is empty for nobody in particular.
    pub(super) fn of(&self, model: &str, key: &str) -> Arc<KeyMetrics> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(counts.entry((model.to_owned(), key.to_owned())).or_default())
    }

    pub(super) fn count_reload(&self, what: &'static str, is_good: bool) {
        *self.reloads.lock().unwrap_or_else(PoisonError::into_inner).entry((what, is_good)).or_default() += 1;
    }

    pub(super) fn count_refusal(&self, reason: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// Everything, in the text format of Prometheus.
    pub(super) fn page(&self, app: &App) -> String {
        let mut out = String::new();
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let labels = |model: &str, key: &str| format!("model=\"{}\",key=\"{}\"", escaped(model), escaped(key));
        let counts: Vec<_> = counts.iter().map(|((model, key), counts)| (labels(model, key), counts)).collect();
        times(&mut out, &counts);
        totals(&mut out, &counts);
        head(&mut out, "farpost_refused_total", "counter", "Requests that were not served, by reason.");
        for (reason, n) in &*self.refused.lock().unwrap_or_else(PoisonError::into_inner) {
            line(&mut out, "farpost_refused_total", &format!("reason=\"{reason}\""), n);
        }
        head(&mut out, "farpost_reloads_total", "counter", "Times that files of settings were read again.");
        for ((what, is_good), n) in &*self.reloads.lock().unwrap_or_else(PoisonError::into_inner) {
            let outcome = if *is_good { "used" } else { "refused" };
            line(&mut out, "farpost_reloads_total", &format!("what=\"{what}\",outcome=\"{outcome}\""), n);
        }
        head(&mut out, "farpost_build_info", "gauge", "1, with the version.");
        line(&mut out, "farpost_build_info", concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""), 1);
        head(&mut out, "farpost_uptime_seconds", "gauge", "Time since the server began.");
        line(&mut out, "farpost_uptime_seconds", "", app.started.elapsed().as_secs_f64());
        if let Some(hosted) = app.hosted() {
            let labels = format!("model=\"{}\"", escaped(&hosted.name));
            engine(&mut out, &labels, &hosted.engine.metrics());
            let memory = hosted.engine.memory();
            head(&mut out, "farpost_memory_bytes", "gauge", "Memory of the model's plan, by kind.");
            let kinds = [
                ("weights_mapped", memory.weights_mapped),
                ("weights_packed", memory.weights_packed),
                ("kv", memory.kv),
                ("scratch", memory.scratch),
            ];
            for (kind, bytes) in kinds {
                line(&mut out, "farpost_memory_bytes", &format!("{labels},kind=\"{kind}\""), bytes);
            }
        }
        out
    }
}

/// Counts with their labels.
type Labelled<'m> = [(String, &'m Arc<KeyMetrics>)];

fn times(out: &mut String, counts: &Labelled<'_>) {
    type Which = fn(&KeyMetrics) -> &Histogram;
    let histograms: [(&str, &str, Which); 4] = [
        ("farpost_time_to_first_token_seconds", "From a request to its first token.", |key| &key.first_token),
        ("farpost_inter_token_seconds", "Between two tokens of an answer.", |key| &key.inter_token),
        ("farpost_queue_seconds", "From a request until work on it began.", |key| &key.queue),
        ("farpost_request_seconds", "From a request to the end of its answers.", |key| &key.whole),
    ];
    for (name, help, which) in histograms {
        head(out, name, "histogram", help);
        counts.iter().for_each(|(labels, key)| which(key).write(out, name, labels));
    }
}

fn totals(out: &mut String, counts: &Labelled<'_>) {
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    head(out, "farpost_requests_total", "counter", "Requests that were taken, by how they ended.");
    for (labels, key) in counts {
        let cancelled = key.cancelled.iter().map(read).sum();
        for (outcome, n) in [("done", read(&key.done)), ("failed", read(&key.failed)), ("cancelled", cancelled)] {
            line(out, "farpost_requests_total", &format!("{labels},outcome=\"{outcome}\""), n);
        }
    }
    head(out, "farpost_cancelled_total", "counter", "Requests whose client went away, by how far they were.");
    for (labels, key) in counts {
        for (phase, n) in ["queue", "prefill", "decode"].iter().zip(&key.cancelled) {
            line(out, "farpost_cancelled_total", &format!("{labels},phase=\"{phase}\""), read(n));
        }
    }
    type Which = fn(&KeyMetrics) -> &AtomicU64;
    let tokens: [(&str, &str, Which); 3] = [
        ("farpost_prompt_tokens_total", "Tokens of prompts.", |key| &key.prompt_tokens),
        ("farpost_generated_tokens_total", "Tokens of answers.", |key| &key.generated_tokens),
        ("farpost_prefix_hit_tokens_total", "Tokens of prompts found in the cache.", |key| &key.prefix_hit_tokens),
    ];
    for (name, help, which) in tokens {
        head(out, name, "counter", help);
        counts.iter().for_each(|(labels, key)| line(out, name, labels, read(which(key))));
    }
}

/// What the engine counts itself.
fn engine(out: &mut String, labels: &str, counts: &Counts) {
    let gauges = [
        ("farpost_queue_depth", "Answers that wait.", counts.waiting),
        ("farpost_running", "Answers that are being written.", counts.running),
        ("farpost_cached_prefixes", "Ended texts that are kept for prompts that begin alike.", counts.cached_prefixes),
    ];
    for (name, help, value) in gauges {
        head(out, name, "gauge", help);
        line(out, name, labels, value);
    }
    head(out, "farpost_kv_tokens", "gauge", "Places for tokens in the cache of keys and values.");
    line(out, "farpost_kv_tokens", &format!("{labels},state=\"free\""), counts.kv_free_tokens);
    let used = counts.kv_tokens.saturating_sub(counts.kv_free_tokens);
    line(out, "farpost_kv_tokens", &format!("{labels},state=\"used\""), used);
    head(out, "farpost_speculated_tokens_total", "counter", "Tokens guessed ahead, by whether they were right.");
    let wrong = counts.drafted_tokens.saturating_sub(counts.accepted_tokens);
    for (is_right, n) in [("true", counts.accepted_tokens), ("false", wrong)] {
        line(out, "farpost_speculated_tokens_total", &format!("{labels},accepted=\"{is_right}\""), n);
    }
    let totals = [
        ("farpost_steps_total", "Steps of the model.", counts.steps),
        ("farpost_failed_steps_total", "Steps that failed.", counts.failed_steps),
        ("farpost_recovered_total", "Times that a lost device was begun anew.", counts.recovered),
        ("farpost_preempted_total", "Answers that gave their place up for a while.", counts.preempted),
        ("farpost_evicted_total", "Cached prefixes dropped for room.", counts.evicted),
    ];
    for (name, help, n) in totals {
        head(out, name, "counter", help);
        line(out, name, labels, n);
    }
    head(out, "farpost_step_seconds_total", "counter", "Time in steps of the model.");
    line(out, "farpost_step_seconds_total", labels, counts.step_ms / 1e3);
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = match labels {
        "" => writeln!(out, "{name} {value}"),
        labels => writeln!(out, "{name}{{{labels}}} {value}"),
    };
}

/// Text as the value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_buckets_that_grow() {
        let histogram = Histogram::default();
        for ms in [0.5, 1.0, 1.5, 100.0, 1e6] {
            histogram.add(Duration::from_secs_f64(ms / 1e3));
        }
        let mut out = String::new();
        histogram.write(&mut out, "t", "a=\"b\"");
        let value = |bound: &str| {
            let line = out.lines().find(|line| line.contains(&format!("le=\"{bound}\""))).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(
            [value("0.001"), value("0.002"), value("0.128"), value("131.072"), value("+Inf")],
            ["2", "3", "4", "4", "5"]
        );
        assert!(out.contains("t_count{a=\"b\"} 5\n") && out.contains("t_sum{a=\"b\"} 1000.103\n"), "{out}");
    }

    #[test]
    fn names_in_labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
