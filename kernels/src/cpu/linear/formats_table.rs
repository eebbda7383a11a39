//! Types whose levels come from tables and codebooks: the IQ types, MXFP4 and NVFP4.
//!
//! Magnitudes and signs become one signed byte; the shift of the IQ1 types is an eighth, so their codes are
//! eightfold and exact.

use super::codebook::{IQ1_OFFSET, IQ2_OFFSET, IQ3_S_OFFSET, IQ3_XXS_OFFSET, Packed};
use super::format::{Format, exact, half_at, half_value, stored_half};
use super::layout::{High, Layout, Scales, planes};
use crate::quant::iq::{IQ4_LEVELS, even_signs, iq4_xs_scales};
use crate::quant::iq_grids::{IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID};
use crate::quant::layout::{read_planes, u16_at, u32_at};
use crate::quant::mx::{E2M1_DOUBLED, e4m3_half, e8m0_half};

const fn lifted(levels: [i8; 16], offset: u8) -> [u8; 16] {
    let mut out = [0; 16];
    let mut code = 0;
    while code < 16 {
        out[code] = (levels[code] as u8).wrapping_add(offset);
        code += 1;
    }
    out
}

const IQ4_CODES: [u8; 16] = lifted(IQ4_LEVELS, 128);
const E2M1_CODES: [u8; 16] = lifted(E2M1_DOUBLED, 16);

/// IQ4_NL.
pub(crate) struct Iq4Nl;
impl Format for Iq4Nl {
    const BYTES: usize = 18;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const OFFSET: u8 = 128;
    const TABLE: Option<[u8; 16]> = Some(IQ4_CODES);
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

/// IQ4_XS.
pub(crate) struct Iq4Xs;
impl Format for Iq4Xs {
    const BYTES: usize = 136;
    const LEN: usize = 256;
    const SUB: usize = 32;
    const OFFSET: u8 = 128;
    const TABLE: Option<[u8; 16]> = Some(IQ4_CODES);
    const LAYOUT: Option<Layout> = Some(Layout { low: planes(8, 4, 16), high: High::None, scales: Scales::Split });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 136] = exact(block);
        read_planes::<4>(&block[8..], 16, codes);
        let d = half_at(block, 0);
        for (scale, packed) in scales.iter_mut().zip(iq4_xs_scales(exact(&block[2..8]))) {
            *scale = d * f32::from(packed);
        }
    }
}

/// MXFP4.
pub(crate) struct Mxfp4;
impl Format for Mxfp4 {
    const BYTES: usize = 17;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const OFFSET: u8 = 16;
    const TABLE: Option<[u8; 16]> = Some(E2M1_CODES);
    const LAYOUT: Option<Layout> = Some(Layout { low: planes(1, 4, 16), high: High::None, scales: Scales::Exponent });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        read_planes::<4>(&block[1..], 16, codes);
        scales[0] = e8m0_half(block[0]);
    }
}

/// NVFP4.
pub(crate) struct Nvfp4;
impl Format for Nvfp4 {
    const BYTES: usize = 36;
    const LEN: usize = 64;
    const SUB: usize = 16;
    const OFFSET: u8 = 16;
    const TABLE: Option<[u8; 16]> = Some(E2M1_CODES);
    const LAYOUT: Option<Layout> = Some(Layout { low: planes(4, 4, 8), high: High::None, scales: Scales::Small });
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        read_planes::<4>(&block[4..], 8, codes);
        for (scale, packed) in scales.iter_mut().zip(block) {
            *scale = e4m3_half(*packed);
        }
    }
}

/// Writes magnitudes with the signs of `signs` (bit `i` set: weight `i` is negative) above `offset`.
#[inline(always)]
fn signed(magnitudes: [i8; 8], signs: u8, offset: u8, codes: &mut [u8; 8]) {
    for (place, (code, magnitude)) in codes.iter_mut().zip(magnitudes).enumerate() {
        let negative = ((signs >> place) & 1).wrapping_neg();
        *code = ((magnitude as u8 ^ negative).wrapping_sub(negative)).wrapping_add(offset);
    }
}

#[inline(always)]
fn joined(first: [i8; 4], second: [i8; 4]) -> [i8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&first);
    out[4..].copy_from_slice(&second);
    out
}

#[inline(always)]
fn nibble(packed: &[u8], number: usize) -> u8 {
    (packed[number / 2] >> (4 * (number % 2))) & 15
}

/// IQ2_XXS.
pub(crate) struct Iq2Xxs;
impl Format for Iq2Xxs {
    const BYTES: usize = 66;
    const LEN: usize = 256;
    const SUB: usize = 32;
    const OFFSET: u8 = IQ2_OFFSET;
    const PACKED: Option<Packed> = Some(Packed::Iq2Xxs);
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 66] = exact(block);
        let d = half_at(block, 0);
        let groups = codes.as_chunks_mut::<8>().0.as_chunks_mut::<4>().0;
        let pairs = block[2..].as_chunks::<8>().0;
        for ((groups, scale), pair) in groups.iter_mut().zip(scales).zip(pairs) {
            let packed = u32_at(pair, 4);
            *scale = d * (0.5 + (packed >> 28) as f32) * 0.25;
            for (number, (codes, entry)) in groups.iter_mut().zip(pair).enumerate() {
                signed(IQ2_XXS_GRID[usize::from(*entry)], even_signs(packed >> (7 * number)), Self::OFFSET, codes);
            }
        }
    }
}

/// IQ2_XS.
pub(crate) struct Iq2Xs;
impl Format for Iq2Xs {
    const BYTES: usize = 74;
    const LEN: usize = 256;
    const SUB: usize = 16;
    const OFFSET: u8 = IQ2_OFFSET;
    const PACKED: Option<Packed> = Some(Packed::Iq2Xs);
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 74] = exact(block);
        let d = half_at(block, 0);
        for (number, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let word = u16_at(block, 2 + 2 * number);
            let magnitudes = IQ2_XS_GRID[usize::from(word & 511)];
            signed(magnitudes, even_signs(u32::from(word >> 9)), Self::OFFSET, codes);
        }
        for (number, scale) in scales.iter_mut().enumerate() {
            *scale = d * (0.5 + f32::from(nibble(&block[66..], number))) * 0.25;
        }
    }
}

/// IQ2_S.
pub(crate) struct Iq2S;
impl Format for Iq2S {
    const BYTES: usize = 82;
    const LEN: usize = 256;
    const SUB: usize = 16;
    const OFFSET: u8 = IQ2_OFFSET;
    const PACKED: Option<Packed> = Some(Packed::Iq2S);
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 82] = exact(block);
        let d = half_at(block, 0);
        for (number, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = (block[66 + number / 4] >> (2 * (number % 4))) & 3;
            let entry = usize::from(block[2 + number]) | usize::from(high) << 8;
            signed(IQ2_S_GRID[entry], block[34 + number], Self::OFFSET, codes);
        }
        for (number, scale) in scales.iter_mut().enumerate() {
            *scale = d * (0.5 + f32::from(nibble(&block[74..], number))) * 0.25;
        }
    }
}

/// IQ3_XXS.
pub(crate) struct Iq3Xxs;
impl Format for Iq3Xxs {
    const BYTES: usize = 98;
    const LEN: usize = 256;
    const SUB: usize = 32;
    const OFFSET: u8 = IQ3_XXS_OFFSET;
    const PACKED: Option<Packed> = Some(Packed::Iq3Xxs);
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 98] = exact(block);
        let d = half_at(block, 0);
        for (number, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let packed = u32_at(block, 66 + 4 * (number / 4));
            let first = IQ3_XXS_GRID[usize::from(block[2 + 2 * number])];
            let second = IQ3_XXS_GRID[usize::from(block[3 + 2 * number])];
            signed(joined(first, second), even_signs(packed >> (7 * (number % 4))), Self::OFFSET, codes);
        }
        for (number, scale) in scales.iter_mut().enumerate() {
            *scale = d * (0.5 + (u32_at(block, 66 + 4 * number) >> 28) as f32) * 0.5;
        }
    }
}

/// IQ3_S.
pub(crate) struct Iq3S;
impl Format for Iq3S {
    const BYTES: usize = 110;
    const LEN: usize = 256;
    const SUB: usize = 32;
    const OFFSET: u8 = IQ3_S_OFFSET;
    const PACKED: Option<Packed> = Some(Packed::Iq3S);
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 110] = exact(block);
        let d = half_at(block, 0);
        for (number, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = block[66 + number / 4] >> (2 * (number % 4));
            let first = usize::from(block[2 + 2 * number]) | usize::from(high & 1) << 8;
            let second = usize::from(block[3 + 2 * number]) | usize::from(high & 2) << 7;
            signed(joined(IQ3_S_GRID[first], IQ3_S_GRID[second]), block[74 + number], Self::OFFSET, codes);
        }
        for (number, scale) in scales.iter_mut().enumerate() {
            *scale = d * f32::from(1 + 2 * nibble(&block[106..], number));
        }
    }
}

/// Eightfold trits, one up or down, above 9.
#[inline(always)]
fn shifted(entry: usize, is_down: bool, codes: &mut [u8; 8]) {
    let shift = if is_down { 8 } else { 10 };
    for (code, trit) in codes.iter_mut().zip(IQ1_GRID[entry & 2047]) {
        *code = (8 * trit + shift) as u8;
    }
}

/// IQ1_S.
pub(crate) struct Iq1S;
impl Format for Iq1S {
    const BYTES: usize = 50;
    const LEN: usize = 256;
    const SUB: usize = 32;
    const OFFSET: u8 = IQ1_OFFSET;
    const PACKED: Option<Packed> = Some(Packed::Iq1S);
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 50] = exact(block);
        let d = half_at(block, 0) * 0.125;
        for (number, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let word = u16_at(block, 34 + 2 * (number / 4));
            let entry = usize::from(block[2 + number]) | usize::from((word >> (3 * (number % 4))) & 7) << 8;
            shifted(entry, word & 0x8000 != 0, codes);
        }
        for (number, scale) in scales.iter_mut().enumerate() {
            *scale = d * f32::from(2 * ((u16_at(block, 34 + 2 * number) >> 12) & 7) + 1);
        }
    }
}

/// IQ1_M.
pub(crate) struct Iq1M;
impl Format for Iq1M {
    const BYTES: usize = 56;
    const LEN: usize = 256;
    const SUB: usize = 16;
    const OFFSET: u8 = IQ1_OFFSET;
    const PACKED: Option<Packed> = Some(Packed::Iq1M);
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let block: &[u8; 56] = exact(block);
        let word = |number: usize| u16_at(block, 48 + 2 * number);
        let bits = (0..4).fold(0, |bits, number| bits | (word(number) >> 12) << (4 * number));
        let d = half_value(bits) * 0.125;
        for (number, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = block[32 + number / 2] >> (4 * (number % 2));
            shifted(usize::from(block[number]) | usize::from(high & 7) << 8, high & 8 != 0, codes);
        }
        for (number, scale) in scales.iter_mut().enumerate() {
            *scale = d * f32::from(2 * ((word(number / 4) >> (3 * (number % 4))) & 7) + 1);
        }
    }
}
