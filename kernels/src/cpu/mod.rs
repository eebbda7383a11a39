//! The processor as a device: thread pool, run-time dispatch, kernels and the plan that runs a graph.

pub mod attention;
pub mod choose;
pub mod isa;
pub mod linear;
pub mod pointwise;
pub(crate) mod vector;
