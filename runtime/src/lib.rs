//! Farpost: an edge inference runtime for language models.
//!
//! A [`Model`] is an opened file: open one by path, or by a name through [`Library`], or take the built-in one. An
//! [`engine::Session`] runs it on a device: prompt in, text out. An [`engine::Engine`] serves many requests at once; with
//! the feature `server`, a [`server::Server`] offers one over HTTP. The program `farpost` is a thin shell around this crate.

pub use farpost_kernels as kernels;
pub use farpost_models as models;

pub mod engine;
#[cfg(any(feature = "grammar", feature = "server"))]
mod kind;
mod library;
mod model;
#[cfg(feature = "server")]
pub mod server;

pub use library::{Entry, Library, LibraryError};
pub use model::{Model, ModelError, ModelOptions, PackUse};

/// The code in the README is compiled and run.
#[cfg(all(doctest, feature = "pocket"))]
#[doc = include_str!("../../README.md")]
struct Readme;

/// As is that of the page on the engine.
#[cfg(all(doctest, feature = "pocket"))]
#[doc = include_str!("../../docs/engine.md")]
struct EnginePage;
