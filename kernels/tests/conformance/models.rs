//! Small models of random numbers, with every op in them.

use std::sync::Arc;

use farpost_kernels::graph::{Activation, Graph, GraphBuilder, KvLayer, Moe, Rope, RopeStyle, Value};
use farpost_kernels::quant;
use farpost_kernels::tensor::{Bytes, DType, Weight};

/// A small generator, so that every run tests the same numbers.
pub struct Random(pub u64);

impl Random {
    pub fn value(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn weight(&mut self, dtype: DType, rows: usize, cols: usize) -> Weight {
        let spread = 1.7 / (cols as f32).sqrt();
        let values: Vec<f32> = (0..rows * cols).map(|_| self.value() * spread).collect();
        let mut bytes = vec![0; rows * dtype.row_bytes(cols).unwrap()];
        for (values, bytes) in values.chunks(cols).zip(bytes.chunks_mut(dtype.row_bytes(cols).unwrap())) {
            quant::encode(dtype, values, None, bytes).unwrap();
        }
        Weight::new(&format!("{dtype} {rows} x {cols}"), dtype, rows, cols, Bytes::from(bytes)).unwrap()
    }

    pub fn vector(&mut self, len: usize, around: f32) -> Weight {
        let values: Vec<f32> = (0..len).map(|_| around + 0.3 * self.value()).collect();
        Weight::from_f32("vector", 1, len, &values).unwrap()
    }
}

/// What a test model is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub dtype: DType,
    pub width: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub ff: usize,
    pub family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
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

pub const VOCABULARY: usize = 203;
pub const N_LAYERS: usize = 3;

pub fn rope(style: RopeStyle, pairs: usize, magnitude: f32) -> Arc<Rope> {
    let frequencies = (0..pairs).map(|pair| 100_f64.powf(-(pair as f64) / pairs as f64)).collect();
    Arc::new(Rope { style, frequencies, magnitude })
}

pub fn model(shape: Shape, seed: u64) -> Graph {
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

pub fn feed_forward(graph: &mut GraphBuilder, random: &mut Random, shape: Shape, x: Value) -> Value {
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

pub const FAMILIES: [Family; 5] = [Family::Llama, Family::Gemma, Family::Parallel, Family::Moe, Family::Odd];

pub fn shape(dtype: DType, family: Family) -> Shape {
    Shape { dtype, width: 96, n_heads: 6, n_kv_heads: 2, head_dim: 32, ff: 160, family }
}
