//! F32, F16 and BF16: one number after the other, no blocks.

use half::{bf16, f16};

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
