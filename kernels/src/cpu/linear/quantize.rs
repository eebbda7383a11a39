//! Quantization of activations to int8, blocks of 32 under one f32 scale.
//!
//! One body of plain code without branches inside a block, compiled once per instruction set: every step is exact
//! or correctly rounded, so all versions give the same bits.

use crate::cpu::isa::Isa;

/// Peaks below this become zero: their reciprocal would leave the range of f32.
const SMALLEST_PEAK: f32 = 1e-35;

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest even whole number.
const MAGIC: f32 = 12_582_912.0;

/// Quantizes `values` (whole blocks of 32); `sums16` has two elements a block, the others one.
///
/// # Safety
/// `isa` is available.
pub(crate) unsafe fn quantize(
    isa: Isa,
    values: &[f32],
    codes: &mut [i8],
    scales: &mut [f32],
    sums32: &mut [f32],
    sums16: &mut [f32],
) {
    match isa {
        // SAFETY: available by the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(values, codes, scales, sums32, sums16) },
        // SAFETY: available by the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(values, codes, scales, sums32, sums16) },
        _ => body(values, codes, scales, sums32, sums16),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn avx512(values: &[f32], codes: &mut [i8], scales: &mut [f32], sums32: &mut [f32], sums16: &mut [f32]) {
    body(values, codes, scales, sums32, sums16);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(values: &[f32], codes: &mut [i8], scales: &mut [f32], sums32: &mut [f32], sums16: &mut [f32]) {
    body(values, codes, scales, sums32, sums16);
}

#[inline(always)]
fn body(values: &[f32], codes: &mut [i8], scales: &mut [f32], sums32: &mut [f32], sums16: &mut [f32]) {
    let blocks = values.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0);
    let outs = scales.iter_mut().zip(sums32.iter_mut()).zip(sums16.as_chunks_mut::<2>().0);
    for ((values, codes), ((scale, sum32), sum16)) in blocks.zip(outs) {
        // As integers, magnitudes sort like the numbers they stand for, NaN above infinity.
        let peak = values.iter().fold(0, |peak: u32, value| peak.max(value.to_bits() & 0x7FFF_FFFF));
        let peak = f32::from_bits(peak);
        let is_finite = peak < f32::INFINITY;
        let is_used = is_finite && peak >= SMALLEST_PEAK;
        let inverse = if is_used { 127.0 / peak } else { 0.0 };
        *scale = match (is_used, is_finite) {
            (true, _) => peak / 127.0,
            (false, true) => 0.0,
            (false, false) => f32::NAN,
        };
        for (code, value) in codes.iter_mut().zip(values) {
            let scaled = if is_used { value * inverse } else { 0.0 };
            *code = ((scaled + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32) as i8;
        }
        let sum = |half: usize| codes[16 * half..16 * half + 16].iter().map(|code| i32::from(*code)).sum::<i32>();
        let (first, second) = (sum(0), sum(1));
        *sum16 = [*scale * first as f32, *scale * second as f32];
        *sum32 = *scale * (first + second) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Quantized = (Vec<i8>, Vec<u32>, Vec<u32>, Vec<u32>);

    fn quantized(isa: Isa, values: &[f32]) -> Quantized {
        let n = values.len() / 32;
        let (mut codes, mut scales) = (vec![1; 32 * n], vec![1.0; n]);
        let (mut sums32, mut sums16) = (vec![1.0; n], vec![1.0; 2 * n]);
        // SAFETY: tests pass sets from `Isa::available`.
        unsafe { quantize(isa, values, &mut codes, &mut scales, &mut sums32, &mut sums16) };
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        (codes, bits(scales), bits(sums32), bits(sums16))
    }

    proptest! {
        #[test]
        fn every_set_gives_the_same_bits_and_no_value_is_off_by_more_than_half_a_step(
            exponent in -45_i32..36,
            values in prop::collection::vec(-1.0_f32..1.0, 32 * 5),
        ) {
            let values: Vec<f32> = values.iter().map(|value| value * 10_f32.powi(exponent)).collect();
            let truth = quantized(Isa::Scalar, &values);
            for isa in Isa::available() {
                prop_assert_eq!(&quantized(isa, &values), &truth, "{}", isa);
            }
            for (block, (values, codes)) in values.chunks(32).zip(truth.0.chunks(32)).enumerate() {
                let scale = f32::from_bits(truth.1[block]);
                for (value, code) in values.iter().zip(codes) {
                    prop_assert!(*code >= -127);
                    let error = (f64::from(*value) - f64::from(scale) * f64::from(*code)).abs();
                    prop_assert!(error <= f64::from(scale) * 0.501 + 1e-35);
                }
            }
        }
    }

    #[test]
    fn halves_round_to_even_and_the_peak_is_exact() {
        let mut values = [0.0; 32];
        values[..5].copy_from_slice(&[127.0, -127.0, 0.5, 1.5, -2.5]);
        let (codes, scales, ..) = quantized(Isa::Scalar, &values);
        assert_eq!(codes[..5], [127, -127, 0, 2, -2]);
        assert_eq!(f32::from_bits(scales[0]), 1.0);
    }

    #[test]
    fn zeros_have_scale_zero_and_what_is_not_finite_shows() {
        for isa in Isa::available() {
            let (codes, scales, sums, _) = quantized(isa, &[0.0; 32]);
            assert_eq!((codes, scales, sums), (vec![0; 32], vec![0], vec![0]));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = [1.0; 32];
                values[7] = bad;
                let (_, scales, sums, _) = quantized(isa, &values);
                assert!(f32::from_bits(scales[0]).is_nan() && f32::from_bits(sums[0]).is_nan());
            }
        }
    }
}
