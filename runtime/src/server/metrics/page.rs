//! All counts in the text format of Prometheus. `docs/operations.md` lists the families.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Histogram, KeyMetrics, Metrics, PHASES};
use crate::engine::{Metrics as Counts, Priority};
use crate::server::app::App;
use crate::server::catalogue::{Entry, Hosted};
use crate::server::guard::Caller;

/// The text of all families, of the models that `caller` may ask.
pub(in crate::server) fn page(app: &App, caller: &Caller) -> String {
    let mut out = Page(String::new());
    let metrics = &app.metrics;
    requests(&mut out, metrics, caller);
    out.head("farpost_refused_total", "counter", "Requests that were not served, or not to their end, by reason.");
    for ((reason, model, key), n) in snapshot(&metrics.refused) {
        // Many are refused before a model is known.
        if !model.is_empty() && !caller.may_ask(&model) {
            continue;
        }
        let labels = format!("reason=\"{reason}\",model=\"{}\",key=\"{}\"", escaped(&model), escaped(&key));
        out.line("farpost_refused_total", &labels, n);
    }
    out.head("farpost_reloads_total", "counter", "Times that files of settings were read again.");
    for ((what, is_good), n) in snapshot(&metrics.reloads) {
        let outcome = if is_good { "used" } else { "refused" };
        out.line("farpost_reloads_total", &format!("what=\"{what}\",outcome=\"{outcome}\""), n);
    }
    models(&mut out, app, caller);
    engines(&mut out, app, caller);
    health(&mut out, app, caller);
    telemetry(&mut out, app);
    out.0
}

fn requests(out: &mut Page, metrics: &Metrics, caller: &Caller) {
    let labels = |model: &str, key: &str| format!("model=\"{}\",key=\"{}\"", escaped(model), escaped(key));
    let counts = metrics.all();
    let counts = counts.iter().filter(|((model, _), _)| caller.may_ask(model));
    let counts: Vec<_> = counts.map(|((model, key), counts)| (labels(model, key), counts)).collect();
    type Time = fn(&KeyMetrics) -> &Histogram;
    let times: [(&str, &str, Time); 4] = [
        ("farpost_time_to_first_token_seconds", "From a request to its first token.", |key| &key.first_token),
        ("farpost_inter_token_seconds", "Between two tokens of an answer.", |key| &key.inter_token),
        ("farpost_queue_seconds", "From a request until work on it began.", |key| &key.queue),
        ("farpost_request_seconds", "From a request to the end of its answers.", |key| &key.whole),
    ];
    for (name, help, which) in times {
        out.head(name, "histogram", help);
        counts.iter().for_each(|(labels, key)| out.times(name, labels, which(key)));
    }
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    out.head("farpost_requests_total", "counter", "Requests that were taken, by how they ended.");
    for (labels, key) in &counts {
        let cancelled = key.cancelled.iter().map(read).sum();
        for (outcome, n) in [("done", read(&key.done)), ("failed", read(&key.failed)), ("cancelled", cancelled)] {
            out.line("farpost_requests_total", &format!("{labels},outcome=\"{outcome}\""), n);
        }
    }
    out.head("farpost_cancelled_total", "counter", "Requests whose client went away, by how far they were.");
    for (labels, key) in &counts {
        for (phase, n) in PHASES.iter().zip(&key.cancelled) {
            out.line("farpost_cancelled_total", &format!("{labels},phase=\"{}\"", phase.name()), read(n));
        }
    }
    type Count = fn(&KeyMetrics) -> &AtomicU64;
    let tokens: [(&str, &str, Count); 3] = [
        ("farpost_prompt_tokens_total", "Tokens of prompts.", |key| &key.prompt_tokens),
        ("farpost_generated_tokens_total", "Tokens of answers.", |key| &key.generated_tokens),
        ("farpost_prefix_hit_tokens_total", "Tokens of prompts found in the cache.", |key| &key.prefix_hit_tokens),
    ];
    for (name, help, which) in tokens {
        out.head(name, "counter", help);
        counts.iter().for_each(|(labels, key)| out.line(name, labels, read(which(key))));
    }
}

/// The models that `caller` may ask.
fn entries<'a>(app: &'a App, caller: &'a Caller) -> impl Iterator<Item = &'a Arc<Entry>> {
    app.catalogue.entries().filter(|entry| caller.may_ask(&entry.served.name))
}

/// Which models are there, and what they take.
fn models(out: &mut Page, app: &App, caller: &Caller) {
    out.head("farpost_model_loaded", "gauge", "1 if the model is loaded.");
    for entry in entries(app, caller) {
        let labels = format!("model=\"{}\"", escaped(&entry.served.name));
        out.line("farpost_model_loaded", &labels, u8::from(entry.hosted().is_some()));
    }
    out.head("farpost_model_loads_total", "counter", "Times that a model was to be loaded, by how that ended.");
    for ((model, is_good), n) in
        snapshot(&app.metrics.loads).into_iter().filter(|((model, _), _)| caller.may_ask(model))
    {
        let outcome = if is_good { "loaded" } else { "failed" };
        out.line("farpost_model_loads_total", &format!("model=\"{}\",outcome=\"{outcome}\"", escaped(&model)), n);
    }
    out.head(
        "farpost_memory_bytes",
        "gauge",
        "Memory of loaded models, by kind; what is mapped is the system's to drop and not under the cap.",
    );
    for loaded in app.catalogue.models.loaded().into_iter().filter(|loaded| caller.may_ask(&loaded.name)) {
        let memory = loaded.memory;
        let kinds = [
            ("weights_mapped", memory.weights_mapped),
            ("weights_packed_mapped", memory.weights_packed),
            ("weights_copied", memory.weights_copied),
            ("kv", memory.kv),
            ("scratch", memory.scratch),
            ("requests", loaded.holdings.requests),
        ];
        for (kind, bytes) in kinds {
            out.line("farpost_memory_bytes", &format!("model=\"{}\",kind=\"{kind}\"", escaped(&loaded.name)), bytes);
        }
    }
    if let Some(cap) = app.catalogue.models.memory_cap() {
        out.head("farpost_memory_cap_bytes", "gauge", "What all models may take together, beside their files.");
        out.line("farpost_memory_cap_bytes", "", cap);
    }
}

/// What engines count themselves.
fn engines(out: &mut Page, app: &App, caller: &Caller) {
    let of = |hosted: Arc<Hosted>| (format!("model=\"{}\"", escaped(&hosted.name)), hosted.engine.metrics());
    let engines: Vec<(String, Counts)> = entries(app, caller).filter_map(|entry| entry.hosted()).map(of).collect();
    out.head("farpost_queue_depth", "gauge", "Answers that wait, by lane.");
    for (labels, counts) in &engines {
        for (lane, n) in Priority::ALL.iter().zip(counts.waiting_by_lane) {
            out.line("farpost_queue_depth", &format!("{labels},lane=\"{}\"", lane.name()), n);
        }
    }
    out.head("farpost_batch_rows", "histogram", "Rows of a step: tokens that are run together.");
    for (labels, counts) in &engines {
        let buckets = counts.batch_rows.iter().enumerate().map(|(place, n)| ((1_u64 << place).to_string(), *n));
        out.histogram("farpost_batch_rows", labels, buckets, counts.steps, counts.rows as f64);
    }
    out.head("farpost_kv_tokens", "gauge", "Places for tokens in the cache of keys and values.");
    for (labels, counts) in &engines {
        out.line("farpost_kv_tokens", &format!("{labels},state=\"free\""), counts.kv_free_tokens);
        let used = counts.kv_tokens.saturating_sub(counts.kv_free_tokens);
        out.line("farpost_kv_tokens", &format!("{labels},state=\"used\""), used);
    }
    out.head("farpost_speculated_tokens_total", "counter", "Tokens guessed ahead, by whether they were right.");
    for (labels, counts) in &engines {
        let wrong = counts.drafted_tokens.saturating_sub(counts.accepted_tokens);
        for (is_right, n) in [("true", counts.accepted_tokens), ("false", wrong)] {
            out.line("farpost_speculated_tokens_total", &format!("{labels},accepted=\"{is_right}\""), n);
        }
    }
    type Value = fn(&Counts) -> f64;
    let values: [(&str, &str, &str, Value); 11] = [
        ("farpost_running", "gauge", "Answers that are being written.", |of| of.running as f64),
        ("farpost_cached_prefixes", "gauge", "Ended texts that are kept for prompts that begin alike.", |of| {
            of.cached_prefixes as f64
        }),
        ("farpost_kv_promised_tokens", "gauge", "Places in the cache that running answers were promised.", |of| {
            of.kv_promised_tokens as f64
        }),
        ("farpost_steps_total", "counter", "Steps of the model.", |of| of.steps as f64),
        ("farpost_failed_steps_total", "counter", "Steps that failed.", |of| of.failed_steps as f64),
        ("farpost_recovered_total", "counter", "Times that a lost device was begun anew.", |of| of.recovered as f64),
        ("farpost_preempted_total", "counter", "Answers that gave their place up for a while.", |of| {
            of.preempted as f64
        }),
        ("farpost_evicted_total", "counter", "Cached prefixes dropped for room.", |of| of.evicted as f64),
        ("farpost_step_seconds_total", "counter", "Time in steps of the model.", |of| of.step_ms / 1e3),
        ("farpost_draft_seconds_total", "counter", "Time in steps of a draft model.", |of| of.draft_ms / 1e3),
        ("farpost_overhead_seconds_total", "counter", "Time of the engine itself beside steps.", |of| {
            of.overhead_ms / 1e3
        }),
    ];
    for (name, kind, help, value) in values {
        out.head(name, kind, help);
        engines.iter().for_each(|(labels, counts)| out.line(name, labels, value(counts)));
    }
}

fn health(out: &mut Page, app: &App, caller: &Caller) {
    out.head("farpost_health", "gauge", "0 ok, 1 degraded, 2 failing, by component.");
    let readiness = match app.readiness() {
        "ready" => 0,
        "stalled" => 2,
        _ => 1,
    };
    out.line("farpost_health", "component=\"server\"", readiness);
    for entry in entries(app, caller) {
        let is_stalled = entry.hosted().is_some_and(|hosted| hosted.is_stalled(app.options.stall_timeout));
        let health = if is_stalled || entry.state_name() == "failed" { 2 } else { 0 };
        out.line("farpost_health", &format!("component=\"model\",model=\"{}\"", escaped(&entry.served.name)), health);
    }
    let backends = app.catalogue.backends();
    let is_degraded = backends.iter().any(|backend| backend.trouble().is_some());
    out.line("farpost_health", "component=\"backend\"", u8::from(is_degraded));
    out.head(
        "farpost_backend_up",
        "gauge",
        "1 if the backend can be used, 0 after it failed or where it was not chosen.",
    );
    for backend in &backends {
        let labels = format!("backend=\"{}\",device=\"{}\"", backend.info.backend, escaped(&backend.info.name));
        out.line("farpost_backend_up", &labels, u8::from(backend.is_up()));
    }
    out.head("farpost_build_info", "gauge", "1, with version and commit.");
    let labels = format!("version=\"{}\",commit=\"{}\"", env!("CARGO_PKG_VERSION"), escaped(env!("FARPOST_COMMIT")));
    out.line("farpost_build_info", &labels, 1);
    out.head("farpost_uptime_seconds", "gauge", "Time since the server began.");
    out.line("farpost_uptime_seconds", "", app.started.elapsed().as_secs_f64());
}

/// What became of what is sent to a collector.
fn telemetry(out: &mut Page, app: &App) {
    let Some(otlp) = &app.otlp else { return };
    let counts = [
        ("farpost_otlp_spans_total", "Spans that a collector took.", &otlp.exported),
        (
            "farpost_otlp_dropped_spans_total",
            "Spans that were dropped, for lack of room or a collector.",
            &otlp.dropped,
        ),
        ("farpost_otlp_failures_total", "Messages that a collector did not take.", &otlp.failures),
    ];
    for (name, help, count) in counts {
        out.head(name, "counter", help);
        out.line(name, "", count.load(Ordering::Relaxed));
    }
}

fn snapshot<K: Clone, V: Clone>(counts: &Mutex<BTreeMap<K, V>>) -> BTreeMap<K, V> {
    counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn times(&mut self, name: &str, labels: &str, times: &Histogram) {
        let buckets = times.buckets().map(|(bound, n)| (bound.to_string(), n));
        self.histogram(name, labels, buckets, times.n(), times.seconds());
    }

    /// `buckets` are upper bounds and how many fell into each alone.
    fn histogram(&mut self, name: &str, labels: &str, buckets: impl Iterator<Item = (String, u64)>, n: u64, sum: f64) {
        let mut below = 0;
        for (bound, in_bucket) in buckets {
            below += in_bucket;
            self.line(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), below);
        }
        // Counts are read one after the other while others count.
        let n = n.max(below);
        self.line(&format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), n);
        self.line(&format!("{name}_sum"), labels, sum);
        self.line(&format!("{name}_count"), labels, n);
    }
}

/// Text as the value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_fall_into_buckets_that_grow() {
        let histogram = Histogram::default();
        for ms in [0.5, 1.0, 1.5, 100.0, 1e6] {
            histogram.add(Duration::from_secs_f64(ms / 1e3));
        }
        let mut out = Page(String::new());
        out.times("t", "a=\"b\"", &histogram);
        let value = |bound: &str| {
            let line = out.0.lines().find(|line| line.contains(&format!("le=\"{bound}\""))).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(
            [value("0.001"), value("0.002"), value("0.128"), value("131.072"), value("+Inf")],
            ["2", "3", "4", "4", "5"]
        );
        assert!(out.0.contains("t_count{a=\"b\"} 5\n") && out.0.contains("t_sum{a=\"b\"} 1000.103\n"), "{}", out.0);
    }

    #[test]
    fn names_in_labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
