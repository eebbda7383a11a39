//! Writes the vector of one token into a block of a page.

use half::f16;

use super::kv::{Place, Q8_LEN, place_in};
use crate::backend::KvType;
use crate::cpu::isa::Isa;
use crate::cpu::vector::{Vector, dispatch};

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest even whole number.
const MAGIC: f32 = 12_582_912.0;

dispatch! {
    fn write_halves(values: &[f32], out: *mut u16) = halves_in_lanes or halves_in_turn
}
dispatch! {
    fn write_codes(values: &[f32], codes: *mut i8, scales: *mut u16) = codes_in_lanes or codes_in_turn
}

/// # Safety
/// `out` has room for all values.
unsafe fn halves_in_turn(values: &[f32], out: *mut u16) {
    for (at, value) in values.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { out.add(at).write_unaligned(f16::from_f32(*value).to_bits()) };
    }
}

/// # Safety
/// As [`halves_in_turn`]; the processor has the set.
#[inline(always)]
unsafe fn halves_in_lanes<V: Vector>(values: &[f32], out: *mut u16) {
    let whole = values.len() - values.len() % V::LANES;
    // SAFETY: the caller's promises; whole registers, then what is left.
    unsafe {
        for at in (0..whole).step_by(V::LANES) {
            V::load(values.as_ptr().add(at)).store_halves(out.add(at));
        }
        halves_in_turn(&values[whole..], out.add(whole));
    }
}

/// Whole blocks of 32. Every step is exact or correctly rounded, so all versions give the same bits.
///
/// # Safety
/// `codes` has room for all values, `scales` for one in 32.
#[inline(always)]
unsafe fn codes_in_turn(values: &[f32], codes: *mut i8, scales: *mut u16) {
    for (block, values) in values.as_chunks::<Q8_LEN>().0.iter().enumerate() {
        // As integers, magnitudes sort like the numbers they stand for, NaN above infinity.
        let peak = values.iter().fold(0, |peak: u32, value| peak.max(value.to_bits() & 0x7FFF_FFFF));
        let peak = f32::from_bits(peak);
        let stored = f16::from_f32(if peak < f32::INFINITY { peak / 127.0 } else { f32::NAN });
        let scale = stored.to_f32();
        // What is not finite, or too large for a scale, shows as a scale that is not finite. Codes are then zeros.
        let inverse = if scale > 0.0 && scale < f32::INFINITY { 1.0 / scale } else { 0.0 };
        let mut block_codes = [0; Q8_LEN];
        for (code, value) in block_codes.iter_mut().zip(values) {
            let scaled = if inverse > 0.0 { (value * inverse).clamp(-127.0, 127.0) } else { 0.0 };
            *code = ((scaled + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32) as i8;
        }
        // SAFETY: the caller's promise.
        unsafe {
            codes.add(block * Q8_LEN).copy_from_nonoverlapping(block_codes.as_ptr(), Q8_LEN);
            scales.add(block).write_unaligned(stored.to_bits());
        }
    }
}

/// The plain code, compiled for the set.
///
/// # Safety
/// As [`codes_in_turn`]; the processor has the set.
#[inline(always)]
unsafe fn codes_in_lanes<V: Vector>(values: &[f32], codes: *mut i8, scales: *mut u16) {
    // SAFETY: the caller's promises.
    unsafe { codes_in_turn(values, codes, scales) };
}

/// Writes `values`, one key or value of a head, as token `token` of the block at `block` (see [`super::KvHead`]).
///
/// Halves are rounded to nearest even, and infinite from 65,520 up. Codes of Q8_0 are -127..=127 under a scale that is
/// the half nearest to a 127th of the peak.
///
/// # Safety
/// `isa` is available; `block` is one of `page_tokens` vectors of `values.len()` elements; nobody else reads or writes
/// this token's part of it.
pub unsafe fn store(isa: Isa, kv_type: KvType, values: &[f32], block: *mut u8, page_tokens: usize, token: usize) {
    assert!(token < page_tokens, "token {token} is in a page of {page_tokens}");
    assert!(kv_type != KvType::Q8_0 || values.len().is_multiple_of(Q8_LEN), "vectors are whole blocks");
    let Place { elements, scales } = place_in(kv_type, block, page_tokens, values.len(), token);
    let (elements, scales) = (elements.cast_mut(), scales.cast_mut());
    // SAFETY: inside the block: the caller's promise.
    unsafe {
        match kv_type {
            KvType::F32 => elements.copy_from_nonoverlapping(values.as_ptr().cast(), size_of_val(values)),
            KvType::F16 => write_halves(isa, values, elements.cast()),
            KvType::Q8_0 => write_codes(isa, values, elements.cast(), scales.cast()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE_TOKENS: usize = 3;

    /// The block after writing token 1 of 3 into one of the byte 0xAA.
    fn block_with(isa: Isa, kv_type: KvType, values: &[f32]) -> Vec<u8> {
        let mut block = vec![0xAA; PAGE_TOKENS * values.len() * 4];
        // SAFETY: an available set, a block of enough room.
        unsafe { store(isa, kv_type, values, block.as_mut_ptr(), PAGE_TOKENS, 1) };
        block
    }

    fn half_at(block: &[u8], at: usize) -> f16 {
        f16::from_le_bytes([block[at], block[at + 1]])
    }

    proptest! {
        #[test]
        fn every_set_writes_the_same_bits_and_only_the_token_asked_for(
            values in prop::collection::vec(-1.0_f32..1.0, 1..200),
            exponent in -12_i32..7,
        ) {
            let values: Vec<f32> = values.iter().map(|value| value * 10_f32.powi(exponent)).collect();
            let whole = values.len() / 32 * 32;
            for isa in Isa::available() {
                let halves = block_with(isa, KvType::F16, &values);
                prop_assert_eq!(&halves, &block_with(Isa::Scalar, KvType::F16, &values), "{}", isa);
                let (start, end) = (2 * values.len(), 4 * values.len());
                for (at, value) in values.iter().enumerate() {
                    prop_assert_eq!(half_at(&halves, start + 2 * at), f16::from_f32(*value));
                }
                prop_assert!(halves[..start].iter().chain(&halves[end..]).all(|byte| *byte == 0xAA));

                let codes = block_with(isa, KvType::Q8_0, &values[..whole]);
                prop_assert_eq!(&codes, &block_with(Isa::Scalar, KvType::Q8_0, &values[..whole]), "{}", isa);
                for (at, value) in values[..whole].iter().enumerate() {
                    let scale = half_at(&codes, PAGE_TOKENS * whole + (whole / 32 + at / 32) * 2).to_f32();
                    let code = codes[whole + at] as i8;
                    prop_assert!(code != -128);
                    let error = (value - scale * f32::from(code)).abs();
                    prop_assert!(error <= scale * 0.57 + 127.0 * 3e-8, "{value}: {code} * {scale}");
                }
                let single = block_with(isa, KvType::F32, &values);
                for (at, value) in values.iter().enumerate() {
                    let bytes = &single[4 * (values.len() + at)..][..4];
                    prop_assert_eq!(bytes, &value.to_le_bytes());
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_makes_its_block_nan_and_zeros_stay_zero() {
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = [1.0; 64];
                values[40] = bad;
                let block = block_with(isa, KvType::Q8_0, &values);
                assert!(half_at(&block, 3 * 64 + 4).is_finite() && half_at(&block, 3 * 64 + 6).is_nan());
                let halves = block_with(isa, KvType::F16, &values);
                assert_eq!(half_at(&halves, 128 + 80).is_nan(), bad.is_nan());
                assert!(!half_at(&halves, 128 + 80).is_finite());
            }
            let block = block_with(isa, KvType::Q8_0, &[0.0; 32]);
            assert!(block[32..64].iter().all(|code| *code == 0));
            assert_eq!(half_at(&block, 3 * 32 + 2).to_bits(), 0);
        }
    }
}
