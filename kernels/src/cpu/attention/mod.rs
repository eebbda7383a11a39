//! Attention of query rows over one KV head of one sequence, read from pages.
//!
//! [`attend`] takes all heads of a group and all tokens of a step that share a KV head as rows of one pass: every tile
//! of keys and values is widened to f32 once and met with all queries that see any of it. It runs an online softmax
//! per query and leaves a partial result (largest score, sum of exponentials, weighted sum of values), so that long
//! contexts can be split over workers: [`merge`] joins partial results of disjoint keys, [`finish`] divides.
//! [`store`] writes a token's vectors into a page.
//!
//! What is not finite shows: a NaN in a query makes its result NaN, one in a key or a value those of all queries that
//! see it (and perhaps of others of the same call). Keys and values that no query of a call sees are not read.

mod few;
mod kv;
mod lanes;
mod many;
mod partial;
mod plain;
mod scratch;
mod store;

use std::ops::Range;

pub use kv::KvHead;
pub use partial::{PartialRows, finish, merge, partial_len, reset};
pub use scratch::Scratch;
pub use store::store;

use super::isa::Isa;
use super::vector::dispatch;
use lanes::in_lanes;
use plain::in_turn;

/// One query row.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Its `key_dim` floats.
    pub q: *const f32,
    /// First position it sees.
    pub from: usize,
    /// Position after the last it sees.
    pub to: usize,
}

/// What becomes of a dot product: `score = q·k * scale`, then `cap * tanh(score / cap)` where there is a cap.
#[derive(Clone, Copy, Debug)]
pub struct Scores {
    /// Factor of every dot product.
    pub scale: f32,
    /// Soft cap, if any.
    pub softcap: Option<f32>,
}

/// In which order a query's sums are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Whichever is fastest beside the other queries of the call: its last bits depend on how many there are.
    Fastest,
    /// Always the same: the result of a query does not depend on the others of the call.
    Fixed,
}

/// A checked call. Made by [`attend`] only: every position that a query sees has a page, the scratch has room.
struct Job<'a> {
    head: &'a KvHead<'a>,
    queries: &'a [Query],
    keys: Range<usize>,
    scores: Scores,
    order: Order,
    scratch: &'a mut Scratch,
    partials: PartialRows,
}

impl Job<'_> {
    /// Positions that a query sees in this call; empty ranges start where they end.
    fn seen(&self, query: usize) -> Range<usize> {
        let query = &self.queries[query];
        let start = query.from.max(self.keys.start);
        start..query.to.min(self.keys.end).max(start)
    }
}

dispatch! {
    fn run(job: &mut Job<'_>) = in_lanes or in_turn
}

/// Lets each query attend to the positions of `keys` that it sees, and joins the result into its partial row.
///
/// A query that sees none of them leaves its row as it is. Row `n` of `partials` belongs to query `n`.
///
/// # Safety
/// `isa` is available; `head` describes pages with written keys and values for every position seen, which nobody
/// writes meanwhile; each query has `key_dim` floats; nobody else uses the partial rows.
pub unsafe fn attend(
    isa: Isa,
    head: &KvHead<'_>,
    queries: &[Query],
    keys: Range<usize>,
    scores: Scores,
    order: Order,
    scratch: &mut Scratch,
    partials: PartialRows,
) {
    head.check();
    assert!(scratch.holds(queries.len(), head.key_dim, head.value_dim), "the scratch fits the call");
    let last = queries.iter().map(|query| query.to).max().unwrap_or(0).min(keys.end);
    assert!(last <= head.pages.len().saturating_mul(head.page_tokens), "positions up to {last} have pages");
    let mut job = Job { head, queries, keys, scores, order, scratch, partials };
    // SAFETY: checked; the rest is the caller's promise.
    unsafe { run(isa, &mut job) };
}

#[cfg(test)]
mod tests;
