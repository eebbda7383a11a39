//! What an engine counts: a snapshot for `/metrics` and the like.

/// Buckets of [`Metrics::batch_rows`]: up to 2,048 rows.
const BATCH_BUCKETS: usize = 12;

/// Counts since the engine was opened, and how things stand now. Written after every step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Choices that wait now; a request of `n` choices is `n` of them.
    pub waiting: usize,
    /// The same by lane, in the order of [`super::Priority::ALL`].
    pub waiting_by_lane: [usize; 3],
    /// Choices that run now.
    pub running: usize,
    /// Ended texts whose keys and values are kept now.
    pub cached_prefixes: usize,
    /// Tokens that the KV cache holds at most.
    pub kv_tokens: usize,
    /// Tokens of the KV cache that nothing holds now.
    pub kv_free_tokens: usize,
    /// Tokens that running answers were promised room for.
    pub kv_promised_tokens: usize,
    /// Requests taken.
    pub accepted: u64,
    /// Requests refused: queue, deadline, memory or wrong.
    pub refused: u64,
    /// Choices that ended by themselves: end token, stop string, length.
    pub finished: u64,
    /// Choices that ended because the client went away or took no more.
    pub cancelled: u64,
    /// Choices that a newer request took the place of.
    pub superseded: u64,
    /// Choices whose deadline passed.
    pub missed_deadlines: u64,
    /// Choices that ended because the engine was shut down.
    pub closed: u64,
    /// Choices that ended in an error.
    pub failed: u64,
    /// Choices that had to give up their place for a while.
    pub preempted: u64,
    /// Cached prefixes that were dropped for room.
    pub evicted: u64,
    /// Steps run.
    pub steps: u64,
    /// Rows of all steps: tokens that were run.
    pub rows: u64,
    /// Steps by their rows: 1, 2, up to 4, up to 8 and so on, each twice the one before. What has more is in none.
    pub batch_rows: [u64; BATCH_BUCKETS],
    /// Steps that failed.
    pub failed_steps: u64,
    /// Times that the plan was compiled again after the device was lost.
    pub recovered: u64,
    /// Tokens of prompts that were run.
    pub prefill_tokens: u64,
    /// Tokens of prompts that were found in the cache.
    pub cached_tokens: u64,
    /// Tokens chosen.
    pub generated_tokens: u64,
    /// Tokens that were guessed and run ahead.
    pub drafted_tokens: u64,
    /// How many of them were chosen.
    pub accepted_tokens: u64,
    /// Time in the plan, in milliseconds.
    pub step_ms: f64,
    /// Time in the plan of the draft model, in milliseconds.
    pub draft_ms: f64,
    /// Time of the engine itself beside the plans, in milliseconds.
    pub overhead_ms: f64,
}

impl Metrics {
    /// Counts a step of so many rows.
    pub(super) fn count_step(&mut self, n_rows: usize) {
        self.steps += 1;
        self.rows += n_rows as u64;
        let bucket = n_rows.max(1).next_power_of_two().trailing_zeros();
        if let Some(bucket) = self.batch_rows.get_mut(bucket as usize) {
            *bucket += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_by_their_rows() {
        let mut metrics = Metrics::default();
        [1, 2, 3, 4, 5, 2048, 2049].into_iter().for_each(|n_rows| metrics.count_step(n_rows));
        assert_eq!((metrics.steps, metrics.rows), (7, 4112));
        assert_eq!(metrics.batch_rows, [1, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
