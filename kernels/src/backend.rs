//! What every device offers: compile a graph once, run steps of it many times.
//!
//! A step takes any mix of rows of any sequences. A row knows its token, position and sequence; causality, windows
//! and batching follow from that alone. A [`Batch`] is a plain value: printable, replayable, the unit of every test.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::graph::Graph;

/// Names a sequence of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(pub u32);

/// One token to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Token id, below the graph's vocabulary.
    pub token: u32,
    /// Position in its sequence; rows of one sequence come in ascending order without gaps.
    pub position: usize,
    /// Whose token it is.
    pub sequence: Sequence,
}

/// What to return for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantKind {
    /// The id of the largest logit; ties go to the lowest id.
    Greedy,
    /// The `k` largest logits with their ids and the log-sum-exp of all.
    TopK(usize),
    /// All logits.
    Logits,
    /// The logit of one token and the log-sum-exp of all: what scoring a text needs.
    Score(u32),
    /// The row itself as the head reads it, after the last norm: what embeddings are made of.
    Hidden,
}

/// A result asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Index into [`Batch::rows`].
    pub row: usize,
    /// What to return.
    pub kind: WantKind,
}

/// The rows of one step and the results wanted from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows to run.
    pub rows: Vec<Row>,
    /// Results to return, in the order of [`Output::results`].
    pub want: Vec<Want>,
    /// Ends the step with [`DeviceError::Interrupted`] soon after it is set, if the backend can.
    pub interrupt: Option<Interrupt>,
}

/// A wish that a step should end before it is done. Clones share it; it is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Wishes it.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was wished.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl PartialEq for Interrupt {
    /// Whether it is the same wish.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Interrupt {}

/// The answer to one [`Want`].
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Arg-max id.
    Greedy(u32),
    /// `(id, logit)` best first, ties by lowest id, and the log-sum-exp over the whole vocabulary.
    TopK {
        /// Best first.
        best: Vec<(u32, f32)>,
        /// Natural log of the sum of exponentials of all logits.
        log_sum_exp: f64,
    },
    /// All logits, one per vocabulary entry.
    Logits(Vec<f32>),
    /// How likely one token is: `logit - log_sum_exp` is its log-probability.
    Score {
        /// Logit of the token asked for.
        logit: f32,
        /// Natural log of the sum of exponentials of all logits.
        log_sum_exp: f64,
    },
    /// The row before the head, [`Graph::width`] numbers.
    Hidden(Vec<f32>),
}

/// Results of a step, one per [`Want`]; reused between steps so that steps need not allocate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// In the order of [`Batch::want`].
    pub results: Vec<Answer>,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// Blocks of 32 with one scale, along the head.
    Q8_0,
    /// Single precision: for comparisons with references.
    F32,
}

impl KvType {
    /// Bytes of one key or value of `dim` elements; whole blocks of 32 where it has blocks.
    pub fn vector_bytes(self, dim: usize) -> usize {
        match self {
            Self::F16 => dim * 2,
            Self::Q8_0 => dim + dim / 32 * 2,
            Self::F32 => dim * 4,
        }
    }

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::F32 => "f32",
        }
    }
}

/// How finely activations are rounded for products with quantized weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activations {
    /// To 16 bits where the model is so small that it costs little, to 8 bits otherwise.
    #[default]
    Auto,
    /// To 8 bits: fast.
    Int8,
    /// To 16 bits: results are those of the same weights in f32 as far as can be told.
    Int16,
}

impl Activations {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Int8 => "int8",
            Self::Int16 => "int16",
        }
    }
}

/// Sizes a plan is compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most rows in one step.
    pub max_rows: usize,
    /// Most sequences open at once.
    pub max_sequences: usize,
    /// Sequences, at most, whose positions a layer with a window keeps as far as its window reaches: those that run, and
    /// those that are to be gone on with. Others take no room there.
    pub max_windows: usize,
    /// Tokens the KV cache holds over all sequences; rounded up to whole pages.
    pub kv_tokens: usize,
    /// Tokens per page.
    pub page_tokens: usize,
    /// Storage of keys and values.
    pub kv_type: KvType,
    /// How finely activations are rounded for products with quantized weights.
    pub activations: Activations,
    /// Compute threads; 0 takes one per available core.
    pub threads: usize,
    /// Bytes that scratch and KV together may take.
    pub memory_cap: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_rows: 512,
            max_sequences: 1,
            max_windows: 1,
            kv_tokens: 4096,
            page_tokens: 32,
            kv_type: KvType::F16,
            activations: Activations::default(),
            threads: 0,
            memory_cap: None,
        }
    }
}

/// Bytes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights read from the map in place.
    pub weights_mapped: u64,
    /// Weights read in place from a map whose blocks lie in another order than in a model file.
    pub weights_packed: u64,
    /// Weights copied to the memory of a device.
    pub weights_copied: u64,
    /// Keys and values.
    pub kv: u64,
    /// Everything a step works in.
    pub scratch: u64,
}

/// Where the layers of a model are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Layers on the device: the last ones.
    pub n_layers: usize,
    /// All layers.
    pub of: usize,
}

/// A device as shown to people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Kind of backend: "cpu", "wgpu", "cuda".
    pub backend: &'static str,
    /// Product name.
    pub name: String,
    /// Driver or instruction set in use.
    pub driver: String,
    /// Memory in bytes, where known.
    pub memory_bytes: Option<u64>,
    /// Features in use.
    pub features: Vec<String>,
}

/// Why a device could not do its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such device, or none that could be used.
    #[error("{0}")]
    Absent(String),
    /// The device is gone.
    #[error("device lost: {0}")]
    Lost(String),
    /// Not enough memory.
    #[error("out of memory: {} needed for {what}, {}", Size(*needed_bytes), Allowed(*free_bytes))]
    OutOfMemory {
        /// For what.
        what: &'static str,
        /// Bytes asked for.
        needed_bytes: u64,
        /// Bytes that the caller allows; `None` where the system gives no more.
        free_bytes: Option<u64>,
    },
    /// The system starts no more threads: their number, memory or a limit.
    #[error("cannot start {threads} threads: {reason}")]
    NoThreads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// [`Batch::interrupt`] was set. Nothing is wrong.
    #[error("interrupted")]
    Interrupted,
    /// No answer in time.
    #[error("device hung: {0}")]
    Hung(String),
    /// It answers, but wrongly: a failed self-test, a NaN logit.
    #[error("wrong result: {0}")]
    Wrong(String),
    /// The caller broke the contract of a batch or the graph needs what the device lacks.
    #[error("refused: {0}")]
    Refused(String),
}

/// What there is: so many bytes, or what the system gives.
struct Allowed(Option<u64>);

impl std::fmt::Display for Allowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{} allowed", Size(bytes)),
            None => f.write_str("the system gives less"),
        }
    }
}

/// Bytes as people read them, in powers of 1024: 1000 B, 97.7 KiB, 1.5 GiB.
struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        // 64 bits hold less than seven powers of 1024.
        let power = self.0.max(1).ilog2() / 10;
        let unit = UNITS[power as usize];
        match power {
            0 => write!(f, "{} {unit}", self.0),
            _ => write!(f, "{:.1} {unit}", self.0 as f64 / (1_u64 << (10 * power)) as f64),
        }
    }
}

/// Bytes of keys and values outside of a store: position after position of a text; of each, layer after layer.
///
/// A layer with a window has only the last positions, as many as the window is long: one more than the next row looks
/// at, so that the last token can be run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Window and bytes of a position of layers that have the same window.
    layers: Vec<(Option<usize>, usize)>,
}

impl ImageShape {
    /// Of layers with these windows and bytes of a position.
    pub fn new(layers: impl IntoIterator<Item = (Option<usize>, usize)>) -> Self {
        let mut merged: Vec<(Option<usize>, usize)> = Vec::new();
        for (window, bytes) in layers {
            match merged.iter_mut().find(|known| known.0 == window) {
                Some(known) => known.1 += bytes,
                None => merged.push((window, bytes)),
            }
        }
        Self { layers: merged }
    }

    /// These layers, and those of another shape.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self::new(self.layers.into_iter().chain(other.layers))
    }

    /// The first position of a text of `n_tokens` that a layer with this window has.
    pub fn first_kept(window: Option<usize>, n_tokens: usize) -> usize {
        window.map_or(0, |window| n_tokens.saturating_sub(window))
    }

    /// Most bytes of a position.
    pub fn token_bytes(&self) -> usize {
        self.layers.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes of some positions of a text of `n_tokens`.
    pub fn bytes(&self, n_tokens: usize, positions: Range<usize>) -> u64 {
        let of = |&(window, bytes): &(Option<usize>, usize)| {
            let from = positions.start.max(Self::first_kept(window, n_tokens));
            (positions.end.saturating_sub(from) as u64).saturating_mul(bytes as u64)
        };
        self.layers.iter().map(of).fold(0, u64::saturating_add)
    }
}

/// The KV cache as its user sees it: sequences that grow, share, shrink and end.
///
/// Layers with a window keep for sure what rows to come look at, and earlier positions while nobody needs their room. So
/// what was just run can be taken back before room is reserved again, for whatever sequence; what lies further back may
/// have to be run again: [`KvStore::resumable`] says from where.
pub trait KvStore {
    /// Starts an empty sequence; `None` when `max_sequences` are open.
    fn open(&mut self) -> Option<Sequence>;
    /// Makes room for `tokens` positions in all; false (and no change) if pages do not suffice. In layers with a window
    /// for those of the next step.
    fn reserve(&mut self, sequence: Sequence, tokens: usize) -> bool;
    /// Positions written so far.
    fn len(&self, sequence: Sequence) -> usize;
    /// Most positions, at most `tokens`, after which the sequence can be gone on with: no window of a row that follows
    /// reaches what is gone.
    fn resumable(&self, sequence: Sequence, tokens: usize) -> usize;
    /// Forgets positions from `tokens` on, or as many more as [`KvStore::resumable`] says; returns how many are left.
    fn truncate(&mut self, sequence: Sequence, tokens: usize) -> usize;
    /// A new sequence that shares the first `tokens` positions of `from`, copied only when written to. `None` if as many
    /// are open as may be, or it could not be gone on with from there.
    fn fork(&mut self, from: Sequence, tokens: usize) -> Option<Sequence>;
    /// Ends a sequence and frees what nobody shares.
    fn close(&mut self, sequence: Sequence);
    /// Tokens that could still be reserved.
    fn free_tokens(&self) -> usize;
    /// Bytes of positions, as [`KvStore::read`] gives them and [`KvStore::append`] takes them.
    fn image(&self) -> ImageShape;
    /// Copies keys and values of some positions of the text that the first `n_tokens` of a sequence are.
    ///
    /// Position after position; of each, layer after layer that keeps it: the keys of all heads, then their values. A
    /// vector is its elements as the store keeps them; for [`KvType::Q8_0`] its codes, then its scales. False (and
    /// nothing copied) if `out` is not as long as [`KvStore::image`] says, or they are not all there.
    fn read(&self, sequence: Sequence, n_tokens: usize, positions: Range<usize>, out: &mut [u8]) -> bool;
    /// Appends `n_positions` of a text of `n_tokens` whose keys and values are `bytes`, as [`KvStore::read`] gave them.
    /// False (and no position counts as written) if they are not as many bytes, not all reserved, or there is no page for
    /// a copy of a shared one or for a window.
    fn append(&mut self, sequence: Sequence, n_tokens: usize, n_positions: usize, bytes: &[u8]) -> bool;
}

/// A device.
pub trait Backend: Send + Sync {
    /// For `doctor` and version reports.
    fn describe(&self) -> DeviceInfo;
    /// Known answers for every kernel a plan may use.
    fn self_test(&self) -> Result<(), DeviceError>;
    /// Whether what it keeps lies in the memory that the program shares with all others.
    fn shares_memory(&self) -> bool {
        false
    }
    /// Makes everything a step needs.
    fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError>;
}

/// A compiled graph with its cache and scratch.
pub trait Plan: Send {
    /// Runs the rows of `batch`, appends their keys and values, and fills `out`.
    ///
    /// Rows must be reserved in the KV store. On an error no position counts as written.
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError>;
    /// Runs the second part of a graph that was cut ([`Graph::cut`]): `rows` are what the first part's head read, row after
    /// row of the batch, [`Graph::widths`] of [`Graph::given`] floats each.
    ///
    /// # Errors
    /// As [`Plan::step`], and [`DeviceError::Refused`] where a device does not do that.
    fn step_given(&mut self, _batch: &Batch, _rows: &[f32], _out: &mut Output) -> Result<(), DeviceError> {
        Err(DeviceError::Refused("this device runs whole models only".to_owned()))
    }
    /// The cache.
    fn kv(&mut self) -> &mut dyn KvStore;
    /// Bytes by kind.
    fn memory(&self) -> MemoryUse;
    /// Dispatches to a device that a step of one row with [`WantKind::Greedy`] takes; `None` where steps have none.
    fn n_dispatches(&self) -> Option<usize> {
        None
    }
    /// Where layers are, if not all are on one device.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_told_in_units_that_people_read() {
        let error = DeviceError::OutOfMemory { what: "scratch", needed_bytes: 3 << 29, free_bytes: Some(100_000) };
        assert_eq!(error.to_string(), "out of memory: 1.5 GiB needed for scratch, 97.7 KiB allowed");
        let error = DeviceError::OutOfMemory { what: "scratch", needed_bytes: 3 << 29, free_bytes: None };
        assert_eq!(error.to_string(), "out of memory: 1.5 GiB needed for scratch, the system gives less");
        assert_eq!([0, 1023, 1024, u64::MAX].map(|n| Size(n).to_string()), ["0 B", "1023 B", "1.0 KiB", "16.0 EiB"]);
    }
}
