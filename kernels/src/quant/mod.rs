//! Block formats: decode to f32, encode from f32.
//!
//! One file per block family. The scalar code here is the truth that every kernel is tested against; layouts are
//! those of GGUF files, tested bit for bit against golden blocks of independent software. The decoders of single
//! blocks (`legacy::q4_0`, `k::q6_k`, …) take arrays of the exact size and cannot fail, whatever the bits.

mod decode;
mod encode;
mod error;
pub mod float;
pub mod iq;
pub(crate) mod iq_grids;
pub mod k;
pub(crate) mod layout;
pub mod legacy;
mod levels;
pub mod mx;
mod search;
mod superblock;
pub mod ternary;

pub use decode::decode;
pub use encode::{can_encode, encode};
pub use error::QuantError;
