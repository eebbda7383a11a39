//! What can go wrong with a chat template.

use std::fmt;

use crate::gguf::{GgufError, Place};

/// Why a template can't be used or did not render.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A key of the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The file brings none. None is made up: a wrong one gives plausible nonsense.
    #[error(
        "{file}: there is no chat template (key 'tokenizer.chat_template'): complete raw text, or give a template of \
         your own"
    )]
    Missing {
        /// Name of the file.
        file: String,
    },
    /// The file has no template of this name.
    #[error("{file}: there is no chat template '{wanted}', there are {available}")]
    NoSuchTemplate {
        /// Name of the file.
        file: String,
        /// The name asked for.
        wanted: String,
        /// The names there are.
        available: String,
    },
    /// It is not a Jinja template.
    #[error("chat template: {message}")]
    Syntax {
        /// What is wrong, and on which line.
        message: String,
    },
    /// The template that a file brings is not a Jinja template.
    #[error("{place}: is no chat template: {message}")]
    Unusable {
        /// Where it stands.
        place: Place,
        /// What is wrong, and on which line.
        message: String,
    },
    /// The template itself refuses the conversation.
    #[error("the chat template refuses the conversation: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// It fails on this conversation.
    #[error("chat template: {message}")]
    Failed {
        /// What went wrong, and on which line.
        message: String,
    },
    /// It does more work, or keeps more in memory, than any honest template.
    #[error("chat template: more than {fuel} steps for {input_bytes} bytes of input")]
    TooMuchWork {
        /// The bound.
        fuel: u64,
        /// What it was given.
        input_bytes: usize,
    },
    /// It writes more than allowed.
    #[error("chat template: the prompt is longer than {most} bytes")]
    TooLong {
        /// The bound.
        most: usize,
    },
    /// The input uses up all characters that could mark its parts.
    #[error("chat template: the conversation uses every private character, so its parts can't be told apart")]
    NoMarker,
}

/// The message of `raise_exception`, on its way through the template engine.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}
