//! What the reference needs to know of a model, straight from its metadata and its family's publication.

use farpost_models::gguf::{Metadata, Value};

/// Families as far as they compute differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
}

/// The numbers of one model.
pub struct Settings {
    pub family: Family,
    pub n_layers: usize,
    pub width: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub eps: f32,
    pub query_scale: f64,
    pub softcap_scores: Option<f64>,
    pub softcap_logits: Option<f64>,
    /// Tokens each layer looks back.
    pub windows: Vec<Option<usize>>,
    /// Rotary base of each layer.
    pub rope_bases: Vec<f64>,
    pub rope_dims: usize,
    /// The tensor with a divisor for each pair.
    pub rope_divisors: Option<&'static str>,
    /// Factor on cosines and sines.
    pub rope_factor: f64,
    /// Experts in a layer, and how many a token uses.
    pub experts: Option<(usize, usize)>,
}

impl Settings {
    pub fn read(metadata: &Metadata, context: usize) -> Self {
        let architecture = metadata.required_string("general.architecture").expect("an architecture");
        let number = |key: &str| -> Option<f64> {
            match metadata.get(&format!("{architecture}.{key}"))? {
                Value::Array(_) => panic!("the reference takes no arrays ({key})"),
                value => value.as_float().or_else(|| value.as_integer().map(|n| n as f64)),
            }
        };
        let need = |key: &str| number(key).unwrap_or_else(|| panic!("the reference needs {architecture}.{key}"));
        let count = |key: &str| need(key) as usize;
        assert!(number("rope.scaling.factor").is_none(), "the reference does not stretch positions");
        let family = match architecture {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" | "qwen3moe" => Family::Qwen3,
            "gemma2" => Family::Gemma2,
            "gemma3" => Family::Gemma3,
            "phi3" => Family::Phi3,
            other => panic!("the reference does not know {other}"),
        };
        let (n_layers, head_dim) = (count("block_count"), count("attention.key_length"));
        let window = number("attention.sliding_window").map(|window| window as usize);
        // Gemma 2 alternates, local first; Gemma 3 has five local layers for each global one.
        let is_local = |layer: usize| match family {
            Family::Gemma2 => layer.is_multiple_of(2),
            Family::Gemma3 => !(layer + 1).is_multiple_of(6),
            Family::Phi3 => true,
            _ => false,
        };
        let base = need("rope.freq_base");
        let is_long = family == Family::Phi3 && context as f64 > need("rope.scaling.original_context_length");
        Self {
            family,
            n_layers,
            width: count("embedding_length"),
            n_heads: count("attention.head_count"),
            n_kv_heads: count("attention.head_count_kv"),
            head_dim,
            eps: need("attention.layer_norm_rms_epsilon") as f32,
            query_scale: (head_dim as f64).sqrt().recip(),
            softcap_scores: number("attn_logit_softcapping"),
            softcap_logits: number("final_logit_softcapping"),
            windows: (0..n_layers).map(|layer| window.filter(|_| is_local(layer))).collect(),
            rope_bases: (0..n_layers)
                .map(|layer| if family == Family::Gemma3 && is_local(layer) { 10_000.0 } else { base })
                .collect(),
            rope_dims: number("rope.dimension_count").map_or(head_dim, |dims| dims as usize),
            rope_divisors: match family {
                Family::Phi3 if is_long => Some("rope_factors_long.weight"),
                Family::Phi3 => Some("rope_factors_short.weight"),
                _ => None,
            },
            rope_factor: number("rope.scaling.attn_factor").unwrap_or(1.0),
            experts: number("expert_count").map(|n| (n as usize, count("expert_used_count"))),
        }
    }
}
