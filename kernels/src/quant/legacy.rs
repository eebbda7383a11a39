//! The oldest formats: 32 weights with one half scale `d`, and a half minimum `m` in the `_1` types.
//!
//! Codes are two nibble planes of 16 bytes; the 5-bit types keep bit 4 of weight `i` in bit `i` of a u32.
//! Layouts: kernels.md §8.

use super::layout::{field, half_at, read_planes, u32_at};

/// Decodes one Q4_0 block: `d * (q - 8)`.
pub fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    centred(half_at::<0, 18>(block), 8, nibbles(field::<2, 16, 18>(block)), out);
}

/// Decodes one Q4_1 block: `d * q + m`.
pub fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    offset(half_at::<0, 20>(block), half_at::<2, 20>(block), nibbles(field::<4, 16, 20>(block)), out);
}

/// Decodes one Q5_0 block: `d * (q - 16)`.
pub fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let codes = five_bits(field::<2, 4, 22>(block), field::<6, 16, 22>(block));
    centred(half_at::<0, 22>(block), 16, codes, out);
}

/// Decodes one Q5_1 block: `d * q + m`.
pub fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let codes = five_bits(field::<4, 4, 24>(block), field::<8, 16, 24>(block));
    offset(half_at::<0, 24>(block), half_at::<2, 24>(block), codes, out);
}

/// Decodes one Q8_0 block: `d * q` with signed bytes.
pub fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at::<0, 34>(block);
    for (weight, &code) in out.iter_mut().zip(field::<2, 32, 34>(block)) {
        *weight = d * f32::from(code.cast_signed());
    }
}

/// The 32 codes of two nibble planes.
pub(crate) fn nibbles(qs: &[u8; 16]) -> [u8; 32] {
    let mut codes = [0; 32];
    read_planes::<4>(qs, 16, &mut codes);
    codes
}

/// The 32 codes of two nibble planes and a word of high bits.
pub(crate) fn five_bits(qh: &[u8; 4], qs: &[u8; 16]) -> [u8; 32] {
    let high = u32_at(qh, 0);
    let mut codes = nibbles(qs);
    for (weight, code) in codes.iter_mut().enumerate() {
        *code |= (((high >> weight) & 1) as u8) << 4;
    }
    codes
}

fn centred(d: f32, zero: i8, codes: [u8; 32], out: &mut [f32; 32]) {
    for (weight, code) in out.iter_mut().zip(codes) {
        *weight = d * f32::from(code.cast_signed() - zero);
    }
}

fn offset(d: f32, m: f32, codes: [u8; 32], out: &mut [f32; 32]) {
    for (weight, code) in out.iter_mut().zip(codes) {
        *weight = d * f32::from(code) + m;
    }
}
