//! Quantization of activations to int8, blocks of 32 under one f32 scale.
//!
//! Where one element holds more than half of its block's energy it would set a scale that leaves few levels to the
//! others. It is an outlier: kept as it is, with a code of zero, so that the scale is that of the rest. Kernels add its
//! product by itself. (`docs/decisions/007-outliers-of-activations.md` has the figures.)
//!
//! One body of plain code, compiled once per instruction set: every step is exact, correctly rounded or in a fixed
//! order, so all versions give the same bits.

use crate::cpu::isa::Isa;

/// Peaks below this become zero: their reciprocal would leave the range of f32.
const SMALLEST_PEAK: f32 = 1e-35;

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest even whole number.
const MAGIC: f32 = 12_582_912.0;

/// Where a quantized row goes. Per block of 32: 32 codes, one scale, one sum and one count, two of each for 16, and one
/// outlier; per eight blocks a byte of flags.
pub(crate) struct Quantized<'a> {
    pub(crate) codes: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    /// Sum of the values that codes stand for, and of the outlier.
    pub(crate) sums32: &'a mut [f32],
    pub(crate) sums16: &'a mut [f32],
    /// The codes' sum, negated.
    pub(crate) minus32: &'a mut [i32],
    pub(crate) minus16: &'a mut [i32],
    /// Value of each block's outlier, where it has one.
    pub(crate) outliers: &'a mut [f32],
    /// Its place in the block.
    pub(crate) places: &'a mut [u8],
    /// Which blocks have one: bit `n % 8` of byte `n / 8`.
    pub(crate) flags: &'a mut [u8],
}

/// Quantizes `values`, whole blocks of 32.
///
/// # Safety
/// `isa` is available.
pub(crate) unsafe fn quantize(isa: Isa, values: &[f32], out: Quantized<'_>) {
    match isa {
        // SAFETY: available by the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { avx512(values, out) },
        // SAFETY: available by the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(values, out) },
        _ => body(values, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn avx512(values: &[f32], out: Quantized<'_>) {
    body(values, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(values: &[f32], out: Quantized<'_>) {
    body(values, out);
}

#[inline(always)]
fn body(values: &[f32], out: Quantized<'_>) {
    let Quantized { codes, scales, sums32, sums16, minus32, minus16, outliers, places, flags } = out;
    flags.fill(0);
    let blocks = values.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0);
    let outs = scales.iter_mut().zip(sums32.iter_mut()).zip(sums16.as_chunks_mut::<2>().0);
    for (block, ((values, codes), ((scale, sum32), sum16))) in blocks.zip(outs).enumerate() {
        let peak = peak_of(values);
        let outlier = if has_outlier(values, peak) { place_of(values, peak) } else { None };
        let sums = match outlier {
            None => block_of(values, peak, codes, scale),
            Some(place) => {
                let mut rest = *values;
                rest[place] = 0.0;
                block_of(&rest, peak_of(&rest), codes, scale)
            }
        };
        *sum16 = sums.map(|sum| *scale * sum as f32);
        *sum32 = *scale * (sums[0] + sums[1]) as f32;
        minus16[2 * block..2 * block + 2].copy_from_slice(&sums.map(|sum| -sum));
        minus32[block] = -(sums[0] + sums[1]);
        let Some(place) = outlier else { continue };
        let value = values[place];
        sum16[place / 16] += value;
        *sum32 += value;
        outliers[block] = value;
        places[block] = place as u8;
        flags[block / 8] |= 1 << (block % 8);
    }
}

/// What the codes and outliers of `values` leave of them.
pub(crate) fn rest_of(values: &[f32], quantized: &Quantized<'_>, rest: &mut [f32]) {
    let blocks = values.as_chunks::<32>().0.iter().zip(rest.as_chunks_mut::<32>().0);
    let codes = quantized.codes.as_chunks::<32>().0.iter().zip(&*quantized.scales);
    for (block, ((values, rest), (codes, scale))) in blocks.zip(codes).enumerate() {
        for ((rest, value), code) in rest.iter_mut().zip(values).zip(codes) {
            *rest = value - scale * f32::from(*code);
        }
        if quantized.flags[block / 8] >> (block % 8) & 1 == 1 {
            rest[usize::from(quantized.places[block])] = 0.0;
        }
    }
}

/// Largest magnitude; NaN if there is one.
#[inline(always)]
fn peak_of(values: &[f32; 32]) -> f32 {
    // As integers, magnitudes sort like the numbers they stand for, NaN above infinity.
    f32::from_bits(values.iter().fold(0, |peak: u32, value| peak.max(value.to_bits() & 0x7FFF_FFFF)))
}

/// Whether the peak holds more than half of the energy. False for what is not finite or too small or large to square.
#[inline(always)]
fn has_outlier(values: &[f32; 32], peak: f32) -> bool {
    let mut lanes = [0.0_f32; 8];
    for part in values.as_chunks::<8>().0 {
        for (lane, value) in lanes.iter_mut().zip(part) {
            *lane += value * value;
        }
    }
    let energy = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    (1e-15..1e15).contains(&peak) && 2.0 * peak * peak > energy
}

#[inline(always)]
fn place_of(values: &[f32; 32], peak: f32) -> Option<usize> {
    values.iter().position(|value| value.abs() == peak)
}

/// Codes and scale of a block; the sums of both halves' codes.
#[inline(always)]
fn block_of(values: &[f32; 32], peak: f32, codes: &mut [i8; 32], scale: &mut f32) -> [i32; 2] {
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
    [sum(0), sum(1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that a row becomes, floats as bits.
    #[derive(Clone, Debug, PartialEq)]
    struct Row {
        codes: Vec<i8>,
        scales: Vec<u32>,
        sums32: Vec<u32>,
        sums16: Vec<u32>,
        /// Block, place and value.
        outliers: Vec<(usize, usize, f32)>,
    }

    fn quantized(isa: Isa, values: &[f32]) -> Row {
        let n = values.len() / 32;
        let (mut codes, mut scales) = (vec![1; 32 * n], vec![1.0; n]);
        let (mut sums32, mut sums16) = (vec![1.0; n], vec![1.0; 2 * n]);
        let (mut minus32, mut minus16) = (vec![1; n], vec![1; 2 * n]);
        let (mut outliers, mut places, mut flags) = (vec![1.0; n], vec![1; n], vec![255; n.div_ceil(8)]);
        let out = Quantized {
            codes: &mut codes,
            scales: &mut scales,
            sums32: &mut sums32,
            sums16: &mut sums16,
            minus32: &mut minus32,
            minus16: &mut minus16,
            outliers: &mut outliers,
            places: &mut places,
            flags: &mut flags,
        };
        // SAFETY: tests pass sets from `Isa::available`.
        unsafe { quantize(isa, values, out) };
        for (halves, codes) in minus16.iter().zip(codes.chunks(16)) {
            assert_eq!(-halves, codes.iter().map(|code| i32::from(*code)).sum::<i32>());
        }
        assert!(minus32.iter().zip(minus16.chunks(2)).all(|(whole, halves)| *whole == halves[0] + halves[1]));
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        let flagged = (0..n).filter(|block| flags[block / 8] & 1 << (block % 8) != 0);
        let outliers = flagged.map(|block| (block, usize::from(places[block]), outliers[block])).collect();
        Row { codes, scales: bits(scales), sums32: bits(sums32), sums16: bits(sums16), outliers }
    }

    impl Row {
        /// The numbers it stands for.
        fn values(&self) -> Vec<f64> {
            let scale = |at: usize| f64::from(f32::from_bits(self.scales[at / 32]));
            let mut values: Vec<f64> = (0..).zip(&self.codes).map(|(at, code)| scale(at) * f64::from(*code)).collect();
            for (block, place, value) in &self.outliers {
                assert_eq!(self.codes[32 * block + place], 0);
                values[32 * block + place] = f64::from(*value);
            }
            values
        }
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
            prop_assert!(truth.codes.iter().all(|code| *code >= -127));
            let found = truth.values();
            for (block, (values, found)) in values.chunks(32).zip(found.chunks(32)).enumerate() {
                let scale = f64::from(f32::from_bits(truth.scales[block]));
                for (value, found) in values.iter().zip(found) {
                    prop_assert!((f64::from(*value) - found).abs() <= scale * 0.501 + 1e-35);
                }
                let (sum, sums) = (f32::from_bits(truth.sums32[block]), &truth.sums16[2 * block..2 * block + 2]);
                let size: f64 = found.iter().map(|value| value.abs()).sum();
                prop_assert!((f64::from(sum) - found.iter().sum::<f64>()).abs() <= size * 1e-6);
                for (half, sum) in found.chunks(16).zip(sums) {
                    prop_assert!((f64::from(f32::from_bits(*sum)) - half.iter().sum::<f64>()).abs() <= size * 1e-6);
                }
            }
        }

        #[test]
        fn an_element_with_more_than_half_of_the_energy_is_kept_as_it_is(
            exponent in -11_i32..11,
            values in prop::collection::vec(-1.0_f32..1.0, 64),
            place in 0_usize..32,
            factor in 1.02_f32..100.0,
        ) {
            let mut values: Vec<f32> = values.iter().map(|value| value * 10_f32.powi(exponent)).collect();
            values[place] = 0.0;
            let energy: f32 = values[..32].iter().map(|value| value * value).sum();
            values[place] = -energy.sqrt() * factor;
            for isa in Isa::available() {
                let row = quantized(isa, &values);
                let first = row.outliers.first().copied();
                prop_assert_eq!(first, Some((0, place, values[place])));
            }
            values[place] /= factor * 1.02;
            let row = quantized(Isa::Scalar, &values);
            prop_assert!(row.outliers.iter().all(|outlier| outlier.0 != 0 || outlier.1 != place));
        }
    }

    #[test]
    fn halves_round_to_even_and_the_peak_is_exact() {
        let mut values = [0.0; 32];
        values[..5].copy_from_slice(&[127.0, -127.0, 0.5, 1.5, -2.5]);
        let row = quantized(Isa::Scalar, &values);
        assert_eq!(row.codes[..5], [127, -127, 0, 2, -2]);
        assert!(f32::from_bits(row.scales[0]) == 1.0 && row.outliers.is_empty());
    }

    #[test]
    fn zeros_have_scale_zero_and_what_is_not_finite_shows() {
        for isa in Isa::available() {
            let row = quantized(isa, &[0.0; 32]);
            assert_eq!((row.codes, row.scales, row.sums32, row.outliers), (vec![0; 32], vec![0], vec![0], vec![]));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = [1.0; 32];
                values[7] = bad;
                let row = quantized(isa, &values);
                assert!(f32::from_bits(row.scales[0]).is_nan() && f32::from_bits(row.sums32[0]).is_nan());
                assert!(row.outliers.is_empty());
            }
        }
    }
}
