//! From a mixture and a model's shape to the type of each tensor.
//!
//! Only names and shapes decide, so the same model gets the same types whatever it was stored in before.

use farpost_kernels::tensor::DType;

use super::table::{Mixture, Rule};
use crate::gguf::{File, GgufError};

/// What the rules need to know of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Number of layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Experts of a layer, 0 if it has none.
    pub n_experts: usize,
    /// True if the embedding is the head too (no `output.weight`).
    pub is_tied: bool,
}

/// The type of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The type it gets.
    pub dtype: DType,
    /// The type its rows were no whole blocks of, if that is why it gets another.
    pub instead_of: Option<DType>,
}

/// What a tensor does, as far as mixtures care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Embedding,
    Head,
    Value,
    Key,
    AttentionOutput,
    FusedQkv,
    Down,
    Other,
}

impl ModelShape {
    /// Reads the shape from a file; keys a model does not have count as one head, no layers, no experts.
    pub fn of(file: &File) -> Result<Self, GgufError> {
        let metadata = file.metadata();
        let architecture = metadata.string("general.architecture")?.unwrap_or_default();
        let number = |key: &str| -> Result<usize, GgufError> {
            let key = format!("{architecture}.{key}");
            // Some models have a number a layer: the rules look at the whole, so the largest speaks for all.
            if let Ok(Some(each)) = metadata.u32s(&key) {
                return Ok(each.into_iter().max().unwrap_or(0) as usize);
            }
            Ok(metadata.u32(&key)?.unwrap_or(0) as usize)
        };
        let n_heads = number("attention.head_count")?;
        let n_kv_heads = match number("attention.head_count_kv")? {
            0 => n_heads,
            n_kv_heads => n_kv_heads,
        };
        Ok(Self {
            n_layers: number("block_count")?,
            n_heads,
            n_kv_heads,
            n_experts: number("expert_count")?,
            is_tied: file.tensor("output.weight").is_none(),
        })
    }
}

impl Mixture {
    /// The type of the tensor called `name` with dimensions `dims` (fastest first).
    pub fn assign(&self, model: &ModelShape, name: &str, dims: &[usize]) -> Assignment {
        if stays_float(name, dims) {
            return Assignment { dtype: DType::F32, instead_of: None };
        }
        let wanted = self.wanted(model, name);
        let dtype = substitute(wanted, dims.first().copied().unwrap_or(0));
        Assignment { dtype, instead_of: (dtype != wanted).then_some(wanted) }
    }

    fn wanted(&self, model: &ModelShape, name: &str) -> DType {
        let (layer, role) = role(name, model.is_tied);
        let has_eight_experts = model.n_experts == 8 && self.base.is_quantized();
        let rule = match role {
            Role::Head => return self.head,
            Role::Value | Role::Key if has_eight_experts => return DType::Q8_0,
            Role::AttentionOutput if has_eight_experts && bits(self.base) < bits(DType::Q5_K) => return DType::Q5_K,
            Role::Embedding => self.embedding,
            Role::Value => self.value,
            Role::AttentionOutput => self.attention_output,
            Role::FusedQkv => self.fused_qkv,
            Role::Down => self.down,
            Role::Key | Role::Other => Rule::Base,
        };
        let choose = |is_first: bool, first: DType, then: DType| if is_first { first } else { then };
        match rule {
            Rule::Base => self.base,
            Rule::Always(dtype) => dtype,
            Rule::WhereMore(dtype) => choose(use_more(layer, model.n_layers), dtype, self.base),
            Rule::FirstLayers(count, first, then) => choose(layer < count, first, then),
            Rule::FirstShare(share, first, then) => choose(layer < model.n_layers / share, first, then),
            Rule::SharedHeads(shared, own) => choose(model.n_heads / model.n_kv_heads.max(1) >= 4, shared, own),
        }
    }
}

/// The type that stands in for `dtype` where rows of `cols` weights are not whole blocks of it.
pub fn substitute(dtype: DType, cols: usize) -> DType {
    let mut dtype = dtype;
    while dtype.row_bytes(cols).is_none() {
        dtype = match dtype {
            DType::Q4_K => DType::Q5_0,
            DType::Q5_K => DType::Q5_1,
            DType::Q6_K => DType::Q8_0,
            DType::TQ1_0 | DType::TQ2_0 => DType::Q4_0,
            other if other.block_len() > 32 => DType::IQ4_NL,
            _ => DType::F16,
        };
    }
    dtype
}

/// True in the first and last eighth of the layers and in every third between.
fn use_more(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= n_layers.saturating_mul(7) / 8 || (layer - eighth) % 3 == 2
}

fn bits(dtype: DType) -> usize {
    dtype.block_bytes() * 8 * 256 / dtype.block_len()
}

/// Vectors, norms, biases, routers and rope factors: small, and worth every bit.
fn stays_float(name: &str, dims: &[usize]) -> bool {
    let is_matrix = dims.iter().filter(|&&dim| dim > 1).count() > 1;
    let small = ["norm", "ffn_gate_inp", "rope_freqs", "rope_factors", "token_types", "position_embd"];
    !is_matrix || !name.ends_with(".weight") || small.iter().any(|part| name.contains(part))
}

fn role(name: &str, is_tied: bool) -> (usize, Role) {
    if name == "output.weight" || (name == "token_embd.weight" && is_tied) {
        return (0, Role::Head);
    }
    if name == "token_embd.weight" {
        return (0, Role::Embedding);
    }
    let in_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some((layer, rest)) = in_layer.and_then(|(layer, rest)| Some((layer.parse().ok()?, rest))) else {
        return (0, Role::Other);
    };
    let role = match rest.split_once('.').map_or(rest, |(role, _)| role) {
        "attn_v" => Role::Value,
        "attn_k" => Role::Key,
        "attn_output" => Role::AttentionOutput,
        "attn_qkv" => Role::FusedQkv,
        "ffn_down" | "ffn_down_exps" | "ffn_down_shexp" => Role::Down,
        _ => Role::Other,
    };
    (layer, role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use DType::{F16, F32, IQ4_NL, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    use farpost_firmware_tests::model;

    const MODEL: ModelShape = ModelShape { n_layers: 32, n_heads: 32, n_kv_heads: 8, n_experts: 0, is_tied: false };

    fn types(mixture: &str, model: &ModelShape, names: &[&str]) -> Vec<DType> {
        let mixture = Mixture::from_name(mixture).unwrap();
        names.iter().map(|name| mixture.assign(model, name, &[4096, 4096]).dtype).collect()
    }

    #[test]
    fn q4_k_m_gives_the_types_that_a_real_q4_k_m_file_has() {
        let file = File::open(&model("gemma-3-270m-q4_k_m.gguf")).unwrap();
        let mixture = Mixture::from_name("q4_k_m").unwrap();
        let shape = ModelShape::of(&file).unwrap();
        let expected = ModelShape { n_layers: 18, n_heads: 4, n_kv_heads: 1, n_experts: 0, is_tied: true };
        assert_eq!(shape, expected);
        assert_eq!(file.metadata().u32("general.file_type").unwrap(), Some(mixture.file_type()));
        for tensor in file.tensors() {
            let assigned = mixture.assign(&shape, tensor.name(), tensor.dims());
            assert_eq!(assigned.dtype, tensor.dtype(), "{}", tensor.name());
        }
        let down = mixture.assign(&shape, "blk.0.ffn_down.weight", &[2048, 640]);
        assert_eq!(down, Assignment { dtype: Q6_K, instead_of: None });
        let query = mixture.assign(&shape, "blk.0.attn_q.weight", &[640, 1024]);
        assert_eq!(query, Assignment { dtype: Q5_0, instead_of: Some(Q4_K) });
    }

    #[test]
    fn better_types_go_to_the_first_and_last_eighth_and_every_third_layer_between() {
        let more: Vec<usize> = (0..32).filter(|&layer| use_more(layer, 32)).collect();
        assert_eq!(more, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert_eq!((0..3).filter(|&layer| use_more(layer, 3)).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn each_mixture_follows_its_line_of_the_table() {
        let names = [
            "blk.0.attn_v.weight",
            "blk.20.attn_v.weight",
            "blk.1.ffn_down.weight",
            "blk.3.ffn_down.weight",
            "blk.20.ffn_down.weight",
            "blk.20.attn_output.weight",
            "blk.20.attn_qkv.weight",
            "blk.20.ffn_up.weight",
            "blk.20.attn_k.weight",
            "output.weight",
            "token_embd.weight",
        ];
        let lines = [
            ("q4_k_m", [Q6_K, Q4_K, Q6_K, Q6_K, Q4_K, Q4_K, Q5_K, Q4_K, Q4_K, Q6_K, Q4_K]),
            ("q5_k_m", [Q6_K, Q5_K, Q6_K, Q6_K, Q5_K, Q5_K, Q6_K, Q5_K, Q5_K, Q6_K, Q5_K]),
            ("q4_k_s", [Q5_K, Q4_K, Q5_K, Q5_K, Q4_K, Q4_K, Q4_K, Q4_K, Q4_K, Q6_K, Q4_K]),
            ("q3_k_m", [Q5_K, Q4_K, Q5_K, Q4_K, Q4_K, Q4_K, Q4_K, Q3_K, Q3_K, Q6_K, Q3_K]),
            ("q3_k_l", [Q5_K, Q5_K, Q5_K, Q5_K, Q5_K, Q5_K, Q4_K, Q3_K, Q3_K, Q6_K, Q3_K]),
            ("q2_k", [Q4_K, Q4_K, Q3_K, Q3_K, Q3_K, Q3_K, Q2_K, Q2_K, Q2_K, Q6_K, Q2_K]),
            ("iq4_nl", [Q5_K, Q5_K, Q5_K, Q5_K, IQ4_NL, IQ4_NL, IQ4_NL, IQ4_NL, IQ4_NL, Q6_K, IQ4_NL]),
            ("q8_0", [Q8_0; 11]),
            ("f16", [F16; 11]),
        ];
        for (mixture, expected) in lines {
            assert_eq!(types(mixture, &MODEL, &names), expected, "{mixture}");
        }
        let own_heads = ModelShape { n_kv_heads: 32, ..MODEL };
        assert_eq!(types("q2_k", &own_heads, &names[..1]), [Q3_K]);
        let tied = ModelShape { is_tied: true, ..MODEL };
        assert_eq!(types("q4_0", &tied, &["token_embd.weight", "blk.0.attn_v.weight"]), [Q6_K, Q4_0]);
    }

    #[test]
    fn eight_experts_get_better_attention_and_the_router_stays_f32() {
        let experts = ModelShape { n_experts: 8, ..MODEL };
        let names = ["blk.9.attn_v.weight", "blk.9.attn_k.weight", "blk.9.attn_output.weight", "blk.9.attn_q.weight"];
        assert_eq!(types("q4_k_m", &experts, &names), [Q8_0, Q8_0, Q5_K, Q4_K]);
        assert_eq!(types("q6_k", &experts, &names), [Q8_0, Q8_0, Q6_K, Q6_K]);
        assert_eq!(types("f16", &experts, &names), [F16; 4]);
        let mixture = Mixture::from_name("q4_k_m").unwrap();
        assert_eq!(mixture.assign(&experts, "blk.0.ffn_gate_inp.weight", &[4096, 8]).dtype, F32);
        assert_eq!(mixture.assign(&experts, "blk.0.ffn_down_exps.weight", &[4096, 4096, 8]).dtype, Q6_K);
        assert_eq!(mixture.assign(&experts, "blk.20.ffn_down_exps.weight", &[4096, 4096, 8]).dtype, Q4_K);
    }

    #[test]
    fn vectors_norms_and_rope_factors_stay_f32() {
        let mixture = Mixture::from_name("q4_0").unwrap();
        let tensors: [(&str, &[usize]); 6] = [
            ("blk.0.attn_norm.weight", &[4096]),
            ("blk.0.attn_q_norm.weight", &[128, 32]),
            ("blk.0.attn_q.bias", &[4096]),
            ("rope_freqs.weight", &[64]),
            ("rope_factors_long.weight", &[48]),
            ("output_norm.weight", &[4096, 1]),
        ];
        for (name, dims) in tensors {
            assert_eq!(mixture.assign(&MODEL, name, dims), Assignment { dtype: F32, instead_of: None }, "{name}");
        }
    }

    #[test]
    fn rows_that_are_not_whole_blocks_fall_back() {
        let lines = [
            (Q2_K, IQ4_NL),
            (Q3_K, IQ4_NL),
            (DType::IQ4_XS, IQ4_NL),
            (DType::TQ1_0, Q4_0),
            (DType::TQ2_0, Q4_0),
            (Q4_K, Q5_0),
            (Q5_K, Q5_1),
            (Q6_K, Q8_0),
            (Q8_0, Q8_0),
        ];
        for (dtype, instead) in lines {
            assert_eq!(substitute(dtype, 896), instead);
            assert_eq!(substitute(dtype, 1024), dtype);
            assert_eq!(substitute(dtype, 100), F16);
        }
        assert_eq!(substitute(F32, 7), F32);
    }
}
