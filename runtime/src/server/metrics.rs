//! What the server counts, per model and key. Counting a token takes no lock.

mod page;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(super) use page::page;

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

    /// Upper bounds in seconds, and how many times fell into each bucket alone.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bound = |place: usize| f64::from(1_u32 << place) / 1e3;
        self.buckets.iter().enumerate().map(move |(place, bucket)| (bound(place), bucket.load(Ordering::Relaxed)))
    }

    pub(super) fn n(&self) -> u64 {
        self.n.load(Ordering::Relaxed)
    }

    /// The sum of all times.
    pub(super) fn seconds(&self) -> f64 {
        self.micros.load(Ordering::Relaxed) as f64 / 1e6
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

/// All [`Phase`]s, in their order.
pub(super) const PHASES: [Phase; 3] = [Phase::Queue, Phase::Prefill, Phase::Decode];

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// What is counted for one model and key.
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
pub(super) type Names = (String, String);

/// All counts of a server.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Of pairs that have met. Models are configured and keys are known: there are few.
    counts: Mutex<BTreeMap<Names, Arc<KeyMetrics>>>,
    /// Reasons are names in this program, so there are few; with them model and key, empty where there is none or it is not
    /// known.
    refused: Mutex<BTreeMap<(&'static str, String, String), u64>>,
    /// Files of settings read again: what they are, and whether they could be used.
    reloads: Mutex<BTreeMap<(&'static str, bool), u64>>,
    /// Models loaded, and whether they could be.
    loads: Mutex<BTreeMap<(String, bool), u64>>,
}

impl Metrics {
    /// Counts of a model and a key; the key is empty for nobody in particular.
    pub(super) fn of(&self, model: &str, key: &str) -> Arc<KeyMetrics> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(counts.entry((model.to_owned(), key.to_owned())).or_default())
    }

    /// All counts of models and keys that have met.
    pub(super) fn all(&self) -> BTreeMap<Names, Arc<KeyMetrics>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn count_refusal(&self, reason: &'static str, model: &str, key: &str) {
        count(&self.refused, (reason, model.to_owned(), key.to_owned()));
    }

    pub(super) fn count_reload(&self, what: &'static str, is_good: bool) {
        count(&self.reloads, (what, is_good));
    }

    pub(super) fn count_load(&self, model: &str, is_good: bool) {
        count(&self.loads, (model.to_owned(), is_good));
    }
}

fn count<K: Ord>(counts: &Mutex<BTreeMap<K, u64>>, key: K) {
    *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
}
