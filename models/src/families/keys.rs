//! Getters for the metadata of one architecture: every number comes back checked against what it can mean.
//!
//! Keys are written without the architecture in front: `attention.head_count` is `llama.attention.head_count` in a
//! file. A value out of range is an error that names file, key, place, what was found and what was expected.

use crate::gguf::{GgufError, Metadata, Problem, Value};

/// The keys `ARCHITECTURE.*` of a file.
pub(super) struct Keys<'f> {
    metadata: &'f Metadata,
    architecture: &'static str,
}

impl<'f> Keys<'f> {
    pub(super) fn new(metadata: &'f Metadata, architecture: &'static str) -> Self {
        Self { metadata, architecture }
    }

    pub(super) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<Value<'f>> {
        self.metadata.get(&self.full(key))
    }

    /// The error that `key` holds `found`.
    pub(super) fn out_of_range(&self, key: &str, found: String, expected: &'static str) -> GgufError {
        self.metadata.defect(&self.full(key), Problem::OutOfRange { found, expected })
    }

    /// The error that `key` is not there.
    pub(super) fn missing(&self, key: &str, expected: &'static str) -> GgufError {
        GgufError::MissingKey { file: self.metadata.file_name().to_owned(), key: self.full(key), expected }
    }

    /// A size from 1 to `limit`.
    pub(super) fn size(&self, key: &str, limit: usize) -> Result<Option<usize>, GgufError> {
        let Some(found) = self.metadata.u64(&self.full(key))? else { return Ok(None) };
        self.checked_size(key, found, limit).map(Some)
    }

    /// [`Keys::size`], refusing absence.
    pub(super) fn required_size(&self, key: &str, limit: usize) -> Result<usize, GgufError> {
        self.size(key, limit)?.ok_or_else(|| self.missing(key, "an integer of at least 1"))
    }

    /// True if `key` is not there or is the number 0, as files say that they have none of something.
    pub(super) fn is_zero_or_absent(&self, key: &str) -> Result<bool, GgufError> {
        Ok(self.metadata.u64(&self.full(key))?.unwrap_or(0) == 0)
    }

    fn checked_size(&self, key: &str, found: u64, limit: usize) -> Result<usize, GgufError> {
        match usize::try_from(found) {
            Ok(0) => Err(self.out_of_range(key, "0".to_owned(), "an integer of at least 1")),
            Ok(size) if size <= limit => Ok(size),
            _ => Err(self.metadata.defect(&self.full(key), Problem::AboveLimit { found, limit: limit as u64 })),
        }
    }

    /// A size a layer, given as one for all of them or as an array.
    pub(super) fn sizes(&self, key: &str, limit: usize, n_layers: usize) -> Result<Option<Vec<usize>>, GgufError> {
        if !matches!(self.get(key), Some(Value::Array(_))) {
            return Ok(self.size(key, limit)?.map(|size| vec![size; n_layers]));
        }
        let found = self.metadata.u32s(&self.full(key))?.unwrap_or_default();
        if found.len() != n_layers {
            let found = format!("an array of {} numbers for {n_layers} layers", found.len());
            return Err(self.out_of_range(key, found, "one number for each layer"));
        }
        found.into_iter().map(|size| self.checked_size(key, size.into(), limit)).collect::<Result<_, _>>().map(Some)
    }

    /// A size that all layers share, whether it is given once or once a layer.
    pub(super) fn shared_size(&self, key: &str, limit: usize, n_layers: usize) -> Result<Option<usize>, GgufError> {
        let Some(sizes) = self.sizes(key, limit, n_layers)? else { return Ok(None) };
        match sizes.iter().find(|size| **size != sizes[0]) {
            Some(other) => {
                let found = format!("{} in one layer and {other} in another", sizes[0]);
                Err(self.out_of_range(key, found, "the same number in all layers"))
            }
            None => Ok(sizes.first().copied()),
        }
    }

    /// A finite float above 0.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f32>, GgufError> {
        match self.metadata.f32(&self.full(key))? {
            Some(found) if !(found.is_finite() && found > 0.0) => {
                Err(self.out_of_range(key, found.to_string(), "a finite number above 0"))
            }
            found => Ok(found),
        }
    }

    /// A finite float of at least 0.
    pub(super) fn not_negative(&self, key: &str) -> Result<Option<f32>, GgufError> {
        match self.metadata.f32(&self.full(key))? {
            Some(found) if !(found.is_finite() && found >= 0.0) => {
                Err(self.out_of_range(key, found.to_string(), "a finite number of at least 0"))
            }
            found => Ok(found),
        }
    }

    /// A text.
    pub(super) fn string(&self, key: &str) -> Result<Option<&'f str>, GgufError> {
        self.metadata.string(&self.full(key))
    }

    /// Which layers have the sliding window: a truth value a layer, or a number `n` that leaves out each `n`-th layer.
    pub(super) fn window_pattern(&self, key: &str, n_layers: usize) -> Result<Option<Vec<bool>>, GgufError> {
        if !matches!(self.get(key), Some(Value::Array(_))) {
            let period = self.size(key, n_layers.max(1024))?;
            return Ok(period.map(|period| every_but(period, n_layers)));
        }
        let found = self.metadata.bools(&self.full(key))?.unwrap_or_default();
        if found.len() != n_layers {
            let found = format!("an array of {} truth values for {n_layers} layers", found.len());
            return Err(self.out_of_range(key, found, "one truth value for each layer"));
        }
        Ok(Some(found))
    }
}

/// True for all layers but each `period`-th.
pub(super) fn every_but(period: usize, n_layers: usize) -> Vec<bool> {
    (1..=n_layers).map(|number| !number.is_multiple_of(period)).collect()
}
