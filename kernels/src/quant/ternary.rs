//! TQ1_0 and TQ2_0: 256 weights of -1, 0 or 1 times one half scale.

use half::f16;

use super::layout::{field, field_mut, half_at, put_half, read_planes, write_planes};
use super::search::{Block, half_near};

/// Decodes one TQ1_0 block: `d * (trit - 1)`.
pub fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = half_at::<52, 54>(block);
    let mut codes = [0; 256];
    tq1_0_codes(block, &mut codes);
    scaled(d, &codes, out);
}

/// Decodes one TQ2_0 block: `d * (q - 1)`; code 3 is possible and means 2.
pub fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    read_planes::<2>(field::<0, 64, 66>(block), 32, &mut codes);
    scaled(half_at::<64, 66>(block), &codes, out);
}

/// Runs of bytes in a TQ1_0 block: first byte, bytes, trits a byte. A run is stored trit-major.
pub(crate) const TQ1_0_RUNS: [(usize, usize, usize); 3] = [(0, 32, 5), (32, 16, 5), (48, 4, 4)];

/// The 256 trits (0, 1 or 2) of a TQ1_0 block.
///
/// A byte is a fixed-point fraction of 256 with up to five base-3 digits: multiplying by 3 moves the next digit over
/// the point.
#[inline(always)]
pub(crate) fn tq1_0_codes(block: &[u8; 54], codes: &mut [u8; 256]) {
    let mut rest = codes.as_mut_slice();
    for (first, n_bytes, n_trits) in TQ1_0_RUNS {
        let (run, tail) = rest.split_at_mut(n_bytes * n_trits);
        rest = tail;
        let mut bytes: [u8; 32] = *field::<0, 32, 54>(block);
        bytes[..n_bytes].copy_from_slice(&block[first..first + n_bytes]);
        for codes in run.chunks_exact_mut(n_bytes) {
            for (code, byte) in codes.iter_mut().zip(&mut bytes) {
                *code = ((u16::from(*byte) * 3) >> 8) as u8;
                *byte = byte.wrapping_mul(3);
            }
        }
    }
}

fn scaled(d: f32, codes: &[u8; 256], out: &mut [f32; 256]) {
    for (weight, code) in out.iter_mut().zip(codes) {
        *weight = d * f32::from(code.cast_signed() - 1);
    }
}

/// Encodes one TQ1_0 block.
pub(crate) fn encode_tq1_0(block: &Block<'_, 256>, out: &mut [u8; 54]) {
    let (d, codes) = best_trits(block);
    let mut rest = codes.as_slice();
    for (first, n_bytes, n_trits) in TQ1_0_RUNS {
        let (run, tail) = rest.split_at(n_bytes * n_trits);
        rest = tail;
        for (number, byte) in out[first..first + n_bytes].iter_mut().enumerate() {
            let trits = run.iter().skip(number).step_by(n_bytes);
            // Five digits always, the missing one being 0; then the fraction of 243 as one of 256, rounded up.
            let digits = trits.fold(0, |digits: u16, &trit| digits * 3 + u16::from(trit));
            *byte = (digits * 3_u16.pow(5 - n_trits as u32) * 256).div_ceil(243) as u8;
        }
    }
    put_half::<52, 54>(out, d);
}

/// Encodes one TQ2_0 block.
pub(crate) fn encode_tq2_0(block: &Block<'_, 256>, out: &mut [u8; 66]) {
    let (d, codes) = best_trits(block);
    write_planes::<2, 0>(&codes, 32, field_mut::<0, 64, 66>(out));
    put_half::<64, 66>(out, d);
}

/// The scale and trits (0, 1, 2) with the least error of all.
///
/// Whatever the scale, the weights that are not zero are the largest: with the magnitudes in falling order, the best
/// number `n` of them is the one with the largest (sum of importance * magnitude)² / (sum of importance).
fn best_trits(block: &Block<'_, 256>) -> (f16, [u8; 256]) {
    let sample = block.sample();
    let mut order: [u8; 256] = std::array::from_fn(|weight| weight as u8);
    let magnitude = |weight: u8| sample.x[usize::from(weight)].abs();
    order.sort_unstable_by(|&a, &b| magnitude(b).total_cmp(&magnitude(a)).then(a.cmp(&b)));
    let (mut sum, mut count, mut best, mut gain) = (0.0, 0.0, 0.0, 0.0);
    for weight in order {
        let importance = f64::from(sample.importance[usize::from(weight)]);
        sum += importance * f64::from(magnitude(weight));
        count += importance;
        if count > 0.0 && sum * sum / count > gain {
            (best, gain) = (sum / count, sum * sum / count);
        }
    }
    let d = half_near(best as f32);
    let border = d.to_f32() / 2.0;
    let mut codes = [1; 256];
    for (code, &x) in codes.iter_mut().zip(sample.x) {
        *code = 1 + u8::from(x > border) - u8::from(x < -border);
    }
    (d, codes)
}
