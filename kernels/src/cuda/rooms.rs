//! Memory that the stages of a step work in.

use std::sync::Arc;

use super::gpu::{Buffer, Gpu};
use crate::backend::{DeviceError, Limits};
use crate::device::fuse::{Input, Norm, Product, Work};
use crate::device::layout::UNIT;
use crate::device::places::{Places, stride};
use crate::graph::{Graph, Op, Rope};

/// Rows of a submission, at most.
const SLICE_ROWS: usize = 256;

/// Bytes that logits may take, but for those of one row.
const LOGITS_BYTES: usize = 64 << 20;

/// Words before the rows of a step, and of a row: see `base.cu`.
pub(super) const STEP_HEAD: usize = 4;
pub(super) const STEP_ROW: usize = 4;

/// Parts that positions are split into where rows are few, at most.
pub(super) const MOST_PARTS: usize = 16;

/// Positions that a part should have, at least.
const PART_TOKENS: usize = 256;

/// Rows up to which positions are split.
pub(super) const SPLIT_ROWS: usize = 8;

/// Bytes of a row as records of bytes: see `quantized.cu`.
pub(super) fn record_bytes(width: usize, is_fine: bool) -> usize {
    width.div_ceil(UNIT) * 16 * if is_fine { 5 } else { 3 }
}

/// Rotations of a graph, each with the place of its first angle in those of a row.
pub(super) struct Angles {
    pub(super) ropes: Vec<(Arc<Rope>, usize)>,
    /// Floats of a row.
    pub(super) row_floats: usize,
}

impl Angles {
    pub(super) fn new(graph: &Graph) -> Self {
        let mut angles = Self { ropes: Vec::new(), row_floats: 0 };
        for op in graph.ops() {
            if let Op::Rope { rope, .. } = op
                && angles.at(rope).is_none()
            {
                angles.ropes.push((Arc::clone(rope), angles.row_floats));
                angles.row_floats += 2 * rope.frequencies.len();
            }
        }
        angles
    }

    pub(super) fn at(&self, rope: &Rope) -> Option<usize> {
        self.ropes.iter().find(|(known, _)| **known == *rope).map(|(_, at)| *at)
    }
}

/// How large everything is that is not the cache or a weight, in bytes.
pub(super) struct Sizes {
    /// Rows of a submission.
    pub(super) slice_rows: usize,
    /// Results of a submission.
    pub(super) slice_wants: usize,
    /// Parts that positions are split into where rows are few.
    pub(super) parts: usize,
    pub(super) step: u64,
    places: Vec<u64>,
    input_floats: u64,
    input_bytes: u64,
    gates: u64,
    partial: u64,
    chosen: u64,
    experts: [u64; 4],
    head_floats: u64,
    head_bytes: u64,
    logits: u64,
    ids: u64,
}

impl Sizes {
    pub(super) fn new(
        graph: &Graph,
        limits: &Limits,
        works: &[Work<'_>],
        places: &Places,
        n_pools: usize,
        is_fine: bool,
    ) -> Self {
        let slice_rows = limits.max_rows.min(SLICE_ROWS);
        let vocab = stride(graph.n_vocab());
        let slice_wants = (LOGITS_BYTES / (4 * vocab)).clamp(1, slice_rows);
        let rows = |bytes: usize| (bytes * slice_rows) as u64;
        let widest = |of: fn(&Work<'_>) -> usize| works.iter().map(of).max().unwrap_or(0);
        let input = widest(|work| inputs_of(work).map_or(0, |(_, width)| width));
        let normed = widest(|work| inputs_of(work).map_or(0, |(norm, width)| if norm.is_some() { width } else { 0 }));
        let gates = widest(|work| match work {
            Work::Product(Product { weights, gated: Some(_), .. }) => 2 * stride(weights[0].0.rows()),
            Work::Experts { moe, .. } => 2 * moe.n_used * stride(moe.ff()),
            _ => 0,
        });
        // Of a row: logits, choices and shares; the hidden rows of experts, those as bytes, what becomes of them.
        let of_experts = |of: fn(&crate::graph::Moe, bool) -> usize| {
            let of = |work: &Work<'_>| if let Work::Experts { moe, .. } = work { of(moe, is_fine) } else { 0 };
            rows(works.iter().map(of).max().unwrap_or(0))
        };
        let n_pages = limits.kv_tokens.min(graph.max_context()).div_ceil(limits.page_tokens);
        let n_sequences = limits.max_sequences.min(slice_rows);
        let angles = Angles::new(graph).row_floats * slice_rows;
        let step = STEP_HEAD + STEP_ROW * slice_rows + slice_wants + n_sequences * n_pools * (1 + n_pages) + angles;
        let longest = limits.kv_tokens.min(graph.max_context());
        let parts = (longest / PART_TOKENS).clamp(1, MOST_PARTS);
        let partial = works.iter().map(|work| match work {
            Work::Attention(attention) if parts > 1 => {
                let value_dim = graph.kv_layers()[attention.layer].value_dim;
                4 * attention.n_heads * parts * (2 + stride(value_dim)) * SPLIT_ROWS.min(slice_rows)
            }
            _ => 0,
        });
        Self {
            slice_rows,
            slice_wants,
            parts,
            step: 4 * step as u64,
            places: places.strides.iter().map(|stride| rows(4 * stride)).collect(),
            input_floats: rows(4 * stride(normed)),
            input_bytes: rows(record_bytes(input, is_fine)),
            gates: rows(4 * gates),
            partial: partial.max().unwrap_or(0) as u64,
            chosen: of_experts(|moe, _| 4 * moe.n_used),
            experts: [
                of_experts(|moe, _| 4 * stride(moe.n_experts())),
                of_experts(|moe, _| 4 * moe.n_used * stride(moe.ff())),
                of_experts(|moe, is_fine| moe.n_used * record_bytes(moe.ff(), is_fine)),
                of_experts(|moe, _| 4 * moe.n_used * stride(moe.router.cols())),
            ],
            head_floats: 4 * (slice_wants * stride(graph.width())) as u64,
            head_bytes: (slice_wants * record_bytes(graph.width(), is_fine)) as u64,
            logits: 4 * (slice_wants * vocab) as u64,
            ids: 4 * slice_wants as u64,
        }
    }

    /// Bytes of all.
    pub(super) fn bytes(&self) -> u64 {
        let of_input = self.input_floats + self.input_bytes + self.gates + self.partial + self.step;
        let of_experts = 2 * self.chosen + self.experts.iter().sum::<u64>();
        let of_head = self.head_floats + self.head_bytes + self.logits + self.ids;
        self.places.iter().sum::<u64>() + of_input + of_experts + of_head
    }

    pub(super) fn rooms(&self, gpu: &Arc<Gpu>) -> Result<Rooms, DeviceError> {
        let room = |n_bytes: u64| gpu.buffer("values of a step", n_bytes);
        let [router, hidden, hidden_bytes, results] = self.experts;
        Ok(Rooms {
            step: room(self.step)?,
            places: self.places.iter().map(|n_bytes| room(*n_bytes)).collect::<Result<_, DeviceError>>()?,
            input_floats: room(self.input_floats)?,
            input_bytes: room(self.input_bytes)?,
            gates: room(self.gates)?,
            partial: room(self.partial)?,
            chosen: room(self.chosen)?,
            shares: room(self.chosen)?,
            router: room(router)?,
            hidden: room(hidden)?,
            hidden_bytes: room(hidden_bytes)?,
            results: room(results)?,
            head_floats: room(self.head_floats)?,
            head_bytes: room(self.head_bytes)?,
            logits: room(self.logits)?,
            ids: room(self.ids)?,
        })
    }
}

/// The norm that products of a work take their input through, and its width.
fn inputs_of<'g>(work: &Work<'g>) -> Option<(Option<Norm<'g>>, usize)> {
    let of = |x: &Input<'g>, width: usize| Some((x.norm, width));
    match work {
        Work::Product(Product { x, weights, .. }) => of(x, weights[0].0.cols()),
        Work::Experts { x, moe, .. } => of(x, moe.router.cols()),
        _ => None,
    }
}

/// What stages work in.
pub(super) struct Rooms {
    pub(super) step: Buffer,
    pub(super) places: Vec<Buffer>,
    /// What products read: rows after their norm, and rows as bytes.
    pub(super) input_floats: Buffer,
    pub(super) input_bytes: Buffer,
    /// Gates, and what they are met with.
    pub(super) gates: Buffer,
    /// Of each row, head and part of its positions what attention makes of it.
    pub(super) partial: Buffer,
    /// Of experts: who is chosen and with which share, logits, hidden rows, those as bytes, what becomes of them.
    pub(super) chosen: Buffer,
    pub(super) shares: Buffer,
    pub(super) router: Buffer,
    pub(super) hidden: Buffer,
    pub(super) hidden_bytes: Buffer,
    pub(super) results: Buffer,
    pub(super) head_floats: Buffer,
    pub(super) head_bytes: Buffer,
    pub(super) logits: Buffer,
    pub(super) ids: Buffer,
}
