//! The same conversation with any device, and how far answers are apart.

use farpost_kernels::backend::{
    Activations, Answer, Backend, Batch, KvType, Limits, Output, Plan, Row, Sequence, Want, WantKind,
};
use farpost_kernels::graph::Graph;

use crate::models::{Random, VOCABULARY};

pub fn limits(kv_type: KvType, threads: usize, activations: Activations) -> Limits {
    let sizes = Limits { max_rows: 64, max_sequences: 4, kv_tokens: 400, page_tokens: 8, ..Limits::default() };
    Limits { kv_type, threads, activations, max_windows: 4, ..sizes }
}

/// A conversation with a plan: what was asked so far decides the tokens, so that all plans get the same.
pub struct Driver<'p> {
    plan: &'p mut dyn Plan,
    random: Random,
    results: Vec<Vec<f32>>,
}

impl Driver<'_> {
    /// Runs `counts[n]` more tokens of each sequence, interleaved, and keeps all logits, but of each third position what
    /// the head reads.
    fn step(&mut self, sequences: &[(Sequence, usize)]) {
        let mut batch = Batch::default();
        let most = sequences.iter().map(|(_, count)| *count).max().unwrap();
        for offset in 0..most {
            for (sequence, _) in sequences.iter().filter(|(_, count)| offset < *count) {
                let token = ((self.random.value().abs() * VOCABULARY as f32) as u32).min(VOCABULARY as u32 - 1);
                let position = self.plan.kv().len(*sequence) + offset;
                assert!(self.plan.kv().reserve(*sequence, position + 1));
                let kind = if position % 3 == 1 { WantKind::Hidden } else { WantKind::Logits };
                batch.want.push(Want { row: batch.rows.len(), kind });
                batch.rows.push(Row { token, position, sequence: *sequence });
            }
        }
        let mut out = Output::default();
        self.plan.step(&batch, &mut out).unwrap();
        self.results.extend(out.results.into_iter().map(|answer| match answer {
            Answer::Logits(row) | Answer::Hidden(row) => row,
            other => panic!("wanted a row, got {other:?}"),
        }));
    }

    /// Prefill, decode, several sequences, forks and cuts.
    fn converse(mut self) -> Vec<Vec<f32>> {
        let first = self.plan.kv().open().unwrap();
        self.step(&[(first, 37)]);
        self.step(&[(first, 1)]);
        let second = self.plan.kv().open().unwrap();
        self.step(&[(second, 3), (first, 1)]);
        let third = self.plan.kv().fork(first, 20).unwrap();
        self.step(&[(first, 1), (third, 18), (second, 1)]);
        self.plan.kv().truncate(first, 11);
        self.step(&[(first, 2), (second, 1), (third, 1)]);
        self.plan.kv().close(second);
        self.step(&[(third, 1), (first, 6)]);
        self.results
    }
}

pub fn results(backend: &dyn Backend, graph: &Graph, limits: &Limits) -> Vec<Vec<f32>> {
    let mut plan = backend.compile(graph, limits).unwrap();
    Driver { plan: &mut *plan, random: Random(99), results: Vec::new() }.converse()
}

/// Squared error over the square of what was expected.
pub fn error(expected: &[Vec<f32>], found: &[Vec<f32>]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let pairs = || expected.iter().flatten().zip(found.iter().flatten());
    let error: f64 = pairs().map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    error / pairs().map(|(a, _)| f64::from(*a).powi(2)).sum::<f64>()
}
