//! What runs beside products, per instruction set, on one thread: bytes read and written a second, of rows that are
//! larger together than the last-level cache. `cargo bench -p farpost-benches --bench pointwise -- 'glu.*avx512'`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use farpost_benches::Random;
use farpost_benches::of_roof::{Elements, OfRoof, criterion};
use farpost_kernels::backend::KvType;
use farpost_kernels::cpu::attention::store;
use farpost_kernels::cpu::choose::Chooser;
use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::cpu::linear::{Input, InputKind};
use farpost_kernels::cpu::pointwise::{add, glu, rms_norm, rope_in_place, softcap_in_place};
use farpost_kernels::graph::{Activation, RopeStyle};

/// Elements of a row.
const COLS: usize = 2048;
/// Rows: 128 MiB of floats.
const ROWS: usize = 16 << 10;
const HEAD_DIM: usize = 64;
/// Ids of a vocabulary.
const VOCABULARY: usize = 128 << 10;
const PAGE_TOKENS: usize = 32;

/// Two inputs and an output.
struct Rows {
    a: Vec<f32>,
    b: Vec<f32>,
    out: Vec<f32>,
}

fn pointwise(criterion: &mut Criterion<OfRoof>) {
    let mut random = Random::new(5);
    let mut values = || (0..ROWS * COLS).map(|_| random.value()).collect::<Vec<f32>>();
    let mut rows = Rows { a: values(), b: values(), out: vec![0.0; ROWS * COLS] };
    let (weight, angles) = (rows.b[..COLS].to_vec(), rows.b[..HEAD_DIM / 2].to_vec());
    // Bytes per element, and what is done to one row.
    type Work<'a> = (&'static str, usize, Box<dyn Fn(Isa, &[f32], &[f32], &mut [f32]) + 'a>);
    // SAFETY: of all: sets come from `available`.
    let works: [Work<'_>; 7] = [
        ("norm", 8, Box::new(|isa, a, _, out| unsafe { rms_norm(isa, a, &weight, 1e-5, out) })),
        ("add", 12, Box::new(|isa, a, b, out| unsafe { add(isa, a, b, out) })),
        ("glu silu", 12, Box::new(|isa, a, b, out| unsafe { glu(isa, Activation::Silu, a, b, out) })),
        ("glu gelu", 12, Box::new(|isa, a, b, out| unsafe { glu(isa, Activation::GeluTanh, a, b, out) })),
        ("softcap", 8, Box::new(|isa, _, _, out| unsafe { softcap_in_place(isa, out, 30.0, 1.0) })),
        (
            "rope normal",
            8,
            Box::new(|isa, _, _, out| unsafe {
                rope_in_place(isa, out, HEAD_DIM, &angles, &angles, RopeStyle::Normal);
            }),
        ),
        (
            "rope halves",
            8,
            Box::new(|isa, _, _, out| unsafe {
                rope_in_place(isa, out, HEAD_DIM, &angles, &angles, RopeStyle::HalfSplit);
            }),
        ),
    ];
    for (name, bytes, work) in works {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::BytesDecimal((bytes * ROWS * COLS) as u64));
        for isa in Isa::available() {
            let Rows { a, b, out } = &mut rows;
            group.bench_function(isa.to_string(), |bencher| {
                bencher.iter(|| {
                    let inputs = a.chunks_exact(COLS).zip(b.chunks_exact(COLS));
                    for ((a, b), out) in inputs.zip(out.chunks_exact_mut(COLS)) {
                        work(isa, a, b, out);
                    }
                });
            });
        }
        group.finish();
    }
}

/// Rows of activations to int8: read as floats, written as codes, scales and sums.
fn rounding(criterion: &mut Criterion<OfRoof>) {
    let mut random = Random::new(6);
    let values: Vec<f32> = (0..ROWS * COLS).map(|_| random.value()).collect();
    let mut group = criterion.benchmark_group("rounding");
    group.throughput(Throughput::BytesDecimal(size_of_val(values.as_slice()) as u64));
    for isa in Isa::available() {
        // As many rows as a step has: they are read again soon.
        let input = Input::try_new(isa, InputKind::Q8x32, 512, COLS).unwrap();
        input.begin(512);
        group.bench_function(isa.to_string(), |bencher| {
            bencher.iter(|| {
                for (row, values) in values.chunks_exact(COLS).enumerate() {
                    // SAFETY: one thread.
                    unsafe { input.fill_row(row % 512, values) };
                }
            });
        });
    }
    group.finish();
}

/// Keys or values of one head into their pages.
fn storing(criterion: &mut Criterion<OfRoof>) {
    let mut random = Random::new(7);
    let values: Vec<f32> = (0..ROWS * COLS).map(|_| random.value()).collect();
    let tokens = values.len() / HEAD_DIM;
    let mut pages = vec![0_u8; tokens.next_multiple_of(PAGE_TOKENS) * HEAD_DIM * 4];
    for (type_name, kv_type) in [("f32", KvType::F32), ("f16", KvType::F16), ("q8_0", KvType::Q8_0)] {
        let mut group = criterion.benchmark_group(format!("storing {type_name}"));
        group.throughput(Throughput::BytesDecimal(size_of_val(values.as_slice()) as u64));
        for isa in Isa::available() {
            group.bench_function(isa.to_string(), |bencher| {
                bencher.iter(|| {
                    for (token, vector) in values.chunks_exact(HEAD_DIM).enumerate() {
                        let page = &mut pages[token / PAGE_TOKENS * PAGE_TOKENS * HEAD_DIM * 4..];
                        // SAFETY: the set is available, a page has room for floats.
                        unsafe {
                            store(isa, kv_type, vector, page.as_mut_ptr(), PAGE_TOKENS, token % PAGE_TOKENS);
                        }
                    }
                });
            });
        }
        group.finish();
    }
}

/// The likeliest tokens of rows of logits.
fn choosing(criterion: &mut Criterion<OfRoof>) {
    let mut random = Random::new(8);
    let logits: Vec<f32> = (0..ROWS * COLS).map(|_| 10.0 * random.value()).collect();
    for (name, k, wants_log_sum) in [("arg-max", 1, false), ("best 40 and log-sum", 40, true)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::BytesDecimal(size_of_val(logits.as_slice()) as u64));
        for isa in Isa::available() {
            let mut chooser = Chooser::new(k);
            group.bench_function(isa.to_string(), |bencher| {
                bencher.iter(|| {
                    for row in logits.chunks_exact(VOCABULARY) {
                        chooser.begin(k, wants_log_sum);
                        // SAFETY: the set is available.
                        unsafe { chooser.take(isa, 0, row) };
                    }
                    chooser.arg_max()
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = criterion(Elements::F32);
    targets = pointwise, rounding, storing, choosing
}
criterion_main!(benches);
