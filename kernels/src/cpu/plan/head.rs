//! The language-model head: logits of the wanted rows, reduced where they are made.
//!
//! Chunks of the vocabulary are shared out; each worker keeps the best logits and the log-sum-exp of its chunks, so
//! that a full row of logits is written only where somebody wants it. Rows that are wanted as they are, before the head,
//! cost no product where nothing else is wanted.

use std::sync::PoisonError;

use super::linear::{InputNumbers, add_bias, input_for, share_out, view_rows};
use super::stage::Head;
use super::{Core, Counters, CpuPlan, Local};
use crate::backend::{Answer, DeviceError, Output, Want, WantKind};
use crate::cpu::choose::Chooser;
use crate::cpu::linear::{OutRows, multiply};
use crate::cpu::memory::{room, zeros};
use crate::cpu::pointwise;
use crate::cpu::pool::Worker;

/// What one worker knows of one result.
pub(super) struct Reduction {
    chooser: Chooser,
    /// The logit asked for, once its chunk was seen.
    score: Option<f32>,
}

impl Default for Reduction {
    fn default() -> Self {
        Self { chooser: Chooser::new(1), score: None }
    }
}

impl Reduction {
    fn restart(&mut self, kind: WantKind) {
        let (k, wants_sum) = match kind {
            WantKind::Greedy => (1, false),
            WantKind::TopK(k) => (k, true),
            WantKind::Score(_) => (0, true),
            WantKind::Logits | WantKind::Hidden => (0, false),
        };
        self.chooser.begin(k, wants_sum);
        self.score = None;
    }
}

/// Rows that results want whole, of logits or of what the head reads: one place per result, null for others.
#[derive(Default)]
pub(super) struct RowsOut(Vec<*mut f32>);

// SAFETY: addresses of the vectors of a step's output, which the step has borrowed exclusively.
unsafe impl Send for RowsOut {}
// SAFETY: as above; workers write disjoint parts.
unsafe impl Sync for RowsOut {}

impl Core {
    /// Gives every result the form its want asks for; memory of the last step is used again.
    pub(super) fn begin_results(&mut self, out: &mut Output) -> Result<(), DeviceError> {
        let want = &self.step.want;
        out.results.truncate(want.len());
        out.results.resize(want.len(), Answer::Greedy(0));
        self.rows_out.0.clear();
        for (want, answer) in want.iter().zip(&mut out.results) {
            match (want.kind, &mut *answer) {
                (WantKind::Logits, Answer::Logits(logits)) => logits.resize(self.n_vocab, 0.0),
                (WantKind::Logits, _) => *answer = Answer::Logits(zeros(self.n_vocab)?),
                (WantKind::Hidden, Answer::Hidden(row)) => row.resize(self.width, 0.0),
                (WantKind::Hidden, _) => *answer = Answer::Hidden(zeros(self.width)?),
                (WantKind::TopK(_), Answer::TopK { .. }) => {}
                (WantKind::TopK(k), _) => *answer = Answer::TopK { best: room(k)?, log_sum_exp: 0.0 },
                (WantKind::Greedy, _) => *answer = Answer::Greedy(0),
                (WantKind::Score(_), _) => *answer = Answer::Score { logit: 0.0, log_sum_exp: 0.0 },
            }
            self.rows_out.0.push(match answer {
                Answer::Logits(row) | Answer::Hidden(row) => row.as_mut_ptr(),
                _ => std::ptr::null_mut(),
            });
        }
        Ok(())
    }

    /// Runs the head.
    ///
    /// # Safety
    /// Called by all workers of the step at the same point, each with the `Local` that is its own.
    pub(super) unsafe fn head(
        &self,
        stage: &Head,
        numbers: &InputNumbers,
        counters: &Counters,
        worker: &Worker<'_>,
        local: &mut Local,
    ) {
        let want = &self.step.want;
        if want.is_empty() {
            return;
        }
        let is_hidden = |want: &Want| want.kind == WantKind::Hidden;
        if want.iter().any(is_hidden) {
            // SAFETY: the caller's promise.
            unsafe { self.hidden_rows(stage, worker) };
        }
        local.reductions.resize_with(want.len().max(local.reductions.len()), Reduction::default);
        for (reduction, want) in local.reductions.iter_mut().zip(want) {
            reduction.restart(want.kind);
        }
        if want.iter().all(is_hidden) {
            return;
        }
        let row_of = |index: usize| want[index].row;
        // SAFETY: the caller's promise; wanted rows are rows of the step.
        let is_own = unsafe { self.prepare_input(&stage.source, numbers, want.len(), row_of, counters, worker, local) };
        let weight = std::iter::once((stage.weight.rows(), stage.weight.row_bytes()));
        share_out(self.isa, worker, &counters[1], &weight, want.len(), |_, ids| {
            let count = ids.len();
            let Local { inputs, scratch, results, reductions, .. } = &mut *local;
            let input = input_for(if is_own { inputs } else { &self.inputs }, numbers, &stage.weight);
            // SAFETY: the input is filled; the worker's memory holds all results of a chunk.
            unsafe {
                let out = OutRows::new(results.as_mut_ptr(), count, want.len(), count);
                let view = view_rows(&stage.weight, ids.clone());
                multiply(self.isa, &view, 0..count, input, 0..want.len(), scratch, out);
            }
            for (index, (want, reduction)) in want.iter().zip(reductions).enumerate() {
                let logits = &mut results[index * count..][..count];
                add_bias(logits, stage.bias.as_deref(), ids.clone());
                // SAFETY: the instruction set is available.
                unsafe {
                    match stage.softcap {
                        Some(cap) => pointwise::softcap_in_place(self.isa, logits, cap, stage.scale),
                        None if stage.scale != 1.0 => pointwise::scale_in_place(self.isa, logits, stage.scale),
                        None => {}
                    }
                }
                // SAFETY: the instruction set is available.
                unsafe { reduction.chooser.take(self.isa, ids.start as u32, logits) };
                match want.kind {
                    WantKind::Greedy | WantKind::TopK(_) | WantKind::Hidden => {}
                    WantKind::Score(token) => {
                        if ids.contains(&(token as usize)) {
                            reduction.score = Some(logits[token as usize - ids.start]);
                        }
                    }
                    WantKind::Logits => {
                        // SAFETY: a row of the whole vocabulary; these columns of it are ours.
                        unsafe {
                            let row = self.rows_out.0[index].add(ids.start);
                            std::ptr::copy_nonoverlapping(logits.as_ptr(), row, count);
                        }
                    }
                }
            }
        });
    }

    /// Writes the rows that are wanted as the head reads them, each by one worker.
    ///
    /// # Safety
    /// As [`Core::head`].
    unsafe fn hidden_rows(&self, stage: &Head, worker: &Worker<'_>) {
        let places = self.step.want.iter().zip(&self.rows_out.0).skip(worker.index).step_by(worker.n_workers());
        for (want, &place) in places.filter(|(want, _)| want.kind == WantKind::Hidden) {
            // SAFETY: a row of its own in the step's output, which nobody else writes; the value was written before the
            // last barrier, and the instruction set is available.
            unsafe {
                let (x, out) =
                    (self.arena.row(stage.source.x, want.row), std::slice::from_raw_parts_mut(place, self.width));
                match &stage.source.norm {
                    Some(norm) => pointwise::rms_norm(self.isa, x, &norm.weight, norm.eps, out),
                    None => out.copy_from_slice(x),
                }
            }
        }
    }
}

impl CpuPlan {
    /// Joins what the workers found; false if a logit, or a number of a row, is not finite.
    pub(super) fn collect(&mut self, out: &mut Output) -> bool {
        let mut is_good = true;
        for (index, answer) in out.results.iter_mut().enumerate() {
            let mut locals =
                self.locals.iter_mut().map(|local| local.get_mut().unwrap_or_else(PoisonError::into_inner));
            let Some(total) = locals.next().map(|local| &mut local.reductions[index]) else { return false };
            for other in locals.map(|local| &local.reductions[index]) {
                total.chooser.merge(&other.chooser);
                total.score = total.score.or(other.score);
            }
            is_good &= total.chooser.first_not_finite().is_none();
            match answer {
                Answer::Greedy(id) => *id = total.chooser.arg_max().unwrap_or(0),
                Answer::TopK { best, log_sum_exp } => {
                    total.chooser.best_into(best);
                    *log_sum_exp = total.chooser.log_sum_exp();
                }
                Answer::Score { logit, log_sum_exp } => {
                    *logit = total.score.unwrap_or(f32::NAN);
                    *log_sum_exp = total.chooser.log_sum_exp();
                }
                Answer::Hidden(row) => is_good &= row.iter().all(|number| number.is_finite()),
                Answer::Logits(_) => {}
            }
        }
        is_good
    }
}
