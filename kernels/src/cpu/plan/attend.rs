//! Attention stages: rows of one sequence against one KV head of it are a chunk; long contexts with few rows are
//! split along the keys, and the parts merged.

use super::stage::Attention;
use super::step::Span;
use super::{Core, Counters, Local};
use crate::cpu::attention::{self, KvHead, PartialRows, Query, Scores};
use crate::cpu::pool::Worker;

/// Queries of a chunk that make reading a page worth while: rows of a span times heads of a group.
pub(super) const CHUNK_QUERIES: usize = 256;
/// Keys of a part, at least, where a context is split.
const SPLIT_KEYS: usize = 256;
/// Chunks per worker that a split aims at.
const CHUNKS_PER_WORKER: usize = 2;

/// Rows of a span for groups of `group` heads.
pub(super) fn span_rows(group: usize) -> usize {
    (CHUNK_QUERIES / group.max(1)).max(1)
}

/// Parts that the largest split of any batch makes, so that there is room for their results.
pub(super) fn max_parts(n_workers: usize) -> usize {
    2 * CHUNKS_PER_WORKER * n_workers
}

/// How a stage is cut up.
struct Cut {
    n_kv_heads: usize,
    /// Parts along the keys; 1 leaves them whole.
    n_parts: usize,
    /// Positions of a part.
    part_keys: usize,
}

impl Core {
    fn cut(&self, stage: &Attention, n_workers: usize) -> Cut {
        let layer = &self.kv_layers[stage.layer];
        let n_whole = self.step.spans.len() * layer.n_kv_heads;
        let is_one_row_each = self.step.spans.iter().all(|span| span.n_rows == 1);
        let longest = self.step.longest.min(layer.window.unwrap_or(usize::MAX));
        let wanted = (CHUNKS_PER_WORKER * n_workers).div_ceil(n_whole.max(1));
        let n_parts = if n_workers > 1 && is_one_row_each { wanted.min(longest / SPLIT_KEYS).max(1) } else { 1 };
        Cut { n_kv_heads: layer.n_kv_heads, n_parts, part_keys: longest.div_ceil(n_parts) }
    }

    /// Runs an attention stage; returns with a barrier left to do.
    ///
    /// # Safety
    /// Called by all workers of the step at the same point, each with the `Local` that is its own.
    pub(super) unsafe fn attend(&self, stage: &Attention, counters: &Counters, worker: &Worker<'_>, local: &mut Local) {
        let cut = self.cut(stage, worker.n_workers());
        let n_chunks = self.step.spans.len() * cut.n_kv_heads * cut.n_parts;
        worker.claim(&counters[0], n_chunks, |number| {
            // The last rows see most keys: first come, so that no worker is left with the longest chunk at the end.
            let number = n_chunks - 1 - number;
            let (whole, part) = (number / cut.n_parts, number % cut.n_parts);
            // SAFETY: a chunk is claimed once: its outputs, or its part of the partial results, are ours.
            unsafe { self.attend_chunk(stage, whole, part, &cut, local) };
        });
        if cut.n_parts == 1 {
            return;
        }
        worker.barrier();
        let n_whole = self.step.spans.len() * cut.n_kv_heads;
        worker.claim(&counters[1], n_whole, |whole| {
            // SAFETY: a chunk is claimed once; all parts were written before the barrier.
            unsafe { self.merge_parts(stage, whole, &cut) };
        });
    }

    /// One part of the keys of one KV head, for all rows of a span.
    unsafe fn attend_chunk(&self, stage: &Attention, whole: usize, part: usize, cut: &Cut, local: &mut Local) {
        let (span, head) = (&self.step.spans[whole / cut.n_kv_heads], whole % cut.n_kv_heads);
        let layer = &self.kv_layers[stage.layer];
        let group = stage.n_heads / layer.n_kv_heads;
        let window = layer.window.unwrap_or(usize::MAX);
        let keys = {
            let end = span.position + span.n_rows;
            let start = (span.position + 1).saturating_sub(window);
            let from = (start + part * cut.part_keys).min(end);
            if cut.n_parts == 1 { start..end } else { from..end.min(from + cut.part_keys) }
        };
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
        // Whole ranges are finished from the worker's own memory.
        let start = if cut.n_parts == 1 {
            local.partials.as_mut_ptr()
        } else {
            self.partials.at((whole * cut.n_parts + part) * group * stride)
        };
        let scores = Scores { scale: stage.scale, softcap: stage.softcap };
        // SAFETY: the worker's own memory holds the queries of a span, the shared one those of `max_parts` chunks of one
        // row each; queries were written before the last barrier, keys and values too.
        unsafe {
            let partials = std::slice::from_raw_parts_mut(start, queries.len() * stride);
            partials.chunks_exact_mut(stride).for_each(attention::reset);
            let rows = PartialRows { start, stride };
            attention::attend(self.isa, &cached, queries, keys, scores, &mut local.attention, rows);
            if cut.n_parts == 1 {
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
            pages: self.kv.pages(span.sequence),
            keys: keys.start,
            key_page_stride: keys.page_stride,
            values: values.start,
            value_page_stride: values.page_stride,
        }
    }

    /// Merges the parts of one row's group of heads.
    unsafe fn merge_parts(&self, stage: &Attention, whole: usize, cut: &Cut) {
        let layer = &self.kv_layers[stage.layer];
        let group = stage.n_heads / layer.n_kv_heads;
        let (span, head) = (whole / cut.n_kv_heads, whole % cut.n_kv_heads);
        let row = self.step.order[self.step.spans[span].start];
        let stride = attention::partial_len(layer.value_dim);
        for lane in 0..group {
            let part_at = |part: usize| self.partials.at(((whole * cut.n_parts + part) * group + lane) * stride);
            // SAFETY: parts were written before the barrier, and those of this row and head are ours now.
            unsafe {
                let first = std::slice::from_raw_parts_mut(part_at(0), stride);
                for part in 1..cut.n_parts {
                    attention::merge(self.isa, first, std::slice::from_raw_parts(part_at(part), stride));
                }
                attention::finish(first, self.head_out(stage, row, head * group + lane));
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
