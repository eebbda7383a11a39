//! TQ1_0 and TQ2_0: 256 weights of -1, 0 or 1 times one half scale.

use super::layout::{field, half_at, read_planes};

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
