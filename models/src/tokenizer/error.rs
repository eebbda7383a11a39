//! What can be wrong with the tokenizer a file describes. Every message names the file, the key, what was found and
//! what was expected.

use crate::gguf::{GgufError, Shortened};

/// Why a file's tokenizer is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A key is missing, of the wrong type, or names a token that is not there.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The kind of tokenizer is not one of ours.
    #[error("{file}: tokenizer.ggml.model is '{}', supported are {supported}", Shortened(found))]
    UnknownModel {
        /// Name of the file.
        file: String,
        /// What it says.
        found: String,
        /// What it may say.
        supported: &'static str,
    },
    /// The pre-tokenizer is not one of ours; guessing one would give wrong ids without a sign of it.
    #[error("{file}: pre-tokenizer tokenizer.ggml.pre is '{}', supported are {supported}", Shortened(found))]
    UnknownPreTokenizer {
        /// Name of the file.
        file: String,
        /// What it says.
        found: String,
        /// What it may say, comma-separated.
        supported: String,
    },
    /// A byte-level vocabulary without the name of its pre-tokenizer.
    #[error("{file}: key 'tokenizer.ggml.pre' is missing, a byte-level vocabulary needs one of {supported}")]
    NoPreTokenizer {
        /// Name of the file.
        file: String,
        /// What it may say, comma-separated.
        supported: String,
    },
    /// Arrays that go together differ in length.
    #[error("{file}: {key} has {found} entries, {expected} were expected, one per token")]
    WrongCount {
        /// Name of the file.
        file: String,
        /// The key.
        key: &'static str,
        /// Its entries.
        found: usize,
        /// Number of tokens.
        expected: usize,
    },
    /// No tokens, or more than can be numbered.
    #[error("{file}: tokenizer.ggml.tokens has {found} entries, 1 to {most} were expected")]
    Size {
        /// Name of the file.
        file: String,
        /// Number of tokens.
        found: usize,
        /// The most there may be.
        most: usize,
    },
    /// More text than can be addressed.
    #[error("{file}: the tokens have {found} bytes together, at most {most} were expected")]
    TooLarge {
        /// Name of the file.
        file: String,
        /// Bytes of all tokens.
        found: usize,
        /// The most there may be.
        most: usize,
    },
    /// A token of absurd length.
    #[error("{file}: token {token} has {found} bytes, at most {most} were expected")]
    TooLong {
        /// Name of the file.
        file: String,
        /// The token's id.
        token: usize,
        /// Its length.
        found: usize,
        /// The most there may be.
        most: usize,
    },
    /// A token type outside the format's list.
    #[error("{file}: token {token} has type {found}, 0 to 6 were expected")]
    Kind {
        /// Name of the file.
        file: String,
        /// The token's id.
        token: usize,
        /// The type as stored.
        found: i64,
    },
    /// A score that cannot be ordered.
    #[error("{file}: token {token} has a score that is not a number")]
    Score {
        /// Name of the file.
        file: String,
        /// The token's id.
        token: usize,
    },
    /// A byte token that names no byte.
    #[error("{file}: byte token {token} is '{}', <0x00> to <0xFF> were expected", Shortened(found))]
    ByteToken {
        /// Name of the file.
        file: String,
        /// The token's id.
        token: usize,
        /// Its text.
        found: String,
    },
    /// Neither a token for this byte nor an unknown token: some text could not be encoded.
    #[error("{file}: there is no token for byte 0x{byte:02X} and no tokenizer.ggml.unknown_token_id")]
    NoByte {
        /// Name of the file.
        file: String,
        /// The byte.
        byte: u8,
    },
    /// A merge that is no pair of texts.
    #[error("{file}: merge {merge} is '{}', two tokens with a space between them were expected", Shortened(found))]
    Merge {
        /// Name of the file.
        file: String,
        /// Its number.
        merge: usize,
        /// Its text.
        found: String,
    },
    /// A merge of or into something that is no token.
    #[error("{file}: merge {merge} '{}' names '{}', which is not a token", Shortened(found), Shortened(missing))]
    MergeOfUnknown {
        /// Name of the file.
        file: String,
        /// Its number.
        merge: usize,
        /// Its text.
        found: String,
        /// What is missing.
        missing: String,
    },
    /// A WordPiece vocabulary without an unknown token.
    #[error("{file}: a WordPiece vocabulary needs tokenizer.ggml.unknown_token_id or a token '[UNK]'")]
    NoUnknown {
        /// Name of the file.
        file: String,
    },
}
