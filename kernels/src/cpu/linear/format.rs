//! Every block type as the kernels see it: unsigned byte codes, f32 scales and minima.
//!
//! Whatever a block looks like in the file, weight `i` of it is `scale[i / SUB] * (code[i] - OFFSET) + min[i / SUB]`
//! with `SUB` 16 or 32. So a type needs no kernel of its own, only [`Format::unpack`]: plain code over arrays of
//! fixed size, inlined into kernels and compiled with their instructions.
//! Layouts: kernels.md §8; the decoders of `crate::quant` are the truth this is tested against.

use super::codebook::Packed;
use super::input::CHUNK;
use super::layout::Layout;

/// A chunk of one row: [`CHUNK`] weights, the rest of it zero where the row ends.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Unpacked {
    pub(crate) codes: [u8; CHUNK],
    pub(crate) scales: [f32; 16],
    pub(crate) mins: [f32; 16],
}

impl Unpacked {
    pub(crate) const fn new() -> Self {
        Self { codes: [0; CHUNK], scales: [0.0; 16], mins: [0.0; 16] }
    }
}

/// A block type.
pub(crate) trait Format: 'static {
    /// Bytes of a block.
    const BYTES: usize;
    /// Weights of a block: 32, 64 or 256.
    const LEN: usize;
    /// Weights under one scale: 16 or 32.
    const SUB: usize;
    /// What a code stands above its value.
    const OFFSET: u8;
    /// Whether minima are anything but zero.
    const HAS_MIN: bool = false;

    /// Levels that the stored 4-bit codes stand for, already above the offset.
    const TABLE: Option<[u8; 16]> = None;

    /// Whether scales and minima are written as the bits of halves (see [`stored_half`]), to be converted many at once.
    const STORED_HALVES: bool = false;

    /// Where the bits lie, for instruction sets that unpack with vectors of their own; none where codes are `PACKED`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "NEON unpacks planes of bits with plain code"))]
    const LAYOUT: Option<Layout> = None;

    /// How codes lie that are no bit planes: codebooks and trits.
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, reason = "for vectors"))]
    const PACKED: Option<Packed> = None;

    /// Unpacks one block; codes of a type with a table are left as stored. The slices have `BYTES`, `LEN` and `LEN / SUB` elements; `mins` is written only where
    /// [`Format::HAS_MIN`].
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]);
}

/// Unpacks the next chunk of a row; `bytes` is the rest of the row from there on. Minima are those of the type.
pub(crate) fn unpack_chunk<F: Format>(bytes: &[u8], out: &mut Unpacked) {
    unpack_stored::<F>(bytes, out);
    if F::STORED_HALVES {
        for value in out.scales.iter_mut().chain(&mut out.mins) {
            *value = half_value(value.to_bits() as u16);
        }
    }
    if let Some(table) = F::TABLE {
        for code in &mut out.codes {
            *code = table[usize::from(*code & 15)];
        }
    }
}

/// As [`unpack_chunk`], but halves and codes that a table stands behind are left as stored, for a kernel to convert.
#[inline(always)]
pub(crate) fn unpack_stored<F: Format>(bytes: &[u8], out: &mut Unpacked) {
    let per_chunk = CHUNK / F::LEN;
    let subs = F::LEN / F::SUB;
    if bytes.len() >= per_chunk * F::BYTES {
        for block in 0..per_chunk {
            unpack_at::<F>(bytes, block, subs, out);
        }
    } else {
        let n_blocks = bytes.len() / F::BYTES;
        for block in 0..n_blocks.min(per_chunk) {
            unpack_at::<F>(bytes, block, subs, out);
        }
        // Codes may be anything: activations are zero there. Scales must not be NaN, so they are cleared.
        out.scales[n_blocks * subs..].fill(0.0);
        out.mins[n_blocks * subs..].fill(0.0);
    }
}

#[inline(always)]
fn unpack_at<F: Format>(bytes: &[u8], block: usize, subs: usize, out: &mut Unpacked) {
    F::unpack(
        &bytes[block * F::BYTES..][..F::BYTES],
        &mut out.codes[block * F::LEN..][..F::LEN],
        &mut out.scales[block * subs..][..subs],
        &mut out.mins[block * subs..][..subs],
    );
}

/// The exact `N` bytes of a block, or codes of it; lengths are constants once inlined.
#[inline(always)]
pub(super) fn exact<T, const N: usize>(slice: &[T]) -> &[T; N] {
    slice.try_into().expect("a format is given whole blocks")
}

/// As [`exact`], to write to.
#[inline(always)]
pub(super) fn exact_mut<T, const N: usize>(slice: &mut [T]) -> &mut [T; N] {
    slice.try_into().expect("a format is given whole blocks")
}

/// A half as f32 without branches or tables, right also where denormals are flushed.
#[inline(always)]
pub(crate) fn half_value(bits: u16) -> f32 {
    let (exponent, mantissa) = (u32::from(bits >> 10) & 31, u32::from(bits) & 0x3FF);
    let small = (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits();
    let rebased = if exponent == 31 { 255 } else { exponent + 112 };
    let normal = (rebased << 23) | (mantissa << 13);
    let magnitude = if exponent == 0 { small } else { normal };
    f32::from_bits(magnitude | (u32::from(bits) & 0x8000) << 16)
}

/// The half at byte `at`.
#[inline(always)]
pub(super) fn half_at<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    half_value(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// The bits of the half at byte `at`, in the place of a number.
#[inline(always)]
pub(super) fn stored_half<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([block[at], block[at + 1]])))
}

#[cfg(test)]
mod tests {
    use super::super::with_format;
    use super::*;
    use crate::quant;
    use crate::tensor::DType;
    use proptest::prelude::*;

    #[test]
    fn every_half_is_converted_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half_value(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
        }
    }

    fn check<F: Format>(dtype: DType, bytes: &[u8]) {
        assert_eq!((F::LEN, F::BYTES), (dtype.block_len(), dtype.block_bytes()), "{dtype}");
        let bytes = &bytes[..bytes.len() / F::BYTES * F::BYTES];
        let n_weights = bytes.len() / F::BYTES * F::LEN;
        let mut expected = vec![0.0; n_weights];
        quant::decode(dtype, bytes, &mut expected).unwrap();
        let mut unpacked = Unpacked::new();
        for (chunk, expected) in expected.chunks(CHUNK).enumerate() {
            unpack_chunk::<F>(&bytes[chunk * (CHUNK / F::LEN) * F::BYTES..], &mut unpacked);
            for (weight, expected) in expected.iter().enumerate() {
                let (scale, min) = (unpacked.scales[weight / F::SUB], unpacked.mins[weight / F::SUB]);
                let code = i32::from(unpacked.codes[weight]) - i32::from(F::OFFSET);
                assert!((-128..=127).contains(&code), "{dtype}");
                assert!(F::OFFSET == 128 || unpacked.codes[weight] <= 128, "{dtype}: {}", unpacked.codes[weight]);
                let found = scale * code as f32 + if F::HAS_MIN { min } else { 0.0 };
                if expected.is_finite() {
                    let near = (found - expected).abs() <= expected.abs() * 1e-6 + min.abs() * 1e-6;
                    assert!(near, "{dtype}: weight {weight} is {found:e}, expected {expected:e}");
                } else {
                    assert!(!found.is_finite(), "{dtype}");
                }
            }
        }
    }

    #[test]
    fn golden_blocks_unpack_to_what_they_decode_to() {
        for dtype in DType::all().filter(|dtype| dtype.is_quantized()) {
            let bytes = std::fs::read(farpost_firmware_tests::golden(&format!("blocks/{dtype}.bin"))).unwrap();
            with_format!(dtype, F => check::<F>(dtype, &bytes), ());
        }
    }

    proptest! {
        #[test]
        fn random_blocks_unpack_to_what_they_decode_to(bytes in prop::collection::vec(any::<u8>(), 612)) {
            for dtype in DType::all().filter(|dtype| dtype.is_quantized()) {
                with_format!(dtype, F => check::<F>(dtype, &bytes), ());
            }
        }
    }
}
