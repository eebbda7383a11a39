//! What can be wrong with the tokenizer a file describes. Every message names the file, the key, its place, what was
//! found and what was expected.

use crate::gguf::{GgufError, Place, Shortened};

/// Why a file's tokenizer is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A key is missing, of the wrong type, or names a token that is not there.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The kind of tokenizer is not one of ours.
    #[error("{place}: is '{}', supported are {supported}", Shortened(found))]
    UnknownModel {
        /// Where it stands.
        place: Place,
        /// What it says.
        found: String,
        /// What it may say.
        supported: &'static str,
    },
    /// The pre-tokenizer is not one of ours; guessing one would give wrong ids without a sign of it.
    #[error("{place}: is '{}', supported pre-tokenizers are {supported}", Shortened(found))]
    UnknownPreTokenizer {
        /// Where it stands.
        place: Place,
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
    #[error("{place}: has {found} entries, {expected} were expected, one per token")]
    WrongCount {
        /// Where it stands.
        place: Place,
        /// Its entries.
        found: usize,
        /// Number of tokens.
        expected: usize,
    },
    /// No tokens, or more than can be numbered.
    #[error("{place}: has {found} entries, 1 to {most} were expected")]
    Size {
        /// Where it stands.
        place: Place,
        /// Number of tokens.
        found: usize,
        /// The most there may be.
        most: usize,
    },
    /// More text than can be addressed.
    #[error("{place}: the tokens have {found} bytes together, at most {most} were expected")]
    TooLarge {
        /// Where it stands.
        place: Place,
        /// Bytes of all tokens.
        found: usize,
        /// The most there may be.
        most: usize,
    },
    /// A token of absurd length.
    #[error("{place}: the token has {found} bytes, at most {most} were expected")]
    TooLong {
        /// Where it stands.
        place: Place,
        /// Its length.
        found: usize,
        /// The most there may be.
        most: usize,
    },
    /// A token type outside the format's list.
    #[error("{place}: the token has type {found}, 0 to 6 were expected")]
    Kind {
        /// Where it stands.
        place: Place,
        /// The type as stored.
        found: i64,
    },
    /// A score that cannot be ordered.
    #[error("{place}: the token has a score that is not a number")]
    Score {
        /// Where it stands.
        place: Place,
    },
    /// A byte token that names no byte.
    #[error("{place}: the byte token is '{}', <0x00> to <0xFF> were expected", Shortened(found))]
    ByteToken {
        /// Where it stands.
        place: Place,
        /// Its text.
        found: String,
    },
    /// Neither a token for this byte nor an unknown token: some text could not be encoded.
    #[error("{place}: there is no token for byte 0x{byte:02X} and no tokenizer.ggml.unknown_token_id")]
    NoByte {
        /// Where it stands.
        place: Place,
        /// The byte.
        byte: u8,
    },
    /// A merge that is no pair of texts.
    #[error("{place}: is '{}', two tokens with a space between them were expected", Shortened(found))]
    Merge {
        /// Where it stands.
        place: Place,
        /// Its text.
        found: String,
    },
    /// A merge of or into something that is no token.
    #[error("{place}: '{}' names '{}', which is not a token", Shortened(found), Shortened(missing))]
    MergeOfUnknown {
        /// Where it stands.
        place: Place,
        /// Its text.
        found: String,
        /// What is missing.
        missing: String,
    },
    /// A WordPiece vocabulary without an unknown token.
    #[error("{place}: a WordPiece vocabulary needs a token '[UNK]' or tokenizer.ggml.unknown_token_id")]
    NoUnknown {
        /// Where it stands.
        place: Place,
    },
}
