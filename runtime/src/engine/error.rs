//! What can go wrong while a model runs.

use farpost_kernels::backend::DeviceError;
use farpost_models::gguf::GgufError;

use super::sampler::SampleError;
use super::sampling::SamplingError;

/// Why a session could not be opened or do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A sampling parameter.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// No token could be chosen.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An option or parameter out of its range.
    #[error("{parameter} is {found}, expected {expected}")]
    OutOfRange {
        /// Its name.
        parameter: &'static str,
        /// The value.
        found: usize,
        /// The range.
        expected: String,
    },
    /// A stop string without characters.
    #[error("stop[{number}] is empty, expected at least one character")]
    EmptyStop {
        /// Which one, from 0.
        number: usize,
    },
    /// A form that cannot be enforced.
    #[error("{form}{pointer}: {reason}")]
    Grammar {
        /// Which kind of form.
        form: &'static str,
        /// Where in a schema, as a JSON pointer in a fragment (`#/properties/a`); empty if it is the form as a whole.
        pointer: String,
        /// What in it, and why.
        reason: String,
    },
    /// A draft model that cannot guess for the model.
    #[error("the draft model does not belong to the model: {reason}")]
    DraftModel {
        /// What differs.
        reason: String,
    },
    /// Guesses of a draft model where there is none.
    #[error("guesses of a draft model were asked for, expected a session or engine that was opened with one")]
    NoDraftModel,
    /// An embedding of a model that writes.
    #[error("{model} makes no embeddings, expected a model whose file names a pooling_type")]
    NoEmbeddings {
        /// The model's file.
        model: String,
    },
    /// Nothing to go on from.
    #[error("the prompt is empty, expected at least one token")]
    EmptyPrompt,
    /// The prompt does not fit.
    #[error("the prompt has {prompt_tokens} tokens, the context holds {context_tokens}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of the context.
        context_tokens: usize,
    },
    /// An id that is no token.
    #[error("token {place} of the prompt is {id}, the model has {n_vocab}")]
    NoSuchToken {
        /// Place in the prompt, from 0.
        place: usize,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// The KV cache is smaller than was asked for.
    #[error("the KV cache has no room for {tokens} tokens")]
    NoRoom {
        /// Tokens in all.
        tokens: usize,
    },
    /// The model's file changed while it was read.
    #[error("{file}: the file was cut while the model ran, its weights are gone: load it again")]
    Damaged {
        /// The model's file.
        file: String,
    },
    /// The model's file is not what it was when it was opened, and results are worthless.
    #[error(transparent)]
    Changed(GgufError),
    /// The engine ended before the request did.
    #[error("the engine ended before the request was done")]
    Gone,
    /// The text is too short to measure.
    #[error("the text has {tokens} tokens, expected at least one window of {window}")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
}
