//! What a collector is told in metrics, told apart as OpenTelemetry's conventions for generative AI have it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Span;
use crate::server::metrics::Histogram;

/// Upper bounds of the buckets of token counts: powers of four, as the conventions recommend.
const N_BUCKETS: usize = 14;

/// Tokens of requests, in buckets.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    buckets: [AtomicU64; N_BUCKETS],
    n: AtomicU64,
    sum: AtomicU64,
}

impl Sizes {
    fn add(&self, n_tokens: usize) {
        let n_tokens = n_tokens as u64;
        let place = (0..N_BUCKETS).find(|&place| n_tokens <= 1 << (2 * place));
        if let Some(bucket) = place.and_then(|place| self.buckets.get(place)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.n.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(n_tokens, Ordering::Relaxed);
    }

    /// Upper bounds, and how many fell into each bucket alone.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bound = |place: usize| (1_u64 << (2 * place)) as f64;
        self.buckets.iter().enumerate().map(move |(place, bucket)| (bound(place), bucket.load(Ordering::Relaxed)))
    }

    pub(super) fn n(&self) -> u64 {
        self.n.load(Ordering::Relaxed)
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64
    }
}

/// Requests of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::server) struct Kind {
    pub(in crate::server) model: String,
    /// As metrics call it; empty for nobody in particular.
    pub(in crate::server) caller: String,
    pub(in crate::server) operation: &'static str,
    /// Why they broke; `None` for those that did not, and for what is counted before that is known.
    pub(in crate::server) error: Option<&'static str>,
}

/// What is counted of requests of one kind.
#[derive(Debug, Default)]
pub(in crate::server) struct Counts {
    pub(super) whole: Histogram,
    pub(in crate::server) first_token: Histogram,
    pub(in crate::server) inter_token: Histogram,
    pub(super) input: Sizes,
    pub(super) output: Sizes,
}

/// All of them. Models are configured, keys are known and reasons are names in this program: there are few.
#[derive(Debug, Default)]
pub(super) struct AllCounts(Mutex<BTreeMap<Kind, Arc<Counts>>>);

impl AllCounts {
    pub(super) fn of(&self, kind: &Kind) -> Arc<Counts> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(counts.entry(kind.clone()).or_default())
    }

    pub(super) fn all(&self) -> BTreeMap<Kind, Arc<Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A request has ended.
    pub(super) fn count(&self, kind: &Kind, span: &Span) {
        self.of(&Kind { error: span.error, ..kind.clone() }).whole.add(span.duration);
        let sizes = self.of(kind);
        sizes.input.add(span.input_tokens);
        // Nothing is written for an embedding.
        if span.operation != "embeddings" {
            sizes.output.add(span.output_tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_fall_into_buckets_of_powers_of_four() {
        let sizes = Sizes::default();
        [0, 1, 2, 4, 5, usize::MAX >> 1].into_iter().for_each(|n| sizes.add(n));
        let buckets: Vec<(f64, u64)> = sizes.buckets().take(4).collect();
        assert_eq!(buckets, [(1.0, 2), (4.0, 2), (16.0, 1), (64.0, 0)]);
        assert_eq!((sizes.n(), sizes.buckets().last()), (6, Some((67_108_864.0, 0))));
    }
}
