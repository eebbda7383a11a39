//! A device that fails on cue: for tests, and for drills on a running system.
//!
//! It wraps another one, whose plans do the work, and keeps to the contract of [`Plan::step`] no better than a real device
//! that is dying: what a failed step leaves behind in the cache is not to be relied on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::backend::{
    Answer, Backend, Batch, DeviceError, DeviceInfo, KvStore, Limits, MemoryUse, Output, Placement, Plan, Row,
};
use crate::graph::Graph;

/// What happens in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// It fails before anything is done.
    Before(DeviceError),
    /// It fails when half of its rows are in the cache.
    Midway(DeviceError),
    /// It fails when all is done.
    After(DeviceError),
    /// It ends well, with results that no model computes: no numbers, tokens that there are not.
    Garbage,
    /// It panics.
    Panics,
    /// It does what it should, so much later.
    Slow(Duration),
}

impl Fault {
    /// One of each kind of failure, with each kind of error that is a device's fault.
    pub fn all() -> Vec<Self> {
        let text = || "on cue".to_owned();
        let memory = || DeviceError::OutOfMemory { what: "a step", needed_bytes: 1, free_bytes: None };
        let errors = [DeviceError::Lost(text()), DeviceError::Hung(text()), DeviceError::Wrong(text()), memory()];
        let places = [Self::Before, Self::Midway, Self::After];
        let failing = places.iter().flat_map(|place| errors.iter().cloned().map(place));
        failing.chain([Self::Garbage, Self::Panics]).collect()
    }
}

/// Says what happens in a step, by its number since the device was made and its batch.
pub type Cue = dyn Fn(usize, &Batch) -> Option<Fault> + Send + Sync;

/// A device that fails on cue. Clones are one device.
#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Backend>,
    cue: Arc<Cue>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    n_steps: AtomicUsize,
    n_faults: AtomicUsize,
    is_gone: AtomicBool,
}

impl Faulty {
    /// A device that works as `inner` does but where `cue` says otherwise.
    pub fn new(inner: Arc<dyn Backend>, cue: impl Fn(usize, &Batch) -> Option<Fault> + Send + Sync + 'static) -> Self {
        Self { inner, cue: Arc::new(cue), state: Arc::default() }
    }

    /// Pulls the device out, or puts it back: meanwhile nothing can be compiled, every step fails and so does the self-test.
    pub fn set_gone(&self, is_gone: bool) {
        self.state.is_gone.store(is_gone, Ordering::SeqCst);
    }

    /// How often it failed on cue.
    pub fn n_faults(&self) -> usize {
        self.state.n_faults.load(Ordering::SeqCst)
    }

    fn check(&self) -> Result<(), DeviceError> {
        match self.state.is_gone.load(Ordering::SeqCst) {
            true => Err(DeviceError::Lost("it is gone".to_owned())),
            false => Ok(()),
        }
    }
}

impl Backend for Faulty {
    fn describe(&self) -> DeviceInfo {
        let info = self.inner.describe();
        DeviceInfo { name: format!("{} (fails on cue)", info.name), ..info }
    }

    fn self_test(&self) -> Result<(), DeviceError> {
        self.check()?;
        self.inner.self_test()
    }

    fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError> {
        self.check()?;
        Ok(Box::new(FaultyPlan { device: self.clone(), plan: self.inner.compile(graph, limits)? }))
    }
}

struct FaultyPlan {
    device: Faulty,
    plan: Box<dyn Plan>,
}

impl Plan for FaultyPlan {
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        self.device.check()?;
        let number = self.device.state.n_steps.fetch_add(1, Ordering::SeqCst);
        let Some(fault) = (self.device.cue)(number, batch) else { return self.plan.step(batch, out) };
        self.device.state.n_faults.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::Before(error) => Err(error),
            Fault::Midway(error) => {
                let rows: Vec<Row> = batch.rows[..batch.rows.len() / 2].to_vec();
                if !rows.is_empty() {
                    self.plan.step(&Batch { rows, ..Batch::default() }, out)?;
                }
                Err(error)
            }
            Fault::After(error) => {
                self.plan.step(batch, out)?;
                Err(error)
            }
            Fault::Garbage => {
                self.plan.step(batch, out)?;
                out.results.iter_mut().for_each(spoil);
                Ok(())
            }
            Fault::Panics => panic!("on cue"),
            Fault::Slow(time) => {
                std::thread::sleep(time);
                self.plan.step(batch, out)
            }
        }
    }

    fn kv(&mut self) -> &mut dyn KvStore {
        self.plan.kv()
    }

    fn memory(&self) -> MemoryUse {
        self.plan.memory()
    }

    fn placement(&self) -> Option<Placement> {
        self.plan.placement()
    }

    fn n_dispatches(&self) -> Option<usize> {
        self.plan.n_dispatches()
    }
}

/// Makes an answer one that no model gives.
fn spoil(answer: &mut Answer) {
    match answer {
        Answer::Greedy(id) => *id = u32::MAX,
        Answer::TopK { best, log_sum_exp } => {
            best.iter_mut().for_each(|(_, logit)| *logit = f32::NAN);
            *log_sum_exp = f64::NAN;
        }
        Answer::Logits(row) | Answer::Hidden(row) => row.fill(f32::NAN),
        Answer::Score { logit, log_sum_exp } => (*logit, *log_sum_exp) = (f32::NAN, f64::NAN),
    }
}
