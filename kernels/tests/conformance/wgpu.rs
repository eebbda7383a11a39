//! A graphics processor against the plain definitions: here mostly one that the processor plays.
//!
//! Weights are met with activations in f32, so the bound is the same for every type. Without any adapter the tests say so
//! and pass: install a driver (`mesa-vulkan-drivers`) to run them.

use farpost_kernels::backend::{Backend, KvType, Limits, Output, WantKind};
use farpost_kernels::reference::Reference;
use farpost_kernels::tensor::DType;
use farpost_kernels::wgpu::{Adapters, Wgpu};

use crate::device::{EXACT, Subject, batch, logits};
use crate::drive::error;
use crate::models::{Family, Shape, model, shape};

/// The device, where there is one.
fn device() -> Option<Wgpu> {
    Wgpu::open(Adapters::Any).map_err(|error| println!("skipped: {error}; install a Vulkan driver")).ok()
}

fn with(test: fn(&Subject<'_>)) {
    if let Some(device) = device() {
        test(&Subject { device: &device, coded: EXACT });
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
fn matrices_larger_than_a_binding_are_cut_by_rows() {
    let Some(device) = device() else { return };
    // Of a few rows each, in the midst of experts too.
    let device = device.with_binding_at_most(10_000).unwrap();
    for family in [Family::Moe, Family::Parallel] {
        let narrow = Shape { width: 64, n_heads: 2, n_kv_heads: 2, ff: 96, ..shape(DType::Q8_0, family) };
        let sizes = Limits { max_rows: 64, max_sequences: 4, max_windows: 4, kv_tokens: 16, ..Limits::default() };
        let limits = Limits { page_tokens: 4, ..sizes };
        let graph = model(narrow, 5);
        let run = |backend: &dyn Backend| {
            let mut plan = backend.compile(&graph, &limits).unwrap();
            let sequence = plan.kv().open().unwrap();
            assert!(plan.kv().reserve(sequence, 14));
            let (batch, mut output) = (batch(sequence, 0..14, WantKind::Logits), Output::default());
            plan.step(&batch, &mut output).unwrap();
            output.results.into_iter().map(logits).collect::<Vec<_>>()
        };
        let error = error(&run(&Reference), &run(&device));
        assert!(error <= 1e-5, "{family:?}: error {error:.2e}");
    }
}
