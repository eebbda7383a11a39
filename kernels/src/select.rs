//! Which device to compute on: what there is, what passes its self-test, what is fastest.
//!
//! Kinds of devices stand in [`KINDS`], the one to be asked first before others; the processor is behind all of them. What
//! was found out about a device (its self-test, how fast it decodes) is kept by device, driver and version of the program.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::{Backend, Batch, DeviceError, DeviceInfo, Limits, Output, Plan, Row, Want, WantKind};
use crate::graph::{Activation, Graph, GraphBuilder, GraphError, KvLayer};
use crate::keep::{self, Keep};
use crate::tensor::{DType, Weight, WeightError};

/// A device that was opened.
pub struct Opened {
    /// The device.
    pub backend: Arc<dyn Backend>,
    /// Whether the processor plays it: slower than the processor itself.
    pub is_software: bool,
}

/// A kind of device beside the processor.
pub struct Kind {
    /// Its name: wgpu, cuda.
    pub name: &'static str,
    /// Opens the best one there is, or of those that are not played by the processor.
    pub open: fn(Which, &Arc<dyn Keep>) -> Result<Opened, DeviceError>,
}

/// Which devices may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All, also those that the processor plays.
    Any,
    /// Those that may be faster than the processor.
    Hardware,
}

/// All kinds beside the processor, the best first.
pub const KINDS: [Kind; 2] = [Kind { name: "cuda", open: cuda }, Kind { name: "wgpu", open: wgpu }];

#[cfg(feature = "cuda")]
fn cuda(_: Which, keep: &Arc<dyn Keep>) -> Result<Opened, DeviceError> {
    Ok(Opened { backend: Arc::new(crate::cuda::Cuda::open(Arc::clone(keep))?), is_software: false })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: Which, _: &Arc<dyn Keep>) -> Result<Opened, DeviceError> {
    Err(DeviceError::Absent("not built into this program".to_owned()))
}

#[cfg(feature = "wgpu")]
fn wgpu(which: Which, keep: &Arc<dyn Keep>) -> Result<Opened, DeviceError> {
    use crate::wgpu::{Adapters, Options, Wgpu};
    let adapters = if which == Which::Any { Adapters::Any } else { Adapters::Hardware };
    let device = Wgpu::open_with(Options { adapters, keep: Arc::clone(keep), ..Options::default() })?;
    let is_software = device.is_software();
    Ok(Opened { backend: Arc::new(device), is_software })
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_: Which, _: &Arc<dyn Keep>) -> Result<Opened, DeviceError> {
    Err(DeviceError::Absent("not built into this program".to_owned()))
}

/// A kind of device, and what was found out about it.
pub struct Finding {
    /// Name of the kind.
    pub kind: &'static str,
    /// The device, if there is one.
    pub info: Option<DeviceInfo>,
    /// It and the tokens a second it decodes, or why it is not taken.
    pub state: Result<(Arc<dyn Backend>, f64), String>,
}

/// Looks at all devices but the processor, for one that computes right and faster than `host`. Those that are, the fastest
/// first, then those that are not.
pub fn look(host: &dyn Backend, keep: &Arc<dyn Keep>) -> Vec<Finding> {
    look_at(&KINDS, host, keep)
}

fn look_at(kinds: &[Kind], host: &dyn Backend, keep: &Arc<dyn Keep>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = kinds
        .iter()
        .map(|kind| {
            let opened = (kind.open)(Which::Hardware, keep);
            let info = opened.as_ref().ok().map(|opened| opened.backend.describe());
            let state = opened.map_err(|error| error.to_string()).and_then(|opened| judge(opened, host, keep));
            Finding { kind: kind.name, info, state }
        })
        .collect();
    // The sort keeps the order of kinds among equals.
    let rate = |finding: &Finding| finding.state.as_ref().map_or(0.0, |(_, rate)| *rate);
    findings.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
    findings
}

fn judge(opened: Opened, host: &dyn Backend, keep: &Arc<dyn Keep>) -> Result<(Arc<dyn Backend>, f64), String> {
    let Opened { backend, is_software } = opened;
    if is_software {
        return Err("the processor plays it: taken only if asked for".to_owned());
    }
    tested(&*backend, &**keep).map_err(|error| error.to_string())?;
    let rates = [&*backend, host].map(|backend| measured(backend, &**keep));
    match rates {
        [Err(error), _] => Err(error.to_string()),
        [Ok(own), Ok(of_host)] if own <= of_host => Err(format!(
            "slower than the processor: decodes {own:.0} tokens a second of a small model, the processor {of_host:.0}"
        )),
        [Ok(own), _] => Ok((backend, own)),
    }
}

fn kept_name(what: &str, info: &DeviceInfo) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let texts = [info.backend, &info.name, &info.driver, version].into_iter();
    keep::name(what, texts.chain(info.features.iter().map(String::as_str)).map(str::as_bytes))
}

/// Lets a device compute what is known already, if it has not done so with this driver. Failures are not kept.
///
/// # Errors
/// As [`Backend::self_test`].
pub fn tested(backend: &dyn Backend, keep: &dyn Keep) -> Result<(), DeviceError> {
    let name = kept_name("self-test", &backend.describe());
    let passed = b"passed";
    if keep.load(&name).is_some_and(|sealed| keep::opened(&sealed) == Some(passed)) {
        return Ok(());
    }
    backend.self_test()?;
    keep.save(&name, &keep::sealed(passed));
    Ok(())
}

/// Tokens a second that a device decodes of a small made-up model: measured for some tens of milliseconds, once for each
/// driver.
///
/// # Errors
/// As [`Plan::step`].
pub fn measured(backend: &dyn Backend, keep: &dyn Keep) -> Result<f64, DeviceError> {
    let name = kept_name("decode-rate", &backend.describe());
    let kept = keep.load(&name).and_then(|sealed| Some(f64::from_le_bytes(keep::opened(&sealed)?.try_into().ok()?)));
    if let Some(rate) = kept.filter(|rate| rate.is_finite()) {
        return Ok(rate);
    }
    let unmade = |error: Unmade| DeviceError::Refused(format!("the model to measure with cannot be made: {error}"));
    let graph = graph().map_err(unmade)?;
    let limits = Limits { max_rows: 1, kv_tokens: CONTEXT, ..Limits::default() };
    let rate = decode_rate(&mut *backend.compile(&graph, &limits)?)?;
    keep.save(&name, &keep::sealed(&rate.to_le_bytes()));
    Ok(rate)
}

/// Shape of the model to measure with: 17 million weights, more than most caches hold of what is read anew each time.
const WIDTH: usize = 1024;
const FF: usize = 4096;
const N_VOCAB: usize = 4096;
const CONTEXT: usize = 64;

/// Steps that are not counted, and steps that are, until time is up.
const WARM: usize = 4;
const STEPS: usize = CONTEXT - WARM;
const PATIENCE: Duration = Duration::from_millis(50);

/// Of the fastest step: what others take part of the time from is no property of the device.
fn decode_rate(plan: &mut dyn Plan) -> Result<f64, DeviceError> {
    let refuse = || DeviceError::Refused("no room for the model to measure with".to_owned());
    let sequence = plan.kv().open().ok_or_else(refuse)?;
    if !plan.kv().reserve(sequence, CONTEXT) {
        return Err(refuse());
    }
    let (mut output, mut best, mut spent) = (Output::default(), Duration::MAX, Duration::ZERO);
    for position in 0..WARM + STEPS {
        let rows = vec![Row { token: (position * 37 % N_VOCAB) as u32, position, sequence }];
        let want = vec![Want { row: 0, kind: WantKind::Greedy }];
        let start = Instant::now();
        plan.step(&Batch { rows, want, interrupt: None }, &mut output)?;
        let taken = start.elapsed();
        if position >= WARM {
            best = best.min(taken);
            spent += taken;
        }
        if spent >= PATIENCE {
            break;
        }
    }
    Ok(1.0 / best.as_secs_f64().max(1e-9))
}

#[derive(Debug, thiserror::Error)]
enum Unmade {
    #[error(transparent)]
    Weight(#[from] WeightError),
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// A layer and a head of Q4_0 weights.
fn graph() -> Result<Graph, Unmade> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut weight = |rows: usize, cols: usize| -> Result<Weight, Unmade> {
        let mut bytes = vec![0; rows * DType::Q4_0.row_bytes(cols).unwrap_or(0)];
        for byte in &mut bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 56) as u8;
        }
        // A small scale, so that sums stay in the range of numbers.
        bytes
            .chunks_exact_mut(18)
            .for_each(|block| block[..2].copy_from_slice(&half::f16::from_f32(0.01).to_le_bytes()));
        Ok(Weight::new("to measure with", DType::Q4_0, rows, cols, bytes.into())?)
    };
    let vector = || Weight::from_f32("to measure with", 1, WIDTH, &[1.0; WIDTH]);
    let mut graph = GraphBuilder::new();
    let x = graph.embed(weight(N_VOCAB, WIDTH)?, 1.0);
    let normed = graph.norm(x, vector()?, 1e-5)?;
    let (q, k, v) = (
        graph.linear(normed, weight(WIDTH, WIDTH)?, None)?,
        graph.linear(normed, weight(WIDTH / 4, WIDTH)?, None)?,
        graph.linear(normed, weight(WIDTH / 4, WIDTH)?, None)?,
    );
    let kv = KvLayer { n_kv_heads: 4, key_dim: 64, value_dim: 64, window: None };
    let attended = graph.attention((q, k, v), kv, 16, 0.125, None)?;
    let mixed = graph.linear(attended, weight(WIDTH, WIDTH)?, None)?;
    let x = graph.add(x, mixed)?;
    let normed = graph.norm(x, vector()?, 1e-5)?;
    let (gate, up) = (graph.linear(normed, weight(FF, WIDTH)?, None)?, graph.linear(normed, weight(FF, WIDTH)?, None)?);
    let unit = graph.glu(gate, up, Activation::Silu)?;
    let down = graph.linear(unit, weight(WIDTH, FF)?, None)?;
    let x = graph.add(x, down)?;
    let x = graph.norm(x, vector()?, 1e-5)?;
    Ok(graph.head(x, weight(N_VOCAB, WIDTH)?, None, 1.0, None, CONTEXT)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cpu::Cpu;
    use crate::keep::InMemory;

    /// The processor by another name, which is asked for its self-test and for plans.
    struct Other {
        name: &'static str,
        is_right: bool,
        n_tests: AtomicUsize,
        n_plans: AtomicUsize,
    }

    impl Other {
        fn new(name: &'static str, is_right: bool) -> Self {
            Self { name, is_right, n_tests: AtomicUsize::new(0), n_plans: AtomicUsize::new(0) }
        }
    }

    impl Backend for Other {
        fn describe(&self) -> DeviceInfo {
            DeviceInfo { backend: "test", name: self.name.to_owned(), ..DeviceInfo::default() }
        }

        fn self_test(&self) -> Result<(), DeviceError> {
            self.n_tests.fetch_add(1, Ordering::Relaxed);
            if self.is_right { Ok(()) } else { Err(DeviceError::Wrong("on cue".to_owned())) }
        }

        fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError> {
            self.n_plans.fetch_add(1, Ordering::Relaxed);
            Cpu::detect().compile(graph, limits)
        }
    }

    #[test]
    fn what_was_found_out_is_asked_for_once() {
        let keep = InMemory::default();
        let device = Other::new("right", true);
        for _ in 0..2 {
            assert_eq!(tested(&device, &keep), Ok(()));
            assert!(measured(&device, &keep).unwrap() > 0.0);
        }
        assert_eq!([&device.n_tests, &device.n_plans].map(|count| count.load(Ordering::Relaxed)), [1, 1]);
        let wrong = Other::new("wrong", false);
        for _ in 0..2 {
            assert!(tested(&wrong, &keep).is_err());
        }
        assert_eq!(wrong.n_tests.load(Ordering::Relaxed), 2, "failures are not kept");
        // What is broken is asked for again.
        keep.0.lock().unwrap().values_mut().for_each(|bytes| bytes.truncate(9));
        assert_eq!(tested(&device, &keep), Ok(()));
        assert_eq!(device.n_tests.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn devices_that_are_slower_wrong_played_or_absent_are_not_taken() {
        let keep: Arc<dyn Keep> = Arc::new(InMemory::default());
        // Measured before, so that nothing hangs on the machine.
        let host = Other::new("host", true);
        for (name, rate) in [("host", 50.0), ("fast", 200.0), ("faster", 300.0), ("slow", 20.0)] {
            let info = Other::new(name, true).describe();
            keep.save(&kept_name("decode-rate", &info), &keep::sealed(&f64::to_le_bytes(rate)));
        }
        fn opened(name: &'static str, is_right: bool, is_software: bool) -> Result<Opened, DeviceError> {
            Ok(Opened { backend: Arc::new(Other::new(name, is_right)), is_software })
        }
        let kinds = [
            Kind { name: "absent", open: |_, _| Err(DeviceError::Absent("there is none".to_owned())) },
            Kind { name: "played", open: |_, _| opened("fast", true, true) },
            Kind { name: "wrong", open: |_, _| opened("fast", false, false) },
            Kind { name: "slow", open: |_, _| opened("slow", true, false) },
            Kind { name: "fast", open: |_, _| opened("fast", true, false) },
            Kind { name: "faster", open: |_, _| opened("faster", true, false) },
        ];
        let found = look_at(&kinds, &host, &keep);
        let told: Vec<_> = found
            .iter()
            .map(|finding| match &finding.state {
                Ok((_, rate)) => format!("{}: {rate}", finding.kind),
                Err(why) => format!("{}: {why}", finding.kind),
            })
            .collect();
        assert_eq!(
            told,
            [
                "faster: 300",
                "fast: 200",
                "absent: there is none",
                "played: the processor plays it: taken only if asked for",
                "wrong: wrong result: on cue",
                "slow: slower than the processor: decodes 20 tokens a second of a small model, the processor 50",
            ]
        );
    }
}
