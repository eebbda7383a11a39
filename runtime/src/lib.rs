//! Farpost: an edge inference runtime for language models.
//!
//! Open a model, submit text or token ids, receive tokens. The program `farpost` is a thin shell around this crate.

pub mod engine;
