//! What can be wrong with a GGUF file, said so that it can be mended.
//!
//! Every defect names the file, the field and the byte offset of that field; [`Problem`] says what was found and what
//! was expected. Numbers are grouped by thousands as people read them; texts from a file are shortened, and their control
//! characters escaped, before they enter a message.

use std::fmt;

use farpost_kernels::tensor::DType;

/// Why a GGUF file could not be opened, used or written.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The operating system refused.
    #[error("{file}: cannot {action}: {source}")]
    Io {
        /// The file as it was named by the caller.
        file: String,
        /// What was being done ("open", "map", "rename into place").
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds something that is not as the format says.
    #[error("{file}: {field} at byte {}: {problem}", Grouped(*offset))]
    Defect {
        /// The file as it was named by the caller.
        file: String,
        /// Which field: "tensor count", "metadata key 'general.alignment'", "tensor 'output.weight' offset".
        field: String,
        /// Where that field stands in the file.
        offset: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A metadata key the program relies on is not there.
    #[error("{file}: metadata key '{}' is missing, expected {expected}", Shortened(key))]
    MissingKey {
        /// The file as it was named by the caller.
        file: String,
        /// The key.
        key: String,
        /// What its value should be ("an unsigned integer").
        expected: &'static str,
    },
    /// The file changed after it was opened.
    #[error("{file}: the file changed after it was opened: {change}")]
    Changed {
        /// The file as it was named by the caller.
        file: String,
        /// What changed ("size from 10 to 5 bytes").
        change: String,
    },
    /// There is no memory for what the file holds.
    #[error("{file}: out of memory: {} bytes needed for {what}", Grouped(*needed_bytes))]
    OutOfMemory {
        /// The file as it was named by the caller.
        file: String,
        /// For what.
        what: &'static str,
        /// Bytes asked for.
        needed_bytes: u64,
    },
    /// A writer was asked for something that would make no valid file.
    #[error("{file}: cannot write {field}: {problem}")]
    Unwritable {
        /// The file being written.
        file: String,
        /// Which part of it.
        field: String,
        /// What is wrong.
        problem: String,
    },
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file ends before the field does.
    #[error("needs {} bytes, the file has {} left", Grouped(*needed), Grouped(*left))]
    TooShort {
        /// Bytes the field needs.
        needed: u64,
        /// Bytes from the field to the end of the file.
        left: u64,
    },
    /// The first four bytes are not `GGUF`.
    #[error("found {found}, expected the magic bytes 'GGUF'")]
    NotGguf {
        /// The bytes found and what kind of file they hint at.
        found: String,
    },
    /// The file is written most significant byte first.
    #[error("this is a big-endian file, only little-endian files are supported (convert it on the source machine)")]
    BigEndian,
    /// A version this reader does not know.
    #[error("version {found} is not supported, expected 2 or 3{}", if *found == 1 { " (version 1 had 32-bit counts; convert the file anew)" } else { "" })]
    Version {
        /// The version found.
        found: u32,
    },
    /// A count that the rest of the file cannot hold.
    #[error("claims {} entries of at least {each} bytes, the file has {} bytes left", Grouped(*count), Grouped(*left))]
    CountBeyondFile {
        /// The count found.
        count: u64,
        /// Smallest size of one entry.
        each: u64,
        /// Bytes left in the file.
        left: u64,
    },
    /// A count or length above a fixed bound.
    #[error("{} is more than the limit of {}", Grouped(*found), Grouped(*limit))]
    AboveLimit {
        /// What was found.
        found: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// A name or text that is not UTF-8.
    #[error("is not valid UTF-8 (first bad byte is number {})", Grouped(*at))]
    NotUtf8 {
        /// Index of the first bad byte inside the text.
        at: u64,
    },
    /// A key or tensor name without a single character.
    #[error("the name is empty")]
    EmptyName,
    /// A NUL byte in a key or tensor name.
    #[error("the name holds a NUL byte")]
    NulInName,
    /// The same key or tensor name twice.
    #[error("occurs twice, first at byte {}", Grouped(*first))]
    Duplicate {
        /// Where the first one stands.
        first: u64,
    },
    /// The same tensor in two parts of a split file.
    #[error("occurs twice, first in {first}")]
    DuplicateInParts {
        /// The part that holds the first one.
        first: String,
    },
    /// A metadata type id nobody defined.
    #[error("value type {id} is unknown, expected 0 to 12")]
    UnknownValueType {
        /// The id found.
        id: u32,
    },
    /// An array of arrays.
    #[error("an array of arrays is not supported")]
    NestedArray,
    /// A truth value that is neither 0 nor 1.
    #[error("a bool holds {found}, expected 0 or 1")]
    Bool {
        /// The byte found.
        found: u8,
    },
    /// A metadata value of another type than the program needs.
    #[error("is {found}, expected {expected}")]
    WrongType {
        /// The type found.
        found: String,
        /// The type needed.
        expected: &'static str,
    },
    /// A number outside of what its use allows.
    #[error("is {found}, expected {expected}")]
    OutOfRange {
        /// The number found.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A token id outside the vocabulary.
    #[error("is {}, the vocabulary has {} tokens", Grouped(u64::from(*found)), Grouped(*n_vocab as u64))]
    NoSuchToken {
        /// The id found.
        found: u32,
        /// Number of tokens.
        n_vocab: usize,
    },
    /// An alignment that is not usable.
    #[error("alignment {} is not a power of two from 8 to 1,048,576", Grouped(*found))]
    Alignment {
        /// The alignment found.
        found: u64,
    },
    /// More dimensions than any tensor has.
    #[error("has {found} dimensions, expected at most 4")]
    DimensionCount {
        /// The number found.
        found: u32,
    },
    /// Dimensions whose product, in weights or bytes, is too large to address.
    #[error("dimensions {dims} overflow the address range")]
    ShapeOverflow {
        /// The dimensions as written.
        dims: String,
    },
    /// A row that is not whole blocks.
    #[error("rows of {} weights are not whole blocks of {} weights ({dtype})", Grouped(*cols), dtype.block_len())]
    PartialBlock {
        /// First dimension.
        cols: u64,
        /// Type of the tensor.
        dtype: DType,
    },
    /// A tensor type id nobody defined.
    #[error("tensor type {id} is unknown")]
    UnknownTensorType {
        /// The id found.
        id: u32,
    },
    /// A tensor type that exists, or existed, but holds no usable weights.
    #[error("tensor type {name} (id {id}) is not supported: {why}")]
    UnsupportedTensorType {
        /// The id found.
        id: u32,
        /// Its name.
        name: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// A tensor that does not start on the alignment.
    #[error("offset {} is not a multiple of the alignment {}", Grouped(*found), Grouped(*alignment))]
    Misaligned {
        /// Offset inside the data section.
        found: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor that reaches past the end of the data section.
    #[error("offset {} and {} bytes reach past the data section of {} bytes", Grouped(*found), Grouped(*bytes), Grouped(*section))]
    OutsideData {
        /// Offset inside the data section.
        found: u64,
        /// Size of the tensor.
        bytes: u64,
        /// Size of the data section.
        section: u64,
    },
    /// Two tensors that share bytes.
    #[error("offset {} lies inside tensor '{}'", Grouped(*found), Shortened(other))]
    Overlap {
        /// Offset inside the data section.
        found: u64,
        /// The tensor that begins before and ends after it.
        other: String,
    },
    /// Parts of a split file that do not belong together.
    #[error("{0}")]
    Split(String),
}

/// A number with its thousands grouped: 1,048,576.
pub(crate) struct Grouped(pub(crate) u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A text from a file, fit for a message: at most 80 characters, control characters escaped.
pub(crate) struct Shortened<'a>(pub(crate) &'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.chars();
        for character in rest.by_ref().take(80) {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        if rest.next().is_some() { f.write_str("...") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let shown: Vec<String> = [0, 7, 999, 1000, 12_345, 1_048_608, u64::MAX].map(|n| Grouped(n).to_string()).into();
        assert_eq!(shown, ["0", "7", "999", "1,000", "12,345", "1,048,608", "18,446,744,073,709,551,615"]);
    }

    #[test]
    fn texts_from_files_are_shortened_and_cannot_steer_a_terminal() {
        assert_eq!(Shortened("blk.0 ü").to_string(), "blk.0 ü");
        assert_eq!(Shortened("a\n\u{1b}[2J\u{9b}").to_string(), r"a\n\u{1b}[2J\u{9b}");
        assert_eq!(Shortened(&"ü".repeat(81)).to_string(), "ü".repeat(80) + "...");
    }

    #[test]
    fn a_defect_reads_as_a_sentence_with_file_field_and_place() {
        let error = GgufError::Defect {
            file: "model.gguf".into(),
            field: "tensor 'blk.3.ffn_up.weight' offset".into(),
            offset: 6123,
            problem: Problem::Misaligned { found: 1_048_608, alignment: 64 },
        };
        assert_eq!(
            error.to_string(),
            "model.gguf: tensor 'blk.3.ffn_up.weight' offset at byte 6,123: \
             offset 1,048,608 is not a multiple of the alignment 64"
        );
    }
}
