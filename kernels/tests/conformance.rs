//! Whole graphs on every backend against the plain definitions: every op, fused and not, in mixed batches.
//!
//! A device passes when its logits are those of `reference` up to the rounding its number formats bring: for weights
//! of plain numbers a normalised squared error of 1e-9, for quantized ones (activations are quantized too) of 2e-3.

use std::sync::Arc;

use farpost_kernels::backend::{
    Activations, Answer, Backend, Batch, KvType, Limits, Output, Plan, Row, Sequence, Want, WantKind,
};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::graph::{Activation, Graph, GraphBuilder, KvLayer, Moe, Rope, RopeStyle, Value};
use farpost_kernels::quant;
use farpost_kernels::reference::Reference;
use farpost_kernels::tensor::{Bytes, DType, Weight};

/// A small generator, so that every run tests the same numbers.
struct Random(u64);

impl Random {
    fn value(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn weight(&mut self, dtype: DType, rows: usize, cols: usize) -> Weight {
        let spread = 1.7 / (cols as f32).sqrt();
        let values: Vec<f32> = (0..rows * cols).map(|_| self.value() * spread).collect();
        let mut bytes = vec![0; rows * dtype.row_bytes(cols).unwrap()];
        for (values, bytes) in values.chunks(cols).zip(bytes.chunks_mut(dtype.row_bytes(cols).unwrap())) {
            quant::encode(dtype, values, None, bytes).unwrap();
        }
        Weight::new(&format!("{dtype} {rows} x {cols}"), dtype, rows, cols, Bytes::from(bytes)).unwrap()
    }

    fn vector(&mut self, len: usize, around: f32) -> Weight {
        let values: Vec<f32> = (0..len).map(|_| around + 0.3 * self.value()).collect();
        Weight::from_f32("vector", 1, len, &values).unwrap()
    }
}

/// What a test model is made of.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dtype: DType,
    width: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    ff: usize,
    family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    /// Norms before, gated unit, residuals: everything fuses.
    Llama,
    /// Norms before and after, head norms, a window on every other layer, soft caps, scaled embedding.
    Gemma,
    /// Biases, attention and feed-forward from the same norm, a value read twice.
    Parallel,
    /// Experts.
    Moe,
    /// Nothing fuses: a product of a raw value, a unit of one value, sums in odd places.
    Odd,
}

const VOCABULARY: usize = 203;
const N_LAYERS: usize = 3;

fn rope(style: RopeStyle, pairs: usize, magnitude: f32) -> Arc<Rope> {
    let frequencies = (0..pairs).map(|pair| 100_f64.powf(-(pair as f64) / pairs as f64)).collect();
    Arc::new(Rope { style, frequencies, magnitude })
}

fn model(shape: Shape, seed: u64) -> Graph {
    let Shape { dtype, width, n_heads, n_kv_heads, head_dim, family, .. } = shape;
    let (mut random, mut graph) = (Random(seed | 1), GraphBuilder::new());
    let table = random.weight(dtype, VOCABULARY, width);
    let mut x = graph.embed(table.clone(), if family == Family::Gemma { 3.0 } else { 1.0 });
    for layer in 0..N_LAYERS {
        let normed = if family == Family::Odd && layer == 1 {
            x
        } else {
            graph.norm(x, random.vector(width, 1.0), 1e-5).unwrap()
        };
        let bias = |random: &mut Random, len| (family == Family::Parallel).then(|| random.vector(len, 0.0));
        let project = |graph: &mut GraphBuilder, random: &mut Random, heads: usize| {
            let weight = random.weight(dtype, heads * head_dim, width);
            let bias = bias(random, heads * head_dim);
            graph.linear(normed, weight, bias).unwrap()
        };
        let mut q = project(&mut graph, &mut random, n_heads);
        let mut k = project(&mut graph, &mut random, n_kv_heads);
        let v = project(&mut graph, &mut random, n_kv_heads);
        if family == Family::Gemma {
            q = graph.norm(q, random.vector(head_dim, 1.0), 1e-6).unwrap();
            k = graph.norm(k, random.vector(head_dim, 1.0), 1e-6).unwrap();
        }
        let style = if family == Family::Llama { RopeStyle::Normal } else { RopeStyle::HalfSplit };
        let pairs = if family == Family::Parallel { head_dim / 4 } else { head_dim / 2 };
        let turn = rope(style, pairs, if layer == 2 { 1.1 } else { 1.0 });
        q = graph.rope(q, head_dim, &turn).unwrap();
        k = graph.rope(k, head_dim, &turn).unwrap();
        let window = (family == Family::Gemma && layer % 2 == 0).then_some(5);
        let softcap = (family == Family::Gemma).then_some(4.0);
        let kv = KvLayer { n_kv_heads, key_dim: head_dim, value_dim: head_dim, window };
        let attended = graph.attention((q, k, v), kv, n_heads, 1.0 / (head_dim as f32).sqrt(), softcap).unwrap();
        let mut mixed = graph.linear(attended, random.weight(dtype, width, n_heads * head_dim), None).unwrap();
        if family == Family::Gemma {
            mixed = graph.norm(mixed, random.vector(width, 1.0), 1e-6).unwrap();
        }
        let residual = x;
        let after = graph.add(residual, mixed).unwrap();
        let input = match family {
            Family::Parallel => normed,
            _ => graph.norm(after, random.vector(width, 1.0), 1e-5).unwrap(),
        };
        let mut fed = feed_forward(&mut graph, &mut random, shape, input);
        if family == Family::Gemma {
            fed = graph.norm(fed, random.vector(width, 1.0), 1e-6).unwrap();
        }
        if family == Family::Odd {
            fed = graph.scale(fed, 0.5);
            let twice = graph.add(fed, fed).unwrap();
            fed = graph.add(twice, input).unwrap();
        }
        x = graph.add(fed, after).unwrap();
    }
    let last = graph.norm(x, random.vector(width, 1.0), 1e-5).unwrap();
    let bias = (family == Family::Parallel).then(|| random.vector(VOCABULARY, 0.0));
    let softcap = (family == Family::Gemma).then_some(5.0);
    graph.head(last, table, bias, 1.5, softcap, 1000).unwrap()
}

fn feed_forward(graph: &mut GraphBuilder, random: &mut Random, shape: Shape, x: Value) -> Value {
    let Shape { dtype, width, ff, family, .. } = shape;
    let activation = if family == Family::Gemma { Activation::GeluTanh } else { Activation::Silu };
    match family {
        Family::Moe => {
            let moe = Moe {
                router: random.weight(DType::F32, 5, width),
                gate: random.weight(dtype, 5 * ff, width),
                up: random.weight(dtype, 5 * ff, width),
                down: random.weight(dtype, 5 * width, ff),
                // With all of them, rounding cannot change the choice.
                n_used: if dtype.is_quantized() { 5 } else { 2 },
                renormalise: true,
                activation,
            };
            graph.moe(x, moe).unwrap()
        }
        Family::Odd => {
            let gate = graph.linear(x, random.weight(dtype, ff, width), None).unwrap();
            let unit = graph.glu(gate, gate, activation).unwrap();
            graph.linear(unit, random.weight(dtype, width, ff), None).unwrap()
        }
        _ => {
            let up = graph.linear(x, random.weight(dtype, ff, width), None).unwrap();
            let gate = graph.linear(x, random.weight(dtype, ff, width), None).unwrap();
            let unit = graph.glu(gate, up, activation).unwrap();
            graph.linear(unit, random.weight(dtype, width, ff), None).unwrap()
        }
    }
}

fn limits(kv_type: KvType, threads: usize, activations: Activations) -> Limits {
    let sizes = Limits { max_rows: 64, max_sequences: 4, kv_tokens: 400, page_tokens: 8, ..Limits::default() };
    Limits { kv_type, threads, activations, max_windows: 4, ..sizes }
}

/// A conversation with a plan: what was asked so far decides the tokens, so that all plans get the same.
struct Driver<'p> {
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

fn results(backend: &dyn Backend, graph: &Graph, limits: &Limits) -> Vec<Vec<f32>> {
    let mut plan = backend.compile(graph, limits).unwrap();
    Driver { plan: &mut *plan, random: Random(99), results: Vec::new() }.converse()
}

/// Squared error over the square of what was expected.
fn error(expected: &[Vec<f32>], found: &[Vec<f32>]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let pairs = || expected.iter().flatten().zip(found.iter().flatten());
    let error: f64 = pairs().map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    error / pairs().map(|(a, _)| f64::from(*a).powi(2)).sum::<f64>()
}

fn check(shape: Shape, kv_type: KvType, bound: f64) {
    check_with(shape, kv_type, Activations::Auto, bound);
}

fn check_with(shape: Shape, kv_type: KvType, activations: Activations, bound: f64) {
    let graph = model(shape, 5);
    let expected = results(&Reference, &graph, &limits(kv_type, 1, activations));
    for isa in Isa::available() {
        let mut first = None;
        for threads in [1, 2, 3] {
            let found = results(&Cpu::new(isa), &graph, &limits(kv_type, threads, activations));
            let error = error(&expected, &found);
            assert!(
                error <= bound,
                "{shape:?} {kv_type:?} {activations:?} {isa} {threads} threads: error {error:.2e}, bound {bound:e}"
            );
            // The number of threads changes nothing but the time, as long as no context is split.
            assert_eq!(*first.get_or_insert_with(|| found.clone()), found, "{shape:?} {isa} {threads} threads");
        }
    }
}

const FAMILIES: [Family; 5] = [Family::Llama, Family::Gemma, Family::Parallel, Family::Moe, Family::Odd];

fn shape(dtype: DType, family: Family) -> Shape {
    Shape { dtype, width: 96, n_heads: 6, n_kv_heads: 2, head_dim: 32, ff: 160, family }
}

#[test]
fn every_family_computes_what_its_ops_say() {
    for family in FAMILIES {
        check(shape(DType::F32, family), KvType::F32, 1e-9);
    }
}

#[test]
fn widths_that_fit_no_vector_are_right_too() {
    for family in FAMILIES {
        let odd = Shape { width: 75, n_heads: 3, n_kv_heads: 3, head_dim: 20, ff: 37, ..shape(DType::F32, family) };
        check(odd, KvType::F32, 1e-9);
    }
}

#[test]
fn a_cache_of_halves_or_blocks_costs_little() {
    for family in [Family::Llama, Family::Gemma] {
        check(shape(DType::F32, family), KvType::F16, 1e-5);
        check(shape(DType::F32, family), KvType::Q8_0, 1e-3);
    }
}

#[test]
fn every_weight_type_that_can_be_written_runs() {
    for dtype in DType::all().filter(|dtype| quant::can_encode(*dtype)) {
        let family = if dtype.block_len() == 32 { Family::Moe } else { Family::Llama };
        let (width, head_dim) = (dtype.block_len().max(96), if dtype.block_len() > 32 { 64 } else { 32 });
        let ff = dtype.block_len().max(160);
        let n_heads = width / head_dim;
        let shape = Shape { dtype, width, n_heads, n_kv_heads: n_heads / 2 + n_heads % 2, head_dim, ff, family };
        let shape = Shape { n_kv_heads: if n_heads.is_multiple_of(2) { n_heads / 2 } else { n_heads }, ..shape };
        if dtype.is_quantized() {
            check_with(shape, KvType::F32, Activations::Int8, 2e-3);
            // A second code leaves a 254th of the first one's error, and this is its square.
            check_with(shape, KvType::F32, Activations::Int16, 3e-8);
        } else {
            check(shape, KvType::F32, 1e-9);
        }
    }
}
