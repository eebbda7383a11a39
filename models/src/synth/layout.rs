//! A shape's metadata and tensors, named and ordered as converters of real models do.

use farpost_kernels::tensor::DType;

use super::Types;
use super::shapes::{RopeFactors, Shape};
use crate::gguf::OwnedValue;
use crate::quantize::Mixture;

/// What a tensor is filled with.
pub(super) enum Fill {
    /// Weights of mean zero, of the type asked for.
    Weights { deviation: f32 },
    /// F32 numbers evenly spread around a mean: norms, biases, routers.
    Around { mean: f32, spread: f32 },
    /// These F32 numbers.
    Given(Vec<f32>),
}

/// A tensor to be made.
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    pub(super) fill: Fill,
}

impl Spec {
    /// True if its type may be chosen; norms, biases, routers and factors stay F32.
    pub(super) fn is_matrix(&self) -> bool {
        matches!(self.fill, Fill::Weights { .. })
    }
}

/// Deviation of the logits: lively, far from one-hot.
const LOGIT_DEVIATION: f32 = 3.0;

/// Keys and values in the usual order.
pub(super) fn metadata(shape: &Shape, types: Types) -> Vec<(String, OwnedValue)> {
    let mut entries: Vec<(String, OwnedValue)> = vec![
        ("general.architecture".to_owned(), shape.architecture.into()),
        ("general.type".to_owned(), "model".into()),
        ("general.name".to_owned(), format!("{} (random weights)", shape.name).into()),
    ];
    let mut own = |name: &str, value: OwnedValue| entries.push((format!("{}.{name}", shape.architecture), value));
    let number = |n: usize| OwnedValue::from(n as u32);
    own("block_count", number(shape.layers));
    own("context_length", shape.context.into());
    own("embedding_length", number(shape.width));
    own("feed_forward_length", number(shape.ffn));
    own("attention.head_count", number(shape.heads));
    own("attention.head_count_kv", number(shape.kv_heads));
    own("attention.key_length", number(shape.head_dim));
    own("attention.value_length", number(shape.head_dim));
    own("attention.layer_norm_rms_epsilon", shape.epsilon.into());
    own("rope.dimension_count", number(shape.head_dim));
    own("rope.freq_base", shape.rope_base.into());
    own("vocab_size", number(shape.vocabulary));
    if let Some(window) = shape.window {
        own("attention.sliding_window", window.into());
    }
    if shape.architecture == "gemma2" {
        own("attn_logit_softcapping", 50_f32.into());
        own("final_logit_softcapping", 30_f32.into());
    }
    if let RopeFactors::LongShort { original, attention, .. } = shape.rope_factors {
        own("rope.scaling.original_context_length", original.into());
        own("rope.scaling.attn_factor", attention.into());
    }
    if let Some(experts) = shape.experts {
        own("expert_count", number(experts.count));
        own("expert_used_count", number(experts.used));
        own("expert_feed_forward_length", number(experts.ffn));
    }
    entries.push(("general.quantization_version".to_owned(), 2_u32.into()));
    if let Some(file_type) = file_type(types) {
        entries.push(("general.file_type".to_owned(), file_type.into()));
    }
    entries
}

/// The number by which files say what most of their tensors are.
fn file_type(types: Types) -> Option<u32> {
    match types {
        Types::Mixture(mixture) => Some(mixture.file_type()),
        // A file with one of these types alone goes by the small mixture's number.
        Types::Pure(DType::Q3_K) => Some(11),
        Types::Pure(DType::Q4_K) => Some(14),
        Types::Pure(DType::Q5_K) => Some(16),
        Types::Pure(dtype) => Mixture::all().find(|mixture| mixture.name() == dtype.name()).map(Mixture::file_type),
    }
}

/// All tensors in file order.
pub(super) fn tensors(shape: &Shape) -> Vec<Spec> {
    let mut list = Tensors { specs: Vec::new() };
    let is_gemma = shape.architecture.starts_with("gemma");
    let width = shape.width;

    // A tied embedding is small against what the layers add, and the last norm makes up for it: else the head would
    // only repeat the input token. Gemma multiplies its embedding by sqrt(width).
    let smallness = if is_gemma { 0.3 } else { 1.0 };
    let embedding = smallness / (width as f32).sqrt();
    list.put("token_embd.weight", &[width, shape.vocabulary], Fill::Weights { deviation: embedding });
    let last_norm = if shape.is_tied { LOGIT_DEVIATION / smallness } else { 1.0 };
    list.put("output_norm.weight", &[width], Fill::Around { mean: last_norm, spread: last_norm * 0.1 });
    if !shape.is_tied {
        let deviation = LOGIT_DEVIATION / (width as f32).sqrt();
        list.put("output.weight", &[width, shape.vocabulary], Fill::Weights { deviation });
    }
    match &shape.rope_factors {
        RopeFactors::None => {}
        RopeFactors::Llama3 { factor, original } => {
            list.given("rope_freqs.weight", llama3_factors(shape, *factor, *original));
        }
        RopeFactors::LongShort { long, short, .. } => {
            list.given("rope_factors_long.weight", long.to_vec());
            list.given("rope_factors_short.weight", short.to_vec());
        }
    }
    for layer in 0..shape.layers {
        list.layer(shape, layer, is_gemma);
    }
    list.specs
}

struct Tensors {
    specs: Vec<Spec>,
}

impl Tensors {
    fn put(&mut self, name: &str, dims: &[usize], fill: Fill) {
        self.specs.push(Spec { name: name.to_owned(), dims: dims.to_vec(), fill });
    }

    fn given(&mut self, name: &str, values: Vec<f32>) {
        self.put(name, &[values.len()], Fill::Given(values));
    }

    /// A matrix whose output is as large as its input.
    fn matrix(&mut self, name: &str, dims: &[usize]) {
        self.put(name, dims, Fill::Weights { deviation: 1.0 / (dims[0] as f32).sqrt() });
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.put(name, &[width], Fill::Around { mean: 1.0, spread: 0.1 });
    }

    fn layer(&mut self, shape: &Shape, layer: usize, is_gemma: bool) {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (width, ffn) = (shape.width, shape.ffn);
        let (query, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);

        self.norm(&name("attn_norm.weight"), width);
        if shape.architecture == "phi3" {
            self.matrix(&name("attn_qkv.weight"), &[width, query + 2 * kv]);
        } else {
            for (part, rows) in [("attn_q", query), ("attn_k", kv), ("attn_v", kv)] {
                self.matrix(&name(&format!("{part}.weight")), &[width, rows]);
                if shape.has_qkv_bias {
                    let fill = Fill::Around { mean: 0.0, spread: 0.2 };
                    self.put(&name(&format!("{part}.bias")), &[rows], fill);
                }
            }
        }
        if shape.has_qk_norm {
            self.norm(&name("attn_q_norm.weight"), shape.head_dim);
            self.norm(&name("attn_k_norm.weight"), shape.head_dim);
        }
        self.matrix(&name("attn_output.weight"), &[query, width]);
        if is_gemma {
            self.norm(&name("post_attention_norm.weight"), width);
        }

        self.norm(&name("ffn_norm.weight"), width);
        if let Some(experts) = shape.experts {
            let spread = 2.5 / (width as f32).sqrt();
            let router = Fill::Around { mean: 0.0, spread };
            self.put(&name("ffn_gate_inp.weight"), &[width, experts.count], router);
            self.matrix(&name("ffn_gate_exps.weight"), &[width, experts.ffn, experts.count]);
            self.matrix(&name("ffn_up_exps.weight"), &[width, experts.ffn, experts.count]);
            self.matrix(&name("ffn_down_exps.weight"), &[experts.ffn, width, experts.count]);
        } else if shape.architecture == "phi3" {
            self.matrix(&name("ffn_up.weight"), &[width, 2 * ffn]);
            self.matrix(&name("ffn_down.weight"), &[ffn, width]);
        } else {
            self.matrix(&name("ffn_gate.weight"), &[width, ffn]);
            self.matrix(&name("ffn_up.weight"), &[width, ffn]);
            self.matrix(&name("ffn_down.weight"), &[ffn, width]);
        }
        if is_gemma {
            self.norm(&name("post_ffw_norm.weight"), width);
        }
    }
}

/// The divisors of Llama 3.x: whole for long wavelengths, none for short ones, blended between.
fn llama3_factors(shape: &Shape, factor: f64, original: f64) -> Vec<f32> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    let divisor = |pair: usize| {
        let exponent = 2.0 * pair as f64 / shape.head_dim as f64;
        let turns = original / (std::f64::consts::TAU * f64::from(shape.rope_base).powf(exponent));
        let kept = ((turns - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - kept) / factor + kept)) as f32
    };
    (0..shape.head_dim / 2).map(divisor).collect()
}
