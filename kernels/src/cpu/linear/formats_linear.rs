//! Types whose levels are evenly spaced: the legacy, K and ternary types.

use super::format::{Format, exact, exact_mut, half_at};
use crate::quant::k::{q3_k_scales, q4_k_scales};
use crate::quant::layout::{read_high_planes, read_planes};
use crate::quant::ternary::tq1_0_codes;

/// Adds bit `i` of `high` as bit 4 of code `i`.
#[inline(always)]
fn add_fifth_bits(high: [u8; 4], codes: &mut [u8; 32]) {
    let high = u32::from_le_bytes(high);
    for (weight, code) in codes.iter_mut().enumerate() {
        *code |= (((high >> weight) & 1) as u8) << 4;
    }
}

/// Q4_0.
pub(crate) struct Q4_0;
impl Format for Q4_0 {
    const BYTES: usize = 18;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const OFFSET: u8 = 8;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 18] = exact(block);
        read_planes::<4>(&block[2..], 16, codes);
        scales[0] = half_at(block, 0);
    }
}

/// Q4_1.
pub(crate) struct Q4_1;
impl Format for Q4_1 {
    const BYTES: usize = 20;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const OFFSET: u8 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let block: &[u8; 20] = exact(block);
        read_planes::<4>(&block[4..], 16, codes);
        (scales[0], mins[0]) = (half_at(block, 0), half_at(block, 2));
    }
}

/// Q5_0.
pub(crate) struct Q5_0;
impl Format for Q5_0 {
    const BYTES: usize = 22;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const OFFSET: u8 = 16;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 22] = exact(block);
        read_planes::<4>(&block[6..], 16, codes);
        add_fifth_bits([block[2], block[3], block[4], block[5]], exact_mut(codes));
        scales[0] = half_at(block, 0);
    }
}

/// Q5_1.
pub(crate) struct Q5_1;
impl Format for Q5_1 {
    const BYTES: usize = 24;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const OFFSET: u8 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let block: &[u8; 24] = exact(block);
        read_planes::<4>(&block[8..], 16, codes);
        add_fifth_bits([block[4], block[5], block[6], block[7]], exact_mut(codes));
        (scales[0], mins[0]) = (half_at(block, 0), half_at(block, 2));
    }
}

/// Q8_0.
pub(crate) struct Q8_0;
impl Format for Q8_0 {
    const BYTES: usize = 34;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const OFFSET: u8 = 128;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 34] = exact(block);
        for (code, byte) in codes.iter_mut().zip(&block[2..]) {
            *code = byte ^ 0x80;
        }
        scales[0] = half_at(block, 0);
    }
}

/// Q2_K.
pub(crate) struct Q2K;
impl Format for Q2K {
    const BYTES: usize = 84;
    const LEN: usize = 256;
    const SUB: usize = 16;
    const OFFSET: u8 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let block: &[u8; 84] = exact(block);
        read_planes::<2>(&block[16..80], 32, codes);
        let (d, dmin) = (half_at(block, 80), half_at(block, 82));
        for (packed, (scale, min)) in block[..16].iter().zip(scales.iter_mut().zip(mins)) {
            (*scale, *min) = (d * f32::from(packed & 15), -dmin * f32::from(packed >> 4));
        }
    }
}

/// Q3_K.
pub(crate) struct Q3K;
impl Format for Q3K {
    const BYTES: usize = 110;
    const LEN: usize = 256;
    const SUB: usize = 16;
    const OFFSET: u8 = 4;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 110] = exact(block);
        read_planes::<2>(&block[32..96], 32, codes);
        read_high_planes::<1, 2>(&block[..32], 32, exact_mut(codes));
        let d = half_at(block, 108);
        for (scale, packed) in scales.iter_mut().zip(q3_k_scales(exact(&block[96..108]))) {
            *scale = d * f32::from(packed);
        }
    }
}

#[inline(always)]
fn pair_scales(d: f32, dmin: f32, packed: &[u8; 12], scales: &mut [f32], mins: &mut [f32]) {
    let (integer_scales, integer_mins) = q4_k_scales(packed);
    for sub in 0..8 {
        scales[sub] = d * f32::from(integer_scales[sub]);
        mins[sub] = -dmin * f32::from(integer_mins[sub]);
    }
}

/// Q4_K.
pub(crate) struct Q4K;
impl Format for Q4K {
    const BYTES: usize = 144;
    const LEN: usize = 256;
    const SUB: usize = 32;
    const OFFSET: u8 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let block: &[u8; 144] = exact(block);
        read_planes::<4>(&block[16..], 32, codes);
        pair_scales(half_at(block, 0), half_at(block, 2), exact(&block[4..16]), scales, mins);
    }
}

/// Q5_K.
pub(crate) struct Q5K;
impl Format for Q5K {
    const BYTES: usize = 176;
    const LEN: usize = 256;
    const SUB: usize = 32;
    const OFFSET: u8 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let block: &[u8; 176] = exact(block);
        read_planes::<4>(&block[48..], 32, codes);
        read_high_planes::<1, 4>(&block[16..48], 32, exact_mut(codes));
        pair_scales(half_at(block, 0), half_at(block, 2), exact(&block[4..16]), scales, mins);
    }
}

/// Q6_K.
pub(crate) struct Q6K;
impl Format for Q6K {
    const BYTES: usize = 210;
    const LEN: usize = 256;
    const SUB: usize = 16;
    const OFFSET: u8 = 32;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 210] = exact(block);
        read_planes::<4>(&block[..128], 64, codes);
        read_high_planes::<2, 4>(&block[128..192], 32, exact_mut(codes));
        let d = half_at(block, 208);
        for (scale, packed) in scales.iter_mut().zip(&block[192..208]) {
            *scale = d * f32::from(packed.cast_signed());
        }
    }
}

/// TQ1_0.
pub(crate) struct Tq1;
impl Format for Tq1 {
    const BYTES: usize = 54;
    const LEN: usize = 256;
    const SUB: usize = 32;
    const OFFSET: u8 = 1;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 54] = exact(block);
        tq1_0_codes(block, exact_mut(codes));
        scales.fill(half_at(block, 52));
    }
}

/// TQ2_0.
pub(crate) struct Tq2;
impl Format for Tq2 {
    const BYTES: usize = 66;
    const LEN: usize = 256;
    const SUB: usize = 32;
    const OFFSET: u8 = 1;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 66] = exact(block);
        read_planes::<2>(&block[..64], 32, codes);
        scales.fill(half_at(block, 64));
    }
}
