//! Mixture-of-experts stages: rows are routed, sorted by expert, and all chunks of all experts share one queue.

use std::ops::Range;

use super::linear::{InputNumbers, SIDE_BY_SIDE, chunk_rows, input_for, view_rows};
use super::stage::{Moe, Source};
use super::{Core, Counters, Local};
use crate::backend::DeviceError;
use crate::cpu::isa::Isa;
use crate::cpu::linear::{Input, OutRows, multiply};
use crate::cpu::memory::{Block, room};
use crate::cpu::pool::Worker;
use crate::tensor::Weight;

/// Room for the expert layers of a plan, used by one after the other.
pub(super) struct MoeRoom {
    /// Router logits, `[row][expert]`.
    logits: Block<f32>,
    /// `activation(gate) * up`, `[slot][ff]`.
    hidden: Block<f32>,
    /// Results of experts, `[slot][width]`.
    results: Block<f32>,
    /// Routing of the rows, written by worker 0 between barriers.
    routes: std::sync::RwLock<Routes>,
}

/// Which rows go where. A slot is a row at one of its experts; slots of one expert lie together.
#[derive(Default)]
struct Routes {
    /// Expert and weight of each row's choices, `[row][choice]`.
    chosen: Vec<(usize, f32)>,
    /// Slot of each choice.
    slot_of: Vec<usize>,
    /// Row of each slot.
    row_of: Vec<usize>,
    /// Slots of each expert.
    slots: Vec<Range<usize>>,
    /// For choosing.
    order: Vec<(f32, usize)>,
}

impl MoeRoom {
    /// Floats that `max_rows` rows need: logits, hidden values, results.
    fn lens<'m>(experts: impl Iterator<Item = &'m crate::graph::Moe>, max_rows: usize) -> [usize; 3] {
        experts.fold([0; 3], |[logits, hidden, results], moe| {
            let n_slots = max_rows * moe.n_used;
            let width = moe.router.cols();
            [logits.max(max_rows * moe.n_experts()), hidden.max(n_slots * moe.ff()), results.max(n_slots * width)]
        })
    }

    /// Bytes of [`MoeRoom::try_new`].
    pub(super) fn bytes_for<'m>(experts: impl Iterator<Item = &'m crate::graph::Moe>, max_rows: usize) -> u64 {
        Self::lens(experts, max_rows).into_iter().map(Block::<f32>::bytes_for).sum()
    }

    pub(super) fn try_new<'m>(
        experts: impl Iterator<Item = &'m crate::graph::Moe> + Clone,
        max_rows: usize,
    ) -> Result<Self, DeviceError> {
        let [logits, hidden, results] = Self::lens(experts.clone(), max_rows);
        let n_slots = experts.clone().map(|moe| max_rows * moe.n_used).max().unwrap_or(0);
        let n_experts = experts.map(crate::graph::Moe::n_experts).max().unwrap_or(0);
        Ok(Self {
            logits: Block::try_new(logits)?,
            hidden: Block::try_new(hidden)?,
            results: Block::try_new(results)?,
            routes: std::sync::RwLock::new(Routes {
                chosen: room(n_slots)?,
                slot_of: room(n_slots)?,
                row_of: room(n_slots)?,
                slots: room(n_experts)?,
                order: room(n_experts)?,
            }),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.logits.bytes() + self.hidden.bytes() + self.results.bytes()
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

impl Routes {
    /// Routes `n_rows` rows of router logits and gives each choice a slot.
    fn route(&mut self, moe: &crate::graph::Moe, logits: &[f32], n_rows: usize) {
        let n_experts = moe.n_experts();
        self.chosen.clear();
        for logits in logits.chunks_exact(n_experts).take(n_rows) {
            choose(moe, logits, &mut self.order, &mut self.chosen);
        }
        self.slots.clear();
        self.slot_of.clear();
        self.slot_of.resize(self.chosen.len(), 0);
        self.row_of.clear();
        for expert in 0..n_experts {
            let start = self.row_of.len();
            for (choice, _) in self.chosen.iter().enumerate().filter(|(_, chosen)| chosen.0 == expert) {
                self.slot_of[choice] = self.row_of.len();
                self.row_of.push(choice / moe.n_used);
            }
            self.slots.push(start..self.row_of.len());
        }
    }
}

/// The `n_used` best experts of a row with their weights: softmax over all, renormalised where the family wants it.
/// Ties go to the lowest number; a logit that is not a number makes all weights so.
fn choose(moe: &crate::graph::Moe, logits: &[f32], order: &mut Vec<(f32, usize)>, chosen: &mut Vec<(usize, f32)>) {
    order.clear();
    order.extend(logits.iter().copied().zip(0..));
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let max = order.first().map_or(0.0, |best| best.0);
    let weigh = |logit: f32| f64::from(logit - max).exp();
    let best = &order[..moe.n_used];
    let over = if moe.renormalise { best } else { &order[..] };
    let sum: f64 = over.iter().map(|(logit, _)| weigh(*logit)).sum();
    chosen.extend(best.iter().map(|(logit, expert)| (*expert, (weigh(*logit) / sum) as f32)));
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
        let n_experts = moe.n_experts();
        let room = &self.moe_room;
        let source = Source { x: stage.x, norm: None };
        worker.claim(&counters[0], n_rows, |row| {
            let own = std::mem::take(&mut local.inputs);
            let targets = inputs.router.iter().flatten().map(|&number| &own[number]);
            targets.clone().for_each(|input| input.begin(1));
            // SAFETY: a row is claimed once and was written before the last barrier; the inputs are this worker's.
            unsafe {
                self.fill(&source, row, 0, targets, local);
                let out = OutRows::new(room.logits.at(row * n_experts), n_experts, 1, n_experts);
                let input = input_for(&own, &inputs.router, &moe.router);
                multiply(self.isa, &moe.router.view(), 0..n_experts, input, 0..1, &mut local.scratch, out);
            }
            local.inputs = own;
        });
        worker.barrier();
        if worker.index == 0 {
            worker.guarded(|| {
                // SAFETY: written before the barrier.
                let logits = unsafe { std::slice::from_raw_parts(room.logits.at(0), n_rows * n_experts) };
                if let Ok(mut routes) = room.routes.write() {
                    routes.route(moe, logits, n_rows);
                }
                for number in inputs.up.iter().chain(&inputs.down).flatten() {
                    self.inputs[*number].begin(n_rows * moe.n_used);
                }
            });
        }
        worker.barrier();
        let Ok(routes) = room.routes.read() else { return };
        let n_slots = routes.row_of.len();
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
        let ff = moe.ff();
        let queue = Queue::new(self.isa, &routes, ff, moe.gate.row_bytes() + moe.up.row_bytes(), n_slots, worker);
        worker.claim(&counters[2], queue.n_chunks(), |number| {
            let (expert, slots, rows) = queue.chunk(number);
            // SAFETY: a chunk is claimed once; the inputs were filled before the barrier.
            unsafe { self.expert_hidden(stage, inputs, expert, slots, rows, local) };
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
        let queue = Queue::new(self.isa, &routes, width, moe.down.row_bytes(), n_slots, worker);
        worker.claim(&counters[4], queue.n_chunks(), |number| {
            let (expert, slots, rows) = queue.chunk(number);
            // SAFETY: a chunk is claimed once; the inputs were filled before the barrier.
            unsafe {
                let out = OutRows::new(room.results.at(rows.start), width, slots.end, rows.len());
                self.expert_product(&moe.down, &inputs.down, expert * width, &rows, slots, local, out);
            }
        });
        worker.barrier();
        worker.claim(&counters[5], n_rows, |row| {
            // SAFETY: a row is claimed once; results were written before the barrier.
            unsafe {
                let out = self.arena.row_mut(stage.out, row);
                out.fill(0.0);
                for choice in row * moe.n_used..(row + 1) * moe.n_used {
                    let (weight, slot) = (routes.chosen[choice].1, routes.slot_of[choice]);
                    let result = std::slice::from_raw_parts(room.results.at(slot * width), width);
                    for (out, result) in out.iter_mut().zip(result) {
                        *out += weight * result;
                    }
                }
            }
        });
    }

    /// Gated hidden values `rows` of one expert for its slots.
    unsafe fn expert_hidden(
        &self,
        stage: &Moe,
        inputs: &MoeInputs,
        expert: usize,
        slots: Range<usize>,
        rows: Range<usize>,
        local: &mut Local,
    ) {
        let (moe, ff, count) = (&*stage.moe, stage.moe.ff(), rows.len());
        let half = local.results.len() / 2;
        let (gate_at, up_at) = (local.results.as_mut_ptr(), local.results[half..].as_mut_ptr());
        let room = half / count;
        for first in slots.clone().step_by(room) {
            let part = first..slots.end.min(first + room);
            for (weight, to) in [(&moe.gate, gate_at), (&moe.up, up_at)] {
                // Results of slot `first` go to the start.
                let start = to.wrapping_sub(first * count);
                // SAFETY: half of the worker's memory holds the results of `room` rows; only those of `part` are written.
                unsafe {
                    let out = OutRows::new(start, count, part.end, count);
                    self.expert_product(weight, &inputs.up, expert * ff, &rows, part.clone(), local, out);
                }
            }
            for slot in part {
                let at = (slot - first) * count;
                // SAFETY: written just now; these columns of the slot's hidden values are ours.
                unsafe {
                    let gate = std::slice::from_raw_parts(gate_at.add(at), count);
                    let up = std::slice::from_raw_parts(up_at.add(at), count);
                    let out = std::slice::from_raw_parts_mut(self.moe_room.hidden.at(slot * ff + rows.start), count);
                    self.unit(moe.activation, gate, up, out);
                }
            }
        }
    }

    /// Rows `rows` of an expert whose matrix begins at `base`, for some slots.
    unsafe fn expert_product(
        &self,
        weight: &Weight,
        numbers: &InputNumbers,
        base: usize,
        rows: &Range<usize>,
        slots: Range<usize>,
        local: &mut Local,
        out: OutRows,
    ) {
        let view = view_rows(weight, base + rows.start..base + rows.end);
        let input = input_for(&self.inputs, numbers, weight);
        // SAFETY: the caller's promises.
        unsafe { multiply(self.isa, &view, 0..rows.len(), input, slots, &mut local.scratch, out) };
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

/// The chunks of all experts that have rows.
struct Queue<'r> {
    routes: &'r Routes,
    n_rows: usize,
    chunk: usize,
    per_expert: usize,
    n_busy: usize,
}

impl<'r> Queue<'r> {
    fn new(isa: Isa, routes: &'r Routes, n_rows: usize, row_bytes: usize, n_slots: usize, worker: &Worker<'_>) -> Self {
        let n_busy = routes.slots.iter().filter(|slots| !slots.is_empty()).count();
        let mean_rows = n_slots.div_ceil(n_busy.max(1));
        // A fair share of all experts' rows, not of one's.
        let share = chunk_rows(isa, n_rows * n_busy.max(1), row_bytes, mean_rows, worker.n_workers());
        let chunk = share.min(chunk_rows(isa, n_rows, row_bytes, mean_rows, 1).max(SIDE_BY_SIDE));
        let chunk = chunk.next_multiple_of(SIDE_BY_SIDE).min(n_rows).max(1);
        Self { routes, n_rows, chunk, per_expert: n_rows.div_ceil(chunk), n_busy }
    }

    fn n_chunks(&self) -> usize {
        self.n_busy * self.per_expert
    }

    /// Expert, slots and weight rows of a chunk.
    fn chunk(&self, number: usize) -> (usize, Range<usize>, Range<usize>) {
        let mut busy = self.routes.slots.iter().enumerate().filter(|(_, slots)| !slots.is_empty());
        let (expert, slots) = busy.nth(number / self.per_expert).expect("chunks are of experts that have rows");
        let start = number % self.per_expert * self.chunk;
        (expert, slots.clone(), start..self.n_rows.min(start + self.chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Activation;

    fn moe(n_used: usize, renormalise: bool) -> crate::graph::Moe {
        let weight = |rows| Weight::from_f32("w", rows, 1, &vec![0.0; rows]).unwrap();
        crate::graph::Moe {
            router: weight(4),
            gate: weight(8),
            up: weight(8),
            down: weight(4),
            n_used,
            renormalise,
            activation: Activation::Silu,
        }
    }

    #[test]
    fn the_best_experts_are_chosen_and_weighed() {
        let (ln2, mut order, mut chosen) = (2.0_f32.ln(), Vec::new(), Vec::new());
        choose(&moe(2, true), &[0.0, 2.0 * ln2, ln2, 0.0], &mut order, &mut chosen);
        choose(&moe(2, false), &[0.0, 2.0 * ln2, 0.0, ln2], &mut order, &mut chosen);
        choose(&moe(1, true), &[1.0; 4], &mut order, &mut chosen);
        let expected = [(1, 2.0 / 3.0), (2, 1.0 / 3.0), (1, 0.5), (3, 0.25), (0, 1.0)];
        assert_eq!(chosen.len(), expected.len());
        for (chosen, expected) in chosen.iter().zip(expected) {
            assert!(chosen.0 == expected.0 && (chosen.1 - expected.1).abs() < 1e-6, "{chosen:?} {expected:?}");
        }
    }

    #[test]
    fn slots_of_an_expert_lie_together() {
        let mut routes = Routes::default();
        let logits = [0.0, 3.0, 2.0, 0.0, 3.0, 0.0, 2.0, 0.0];
        routes.route(&moe(2, true), &logits, 2);
        assert_eq!(routes.slots, [0..1, 1..2, 2..4, 4..4]);
        assert_eq!(routes.row_of, [1, 0, 0, 1]);
        assert_eq!(routes.slot_of, [1, 2, 0, 3]);
    }
}
