//! Chat templates: the Jinja programs in model files that turn a conversation into a prompt.
//!
//! They are rendered as Python's Jinja2 renders them, within bounds of work and size, and encoded so that nothing in a
//! message can pass for a control token. See `docs/tokenizers.md`.

mod chat;
mod error;
mod guard;
mod json;
mod python;
mod time;

pub use chat::{ChatTemplate, Prompt, RenderInput};
pub use error::TemplateError;
pub use time::CivilTime;
