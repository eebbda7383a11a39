//! A model on two devices: its first layers on the processor, the last ones and the head on a device that has no room for
//! all of them.
//!
//! The graph is cut before a layer ([`Graph::cut`]). Rows go across once a step. Both parts have a cache of their own layers;
//! whatever happens to a sequence happens in both, so that they agree on numbers and lengths.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use crate::backend::{
    Answer, Backend, Batch, DeviceError, DeviceInfo, ImageShape, KvStore, Limits, MemoryUse, Output, Placement, Plan,
    Sequence, Want, WantKind,
};
use crate::checks::refuse;
use crate::graph::Graph;

/// How many layers a device takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// As many as it has room for.
    #[default]
    Auto,
    /// So many, or all if there are fewer.
    Last(usize),
}

/// Tries with fewer layers, each with an eighth of them less.
const SHARES: usize = 8;

/// A device that takes as many layers as it is to, and the processor that takes the others.
pub struct Placed {
    device: Arc<dyn Backend>,
    host: Arc<dyn Backend>,
    layers: Layers,
}

impl Placed {
    /// Layers of models on `device`, the others on `host`.
    pub fn new(device: Arc<dyn Backend>, host: Arc<dyn Backend>, layers: Layers) -> Self {
        Self { device, host, layers }
    }

    /// With the last `n_layers` of a graph on the device.
    fn compile_with(&self, graph: &Graph, limits: &Limits, n_layers: usize) -> Result<Box<dyn Plan>, DeviceError> {
        let n_all = graph.kv_layers().len();
        if n_layers >= n_all {
            return self.device.compile(graph, limits);
        }
        if n_layers == 0 {
            return self.host.compile(graph, limits);
        }
        let Some((first, second)) = graph.cut(n_all - n_layers) else {
            return refuse(format!("the model cannot be cut before layer {}", n_all - n_layers));
        };
        let second = self.device.compile(&second, limits)?;
        let taken = second.memory();
        let copied = if self.device.shares_memory() { taken.weights_copied } else { 0 };
        let left = |cap: u64| cap.saturating_sub(taken.kv.saturating_add(taken.scratch).saturating_add(copied));
        let first = self.host.compile(&first, &Limits { memory_cap: limits.memory_cap.map(left), ..limits.clone() })?;
        Ok(Box::new(PlacedPlan {
            first: RefCell::new(first),
            second: RefCell::new(second),
            placement: Placement { n_layers, of: n_all },
            batch: Batch::default(),
            hidden: Output::default(),
            rows: Vec::new(),
        }))
    }
}

impl Backend for Placed {
    fn describe(&self) -> DeviceInfo {
        self.device.describe()
    }

    fn self_test(&self) -> Result<(), DeviceError> {
        self.device.self_test()
    }

    fn shares_memory(&self) -> bool {
        self.device.shares_memory()
    }

    fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError> {
        let n_all = graph.kv_layers().len();
        if let Layers::Last(n_layers) = self.layers {
            return self.compile_with(graph, limits, n_layers);
        }
        // With no layer there, it is not this device that does the work: whoever chose it is to know.
        let mut lacking = None;
        let mut n_layers = n_all;
        while n_layers > 0 || lacking.is_none() {
            match self.compile_with(graph, limits, n_layers) {
                Err(error @ DeviceError::OutOfMemory { .. }) => _ = lacking.get_or_insert(error),
                result => return result,
            }
            n_layers = n_layers.saturating_sub(n_all.div_ceil(SHARES));
        }
        Err(lacking.unwrap_or_else(|| DeviceError::Refused("the model has no layers".to_owned())))
    }
}

struct PlacedPlan {
    /// Of the host, and of the device. In cells, as a plan hands out its cache to change alone.
    first: RefCell<Box<dyn Plan>>,
    second: RefCell<Box<dyn Plan>>,
    placement: Placement,
    /// What the first part is asked for, and what comes of it.
    batch: Batch,
    hidden: Output,
    rows: Vec<f32>,
}

impl PlacedPlan {
    fn both<T>(&self, mut ask: impl FnMut(&mut dyn KvStore) -> T) -> (T, T) {
        let first = ask(self.first.borrow_mut().kv());
        (first, ask(self.second.borrow_mut().kv()))
    }

    /// Takes positions of the first part back that the second one has not.
    fn level(&mut self, batch: &Batch) {
        for row in &batch.rows {
            let len = self.second.get_mut().kv().len(row.sequence);
            self.first.get_mut().kv().truncate(row.sequence, len);
        }
    }
}

impl Plan for PlacedPlan {
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        self.batch.rows.clone_from(&batch.rows);
        self.batch.interrupt.clone_from(&batch.interrupt);
        self.batch.want.clear();
        self.batch.want.extend((0..batch.rows.len()).map(|row| Want { row, kind: WantKind::Hidden }));
        self.first.get_mut().step(&self.batch, &mut self.hidden)?;
        self.rows.clear();
        for answer in &self.hidden.results {
            if let Answer::Hidden(row) = answer {
                self.rows.extend_from_slice(row);
            }
        }
        let result = self.second.get_mut().step_given(batch, &self.rows, out);
        if result.is_err() {
            self.level(batch);
        }
        result
    }

    fn kv(&mut self) -> &mut dyn KvStore {
        self
    }

    fn memory(&self) -> MemoryUse {
        let [first, second] = [&self.first, &self.second].map(|part| part.borrow().memory());
        MemoryUse {
            weights_mapped: first.weights_mapped + second.weights_mapped,
            weights_packed: first.weights_packed + second.weights_packed,
            weights_copied: first.weights_copied + second.weights_copied,
            kv: first.kv + second.kv,
            scratch: first.scratch + second.scratch,
        }
    }

    fn n_dispatches(&self) -> Option<usize> {
        self.second.borrow().n_dispatches()
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.placement)
    }
}

impl KvStore for PlacedPlan {
    fn open(&mut self) -> Option<Sequence> {
        match self.both(|kv| kv.open()) {
            (Some(first), Some(second)) => {
                debug_assert_eq!(first, second, "both give the lowest number that is free");
                Some(first)
            }
            _ => None,
        }
    }

    fn reserve(&mut self, sequence: Sequence, tokens: usize) -> bool {
        let len = self.len(sequence);
        if !self.first.get_mut().kv().reserve(sequence, tokens) {
            return false;
        }
        let is_reserved = self.second.get_mut().kv().reserve(sequence, tokens);
        if !is_reserved {
            self.first.get_mut().kv().truncate(sequence, len);
        }
        is_reserved
    }

    fn len(&self, sequence: Sequence) -> usize {
        self.second.borrow_mut().kv().len(sequence)
    }

    fn resumable(&self, sequence: Sequence, tokens: usize) -> usize {
        let mut tokens = tokens;
        loop {
            let (first, second) = self.both(|kv| kv.resumable(sequence, tokens));
            if first == second {
                return first;
            }
            tokens = first.min(second);
        }
    }

    fn truncate(&mut self, sequence: Sequence, tokens: usize) -> usize {
        let tokens = self.resumable(sequence, tokens);
        self.both(|kv| kv.truncate(sequence, tokens)).1
    }

    fn fork(&mut self, from: Sequence, tokens: usize) -> Option<Sequence> {
        if self.resumable(from, tokens) < tokens {
            return None;
        }
        match self.both(|kv| kv.fork(from, tokens)) {
            (Some(first), Some(second)) => {
                debug_assert_eq!(first, second, "both give the lowest number that is free");
                Some(first)
            }
            _ => None,
        }
    }

    fn close(&mut self, sequence: Sequence) {
        self.both(|kv| kv.close(sequence));
    }

    fn free_tokens(&self) -> usize {
        let (first, second) = self.both(|kv| kv.free_tokens());
        first.min(second)
    }

    fn image(&self) -> ImageShape {
        let (first, second) = self.both(|kv| kv.image());
        first.with(second)
    }

    /// Of each position first what the one part has, then what the other one has.
    fn read(&self, sequence: Sequence, n_tokens: usize, positions: Range<usize>, out: &mut [u8]) -> bool {
        let (first, second) = self.both(|kv| kv.image());
        let shapes = [first, second];
        if shapes.iter().map(|shape| shape.bytes(n_tokens, positions.clone())).sum::<u64>() != out.len() as u64 {
            return false;
        }
        let mut is_read = true;
        let mut parts = shapes.iter().map(|shape| vec![0; shape.bytes(n_tokens, positions.clone()) as usize]);
        let [mut a, mut b] = [parts.next().unwrap_or_default(), parts.next().unwrap_or_default()];
        is_read &= self.first.borrow_mut().kv().read(sequence, n_tokens, positions.clone(), &mut a);
        is_read &= self.second.borrow_mut().kv().read(sequence, n_tokens, positions.clone(), &mut b);
        if !is_read {
            return false;
        }
        let (mut rest, mut sources) = (out, [&a[..], &b[..]]);
        for position in positions {
            for (shape, source) in shapes.iter().zip(&mut sources) {
                let n_bytes = shape.bytes(n_tokens, position..position + 1) as usize;
                let (own, behind) = std::mem::take(&mut rest).split_at_mut(n_bytes);
                let (bytes, left) = source.split_at(n_bytes);
                own.copy_from_slice(bytes);
                (rest, *source) = (behind, left);
            }
        }
        true
    }

    fn append(&mut self, sequence: Sequence, n_tokens: usize, n_positions: usize, bytes: &[u8]) -> bool {
        let from = self.len(sequence);
        let positions = from..from.saturating_add(n_positions);
        if positions.end > n_tokens || self.image().bytes(n_tokens, positions.clone()) != bytes.len() as u64 {
            return false;
        }
        let (first, second) = self.both(|kv| kv.image());
        let (mut parts, mut rest) = ([Vec::new(), Vec::new()], bytes);
        for position in positions {
            for (shape, part) in [&first, &second].into_iter().zip(&mut parts) {
                let (own, behind) = rest.split_at(shape.bytes(n_tokens, position..position + 1) as usize);
                part.extend_from_slice(own);
                rest = behind;
            }
        }
        if !self.first.get_mut().kv().append(sequence, n_tokens, n_positions, &parts[0]) {
            return false;
        }
        let is_appended = self.second.get_mut().kv().append(sequence, n_tokens, n_positions, &parts[1]);
        if !is_appended {
            self.first.get_mut().kv().truncate(sequence, from);
        }
        is_appended
    }
}
