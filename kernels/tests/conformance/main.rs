//! Whole graphs on every backend against the plain definitions: every op, fused and not, in mixed batches.
//!
//! A device passes when its logits are those of `reference` up to the rounding its number formats bring: for weights
//! of plain numbers a normalised squared error of 1e-9, for quantized ones (activations are quantized too) of 2e-3.

/// A test of each thing that devices are tested for.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
macro_rules! test_each {
    ($with:path: $($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            $with(crate::device::$name);
        })*
    };
}

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod device;
mod drive;
#[cfg(feature = "cuda")]
#[path = "../emulator/mod.rs"]
mod emulator;
mod models;
#[cfg(feature = "wgpu")]
mod wgpu;

use drive::{error, limits, results};
use farpost_kernels::backend::{Activations, KvType};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::quant;
use farpost_kernels::reference::Reference;
use farpost_kernels::tensor::DType;
use models::{FAMILIES, Family, Shape, model, shape};

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
