//! A step allocates nothing once it has run with a batch of its size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farpost_kernels::backend::{Backend, Batch, Limits, Output, Row, Want, WantKind};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::graph::{Activation, GraphBuilder, KvLayer, Moe, Rope, RopeStyle};
use farpost_kernels::tensor::Weight;

/// Counts what is asked of the system.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn weight(rows: usize, cols: usize) -> Weight {
    let values: Vec<f32> = (0..rows * cols).map(|at| (at as f32 * 0.7).sin() * 0.2).collect();
    Weight::from_f32("w", rows, cols, &values).unwrap()
}

#[test]
fn a_repeated_step_allocates_nothing() {
    let mut graph = GraphBuilder::new();
    let x = graph.embed(weight(40, 32), 1.0);
    let normed = graph.norm(x, weight(1, 32), 1e-5).unwrap();
    let q = graph.linear(normed, weight(64, 32), None).unwrap();
    let k = graph.linear(normed, weight(32, 32), None).unwrap();
    let v = graph.linear(normed, weight(32, 32), None).unwrap();
    let rope = Arc::new(Rope { style: RopeStyle::HalfSplit, frequencies: vec![1.0; 16].into(), magnitude: 1.0 });
    let q = graph.rope(q, 32, &rope).unwrap();
    let kv = KvLayer { n_kv_heads: 1, key_dim: 32, value_dim: 32, window: None };
    let attended = graph.attention((q, k, v), kv, 2, 0.2, None).unwrap();
    let mixed = graph.linear(attended, weight(32, 64), None).unwrap();
    let x = graph.add(x, mixed).unwrap();
    let normed = graph.norm(x, weight(1, 32), 1e-5).unwrap();
    let moe = Moe {
        router: weight(4, 32),
        gate: weight(4 * 48, 32),
        up: weight(4 * 48, 32),
        down: weight(4 * 32, 48),
        n_used: 2,
        renormalise: true,
        activation: Activation::Silu,
    };
    let fed = graph.moe(normed, moe).unwrap();
    let x = graph.add(x, fed).unwrap();
    let graph = graph.head(x, weight(40, 32), None, 1.0, None, 4096).unwrap();
    let limits = Limits { max_rows: 32, max_sequences: 2, threads: 2, ..Limits::default() };
    let mut plan = Cpu::detect().compile(&graph, &limits).unwrap();
    let sequence = plan.kv().open().unwrap();
    let mut out = Output::default();
    let kinds = [
        (1, WantKind::Greedy),
        (20, WantKind::TopK(5)),
        (1, WantKind::Logits),
        (5, WantKind::Score(3)),
        (5, WantKind::Hidden),
    ];
    for (n_rows, kind) in kinds {
        let mut counts = Vec::new();
        let mut batch = Batch::default();
        for _ in 0..6 {
            let start = plan.kv().len(sequence);
            batch.rows.clear();
            batch.rows.extend((start..start + n_rows).map(|position| Row { token: 7, position, sequence }));
            batch.want = vec![Want { row: n_rows - 1, kind }];
            assert!(plan.kv().reserve(sequence, start + n_rows));
            let before = COUNT.load(Ordering::Relaxed);
            plan.step(&batch, &mut out).unwrap();
            counts.push(COUNT.load(Ordering::Relaxed) - before);
        }
        // The first steps may set up what the system gives each thread once.
        assert_eq!(counts[3..], [0; 3], "{n_rows} rows, {kind:?}");
    }
}
