//! A graph made ready for the processor: stages, places for values, inputs of products, the cache, the threads.
//!
//! A step runs all stages on all workers, with barriers in between; it allocates nothing. See `stage` for what there
//! is to run and `lower` for how ops become stages.

mod activations;
mod arena;
mod attend;
mod compile;
mod head;
mod linear;
mod lower;
mod moe;
mod routes;
mod rows;
mod stage;
mod step;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_utils::CachePadded;

use super::attention::{self, Query};
use super::isa::Isa;
use super::kv::KvCache;
use super::linear::{Input, Scratch};
use super::memory::Block;
use super::pool::{Team, Worker};
use crate::backend::{Batch, DeviceError, Interrupt, KvStore, MemoryUse, Output, Plan};
use crate::graph::{KvLayer, Rope};
use arena::Arena;
use linear::InputNumbers;
use moe::{MoeInputs, MoeRoom};
use stage::Stage;
use step::{Bounds, Step};

#[cfg(feature = "cuda")]
pub(crate) use activations::are_fine;
pub(super) use compile::compile;

/// How far the claims of a stage's loops have come.
type Counters = [CachePadded<AtomicUsize>; 6];

/// A stage with what it needs.
struct Compiled {
    stage: Stage,
    inputs: StageInputs,
    counters: Counters,
}

/// Numbers of the inputs that a stage's products read.
enum StageInputs {
    None,
    Products(InputNumbers),
    Experts(MoeInputs),
}

/// What one worker works in.
struct Local {
    scratch: Scratch,
    /// As `Core::inputs`, for few rows.
    inputs: Vec<Input>,
    /// Results of a chunk, in two halves.
    results: Vec<f32>,
    /// A row of the largest width.
    row: Vec<f32>,
    queries: Queries,
    attention: attention::Scratch,
    /// Running softmax of the queries of a span.
    partials: Vec<f32>,
    reductions: Vec<head::Reduction>,
}

/// Queries of a chunk: addresses into the arena, good for that chunk only.
struct Queries(Vec<Query>);

// SAFETY: addresses; they are made anew for every chunk by the worker that reads them.
unsafe impl Send for Queries {}

/// Everything that workers share during a step.
struct Core {
    isa: Isa,
    n_vocab: usize,
    /// Elements of a row as the head reads it.
    width: usize,
    stages: Vec<Compiled>,
    ropes: Vec<Arc<Rope>>,
    /// Where the angles of each rotation begin.
    angle_offsets: Vec<usize>,
    angles: Block<f32>,
    arena: Arena,
    inputs: Vec<Input>,
    kv: KvCache,
    kv_layers: Vec<KvLayer>,
    /// Parts of attention along the keys.
    partials: Block<f32>,
    moe_room: MoeRoom,
    step: Step,
    /// Where whole rows go, for the results that want them.
    rows_out: head::RowsOut,
    weights_mapped: u64,
    weights_packed: u64,
}

/// A compiled graph.
struct CpuPlan {
    core: Core,
    bounds: Bounds,
    team: Team,
    locals: Vec<Mutex<Local>>,
}

impl Core {
    /// Runs one stage on this worker.
    ///
    /// # Safety
    /// All workers of the step call this for the same stages in the same order, with a barrier after each, and each with
    /// the `Local` that is its own.
    unsafe fn stage(&self, compiled: &Compiled, worker: &Worker<'_>, local: &mut Local) {
        let counters = &compiled.counters;
        // SAFETY: the caller's promise.
        unsafe {
            match (&compiled.stage, &compiled.inputs) {
                (Stage::Rows(ops), _) => {
                    let rows = &self.step.rows;
                    let chunk = rows.len().div_ceil(4 * worker.n_workers());
                    worker.claim(&counters[0], rows.len().div_ceil(chunk), |number| {
                        for (index, row) in rows.iter().enumerate().skip(number * chunk).take(chunk) {
                            self.row_ops(ops, index, row);
                        }
                    });
                }
                (Stage::Linear(linear), StageInputs::Products(inputs)) => {
                    self.linear(linear, inputs, counters, worker, local);
                }
                (Stage::Attention(attention), _) => self.attend(attention, counters, worker, local),
                (Stage::Moe(moe), StageInputs::Experts(inputs)) => self.experts(moe, inputs, counters, worker, local),
                (Stage::Head(head), StageInputs::Products(inputs)) => self.head(head, inputs, counters, worker, local),
                _ => unreachable!("compiling gives every stage of products its inputs"),
            }
        }
    }

    /// Sets the claims of all stages back.
    fn rewind(&self) {
        for counter in self.stages.iter().flat_map(|compiled| &compiled.counters) {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

impl CpuPlan {
    /// Runs stages `from..to` of the prepared step; those that are left when an interrupt is seen are not run.
    fn run(&mut self, from: usize, to: usize, interrupt: Option<&Interrupt>) -> Result<(), DeviceError> {
        let (core, locals) = (&self.core, &self.locals);
        core.rewind();
        // The stage not to begin any more: the first worker says so before a barrier, and all see it behind that one.
        let end = AtomicUsize::new(to - from);
        let job = |worker: &Worker<'_>| {
            let mut local = locals[worker.index].lock().unwrap_or_else(PoisonError::into_inner);
            for (number, compiled) in core.stages[from..to].iter().enumerate() {
                if number > 0 {
                    if worker.index == 0 && interrupt.is_some_and(Interrupt::is_set) {
                        end.fetch_min(number, Ordering::Relaxed);
                    }
                    worker.barrier();
                }
                if number >= end.load(Ordering::Relaxed) {
                    return;
                }
                // SAFETY: every worker runs this same loop, with the memory of its own number.
                unsafe { core.stage(compiled, worker, &mut local) };
            }
        };
        self.team.run(&job).map_err(|message| DeviceError::Wrong(format!("a kernel failed: {message}")))?;
        if end.into_inner() < to - from { Err(DeviceError::Interrupted) } else { Ok(()) }
    }

    /// Runs the step again stage by stage to say where numbers stop being finite.
    fn find_bad_stage(&mut self) -> DeviceError {
        for number in 0..self.core.stages.len() {
            if let Err(error) = self.run(number, number + 1, None) {
                return error;
            }
            let core = &self.core;
            let stage = &core.stages[number].stage;
            let is_finite = stage.uses().1.into_iter().all(|value| {
                // SAFETY: no worker runs.
                (0..core.step.rows.len()).all(|row| unsafe { core.arena.row(value, row) }.iter().all(|x| x.is_finite()))
            });
            if !is_finite {
                return DeviceError::Wrong(format!("values are not finite after {}", stage.name()));
            }
        }
        DeviceError::Wrong("logits are not finite".to_owned())
    }
}

impl Plan for CpuPlan {
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        self.core.step.prepare(batch, &self.bounds, &mut self.core.kv)?;
        self.core.begin_results(out)?;
        if batch.rows.is_empty() {
            return Ok(());
        }
        self.run(0, self.core.stages.len(), batch.interrupt.as_ref())?;
        if !self.collect(out) {
            return Err(self.find_bad_stage());
        }
        for &(sequence, len) in &self.core.step.lens {
            self.core.kv.set_len(sequence, len);
        }
        Ok(())
    }

    fn kv(&mut self) -> &mut dyn KvStore {
        &mut self.core.kv
    }

    fn memory(&self) -> MemoryUse {
        let core = &self.core;
        let locals = self.locals.iter().map(|local| local.lock().unwrap_or_else(PoisonError::into_inner).bytes());
        MemoryUse {
            weights_mapped: core.weights_mapped,
            weights_packed: core.weights_packed,
            weights_copied: 0,
            kv: core.kv.bytes(),
            scratch: core.arena.bytes()
                + core.inputs.iter().map(Input::bytes).sum::<u64>()
                + core.partials.bytes()
                + core.moe_room.bytes()
                + core.angles.bytes()
                + locals.sum::<u64>(),
        }
    }
}

impl Local {
    fn bytes(&self) -> u64 {
        let floats = self.results.len() + self.row.len() + self.partials.len();
        let inputs: u64 = self.inputs.iter().map(Input::bytes).sum();
        self.scratch.bytes() + inputs + (floats * size_of::<f32>()) as u64 + self.attention.bytes()
    }
}
