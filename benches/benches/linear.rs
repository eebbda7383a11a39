//! Products per type and instruction set, on one thread: GB/s of weights with 1 to 16 input rows (decode), G multiply-adds a
//! second with 512 (prefill), each with its share of what the machine reaches (reads from memory, multiply-adds of bytes).
//!
//! `cargo bench -p farpost-benches --bench linear -- 'one row/.*avx512'`. Weights for few rows are larger than the
//! last-level cache, so the figure is one of memory as much as of the kernel.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use farpost_benches::of_roof::{Elements, OfRoof, criterion};
use farpost_benches::{Random, random_weight};
use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::cpu::linear::{Input, OutRows, Scratch, input_kind, multiply, order_for};
use farpost_kernels::order::Order;
use farpost_kernels::tensor::{DType, Weight};

const COLS: usize = 2048;

struct Product {
    weight: Weight,
    input: Input,
    scratch: Scratch,
    out: Vec<f32>,
}

impl Product {
    fn new(isa: Isa, weight: Weight, input_rows: usize) -> Self {
        let input = Input::try_new(isa, input_kind(weight.dtype()), input_rows, COLS).unwrap();
        input.begin(input_rows);
        let mut random = Random::new(3);
        for row in 0..input_rows {
            let values: Vec<f32> = (0..COLS).map(|_| random.value()).collect();
            // SAFETY: one thread.
            unsafe { input.fill_row(row, &values) };
        }
        // SAFETY: as above.
        unsafe { input.settle(0..input_rows) };
        let out = vec![0.0; input_rows * weight.rows()];
        Self { scratch: Scratch::try_new(isa, COLS).unwrap(), weight, input, out }
    }

    fn run(&mut self, isa: Isa) {
        let (view, n_rows) = (self.weight.view(), self.weight.rows());
        // SAFETY: one thread, a weight, a set of `available`, and a result vector of this size.
        unsafe {
            let out = OutRows::new(self.out.as_mut_ptr(), n_rows, self.input.rows(), n_rows);
            multiply(isa, &view, 0..n_rows, &self.input, 0..self.input.rows(), &mut self.scratch, out);
        }
    }
}

fn products(criterion: &mut Criterion<OfRoof>) {
    for (name, input_rows, weights) in [
        ("one row", 1, 256 << 20),
        ("4 rows", 4, 128 << 20),
        ("8 rows", 8, 128 << 20),
        ("16 rows", 16, 128 << 20),
        ("512 rows", 512, 1 << 20),
    ] {
        let mut group = criterion.benchmark_group(name);
        for dtype in DType::all() {
            let n_weights = if input_rows == 1 && !dtype.is_quantized() { weights / 2 } else { weights };
            for isa in Isa::available().into_iter().skip(1) {
                let weight_bytes = n_weights / dtype.block_len() * dtype.block_bytes();
                let throughput = if input_rows == 512 {
                    Throughput::Elements((n_weights * input_rows) as u64)
                } else {
                    Throughput::BytesDecimal(weight_bytes as u64)
                };
                group.throughput(throughput);
                let packed = Some(order_for(isa, dtype)).filter(|&order| order != Order::Rows);
                for order in std::iter::once(Order::Rows).chain(packed) {
                    let packed = if order == Order::Rows { "" } else { " packed" };
                    // Made when the bench runs, so that a filter costs nothing for the others.
                    let mut product = None;
                    group.bench_function(format!("{dtype} {isa}{packed}"), |bencher| {
                        let product = product.get_or_insert_with(|| {
                            // Random bits are as good in either order.
                            let weight = random_weight(dtype, n_weights / COLS, COLS).in_order(order);
                            Product::new(isa, weight.expect("the type has this order"), input_rows)
                        });
                        bencher.iter(|| product.run(isa));
                    });
                }
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = criterion(Elements::Int8);
    targets = products
}
criterion_main!(benches);
