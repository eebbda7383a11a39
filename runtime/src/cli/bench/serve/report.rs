//! A run as text and as JSON.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::load::{Loop, Ran};
use super::summary::{Figures, Summary};
use crate::amount;
use crate::columns::{Side, aligned};
use crate::console::Paint;
use crate::plain::one_line;

/// What was asked of whom.
#[derive(Clone, Debug)]
pub struct About {
    pub url: String,
    pub model: String,
    pub api: &'static str,
    /// "4 clients", "10 requests/s"...
    pub load: String,
    /// Of prompts and answers; `None` of a trace.
    pub lengths: Option<(String, String)>,
    pub shared_prefix: u32,
    pub objective: Option<String>,
    pub seed: u64,
    /// Words in a token are known from the server.
    pub is_learnt: bool,
}

/// Who sent requests, in words.
pub fn load(way: Loop, rate: Option<f64>, trace: Option<&Path>) -> String {
    match (way, rate, trace) {
        (_, _, Some(path)) => format!("trace {}", path.file_name().unwrap_or_default().to_string_lossy()),
        (_, Some(rate), _) => format!("{rate} requests/s"),
        (Loop::Closed(n), ..) => amount::count(n as u64, "client"),
        (Loop::Open, ..) => "arrivals".to_owned(),
    }
}

/// A run with its figures.
#[derive(Clone, Copy, Debug)]
pub struct Report<'r> {
    pub about: &'r About,
    pub summary: &'r Summary,
    pub ran: &'r Ran,
    pub cancel_share: f64,
}

impl Report<'_> {
    /// From clients going away to the server noticing.
    pub fn cancel_figures(&self) -> Option<Figures> {
        Figures::of(self.ran.cancel_latencies.clone()?)
    }

    /// One object.
    pub fn json(&self) -> Json {
        let Self { about, summary, .. } = self;
        let mut json = json!({
            "url": about.url,
            "model": about.model,
            "api": about.api,
            "load": about.load,
            "prompt_tokens_wanted": about.lengths.as_ref().map(|(prompt, _)| prompt),
            "answer_tokens_wanted": about.lengths.as_ref().map(|(_, answer)| answer),
            "shared_prefix": about.shared_prefix,
            "slo": about.objective,
            "seed": about.seed,
            "is_interrupted": self.ran.is_interrupted,
            "version": env!("CARGO_PKG_VERSION"),
        });
        let cancel = self.cancel_figures().map(|figures| figures.json(1e3));
        if let (Some(all), Json::Object(more)) = (json.as_object_mut(), summary.json()) {
            all.extend(more);
            all.insert("cancel_latency_ms".to_owned(), json!(cancel));
        }
        json
    }

    /// What was asked of whom, in one line.
    pub fn heading(&self) -> String {
        let About { url, model, api, load, lengths, shared_prefix, .. } = self.about;
        let mut text = format!("{} at {url} ({api}): {load}", one_line(model));
        if let Some((prompt, answer)) = lengths {
            text += &format!(", prompts of {prompt} tokens, answers of {answer}");
        }
        if *shared_prefix > 0 {
            text += &format!(", {shared_prefix} shared");
        }
        one_line(&text)
    }

    /// Names and values, one a line.
    pub fn facts(&self) -> Vec<(String, String)> {
        let Self { about, summary, .. } = self;
        let rate = |n: f64| amount::decimal(summary.per_second(n));
        let mut requests = amount::count(summary.n_requests as u64, "request");
        requests += &format!(" in {:.2} s, {} done", summary.seconds, amount::grouped(summary.n_done as u64));
        for (n, what) in [(summary.n_cancelled, "cancelled"), (summary.n_failed(), "failed")] {
            if n > 0 {
                requests += &format!(", {} {what}", amount::grouped(n as u64));
            }
        }
        let all = summary.prompt_tokens + summary.answer_tokens;
        let mut facts = vec![
            ("requests".to_owned(), requests),
            (
                "throughput".to_owned(),
                format!(
                    "{} requests/s, {} answer tokens/s, {} tokens/s in all",
                    rate(summary.n_done as f64),
                    rate(summary.answer_tokens as f64),
                    rate(all as f64),
                ),
            ),
            (
                "tokens".to_owned(),
                format!(
                    "{} of prompts ({} from the cache), {} of answers, by {}",
                    amount::grouped(summary.prompt_tokens),
                    amount::grouped(summary.cached_tokens),
                    amount::grouped(summary.answer_tokens),
                    if summary.has_usage {
                        "the server's usage"
                    } else {
                        "pieces of content: the server tells no usage"
                    },
                ),
            ),
        ];
        if !about.is_learnt {
            facts.push(("prompts".to_owned(), "a word was taken for a token: the server tells no tokens".to_owned()));
        }
        if let Some((n_good, objective)) = summary.n_good.zip(about.objective.as_ref()) {
            let share = 100.0 * n_good as f64 / summary.n_requests.max(1) as f64;
            let text = format!("{} requests/s within {objective} ({share:.1} % of all)", rate(n_good as f64));
            facts.push(("goodput".to_owned(), text));
        }
        if self.cancel_share > 0.0 && self.cancel_figures().is_none() {
            let text = "unknown: no cancellation was seen in counts of the server".to_owned();
            facts.push(("cancellation".to_owned(), text));
        }
        for (kind, (n, message)) in &summary.failures {
            let text = format!("{} × {}", amount::grouped(*n as u64), one_line(message));
            facts.push((one_line(kind), text));
        }
        facts
    }

    /// Titles of the rows of times with their figures in seconds.
    pub fn times(&self) -> Vec<(&'static str, Figures)> {
        let Summary { ttft, itl, tpot, e2e, late, .. } = self.summary;
        let rows = [
            ("first content (TTFT)", ttft.clone()),
            ("between pieces (ITL)", itl.clone()),
            ("per token (TPOT)", tpot.clone()),
            ("whole request", e2e.clone()),
            ("cancellation seen", self.cancel_figures()),
            ("sent late", late.clone()),
        ];
        rows.into_iter().filter_map(|(name, figures)| Some((name, figures?))).collect()
    }

    /// Columns, for people.
    pub fn text(&self, paint: Paint) -> String {
        let facts = self.facts().into_iter().map(|(name, text)| vec![name, text]);
        let mut out = format!("{}\n\n{}\n", self.heading(), aligned(facts, &[Side::Left, Side::Left]));
        let mut sides = vec![Side::Left];
        sides.extend([Side::Right; 6]);
        let header = std::iter::once("ms").chain(COLUMNS).map(|name| paint.bold(name)).collect();
        let rows = self.times().into_iter().map(|(name, figures)| {
            std::iter::once(name.to_owned())
                .chain(figures.columns().map(|value| amount::decimal(value * 1e3)))
                .collect()
        });
        out += &aligned(std::iter::once(header).chain(rows), &sides);
        out
    }
}

/// Names of what [`Figures::columns`] gives.
pub const COLUMNS: [&str; 6] = ["mean", "p50", "p90", "p99", "p99.9", "max"];
