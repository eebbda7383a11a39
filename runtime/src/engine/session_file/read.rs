//! Reading a session file: all is checked first, then keys and values are read again to be used.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use farpost_kernels::backend::ImageShape;
use sha2::{Digest, Sha256};

use super::error::SessionFileError;
use super::head::{FIXED_BYTES, Fixed, SUM_BYTES, VERSION};
use super::origin::Origin;
use super::{MOST_NOTE_BYTES, Restored, pieces};

/// Takes so many positions and their bytes.
type Take<'t> = dyn FnMut(usize, &[u8]) -> Result<(), SessionFileError> + 't;

/// Most layers of a file that are looked at.
const MOST_LAYERS: u32 = 1 << 16;

/// A session file that was found whole and fitting.
pub(in crate::engine) struct Reader {
    shown: String,
    file: fs::File,
    restored: Restored,
    image: ImageShape,
    /// Where keys and values begin.
    start: u64,
    head_sum: [u8; SUM_BYTES],
}

impl Reader {
    /// Checks the file at `path`, whole: form, size, checksums, that it comes from `origin`, and that its tokens are some
    /// of `n_vocab` and no more than `most_tokens`. Reads a plain file only, because others may never end.
    pub(in crate::engine) fn open(
        path: &Path,
        origin: &Origin,
        image: &ImageShape,
        most_tokens: usize,
        n_vocab: usize,
    ) -> Result<Self, SessionFileError> {
        let shown = path.display().to_string();
        let fail = |action, source| SessionFileError::Io { file: shown.clone(), action, source };
        // Looks before opening: opening a pipe would wait for its other end.
        if !fs::metadata(path).map_err(|source| fail("open it", source))?.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file");
            return Err(fail("open it", source));
        }
        let mut file = fs::File::open(path).map_err(|source| fail("open it", source))?;
        let found = file.metadata().map_err(|source| fail("open it", source))?.len();

        let mut fixed_bytes = [0; FIXED_BYTES];
        let n_begun = read_most(&mut file, &mut fixed_bytes).map_err(|source| fail("read it", source))?;
        let Some(fixed) = Fixed::read(&fixed_bytes) else {
            return Err(SessionFileError::NoSessionFile { file: shown });
        };
        let size = |expected| SessionFileError::Size { file: shown.clone(), found, expected };
        if n_begun < FIXED_BYTES {
            return Err(size(FIXED_BYTES as u64));
        }
        if fixed.version != VERSION {
            return Err(SessionFileError::Version { file: shown, found: fixed.version, expected: VERSION });
        }
        let expected = fixed.file_bytes().unwrap_or(u64::MAX);
        if expected != found {
            return Err(size(expected));
        }
        if fixed.n_tokens as usize > most_tokens {
            let tokens = fixed.n_tokens as usize;
            return Err(SessionFileError::TooLong { file: shown, tokens, context_tokens: most_tokens });
        }
        let checksum = |part| SessionFileError::Checksum { file: shown.clone(), part };
        if fixed.n_layers > MOST_LAYERS || fixed.note_bytes as usize > MOST_NOTE_BYTES {
            // No such file is written.
            return Err(checksum("head"));
        }
        let mut rest = buffer(&shown, fixed.rest_bytes() as usize)?;
        let mut head_sum = [0; SUM_BYTES];
        let read = file.read_exact(&mut rest).and_then(|()| file.read_exact(&mut head_sum));
        read.map_err(|source| fail("read it", source))?;
        if *Sha256::new_with_prefix(fixed_bytes).chain_update(&rest).finalize() != head_sum {
            return Err(checksum("head"));
        }
        let (of_file, tokens, note) = fixed.with_rest(&rest).ok_or_else(|| checksum("head"))?;
        if let Err((what, found, expected)) = origin.require(&of_file) {
            return Err(SessionFileError::Foreign { file: shown, what, found, expected });
        }
        if let Some(place) = tokens.iter().position(|&id| id as usize >= n_vocab) {
            return Err(SessionFileError::NoSuchToken { file: shown, place, id: tokens[place], n_vocab });
        }
        let kv_bytes = image.bytes(tokens.len(), 0..tokens.len());
        if kv_bytes != fixed.kv_bytes {
            // Another device keeps them in another way.
            let what = "the number of bytes of keys and values".to_owned();
            let (found, expected) = (fixed.kv_bytes.to_string(), kv_bytes.to_string());
            return Err(SessionFileError::Foreign { file: shown, what, found, expected });
        }
        let start = (FIXED_BYTES + rest.len() + SUM_BYTES) as u64;
        let (restored, image) = (Restored { tokens, note }, image.clone());
        let mut reader = Self { shown, file, restored, image, start, head_sum };
        reader.read(&mut |_, _| Ok(()))?;
        Ok(reader)
    }

    /// Tokens and note.
    pub(in crate::engine) fn restored(&self) -> &Restored {
        &self.restored
    }

    /// The same.
    pub(in crate::engine) fn into_restored(self) -> Restored {
        self.restored
    }

    /// Gives keys and values, so many positions at once. They were right before; what changed since shows only at the end.
    pub(in crate::engine) fn read(&mut self, take: &mut Take<'_>) -> Result<(), SessionFileError> {
        let fail = |source| SessionFileError::Io { file: self.shown.clone(), action: "read it", source };
        self.file.seek(SeekFrom::Start(self.start)).map_err(fail)?;
        let n_tokens = self.restored.tokens.len();
        let image = &self.image;
        let bytes_of = |positions: &Range<usize>| image.bytes(n_tokens, positions.clone()) as usize;
        let most_bytes = pieces(image, n_tokens).map(|positions| bytes_of(&positions)).max().unwrap_or(0);
        let mut piece = buffer(&self.shown, most_bytes)?;
        let mut sum = Sha256::new_with_prefix(self.head_sum);
        for positions in pieces(image, n_tokens) {
            let piece = &mut piece[..bytes_of(&positions)];
            self.file.read_exact(piece).map_err(fail)?;
            sum.update(&*piece);
            take(positions.len(), piece)?;
        }
        let mut expected = [0; SUM_BYTES];
        self.file.read_exact(&mut expected).map_err(fail)?;
        match *sum.finalize() == expected {
            true => Ok(()),
            false => Err(SessionFileError::Checksum { file: self.shown.clone(), part: "keys and values" }),
        }
    }
}

/// As many bytes as there are.
fn read_most(file: &mut fs::File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut n_read = 0;
    while n_read < bytes.len() {
        match file.read(&mut bytes[n_read..]) {
            Ok(0) => break,
            Ok(n) => n_read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n_read)
}

/// So many zeros, if there is memory for them.
fn buffer(file: &str, n_bytes: usize) -> Result<Vec<u8>, SessionFileError> {
    let mut bytes = Vec::new();
    let reserved = bytes.try_reserve_exact(n_bytes);
    reserved.map_err(|_| SessionFileError::OutOfMemory { file: file.to_owned(), needed_bytes: n_bytes })?;
    bytes.resize(n_bytes, 0);
    Ok(bytes)
}
