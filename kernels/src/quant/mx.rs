//! MXFP4 and NVFP4: 4-bit floats (E2M1) under a shared scale without a mantissa or of eight bits.

use super::layout::{field, field_mut, read_planes};
use super::legacy::{nibbles, put_nibbles};
use super::levels::E2m1;
use super::search::{Block, Fit, Sample};

/// The sixteen E2M1 values, doubled to be integers; scales are halved to match.
pub const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Decodes one MXFP4 block: table value times half the power-of-two scale.
pub fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    looked_up(e8m0_half(block[0]), &nibbles(field::<1, 16, 17>(block)), out);
}

/// Decodes one NVFP4 block: four runs of 16 weights, each under its own E4M3 scale.
pub fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let mut codes = [0; 64];
    read_planes::<4>(field::<4, 32, 36>(block), 8, &mut codes);
    let scales = field::<0, 4, 36>(block);
    for ((out, codes), &scale) in out.chunks_exact_mut(16).zip(codes.chunks_exact(16)).zip(scales) {
        looked_up(e4m3_half(scale), codes, out);
    }
}

/// Half of the E8M0 scale `2^(e - 127)`: subnormal for `e` 0 and 1, never NaN.
pub fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Half of the unsigned E4M3 scale (bias 7); the codes 0 and 0x7F give 0, the top bit is ignored.
pub fn e4m3_half(code: u8) -> f32 {
    if code == 0 || code == 0x7F {
        return 0.0;
    }
    let (exponent, mantissa) = (u32::from((code >> 3) & 15), f32::from(code & 7));
    let power = |exponent: u32| f32::from_bits((exponent + 127 - 7) << 23);
    let scale = if exponent == 0 { mantissa / 8.0 * power(1) } else { (1.0 + mantissa / 8.0) * power(exponent) };
    scale * 0.5
}

fn looked_up(scale: f32, codes: &[u8], out: &mut [f32]) {
    for (weight, &code) in out.iter_mut().zip(codes) {
        *weight = scale * f32::from(E2M1_DOUBLED[usize::from(code & 15)]);
    }
}

/// Encodes one MXFP4 block: of the powers of two that bring the peak near the largest level, the best.
pub(crate) fn encode_mxfp4(block: &Block<'_, 32>, out: &mut [u8; 17]) {
    let peak = block.raw.iter().fold(0.0, |peak: f32, x| peak.max(x.abs()));
    // The biased exponent of the peak: it lies in 1..2 times 2^(own - 127), the largest level is 1.5 * 2^(e - 125).
    let own = (peak.to_bits() >> 23) as i32;
    // The search sees weights of about 1, or squares would leave the range of f32. In two steps, each a normal f32.
    let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    let lift = |x: f32| x * power((127 - own) / 2) * power(127 - own - (127 - own) / 2);
    let near = block.raw.map(lift);
    let sample = Sample { x: &near, ..block.sample() };
    let (mut least, mut codes) = (f32::INFINITY, [0; 32]);
    // Above 252 the largest level would be infinite.
    for e in (own - 4).max(0)..=(own - 1).clamp(0, 252) {
        let fit = Fit { scale: lift(e8m0_half(e as u8)), minimum: 0.0 };
        let error = sample.error::<E2m1>(fit);
        if error < least {
            (least, out[0]) = (error, e as u8);
            sample.codes::<E2m1>(fit, &mut codes);
        }
    }
    put_nibbles(&codes, field_mut::<1, 16, 17>(out));
}
