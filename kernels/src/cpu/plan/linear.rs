//! Stages of products: the input quantized once, weight rows shared out in chunks, results finished on the way out.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use super::stage::{After, Linear, Part, Source};
use super::{Core, Counters, Local};
use crate::cpu::isa::Isa;
use crate::cpu::linear::{Input, InputKind, OutRows, input_kind, multiply, panel_rows};
use crate::cpu::pointwise;
use crate::cpu::pool::Worker;
use crate::graph::Activation;
use crate::order;
use crate::tensor::{Weight, WeightView};

/// Up to so many rows every worker prepares the input for itself, which is cheaper than a barrier.
pub(super) const OWN_INPUT_ROWS: usize = 4;
/// Weight bytes of a claim where few rows are multiplied: enough to pay for a new place in memory, few enough to share
/// out evenly.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// Weight rows of a chunk, at most, with few input rows, and panels with many.
const FLAT_CHUNK_ROWS: usize = 256;
const TALL_CHUNK_PANELS: usize = 4;
/// Input rows from which on whole panels pay.
pub(super) const TALL_ROWS: usize = 17;
/// Chunks per worker that even out differences in speed.
pub(super) const CHUNKS_PER_WORKER: usize = 4;
/// Weight rows that few input rows are multiplied with side by side: claims are multiples of it.
pub(super) const SIDE_BY_SIDE: usize = order::SIXTEEN;

/// Results of a chunk before they are finished, at most: floats per worker for `max_rows` input rows.
pub(super) fn results_len(isa: Isa, max_rows: usize) -> usize {
    (max_rows * TALL_CHUNK_PANELS * panel_rows(isa)).max((TALL_ROWS - 1) * FLAT_CHUNK_ROWS)
}

/// Weight rows whose results with so few input rows have room.
pub(super) fn flat_rows(n_input_rows: usize) -> usize {
    (TALL_ROWS - 1) * FLAT_CHUNK_ROWS / n_input_rows.max(1)
}

/// Weight rows of a chunk for rows of `row_bytes`.
pub(super) fn chunk_rows(isa: Isa, n_rows: usize, row_bytes: usize, n_input_rows: usize, n_workers: usize) -> usize {
    let fair = n_rows.div_ceil(CHUNKS_PER_WORKER * n_workers).max(1);
    if n_input_rows >= TALL_ROWS {
        return fair.next_multiple_of(panel_rows(isa)).min(TALL_CHUNK_PANELS * panel_rows(isa));
    }
    let rows = (CHUNK_BYTES / row_bytes.max(1)).clamp(1, FLAT_CHUNK_ROWS).min(fair);
    if n_input_rows > 1 { rows.next_multiple_of(SIDE_BY_SIDE) } else { rows }
}

/// Shares the rows of weights out, one weight after the other, each given by its rows and the bytes of a row.
///
/// Calls `work` with the number of a weight and some of its rows, for which there is room for results. Few input rows
/// are waiting for memory: workers take long runs of rows, which memory gives faster than small pieces here and there.
pub(super) fn share_out(
    isa: Isa,
    worker: &Worker<'_>,
    next: &AtomicUsize,
    weights: &(impl Iterator<Item = (usize, usize)> + Clone),
    n_input_rows: usize,
    mut work: impl FnMut(usize, Range<usize>),
) {
    let is_tall = n_input_rows >= TALL_ROWS;
    let unit = |(n_rows, row_bytes): (usize, usize)| {
        if is_tall { chunk_rows(isa, n_rows, row_bytes, n_input_rows, worker.n_workers()) } else { SIDE_BY_SIDE }
    };
    let n_units = |weight: (usize, usize)| weight.0.div_ceil(unit(weight));
    let total: usize = weights.clone().map(n_units).sum();
    let bytes: usize = weights.clone().map(|(n_rows, row_bytes)| n_rows * row_bytes).sum();
    let fair = (total / (CHUNKS_PER_WORKER * worker.n_workers())).max(1);
    let least = (CHUNK_BYTES * total / bytes.max(1)).clamp(1, fair);
    let most_rows = if is_tall { TALL_CHUNK_PANELS * panel_rows(isa) } else { flat_rows(n_input_rows) };
    let mut in_run = |units: Range<usize>| {
        let mut first = 0;
        for (number, weight) in weights.clone().enumerate() {
            let (unit, here) = (unit(weight), n_units(weight));
            let (from, to) = (units.start.max(first), units.end.min(first + here));
            if from < to {
                let (start, end) = ((from - first) * unit, weight.0.min((to - first) * unit));
                let step = (most_rows / unit).max(1) * unit;
                for row in (start..end).step_by(step) {
                    work(number, row..end.min(row + step));
                }
            }
            first += here;
        }
    };
    if is_tall {
        worker.claim(next, total, |unit| in_run(unit..unit + 1));
    } else {
        worker.claim_runs(next, total, least, in_run);
    }
}

/// Rows `rows` of a weight, as a weight of their own.
pub(super) fn view_rows(weight: &Weight, rows: Range<usize>) -> WeightView<'_> {
    let row_bytes = weight.row_bytes();
    let whole = weight.view();
    assert!(whole.order.is_cut_at(rows.start, rows.end, whole.rows), "rows side by side stay together");
    WeightView { rows: rows.len(), bytes: &whole.bytes[rows.start * row_bytes..rows.end * row_bytes], ..whole }
}

/// The inputs of a stage by [`InputKind`]: one for each kind that its weights read.
pub(super) type InputNumbers = [Option<usize>; 3];

/// The input among `numbers` that products with `weight` read: finely rounded where there is such a one.
pub(super) fn input_for<'i>(inputs: &'i [Input], numbers: &InputNumbers, weight: &Weight) -> &'i Input {
    let of = |kind: InputKind| numbers[kind as usize];
    let number = match input_kind(weight.dtype()) {
        InputKind::F32 => of(InputKind::F32),
        rounded => of(InputKind::Q16x32).or(of(rounded)),
    };
    &inputs[number.expect("compiling gave the stage an input for each of its weights")]
}

impl Core {
    /// Runs a stage of products; returns with a barrier left to do.
    ///
    /// # Safety
    /// Called by all workers of the step at the same point, each with the `Local` that is its own.
    pub(super) unsafe fn linear(
        &self,
        stage: &Linear,
        numbers: &InputNumbers,
        counters: &Counters,
        worker: &Worker<'_>,
        local: &mut Local,
    ) {
        let n_rows = self.step.rows.len();
        // SAFETY: the caller's promise; every row is in the step.
        let is_own = unsafe { self.prepare_input(&stage.source, numbers, n_rows, |row| row, counters, worker, local) };
        let weights = stage.parts.iter().map(|part| {
            let row_bytes = part.weights().map(Weight::row_bytes).sum();
            (part.weight.rows(), row_bytes)
        });
        share_out(self.isa, worker, &counters[1], &weights, n_rows, |number, rows| {
            // SAFETY: rows are claimed once, so these results are ours.
            unsafe { self.part(&stage.parts[number], rows, numbers, n_rows, is_own, local) };
        });
    }

    /// Brings `n_rows` rows, the `n`-th being `row_of(n)` of the step, into the inputs: the worker's own where they are
    /// few (true), the shared ones behind a barrier otherwise.
    ///
    /// # Safety
    /// As [`Core::linear`].
    pub(super) unsafe fn prepare_input(
        &self,
        source: &Source,
        numbers: &InputNumbers,
        n_rows: usize,
        row_of: impl Fn(usize) -> usize,
        counters: &Counters,
        worker: &Worker<'_>,
        local: &mut Local,
    ) -> bool {
        let is_own = n_rows <= OWN_INPUT_ROWS;
        if is_own {
            worker.guarded(|| {
                let inputs = std::mem::take(&mut local.inputs);
                for row in 0..n_rows {
                    let targets = numbers.iter().flatten().map(|&number| &inputs[number]);
                    targets.clone().for_each(|input| input.begin(n_rows));
                    // SAFETY: the inputs are this worker's; the row was written before the last barrier.
                    unsafe { self.fill(source, row_of(row), row, targets, local) };
                }
                local.inputs = inputs;
            });
            return true;
        }
        let targets = || numbers.iter().flatten().map(|&number| &self.inputs[number]);
        targets().for_each(|input| input.begin(n_rows));
        let unit = targets().map(Input::unit).max().unwrap_or(1);
        let chunk = n_rows.div_ceil(CHUNKS_PER_WORKER * worker.n_workers()).next_multiple_of(unit);
        worker.claim(&counters[0], n_rows.div_ceil(chunk), |number| {
            let rows = number * chunk..n_rows.min((number + 1) * chunk);
            for row in rows.clone() {
                // SAFETY: a chunk is claimed once; the row was written before the last barrier.
                unsafe { self.fill(source, row_of(row), row, targets(), local) };
            }
            for input in targets() {
                // SAFETY: the rows of the chunk are filled and ours.
                unsafe { input.settle(rows.clone()) };
            }
        });
        worker.barrier();
        false
    }

    /// Products of some rows of a part with all rows of the step.
    ///
    /// # Safety
    /// The inputs are filled and these rows of the results are ours.
    unsafe fn part(
        &self,
        part: &Part,
        rows: Range<usize>,
        numbers: &InputNumbers,
        n_rows: usize,
        is_own: bool,
        local: &mut Local,
    ) {
        let Local { inputs, scratch, results, .. } = local;
        let inputs = if is_own { &*inputs } else { &self.inputs };
        let (width, count) = (self.arena.width(part.out), rows.len());
        let mut product = |weight: &Weight, out: OutRows| {
            let input = input_for(inputs, numbers, weight);
            // SAFETY: a weight is whole rows of whole blocks; nobody fills the input before the next barrier; the
            // caller's promise for the results.
            unsafe { multiply(self.isa, &view_rows(weight, rows.clone()), 0..count, input, 0..n_rows, scratch, out) };
        };
        if matches!(part.after, After::Nothing) && part.bias.is_none() {
            // SAFETY: these columns of the value are ours.
            product(&part.weight, unsafe {
                OutRows::new(self.arena.at(part.out, 0).wrapping_add(rows.start), width, n_rows, count)
            });
            return;
        }
        let half = results.len() / 2;
        let (first, second) = results.split_at_mut(half);
        let mut run = |weight: &Weight, to: &mut [f32]| {
            let to = &mut to[..n_rows * count];
            // SAFETY: `to` has room for all results.
            product(weight, unsafe { OutRows::new(to.as_mut_ptr(), count, n_rows, count) });
        };
        run(&part.weight, first);
        if let After::Glu { up, .. } = &part.after {
            run(up, second);
        }
        for row in 0..n_rows {
            let result = &mut first[row * count..][..count];
            add_bias(result, part.bias.as_deref(), rows.clone());
            let place = self.arena.at(part.out, row).wrapping_add(rows.start);
            // SAFETY: these columns of the value are ours.
            let out = unsafe { std::slice::from_raw_parts_mut(place, count) };
            match &part.after {
                After::Nothing => out.copy_from_slice(result),
                After::Add(other) => {
                    let other = self.arena.at(*other, row).wrapping_add(rows.start);
                    if other != place {
                        // SAFETY: the same columns of a value of the same width, which nobody writes in this stage.
                        out.copy_from_slice(unsafe { std::slice::from_raw_parts(other, count) });
                    }
                    // SAFETY: the instruction set is available.
                    unsafe { pointwise::add_in_place(self.isa, out, result) };
                }
                After::Glu { up_bias, activation, .. } => {
                    let up = &mut second[row * count..][..count];
                    add_bias(up, up_bias.as_deref(), rows.clone());
                    self.unit(*activation, result, up, out);
                }
            }
        }
    }

    /// `activation(gate) * up`.
    pub(super) fn unit(&self, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        // SAFETY: the instruction set is available.
        unsafe { pointwise::glu(self.isa, activation, gate, up, out) };
    }
}

/// Adds columns `columns` of a bias.
pub(super) fn add_bias(values: &mut [f32], bias: Option<&[f32]>, columns: Range<usize>) {
    if let Some(bias) = bias {
        for (value, bias) in values.iter_mut().zip(&bias[columns]) {
            *value += bias;
        }
    }
}
