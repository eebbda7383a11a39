//! The CUDA backend against the plain definitions, its kernels run by the processor: see `tests/emulator`.
//!
//! Coded weights meet activations of two bytes in small models: what a second one leaves of the first one's error is a
//! 254th, and this is its square. Without a C++ compiler the tests say so and pass.

use farpost_kernels::backend::{Activations, Backend, KvType};
use farpost_kernels::reference::Reference;
use farpost_kernels::tensor::DType;

use crate::device::Subject;
use crate::drive::{error, limits, results};
use crate::emulator;
use crate::models::{Family, Shape, model, shape};

/// See `Activations::Int16`.
const FINE: f64 = 3e-8;

fn with(test: fn(&Subject<'_>)) {
    if let Some(device) = emulator::open(90) {
        test(&Subject { device: &device, coded: FINE });
    }
}

test_each! { with:
    every_family_computes_what_its_ops_say,
    caches_of_every_type_are_as_exact_as_on_the_processor,
    every_weight_type_that_can_be_written_is_exact,
    products_of_every_type_are_exact_whatever_the_rows,
    every_kind_of_result_is_what_the_logits_say,
    positions_that_were_read_and_appended_go_on_as_before,
    sessions_go_from_the_processor_to_another_device,
    what_breaks_the_contract_is_refused_and_counts_nothing,
    logits_that_are_no_numbers_are_an_error,
    too_much_memory_is_an_error,
}

#[test]
fn one_byte_an_activation_costs_what_it_costs_on_the_processor() {
    let Some(device) = emulator::open(90) else { return };
    for (dtype, family) in [
        (DType::Q4_0, Family::Llama),
        (DType::Q8_0, Family::Moe),
        (DType::Q4_K, Family::Gemma),
        (DType::Q6_K, Family::Parallel),
        (DType::Q2_K, Family::Odd),
        (DType::IQ4_NL, Family::Llama),
    ] {
        let wide = Shape { width: 256, n_heads: 4, n_kv_heads: 2, head_dim: 64, ff: 512, ..shape(dtype, family) };
        let (graph, limits) = (model(wide, 5), limits(KvType::F16, 1, Activations::Int8));
        let error = error(&results(&Reference, &graph, &limits), &results(&device, &graph, &limits));
        println!("{wide:?}: error {error:.1e}");
        assert!(error <= 2e-3, "{wide:?}: error {error:.2e}");
    }
}

#[test]
fn devices_without_products_of_tiles_compute_the_same() {
    let (Some(new), Some(old)) = (emulator::open(80), emulator::open(72)) else { return };
    for dtype in [DType::Q4_0, DType::Q6_K] {
        let wide =
            Shape { width: 256, n_heads: 4, n_kv_heads: 2, head_dim: 64, ff: 256, ..shape(dtype, Family::Llama) };
        let graph = model(wide, 5);
        for activations in [Activations::Int8, Activations::Int16] {
            let limits = limits(KvType::F16, 1, activations);
            assert_eq!(results(&new, &graph, &limits), results(&old, &graph, &limits), "{dtype} {activations:?}");
        }
    }
}

#[test]
fn the_device_passes_its_self_test() {
    let Some(device) = emulator::open(90) else { return };
    assert_eq!(device.self_test(), Ok(()));
}
