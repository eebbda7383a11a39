//! Text to token ids and back, from a GGUF file's own description: byte-level BPE, SentencePiece BPE, WordPiece.
//!
//! Ids equal those of the reference implementations; what is supported and by which rules is told in
//! `docs/tokenizers.md`.

mod bpe;
mod byte_level;
mod class;
mod error;
mod hash;
mod load;
mod merge;
mod pretokenize;
#[cfg(test)]
mod pretokenize_tests;
mod roles;
mod special;
mod spm;
mod stream;
mod tidy;
mod tokenize;
mod vocabulary;
mod wordpiece;

pub use error::TokenizerError;
pub use roles::{FillInMiddle, Roles};
pub use stream::{Detokenizer, TextState};
pub use tokenize::{Special, Tokenizer};
pub use vocabulary::TokenKind;
