//! Graphics processors as a device, through the crate wgpu: Vulkan, Metal or Direct3D 12.
//!
//! Weights are laid out anew as they are uploaded (`crate::device`) and met with activations in f32, so results are those of
//! the scalar code up to the order of sums. Keys and values lie on the device in the pages that `crate::paging` hands
//! out. All that a step needs is bound when a plan is made; a step writes one small buffer, submits once and reads back
//! what was asked for.

mod cache;
mod device;
mod fuse;
mod gpu;
mod lower;
mod pipelines;
mod places;
mod plan;
mod self_test;
mod stage;
mod upload;

pub use device::{Adapters, Wgpu};
