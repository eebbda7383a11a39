//! GGUF files of real shape with random weights: for benchmarks and tests that need a model's size, not its wit.
//!
//! Shapes and metadata are those of published models. Weights are random valid blocks, made directly (nothing is
//! quantized), scaled so that activations stay finite through all layers and logits are neither flat nor spiked. The
//! same shape, types, vocabulary and seed give the same bytes on every machine. Memory use does not grow with the file.

mod blocks;
mod layout;
mod random;
mod shapes;
mod vocabulary;

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;

use farpost_kernels::tensor::DType;

use crate::gguf::{self, GgufError, Writer};
use crate::quantize::{Mixture, ModelShape, substitute};
use layout::Fill;
use random::Random;

pub use shapes::{Experts, RopeFactors, Shape, find, shapes};

/// Where a synthetic model's vocabulary comes from.
#[derive(Clone, Copy, Debug, Default)]
pub enum Vocabulary<'a> {
    /// Byte-level BPE with made-up words and as many tokens as the real model has.
    #[default]
    Generated,
    /// All `tokenizer.` metadata of another file; the model gets as many tokens as that file has.
    Of(&'a gguf::File),
}

/// Which matrix gets which type; where rows are no whole blocks of it, the usual substitute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Types {
    /// As files of that name have them.
    Mixture(&'static Mixture),
    /// One type for all.
    Pure(DType),
}

impl Types {
    /// All names, each once: mixtures, then types that are the base of none of that name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let others =
            DType::all().map(DType::name).filter(|name| !Mixture::all().any(|mixture| mixture.name() == *name));
        Mixture::all().map(Mixture::name).chain(others)
    }

    /// The mixture of that name, in any case, or else the type.
    pub fn from_name(name: &str) -> Option<Self> {
        let mixture = Mixture::all().find(|mixture| mixture.name().eq_ignore_ascii_case(name));
        mixture.map(Self::Mixture).or_else(|| DType::from_name(&name.to_ascii_lowercase()).map(Self::Pure))
    }

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mixture(mixture) => mixture.name(),
            Self::Pure(dtype) => dtype.name(),
        }
    }

    /// The type of a matrix of `shape`.
    fn assign(self, shape: &Shape, name: &str, dims: &[usize]) -> DType {
        match self {
            Self::Mixture(mixture) => mixture.assign(&ModelShape::from(shape), name, dims).dtype,
            Self::Pure(dtype) => substitute(dtype, dims[0]),
        }
    }
}

impl From<&Shape> for ModelShape {
    fn from(shape: &Shape) -> Self {
        Self {
            n_layers: shape.layers,
            n_heads: shape.heads,
            n_kv_heads: shape.kv_heads,
            n_experts: shape.experts.map_or(0, |experts| experts.count),
            is_tied: shape.is_tied,
        }
    }
}

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Types of the matrices.
    pub types: Types,
    /// Decides every weight.
    pub seed: u64,
    /// The vocabulary.
    pub vocabulary: Vocabulary<'a>,
    /// Fewer or more layers than the real model has.
    pub layers: Option<usize>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { types: Types::Pure(DType::Q4_0), seed: 1, vocabulary: Vocabulary::Generated, layers: None }
    }
}

/// Bytes of weights made at a time.
const CHUNK: usize = 1 << 20;

/// Writes a model of `shape` to `path` and gives the file's size.
///
/// `progress` gets the bytes of weights done and in all, and may stop the work. The file has its name only once it is
/// whole.
pub fn write(
    shape: &Shape,
    options: &Options<'_>,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<u64, GgufError> {
    let mut shape = shape.clone();
    shape.layers = options.layers.unwrap_or(shape.layers);
    let mut writer = Writer::new();
    let tokens = match options.vocabulary {
        Vocabulary::Generated => vocabulary::generated(shape.vocabulary),
        Vocabulary::Of(file) => {
            let tokenizer = file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
            shape.vocabulary = file.metadata().required_strings("tokenizer.ggml.tokens")?.len();
            tokenizer.map(|(key, value)| (key.to_owned(), value.into())).collect()
        }
    };
    for (key, value) in layout::metadata(&shape, options.types) {
        writer.set(&key, value);
    }
    for (key, value) in tokens {
        writer.set(&key, value);
    }

    let tensors = layout::tensors(&shape);
    let mut types = Vec::with_capacity(tensors.len());
    let mut total = 0;
    for tensor in &tensors {
        let dtype =
            if tensor.is_matrix() { options.types.assign(&shape, &tensor.name, &tensor.dims) } else { DType::F32 };
        total += writer.tensor(&tensor.name, dtype, &tensor.dims)?;
        types.push(dtype);
    }

    let mut file = writer.create(path)?;
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut done = 0;
    for (tensor, dtype) in tensors.iter().zip(types) {
        let mut random = Random::for_tensor(options.seed, &tensor.name);
        let mut weights: usize = tensor.dims.iter().product();
        let mut given = match &tensor.fill {
            Fill::Given(values) => values.as_slice(),
            Fill::Weights { .. } | Fill::Around { .. } => &[],
        };
        let blocks = match tensor.fill {
            Fill::Weights { deviation } => Some(blocks::Blocks::new(dtype, deviation)),
            Fill::Around { .. } | Fill::Given(_) => None,
        };
        while weights > 0 {
            let block = dtype.block_len();
            let step = weights.min(CHUNK / dtype.block_bytes() * block);
            chunk.resize(step / block * dtype.block_bytes(), 0);
            match (&tensor.fill, &blocks) {
                (_, Some(blocks)) => blocks.fill(&mut random, &mut chunk),
                (Fill::Around { mean, spread }, None) => {
                    let spread = f64::from(*spread);
                    put(&mut chunk, || (f64::from(*mean) + spread * (random.unit() * 2.0 - 1.0)) as f32);
                }
                (_, None) => put(&mut chunk, || given.split_off_first().copied().unwrap_or(1.0)),
            }
            file.append(&tensor.name, &chunk)?;
            weights -= step;
            done += chunk.len() as u64;
            if progress(done, total).is_break() {
                let file = path.display().to_string();
                return Err(GgufError::Io { file, action: "finish it", source: ErrorKind::Interrupted.into() });
            }
        }
    }
    file.finish()
}

/// Fills `out` with f32 values.
fn put(out: &mut [u8], mut value: impl FnMut() -> f32) {
    for place in out.chunks_exact_mut(4) {
        place.copy_from_slice(&value().to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
