//! The processor as a device: thread pool, run-time dispatch, kernels and the plan that runs a graph.

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod choose;
mod device;
pub mod isa;
pub(crate) mod kv;
pub mod linear;
pub(crate) mod memory;
pub(crate) mod plan;
pub mod pointwise;
mod pool;
pub mod roof;
mod self_test;
mod vector;

pub use device::Cpu;
