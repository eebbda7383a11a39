//! Which rows of a mixture go to which experts, and the queue of the experts' work.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use super::linear::{CHUNK_BYTES, CHUNKS_PER_WORKER, SIDE_BY_SIDE, TALL_ROWS, chunk_rows, flat_rows};
use crate::backend::DeviceError;
use crate::cpu::isa::Isa;
use crate::cpu::memory::room;
use crate::cpu::pool::Worker;

/// Where choices go. A slot is a row at one of its experts; slots of one expert lie together.
pub(super) struct Routes {
    /// Slot of each choice.
    pub(super) slot_of: Vec<usize>,
    /// Row of each slot.
    pub(super) row_of: Vec<usize>,
    /// Slots of each expert.
    slots: Vec<Range<usize>>,
    /// Experts that have slots.
    busy: Vec<usize>,
}

impl Routes {
    /// Room for so many choices and experts.
    pub(super) fn try_new(n_choices: usize, n_experts: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            slot_of: room(n_choices)?,
            row_of: room(n_choices)?,
            slots: room(n_experts)?,
            busy: room(n_experts)?,
        })
    }

    /// Gives each of the `chosen` experts, `n_used` a row, a slot.
    pub(super) fn sort(&mut self, chosen: &[u32], n_experts: usize, n_used: usize) {
        let Self { slot_of, row_of, slots, busy } = self;
        slots.clear();
        slots.resize(n_experts, 0..0);
        for expert in chosen {
            slots[*expert as usize].end += 1;
        }
        busy.clear();
        let mut next = 0;
        for (expert, slots) in slots.iter_mut().enumerate() {
            let count = slots.end;
            *slots = next..next;
            next += count;
            busy.extend((count > 0).then_some(expert));
        }
        slot_of.clear();
        row_of.clear();
        row_of.resize(chosen.len(), 0);
        for (choice, expert) in chosen.iter().enumerate() {
            let slots = &mut slots[*expert as usize];
            slot_of.push(slots.end);
            row_of[slots.end] = choice / n_used;
            slots.end += 1;
        }
    }
}

/// The best experts of a row, as many as there is room for, with their weights: softmax over all, renormalised where the
/// family wants it. Ties go to the lowest number; a logit that is not a number makes all weights so.
pub(super) fn choose(renormalise: bool, logits: &[f32], chosen: &mut [u32], weights: &mut [f32]) {
    let is_before =
        |(a, first): (f32, usize), (b, second): (f32, usize)| a.total_cmp(&b).then(second.cmp(&first)).is_gt();
    let mut last = None;
    for (chosen, weight) in chosen.iter_mut().zip(&mut *weights) {
        let rest = logits.iter().copied().zip(0..).filter(|&own| last.is_none_or(|last| is_before(last, own)));
        let best = rest.reduce(|best, own| if is_before(own, best) { own } else { best });
        let (logit, expert) = best.unwrap_or((f32::NAN, 0));
        (*chosen, *weight) = (expert as u32, logit);
        last = best;
    }
    let max = weights.first().copied().unwrap_or(0.0);
    let weigh = |logit: &f32| f64::from(logit - max).exp();
    let over = if renormalise { &*weights } else { logits };
    let sum: f64 = over.iter().map(weigh).sum();
    for weight in weights {
        *weight = (weigh(weight) / sum) as f32;
    }
}

/// The weight rows of all experts that have slots, as one queue.
pub(super) struct Queue<'r> {
    routes: &'r Routes,
    /// Weight rows of an expert, and of a unit of the queue.
    n_rows: usize,
    unit: usize,
    /// Units of a claim, at least.
    least: usize,
    is_tall: bool,
}

impl<'r> Queue<'r> {
    /// Experts of `n_rows` weight rows of `row_bytes`.
    pub(super) fn new(isa: Isa, routes: &'r Routes, n_rows: usize, row_bytes: usize, n_workers: usize) -> Self {
        let n_busy = routes.busy.len().max(1);
        let mean = routes.row_of.len().div_ceil(n_busy);
        let is_tall = mean >= TALL_ROWS;
        // A fair share of all experts' rows, not of one's.
        let unit = if is_tall { chunk_rows(isa, n_rows * n_busy, row_bytes, mean, n_workers) } else { SIDE_BY_SIDE };
        let total = routes.busy.len() * n_rows.div_ceil(unit);
        let fair = (total / (CHUNKS_PER_WORKER * n_workers)).max(1);
        let least = (CHUNK_BYTES / (unit * row_bytes).max(1)).clamp(1, fair);
        Self { routes, n_rows, unit, least, is_tall }
    }

    /// Calls `work` with an expert, its slots and some of its rows until all are done. Few rows are waiting for memory:
    /// workers take long runs of weight rows then (as in [`super::linear::share_out`]).
    pub(super) fn serve(
        &self,
        worker: &Worker<'_>,
        next: &AtomicUsize,
        mut work: impl FnMut(usize, Range<usize>, Range<usize>),
    ) {
        let Self { routes, n_rows, unit, .. } = *self;
        let per_expert = n_rows.div_ceil(unit);
        let mut in_run = |units: Range<usize>| {
            for number in units.start / per_expert..units.end.div_ceil(per_expert) {
                let (expert, first) = (routes.busy[number], number * per_expert);
                let slots = routes.slots[expert].clone();
                let (from, to) = (units.start.max(first) - first, (units.end - first).min(per_expert));
                let end = n_rows.min(to * unit);
                let step = if self.is_tall { unit } else { (flat_rows(slots.len()) / unit).max(1) * unit };
                for row in (from * unit..end).step_by(step) {
                    work(expert, slots.clone(), row..end.min(row + step));
                }
            }
        };
        let total = routes.busy.len() * per_expert;
        if self.is_tall {
            worker.claim(next, total, |unit| in_run(unit..unit + 1));
        } else {
            worker.claim_runs(next, total, self.least, in_run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::pool::Team;

    #[test]
    fn the_best_experts_are_chosen_and_weighed() {
        let ln2 = 2.0_f32.ln();
        let nan = f32::NAN;
        for (renormalise, logits, expected) in [
            (true, [0.0, 2.0 * ln2, ln2, 0.0], vec![(1, 2.0 / 3.0), (2, 1.0 / 3.0)]),
            (false, [0.0, 2.0 * ln2, 0.0, ln2], vec![(1, 0.5), (3, 0.25)]),
            (true, [1.0; 4], vec![(0, 1.0)]),
            (false, [1.0; 4], vec![(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]),
            (true, [0.0, nan, 1.0, 0.0], vec![(1, nan), (2, nan)]),
        ] {
            let (mut chosen, mut weights) = (vec![9; expected.len()], vec![9.0; expected.len()]);
            choose(renormalise, &logits, &mut chosen, &mut weights);
            for ((expert, weight), expected) in chosen.iter().zip(&weights).zip(&expected) {
                let is_near = (weight - expected.1).abs() < 1e-6 || (weight.is_nan() && expected.1.is_nan());
                assert!(*expert == expected.0 && is_near, "{logits:?}: {expert} {weight}, not {expected:?}");
            }
        }
    }

    #[test]
    fn slots_of_an_expert_lie_together() {
        let mut routes = Routes::try_new(4, 4).unwrap();
        routes.sort(&[1, 2, 0, 2], 4, 2);
        assert_eq!(routes.slots, [0..1, 1..2, 2..4, 4..4]);
        assert_eq!((&*routes.row_of, &*routes.slot_of), (&[1, 0, 0, 1][..], &[1, 2, 0, 3][..]));
        assert_eq!(routes.busy, [0, 1, 2]);
    }

    #[test]
    fn every_row_of_every_busy_expert_is_served_once_with_all_slots() {
        let mut routes = Routes::try_new(1024, 5).unwrap();
        let n_rows = 100;
        for (n_choices, n_workers) in [(1, 1), (3, 2), (40, 3), (200, 2), (1024, 2)] {
            let chosen: Vec<u32> = (0..n_choices).map(|choice| [0, 3, 3, 4][choice % 4]).collect();
            routes.sort(&chosen, 5, 1);
            let queue = Queue::new(Isa::Scalar, &routes, n_rows, 1000, n_workers);
            let served: Vec<AtomicUsize> = (0..5 * n_rows).map(|_| AtomicUsize::new(0)).collect();
            let next = AtomicUsize::new(0);
            let mut team = Team::new(n_workers).unwrap();
            team.run(&|worker| {
                queue.serve(worker, &next, |expert, slots, rows| {
                    assert_eq!(slots, routes.slots[expert]);
                    for row in rows {
                        served[expert * n_rows + row].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            })
            .unwrap();
            for (place, served) in served.into_iter().enumerate() {
                let expert = (place / n_rows) as u32;
                assert_eq!(served.into_inner(), usize::from(chosen.contains(&expert)), "expert {expert}");
            }
        }
    }
}
