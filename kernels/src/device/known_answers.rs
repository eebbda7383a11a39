//! A known-answer test of all that a plan may run: products of every form of weights, one row and many, attention over each
//! kind of cache, experts, units; against the plain definitions.

use std::sync::Arc;

use crate::backend::{
    Activations, Answer, Backend, Batch, DeviceError, KvType, Limits, Output, Plan, Row, Want, WantKind,
};
use crate::device::layout::Layout;
use crate::graph::{Activation, Graph, GraphBuilder, GraphError, KvLayer, Moe, Rope, RopeStyle, Value};
use crate::reference::Reference;
use crate::tensor::{DType, Weight, WeightError};

const WIDTH: usize = 256;
const N_VOCAB: usize = 67;
const HEAD: usize = 64;

/// Rows of the steps: many, one, few.
const STEPS: [usize; 3] = [11, 1, 3];

/// Squared error over the square of what is expected: with keys and values rounded, and with the inputs of products rounded,
/// one behind the other.
const MOST_ROUNDED: f64 = 1e-3;
const MOST_COARSE: f64 = 1e-2;

/// Why the test could not be made: not the device's fault.
fn unmade(error: impl std::fmt::Display) -> DeviceError {
    DeviceError::Wrong(format!("the self-test cannot be made: {error}"))
}

/// Makes a plan of a graph.
type Compile<'c> = dyn Fn(&Graph, &Limits) -> Result<Box<dyn Plan>, DeviceError> + 'c;

/// Compares what a device computes with what is known. `compile` is the device's; `most_error` is the squared error that it
/// may have where nothing is rounded but finely.
pub(crate) fn check(compile: &Compile<'_>, most_error: f64) -> Result<(), DeviceError> {
    let graph = graph().map_err(unmade)?;
    let of_caches = [(KvType::F32, most_error), (KvType::F16, MOST_ROUNDED), (KvType::Q8_0, MOST_ROUNDED)];
    let exact = of_caches.map(|(kv_type, most)| (kv_type, Activations::Int16, most));
    for (kv_type, activations, most) in exact.into_iter().chain([(KvType::F32, Activations::Int8, MOST_COARSE)]) {
        let sizes = Limits { max_rows: 16, kv_tokens: 32, page_tokens: 4, ..Limits::default() };
        let limits = Limits { kv_type, activations, ..sizes };
        let expected = results(&mut *Reference.compile(&graph, &limits)?)?;
        let found = results(&mut *compile(&graph, &limits)?)?;
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let norm = square(&mut expected.iter().map(|value| f64::from(*value)));
        let error = square(&mut expected.iter().zip(&found).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        if error.is_nan() || error > norm * most {
            let (cache, activations) = (kv_type.name(), activations.name());
            let error = error / norm;
            return Err(DeviceError::Wrong(format!(
                "self-test with a cache of {cache}, {activations}: error {error:.1e}"
            )));
        }
    }
    Ok(())
}

fn results(plan: &mut dyn Plan) -> Result<Vec<f32>, DeviceError> {
    let Some(sequence) = plan.kv().open() else { return Err(unmade("no sequence")) };
    let (mut results, mut output) = (Vec::new(), Output::default());
    for n_rows in STEPS {
        let len = plan.kv().len(sequence);
        if !plan.kv().reserve(sequence, len + n_rows) {
            return Err(unmade("no room"));
        }
        let row = |place: usize| Row { token: (7 * (len + place) % N_VOCAB) as u32, position: len + place, sequence };
        let want = (0..n_rows).map(|row| Want { row, kind: WantKind::Logits }).collect();
        plan.step(&Batch { rows: (0..n_rows).map(row).collect(), want, interrupt: None }, &mut output)?;
        for answer in &output.results {
            if let Answer::Logits(row) = answer {
                results.extend_from_slice(row);
            }
        }
    }
    Ok(results)
}

/// Numbers that are the same on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn floats(&mut self, rows: usize, cols: usize, around: f32) -> Result<Weight, WeightError> {
        let spread = 1.7 / (cols as f32).sqrt();
        let mut value = || around + ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * spread;
        let values: Vec<f32> = (0..rows * cols).map(|_| value()).collect();
        Weight::from_f32("self-test", rows, cols, &values)
    }

    /// Any blocks, but for exponents, which are kept in the middle of their range: any byte or half may be a scale.
    fn blocks(&mut self, dtype: DType) -> Result<Weight, WeightError> {
        let n_bytes = WIDTH * dtype.row_bytes(WIDTH).unwrap_or(0);
        let words = (0..n_bytes.div_ceil(8)).map(|_| self.next() & 0xBFBF_BFBF_BFBF_BFBF | 0x2020_2020_2020_2020);
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(n_bytes);
        if dtype == DType::MXFP4 {
            // Their scales are exponents alone: all from an eighth to one.
            bytes.chunks_exact_mut(dtype.block_bytes()).for_each(|block| block[0] = 0x7C | block[0] & 3);
        }
        Weight::new(dtype.name(), dtype, WIDTH, WIDTH, bytes.into())
    }
}

/// Why no graph came about.
#[derive(Debug, thiserror::Error)]
enum Unmade {
    #[error(transparent)]
    Weight(#[from] WeightError),
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Types whose weights are read in different ways: others differ from one of them in an offset or the levels of a table,
/// and would take the device as long again to get ready for.
fn kinds() -> Vec<DType> {
    let mut seen = Vec::new();
    let is_new = |dtype: &DType| {
        let mut way = Layout::of(*dtype).constants();
        way.retain(|(name, _)| *name != "OFFSET" && !name.starts_with("TABLE_"));
        let is_new = !seen.contains(&way);
        seen.push(way);
        is_new
    };
    DType::all().filter(is_new).collect()
}

/// A layer of attention, a unit and experts, then products of every kind, each with a norm before it.
fn graph() -> Result<Graph, Unmade> {
    let (mut random, mut graph) = (Random(0x9E37_79B9_7F4A_7C15), GraphBuilder::new());
    let table = random.floats(N_VOCAB, WIDTH, 0.0)?;
    let mut x = graph.embed(table.clone(), 2.0);
    x = attention(&mut graph, &mut random, x)?;
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let gate = graph.linear(x, random.floats(WIDTH, WIDTH, 0.0)?, Some(random.floats(1, WIDTH, 0.0)?))?;
        let unit = graph.glu(gate, x, activation)?;
        let scaled = graph.scale(unit, 0.7);
        x = graph.add(x, scaled)?;
        let mut matrix = |rows: usize, cols: usize| random.floats(rows, cols, 0.0);
        let (gate, up) = (graph.linear(x, matrix(90, WIDTH)?, None)?, graph.linear(x, matrix(90, WIDTH)?, None)?);
        let unit = graph.glu(gate, up, activation)?;
        let down = graph.linear(unit, matrix(WIDTH, 90)?, None)?;
        x = graph.add(x, down)?;
        x = graph.norm(x, random.floats(1, WIDTH, 1.0)?, 1e-5)?;
    }
    let mut matrix = |rows: usize, cols: usize| random.floats(rows, cols, 0.0);
    let moe = Moe {
        router: matrix(3, WIDTH)?,
        gate: matrix(3 * 96, WIDTH)?,
        up: matrix(3 * 96, WIDTH)?,
        down: matrix(3 * WIDTH, 96)?,
        n_used: 2,
        renormalise: true,
        activation: Activation::Silu,
    };
    let mixed = graph.moe(x, moe)?;
    x = graph.add(x, mixed)?;
    for dtype in kinds() {
        x = graph.norm(x, random.floats(1, WIDTH, 1.0)?, 1e-5)?;
        let weight = if dtype.is_quantized() { random.blocks(dtype)? } else { plain(&mut random, dtype)? };
        x = graph.linear(x, weight, None)?;
    }
    x = graph.norm(x, random.floats(1, WIDTH, 1.0)?, 1e-5)?;
    Ok(graph.head(x, table, None, 1.5, Some(5.0), 100)?)
}

fn attention(graph: &mut GraphBuilder, random: &mut Random, x: Value) -> Result<Value, Unmade> {
    let frequencies: Vec<f64> = (0..HEAD / 2).map(|pair| 100_f64.powf(-(pair as f64) / 32.0)).collect();
    let rope = Arc::new(Rope { style: RopeStyle::HalfSplit, frequencies: frequencies.into(), magnitude: 1.1 });
    let normed = graph.norm(x, random.floats(1, WIDTH, 1.0)?, 1e-5)?;
    let mut project = |graph: &mut GraphBuilder, heads: usize| -> Result<Value, Unmade> {
        Ok(graph.linear(normed, random.floats(heads * HEAD, WIDTH, 0.0)?, None)?)
    };
    let (q, k, v) = (project(graph, 4)?, project(graph, 2)?, project(graph, 2)?);
    let (q, k) = (graph.rope(q, HEAD, &rope)?, graph.rope(k, HEAD, &rope)?);
    let layer = KvLayer { n_kv_heads: 2, key_dim: HEAD, value_dim: HEAD, window: Some(9) };
    let attended = graph.attention((q, k, v), layer, 4, 0.125, Some(4.0))?;
    Ok(graph.add(x, attended)?)
}

/// A matrix of plain numbers.
fn plain(random: &mut Random, dtype: DType) -> Result<Weight, WeightError> {
    let floats = random.floats(WIDTH, WIDTH, 0.0)?;
    let bytes = floats.bytes().as_slice();
    let numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let bytes: Vec<u8> = match dtype {
        DType::F16 => numbers.flat_map(|number| half::f16::from_f32(number).to_le_bytes()).collect(),
        DType::BF16 => numbers.flat_map(|number| half::bf16::from_f32(number).to_le_bytes()).collect(),
        _ => return Ok(floats),
    };
    Weight::new(dtype.name(), dtype, WIDTH, WIDTH, bytes.into())
}
