//! Types whose levels are evenly spaced: the legacy, K and ternary types.

use super::codebook::Packed;
use super::format::{Format, exact, exact_mut, half_at, stored_half};
use super::layout::{High, Layout, Scales, planes};
use crate::quant::layout::{read_high_planes, read_planes, u32_at};
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
    const STORED_HALVES: bool = true;
    const LAYOUT: Option<Layout> =
        Some(Layout { low: planes(2, 4, 16), high: High::None, scales: Scales::Half { d: 0 } });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 18] = exact(block);
        read_planes::<4>(&block[2..], 16, codes);
        scales[0] = stored_half(block, 0);
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
    const STORED_HALVES: bool = true;
    const LAYOUT: Option<Layout> =
        Some(Layout { low: planes(4, 4, 16), high: High::None, scales: Scales::HalfAndMin { d: 0, min: 2 } });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let block: &[u8; 20] = exact(block);
        read_planes::<4>(&block[4..], 16, codes);
        (scales[0], mins[0]) = (stored_half(block, 0), stored_half(block, 2));
    }
}

/// Q5_0.
pub(crate) struct Q5_0;
impl Format for Q5_0 {
    const BYTES: usize = 22;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const OFFSET: u8 = 16;
    const STORED_HALVES: bool = true;
    const LAYOUT: Option<Layout> =
        Some(Layout { low: planes(6, 4, 16), high: High::Word(2), scales: Scales::Half { d: 0 } });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 22] = exact(block);
        read_planes::<4>(&block[6..], 16, codes);
        add_fifth_bits([block[2], block[3], block[4], block[5]], exact_mut(codes));
        scales[0] = stored_half(block, 0);
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
    const STORED_HALVES: bool = true;
    const LAYOUT: Option<Layout> =
        Some(Layout { low: planes(8, 4, 16), high: High::Word(4), scales: Scales::HalfAndMin { d: 0, min: 2 } });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let block: &[u8; 24] = exact(block);
        read_planes::<4>(&block[8..], 16, codes);
        add_fifth_bits([block[4], block[5], block[6], block[7]], exact_mut(codes));
        (scales[0], mins[0]) = (stored_half(block, 0), stored_half(block, 2));
    }
}

/// Q8_0.
pub(crate) struct Q8_0;
impl Format for Q8_0 {
    const BYTES: usize = 34;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const OFFSET: u8 = 128;
    const STORED_HALVES: bool = true;
    const LAYOUT: Option<Layout> =
        Some(Layout { low: planes(2, 8, 32), high: High::None, scales: Scales::Half { d: 0 } });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 34] = exact(block);
        for (code, byte) in codes.iter_mut().zip(&block[2..]) {
            *code = byte ^ 0x80;
        }
        scales[0] = stored_half(block, 0);
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
    const LAYOUT: Option<Layout> =
        Some(Layout { low: planes(16, 2, 32), high: High::None, scales: Scales::NibblePairs { d: 80, min: 82 } });
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
    const LAYOUT: Option<Layout> = Some(Layout {
        low: planes(32, 2, 32),
        high: High::Planes(planes(0, 1, 32)),
        scales: Scales::SixBits { at: 96, d: 108 },
    });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 110] = exact(block);
        read_planes::<2>(&block[32..96], 32, codes);
        read_high_planes::<1, 2>(&block[..32], 32, exact_mut(codes));
        // Four scales at a time: see `q3_k_scales` in `crate::quant::k`.
        let d = half_at(block, 108);
        let [first, second, high] = [96, 100, 104].map(|at| u32_at(block, at));
        let words = [first, second, first >> 4, second >> 4];
        for (four, (word, scales)) in words.iter().zip(scales.as_chunks_mut::<4>().0).enumerate() {
            let packed = (word & 0x0F0F_0F0F) | (((high >> (2 * four)) & 0x0303_0303) << 4);
            for (scale, byte) in scales.iter_mut().zip(packed.to_le_bytes()) {
                *scale = d * f32::from(byte.cast_signed() - 32);
            }
        }
    }
}

/// Scales and minima of Q4_K and Q5_K, four at a time: see `q4_k_scales` in `crate::quant::k`.
#[inline(always)]
fn pair_scales(d: f32, dmin: f32, packed: &[u8; 12], scales: &mut [f32], mins: &mut [f32]) {
    let [first, second, last] = [0, 4, 8].map(|at| u32_at(packed, at));
    let top = |word: u32| (word >> 2) & 0x3030_3030;
    let integer_scales = [first & 0x3F3F_3F3F, (last & 0x0F0F_0F0F) | top(first)];
    let integer_mins = [second & 0x3F3F_3F3F, ((last >> 4) & 0x0F0F_0F0F) | top(second)];
    for sub in 0..8 {
        let byte = |words: [u32; 2]| f32::from((words[sub / 4] >> (8 * (sub % 4))) as u8);
        scales[sub] = d * byte(integer_scales);
        mins[sub] = -dmin * byte(integer_mins);
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
    const LAYOUT: Option<Layout> =
        Some(Layout { low: planes(16, 4, 32), high: High::None, scales: Scales::SixBitPairs });
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
    const LAYOUT: Option<Layout> =
        Some(Layout { low: planes(48, 4, 32), high: High::Planes(planes(16, 1, 32)), scales: Scales::SixBitPairs });
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
    const LAYOUT: Option<Layout> = Some(Layout {
        low: planes(0, 4, 64),
        high: High::Planes(planes(128, 2, 32)),
        scales: Scales::Bytes { at: 192, d: 208 },
    });
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
    const PACKED: Option<Packed> = Some(Packed::Trits);
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
    const LAYOUT: Option<Layout> =
        Some(Layout { low: planes(0, 2, 32), high: High::None, scales: Scales::Half { d: 64 } });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 66] = exact(block);
        read_planes::<2>(&block[..64], 32, codes);
        scales.fill(half_at(block, 64));
    }
}
