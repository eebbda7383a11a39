//! Checked reading of a file's head: every step knows how much is left and where it stands.
//!
//! Nothing here allocates except to build an error. Texts from the file are shortened before they enter a message.

use std::fmt;

use super::error::{GgufError, Problem, Shortened};

/// Which field is being read, for messages only.
#[derive(Clone, Copy)]
pub(super) enum Field<'a> {
    /// A fixed field of the header.
    Header(&'static str),
    /// The n-th metadata key, before its name is known.
    KeyName(u64),
    /// The value of a metadata key.
    Key(&'a str),
    /// The n-th tensor, before its name is known.
    TensorName(u64),
    /// A part of a tensor's description.
    Tensor(&'a str, &'static str),
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(what) => f.write_str(what),
            Self::KeyName(index) => write!(f, "name of metadata key number {index}"),
            Self::Key(key) => write!(f, "metadata key '{}'", Shortened(key)),
            Self::TensorName(index) => write!(f, "name of tensor number {index}"),
            Self::Tensor(name, what) => write!(f, "tensor '{}' {what}", Shortened(name)),
        }
    }
}

/// A place in a file's bytes.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file: &'a str,
}

impl<'a> Cursor<'a> {
    /// The start of `bytes`, which messages call `file`.
    pub(super) fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, file }
    }

    /// Where the next field starts.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes from here to the end.
    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The error that `field`, which starts at `offset`, has `problem`.
    pub(super) fn defect(&self, field: Field<'_>, offset: usize, problem: Problem) -> GgufError {
        GgufError::Defect { file: self.file.to_owned(), field: field.to_string(), offset: offset as u64, problem }
    }

    /// The next `needed` bytes.
    pub(super) fn take(&mut self, needed: u64, field: Field<'_>) -> Result<&'a [u8], GgufError> {
        let end = usize::try_from(needed).ok().and_then(|needed| self.at.checked_add(needed));
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(self.defect(field, self.at, Problem::TooShort { needed, left: self.left() })),
        }
    }

    /// The next four bytes as a number.
    pub(super) fn u32(&mut self, field: Field<'_>) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// The next eight bytes as a number.
    pub(super) fn u64(&mut self, field: Field<'_>) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    fn array<const N: usize>(&mut self, field: Field<'_>) -> Result<[u8; N], GgufError> {
        Ok(self.take(N as u64, field)?.try_into().expect("`take` gave exactly N bytes"))
    }

    /// A count whose entries need at least `each` bytes, checked against what is left and against `limit`.
    pub(super) fn count(&mut self, each: u64, limit: u64, field: Field<'_>) -> Result<u64, GgufError> {
        let start = self.at;
        let count = self.u64(field)?;
        let problem = if count.checked_mul(each).is_none_or(|needed| needed > self.left()) {
            Problem::CountBeyondFile { count, each, left: self.left() }
        } else if count > limit {
            Problem::AboveLimit { found: count, limit }
        } else {
            return Ok(count);
        };
        Err(self.defect(field, start, problem))
    }

    /// A string: its length, then as many bytes.
    pub(super) fn string(&mut self, field: Field<'_>) -> Result<&'a [u8], GgufError> {
        let start = self.at;
        let length = self.u64(field)?;
        if length > self.left() {
            let problem = Problem::TooShort { needed: length, left: self.left() };
            return Err(self.defect(field, start, problem));
        }
        self.take(length, field)
    }

    /// A name: a non-empty UTF-8 string of at most `limit` bytes without NUL.
    pub(super) fn name(&mut self, limit: u64, field: Field<'_>) -> Result<&'a str, GgufError> {
        let start = self.at;
        let bytes = self.string(field)?;
        let problem = match std::str::from_utf8(bytes) {
            _ if bytes.is_empty() => Problem::EmptyName,
            _ if bytes.len() as u64 > limit => Problem::AboveLimit { found: bytes.len() as u64, limit },
            _ if bytes.contains(&0) => Problem::NulInName,
            Ok(name) => return Ok(name),
            Err(error) => Problem::NotUtf8 { at: error.valid_up_to() as u64 },
        };
        Err(self.defect(field, start, problem))
    }
}
