//! Graphics processors of NVIDIA through their own driver.
//!
//! Weights are laid out anew as they are uploaded; coded ones are met with activations as bytes, in whole numbers that are
//! scaled and added up in f32. Keys and values lie on the device in the pages that `crate::paging` hands out. Sources under
//! `kernels/` are compiled when they are first needed, for the device that is there. The driver and the compiler are looked
//! for at run time; where they are not there is no device, and why is told.
//!
//! All but the driver itself (`nvidia.rs`, `compiler.rs`) is tested without a graphics processor, by a [`driver::Driver`]
//! that runs the same sources on the processor.

mod cache;
mod compiler;
mod device;
pub mod driver;
mod gpu;
mod lower;
mod nvidia;
mod plan;
#[cfg(test)]
mod report;
mod rooms;
mod sources;
mod stage;
mod upload;

pub use device::Cuda;
