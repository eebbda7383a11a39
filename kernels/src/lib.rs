//! Numbers in, numbers out: weight blocks, the op graph of a language model and the devices that run it.
//!
//! This crate knows no file, no text and no network. [`tensor`] names types and holds borrowed weights, [`order`]
//! says how their blocks lie, [`quant`]
//! decodes and encodes blocks, [`graph`] describes one model step in coarse ops, [`backend`] says what a device
//! offers, and [`cpu`] is the device that is always there; with the features
//! `wgpu` and `cuda` there are graphics processors too. [`mod@reference`] is the plain definition that devices are tested
//! against.

pub mod backend;
mod checks;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod device;
pub mod fault;
pub mod graph;
pub mod order;
mod paging;
pub mod quant;
pub mod reference;
pub mod tensor;
#[cfg(feature = "wgpu")]
pub mod wgpu;
