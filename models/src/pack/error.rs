//! Why a packed file was not written, or is not used.

use std::path::PathBuf;

use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::graph::GraphError;

use crate::gguf::{GgufError, Shortened};

/// A refusal or a failure.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// No order is faster for this class.
    #[error("no packed files for processor class '{class}': its kernels read model files as they are, expected avx512")]
    NoOrder {
        /// The class.
        class: Isa,
    },
    /// No weight of the model has a faster order.
    #[error("{file}: no weights that class '{class}' reads faster in another order")]
    NothingToPack {
        /// The model.
        file: String,
        /// The class.
        class: Isa,
    },
    /// A model in memory, which has no file that a packed one could be held against.
    #[error("{file}: the model is not mapped from a file, so a packed file cannot be told to be of it")]
    NoFile {
        /// The model.
        file: String,
    },
    /// The output is the model itself.
    #[error("{file}: the output would replace the model, choose another path")]
    OntoModel {
        /// The file.
        file: String,
    },
    /// Reading or writing failed, or the file is damaged.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file is no packed file, or of another version or class.
    #[error("{}: {field} is {found}, expected {expected}", file.display())]
    Header {
        /// The packed file.
        file: PathBuf,
        /// Which key.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The model's file is not the one that was packed, or was written since.
    #[error("{}: the packed file is stale: {what} of the model is {found}, when it was packed it was {expected}", file.display())]
    Stale {
        /// The packed file.
        file: PathBuf,
        /// What differs.
        what: &'static str,
        /// As it is now.
        found: String,
        /// As the packed file has it.
        expected: String,
    },
    /// A tensor that is missing, too much, or of another shape, type or order.
    #[error("{}: tensor '{}' {problem}", file.display(), Shortened(tensor))]
    Tensor {
        /// The packed file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// The weights are not what the checksum says.
    #[error("{}: the file is damaged: the SHA-256 of its weights is {found}, expected {expected}", file.display())]
    Damaged {
        /// The packed file.
        file: PathBuf,
        /// As computed.
        found: String,
        /// As written in the file.
        expected: String,
    },
    /// The weights do not fit the model's graph.
    #[error("{}: {source}", file.display())]
    Graph {
        /// The packed file.
        file: PathBuf,
        /// What does not fit.
        source: GraphError,
    },
    /// The caller's progress function asked to stop.
    #[error("{file}: packing was stopped, nothing was written")]
    Stopped {
        /// The model.
        file: String,
    },
}
