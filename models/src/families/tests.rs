//! Every golden model builds into the graph its family describes.

use farpost_firmware_tests::model;
use farpost_kernels::graph::{Activation, Op};
use farpost_kernels::tensor::{DType, Weight};

use super::*;
use crate::gguf::{File, MemoryNeed, OwnedValue, Writer};

pub(super) const TINY: [&str; 9] =
    ["llama", "llama-freqs", "llama-moe", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3"];

pub(super) fn tiny(name: &str) -> File {
    File::open(&model(&format!("tiny-{name}.gguf"))).unwrap()
}

fn built(file: &File) -> Built {
    build(file, &Options::default()).unwrap()
}

/// A tensor to be written; its numbers do not matter here.
#[derive(Clone)]
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) dims: Vec<usize>,
}

/// A file with the keys and tensors of another, after `change`; every number is 0, rotary divisors are 1.
pub(super) fn changed(file: &File, change: impl FnOnce(&mut Writer, &mut Vec<Spec>)) -> File {
    let mut writer = Writer::with_metadata_of(file.metadata());
    let tensors = file.tensors().iter();
    let mut specs: Vec<Spec> = tensors
        .map(|tensor| Spec { name: tensor.name().to_owned(), dtype: tensor.dtype(), dims: tensor.dims().to_vec() })
        .collect();
    change(&mut writer, &mut specs);
    let sizes: Vec<u64> = specs.iter().map(|spec| writer.tensor(&spec.name, spec.dtype, &spec.dims).unwrap()).collect();
    let mut data = writer.start("m.gguf", Vec::new()).unwrap();
    for (spec, size) in specs.iter().zip(sizes) {
        let number = if spec.name.starts_with("rope_") { 1_f32 } else { 0.0 };
        let bytes: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(size as usize).collect();
        data.append(&spec.name, &bytes).unwrap();
    }
    File::from_bytes("m.gguf", data.finish().unwrap().into()).unwrap()
}

#[test]
fn a_model_that_names_a_pooling_makes_embeddings() {
    assert_eq!(built(&tiny("qwen3")).config.pooling, None);
    let poolings = [(0, None), (1, Some(Pooling::Mean)), (2, Some(Pooling::First)), (3, Some(Pooling::Last))];
    for (number, expected) in poolings {
        let change = |writer: &mut Writer, _: &mut Vec<Spec>| {
            writer.set("qwen3.pooling_type", number).set("qwen3.attention.causal", true);
        };
        assert_eq!(built(&changed(&tiny("qwen3"), change)).config.pooling, expected);
    }
}

#[test]
fn every_tiny_model_builds_and_uses_all_its_tensors() {
    for name in TINY {
        let file = tiny(name);
        let Built { graph, config } = built(&file);
        assert_eq!(graph.kv_layers().len(), if name == "gemma3" { 8 } else { 4 }, "{name}");
        assert_eq!((graph.n_vocab(), graph.max_context(), config.width), (512, 512, 256), "{name}");
        assert_eq!((config.n_heads, config.key_dim, config.value_dim), (4, 64, 64), "{name}");
        let used: std::collections::HashSet<&str> = graph.weights().map(Weight::name).collect();
        let unused = file.tensors().iter().filter(|tensor| !used.contains(tensor.name()));
        assert!(
            unused.clone().all(|tensor| tensor.name().starts_with("rope_")),
            "{name}: {:?}",
            unused.collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_real_model_builds_with_its_windows_and_rotary_bases() {
    let Built { graph, config } = built(&File::open(&model("gemma-3-270m-q4_k_m.gguf")).unwrap());
    assert_eq!((config.n_layers, graph.n_vocab(), graph.max_context()), (18, 262_144, 32_768));
    let windows: Vec<Option<usize>> = graph.kv_layers().iter().map(|layer| layer.window).collect();
    let six = [Some(512), Some(512), Some(512), Some(512), Some(512), None];
    assert_eq!(windows, [six, six, six].concat());
    let second_frequencies: Vec<f64> = graph
        .ops()
        .iter()
        .filter_map(|op| match op {
            Op::Rope { rope, .. } => Some(rope.frequencies[1]),
            _ => None,
        })
        .collect();
    let (local, global) = (10_000_f64.powf(-2.0 / 256.0), 1_000_000_f64.powf(-2.0 / 256.0));
    for (number, found) in second_frequencies.iter().enumerate() {
        // Two a layer: queries and keys.
        let expected = if number / 2 % 6 == 5 { global } else { local };
        assert!((found - expected).abs() < 1e-12, "rotation {number}: {found}, not {expected}");
    }
    assert!(matches!(graph.ops()[0], Op::Embed { scale, .. } if (scale - 640_f32.sqrt()).abs() < 1e-4));
}

#[cfg(feature = "pocket")]
#[test]
fn the_pocket_model_builds() {
    let Built { graph, config } = built(&crate::pocket::file());
    assert_eq!((config.architecture, graph.max_context()), ("llama", config.trained_context));
}

#[test]
fn memory_is_estimated_for_the_layers_that_are_built() {
    for name in TINY {
        let file = tiny(name);
        let need = MemoryNeed::of(&file).unwrap();
        for (layer, (need, kv)) in need.layers.iter().zip(built(&file).graph.kv_layers()).enumerate() {
            assert_eq!((need.n_kv_heads, need.key_dim, need.value_dim), (kv.n_kv_heads, kv.key_dim, kv.value_dim));
            assert_eq!(need.window, kv.window, "{name}, layer {layer}");
        }
    }
}

#[test]
fn families_differ_as_their_papers_say() {
    let ops = |name: &str| built(&tiny(name)).graph.ops().to_vec();
    let count = |ops: &[Op], wanted: fn(&Op) -> bool| ops.iter().filter(|op| wanted(op)).count();
    let norms = |name: &str| count(&ops(name), |op| matches!(op, Op::Norm { .. }));
    assert_eq!(["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"].map(norms), [9, 9, 17, 17, 49, 9]);
    let biases = |name: &str| count(&ops(name), |op| matches!(op, Op::Linear { bias: Some(_), .. }));
    assert_eq!(["llama", "qwen2", "qwen3"].map(biases), [0, 12, 0]);
    let experts = |name: &str| count(&ops(name), |op| matches!(op, Op::Moe { moe, .. } if moe.renormalise));
    assert_eq!(["llama", "llama-moe", "qwen3moe"].map(experts), [0, 4, 4]);
    let gelu = |name: &str| count(&ops(name), |op| matches!(op, Op::Glu { activation: Activation::GeluTanh, .. }));
    assert_eq!(["llama", "gemma2", "gemma3", "phi3"].map(gelu), [0, 4, 8, 0]);
    let capped = |name: &str| {
        let scores = count(&ops(name), |op| matches!(op, Op::Attention { softcap: Some(50.0), .. }));
        (scores, count(&ops(name), |op| matches!(op, Op::Head { softcap: Some(30.0), .. })))
    };
    assert_eq!(["llama", "gemma2", "gemma3"].map(capped), [(0, 0), (4, 1), (0, 0)]);
    let styles = |name: &str| {
        count(
            &ops(name),
            |op| matches!(op, Op::Rope { rope, .. } if rope.style == farpost_kernels::graph::RopeStyle::Normal),
        )
    };
    assert_eq!(["llama", "qwen2", "phi3"].map(styles), [8, 0, 0]);
}

#[test]
fn a_fused_matrix_is_addressed_in_place() {
    let file = tiny("phi3");
    let fused = file.tensor("blk.2.attn_qkv.weight").unwrap();
    let graph = built(&file).graph;
    let parts: Vec<_> = graph.weights().filter(|weight| weight.name() == fused.name()).collect();
    assert_eq!(parts.iter().map(|part| part.rows()).collect::<Vec<_>>(), [256, 128, 128]);
    assert_eq!(parts[1].view().bytes.as_ptr(), fused.view().bytes[256 * 1024..].as_ptr());
}

#[test]
fn phi3_takes_long_factors_for_contexts_beyond_the_original() {
    let last_frequency = |context| {
        let Built { graph, config } = build(&tiny("phi3"), &Options { context }).unwrap();
        assert_eq!((graph.max_context(), config.trained_context), (config.context, 512));
        let rope = graph.ops().iter().find_map(|op| match op {
            Op::Rope { rope, .. } => Some(rope.clone()),
            _ => None,
        });
        assert_eq!(rope.as_ref().unwrap().magnitude, 1.19);
        rope.unwrap().frequencies[31]
    };
    let plain = 10_000_f64.powf(-62.0 / 64.0);
    for (context, divisor) in [(Some(256), 1.5), (Some(257), 6.0), (None, 6.0), (Some(1024), 6.0)] {
        assert!((last_frequency(context) * divisor / plain - 1.0).abs() < 1e-6, "{context:?}");
    }
}

#[test]
fn small_vectors_of_other_types_are_decoded_at_load() {
    let plain = changed(&tiny("qwen2"), |_, _| ());
    let halves = changed(&tiny("qwen2"), |_, specs| {
        for spec in specs.iter_mut().filter(|spec| spec.dims.len() == 1) {
            spec.dtype = if spec.name.ends_with("bias") { DType::BF16 } else { DType::F16 };
        }
    });
    let shapes = |file: &File| {
        let graph = built(file).graph;
        graph
            .weights()
            .map(|weight| (weight.name().to_owned(), weight.dtype(), weight.rows(), weight.cols()))
            .collect::<Vec<_>>()
    };
    assert_eq!(shapes(&plain), shapes(&halves));
}

#[test]
fn key_value_heads_may_differ_by_layer_and_windows_follow_a_pattern_of_the_file() {
    let file = changed(&tiny("llama"), |writer, specs| {
        writer.set("llama.attention.head_count_kv", &[2_u32, 1, 4, 2][..]);
        for (layer, rows) in [(1, 64), (2, 256)] {
            for spec in specs.iter_mut() {
                if ["k", "v"].iter().any(|part| spec.name == format!("blk.{layer}.attn_{part}.weight")) {
                    spec.dims[1] = rows;
                }
            }
        }
    });
    let heads: Vec<usize> = built(&file).graph.kv_layers().iter().map(|layer| layer.n_kv_heads).collect();
    assert_eq!(heads, [2, 1, 4, 2]);

    let windowed = |value: OwnedValue| {
        let key = "gemma3.attention.sliding_window_pattern";
        let file = changed(&tiny("gemma3"), |writer, _| _ = writer.set(key, value));
        built(&file).graph.kv_layers().iter().map(|layer| layer.window.is_some()).collect::<Vec<_>>()
    };
    let facts = [true, false, true, true, false, false, true, true];
    assert_eq!(windowed(facts[..].into()), facts);
    assert_eq!(windowed(4_u32.into()), [true, true, true, false, true, true, true, false]);
}

#[test]
fn a_context_is_checked_and_kept() {
    let file = tiny("llama");
    let with = |context| build(&file, &Options { context: Some(context) });
    assert_eq!(with(7).unwrap().graph.max_context(), 7);
    for context in [0, usize::MAX] {
        let message = with(context).unwrap_err().to_string();
        assert!(message.contains(&format!("a context of {context} tokens was asked for, 1 to 16777216")), "{message}");
    }
}
