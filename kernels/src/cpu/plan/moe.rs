//! Mixture-of-experts stages: rows are routed, sorted by expert, and all chunks of all experts share one queue.

use std::ops::Range;

use super::linear::{CHUNKS_PER_WORKER, InputNumbers, OWN_INPUT_ROWS, input_for, view_rows};
use super::routes::{Queue, Routes, choose};
use super::stage::{Moe, Source};
use super::{Core, Counters, Local};
use crate::backend::DeviceError;
use crate::cpu::linear::{Input, OutRows, multiply};
use crate::cpu::memory::Block;
use crate::cpu::pool::Worker;

/// Experts of a claim where few rows are routed, so that all workers read the router.
const ROUTER_CHUNK: usize = 16;

/// Room for the expert layers of a plan, used by one after the other.
pub(super) struct MoeRoom {
    /// Router logits, `[row][expert]`.
    logits: Block<f32>,
    /// Experts that rows chose, and what weight they have, `[row][choice]`.
    chosen: Block<u32>,
    weights: Block<f32>,
    /// `activation(gate) * up`, `[slot][ff]`.
    hidden: Block<f32>,
    /// Results of experts, `[slot][width]`.
    results: Block<f32>,
    /// Where the choices go, written by worker 0 between barriers.
    routes: std::sync::RwLock<Routes>,
}

impl MoeRoom {
    /// Numbers that `max_rows` rows need: logits, choices, hidden values, results.
    fn lens<'m>(experts: impl Iterator<Item = &'m crate::graph::Moe>, max_rows: usize) -> [usize; 4] {
        experts.fold([0; 4], |[logits, choices, hidden, results], moe| {
            let n_slots = max_rows * moe.n_used;
            let width = moe.router.cols();
            [
                logits.max(max_rows * moe.n_experts()),
                choices.max(n_slots),
                hidden.max(n_slots * moe.ff()),
                results.max(n_slots * width),
            ]
        })
    }

    /// Bytes of [`MoeRoom::try_new`].
    pub(super) fn bytes_for<'m>(experts: impl Iterator<Item = &'m crate::graph::Moe>, max_rows: usize) -> u64 {
        let [logits, choices, hidden, results] = Self::lens(experts, max_rows);
        [logits, choices, choices, hidden, results].into_iter().map(Block::<f32>::bytes_for).sum()
    }

    pub(super) fn try_new<'m>(
        experts: impl Iterator<Item = &'m crate::graph::Moe> + Clone,
        max_rows: usize,
    ) -> Result<Self, DeviceError> {
        let [logits, choices, hidden, results] = Self::lens(experts.clone(), max_rows);
        let n_experts = experts.map(crate::graph::Moe::n_experts).max().unwrap_or(0);
        Ok(Self {
            logits: Block::try_new(logits)?,
            chosen: Block::try_new(choices)?,
            weights: Block::try_new(choices)?,
            hidden: Block::try_new(hidden)?,
            results: Block::try_new(results)?,
            routes: std::sync::RwLock::new(Routes::try_new(choices, n_experts)?),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        let floats = [&self.logits, &self.weights, &self.hidden, &self.results];
        self.chosen.bytes() + floats.iter().map(|block| block.bytes()).sum::<u64>()
    }

    /// Chooses the experts of rows whose logits are there.
    ///
    /// # Safety
    /// The choices of these rows are ours to write.
    unsafe fn choose(&self, moe: &crate::graph::Moe, rows: Range<usize>) {
        let (n_experts, n_used) = (moe.n_experts(), moe.n_used);
        for row in rows {
            // SAFETY: so many numbers a row; the caller's promise.
            unsafe {
                let logits = std::slice::from_raw_parts(self.logits.at(row * n_experts), n_experts);
                let chosen = std::slice::from_raw_parts_mut(self.chosen.at(row * n_used), n_used);
                let weights = std::slice::from_raw_parts_mut(self.weights.at(row * n_used), n_used);
                choose(moe.renormalise, logits, chosen, weights);
            }
        }
    }
}

/// Inputs of the three kinds of product in a stage.
pub(super) struct MoeInputs {
    pub(super) router: InputNumbers,
    /// Rows by slot.
    pub(super) up: InputNumbers,
    /// Hidden values by slot.
    pub(super) down: InputNumbers,
}

impl Core {
    /// Runs an expert stage; returns with a barrier left to do.
    ///
    /// # Safety
    /// Called by all workers of the step at the same point, each with the `Local` that is its own.
    pub(super) unsafe fn experts(
        &self,
        stage: &Moe,
        inputs: &MoeInputs,
        counters: &Counters,
        worker: &Worker<'_>,
        local: &mut Local,
    ) {
        let (moe, n_rows) = (&*stage.moe, self.step.rows.len());
        let room = &self.moe_room;
        let source = Source { x: stage.x, norm: None };
        // The slots of a single row all read that row, which every worker prepares for itself.
        let is_one = n_rows == 1;
        // SAFETY: the caller's promise.
        unsafe {
            if is_one {
                worker.guarded(|| self.fill_own(&source, &inputs.up, 0..1, local));
            }
            self.route(stage, &inputs.router, counters, worker, local);
        }
        let begun = inputs.up.iter().filter(|_| !is_one).chain(&inputs.down).flatten();
        if worker.index == 0 {
            worker.guarded(|| begun.for_each(|&number| self.inputs[number].begin(n_rows * moe.n_used)));
        }
        worker.barrier();
        let Ok(routes) = room.routes.read() else { return };
        let n_slots = routes.row_of.len();
        if !is_one {
            let up = || inputs.up.iter().flatten().map(|&number| &self.inputs[number]);
            worker.claim(&counters[1], units(up(), n_slots), |number| {
                let slots = unit_slots(up(), n_slots, number);
                // SAFETY: a slot is claimed once; rows were written before the last barrier.
                unsafe {
                    for slot in slots.clone() {
                        self.fill(&source, routes.row_of[slot], slot, up(), local);
                    }
                    up().for_each(|input| input.settle(slots.clone()));
                }
            });
            worker.barrier();
        }
        let ff = moe.ff();
        let row_bytes = moe.gate.row_bytes() + moe.up.row_bytes();
        let queue = Queue::new(self.isa, &routes, ff, row_bytes, worker.n_workers());
        queue.serve(worker, &counters[2], |expert, slots, rows| {
            // SAFETY: a chunk is claimed once; the inputs were filled before the barrier, or by this worker.
            unsafe { self.expert_hidden(stage, &inputs.up, is_one, expert, slots, rows, local) };
        });
        worker.barrier();
        let down = || inputs.down.iter().flatten().map(|&number| &self.inputs[number]);
        worker.claim(&counters[3], units(down(), n_slots), |number| {
            let slots = unit_slots(down(), n_slots, number);
            // SAFETY: a slot is claimed once; hidden values were written before the barrier.
            unsafe {
                for slot in slots.clone() {
                    let hidden = std::slice::from_raw_parts(room.hidden.at(slot * ff), ff);
                    down().for_each(|input| input.fill_row(slot, hidden));
                }
                down().for_each(|input| input.settle(slots.clone()));
            }
        });
        worker.barrier();
        let width = moe.router.cols();
        let queue = Queue::new(self.isa, &routes, width, moe.down.row_bytes(), worker.n_workers());
        queue.serve(worker, &counters[4], |expert, slots, rows| {
            let view = view_rows(&moe.down, expert * width + rows.start..expert * width + rows.end);
            let input = input_for(&self.inputs, &inputs.down, &moe.down);
            // SAFETY: a chunk is claimed once; the inputs were filled before the barrier.
            unsafe {
                let out = OutRows::new(room.results.at(rows.start), width, slots.end, rows.len());
                multiply(self.isa, &view, 0..rows.len(), input, slots, &mut local.scratch, out);
            }
        });
        worker.barrier();
        worker.claim(&counters[5], n_rows, |row| {
            // SAFETY: a row is claimed once; results were written before the barrier.
            unsafe {
                let out = self.arena.row_mut(stage.out, row);
                out.fill(0.0);
                for choice in row * moe.n_used..(row + 1) * moe.n_used {
                    let (weight, slot) = (*room.weights.at(choice), routes.slot_of[choice]);
                    let result = std::slice::from_raw_parts(room.results.at(slot * width), width);
                    for (out, result) in out.iter_mut().zip(result) {
                        *out += weight * result;
                    }
                }
            }
        });
    }

    /// Chooses the experts of all rows and gives each choice a slot, which worker 0 does; a barrier is left to do.
    ///
    /// # Safety
    /// As [`Core::experts`].
    unsafe fn route(
        &self,
        stage: &Moe,
        numbers: &InputNumbers,
        counters: &Counters,
        worker: &Worker<'_>,
        local: &mut Local,
    ) {
        let (moe, room, n_rows) = (&*stage.moe, &self.moe_room, self.step.rows.len());
        let n_experts = moe.n_experts();
        let source = Source { x: stage.x, norm: None };
        // A worker takes some rows to all experts, or where there are few rows all of them to some experts.
        let n_blocks = n_rows.div_ceil(OWN_INPUT_ROWS);
        let is_shared = n_blocks < CHUNKS_PER_WORKER * worker.n_workers();
        let n_experts_at_once = if is_shared { ROUTER_CHUNK.min(n_experts) } else { n_experts };
        let n_parts = n_experts.div_ceil(n_experts_at_once);
        worker.claim(&counters[0], n_blocks * n_parts, |number| {
            let (block, part) = (number / n_parts, number % n_parts);
            let rows = block * OWN_INPUT_ROWS..n_rows.min((block + 1) * OWN_INPUT_ROWS);
            let experts = part * n_experts_at_once..n_experts.min((part + 1) * n_experts_at_once);
            // SAFETY: rows and experts are claimed once; rows were written before the last barrier.
            unsafe {
                self.fill_own(&source, numbers, rows.clone(), local);
                let out = OutRows::new(room.logits.at(rows.start * n_experts), n_experts, rows.len(), n_experts);
                let input = input_for(&local.inputs, numbers, &moe.router);
                multiply(self.isa, &moe.router.view(), experts, input, 0..rows.len(), &mut local.scratch, out);
                if !is_shared {
                    room.choose(moe, rows);
                }
            }
        });
        worker.barrier();
        if worker.index == 0 {
            worker.guarded(|| {
                // SAFETY: the others wait, or prepare inputs; all logits were written before the barrier.
                let chosen = unsafe {
                    if is_shared {
                        room.choose(moe, 0..n_rows);
                    }
                    std::slice::from_raw_parts(room.chosen.at(0), n_rows * moe.n_used)
                };
                if let Ok(mut routes) = room.routes.write() {
                    routes.sort(chosen, n_experts, moe.n_used);
                }
            });
        }
    }

    /// Brings at most [`OWN_INPUT_ROWS`] rows into the worker's own inputs.
    ///
    /// # Safety
    /// They were written before the last barrier.
    unsafe fn fill_own(&self, source: &Source, numbers: &InputNumbers, rows: Range<usize>, local: &mut Local) {
        let own = std::mem::take(&mut local.inputs);
        let targets = || numbers.iter().flatten().map(|&number| &own[number]);
        targets().for_each(|input| input.begin(rows.len()));
        for (target, row) in rows.enumerate() {
            // SAFETY: the caller's promise; the inputs are this worker's.
            unsafe { self.fill(source, row, target, targets(), local) };
        }
        local.inputs = own;
    }

    /// Gated hidden values `rows` of one expert for its slots, which read the worker's own row if it `is_one`.
    unsafe fn expert_hidden(
        &self,
        stage: &Moe,
        numbers: &InputNumbers,
        is_one: bool,
        expert: usize,
        slots: Range<usize>,
        rows: Range<usize>,
        local: &mut Local,
    ) {
        let (moe, ff, count) = (&*stage.moe, stage.moe.ff(), rows.len());
        let Local { inputs: own, scratch, results, .. } = local;
        let half = results.len() / 2;
        let (gate, up) = results.split_at_mut(half);
        let at_once = half / count;
        for first in slots.clone().step_by(at_once) {
            let part = first..slots.end.min(first + at_once);
            let (inputs, input_rows) = if is_one { (&**own, 0..1) } else { (&*self.inputs, part.clone()) };
            for (weight, to) in [(&moe.gate, &mut *gate), (&moe.up, &mut *up)] {
                let view = view_rows(weight, expert * ff + rows.start..expert * ff + rows.end);
                let input = input_for(inputs, numbers, weight);
                // Results of the first row go to the start.
                let start = to.as_mut_ptr().wrapping_sub(input_rows.start * count);
                // SAFETY: half of the worker's memory holds the results of so many rows; only those are written.
                unsafe {
                    let out = OutRows::new(start, count, input_rows.end, count);
                    multiply(self.isa, &view, 0..count, input, input_rows.clone(), scratch, out);
                }
            }
            for (index, slot) in part.enumerate() {
                let at = index * count..(index + 1) * count;
                let place = self.moe_room.hidden.at(slot * ff + rows.start);
                // SAFETY: these columns of the slot's hidden values are ours.
                let out = unsafe { std::slice::from_raw_parts_mut(place, count) };
                self.unit(moe.activation, &gate[at.clone()], &up[at], out);
            }
        }
    }
}

/// Slots that are filled together: as many as the inputs want.
fn unit<'i>(inputs: impl Iterator<Item = &'i Input>) -> usize {
    inputs.map(Input::unit).max().unwrap_or(1)
}

/// Number of units of slots, and the slots of one.
fn units<'i>(inputs: impl Iterator<Item = &'i Input>, n_slots: usize) -> usize {
    n_slots.div_ceil(unit(inputs))
}

fn unit_slots<'i>(inputs: impl Iterator<Item = &'i Input>, n_slots: usize, number: usize) -> Range<usize> {
    let unit = unit(inputs);
    number * unit..n_slots.min((number + 1) * unit)
}
