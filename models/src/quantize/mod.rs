//! Whole-file quantization: which tensor gets which type, and the file written with them.
//!
//! A [`Mixture`] names the type of every tensor of a model; [`quantize_file`] writes the model anew in those types, a
//! window of weights at a time on several threads, with memory that does not grow with the file.

mod error;
mod mixture;
mod run;
mod table;

pub use error::QuantizeError;
pub use mixture::{Assignment, ModelShape, substitute};
pub use run::{Options, Progress, Summary, quantize_file};
pub use table::Mixture;
