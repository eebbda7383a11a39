//! What a step does between products: norms, rotary positions, gated units, sums, soft caps.
//!
//! Every function works on rows of f32 and exists in a plain version (the truth) and one in lanes.

mod elementwise;
mod norm;
mod rope;

pub use elementwise::{add, add_in_place, glu, scale_in_place, softcap_in_place};
pub use norm::{rms_norm, rms_norm_in_place};
pub use rope::rope_in_place;
