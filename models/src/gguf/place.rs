//! Where a field stands, which every message about one begins with; and vectors whose length a file decides.

use std::fmt;

use super::error::{GgufError, Grouped};

/// A field of a file: "model.gguf: metadata key 'tokenizer.ggml.scores' entry 7 at byte 1,234".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named by the caller.
    pub file: String,
    /// Which field.
    pub field: String,
    /// Where that field stands in the file.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} at byte {}", self.file, self.field, Grouped(self.offset))
    }
}

/// An empty vector with room for `len` elements, or [`GgufError::OutOfMemory`]: `what` of `file` says how many.
pub(crate) fn room<T>(file: &str, what: &'static str, len: usize) -> Result<Vec<T>, GgufError> {
    let mut vec = Vec::new();
    match vec.try_reserve_exact(len) {
        Ok(()) => Ok(vec),
        Err(_) => {
            let needed_bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
            Err(GgufError::OutOfMemory { file: file.to_owned(), what, needed_bytes })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_to_be_had_is_an_error_with_file_purpose_and_bytes() {
        let error = room::<u32>("m.gguf", "the vocabulary", 1 << 60).unwrap_err().to_string();
        assert_eq!(error, "m.gguf: out of memory: 4,611,686,018,427,387,904 bytes needed for the vocabulary");
        assert!(room::<u32>("m.gguf", "the vocabulary", 5).unwrap().capacity() >= 5);
    }
}
