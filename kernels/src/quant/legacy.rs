//! The oldest formats: 32 weights with one half scale `d`, and a half minimum `m` in the `_1` types.
//!
//! Codes are two nibble planes of 16 bytes; the 5-bit types keep bit 4 of weight `i` in bit `i` of a u32.
//! Layouts: kernels.md §8.

use half::f16;

use super::layout::{field, field_mut, half_at, put_half, read_planes, u32_at, write_planes};
use super::levels::{Levels, Linear};
use super::search::{Block, Fit, Sample, half_near};

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

/// Encodes one Q4_0 block.
pub(crate) fn encode_q4_0(block: &Block<'_, 32>, out: &mut [u8; 18]) {
    let (d, codes) = scaled::<Linear<-8, 7>>(block.sample());
    put_half::<0, 18>(out, d);
    put_nibbles(&codes, field_mut::<2, 16, 18>(out));
}

/// Encodes one Q4_1 block.
pub(crate) fn encode_q4_1(block: &Block<'_, 32>, out: &mut [u8; 20]) {
    let (d, m, codes) = affine::<Linear<0, 15>>(block.sample());
    put_half::<0, 20>(out, d);
    put_half::<2, 20>(out, m);
    put_nibbles(&codes, field_mut::<4, 16, 20>(out));
}

/// Encodes one Q5_0 block.
pub(crate) fn encode_q5_0(block: &Block<'_, 32>, out: &mut [u8; 22]) {
    let (d, codes) = scaled::<Linear<-16, 15>>(block.sample());
    put_half::<0, 22>(out, d);
    put_high_bits(&codes, field_mut::<2, 4, 22>(out));
    put_nibbles(&codes, field_mut::<6, 16, 22>(out));
}

/// Encodes one Q5_1 block.
pub(crate) fn encode_q5_1(block: &Block<'_, 32>, out: &mut [u8; 24]) {
    let (d, m, codes) = affine::<Linear<0, 31>>(block.sample());
    put_half::<0, 24>(out, d);
    put_half::<2, 24>(out, m);
    put_high_bits(&codes, field_mut::<4, 4, 24>(out));
    put_nibbles(&codes, field_mut::<8, 16, 24>(out));
}

/// Encodes one Q8_0 block. The code -128 is never used: kernels may negate codes.
pub(crate) fn encode_q8_0(block: &Block<'_, 32>, out: &mut [u8; 34]) {
    type Bytes = Linear<-127, 127>;
    let sample = block.sample();
    let peak = sample.peak().abs();
    // The half just at the peak and its neighbours (steps are 1/1024 to 1/2048, about an eighth of a code at the peak),
    // and those that make a whole number of the peak: weights that were coded before come back as they are.
    let whole = (118..127).map(|code| half_near(peak / code as f32));
    let trials = neighbours(half_near(peak / 127.0), -8..=8).chain(whole);
    let d = best_half(trials, |d| sample.error::<Bytes>(Fit { scale: d, minimum: 0.0 }));
    put_half::<0, 34>(out, d);
    let mut codes = [0; 32];
    sample.codes::<Bytes>(Fit { scale: d.to_f32(), minimum: 0.0 }, &mut codes);
    *field_mut::<2, 32, 34>(out) = codes.map(|code| (i16::from(code) - 127) as u8);
}

/// A half scale and codes for levels around zero.
pub(crate) fn scaled<L: Levels>(sample: Sample<'_>) -> (f16, [u8; 32]) {
    let near = half_near(sample.best_scale::<L>(SCALE_TRIALS));
    // The plain scales too: halves hit them exactly where weights lie on a grid already.
    let plain = [L::LOW, L::HIGH].map(|end| half_near(sample.peak() / end));
    let trials = neighbours(near, -1..=1).chain(plain);
    let d = best_half(trials, |d| sample.error::<L>(Fit { scale: d, minimum: 0.0 }));
    let mut codes = [0; 32];
    sample.codes::<L>(Fit { scale: d.to_f32(), minimum: 0.0 }, &mut codes);
    (d, codes)
}

/// A half scale, a half that is added, and codes from 0 up.
fn affine<L: Levels>(sample: Sample<'_>) -> (f16, f16, [u8; 32]) {
    let Fit { scale, minimum } = sample.best_affine::<L>(&TRIMS, false);
    let near = half_near(scale);
    let start = half_near(-minimum);
    let fit = |d: f32, m: f32| Fit { scale: d, minimum: -m };
    let d = best_half(neighbours(near, -1..=1), |d| sample.error::<L>(fit(d, start.to_f32())));
    let m = best_half(neighbours(start, -1..=1), |m| sample.error::<L>(fit(d.to_f32(), m)));
    let mut codes = [0; 32];
    sample.codes::<L>(fit(d.to_f32(), m.to_f32()), &mut codes);
    (d, m, codes)
}

/// How many scales are tried on either side of zero.
const SCALE_TRIALS: u32 = 8;

/// How much of a step the range is narrowed by at either end.
const TRIMS: [f32; 4] = [-0.2, 0.15, 0.5, 0.85];

/// Halves next to `half` that have its sign and are finite; `half` itself first.
fn neighbours(half: f16, steps: std::ops::RangeInclusive<i16>) -> impl Iterator<Item = f16> {
    let bits = half.to_bits();
    let others = steps.filter(|&step| step != 0).filter_map(move |step| {
        let magnitude = (bits & 0x7FFF).checked_add_signed(step)?;
        (magnitude < 0x7C00).then(|| f16::from_bits(magnitude | (bits & 0x8000)))
    });
    std::iter::once(half).chain(others)
}

/// The half with the least error, the first of equals.
fn best_half(mut trials: impl Iterator<Item = f16>, error: impl Fn(f32) -> f32) -> f16 {
    let mut best = trials.next().unwrap_or(f16::ZERO);
    let mut least = error(best.to_f32());
    for trial in trials {
        let error = error(trial.to_f32());
        if error < least {
            (best, least) = (trial, error);
        }
    }
    best
}

/// Stores the low four bits of 32 codes.
pub(crate) fn put_nibbles(codes: &[u8; 32], qs: &mut [u8; 16]) {
    write_planes::<4, 0>(codes, 16, qs);
}

fn put_high_bits(codes: &[u8; 32], qh: &mut [u8; 4]) {
    let high = codes.iter().rev().fold(0, |high: u32, code| (high << 1) | u32::from((code >> 4) & 1));
    *qh = high.to_le_bytes();
}
