//! Why a file is not a model that can be run. Every message names the file and what in it is at fault.

use farpost_kernels::graph::GraphError;

use crate::gguf::{GgufError, Place, Shortened};

/// Why no graph could be built from a file.
#[derive(Debug, thiserror::Error)]
pub enum FamilyError {
    /// A metadata key is missing, of the wrong type, or its value makes no sense.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The architecture is not one of ours.
    #[error("{place}: architecture '{}' is not supported, supported are {supported}", Shortened(found))]
    UnknownArchitecture {
        /// Where it stands.
        place: Place,
        /// What it says.
        found: String,
        /// What it may say, comma-separated.
        supported: String,
    },
    /// The file lacks a tensor that the architecture needs.
    #[error("{file}: tensor '{tensor}' is missing, architecture '{architecture}' needs it with dimensions {expected}")]
    MissingTensor {
        /// Name of the file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The architecture.
        architecture: &'static str,
        /// Its dimensions as files state them, fastest first.
        expected: String,
    },
    /// A tensor has another shape than the metadata gives it.
    #[error("{place}: has dimensions {found}, expected {expected} ({reason})")]
    TensorShape {
        /// Where it stands.
        place: Place,
        /// Its dimensions, fastest first.
        found: String,
        /// What they should be.
        expected: String,
        /// What they follow from.
        reason: &'static str,
    },
    /// A tensor holds numbers that cannot be used.
    #[error("{place}: holds {found}, expected {expected}")]
    TensorValue {
        /// Where it stands.
        place: Place,
        /// What was found, and where.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A layer has a tensor that the architecture knows nothing of: leaving it out would give wrong answers.
    #[error("{place}: has no place in architecture '{architecture}', results would be wrong")]
    UnusedTensor {
        /// Where it stands.
        place: Place,
        /// The architecture.
        architecture: &'static str,
    },
    /// The context asked for is not possible.
    #[error("{file}: a context of {found} tokens was asked for, 1 to {most} are possible")]
    Context {
        /// Name of the file.
        file: String,
        /// Tokens asked for.
        found: usize,
        /// The most there may be.
        most: usize,
    },
    /// Parts that do not fit together in a way only the graph noticed.
    #[error("{file}: {source}")]
    Graph {
        /// Name of the file.
        file: String,
        /// What does not fit.
        source: GraphError,
    },
}
