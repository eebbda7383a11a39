//! All requests of a run as figures.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::super::statistics::quantile_of_sorted;
use super::exchange::{Outcome, Record};
use super::objective::Objective;
use crate::amount::rounded;

/// What a set of values comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    pub n: usize,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
    /// All of them, in order.
    pub sorted: Vec<f64>,
}

impl Figures {
    /// `None` of no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let part = |part: f64| quantile_of_sorted(&values, part);
        Some(Self {
            n: values.len(),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: part(0.5),
            p90: part(0.9),
            p99: part(0.99),
            p99_9: part(0.999),
            max: *values.last()?,
            sorted: values,
        })
    }

    /// In the order of columns: mean, p50, p90, p99, p99.9, max.
    pub fn columns(&self) -> [f64; 6] {
        [self.mean, self.p50, self.p90, self.p99, self.p99_9, self.max]
    }

    /// With values `scale` times as large.
    pub fn json(&self, scale: f64) -> Json {
        let [mean, p50, p90, p99, p99_9, max] = self.columns().map(|value| rounded(value * scale));
        json!({ "n": self.n, "mean": mean, "p50": p50, "p90": p90, "p99": p99, "p99_9": p99_9, "max": max })
    }
}

/// What a run comes to. Times are in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub n_requests: usize,
    pub n_done: usize,
    pub n_cancelled: usize,
    /// By kind, with how many and what one of them said.
    pub failures: BTreeMap<String, (usize, String)>,
    /// From the first request sent to the last one ended.
    pub seconds: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub answer_tokens: u64,
    /// The server told the tokens of all answers that were complete.
    pub has_usage: bool,
    /// Of requests that are done or whose client went away after the first content.
    pub ttft: Option<Figures>,
    /// Times between two pieces of content that follow one another.
    pub itl: Option<Figures>,
    /// Means over each request's tokens.
    pub tpot: Option<Figures>,
    /// Of requests that are done.
    pub e2e: Option<Figures>,
    pub prompt_lengths: Option<Figures>,
    pub answer_lengths: Option<Figures>,
    /// How much later than planned requests were sent.
    pub late: Option<Figures>,
    /// Requests that are done within the objective.
    pub n_good: Option<usize>,
}

impl Summary {
    pub fn new(records: &[Record], objective: Option<&Objective>, is_open: bool) -> Self {
        let is_done = |record: &&Record| record.outcome == Outcome::Done;
        let mut failures = BTreeMap::new();
        for record in records {
            if let Outcome::Failed(failed) = &record.outcome {
                failures.entry(failed.kind.clone()).or_insert_with(|| (0, failed.message.clone())).0 += 1;
            }
        }
        let first = records.iter().map(|record| record.sent).reduce(f64::min).unwrap_or(0.0);
        let last = records.iter().map(Record::ended).reduce(f64::max).unwrap_or(0.0);
        let well: Vec<&Record> =
            records.iter().filter(|record| !matches!(record.outcome, Outcome::Failed(_))).collect();
        let done: Vec<&Record> = records.iter().filter(is_done).collect();
        let gaps = |record: &&Record| record.pieces.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
        let figures = |of: fn(&Record) -> Option<f64>, records: &[&Record]| {
            Figures::of(records.iter().filter_map(|record| of(record)).collect())
        };
        Self {
            n_requests: records.len(),
            n_done: done.len(),
            n_cancelled: well.len() - done.len(),
            failures,
            seconds: last - first,
            prompt_tokens: records.iter().filter_map(|record| record.prompt_tokens).sum(),
            cached_tokens: records.iter().filter_map(|record| record.cached_tokens).sum(),
            answer_tokens: records.iter().map(Record::answer_tokens).sum(),
            has_usage: done.iter().all(|record| record.counted_tokens.is_some() && record.prompt_tokens.is_some()),
            ttft: figures(Record::ttft, &well),
            itl: Figures::of(well.iter().flat_map(gaps).collect()),
            tpot: figures(Record::mean_itl, &done),
            e2e: figures(|record| Some(record.end), &done),
            prompt_lengths: figures(|record| Some(record.prompt_tokens? as f64), &done),
            answer_lengths: figures(|record| Some(record.answer_tokens() as f64), &done),
            late: is_open.then(|| figures(|record| Some(record.late), &well)).flatten(),
            n_good: objective.map(|objective| done.iter().filter(|record| keeps(record, objective)).count()),
        }
    }

    /// So many in the time that the run took.
    pub fn per_second(&self, n: f64) -> f64 {
        if self.seconds > 0.0 { n / self.seconds } else { 0.0 }
    }

    pub fn n_failed(&self) -> usize {
        self.failures.values().map(|(n, _)| n).sum()
    }

    /// The figures as JSON: times in milliseconds.
    pub fn json(&self) -> Json {
        let ms = |figures: &Option<Figures>| figures.as_ref().map(|figures| figures.json(1e3));
        let plain = |figures: &Option<Figures>| figures.as_ref().map(|figures| figures.json(1.0));
        let failures =
            self.failures.iter().map(|(kind, (n, message))| json!({ "kind": kind, "n": n, "message": message }));
        let rate = |n: f64| rounded(self.per_second(n));
        json!({
            "requests": self.n_requests,
            "done": self.n_done,
            "cancelled": self.n_cancelled,
            "failed": self.n_failed(),
            "failures": failures.collect::<Vec<_>>(),
            "seconds": rounded(self.seconds),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "answer_tokens": self.answer_tokens,
            "tokens_counted_by": if self.has_usage { "usage" } else { "pieces" },
            "requests_per_second": rate(self.n_done as f64),
            "answer_tokens_per_second": rate(self.answer_tokens as f64),
            "total_tokens_per_second": rate((self.prompt_tokens + self.answer_tokens) as f64),
            "good": self.n_good,
            "good_requests_per_second": self.n_good.map(|n| rate(n as f64)),
            "good_share": self.n_good.map(|n| rounded(n as f64 / self.n_requests.max(1) as f64)),
            "ttft_ms": ms(&self.ttft),
            "itl_ms": ms(&self.itl),
            "tpot_ms": ms(&self.tpot),
            "e2e_ms": ms(&self.e2e),
            "prompt_lengths": plain(&self.prompt_lengths),
            "answer_lengths": plain(&self.answer_lengths),
            "sent_late_ms": ms(&self.late),
        })
    }
}

/// Whether a request that is done was served as well as it should be.
fn keeps(record: &Record, objective: &Objective) -> bool {
    let within = |time: Option<f64>, bound: Option<std::time::Duration>| match (time, bound) {
        (_, None) => true,
        (Some(time), Some(bound)) => time <= bound.as_secs_f64(),
        (None, Some(_)) => false,
    };
    // Of an answer of one token there is nothing between tokens.
    let itl = objective.itl.filter(|_| record.pieces.len() > 1);
    within(record.ttft(), objective.ttft) && within(record.mean_itl(), itl) && within(Some(record.end), objective.e2e)
}

#[cfg(test)]
mod tests {
    use super::super::target::Failed;
    use super::*;

    fn record(sent: f64, pieces: &[f64], end: f64) -> Record {
        Record {
            sent,
            late: 0.0,
            outcome: Outcome::Done,
            pieces: pieces.to_vec(),
            end,
            wanted_tokens: Some(10),
            prompt_tokens: Some(12),
            cached_tokens: None,
            counted_tokens: Some(pieces.len() as u64),
        }
    }

    #[test]
    fn percentiles_stand_between_neighbours_in_proportion() {
        let figures = Figures::of((0..=1000).rev().map(f64::from).collect()).unwrap();
        assert_eq!(figures.columns(), [500.0, 500.0, 900.0, 990.0, 999.0, 1000.0]);
        let figures = Figures::of(vec![2.0, 1.0]).unwrap();
        assert!((figures.p90 - 1.9).abs() < 1e-12 && figures.p50 == 1.5 && figures.n == 2);
        assert_eq!(Figures::of(Vec::new()), None);
        assert_eq!(Figures::of(vec![3.0]).unwrap().columns(), [3.0; 6]);
    }

    #[test]
    fn a_run_is_summed_up() {
        let mut cancelled = record(1.0, &[0.5, 0.75], 0.75);
        cancelled.outcome = Outcome::Cancelled;
        let mut failed = record(1.0, &[], 0.25);
        failed.outcome = Outcome::Failed(Failed::new("http_429 queue_full", "429: full"));
        failed.counted_tokens = None;
        let records =
            [record(1.0, &[1.0, 1.5, 2.5], 3.0), record(2.0, &[0.25], 0.25), cancelled, failed.clone(), failed];
        let objective = "ttft=500ms,itl=1ms".parse().unwrap();
        let summary = Summary::new(&records, Some(&objective), false);
        assert_eq!((summary.n_requests, summary.n_done, summary.n_cancelled, summary.n_failed()), (5, 2, 1, 2));
        assert_eq!(summary.failures["http_429 queue_full"], (2, "429: full".to_owned()));
        assert_eq!((summary.seconds, summary.answer_tokens), (3.0, 6));
        assert_eq!(summary.ttft.as_ref().unwrap().sorted, [0.25, 0.5, 1.0]);
        assert_eq!(summary.itl.as_ref().unwrap().sorted, [0.25, 0.5, 1.0]);
        assert_eq!((summary.tpot.as_ref().unwrap().mean, summary.e2e.as_ref().unwrap().max), (0.75, 3.0));
        // The one of a single token has nothing between its tokens to be too slow.
        assert_eq!((summary.n_good, summary.has_usage), (Some(1), true));
        let json = summary.json();
        assert_eq!((&json["ttft_ms"]["p50"], &json["answer_tokens_per_second"]), (&json!(500.0), &json!(2.0)));
        assert_eq!((&json["good_share"], &json["sent_late_ms"]), (&json!(0.2), &Json::Null));
    }

    #[test]
    fn a_run_of_nothing_has_no_figures() {
        let json = Summary::new(&[], None, true).json();
        assert_eq!(
            (&json["requests_per_second"], &json["ttft_ms"], &json["good"]),
            (&json!(0.0), &Json::Null, &Json::Null)
        );
    }
}
