//! The network as a GGUF file and back: names, shapes, vocabulary and chat template.

use crate::model::{Network, Shape};
use crate::rng::Rng;
use crate::vocabulary::{self, Kind, Vocabulary};
use candle_core::{Device, Tensor, Var};
use farpost_kernels::quant;
use farpost_kernels::tensor::DType;
use farpost_models::gguf::{File, GgufError, Writer};
use farpost_models::quantize::{Mixture, Options, QuantizeError, quantize_file};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// Why a file could not be made or read back.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Reading or writing the file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Packing it.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// Unpacking a tensor.
    #[error("{file}: tensor '{tensor}': {source}")]
    Quant {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What was wrong.
        source: quant::QuantError,
    },
    /// Computing with it.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor or key that the network needs is not there, or not as it must be.
    #[error("{file}: {what} is missing or has another shape than the pocket model's")]
    Missing {
        /// The file.
        file: String,
        /// Tensor or key.
        what: String,
    },
}

/// The model answers the last user message alone, in lower case; system messages and earlier turns are left out.
pub const CHAT_TEMPLATE: &str = "{%- set ns = namespace(last='') -%}\
{%- for message in messages -%}\
{%- if message.role == 'user' -%}{%- set ns.last = message.content -%}{%- endif -%}\
{%- endfor -%}\
{{- '<|USER|>' + ns.last | trim | lower -}}\
{%- if add_generation_prompt -%}{{- '<|ASSISTANT|>' -}}{%- endif -%}";

/// Writes `network` as an F32 file at `path`.
pub fn write(network: &Network, vocabulary: &Vocabulary, seed: u64, path: &Path) -> Result<(), ExportError> {
    let shape = &network.shape;
    let mut writer = Writer::new();
    let n = |n: usize| n as u32;
    writer
        .set("general.architecture", "llama")
        .set("general.name", "Farpost pocket")
        .set("general.description", "Spoken English commands for a gateway to one JSON tool call")
        .set("general.license", "MIT OR Apache-2.0")
        .set("general.file_type", 0u32)
        .set("general.alignment", 64u32)
        .set("pocket.seed", seed)
        .set("llama.vocab_size", n(shape.vocabulary))
        .set("llama.context_length", n(shape.context))
        .set("llama.embedding_length", n(shape.width))
        .set("llama.block_count", n(shape.layers))
        .set("llama.feed_forward_length", n(shape.inner))
        .set("llama.attention.head_count", n(shape.heads))
        .set("llama.attention.head_count_kv", n(shape.kv_heads))
        .set("llama.attention.key_length", n(shape.head()))
        .set("llama.attention.value_length", n(shape.head()))
        .set("llama.attention.layer_norm_rms_epsilon", shape.epsilon as f32)
        .set("llama.rope.dimension_count", n(shape.head()))
        .set("llama.rope.freq_base", shape.rope_base as f32)
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", "qwen2")
        .set("tokenizer.ggml.tokens", vocabulary.tokens.as_slice())
        .set(
            "tokenizer.ggml.token_type",
            vocabulary.kinds.iter().map(|kind| *kind as i32).collect::<Vec<_>>().as_slice(),
        )
        .set("tokenizer.ggml.merges", vocabulary.merges.as_slice())
        .set("tokenizer.ggml.bos_token_id", vocabulary::END)
        .set("tokenizer.ggml.eos_token_id", vocabulary::END)
        .set("tokenizer.ggml.padding_token_id", vocabulary::END)
        .set("tokenizer.ggml.add_bos_token", false)
        .set("tokenizer.ggml.add_eos_token", false)
        .set("tokenizer.chat_template", CHAT_TEMPLATE);
    let weights = shape.weights();
    for (name, rows, cols) in &weights {
        match rows {
            Some(rows) => writer.tensor(name, DType::F32, &[*cols, *rows])?,
            None => writer.tensor(name, DType::F32, &[*cols])?,
        };
    }
    let mut file = writer.create(path)?;
    for (name, _, _) in &weights {
        let values = network.vars[name].flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.append(name, &bytes)?;
    }
    file.finish()?;
    Ok(())
}

/// Packs `input` into `output` in the types of the mixture called `name`; gives its size in bytes.
pub fn pack(input: &Path, output: &Path, name: &str) -> Result<u64, ExportError> {
    let options = Options { mixture: Mixture::from_name(name)?, threads: 2 };
    let summary = quantize_file(&File::open(input)?, output, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(summary.output_bytes)
}

/// The network of a file, its weights as decoded from their blocks, and its vocabulary.
pub fn read(file: &File) -> Result<(Network, Vocabulary), ExportError> {
    let missing = |what: &str| ExportError::Missing { file: file.name().to_owned(), what: what.to_owned() };
    let metadata = file.metadata();
    let texts = |key: &str| -> Result<Vec<String>, ExportError> {
        let texts = metadata.required_strings(key)?;
        Ok(texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect())
    };
    let tokens = texts("tokenizer.ggml.tokens")?;
    let kinds = metadata.i32s("tokenizer.ggml.token_type")?.ok_or_else(|| missing("tokenizer.ggml.token_type"))?;
    let kinds = kinds
        .iter()
        .map(|kind| [Kind::Normal, Kind::Control, Kind::UserDefined].into_iter().find(|known| *known as i32 == *kind))
        .collect::<Option<Vec<Kind>>>()
        .ok_or_else(|| missing("a known token type"))?;
    let vocabulary = Vocabulary::new(tokens, kinds, texts("tokenizer.ggml.merges")?);
    let shape = Shape::pocket(vocabulary.tokens.len());
    let mut vars = BTreeMap::new();
    for (name, rows, cols) in shape.weights() {
        let weight = file.tensor(&name).ok_or_else(|| missing(&name))?;
        if weight.cols() != cols || weight.rows() != rows.unwrap_or(1) {
            return Err(missing(&name));
        }
        let mut values = vec![0f32; weight.rows() * cols];
        quant::decode(weight.dtype(), weight.view().bytes, &mut values).map_err(|source| ExportError::Quant {
            file: file.name().to_owned(),
            tensor: name.clone(),
            source,
        })?;
        let tensor = match rows {
            Some(rows) => Tensor::from_vec(values, (rows, cols), &Device::Cpu)?,
            None => Tensor::from_vec(values, cols, &Device::Cpu)?,
        };
        vars.insert(name, Var::from_tensor(&tensor)?);
    }
    Ok((Network::with_weights(shape, vars)?, vocabulary))
}

/// A folder for files in passing, made if it is not there; unique to `rng`.
pub fn scratch(rng: &mut Rng) -> std::io::Result<std::path::PathBuf> {
    let folder = std::env::temp_dir().join(format!("farpost-pocket-{}-{:x}", std::process::id(), rng.next()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
