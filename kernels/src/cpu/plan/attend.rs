//! Attention stages: rows of one sequence against one KV head of it are a chunk.
//!
//! In steps of few rows the result of a row must not depend on what other rows there are, nor on the number of workers:
//! what a row gets in a step of its own, it gets to the bit beside rows that were guessed ahead. So a context is
//! summed up in parts whose ends depend on positions alone, and the parts merged in order; where there are fewer
//! chunks than workers want, each part is a chunk.

use std::ops::Range;

use super::stage::Attention;
use super::step::Span;
use super::{Core, Counters, Local};
use crate::cpu::attention::{self, KvHead, Order, PartialRows, Query, Scores};
use crate::cpu::pool::Worker;
use crate::graph::KvLayer;

/// Queries of a chunk that make reading a page worth while: rows of a span times heads of a group.
pub(super) const CHUNK_QUERIES: usize = 256;
/// Rows of a step, at most, whose results do not depend on each other: as many as products are the same for.
pub(super) const EQUAL_ROWS: usize = 16;
/// Keys of a part, at least, and parts of a context at most.
const PART_KEYS: usize = 256;
const PARTS: usize = 8;
/// Chunks per worker that spare the division into parts.
const CHUNKS_PER_WORKER: usize = 2;

/// Rows of a span for groups of `group` heads.
pub(super) fn span_rows(group: usize) -> usize {
    (CHUNK_QUERIES / group.max(1)).max(1)
}

/// Keys of a part for rows that see `n_keys`; parts begin at multiples of it.
fn part_keys(n_keys: usize) -> usize {
    (n_keys.next_power_of_two() / PARTS).max(PART_KEYS)
}

/// How many positions from `position` on have parts of the same length.
pub(super) fn n_alike(position: usize) -> usize {
    PARTS * part_keys(position + 1) - position
}

/// Partial results of parts that are chunks, for a layer with groups of `group` heads and steps of up to `max_rows`.
pub(super) fn max_partials(layer: &KvLayer, group: usize, max_rows: usize, n_workers: usize) -> usize {
    if is_enough(layer.n_kv_heads, n_workers) {
        return 0;
    }
    // A window that begins inside of a part ends inside of another.
    layer.n_kv_heads * group * max_rows.min(EQUAL_ROWS) * (PARTS + 1)
}

/// Whether so many chunks keep the workers busy.
fn is_enough(n_chunks: usize, n_workers: usize) -> bool {
    n_workers == 1 || n_chunks >= CHUNKS_PER_WORKER * n_workers
}

/// How a stage is cut up.
struct Cut {
    n_kv_heads: usize,
    /// Rows do not depend on each other.
    is_equal: bool,
    /// Parts along the keys that are chunks of their own; 0 leaves them together.
    n_parts: usize,
}

impl Core {
    fn cut(&self, stage: &Attention, n_workers: usize) -> Cut {
        let layer = &self.kv_layers[stage.layer];
        let is_equal = self.step.rows.len() <= EQUAL_ROWS;
        let spans = &self.step.spans;
        let n_parts = spans.iter().map(|span| self.parts(layer, span, is_equal).1.len()).max().unwrap_or(0);
        let is_split = is_equal && n_parts > 1 && !is_enough(spans.len() * layer.n_kv_heads, n_workers);
        Cut { n_kv_heads: layer.n_kv_heads, is_equal, n_parts: if is_split { n_parts } else { 0 } }
    }

    /// Keys of a part, and the numbers of the parts that rows of a span see.
    fn parts(&self, layer: &KvLayer, span: &Span, is_equal: bool) -> (usize, Range<usize>) {
        let keys = seen(layer, span);
        let window = layer.window.unwrap_or(usize::MAX);
        let part_keys = if is_equal { part_keys((span.position + 1).min(window)) } else { keys.end };
        (part_keys, keys.start / part_keys..keys.end.div_ceil(part_keys))
    }

    /// Runs an attention stage; returns with a barrier left to do.
    ///
    /// # Safety
    /// Called by all workers of the step at the same point, each with the `Local` that is its own.
    pub(super) unsafe fn attend(&self, stage: &Attention, counters: &Counters, worker: &Worker<'_>, local: &mut Local) {
        let cut = self.cut(stage, worker.n_workers());
        let n_whole = self.step.spans.len() * cut.n_kv_heads;
        let n_chunks = n_whole * cut.n_parts.max(1);
        worker.claim(&counters[0], n_chunks, |number| {
            // The last rows see most keys: first come, so that no worker is left with the longest chunk at the end.
            let number = n_chunks - 1 - number;
            let (whole, part) = match cut.n_parts {
                0 => (number, None),
                n_parts => (number / n_parts, Some(number % n_parts)),
            };
            // SAFETY: a chunk is claimed once: its outputs, or its part of the partial results, are ours.
            unsafe { self.attend_chunk(stage, whole, part, &cut, local) };
        });
        if cut.n_parts == 0 {
            return;
        }
        worker.barrier();
        worker.claim(&counters[1], n_whole, |whole| {
            // SAFETY: a chunk is claimed once; all parts were written before the barrier.
            unsafe { self.merge_parts(stage, whole, &cut) };
        });
    }

    /// Where the partial results of a chunk that is a part begin, a row of a head after the other.
    fn part_at(&self, span: &Span, head: usize, part: usize, group: usize, cut: &Cut, stride: usize) -> *mut f32 {
        let first = ((head * cut.n_parts + part) * self.step.rows.len() + span.start) * group;
        self.partials.at(first * stride)
    }

    /// The keys of one KV head, or one part of them, for all rows of a span.
    unsafe fn attend_chunk(&self, stage: &Attention, whole: usize, part: Option<usize>, cut: &Cut, local: &mut Local) {
        let (span, head) = (&self.step.spans[whole / cut.n_kv_heads], whole % cut.n_kv_heads);
        let layer = &self.kv_layers[stage.layer];
        let group = stage.n_heads / layer.n_kv_heads;
        let window = layer.window.unwrap_or(usize::MAX);
        let queries = &mut local.queries.0;
        queries.clear();
        for (offset, &row) in self.step.order[span.start..][..span.n_rows].iter().enumerate() {
            let position = span.position + offset;
            for lane in 0..group {
                let q = self.arena.at(stage.q, row).wrapping_add((head * group + lane) * layer.key_dim);
                let from = (position + 1).saturating_sub(window);
                queries.push(Query { q, from, to: position + 1 });
            }
        }
        let cached = self.kv_head(stage.layer, head, span);
        let stride = attention::partial_len(layer.value_dim);
        let (part_keys, parts) = self.parts(layer, span, cut.is_equal);
        // Whole ranges are finished from the worker's own memory.
        let (start, parts) = match part {
            None => (local.partials.as_mut_ptr(), parts),
            Some(part) => {
                let first = (parts.start + part).min(parts.end);
                (self.part_at(span, head, part, group, cut, stride), first..parts.end.min(first + 1))
            }
        };
        let order = if cut.is_equal { Order::Fixed } else { Order::Fastest };
        let scores = Scores { scale: stage.scale, softcap: stage.softcap };
        // SAFETY: the worker's own memory holds the queries of a span, the shared one those of `max_partials`;
        // queries were written before the last barrier, keys and values too.
        unsafe {
            let partials = std::slice::from_raw_parts_mut(start, queries.len() * stride);
            partials.chunks_exact_mut(stride).for_each(attention::reset);
            let rows = PartialRows { start, stride };
            for part in parts {
                let keys = part * part_keys..(part + 1) * part_keys;
                attention::attend(self.isa, &cached, queries, keys, scores, order, &mut local.attention, rows);
            }
            if part.is_none() {
                let partials = std::slice::from_raw_parts(start, queries.len() * stride);
                for (query, partial) in partials.chunks_exact(stride).enumerate() {
                    let row = self.step.order[span.start + query / group];
                    attention::finish(partial, self.head_out(stage, row, head * group + query % group));
                }
            }
        }
    }

    fn kv_head<'k>(&'k self, layer: usize, head: usize, span: &Span) -> KvHead<'k> {
        let shape = &self.kv_layers[layer];
        let (keys, values) = (self.kv.keys(layer, head), self.kv.values(layer, head));
        KvHead {
            kv_type: self.kv.kv_type(),
            key_dim: shape.key_dim,
            value_dim: shape.value_dim,
            page_tokens: self.kv.page_tokens(),
            pages: self.kv.pages(span.sequence, layer),
            keys: keys.start,
            key_page_stride: keys.page_stride,
            values: values.start,
            value_page_stride: values.page_stride,
        }
    }

    /// Merges the parts of a span's rows in one group of heads, in the order of their keys.
    unsafe fn merge_parts(&self, stage: &Attention, whole: usize, cut: &Cut) {
        let layer = &self.kv_layers[stage.layer];
        let group = stage.n_heads / layer.n_kv_heads;
        let (span, head) = (&self.step.spans[whole / cut.n_kv_heads], whole % cut.n_kv_heads);
        let stride = attention::partial_len(layer.value_dim);
        for query in 0..span.n_rows * group {
            let part_at = |part| self.part_at(span, head, part, group, cut, stride).wrapping_add(query * stride);
            let row = self.step.order[span.start + query / group];
            // SAFETY: parts were written before the barrier, and those of this row and head are ours now.
            unsafe {
                let first = std::slice::from_raw_parts_mut(part_at(0), stride);
                for part in 1..cut.n_parts {
                    attention::merge(self.isa, first, std::slice::from_raw_parts(part_at(part), stride));
                }
                attention::finish(first, self.head_out(stage, row, head * group + query % group));
            }
        }
    }

    /// One head of a row of the output.
    ///
    /// # Safety
    /// It is ours to write.
    #[allow(clippy::mut_from_ref)] // Heads of one value are written by several threads.
    unsafe fn head_out(&self, stage: &Attention, row: usize, head: usize) -> &mut [f32] {
        let dim = self.kv_layers[stage.layer].value_dim;
        // SAFETY: the output's width is that of all heads.
        unsafe { std::slice::from_raw_parts_mut(self.arena.at(stage.out, row).wrapping_add(head * dim), dim) }
    }
}

/// Positions that rows of a span see, one or the other.
fn seen(layer: &KvLayer, span: &Span) -> Range<usize> {
    (span.position + 1).saturating_sub(layer.window.unwrap_or(usize::MAX))..span.position + span.n_rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_have_few_parts_whose_length_changes_with_the_power_of_two() {
        for n_keys in 1..20_000_usize {
            let part_keys = part_keys(n_keys);
            assert!(n_keys.div_ceil(part_keys) <= PARTS && part_keys.is_multiple_of(PART_KEYS));
            let n_alike = n_alike(n_keys - 1);
            assert!(n_alike > 0 && super::part_keys(n_keys + n_alike - 1) == part_keys);
            assert_ne!(super::part_keys(n_keys + n_alike), part_keys);
        }
    }
}
