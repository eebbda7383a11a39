//! Files and text: GGUF files, tokenizers, chat templates and model families.
//!
//! Knows what a model file holds and how to turn it into a [`farpost_kernels::graph::Graph`]; knows nothing of
//! requests, threads or devices.

pub mod families;
pub mod gguf;
pub mod pack;
#[cfg(feature = "pocket")]
pub mod pocket;
pub mod quantize;
pub mod synth;
pub mod template;
pub mod tokenizer;

// The code of this guide is compiled by `cargo test --doc`.
#[cfg(doctest)]
#[doc = include_str!("../../docs/gguf.md")]
struct GgufGuide;
