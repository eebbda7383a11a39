//! Why a model was not quantized.

use farpost_kernels::quant::QuantError;

use crate::gguf::{GgufError, Shortened};

/// A refusal or a failure; no file has appeared at the output path.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// No mixture has that name.
    #[error("type '{name}' is unknown, expected one of {known}")]
    UnknownMixture {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// Input and output are the same file.
    #[error("{file}: the output would replace the input, choose another path")]
    OntoInput {
        /// The file.
        file: String,
    },
    /// Reading the input's head or writing the output failed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The weights of a tensor cannot be encoded.
    #[error("{file}: tensor '{}': {source}", Shortened(tensor))]
    Tensor {
        /// The input file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: QuantError,
    },
    /// The weights of a tensor cannot be counted on this machine.
    #[error("{file}: tensor '{}': {rows} x {cols} weights are more than this machine can count", Shortened(tensor))]
    TooLarge {
        /// The input file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
    },
    /// The caller's progress function asked to stop.
    #[error("{file}: quantization was stopped, nothing was written")]
    Stopped {
        /// The input file.
        file: String,
    },
}
