//! A graphics processor against the plain definitions: here mostly one that the processor plays.
//!
//! Weights are met with activations in f32, so the bound is the same for every type. Without any adapter the tests say so
//! and pass: install a driver (`mesa-vulkan-drivers`) to run them.

use std::sync::Arc;

use farpost_kernels::backend::{Activations, Backend, DeviceError, KvType, Limits, Output, Placement, WantKind};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::placed::{Layers, Placed};
use farpost_kernels::reference::Reference;
use farpost_kernels::tensor::DType;
use farpost_kernels::wgpu::{Adapters, Options, Wgpu};

use crate::device::{EXACT, Subject, batch, check, logits};
use crate::drive::{error, limits, results};
use crate::models::{FAMILIES, Family, Shape, model, shape};

/// The device, where there is one.
fn device() -> Option<Wgpu> {
    device_with(Options::default())
}

fn device_with(options: Options) -> Option<Wgpu> {
    let options = Options { adapters: Adapters::Any, ..options };
    Wgpu::open_with(options).map_err(|error| println!("skipped: {error}; install a Vulkan driver")).ok()
}

fn with(test: fn(&Subject)) {
    if let Some(device) = device() {
        test(&Subject { device: Arc::new(device), coded: EXACT });
    }
}

test_each! { with:
    every_family_computes_what_its_ops_say,
    layers_on_two_devices_are_those_of_one,
    long_contexts_are_attended_to_in_parts,
    what_neighbours_share_is_left_alone,
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
fn a_token_takes_few_dispatches() {
    let Some(device) = device() else { return };
    // Three layers; one for the embedding, one that brings rows with results together, the head and the arg-max.
    let per_layer = |family| match family {
        Family::Llama | Family::Parallel => 6,
        // A norm with a sum behind attention and behind the unit.
        Family::Gemma => 8,
        // The router, the choice, units, their mixture.
        Family::Moe => 8,
        Family::Odd => 0,
    };
    for family in FAMILIES.into_iter().filter(|family| *family != Family::Odd) {
        let graph = model(shape(DType::F32, family), 5);
        let plan = device.compile(&graph, &limits(KvType::F16, 1, Activations::Auto)).unwrap();
        assert_eq!(plan.n_dispatches(), Some(3 * per_layer(family) + 4), "{family:?}");
    }
}

/// The device with some of what it offers switched off; other tests use all of it.
fn masked(subgroups: bool, halves: bool, packed: bool) -> Option<Wgpu> {
    device_with(Options { subgroups, halves, packed, ..Options::default() })
}

#[test]
fn sums_without_subgroups_are_the_same() {
    let Some(device) = masked(false, true, true) else { return };
    assert!(!device.describe().features.iter().any(|feature| feature == "subgroups"));
    for family in [Family::Llama, Family::Gemma, Family::Moe] {
        check(&device, shape(DType::F32, family), KvType::F32, EXACT);
    }
}

#[test]
fn inputs_are_rounded_where_that_is_asked_for_alone() {
    // With one scale for 32 weights, with minima, with sixteen levels of a table, with one for 16, with bytes.
    let all = [DType::Q4_0, DType::Q4_1, DType::IQ4_NL, DType::Q6_K, DType::Q4_K, DType::Q8_0];
    for (halves, packed, types, bound) in
        [(false, false, &all[..1], EXACT), (true, false, &all, 1e-5), (false, true, &all, 1e-4)]
    {
        let Some(device) = masked(true, halves, packed) else { return };
        for &dtype in types {
            let len = dtype.block_len();
            let wide = Shape { width: len.max(96), head_dim: 32, ff: len.max(160), ..shape(dtype, Family::Llama) };
            let wide = Shape { n_heads: wide.width / 32, n_kv_heads: wide.width / 32, ..wide };
            let (graph, limits) = (model(wide, 5), limits(KvType::F32, 1, Activations::Int8));
            let error = error(&results(&Reference, &graph, &limits), &results(&device, &graph, &limits));
            println!("{dtype}, f16 {halves}, int8 {packed}: error {error:.1e}");
            assert!(error <= bound, "{dtype}, f16 {halves}, int8 {packed}: error {error:.2e}");
        }
    }
}

#[test]
fn a_device_takes_as_many_layers_as_it_has_room_for() {
    let Some(device) = device() else { return };
    let device: Arc<dyn Backend> = Arc::new(device);
    // Its memory is that of the processor, so that copies of weights count.
    assert!(device.shares_memory());
    // Weights are most of what it takes.
    let wide = Shape { width: 256, n_heads: 8, n_kv_heads: 8, ff: 768, ..shape(DType::F32, Family::Llama) };
    let graph = model(wide, 5);
    let limits = limits(KvType::F16, 1, Activations::Auto);
    let whole = device.compile(&graph, &limits).unwrap().memory();
    let all = whole.weights_copied + whole.kv + whole.scratch;
    let placed = Placed::new(Arc::clone(&device), Arc::new(Cpu::detect()), Layers::Auto);
    let with = |cap: u64| placed.compile(&graph, &Limits { memory_cap: Some(cap), ..limits.clone() });
    assert_eq!(with(2 * all).unwrap().placement(), None);
    let plan = with(all - all / 5).unwrap();
    assert!(matches!(plan.placement(), Some(Placement { n_layers: 1 | 2, of: 3 })), "{:?}", plan.placement());
    let memory = plan.memory();
    assert!(memory.weights_copied + memory.kv + memory.scratch <= all - all / 5, "{memory:?}");
    let error = with(1000).err();
    assert!(matches!(error, Some(DeviceError::OutOfMemory { what: "scratch", .. })), "{error:?}");
}

#[test]
fn matrices_larger_than_a_binding_are_cut_by_rows() {
    // Of a few rows each, in the midst of experts too.
    let Some(device) = device_with(Options { most_bound_bytes: Some(10_000), ..Options::default() }) else { return };
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
