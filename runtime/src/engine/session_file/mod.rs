//! Keys and values of a text in a file, so that a conversation goes on after the program ended without being run again.
//!
//! A file holds, little-endian: magic, version, storage of keys and values, counts, the model's content hash and a hash
//! of its rotations; the shape of every layer; the tokens; a note of whoever saved it; the SHA-256 of all that; keys and
//! values, position after position; the SHA-256 of the first one and these. Layout: `docs/engine.md`.
//!
//! A file appears under its name only when it is whole and on the disk. Nothing in one is believed: sizes are held
//! against the size of the file and the bounds of the session before memory is taken, checksums and origin before
//! anything is changed. The checksum finds damage, not malice: a file made on purpose can hold wrong keys and values,
//! which give a wrong text or an error of the step.

mod error;
mod head;
mod origin;
mod read;
#[cfg(all(test, feature = "pocket"))]
pub(super) mod tests;
mod write;

use std::ops::Range;

use farpost_kernels::backend::ImageShape;

pub use error::SessionFileError;
pub(super) use origin::Origin;
pub(super) use read::Reader;
pub(super) use write::Writer;

/// Most bytes of the note in a session file.
pub const MOST_NOTE_BYTES: usize = 16 << 20;

/// Bytes of keys and values that are copied at a time, but for one position at least.
const PIECE_BYTES: usize = 4 << 20;

/// Positions that are copied at a time.
pub(super) fn pieces(image: &ImageShape, n_tokens: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let most = (PIECE_BYTES / image.token_bytes().max(1)).max(1);
    (0..n_tokens).step_by(most).map(move |from| from..n_tokens.min(from + most))
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The tokens whose keys and values are there now.
    pub tokens: Vec<u32>,
    /// What was saved with them.
    pub note: Vec<u8>,
}
