//! A sequence run by the product itself: file, family, graph, plan.

use farpost_kernels::backend::{
    Activations, Answer, Backend, Batch, KvType, Limits, Output, Plan, Row, Sequence, Want, WantKind,
};
use farpost_kernels::cpu::Cpu;
use farpost_models::families::{self, Options};
use farpost_models::gguf::File;

/// Rows in a step: small, so that prompts come in several steps of unequal size.
const MAX_ROWS: usize = 33;

/// A model compiled for the processor, and one sequence of it.
pub struct Device {
    plan: Box<dyn Plan>,
    sequence: Sequence,
    n_tokens: usize,
    output: Output,
}

impl Device {
    /// Compiles `file` for sequences of up to `context` tokens.
    pub fn open(file: &File, context: usize, kv_type: KvType) -> Self {
        Self::open_with(file, context, kv_type, Activations::default())
    }

    /// As [`Device::open`], with the activations of products named.
    pub fn open_with(file: &File, context: usize, kv_type: KvType, activations: Activations) -> Self {
        Self::open_on(&Cpu::detect(), file, context, kv_type, activations)
    }

    /// The same on any device.
    pub fn open_on(
        backend: &dyn Backend,
        file: &File,
        context: usize,
        kv_type: KvType,
        activations: Activations,
    ) -> Self {
        let built = families::build(file, &Options { context: Some(context) }).unwrap();
        let limits = Limits { max_rows: MAX_ROWS, kv_tokens: context, kv_type, activations, ..Limits::default() };
        let mut plan = backend.compile(&built.graph, &limits).unwrap();
        let sequence = plan.kv().open().unwrap();
        Self { plan, sequence, n_tokens: 0, output: Output::default() }
    }

    /// Forgets the sequence and starts another.
    pub fn restart(&mut self) {
        self.plan.kv().truncate(self.sequence, 0);
        self.n_tokens = 0;
    }

    /// Logits of `ids` as they follow on the tokens so far.
    pub fn go_on(&mut self, ids: &[u32]) -> Vec<Vec<f32>> {
        let mut logits = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(MAX_ROWS) {
            let row = |(place, token): (usize, &u32)| Row {
                token: *token,
                position: self.n_tokens + place,
                sequence: self.sequence,
            };
            let rows: Vec<Row> = chunk.iter().enumerate().map(row).collect();
            let want = (0..rows.len()).map(|row| Want { row, kind: WantKind::Logits }).collect();
            assert!(self.plan.kv().reserve(self.sequence, self.n_tokens + rows.len()), "the context is full");
            self.plan.step(&Batch { rows, want, interrupt: None }, &mut self.output).unwrap();
            self.n_tokens += chunk.len();
            for answer in self.output.results.drain(..) {
                let Answer::Logits(row) = answer else { panic!("logits were asked for, not {answer:?}") };
                logits.push(row);
            }
        }
        logits
    }
}
