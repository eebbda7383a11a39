//! The processor as a device: thread pool, run-time dispatch, kernels and the plan that runs a graph.

pub mod isa;
pub mod linear;
