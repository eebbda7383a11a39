//! A file's tensors, asked for by name and checked against the shape that the metadata gives them.
//!
//! Matrices stay where they are. Vectors, routers and factors are plain F32 in a graph: those stored otherwise are
//! decoded at load. What nobody asked for is found out at the end.

use std::collections::HashSet;

use farpost_kernels::quant;
use farpost_kernels::tensor::{DType, Weight};

use crate::gguf::{self, Tensor};

use super::error::FamilyError;

/// What the shape of a tensor follows from, for messages.
const FROM_METADATA: &str = "from the metadata";

/// The tensors of a file, and which of them were asked for.
pub(super) struct Weights<'f> {
    file: &'f gguf::File,
    architecture: &'static str,
    taken: HashSet<&'f str>,
}

impl<'f> Weights<'f> {
    pub(super) fn new(file: &'f gguf::File, architecture: &'static str) -> Self {
        Self { file, architecture, taken: HashSet::new() }
    }

    /// Name of the file, for messages.
    pub(super) fn file_name(&self) -> &str {
        self.file.name()
    }

    /// True if the file has tensor `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.file.find(name).is_some()
    }

    /// A matrix of `rows x cols`, of any type, in place.
    pub(super) fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight, FamilyError> {
        self.matrix_because(name, rows, cols, FROM_METADATA)
    }

    /// [`Weights::matrix`], with a reason for its shape.
    pub(super) fn matrix_because(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
        reason: &'static str,
    ) -> Result<Weight, FamilyError> {
        Ok(self.tensor(name, &[cols, rows], reason)?.weight().clone())
    }

    /// `n` matrices of `rows x cols`, stacked by rows.
    pub(super) fn stack(&mut self, name: &str, n: usize, rows: usize, cols: usize) -> Result<Weight, FamilyError> {
        Ok(self.tensor(name, &[cols, rows, n], FROM_METADATA)?.weight().clone())
    }

    /// A vector of `len` F32 numbers.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<Weight, FamilyError> {
        let tensor = self.tensor(name, &[len], FROM_METADATA)?;
        self.floats(tensor)
    }

    /// A vector that the file may do without.
    pub(super) fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Weight>, FamilyError> {
        if self.has(name) { self.vector(name, len).map(Some) } else { Ok(None) }
    }

    /// A matrix of F32 numbers, decoded if it is stored otherwise.
    pub(super) fn float_matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight, FamilyError> {
        let tensor = self.tensor(name, &[cols, rows], FROM_METADATA)?;
        self.floats(tensor)
    }

    /// A vector of `len` divisors of rotary frequencies: finite and above 0.
    pub(super) fn divisors(&mut self, name: &str, len: usize) -> Result<Vec<f32>, FamilyError> {
        let tensor = self.tensor(name, &[len], FROM_METADATA)?;
        let weight = self.floats(tensor)?;
        let divisors: Vec<f32> =
            weight.view().bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match divisors.iter().enumerate().find(|(_, divisor)| !(divisor.is_finite() && **divisor > 0.0)) {
            Some((at, divisor)) => Err(FamilyError::TensorValue {
                place: self.file.place(tensor),
                found: format!("{divisor} as number {at}"),
                expected: "finite numbers above 0",
            }),
            None => Ok(divisors),
        }
    }

    /// Refuses a file with tensors of layers that were not asked for.
    pub(super) fn finish(self) -> Result<(), FamilyError> {
        let mut of_layers = self.file.tensors().iter().filter(|tensor| tensor.name().starts_with("blk."));
        match of_layers.find(|tensor| !self.taken.contains(tensor.name())) {
            Some(tensor) => {
                Err(FamilyError::UnusedTensor { place: self.file.place(tensor), architecture: self.architecture })
            }
            None => Ok(()),
        }
    }

    fn tensor(&mut self, name: &str, expected: &[usize], reason: &'static str) -> Result<&'f Tensor, FamilyError> {
        let Some(tensor) = self.file.find(name) else {
            return Err(FamilyError::MissingTensor {
                file: self.file.name().to_owned(),
                tensor: name.to_owned(),
                architecture: self.architecture,
                expected: format!("{expected:?}"),
            });
        };
        // Trailing dimensions of 1 say nothing: some writers leave them out.
        if without_ones(tensor.dims()) != without_ones(expected) {
            return Err(FamilyError::TensorShape {
                place: self.file.place(tensor),
                found: format!("{:?}", tensor.dims()),
                expected: format!("{expected:?}"),
                reason,
            });
        }
        self.taken.insert(tensor.name());
        Ok(tensor)
    }

    /// The numbers of a small tensor as F32: in place if that is what they are.
    fn floats(&self, tensor: &Tensor) -> Result<Weight, FamilyError> {
        let weight = tensor.weight();
        if weight.dtype() == DType::F32 {
            return Ok(weight.clone());
        }
        let unusable = |found: String| FamilyError::TensorValue {
            place: self.file.place(tensor),
            found,
            expected: "numbers that can be decoded",
        };
        let (rows, cols) = (weight.rows(), weight.cols());
        let n_values = rows.checked_mul(cols).filter(|n_values| *n_values <= MOST_DECODED);
        let n_values = n_values.ok_or_else(|| unusable(format!("{rows} x {cols} numbers that are not f32")))?;
        let mut values = vec![0_f32; n_values];
        quant::decode(weight.dtype(), weight.view().bytes, &mut values)
            .map_err(|problem| unusable(problem.to_string()))?;
        Weight::from_f32(tensor.name(), rows, cols, &values).map_err(|problem| unusable(problem.to_string()))
    }
}

/// Numbers that a small tensor may have if it is not stored in F32: many times those of the largest router, 64 MiB.
const MOST_DECODED: usize = 1 << 24;

fn without_ones(mut dims: &[usize]) -> &[usize] {
    while let [rest @ .., 1] = dims {
        dims = rest;
    }
    dims
}
