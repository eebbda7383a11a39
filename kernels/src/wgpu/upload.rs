//! Weights brought onto the device: laid out anew some rows at a time, so that no second copy is ever whole in host memory.
//!
//! Weights that are met at once are one matrix ([`Stack`]). A matrix of more bytes than a shader can bind is cut by rows
//! into parts. A matrix that is used twice (a tied embedding) is uploaded once. All vectors, of norms and biases, lie in one
//! buffer, as shaders bind few.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::gpu::Gpu;
use crate::backend::DeviceError;
use crate::device::layout::{Layout, UNIT};
use crate::device::places::stride;
use crate::graph::{Graph, Op};
use crate::order;
use crate::tensor::Weight;

/// Bytes laid out at a time.
const WINDOW_BYTES: usize = 4 << 20;

/// Bytes on their way to the device before they are waited for.
const UNDER_WAY_BYTES: usize = 32 << 20;

/// Rows of a gate, then as many of what it is met with, and so on.
const TURN: usize = 8;

/// Weights of one type and as many columns that are met at once.
pub(super) struct Stack<'w> {
    /// One after the other, or those of a gated unit: the gate and what it is met with.
    weights: Vec<&'w Weight>,
    is_gated: bool,
    n_experts: usize,
}

impl<'w> Stack<'w> {
    /// One weight.
    pub(super) fn one(weight: &'w Weight) -> Self {
        Self::of_experts(weight, 1)
    }

    /// One weight with the rows of so many experts.
    pub(super) fn of_experts(weight: &'w Weight, n_experts: usize) -> Self {
        Self { weights: vec![weight], is_gated: false, n_experts }
    }

    /// Weights one after the other.
    pub(super) fn rows(weights: Vec<&'w Weight>) -> Self {
        Self { weights, is_gated: false, n_experts: 1 }
    }

    /// A gate and what it is met with, of so many experts.
    pub(super) fn gated(gate: &'w Weight, up: &'w Weight, n_experts: usize) -> Self {
        Self { weights: vec![gate, up], is_gated: true, n_experts }
    }

    /// Results of a row (of one expert).
    fn n_results(&self) -> usize {
        let counted = if self.is_gated { &self.weights[..1] } else { &self.weights };
        counted.iter().map(|weight| weight.rows()).sum::<usize>() / self.n_experts
    }

    /// Rows stored (of one expert).
    fn n_stored(&self) -> usize {
        if self.is_gated { 2 * self.n_results().next_multiple_of(TURN) } else { self.n_results() }
    }

    /// Which row of which weight is stored in a place; none in those that fill up a turn.
    fn source(&self, place: usize) -> Option<(&'w Weight, usize)> {
        if self.is_gated {
            let (expert, place) = (place / self.n_stored(), place % self.n_stored());
            let (turn, place) = (place / (2 * TURN), place % (2 * TURN));
            let row = turn * TURN + place % TURN;
            let n_results = self.n_results();
            return (row < n_results).then(|| (self.weights[place / TURN], expert * n_results + row));
        }
        let mut row = place;
        for weight in &self.weights {
            if row < weight.rows() {
                return Some((weight, row));
            }
            row -= weight.rows();
        }
        None
    }
}

/// Rows of a matrix.
pub(super) struct Part {
    pub(super) codes: ::wgpu::Buffer,
    pub(super) scales: ::wgpu::Buffer,
    /// The first row stored here, and how many there are.
    pub(super) first: usize,
    pub(super) n_rows: usize,
}

/// A matrix on the device.
pub(super) struct Uploaded {
    pub(super) layout: Layout,
    pub(super) parts: Vec<Part>,
    pub(super) cols: usize,
    /// Results of a row and rows stored, of one expert where there are several.
    pub(super) n_results: usize,
    pub(super) n_stored: usize,
}

impl Uploaded {
    /// Units of 32 weights of a row.
    pub(super) fn units(&self) -> usize {
        self.cols.div_ceil(UNIT)
    }

    /// The first result that a part has, and how many; of a matrix without experts.
    pub(super) fn results(&self, part: &Part) -> (usize, usize) {
        if self.n_stored == self.n_results {
            return (part.first, part.n_rows);
        }
        let first = part.first / 2;
        (first, (part.n_rows / 2).min(self.n_results - first))
    }
}

/// Where a weight's bytes are, with its shape.
type Identity = (usize, usize, usize);

/// Brings weights onto the device.
pub(super) struct Uploads<'g> {
    gpu: &'g Gpu,
    known: HashMap<(Vec<Identity>, bool), Rc<Uploaded>>,
    /// Places of vectors in their buffer, and what it is to hold.
    places: HashMap<Vec<Identity>, usize>,
    floats: Vec<f32>,
    pub(super) vectors: ::wgpu::Buffer,
    /// Stands where nothing is bound.
    pub(super) nothing: ::wgpu::Buffer,
    under_way: usize,
    /// Bytes of weights on the device.
    pub(super) n_bytes: u64,
}

fn identity(weight: &Weight) -> Identity {
    (weight.bytes().as_slice().as_ptr() as usize, weight.bytes().len(), weight.cols())
}

/// Floats of all vectors of a graph, each in whole fours.
fn vector_floats(graph: &Graph) -> usize {
    let of = |op: &Op| match op {
        Op::Norm { weight, .. } | Op::Linear { bias: Some(weight), .. } | Op::Head { bias: Some(weight), .. } => {
            stride(weight.cols())
        }
        _ => 0,
    };
    graph.ops().iter().map(of).sum()
}

/// Bytes that the weights of a graph take on a device, but for rows that fill up turns.
pub(super) fn weights_for(graph: &Graph) -> u64 {
    let mut seen = HashSet::new();
    let new = graph.weights().filter(|weight| seen.insert(identity(weight)));
    new.map(|weight| {
        let layout = Layout::of(weight.dtype());
        (weight.rows() * (layout.code_bytes(weight.cols()) + 4 * layout.scale_words(weight.cols()))) as u64
    })
    .sum()
}

impl<'g> Uploads<'g> {
    pub(super) fn new(gpu: &'g Gpu, graph: &Graph) -> Result<Self, DeviceError> {
        let nothing = gpu.storage("a buffer of nothing", 16)?;
        let vectors = gpu.storage("vectors", 4 * vector_floats(graph) as u64)?;
        let (known, places) = (HashMap::new(), HashMap::new());
        Ok(Self { gpu, known, places, floats: Vec::new(), vectors, nothing, under_way: 0, n_bytes: 0 })
    }

    /// A matrix in the form of its type.
    pub(super) fn matrix(&mut self, stack: &Stack<'_>) -> Result<Rc<Uploaded>, DeviceError> {
        let key = (stack.weights.iter().map(|weight| identity(weight)).collect(), stack.is_gated);
        if let Some(known) = self.known.get(&key) {
            return Ok(Rc::clone(known));
        }
        let weight = stack.weights[0];
        let layout = Layout::of(weight.dtype());
        let (code_bytes, scale_bytes) = (layout.code_bytes(weight.cols()), 4 * layout.scale_words(weight.cols()));
        let most = self.gpu.max_binding / code_bytes.max(scale_bytes).max(1) as u64;
        // What is met at once lies in one part.
        let least = if stack.is_gated { 2 * TURN as u64 } else { 1 };
        if most < least {
            return Err(DeviceError::Refused(format!(
                "tensor '{}': a row takes {code_bytes} bytes, the device binds at most {} at once",
                weight.name(),
                self.gpu.max_binding
            )));
        }
        let most = usize::try_from(most - most % least).unwrap_or(usize::MAX);
        let (n_results, n_stored) = (stack.n_results(), stack.n_stored());
        let n_rows = n_stored * stack.n_experts;
        let mut parts = Vec::new();
        for first in (0..n_rows).step_by(most) {
            parts.push(self.part(stack, &layout, first, most.min(n_rows - first))?);
        }
        let uploaded = Rc::new(Uploaded { layout, parts, cols: weight.cols(), n_results, n_stored });
        self.known.insert(key, Rc::clone(&uploaded));
        Ok(uploaded)
    }

    fn part(&mut self, stack: &Stack<'_>, layout: &Layout, first: usize, n_rows: usize) -> Result<Part, DeviceError> {
        let cols = stack.weights[0].cols();
        let (code_bytes, scale_words) = (layout.code_bytes(cols), layout.scale_words(cols));
        let codes = self.gpu.storage("weights", (n_rows * code_bytes) as u64)?;
        let scales = match scale_words {
            0 => self.nothing.clone(),
            words => self.gpu.storage("scales of weights", (n_rows * words * 4) as u64)?,
        };
        self.n_bytes += (n_rows * (code_bytes + 4 * scale_words)) as u64;
        let mut stored = vec![0; stack.weights[0].row_bytes()];
        let window = (WINDOW_BYTES / code_bytes.max(1)).clamp(1, n_rows.max(1));
        let mut own_codes = vec![0; window * code_bytes];
        let mut own_scales = vec![0; window * scale_words];
        let mut scale_bytes = Vec::with_capacity(window * scale_words * 4);
        for start in (0..n_rows).step_by(window) {
            let count = window.min(n_rows - start);
            for row in 0..count {
                let codes = &mut own_codes[row * code_bytes..][..code_bytes];
                let scales = &mut own_scales[row * scale_words..][..scale_words];
                match stack.source(first + start + row) {
                    Some((weight, row)) => {
                        order::copy_row(&weight.view(), row, &mut stored);
                        layout.lay(&stored, codes, scales);
                    }
                    None => {
                        codes.fill(0);
                        scales.fill(0);
                    }
                }
            }
            self.write(&codes, start * code_bytes, &own_codes[..count * code_bytes])?;
            scale_bytes.clear();
            scale_bytes.extend(own_scales[..count * scale_words].iter().flat_map(|word| word.to_le_bytes()));
            self.write(&scales, start * scale_words * 4, &scale_bytes)?;
        }
        Ok(Part { codes, scales, first, n_rows })
    }

    /// Where vectors lie, one after the other: floats before them, whole fours.
    pub(super) fn vector(&mut self, weights: &[&Weight]) -> Result<u32, DeviceError> {
        let key: Vec<Identity> = weights.iter().map(|weight| identity(weight)).collect();
        if let Some(known) = self.places.get(&key) {
            return Ok(*known as u32);
        }
        let at = self.floats.len();
        for weight in weights {
            let start = self.floats.len();
            self.floats.resize(start + weight.cols(), 0.0);
            order::decode_row(&weight.view(), 0, &mut self.floats[start..])
                .map_err(|error| DeviceError::Refused(error.to_string()))?;
        }
        self.floats.resize(stride(self.floats.len()), 0.0);
        self.places.insert(key, at);
        Ok(at as u32)
    }

    /// Brings the vectors onto the device, when all have their places.
    pub(super) fn finish(&mut self) -> Result<(), DeviceError> {
        let bytes: Vec<u8> = self.floats.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.n_bytes += bytes.len() as u64;
        self.write(&self.vectors.clone(), 0, &bytes)
    }

    fn write(&mut self, buffer: &::wgpu::Buffer, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.gpu.scoped("weights", bytes.len() as u64, || self.gpu.queue.write_buffer(buffer, at as u64, bytes))?;
        self.under_way += bytes.len();
        if self.under_way >= UNDER_WAY_BYTES {
            self.under_way = 0;
            self.gpu.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_rows_of_the_gate_and_of_what_it_is_met_with_take_turns() {
        let weight = |name: &str| Weight::from_f32(name, 20, 1, &[0.0; 20]).unwrap();
        let (gate, up) = (weight("gate"), weight("up"));
        // Two experts of ten rows: two turns each, of which the second has two rows and six places to fill.
        let stack = Stack::gated(&gate, &up, 2);
        assert_eq!((stack.n_results(), stack.n_stored()), (10, 32));
        let row = |place: usize| stack.source(place).map(|(weight, row)| (weight.name() == "up", row));
        assert_eq!(
            [0, 7, 8, 15, 16, 17].map(row),
            [(false, 0), (false, 7), (true, 0), (true, 7), (false, 8), (false, 9)].map(Some)
        );
        assert_eq!([18, 23, 24, 25, 26].map(row), [None, None, Some((true, 8)), Some((true, 9)), None]);
        assert_eq!([32, 40].map(row), [Some((false, 10)), Some((true, 10))]);
    }

    #[test]
    fn weights_lie_one_after_the_other() {
        let weights = [2, 3].map(|rows| Weight::from_f32(&rows.to_string(), rows, 1, &vec![0.0; rows]).unwrap());
        let stack = Stack::rows(weights.iter().collect());
        assert_eq!((stack.n_results(), stack.n_stored()), (5, 5));
        let row = |place: usize| stack.source(place).map(|(weight, row)| (weight.rows(), row));
        assert_eq!([0, 1, 2, 4].map(row), [(2, 0), (2, 1), (3, 0), (3, 2)].map(Some));
        assert_eq!(row(5), None);
    }
}
