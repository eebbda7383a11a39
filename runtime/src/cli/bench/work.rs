//! What a test costs at least: multiply-adds and bytes, counted from the graph, and the time they take at the roof.
//!
//! Counted are products with weights (each matrix for each row; of experts only those used; the head only for rows that
//! answer), the bytes of the weights (once a step, however many rows it has) and of the keys and values seen. Products
//! of attention are not counted, nor what is written.

use farpost_kernels::backend::KvType;
use farpost_kernels::cpu::linear::FEWEST_TILE_ROWS;
use farpost_kernels::graph::{Graph, Op};
use farpost_kernels::tensor::Weight;

use super::workload::Workload;

/// What the machine can do at best, over all threads in use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// `None` where memory is too short to find out.
    pub read_bytes_per_second: Option<f64>,
    pub int8_macs_per_second: f64,
    /// With tiles of bf16; `None` where the instruction set has none.
    pub bf16_macs_per_second: Option<f64>,
    pub f32_macs_per_second: f64,
}

/// What bounds a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Reading,
    Int8,
    Bf16,
    F32,
}

impl Bound {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reading => "read",
            Self::Int8 => "int8",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// Work of some steps alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// With weights in blocks.
    pub int8_macs: f64,
    /// Those of them that are made with tiles where there are tiles.
    pub many_rows_macs: f64,
    /// With weights that are plain floats.
    pub f32_macs: f64,
    pub read_bytes: f64,
}

impl Work {
    fn add_products(&mut self, weight: &Weight, n_rows: f64, share: f64) {
        let macs = weight.rows() as f64 * weight.cols() as f64 * share * n_rows;
        if weight.dtype().is_quantized() {
            self.int8_macs += macs;
            if n_rows >= FEWEST_TILE_ROWS as f64 {
                self.many_rows_macs += macs;
            }
        } else {
            self.f32_macs += macs;
        }
    }

    fn add_bytes(&mut self, weight: &Weight, share: f64) {
        self.read_bytes += weight.bytes().len() as f64 * share;
    }

    /// Seconds at the roof, and what they are spent on: reading and computing go on at the same time.
    pub fn least_seconds(&self, roof: &Rates) -> (f64, Bound) {
        let (int8, bf16) = match roof.bf16_macs_per_second {
            Some(rate) => {
                ((self.int8_macs - self.many_rows_macs) / roof.int8_macs_per_second, self.many_rows_macs / rate)
            }
            None => (self.int8_macs / roof.int8_macs_per_second, 0.0),
        };
        let f32 = self.f32_macs / roof.f32_macs_per_second;
        let reading = roof.read_bytes_per_second.map_or(0.0, |rate| self.read_bytes / rate);
        let computing = int8 + bf16 + f32;
        if reading > computing {
            return (reading, Bound::Reading);
        }
        let longest = [(f32, Bound::F32), (bf16, Bound::Bf16), (int8, Bound::Int8)];
        let longest = longest.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        (computing, longest.map_or(Bound::Int8, |longest| longest.1))
    }
}

/// One step as far as its cost depends on it.
struct Step {
    n_rows: usize,
    n_answers: usize,
    n_sequences: usize,
    /// Of the first row of each sequence.
    position: usize,
    kv_type: KvType,
}

impl Step {
    fn add_to(&self, work: &mut Work, graph: &Graph) {
        let n_rows = self.n_rows as f64;
        for op in graph.ops() {
            match op {
                Op::Embed { table, .. } => work.read_bytes += table.row_bytes() as f64 * n_rows,
                Op::Norm { weight, .. } => work.add_bytes(weight, 1.0),
                Op::Linear { weight, bias, .. } => {
                    work.add_products(weight, n_rows, 1.0);
                    std::iter::once(weight).chain(bias).for_each(|weight| work.add_bytes(weight, 1.0));
                }
                Op::Moe { moe, .. } => {
                    work.add_products(&moe.router, n_rows, 1.0);
                    work.add_bytes(&moe.router, 1.0);
                    let used = moe.n_used as f64 / moe.n_experts() as f64;
                    // Experts that at least one row uses, if rows choose independently.
                    let read = 1.0 - (1.0 - used).powf(n_rows);
                    for weight in [&moe.gate, &moe.up, &moe.down] {
                        work.add_products(weight, n_rows, used);
                        work.add_bytes(weight, read);
                    }
                }
                Op::Attention { layer, .. } => {
                    let kv = &graph.kv_layers()[*layer];
                    let end = self.position + self.n_rows / self.n_sequences;
                    let seen = end - kv.window.map_or(0, |window| (self.position + 1).saturating_sub(window));
                    let bytes = self.kv_type.vector_bytes(kv.key_dim) + self.kv_type.vector_bytes(kv.value_dim);
                    work.read_bytes += (seen * self.n_sequences) as f64 * (kv.n_kv_heads * bytes) as f64;
                }
                Op::Head { weight, bias, .. } if self.n_answers > 0 => {
                    work.add_products(weight, self.n_answers as f64, 1.0);
                    std::iter::once(weight).chain(bias).for_each(|weight| work.add_bytes(weight, 1.0));
                }
                Op::Head { .. } | Op::Rope { .. } | Op::Glu { .. } | Op::Add { .. } | Op::Scale { .. } => {}
            }
        }
    }
}

/// The work of a test's prompt and of its writing.
pub fn of(graph: &Graph, workload: &Workload, chunk_rows: usize, kv_type: KvType) -> [Work; 2] {
    let [mut prefill, mut decode] = [Work::default(); 2];
    for start in (0..workload.prompt).step_by(chunk_rows.max(1)) {
        let n_rows = chunk_rows.min(workload.prompt - start);
        let n_answers = usize::from(start + n_rows == workload.prompt);
        let position = workload.depth + start;
        Step { n_rows, n_answers, n_sequences: 1, position, kv_type }.add_to(&mut prefill, graph);
    }
    let n = workload.batch;
    for number in 0..workload.generated {
        let position = workload.depth + workload.prompt + number;
        Step { n_rows: n, n_answers: n, n_sequences: n, position, kv_type }.add_to(&mut decode, graph);
    }
    [prefill, decode]
}

/// Seconds at the roof of all parts, one after the other, and what bounds the longest.
pub fn least_seconds(parts: &[Work], roof: &Rates) -> (f64, Bound) {
    let times: Vec<(f64, Bound)> = parts.iter().map(|work| work.least_seconds(roof)).collect();
    let longest = times.iter().max_by(|a, b| a.0.total_cmp(&b.0));
    (times.iter().map(|time| time.0).sum(), longest.map_or(Bound::Reading, |time| time.1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use farpost_kernels::graph::{Activation, GraphBuilder, KvLayer, Moe};
    use farpost_kernels::tensor::DType;

    use super::*;

    const WIDTH: usize = 32;
    const ROOF: Rates = Rates {
        read_bytes_per_second: Some(100.0),
        int8_macs_per_second: 1000.0,
        bf16_macs_per_second: None,
        f32_macs_per_second: 10.0,
    };

    fn weight(dtype: DType, rows: usize) -> Weight {
        let bytes = vec![0_u8; rows * dtype.row_bytes(WIDTH).unwrap()];
        Weight::new("w", dtype, rows, WIDTH, bytes.into()).unwrap()
    }

    /// Attention over one head of 32 that sees 4 positions, a linear of 96 rows, a head of 10.
    fn dense() -> Graph {
        let mut builder = GraphBuilder::new();
        let x = builder.embed(weight(DType::Q8_0, 10), 1.0);
        let qkv: Vec<_> = (0..3).map(|_| builder.linear(x, weight(DType::Q8_0, WIDTH), None).unwrap()).collect();
        let kv = KvLayer { n_kv_heads: 1, key_dim: WIDTH, value_dim: WIDTH, window: Some(4) };
        let x = builder.attention((qkv[0], qkv[1], qkv[2]), kv, 1, 1.0, None).unwrap();
        builder.head(x, weight(DType::F32, 10), None, 1.0, None, 100).unwrap()
    }

    #[test]
    fn a_prompt_costs_products_of_every_row_and_one_answer() {
        let workload = Workload { prompt: 7, generated: 0, depth: 0, batch: 1 };
        let [prefill, decode] = of(&dense(), &workload, 4, KvType::F16);
        assert_eq!(decode, Work::default());
        assert_eq!((prefill.int8_macs, prefill.f32_macs), (7.0 * 96.0 * 32.0, 10.0 * 32.0));
        assert_eq!(prefill.many_rows_macs, 0.0);
        let workload = Workload { prompt: 40, ..workload };
        let [prompt, _] = of(&dense(), &workload, 20, KvType::F16);
        assert_eq!(prompt.many_rows_macs, prompt.int8_macs);
        // Two chunks read three matrices each; rows of the embedding; keys and values of 4 and of 6 positions (the
        // first row of the second chunk sees from position 1); the head once.
        let kv = (4.0 + 6.0) * 2.0 * 64.0;
        assert_eq!(prefill.read_bytes, 2.0 * 96.0 * 34.0 + 7.0 * 34.0 + kv + 10.0 * 128.0);
    }

    #[test]
    fn writing_reads_the_weights_once_a_step_and_the_keys_of_every_sequence() {
        let workload = Workload { prompt: 0, generated: 2, depth: 1, batch: 3 };
        let [_, decode] = of(&dense(), &workload, 4, KvType::Q8_0);
        assert_eq!((decode.int8_macs, decode.f32_macs), (6.0 * 96.0 * 32.0, 6.0 * 320.0));
        let kv = (2.0 + 3.0) * 3.0 * 2.0 * 34.0;
        assert_eq!(decode.read_bytes, 2.0 * (96.0 * 34.0 + 3.0 * 34.0 + 1280.0) + kv);
    }

    #[test]
    fn of_experts_only_those_used_are_counted() {
        let mut builder = GraphBuilder::new();
        let x = builder.embed(weight(DType::Q8_0, 10), 1.0);
        let moe = Moe {
            router: weight(DType::F32, 8),
            gate: weight(DType::Q8_0, 8 * 32),
            up: weight(DType::Q8_0, 8 * 32),
            down: weight(DType::Q8_0, 8 * 32),
            n_used: 2,
            renormalise: true,
            activation: Activation::Silu,
        };
        let x = builder.moe(x, moe).unwrap();
        let graph = Arc::new(builder.head(x, weight(DType::F32, 10), None, 1.0, None, 100).unwrap());
        let workload = |batch| Workload { prompt: 0, generated: 1, depth: 0, batch };
        let [_, one] = of(&graph, &workload(1), 4, KvType::F16);
        assert_eq!(one.int8_macs, 2.0 * 3.0 * 32.0 * 32.0);
        let others = 34.0 + 8.0 * 128.0 + 1280.0;
        assert_eq!(one.read_bytes, others + 2.0 * 3.0 * 32.0 * 34.0);
        let [_, two] = of(&graph, &workload(2), 4, KvType::F16);
        let expected = others + 34.0 + 8.0 * (1.0 - 0.75 * 0.75) * 3.0 * 32.0 * 34.0;
        assert!((two.read_bytes - expected).abs() < 1e-6, "{}, expected {expected}", two.read_bytes);
    }

    #[test]
    fn the_slower_of_reading_and_computing_is_the_roof() {
        let work = Work { int8_macs: 1000.0, many_rows_macs: 750.0, f32_macs: 5.0, read_bytes: 100.0 };
        assert_eq!(work.least_seconds(&ROOF), (1.5, Bound::Int8));
        assert_eq!(Work { f32_macs: 20.0, ..work }.least_seconds(&ROOF), (3.0, Bound::F32));
        let reading = Work { read_bytes: 1000.0, ..work };
        assert_eq!(reading.least_seconds(&ROOF), (10.0, Bound::Reading));
        assert_eq!(reading.least_seconds(&Rates { read_bytes_per_second: None, ..ROOF }), (1.5, Bound::Int8));
        let tiles = Rates { bf16_macs_per_second: Some(750.0), ..ROOF };
        assert_eq!(work.least_seconds(&tiles), (1.75, Bound::Bf16));
        assert_eq!(least_seconds(&[work, reading], &ROOF), (11.5, Bound::Reading));
        assert_eq!(least_seconds(&[work, Work::default()], &ROOF), (1.5, Bound::Int8));
    }
}
