//! Why values were not decoded or encoded.

use crate::tensor::DType;

/// A refusal; nothing useful was written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QuantError {
    /// The number of weights is no multiple of the block.
    #[error("{dtype}: {weights} weights are not whole blocks of {}", dtype.block_len())]
    PartialBlock {
        /// Type asked for.
        dtype: DType,
        /// Number of weights given.
        weights: usize,
    },
    /// The byte buffer does not fit the number of weights.
    #[error("{dtype}: {weights} weights take {expected} bytes, found {found}")]
    Length {
        /// Type asked for.
        dtype: DType,
        /// Number of weights given.
        weights: usize,
        /// Bytes they take.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A weight is infinite or not a number.
    #[error("{dtype}: weight {index} is {value}, only finite values can be encoded")]
    NotFinite {
        /// Type asked for.
        dtype: DType,
        /// Which weight.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// This type can be read, not written.
    #[error("{dtype} can be decoded only, there is no encoder for it")]
    NoEncoder {
        /// Type asked for.
        dtype: DType,
    },
    /// Importance covers one row, and the weights are no whole number of rows.
    #[error("{dtype}: {weights} weights are not whole rows of {found} importance values")]
    ImportanceLength {
        /// Type asked for.
        dtype: DType,
        /// Number of weights given.
        weights: usize,
        /// Number of importance values given.
        found: usize,
    },
    /// An importance value is negative, infinite or not a number.
    #[error("{dtype}: importance {index} is {value}, expected a finite value from 0 up")]
    BadImportance {
        /// Type asked for.
        dtype: DType,
        /// Which importance value.
        index: usize,
        /// What it is.
        value: f32,
    },
}
