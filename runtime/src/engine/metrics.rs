//! What an engine counts: a snapshot for `/metrics` and the like.

/// Counts since the engine was opened, and how things stand now. Written after every step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Choices that wait now; a request of `n` choices is `n` of them.
    pub waiting: usize,
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
