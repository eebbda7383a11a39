//! Writing a session file: under another name, until it is whole and on the disk.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use farpost_kernels::backend::ImageShape;
use farpost_models::gguf::{GgufError, Partial};
use sha2::{Digest, Sha256};

use super::error::SessionFileError;
use super::origin::Origin;
use super::{MOST_NOTE_BYTES, head};

/// A session file that is being written; dropped before [`Writer::finish`], it leaves nothing behind.
pub(in crate::engine) struct Writer {
    shown: String,
    sink: BufWriter<fs::File>,
    partial: Partial,
    sum: Sha256,
}

impl Writer {
    /// Writes the head. Keys and values of all `tokens` must follow.
    pub(in crate::engine) fn create(
        path: &Path,
        origin: &Origin,
        image: &ImageShape,
        tokens: &[u32],
        note: &[u8],
    ) -> Result<Self, SessionFileError> {
        if note.len() > MOST_NOTE_BYTES {
            return Err(SessionFileError::NoteTooLong { found: note.len() });
        }
        let shown = path.display().to_string();
        let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "a number does not fit the format");
        let head = head::write(origin, image.bytes(tokens.len(), 0..tokens.len()), tokens, note)
            .ok_or_else(|| write_error(&shown, too_large()))?;
        let (partial, file) = Partial::create_private(path).map_err(of_partial)?;
        let mut sink = BufWriter::with_capacity(1 << 20, file);
        let sum = Sha256::digest(&head);
        sink.write_all(&head).and_then(|()| sink.write_all(&sum)).map_err(|source| write_error(&shown, source))?;
        Ok(Self { shown, sink, partial, sum: Sha256::new_with_prefix(sum) })
    }

    /// Keys and values of the next positions.
    pub(in crate::engine) fn append(&mut self, bytes: &[u8]) -> Result<(), SessionFileError> {
        self.sum.update(bytes);
        self.sink.write_all(bytes).map_err(|source| write_error(&self.shown, source))
    }

    /// Brings the file to the disk and gives it its name.
    pub(in crate::engine) fn finish(self) -> Result<(), SessionFileError> {
        let Self { shown, mut sink, partial, sum } = self;
        let written = sink.write_all(&sum.finalize()).and_then(|()| {
            let file = sink.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()
        });
        written.map_err(|source| write_error(&shown, source))?;
        partial.rename().map_err(of_partial)
    }
}

fn write_error(file: &str, source: io::Error) -> SessionFileError {
    SessionFileError::Io { file: file.to_owned(), action: "write it", source }
}

fn of_partial(error: GgufError) -> SessionFileError {
    match error {
        GgufError::Io { file, action, source } => SessionFileError::Io { file, action, source },
        other => SessionFileError::Model(other),
    }
}
