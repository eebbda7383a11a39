//! K types: 256 weights in sub-blocks of 16 or 32, whose scales (and minima) are small integers times one half.
//!
//! Each type has a decoder and, for kernels, the unpacking of its integer scales. Layouts: kernels.md §8.

use super::layout::{field, field_mut, half_at, put_half, read_high_planes, read_planes, write_planes};
use super::levels::Linear;
use super::search::Block;
use super::superblock::{Ranges, Super};

/// Decodes one Q2_K block: `d * sc * q - dmin * mn`, 16 weights a scale.
pub fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let scales = field::<0, 16, 84>(block);
    let mut codes = [0; 256];
    read_planes::<2>(field::<16, 64, 84>(block), 32, &mut codes);
    let (d, dmin) = (half_at::<80, 84>(block), half_at::<82, 84>(block));
    offset(scales.map(|s| d * f32::from(s & 15)), scales.map(|s| dmin * f32::from(s >> 4)), &codes, out);
}

/// Decodes one Q3_K block: `d * (sc - 32) * (q - 4)`, 16 weights a scale.
pub fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    read_planes::<2>(field::<32, 64, 110>(block), 32, &mut codes);
    read_high_planes::<1, 2>(field::<0, 32, 110>(block), 32, &mut codes);
    let d = half_at::<108, 110>(block);
    let scales = q3_k_scales(field::<96, 12, 110>(block));
    centred(scales.map(|s| d * f32::from(s)), 4, &codes, out);
}

/// Decodes one Q4_K block: `d * sc * q - dmin * mn`, 32 weights a scale.
pub fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    read_planes::<4>(field::<16, 128, 144>(block), 32, &mut codes);
    offset_by_pairs(half_at::<0, 144>(block), half_at::<2, 144>(block), field::<4, 12, 144>(block), &codes, out);
}

/// Decodes one Q5_K block: `d * sc * q - dmin * mn`, 32 weights a scale.
pub fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    read_planes::<4>(field::<48, 128, 176>(block), 32, &mut codes);
    read_high_planes::<1, 4>(field::<16, 32, 176>(block), 32, &mut codes);
    offset_by_pairs(half_at::<0, 176>(block), half_at::<2, 176>(block), field::<4, 12, 176>(block), &codes, out);
}

/// Decodes one Q6_K block: `d * sc * (q - 32)`, 16 weights a signed 8-bit scale.
pub fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    read_planes::<4>(field::<0, 128, 210>(block), 64, &mut codes);
    read_high_planes::<2, 4>(field::<128, 64, 210>(block), 32, &mut codes);
    let d = half_at::<208, 210>(block);
    centred(field::<192, 16, 210>(block).map(|s| d * f32::from(s.cast_signed())), 32, &codes, out);
}

/// The sixteen signed 6-bit scales of Q3_K.
///
/// Scale `j` has its low nibble in byte `j % 8` (low half for `j < 8`, else high half) and its two high bits in byte
/// `8 + j % 4` at `2 * (j / 4)`.
pub fn q3_k_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = (packed[j % 8] >> (4 * (j / 8))) & 15;
        let high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
        (low | (high << 4)).cast_signed() - 32
    })
}

/// The eight 6-bit scales and the eight 6-bit minima of Q4_K and Q5_K.
///
/// The first four of each are the low six bits of bytes 0..4 and 4..8; the last four have their low nibble in bytes
/// 8..12 (scales low, minima high) and their two high bits on top of bytes 0..4 and 4..8.
pub fn q4_k_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (first, last) = (|byte: usize| packed[byte] & 63, |byte: usize| (packed[byte] >> 6) << 4);
    let scales = std::array::from_fn(|j| if j < 4 { first(j) } else { (packed[j + 4] & 15) | last(j - 4) });
    let minima = std::array::from_fn(|j| if j < 4 { first(j + 4) } else { (packed[j + 4] >> 4) | last(j) });
    (scales, minima)
}

fn offset_by_pairs(d: f32, dmin: f32, packed: &[u8; 12], codes: &[u8; 256], out: &mut [f32; 256]) {
    let (scales, minima) = q4_k_scales(packed);
    offset(scales.map(|s| d * f32::from(s)), minima.map(|m| dmin * f32::from(m)), codes, out);
}

fn offset<const SUBS: usize>(scales: [f32; SUBS], minima: [f32; SUBS], codes: &[u8; 256], out: &mut [f32; 256]) {
    let subs = out.chunks_exact_mut(256 / SUBS).zip(codes.chunks_exact(256 / SUBS));
    for ((out, codes), (scale, minimum)) in subs.zip(scales.into_iter().zip(minima)) {
        for (weight, &code) in out.iter_mut().zip(codes) {
            *weight = scale * f32::from(code) - minimum;
        }
    }
}

fn centred(scales: [f32; 16], zero: i8, codes: &[u8; 256], out: &mut [f32; 256]) {
    for ((out, codes), scale) in out.chunks_exact_mut(16).zip(codes.chunks_exact(16)).zip(scales) {
        for (weight, code) in out.iter_mut().zip(codes) {
            *weight = scale * f32::from(code.cast_signed() - zero);
        }
    }
}

/// Encodes one Q2_K block.
pub(crate) fn encode_q2_k(block: &Block<'_, 256>, out: &mut [u8; 84]) {
    let (found, codes) = Super::<16>::affine::<Linear<0, 3>>(block, 15, &TRIMS_2_BITS);
    for (byte, (scale, minimum)) in out.iter_mut().zip(found.scales.iter().zip(&found.minima)) {
        *byte = (scale | (minimum << 4)) as u8;
    }
    write_planes::<2, 0>(&codes, 32, field_mut::<16, 64, 84>(out));
    put_half::<80, 84>(out, found.d);
    put_half::<82, 84>(out, found.dmin);
}

/// Encodes one Q3_K block.
pub(crate) fn encode_q3_k(block: &Block<'_, 256>, out: &mut [u8; 110]) {
    let ranges = Ranges { lowest_scale: -32, highest_scale: 31, highest_minimum: 0 };
    let (found, codes) = Super::<16>::centred::<Linear<-4, 3>>(block, ranges);
    write_planes::<1, 2>(&codes, 32, field_mut::<0, 32, 110>(out));
    write_planes::<2, 0>(&codes, 32, field_mut::<32, 64, 110>(out));
    *field_mut::<96, 12, 110>(out) = packed_q3_k_scales(found.scales);
    put_half::<108, 110>(out, found.d);
}

/// Encodes one Q4_K block.
pub(crate) fn encode_q4_k(block: &Block<'_, 256>, out: &mut [u8; 144]) {
    let (found, codes) = Super::<8>::affine::<Linear<0, 15>>(block, 63, &TRIMS);
    put_half::<0, 144>(out, found.d);
    put_half::<2, 144>(out, found.dmin);
    *field_mut::<4, 12, 144>(out) = packed_q4_k_scales(found.scales, found.minima);
    write_planes::<4, 0>(&codes, 32, field_mut::<16, 128, 144>(out));
}

/// Encodes one Q5_K block.
pub(crate) fn encode_q5_k(block: &Block<'_, 256>, out: &mut [u8; 176]) {
    let (found, codes) = Super::<8>::affine::<Linear<0, 31>>(block, 63, &TRIMS);
    put_half::<0, 176>(out, found.d);
    put_half::<2, 176>(out, found.dmin);
    *field_mut::<4, 12, 176>(out) = packed_q4_k_scales(found.scales, found.minima);
    write_planes::<1, 4>(&codes, 32, field_mut::<16, 32, 176>(out));
    write_planes::<4, 0>(&codes, 32, field_mut::<48, 128, 176>(out));
}

/// Encodes one Q6_K block. Scales stay within ±127: kernels may negate them.
pub(crate) fn encode_q6_k(block: &Block<'_, 256>, out: &mut [u8; 210]) {
    let ranges = Ranges { lowest_scale: -127, highest_scale: 127, highest_minimum: 0 };
    let (found, codes) = Super::<16>::centred::<Linear<-32, 31>>(block, ranges);
    write_planes::<4, 0>(&codes, 64, field_mut::<0, 128, 210>(out));
    write_planes::<2, 4>(&codes, 32, field_mut::<128, 64, 210>(out));
    *field_mut::<192, 16, 210>(out) = found.scales.map(|scale| scale as u8);
    put_half::<208, 210>(out, found.d);
}

/// How much of a step the range of a sub-block is narrowed by at either end.
const TRIMS: [f32; 4] = [-0.2, 0.15, 0.5, 0.85];
const TRIMS_2_BITS: [f32; 4] = [-0.2, 0.1, 0.4, 0.7];

/// The inverse of [`q3_k_scales`].
fn packed_q3_k_scales(scales: [i32; 16]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (j, scale) in scales.into_iter().enumerate() {
        let code = (scale + 32) as u8;
        packed[j % 8] |= (code & 15) << (4 * (j / 8));
        packed[8 + j % 4] |= (code >> 4) << (2 * (j / 4));
    }
    packed
}

/// The inverse of [`q4_k_scales`].
fn packed_q4_k_scales(scales: [i32; 8], minima: [i32; 8]) -> [u8; 12] {
    let (scales, minima) = (scales.map(|scale| scale as u8), minima.map(|minimum| minimum as u8));
    std::array::from_fn(|byte| match byte {
        0..4 => scales[byte] | ((scales[byte + 4] >> 4) << 6),
        4..8 => minima[byte - 4] | ((minima[byte] >> 4) << 6),
        _ => (scales[byte - 4] & 15) | ((minima[byte - 4] & 15) << 4),
    })
}
