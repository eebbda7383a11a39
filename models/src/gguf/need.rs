//! How much memory a model needs, from its metadata alone: weights, and the KV cache of a context.
//!
//! For `inspect` and for refusing early. What a plan really takes is its own ledger's to say.

use farpost_kernels::backend::KvType;

use super::error::{GgufError, Problem};
use super::file::File;
use super::metadata::Metadata;

/// Layers of more models than exist: bounds work on a number from a file.
const MAX_LAYERS: u32 = 16_384;

/// The KV cache of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNeed {
    /// KV heads; 0 for a layer without attention.
    pub n_kv_heads: usize,
    /// Numbers in one head's key.
    pub key_dim: usize,
    /// Numbers in one head's value.
    pub value_dim: usize,
    /// Tokens the layer looks back, if it has a sliding window.
    pub window: Option<usize>,
}

/// What a model needs to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Bytes of all tensors.
    pub weights_bytes: u64,
    /// Longest context the model was made for.
    pub trained_context: Option<usize>,
    /// One entry a layer.
    pub layers: Vec<LayerNeed>,
}

/// Bytes of the KV cache for one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvNeed {
    /// If every layer keeps every token.
    pub all_kept_bytes: u64,
    /// If layers with a window drop what has left it.
    pub windows_dropped_bytes: u64,
}

impl MemoryNeed {
    /// Reads what is needed from the metadata of `file`.
    pub fn of(file: &File) -> Result<Self, GgufError> {
        let weights_bytes = file.tensors().iter().map(|tensor| tensor.weight().bytes().len() as u64).sum();
        let metadata = file.metadata();
        let architecture = metadata.required_string("general.architecture")?;
        let key = |name: &str| format!("{architecture}.{name}");
        let trained_context = metadata.u32(&key("context_length"))?.map(|tokens| tokens as usize);

        let n_layers = metadata.required_u32(&key("block_count"))?;
        if n_layers > MAX_LAYERS {
            let problem = Problem::AboveLimit { found: n_layers.into(), limit: MAX_LAYERS.into() };
            return Err(metadata.defect(&key("block_count"), problem));
        }
        let n_layers = n_layers as usize;
        let heads = per_layer(metadata, &key("attention.head_count"), n_layers)?;
        let heads = heads.ok_or_else(|| GgufError::MissingKey {
            file: file.name().to_owned(),
            key: key("attention.head_count"),
            expected: "an unsigned integer or one for each layer",
        })?;
        let kv_heads = per_layer(metadata, &key("attention.head_count_kv"), n_layers)?.unwrap_or(heads.clone());
        let widest = heads.iter().copied().max().unwrap_or(0);
        let width = metadata.required_u32(&key("embedding_length"))? as usize;
        let head_dim = width.checked_div(widest).unwrap_or(0);
        let key_dim = metadata.u32(&key("attention.key_length"))?.map_or(head_dim, |dim| dim as usize);
        let value_dim = metadata.u32(&key("attention.value_length"))?.map_or(key_dim, |dim| dim as usize);
        let window = metadata.u32(&key("attention.sliding_window"))?.map(|tokens| tokens as usize);
        let layers = kv_heads.iter().enumerate().map(|(layer, &n_kv_heads)| LayerNeed {
            n_kv_heads,
            key_dim,
            value_dim,
            window: window.filter(|&window| window > 0 && is_windowed(architecture, layer)),
        });
        Ok(Self { weights_bytes, trained_context, layers: layers.collect() })
    }

    /// The KV cache for one sequence of `context` tokens.
    pub fn kv(&self, context: usize, kv_type: KvType) -> KvNeed {
        let row = |dim: usize| match kv_type {
            KvType::F16 => dim as u64 * 2,
            KvType::Q8_0 => dim.div_ceil(32) as u64 * 34,
            KvType::F32 => dim as u64 * 4,
        };
        let total = |tokens: &dyn Fn(&LayerNeed) -> usize| {
            self.layers.iter().fold(0_u64, |sum, layer| {
                let token = (row(layer.key_dim) + row(layer.value_dim)).saturating_mul(layer.n_kv_heads as u64);
                sum.saturating_add(token.saturating_mul(tokens(layer) as u64))
            })
        };
        KvNeed {
            all_kept_bytes: total(&|_| context),
            windows_dropped_bytes: total(&|layer| layer.window.map_or(context, |window| window.min(context))),
        }
    }
}

/// One number for all layers, or one for each.
fn per_layer(metadata: &Metadata, key: &str, n_layers: usize) -> Result<Option<Vec<usize>>, GgufError> {
    let is_array = matches!(metadata.get(key), Some(super::Value::Array(_)));
    if !is_array {
        return Ok(metadata.u32(key)?.map(|number| vec![number as usize; n_layers]));
    }
    let numbers = metadata.u32s(key)?.unwrap_or_default();
    if numbers.len() < n_layers {
        let found = format!("an array of {} numbers", numbers.len());
        return Err(metadata.defect(key, Problem::OutOfRange { found, expected: "one number for each layer" }));
    }
    Ok(Some(numbers.iter().take(n_layers).map(|&number| number as usize).collect()))
}

/// Which layers of an architecture have the window its metadata names.
fn is_windowed(architecture: &str, layer: usize) -> bool {
    match architecture {
        "gemma2" => layer.is_multiple_of(2),
        "gemma3" => layer % 6 != 5,
        "phi3" => true,
        // Others keep the key for windows that their published weights do not use.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{OwnedValue, Writer};

    fn need(architecture: &str, extra: &[(&str, OwnedValue)]) -> Result<MemoryNeed, GgufError> {
        let mut writer = Writer::new();
        writer.set("general.architecture", architecture);
        let common = [("block_count", 6), ("embedding_length", 64), ("attention.head_count", 4)];
        for (name, number) in common {
            writer.set(&format!("{architecture}.{name}"), number as u32);
        }
        for (name, value) in extra {
            writer.set(&format!("{architecture}.{name}"), value.clone());
        }
        let bytes = writer.start("m", Vec::new()).unwrap().finish().unwrap();
        MemoryNeed::of(&File::from_bytes("m", bytes.into()).unwrap())
    }

    #[test]
    fn a_plain_model_keeps_keys_and_values_of_every_token_in_every_layer() {
        let need = need("llama", &[("attention.head_count_kv", 2_u32.into())]).unwrap();
        let expected = 6 * 2 * (16 + 16) * 2 * 1000;
        assert_eq!(need.kv(1000, KvType::F16), KvNeed { all_kept_bytes: expected, windows_dropped_bytes: expected });
        assert_eq!(need.kv(10, KvType::Q8_0).all_kept_bytes, 6 * 2 * (34 + 34) * 10);
    }

    #[test]
    fn windowed_layers_keep_no_more_than_their_window() {
        let window = ("attention.sliding_window", OwnedValue::from(100_u32));
        let kept = |architecture| need(architecture, std::slice::from_ref(&window)).unwrap().kv(1000, KvType::F32);
        let token = 4 * (16 + 16) * 4;
        assert_eq!(kept("gemma3").windows_dropped_bytes, token * (5 * 100 + 1000));
        assert_eq!(kept("gemma2").windows_dropped_bytes, token * (3 * 100 + 3 * 1000));
        assert_eq!(kept("gemma2").all_kept_bytes, token * 6 * 1000);
        assert_eq!(kept("llama").windows_dropped_bytes, token * 6 * 1000);
    }

    #[test]
    fn heads_may_be_given_for_each_layer_but_not_for_too_few() {
        let heads = |numbers: &[u32]| need("llama", &[("attention.head_count_kv", numbers.into())]);
        let dims: Vec<usize> =
            heads(&[1, 2, 0, 4, 4, 4]).unwrap().layers.iter().map(|layer| layer.n_kv_heads).collect();
        assert_eq!(dims, [1, 2, 0, 4, 4, 4]);
        let error = heads(&[1, 2]).unwrap_err().to_string();
        assert!(error.contains("'llama.attention.head_count_kv'") && error.contains("one number for each layer"));
    }

    #[test]
    fn hostile_numbers_neither_overflow_nor_allocate() {
        let error = need("llama", &[("block_count", u32::MAX.into())]).unwrap_err().to_string();
        assert!(error.contains("more than the limit of 16,384"), "{error}");
        let huge = [("attention.key_length", u32::MAX.into()), ("attention.head_count_kv", u32::MAX.into())];
        assert_eq!(need("llama", &huge).unwrap().kv(usize::MAX, KvType::F16).all_kept_bytes, u64::MAX);
    }
}
