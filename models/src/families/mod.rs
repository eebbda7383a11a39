//! Model families: from a file's metadata and tensors to a [`Graph`].
//!
//! One file a family, each a page that reads like the published architecture, put together from the blocks of
//! `decoder.rs`. What a file says of itself is read once into a [`Config`]; tensors are asked for by name, with the
//! shape that the configuration gives them. How to add a family: `docs/add-a-model-family.md`.

mod config;
mod decoder;
mod error;
mod gemma;
mod keys;
mod llama;
mod phi;
mod qwen;
#[cfg(test)]
mod refusal_tests;
mod rope;
#[cfg(test)]
mod rope_tests;
#[cfg(test)]
mod tests;
mod weights;

use farpost_kernels::graph::Graph;

use crate::gguf;

pub use config::{Config, FeedForward, Pooling};
pub use error::FamilyError;
pub use rope::{RopeScaling, RopeSettings};

use decoder::Decoder;
use weights::Weights;

/// Builds the graph of one architecture.
type Build = fn(Decoder<'_>) -> Result<Graph, FamilyError>;

/// Architectures by the name in `general.architecture`, and who builds them.
const REGISTRY: &[(&str, Build)] = &[
    ("llama", llama::build),
    ("qwen2", qwen::build_qwen2),
    ("qwen3", qwen::build_qwen3),
    ("qwen3moe", qwen::build_qwen3),
    ("gemma2", gemma::build_gemma2),
    ("gemma3", gemma::build_gemma3),
    ("phi3", phi::build),
];

/// Choices that are not the file's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Positions the graph is built for; by default what the model was trained for.
    ///
    /// Models with two sets of rotary factors (phi3) choose by it, so it can change logits.
    pub context: Option<usize>,
}

/// A model ready to be compiled.
#[derive(Clone, Debug)]
pub struct Built {
    /// One step of it.
    pub graph: Graph,
    /// What its file says of it.
    pub config: Config,
}

/// Names of the architectures there are, as files spell them.
pub fn supported() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(architecture, _)| *architecture)
}

/// Builds the graph of the model in `file`; nothing is copied but small vectors that are not F32.
///
/// Refused, by name: an unknown architecture, metadata that is missing or makes no sense, a tensor that is missing or
/// of another shape, and a tensor of a layer that the architecture has no use for.
pub fn build(file: &gguf::File, options: &Options) -> Result<Built, FamilyError> {
    let named = file.metadata().required_string("general.architecture")?;
    let Some(&(architecture, build)) = REGISTRY.iter().find(|(architecture, _)| *architecture == named) else {
        return Err(FamilyError::UnknownArchitecture {
            place: file.metadata().place("general.architecture"),
            found: named.to_owned(),
            supported: supported().collect::<Vec<_>>().join(", "),
        });
    };
    let config = Config::read(file, architecture, options)?;
    let graph = build(Decoder::new(&config, Weights::new(file, architecture)))?;
    Ok(Built { graph, config })
}
