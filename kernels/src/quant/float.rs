//! F32, F16 and BF16: one number after the other, no blocks.

use half::{bf16, f16};

use super::search::Block;

/// One little-endian f32.
#[inline(always)]
pub fn f32(block: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*block);
}

/// One little-endian IEEE half.
#[inline(always)]
pub fn f16(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f16::from_le_bytes(*block).to_f32();
}

/// One little-endian bf16, the upper half of an f32.
#[inline(always)]
pub fn bf16(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = bf16::from_le_bytes(*block).to_f32();
}

/// Stores an f32 as it is.
pub(crate) fn encode_f32(block: &Block<'_, 1>, out: &mut [u8; 4]) {
    *out = block.raw[0].to_le_bytes();
}

/// Rounds to the nearest half; what is too large becomes the largest finite one.
pub(crate) fn encode_f16(block: &Block<'_, 1>, out: &mut [u8; 2]) {
    *out = f16::from_f32(block.raw[0].clamp(-65504.0, 65504.0)).to_le_bytes();
}

/// Rounds to the nearest bf16; what is too large becomes the largest finite one.
pub(crate) fn encode_bf16(block: &Block<'_, 1>, out: &mut [u8; 2]) {
    let largest = bf16::MAX.to_f32();
    *out = bf16::from_f32(block.raw[0].clamp(-largest, largest)).to_le_bytes();
}
