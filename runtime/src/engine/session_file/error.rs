//! Why a session file cannot be written or used.

use std::io;

use farpost_models::gguf::GgufError;

use super::MOST_NOTE_BYTES;

/// Why keys and values were not saved to a file or restored from it. What was there before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SessionFileError {
    /// The system refused.
    #[error("{file}: cannot {action}: {source}")]
    Io {
        /// The file as it was named.
        file: String,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Some other file.
    #[error("{file}: no session file, expected one that begins with 'FARPOSTS'")]
    NoSessionFile {
        /// The file.
        file: String,
    },
    /// Of another version of the format.
    #[error("{file}: a session file of version {found}, expected {expected}")]
    Version {
        /// The file.
        file: String,
        /// What it says.
        found: u32,
        /// What can be read.
        expected: u32,
    },
    /// Longer or shorter than its head says.
    #[error("{file}: the file has {found} bytes, expected {expected} by its head: it is cut or damaged")]
    Size {
        /// The file.
        file: String,
        /// Bytes of the file.
        found: u64,
        /// Bytes that its head makes, at most 2^64 - 1.
        expected: u64,
    },
    /// A checksum that does not fit.
    #[error("{file}: the checksum of the {part} is wrong: the file is damaged")]
    Checksum {
        /// The file.
        file: String,
        /// "head" or "keys and values".
        part: &'static str,
    },
    /// Of another model, or saved with other settings.
    #[error("{file}: {what} is {found}, expected {expected}")]
    Foreign {
        /// The file.
        file: String,
        /// What differs.
        what: String,
        /// What it says.
        found: String,
        /// What is in use here.
        expected: String,
    },
    /// More tokens than there is room for.
    #[error("{file}: it holds {tokens} tokens, the context holds {context_tokens}")]
    TooLong {
        /// The file.
        file: String,
        /// Tokens in it.
        tokens: usize,
        /// Tokens of the context.
        context_tokens: usize,
    },
    /// An id that is no token.
    #[error("{file}: token {place} is {id}, the model has {n_vocab}")]
    NoSuchToken {
        /// The file.
        file: String,
        /// Place in the text, from 0.
        place: usize,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// A note that is too long.
    #[error("the note has {found} bytes, expected {MOST_NOTE_BYTES} at most")]
    NoteTooLong {
        /// Its bytes.
        found: usize,
    },
    /// The model's file.
    #[error(transparent)]
    Model(#[from] GgufError),
    /// There is no memory to read into.
    #[error("{file}: {needed_bytes} bytes are needed to read it, the system gives less")]
    OutOfMemory {
        /// The file.
        file: String,
        /// Bytes of what there is no memory for.
        needed_bytes: usize,
    },
    /// The cache has no room.
    #[error("the KV cache has no room for {tokens} tokens now")]
    NoRoom {
        /// Tokens in all.
        tokens: usize,
    },
    /// An engine holds no beginning of the text.
    #[error("nothing of the text is cached, expected a beginning of at least {least} tokens")]
    NotCached {
        /// Tokens that make it worth while.
        least: usize,
    },
    /// An engine that keeps nothing, or a text too short to be kept.
    #[error("{tokens} tokens cannot be kept, expected {least} or more, and an engine whose max_cached is not 0")]
    NotKept {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens that are kept at least.
        least: usize,
    },
    /// An engine does one such thing at a time.
    #[error("the engine is saving or restoring another text, try again when it is done")]
    Busy,
    /// Running answers needed the room, or the device was lost.
    #[error("the text gave way to what runs before it was copied, try again")]
    GaveWay,
    /// The engine was shut down.
    #[error("the engine is shut down")]
    Closed,
}
