//! IQ types: groups of weights are entries of fixed codebooks, or single weights entries of an uneven 4-bit table.
//!
//! The 2- and 3-bit types store magnitudes from a codebook and signs apart; the 1-bit types store -1, 0, 1 patterns
//! with a small shift. Codebooks: `iq_grids.rs`. Layouts: those of the Python package `gguf`, kernels.md §8.

use half::f16;

use super::iq_grids::{IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID};
use super::layout::{field, field_mut, half_at, put_half, read_planes, u16_at, u32_at, write_planes};
use super::legacy::{nibbles, put_nibbles, scaled};
use super::levels::Iq4;
use super::search::Block;
use super::superblock::{Ranges, Super};

/// The sixteen levels of IQ4_NL and IQ4_XS.
pub const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Shift of all eight weights of an IQ1 group.
const IQ1_DELTA: f32 = 0.125;

/// Decodes one IQ4_NL block: `d * level`.
pub fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    levels(half_at::<0, 18>(block), &nibbles(field::<2, 16, 18>(block)), out);
}

/// Decodes one IQ4_XS block: `d * (scale - 32) * level`, 32 weights a scale.
pub fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at::<0, 136>(block);
    let mut codes = [0; 256];
    read_planes::<4>(field::<8, 128, 136>(block), 16, &mut codes);
    let scales = iq4_xs_scales(field::<2, 6, 136>(block));
    for ((out, codes), scale) in out.chunks_exact_mut(32).zip(codes.chunks_exact(32)).zip(scales) {
        levels(d * f32::from(scale), codes, out);
    }
}

/// The eight signed 6-bit scales of IQ4_XS, from its bytes 2 to 8: two high bits each, then a nibble each.
pub fn iq4_xs_scales(packed: &[u8; 6]) -> [i8; 8] {
    let high = u16_at(packed, 0);
    std::array::from_fn(|sub| {
        let low = (packed[2 + sub / 2] >> (4 * (sub % 2))) & 15;
        (low | (((high >> (2 * sub)) & 3) as u8) << 4).cast_signed() - 32
    })
}

/// Decodes one IQ2_XXS block. Per 32 weights: four codebook bytes, then four 7-bit signs and a 4-bit scale.
pub fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at::<0, 66>(block);
    let (pairs, _) = field::<2, 64, 66>(block).as_chunks::<8>();
    for (out, pair) in out.as_chunks_mut::<32>().0.iter_mut().zip(pairs) {
        let packed = u32_at(pair, 4);
        let scale = d * (0.5 + (packed >> 28) as f32) * 0.25;
        for (group, (out, &entry)) in out.as_chunks_mut::<8>().0.iter_mut().zip(&pair[..4]).enumerate() {
            signed(scale, &IQ2_XXS_GRID[usize::from(entry)], even_signs(packed >> (7 * group)), out);
        }
    }
}

/// Decodes one IQ2_XS block. Per 8 weights a u16: nine bits of codebook, seven of signs; a 4-bit scale per 16.
pub fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = half_at::<0, 74>(block);
    let (words, scales) = (field::<2, 64, 74>(block), field::<66, 8, 74>(block));
    for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let word = u16_at(words, 2 * group);
        let scale = nibble_scale(d, scales, group / 2);
        signed(scale, &IQ2_XS_GRID[usize::from(word & 511)], even_signs(u32::from(word >> 9)), out);
    }
}

/// Decodes one IQ2_S block. Per 8 weights ten bits of codebook and eight signs; a 4-bit scale per 16.
pub fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = half_at::<0, 82>(block);
    let (low, signs) = (field::<2, 32, 82>(block), field::<34, 32, 82>(block));
    let (high, scales) = (field::<66, 8, 82>(block), field::<74, 8, 82>(block));
    for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let entry = usize::from(low[group]) | usize::from((high[group / 4] >> (2 * (group % 4))) & 3) << 8;
        signed(nibble_scale(d, scales, group / 2), &IQ2_S_GRID[entry], signs[group], out);
    }
}

/// Decodes one IQ3_XXS block. Per 32 weights eight codebook bytes (of 4 weights); signs and scales as IQ2_XXS.
pub fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = half_at::<0, 98>(block);
    let (entries, packed) = (field::<2, 64, 98>(block), field::<66, 32, 98>(block));
    for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = u32_at(packed, 4 * (group / 4));
        let scale = d * (0.5 + (packed >> 28) as f32) * 0.5;
        let [first, second] = [0, 1].map(|half| IQ3_XXS_GRID[usize::from(entries[2 * group + half])]);
        signed(scale, &joined(first, second), even_signs(packed >> (7 * (group % 4))), out);
    }
}

/// Decodes one IQ3_S block. Per 4 weights nine bits of codebook, per 8 a byte of signs, per 32 a 4-bit scale.
pub fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at::<0, 110>(block);
    let (low, high) = (field::<2, 64, 110>(block), field::<66, 8, 110>(block));
    let (signs, scales) = (field::<74, 32, 110>(block), field::<106, 4, 110>(block));
    for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let nibble = (scales[group / 8] >> (4 * (group / 4 % 2))) & 15;
        let scale = d * f32::from(1 + 2 * nibble);
        let [first, second] = [2 * group, 2 * group + 1].map(|four| {
            let entry = usize::from(low[four]) | usize::from((high[four / 8] >> (four % 8)) & 1) << 8;
            IQ3_S_GRID[entry]
        });
        signed(scale, &joined(first, second), signs[group], out);
    }
}

/// Decodes one IQ1_S block. Per 32 weights four codebook entries of eleven bits, a 3-bit scale and a shift's sign.
pub fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = half_at::<0, 50>(block);
    let (low, high) = (field::<2, 32, 50>(block), field::<34, 16, 50>(block));
    for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let word = u16_at(high, 2 * (group / 4));
        let entry = usize::from(low[group]) | usize::from((word >> (3 * (group % 4))) & 7) << 8;
        shifted(d * f32::from(2 * ((word >> 12) & 7) + 1), entry, word & 0x8000 != 0, out);
    }
}

/// Decodes one IQ1_M block. As IQ1_S with a 3-bit scale per 16 weights, a shift per 8 and the half scale scattered
/// over the top nibbles of the four scale words.
pub fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let (low, high) = (field::<0, 32, 56>(block), field::<32, 16, 56>(block));
    let words: [u16; 4] = std::array::from_fn(|word| u16_at(field::<48, 8, 56>(block), 2 * word));
    let bits = (0..4).fold(0, |bits, word| bits | (words[word] >> 12) << (4 * word));
    let d = f16::from_bits(bits).to_f32();
    for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = high[group / 2] >> (4 * (group % 2));
        let entry = usize::from(low[group]) | usize::from(high & 7) << 8;
        let pair = group / 2;
        let scale = (words[pair / 4] >> (3 * (pair % 4))) & 7;
        shifted(d * f32::from(2 * scale + 1), entry, high & 8 != 0, out);
    }
}

/// Seven stored sign bits and the eighth, which makes their number even.
pub fn even_signs(bits: u32) -> u8 {
    let seven = (bits & 127) as u8;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

fn nibble_scale(d: f32, scales: &[u8; 8], number: usize) -> f32 {
    d * (0.5 + f32::from((scales[number / 2] >> (4 * (number % 2))) & 15)) * 0.25
}

fn joined(first: [i8; 4], second: [i8; 4]) -> [i8; 8] {
    std::array::from_fn(|weight| if weight < 4 { first[weight] } else { second[weight - 4] })
}

fn levels(scale: f32, codes: &[u8], out: &mut [f32]) {
    for (weight, &code) in out.iter_mut().zip(codes) {
        *weight = scale * f32::from(IQ4_LEVELS[usize::from(code & 15)]);
    }
}

fn signed(scale: f32, magnitudes: &[i8; 8], signs: u8, out: &mut [f32; 8]) {
    for (place, (weight, &magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let value = scale * f32::from(magnitude);
        *weight = if (signs >> place) & 1 == 0 { value } else { -value };
    }
}

fn shifted(scale: f32, entry: usize, is_down: bool, out: &mut [f32; 8]) {
    let delta = if is_down { -IQ1_DELTA } else { IQ1_DELTA };
    for (weight, &trit) in out.iter_mut().zip(&IQ1_GRID[entry & 2047]) {
        *weight = scale * (f32::from(trit) + delta);
    }
}

/// Encodes one IQ4_NL block.
pub(crate) fn encode_iq4_nl(block: &Block<'_, 32>, out: &mut [u8; 18]) {
    let (d, codes) = scaled::<Iq4>(block.sample());
    put_half::<0, 18>(out, d);
    put_nibbles(&codes, field_mut::<2, 16, 18>(out));
}

/// Encodes one IQ4_XS block.
pub(crate) fn encode_iq4_xs(block: &Block<'_, 256>, out: &mut [u8; 136]) {
    let ranges = Ranges { lowest_scale: -32, highest_scale: 31, highest_minimum: 0 };
    let (found, codes) = Super::<8>::centred::<Iq4>(block, ranges);
    put_half::<0, 136>(out, found.d);
    *field_mut::<2, 6, 136>(out) = packed_iq4_xs_scales(found.scales);
    write_planes::<4, 0>(&codes, 16, field_mut::<8, 128, 136>(out));
}

/// The inverse of [`iq4_xs_scales`].
fn packed_iq4_xs_scales(scales: [i32; 8]) -> [u8; 6] {
    let mut packed = [0; 6];
    for (sub, scale) in scales.into_iter().enumerate() {
        let code = (scale + 32) as u8;
        packed[sub / 4] |= (code >> 4) << (2 * (sub % 4));
        packed[2 + sub / 2] |= (code & 15) << (4 * (sub % 2));
    }
    packed
}
