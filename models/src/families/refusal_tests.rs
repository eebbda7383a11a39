//! What cannot be run is refused by name: architectures, tensors, metadata; whatever the values, nothing panics.

use farpost_kernels::tensor::DType;
use proptest::prelude::*;

use super::tests::{Spec, TINY, changed, tiny};
use super::*;
use crate::gguf::{File, OwnedValue, Writer};

/// The message with which a changed file is refused.
fn refusal(name: &str, change: impl FnOnce(&mut Writer, &mut Vec<Spec>)) -> String {
    let file = changed(&tiny(name), change);
    build(&file, &Options::default()).expect_err("the file should be refused").to_string()
}

/// The message without the place in the file, which it must name.
fn unplaced(message: &str) -> String {
    let (field, rest) = message.split_once(" at byte ").expect(message);
    let (offset, problem) = rest.split_once(": ").expect(message);
    assert!(offset.replace(',', "").parse::<u64>().is_ok_and(|offset| offset >= 24), "{message}");
    format!("{field}: {problem}")
}

#[test]
fn an_unknown_architecture_is_refused_with_the_list_of_known_ones() {
    let message = refusal("llama", |writer, _| _ = writer.set("general.architecture", "rwkv7"));
    assert_eq!(
        unplaced(&message),
        "m.gguf: metadata key 'general.architecture': architecture 'rwkv7' is not supported, supported are llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3"
    );
}

#[test]
fn embeddings_that_can_not_be_made_are_refused() {
    let message = refusal("qwen3", |writer, _| _ = writer.set("qwen3.pooling_type", 4_u32));
    assert_eq!(
        unplaced(&message),
        "m.gguf: metadata key 'qwen3.pooling_type': is 4, expected 0 (none), 1 (mean), 2 (cls) or 3 (last)"
    );
    let message = refusal("qwen3", |writer, _| _ = writer.set("qwen3.attention.causal", false));
    assert!(message.contains("'qwen3.attention.causal'") && message.contains("expected true"), "{message}");
}

#[test]
fn a_missing_tensor_is_refused_by_name() {
    for (name, tensor) in [
        ("llama", "token_embd.weight"),
        ("llama", "output_norm.weight"),
        ("llama", "blk.2.ffn_up.weight"),
        ("llama-moe", "blk.0.ffn_gate_inp.weight"),
        ("qwen2", "blk.3.attn_k.bias"),
        ("qwen3", "blk.1.attn_q_norm.weight"),
        ("qwen3moe", "blk.1.ffn_down_exps.weight"),
        ("gemma2", "blk.1.post_ffw_norm.weight"),
        ("gemma3", "blk.7.attn_k_norm.weight"),
        ("phi3", "blk.1.attn_qkv.weight"),
        ("phi3", "rope_factors_short.weight"),
    ] {
        let message = refusal(name, |_, specs| specs.retain(|spec| spec.name != tensor));
        let expected = format!("m.gguf: tensor '{tensor}' is missing, architecture '");
        assert!(message.starts_with(&expected) && message.contains("dimensions ["), "{name}: {message}");
    }
}

#[test]
fn a_tensor_of_another_shape_is_refused_with_what_was_found_and_expected() {
    let message = refusal("qwen2", |_, specs| {
        specs.iter_mut().find(|spec| spec.name == "blk.1.attn_k.weight").unwrap().dims = vec![256, 64];
    });
    assert_eq!(
        unplaced(&message),
        "m.gguf: tensor 'blk.1.attn_k.weight': has dimensions [256, 64], expected [256, 128] (from the metadata)"
    );
    let message = refusal("qwen2", |_, specs| {
        specs.iter_mut().find(|spec| spec.name == "token_embd.weight").unwrap().dims = vec![256, 500];
    });
    assert!(
        unplaced(&message).contains("'token_embd.weight': has dimensions [256, 500], expected [256, 512]"),
        "{message}"
    );
}

#[test]
fn a_tensor_the_architecture_knows_nothing_of_is_refused() {
    for extra in ["blk.0.attn_sinks.weight", "blk.4.attn_norm.weight"] {
        let message = refusal("llama", |_, specs| {
            specs.push(Spec { name: extra.to_owned(), dtype: DType::F32, dims: vec![4] });
        });
        let expected =
            format!("m.gguf: tensor '{extra}': has no place in architecture 'llama', results would be wrong");
        assert_eq!(unplaced(&message), expected);
    }
}

#[test]
fn rotary_divisors_must_be_finite_and_above_zero() {
    let file = tiny("llama-freqs");
    let mut bytes = std::fs::read(file.path().unwrap()).unwrap();
    let at = file.find("rope_freqs.weight").unwrap().offset() as usize + 12;
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        bytes[at..at + 4].copy_from_slice(&bad.to_le_bytes());
        let file = File::from_bytes("m.gguf", bytes.clone().into()).unwrap();
        let message = build(&file, &Options::default()).unwrap_err().to_string();
        assert!(
            unplaced(&message).contains("'rope_freqs.weight': holds") && message.contains("as number 3"),
            "{message}"
        );
    }
}

#[test]
fn metadata_that_makes_no_sense_is_refused_by_key() {
    let cases: &[(&str, &str, OwnedValue, &str)] = &[
        ("llama", "block_count", 0_u32.into(), "is 0, expected an integer of at least 1"),
        ("llama", "block_count", u64::MAX.into(), "is more than the limit of 16,384"),
        ("llama", "block_count", (-4_i32).into(), "is an i32 of -4, expected an integer of at least 0"),
        ("llama", "embedding_length", 0_u32.into(), "is 0"),
        ("llama", "embedding_length", "wide".into(), "is a string"),
        ("llama", "attention.head_count", 0_u32.into(), "is 0"),
        ("llama", "attention.head_count", (&[4_u32, 4, 4, 2][..]).into(), "expected the same number in all layers"),
        ("llama", "attention.head_count_kv", 0_u32.into(), "is 0"),
        ("llama", "attention.head_count_kv", 3_u32.into(), "is 3 for 4 query heads, expected a divisor"),
        ("llama", "attention.head_count_kv", 8_u32.into(), "is 8 for 4 query heads"),
        ("llama", "attention.head_count_kv", (&[2_u32, 2][..]).into(), "expected one number for each layer"),
        ("llama", "attention.key_length", u32::MAX.into(), "is more than the limit of 65,536"),
        ("llama", "attention.layer_norm_rms_epsilon", f32::NAN.into(), "is NaN, expected a finite number above 0"),
        ("llama", "attention.layer_norm_rms_epsilon", 0_f32.into(), "is 0, expected a finite number above 0"),
        ("llama", "context_length", 0_u32.into(), "is 0"),
        ("llama", "context_length", u32::MAX.into(), "is more than the limit of 16,777,216"),
        ("llama", "feed_forward_length", 0_u32.into(), "is 0"),
        ("llama", "rope.dimension_count", 63_u32.into(), "is 63, expected an even number"),
        ("llama", "rope.dimension_count", 66_u32.into(), "is more than the limit of 64"),
        ("llama", "rope.freq_base", 1_f32.into(), "is 1, expected a number above 1"),
        ("llama", "rope.freq_base", f32::INFINITY.into(), "is inf"),
        ("llama", "rope.scaling.factor", (-2_f32).into(), "is -2"),
        ("llama", "rope.scaling.type", "ntk".into(), "is 'ntk', expected 'none', 'linear', 'yarn' or 'longrope'"),
        ("llama", "attention.scale", f32::INFINITY.into(), "is inf"),
        ("llama-moe", "expert_used_count", 5_u32.into(), "is 5 of 4 experts, expected at most expert_count"),
        ("llama-moe", "expert_used_count", 0_u32.into(), "is 0"),
        ("gemma2", "attn_logit_softcapping", 0_f32.into(), "is 0"),
        ("gemma2", "final_logit_softcapping", f32::NAN.into(), "is NaN"),
        ("gemma3", "attention.sliding_window", (-1_i32).into(), "is an i32 of -1"),
        ("gemma3", "attention.sliding_window_pattern", (&[true][..]).into(), "expected one truth value for each layer"),
        ("phi3", "rope.scaling.original_context_length", 0_u32.into(), "is 0"),
        ("phi3", "rope.scaling.attn_factor", f32::NAN.into(), "is NaN"),
    ];
    for (name, key, value, expected) in cases {
        let key = format!("{}.{key}", name.split('-').next().unwrap());
        let message = refusal(name, |writer, _| _ = writer.set(&key, value.clone()));
        assert!(message.starts_with(&format!("m.gguf: metadata key '{key}' at byte ")), "{message}");
        assert!(message.contains(expected), "{message}, expected: {expected}");
    }
}

#[test]
fn missing_keys_are_refused_by_name() {
    for key in [
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.context_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "general.architecture",
    ] {
        let message = refusal("llama", |writer, _| _ = writer.remove(key));
        assert!(message.starts_with(&format!("m.gguf: metadata key '{key}' is missing, expected ")), "{message}");
    }
    let message = refusal("llama-moe", |writer, _| _ = writer.remove("llama.expert_used_count"));
    assert!(message.contains("'llama.expert_used_count' is missing"), "{message}");
}

/// Values that files might hold by accident or malice.
fn any_value() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        any::<u32>().prop_map(OwnedValue::from),
        (0_u32..600).prop_map(OwnedValue::from),
        any::<i64>().prop_map(OwnedValue::from),
        any::<u64>().prop_map(OwnedValue::from),
        any::<f32>().prop_map(OwnedValue::from),
        any::<f64>().prop_map(OwnedValue::from),
        any::<bool>().prop_map(OwnedValue::from),
        Just(OwnedValue::from("yarn")),
        prop::collection::vec(0_u32..10, 0..10).prop_map(|numbers| numbers.as_slice().into()),
        prop::collection::vec(any::<f32>(), 0..10).prop_map(|numbers| numbers.as_slice().into()),
        prop::collection::vec(any::<bool>(), 0..10).prop_map(|facts| facts.as_slice().into()),
    ]
}

/// Keys that change what is built.
const KEYS: [&str; 22] = [
    "block_count",
    "embedding_length",
    "context_length",
    "feed_forward_length",
    "vocab_size",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_metadata_either_builds_or_is_refused_in_words(
        model in prop::sample::select(TINY.to_vec()),
        changes in prop::collection::vec((prop::sample::select(KEYS.to_vec()), any_value()), 1..4),
        without_tokens in any::<bool>(),
    ) {
        let source = tiny(model);
        let architecture = source.metadata().required_string("general.architecture").unwrap();
        let mut writer = Writer::with_metadata_of(source.metadata());
        for (key, value) in changes {
            writer.set(&format!("{architecture}.{key}"), value);
        }
        if without_tokens {
            writer.remove("tokenizer.ggml.tokens");
        }
        let file = with_tensors_of(&source, writer);
        match build(&file, &Options::default()) {
            Ok(built) => prop_assert!(built.graph.n_vocab() > 0),
            Err(error) => prop_assert!(error.to_string().starts_with("m.gguf: "), "{error}"),
        }
    }
}

/// A file with these keys and the tensors of another.
fn with_tensors_of(source: &File, mut writer: Writer) -> File {
    for tensor in source.tensors() {
        writer.tensor(tensor.name(), tensor.dtype(), tensor.dims()).unwrap();
    }
    let mut data = writer.start("m.gguf", Vec::new()).unwrap();
    for tensor in source.tensors() {
        data.append(tensor.name(), tensor.weight().bytes().as_slice()).unwrap();
    }
    File::from_bytes("m.gguf", data.finish().unwrap().into()).unwrap()
}
