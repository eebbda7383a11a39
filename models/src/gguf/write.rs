//! Writing GGUF 3: the head at once, tensor data streamed in the order in which tensors were declared.
//!
//! The head is checked by the rules the reader has, so that what is written can be read.

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use farpost_kernels::tensor::DType;

use super::error::{GgufError, Grouped, Shortened};
use super::metadata::Metadata;
use super::owned::OwnedValue;
use super::partial::Partial;
use super::read::{
    DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_DIMS, MAX_KEY_BYTES, MAX_KEYS, MAX_NAME_BYTES, MAX_TENSORS, sizes,
};
use super::value::ValueType;

const ALIGNMENT_KEY: &str = "general.alignment";

/// A tensor that will be written.
#[derive(Clone, Debug)]
struct Declared {
    name: String,
    dtype: DType,
    dims: Vec<u64>,
    bytes: u64,
}

/// The head of a file to be: metadata and tensor descriptions.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    entries: Vec<(String, OwnedValue)>,
    tensors: Vec<Declared>,
    names: HashSet<String>,
}

impl Writer {
    /// An empty head.
    pub fn new() -> Self {
        Self::default()
    }

    /// A head with all metadata of another file, in its order, except what describes its split into parts.
    pub fn with_metadata_of(metadata: &Metadata) -> Self {
        let own = metadata.iter().filter(|(key, _)| !key.starts_with("split."));
        let entries = own.map(|(key, value)| (key.to_owned(), value.into())).collect();
        Self { entries, ..Self::default() }
    }

    /// Sets `key`, in place if it is there, else at the end.
    pub fn set(&mut self, key: &str, value: impl Into<OwnedValue>) -> &mut Self {
        let value = value.into();
        match self.entries.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key.to_owned(), value)),
        }
        self
    }

    /// Removes `key` if it is there.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.entries.retain(|(known, _)| known != key);
        self
    }

    /// Declares the next tensor; `dims` fastest first (`[cols, rows, ...]`). Gives its size in bytes.
    pub fn tensor(&mut self, name: &str, dtype: DType, dims: &[usize]) -> Result<u64, GgufError> {
        let refuse = |problem: String| unwritable("", &format!("tensor '{}'", Shortened(name)), problem);
        check_name(name, MAX_NAME_BYTES).map_err(refuse)?;
        if dims.len() > MAX_DIMS {
            return Err(refuse(format!("{} dimensions, at most {MAX_DIMS} are possible", dims.len())));
        }
        let mut stored = [1_u64; MAX_DIMS];
        stored.iter_mut().zip(dims).for_each(|(stored, &dim)| *stored = dim as u64);
        if !stored[0].is_multiple_of(dtype.block_len() as u64) {
            let (cols, block) = (stored[0], dtype.block_len());
            return Err(refuse(format!("rows of {cols} weights are not whole blocks of {block} weights ({dtype})")));
        }
        let Some((_, _, bytes)) = sizes(stored, dtype) else {
            return Err(refuse(format!("dimensions {dims:?} overflow the address range")));
        };
        if self.tensors.len() as u64 == MAX_TENSORS {
            return Err(refuse(format!("{MAX_TENSORS} tensors were declared before, more are not possible")));
        }
        if !self.names.insert(name.to_owned()) {
            return Err(refuse("a tensor of that name was declared before".to_owned()));
        }
        let dims = dims.iter().map(|&dim| dim as u64).collect();
        self.tensors.push(Declared { name: name.to_owned(), dtype, dims, bytes });
        Ok(bytes)
    }

    /// Starts a file at `path`: see [`FileWriter`].
    pub fn create(self, path: &Path) -> Result<FileWriter, GgufError> {
        FileWriter::create(self, path)
    }

    /// Writes the head to `sink` and gives what takes the tensor data; messages call the result `name`.
    pub fn start<W: Write>(self, name: &str, mut sink: W) -> Result<TensorData<W>, GgufError> {
        let alignment = self.alignment(name)?;
        let head = self.encode(name, alignment)?;
        sink.write_all(&head).map_err(|source| write_error(name, source))?;
        let written = head.len() as u64;
        let padding = written.next_multiple_of(alignment) - written;
        let tensors = self.tensors.into_iter();
        let mut data = TensorData { name: name.to_owned(), sink, alignment, written, current: None, tensors };
        data.pad(padding)?;
        data.advance();
        Ok(data)
    }

    fn alignment(&self, name: &str) -> Result<u64, GgufError> {
        let Some((_, value)) = self.entries.iter().find(|(key, _)| key == ALIGNMENT_KEY) else {
            return Ok(DEFAULT_ALIGNMENT);
        };
        let bytes = value.bytes.first_chunk().filter(|_| value.kind == ValueType::U32);
        let alignment = bytes.map(|bytes| u64::from(u32::from_le_bytes(*bytes)));
        alignment.filter(|n| n.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(n)).ok_or_else(|| {
            let problem = format!("it must be a u32 and a power of two from 8 to {}", Grouped(MAX_ALIGNMENT));
            unwritable(name, ALIGNMENT_KEY, problem)
        })
    }

    /// Header, metadata and tensor descriptions, without the padding that follows.
    fn encode(&self, name: &str, alignment: u64) -> Result<Vec<u8>, GgufError> {
        let mut out = b"GGUF".to_vec();
        out.extend_from_slice(&3_u32.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        if self.entries.len() as u64 > MAX_KEYS {
            let problem = format!("{} keys, at most {MAX_KEYS} are possible", self.entries.len());
            return Err(unwritable(name, "metadata", problem));
        }
        for (key, value) in &self.entries {
            let refuse = |problem| unwritable(name, &format!("metadata key '{}'", Shortened(key)), problem);
            check_name(key, MAX_KEY_BYTES).map_err(refuse)?;
            put_text(&mut out, key);
            value.encode(&mut out);
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            put_text(&mut out, &tensor.name);
            out.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend_from_slice(&tensor.dtype.id().to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            let end = offset.checked_add(tensor.bytes).and_then(|end| end.checked_next_multiple_of(alignment));
            offset = end.filter(|&end| i64::try_from(end).is_ok()).ok_or_else(|| {
                unwritable(
                    name,
                    &format!("tensor '{}'", Shortened(&tensor.name)),
                    "the file would be too large".to_owned(),
                )
            })?;
        }
        Ok(out)
    }
}

/// Takes the data of the declared tensors, in their order and in pieces of any size.
#[derive(Debug)]
pub struct TensorData<W> {
    name: String,
    sink: W,
    alignment: u64,
    written: u64,
    /// The tensor that takes bytes now, and how many it still needs.
    current: Option<(Declared, u64)>,
    tensors: std::vec::IntoIter<Declared>,
}

impl<W: Write> TensorData<W> {
    /// Appends to tensor `name`, which must be the next one that is not whole yet.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), GgufError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let refuse = |problem: String| unwritable(&self.name, &format!("tensor '{}'", Shortened(name)), problem);
        let Some((tensor, missing)) = &mut self.current else {
            return Err(refuse("all tensors are whole already".to_owned()));
        };
        if tensor.name != name {
            return Err(refuse(format!("it is the turn of tensor '{}'", Shortened(&tensor.name))));
        }
        let Some(still_missing) = missing.checked_sub(bytes.len() as u64) else {
            let (given, missing) = (Grouped(bytes.len() as u64), Grouped(*missing));
            return Err(refuse(format!("{given} more bytes were given, {missing} are missing")));
        };
        *missing = still_missing;
        self.sink.write_all(bytes).map_err(|source| write_error(&self.name, source))?;
        self.written += bytes.len() as u64;
        if still_missing == 0 {
            self.pad(self.written.next_multiple_of(self.alignment) - self.written)?;
            self.advance();
        }
        Ok(())
    }

    /// The tensor that takes bytes next, and how many it still needs.
    pub fn next_tensor(&self) -> Option<(&str, u64)> {
        self.current.as_ref().map(|(tensor, missing)| (tensor.name.as_str(), *missing))
    }

    /// Bytes written so far, head and padding included.
    pub fn written_bytes(&self) -> u64 {
        self.written
    }

    /// Gives the sink back, flushed; refused while a tensor is not whole.
    pub fn finish(mut self) -> Result<W, GgufError> {
        if let Some((tensor, missing)) = &self.current {
            let problem = format!("{} of {} bytes were not given", Grouped(*missing), Grouped(tensor.bytes));
            return Err(unwritable(&self.name, &format!("tensor '{}'", Shortened(&tensor.name)), problem));
        }
        self.sink.flush().map_err(|source| write_error(&self.name, source))?;
        Ok(self.sink)
    }

    /// Goes on to the next tensor that has bytes.
    fn advance(&mut self) {
        self.current = self.tensors.find(|tensor| tensor.bytes > 0).map(|tensor| {
            let missing = tensor.bytes;
            (tensor, missing)
        });
    }

    fn pad(&mut self, mut bytes: u64) -> Result<(), GgufError> {
        const ZEROS: [u8; 512] = [0; 512];
        while bytes > 0 {
            let step = bytes.min(ZEROS.len() as u64);
            let zeros = &ZEROS[..step as usize];
            self.sink.write_all(zeros).map_err(|source| write_error(&self.name, source))?;
            self.written += step;
            bytes -= step;
        }
        Ok(())
    }
}

/// A file being written under a temporary name; [`FileWriter::finish`] gives it its own name, dropping it removes it.
///
/// Only a plain file is ever replaced. The new one keeps its permissions; a link stays, and what it leads to is replaced.
#[derive(Debug)]
pub struct FileWriter {
    data: TensorData<BufWriter<fs::File>>,
    partial: Partial,
}

impl FileWriter {
    fn create(writer: Writer, path: &Path) -> Result<Self, GgufError> {
        let shown = path.display().to_string();
        let (partial, file) = Partial::create(path)?;
        let data = writer.start(&shown, BufWriter::with_capacity(1 << 20, file))?;
        Ok(Self { data, partial })
    }

    /// Appends to tensor `name`, which must be the next one that is not whole yet.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), GgufError> {
        self.data.append(name, bytes)
    }

    /// The tensor that takes bytes next, and how many it still needs.
    pub fn next_tensor(&self) -> Option<(&str, u64)> {
        self.data.next_tensor()
    }

    /// Bytes written so far, head and padding included.
    pub fn written_bytes(&self) -> u64 {
        self.data.written_bytes()
    }

    /// Brings the file to the disk and gives it its name, replacing what was there. Gives its size.
    pub fn finish(self) -> Result<u64, GgufError> {
        let Self { data, partial } = self;
        let (name, size) = (data.name.clone(), data.written);
        let file = data.finish()?.into_inner().map_err(|error| write_error(&name, error.into_error()))?;
        file.sync_all().map_err(|source| write_error(&name, source))?;
        drop(file);
        partial.rename()?;
        Ok(size)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn check_name(name: &str, limit: u64) -> Result<(), String> {
    if name.is_empty() || name.contains('\0') {
        return Err("a name must not be empty or hold a NUL byte".to_owned());
    }
    if name.len() as u64 > limit {
        return Err(format!("a name of {} bytes, at most {limit} are possible", name.len()));
    }
    Ok(())
}

fn unwritable(file: &str, field: &str, problem: String) -> GgufError {
    let file = if file.is_empty() { "new file" } else { file };
    GgufError::Unwritable { file: file.to_owned(), field: field.to_owned(), problem }
}

fn write_error(file: &str, source: io::Error) -> GgufError {
    GgufError::Io { file: file.to_owned(), action: "write", source }
}
