//! Codebooks and trits for NEON: what a block names is read with vectors, entries are loaded into lanes, signs are bytes of
//! ones.

use std::arch::aarch64::*;

use super::codebook::{Book, Negative, Packed};
use super::format::{Unpacked, half_value};

/// The entries and signs of a block, in the order of weights.
struct Picks {
    /// Numbers of entries: 32 of eight weights each, or 64 of four.
    entries: [u16; 64],
    /// A bit a weight: negative, or shifted down.
    signs: [u8; 32],
}

/// Unpacks a block of 256 weights.
///
/// # Safety
/// The processor has NEON; the block is there.
#[inline(always)]
pub(super) unsafe fn unpack(packed: Packed, block: *const u8, out: &mut Unpacked) {
    // SAFETY: the caller's promises; entries are below the number that the type's bits can name, which the book has.
    unsafe {
        if packed == Packed::Trits {
            trits(block, &mut out.codes);
            out.scales[..8].fill(half(block.add(52)));
            return;
        }
        let mut picks = Picks { entries: [0; 64], signs: [0; 32] };
        read(packed, block, &mut picks, &mut out.scales);
        for part in 0..16 {
            let positive = match packed.book() {
                Book::Eights(book) => {
                    let entry = |number: usize| vcreate_u8(*book.as_ptr().add(usize::from(picks.entries[number])));
                    vcombine_u8(entry(2 * part), entry(2 * part + 1))
                }
                Book::Fours(book) => {
                    let entry = |number: usize| u64::from(*book.as_ptr().add(usize::from(picks.entries[number])));
                    let two = |number: usize| vcreate_u8(entry(number) | entry(number + 1) << 32);
                    vcombine_u8(two(4 * part), two(4 * part + 2))
                }
            };
            let signs = vcombine_u8(vdup_n_u8(picks.signs[2 * part]), vdup_n_u8(picks.signs[2 * part + 1]));
            let is_negative = bytes_of_bits(signs);
            let codes = match packed.negative() {
                Negative::From(top) => vbslq_u8(is_negative, vsubq_u8(vdupq_n_u8(top), positive), positive),
                Negative::Less(step) => vsubq_u8(positive, vandq_u8(is_negative, vdupq_n_u8(step))),
            };
            vst1q_u8(out.codes.as_mut_ptr().add(16 * part), codes);
        }
    }
}

impl Picks {
    /// Sixteen entries: their lowest bytes, and what stands above.
    #[inline(always)]
    unsafe fn put(&mut self, sixteen: usize, low: uint8x16_t, high: uint8x16_t) {
        // SAFETY: the caller has the instructions.
        unsafe {
            let out = self.entries.as_mut_ptr().add(16 * sixteen);
            vst1q_u16(out, vreinterpretq_u16_u8(vzip1q_u8(low, high)));
            vst1q_u16(out.add(8), vreinterpretq_u16_u8(vzip2q_u8(low, high)));
        }
    }

    #[inline(always)]
    unsafe fn put_signs(&mut self, sixteen: usize, signs: uint8x16_t) {
        // SAFETY: the caller has the instructions.
        unsafe { vst1q_u8(self.signs.as_mut_ptr().add(16 * sixteen), signs) };
    }
}

/// # Safety
/// As [`unpack`].
#[inline(always)]
unsafe fn read(packed: Packed, block: *const u8, out: &mut Picks, scales: &mut [f32; 16]) {
    // SAFETY: the caller's promises.
    unsafe {
        let load = |at: usize| vld1q_u8(block.add(at));
        let none = vdupq_n_u8(0);
        match packed {
            Packed::Iq2Xxs => {
                let d = half(block);
                for sixteen in 0..2 {
                    let [first, second] = [0, 16].map(|at| vreinterpretq_u32_u8(load(2 + 32 * sixteen + at)));
                    // Of each eight bytes the first four and the last four.
                    out.put(sixteen, vreinterpretq_u8_u32(vuzp1q_u32(first, second)), none);
                    let packed = vuzp2q_u32(first, second);
                    out.put_signs(sixteen, even_signs(sevens(packed)));
                    store(scales, 4 * sixteen, times(halves_up(vshrq_n_u32::<28>(packed)), d, 0.25));
                }
            }
            Packed::Iq2Xs => {
                for sixteen in 0..2 {
                    let words = [0, 16].map(|at| vreinterpretq_u16_u8(load(2 + 32 * sixteen + at)));
                    for (half, words) in words.into_iter().enumerate() {
                        let entries = out.entries.as_mut_ptr().add(16 * sixteen + 8 * half);
                        vst1q_u16(entries, vandq_u16(words, vdupq_n_u16(511)));
                    }
                    let [first, second] = words.map(|words| vshrn_n_u16::<8>(words));
                    out.put_signs(sixteen, even_signs(vshrq_n_u8::<1>(vcombine_u8(first, second))));
                }
                nibble_scales(block.add(66), half(block), scales);
            }
            Packed::Iq2S => {
                let high = vcombine_u8(vld1_u8(block.add(66)), vdup_n_u8(0));
                for sixteen in 0..2 {
                    // A byte for four entries, two bits each.
                    let each = vld1q_u8(FOURS.as_ptr().add(16 * sixteen));
                    let down = vreinterpretq_s8_u32(vdupq_n_u32(0xFAFC_FE00));
                    let high = vandq_u8(vshlq_u8(vqtbl1q_u8(high, each), down), vdupq_n_u8(3));
                    out.put(sixteen, load(2 + 16 * sixteen), high);
                    out.put_signs(sixteen, load(34 + 16 * sixteen));
                }
                nibble_scales(block.add(74), half(block), scales);
            }
            Packed::Iq3Xxs => {
                let d = half(block);
                for sixteen in 0..4 {
                    out.put(sixteen, load(2 + 16 * sixteen), none);
                }
                for sixteen in 0..2 {
                    let packed = vreinterpretq_u32_u8(load(66 + 16 * sixteen));
                    out.put_signs(sixteen, even_signs(sevens(packed)));
                    store(scales, 4 * sixteen, times(halves_up(vshrq_n_u32::<28>(packed)), d, 0.5));
                }
            }
            Packed::Iq3S => {
                for sixteen in 0..4 {
                    let byte = |number: usize| vdup_n_u8(*block.add(66 + 2 * sixteen + number));
                    let is_set = bytes_of_bits(vcombine_u8(byte(0), byte(1)));
                    out.put(sixteen, load(2 + 16 * sixteen), vandq_u8(is_set, vdupq_n_u8(1)));
                }
                for sixteen in 0..2 {
                    out.put_signs(sixteen, load(74 + 16 * sixteen));
                }
                let nibbles = vdupq_n_u32(block.add(106).cast::<u32>().read_unaligned());
                let d = vdupq_n_f32(half(block));
                for (four, down) in [[0, -4, -8, -12], [-16, -20, -24, -28]].into_iter().enumerate() {
                    let nibbles = vandq_u32(vshlq_u32(nibbles, vld1q_s32(down.as_ptr())), vdupq_n_u32(15));
                    store(scales, 4 * four, vmulq_f32(odd(nibbles), d));
                }
            }
            Packed::Iq1S => {
                let words = vreinterpretq_u16_u8(load(34));
                let d = vdupq_n_f32(half(block) * 0.125);
                for sixteen in 0..2 {
                    let four = |number: usize| vdup_n_u16(block.add(34 + 2 * number).cast::<u16>().read_unaligned());
                    let down = vreinterpretq_s16_u64(vdupq_n_u64(0xFFF7_FFFA_FFFD_0000));
                    let high = |number: usize| {
                        let words = vcombine_u16(four(number), four(number + 1));
                        vmovn_u16(vandq_u16(vshlq_u16(words, down), vdupq_n_u16(7)))
                    };
                    let high = vcombine_u8(high(4 * sixteen), high(4 * sixteen + 2));
                    out.put(sixteen, load(2 + 16 * sixteen), high);
                    let four = if sixteen == 0 { vget_low_u16(words) } else { vget_high_u16(words) };
                    let wide = vmovl_u16(four);
                    let is_down = vtstq_u32(wide, vdupq_n_u32(0x8000));
                    out.put_signs(sixteen, vreinterpretq_u8_u32(is_down));
                    let integers = vandq_u32(vshrq_n_u32::<12>(wide), vdupq_n_u32(7));
                    store(scales, 4 * sixteen, vmulq_f32(odd(integers), d));
                }
            }
            Packed::Iq1M => {
                let high = load(32);
                let (low_nibbles, high_nibbles) = (vandq_u8(high, vdupq_n_u8(15)), vshrq_n_u8::<4>(high));
                let nibbles = [vzip1q_u8(low_nibbles, high_nibbles), vzip2q_u8(low_nibbles, high_nibbles)];
                for (sixteen, nibbles) in nibbles.into_iter().enumerate() {
                    out.put(sixteen, load(16 * sixteen), vandq_u8(nibbles, vdupq_n_u8(7)));
                    out.put_signs(sixteen, vtstq_u8(nibbles, vdupq_n_u8(8)));
                }
                let words = block.add(48).cast::<u64>().read_unaligned();
                let d = (words >> 12) & 15 | (words >> 24) & 0xF0 | (words >> 36) & 0xF00 | (words >> 48) & 0xF000;
                let d = vdupq_n_f32(half_value(d as u16) * 0.125);
                let down = vld1q_s32([0, -3, -6, -9].as_ptr());
                for four in 0..4 {
                    let word = vdupq_n_u32((words >> (16 * four)) as u32 & 0xFFFF);
                    let integers = vandq_u32(vshlq_u32(word, down), vdupq_n_u32(7));
                    store(scales, 4 * four, vmulq_f32(odd(integers), d));
                }
            }
            Packed::Trits => {}
        }
    }
}

/// Of each byte one bit, from the lowest up in every eight bytes, as a byte of ones where it is set.
#[inline(always)]
unsafe fn bytes_of_bits(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: the caller has the instructions.
    unsafe { vtstq_u8(bytes, vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201))) }
}

/// The byte of each of 32 entries, of which a byte holds four.
const FOURS: [u8; 32] = {
    let mut out = [0; 32];
    let mut entry = 0;
    while entry < 32 {
        out[entry] = (entry / 4) as u8;
        entry += 1;
    }
    out
};

/// The half at an address.
#[inline(always)]
unsafe fn half(address: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    half_value(unsafe { address.cast::<u16>().read_unaligned() })
}

#[inline(always)]
unsafe fn store(scales: &mut [f32; 16], at: usize, four: float32x4_t) {
    // SAFETY: the caller has the instructions; the slice has four elements.
    unsafe { vst1q_f32(scales[at..at + 4].as_mut_ptr(), four) };
}

/// `d * sum * factor`, in this order, as decoders multiply.
#[inline(always)]
unsafe fn times(sum: float32x4_t, d: f32, factor: f32) -> float32x4_t {
    // SAFETY: the caller has the instructions.
    unsafe { vmulq_n_f32(vmulq_n_f32(sum, d), factor) }
}

/// Integers and a half more.
#[inline(always)]
unsafe fn halves_up(integers: uint32x4_t) -> float32x4_t {
    // SAFETY: the caller has the instructions.
    unsafe { vaddq_f32(vcvtq_f32_u32(integers), vdupq_n_f32(0.5)) }
}

/// Twice the integers and one more.
#[inline(always)]
unsafe fn odd(integers: uint32x4_t) -> float32x4_t {
    // SAFETY: the caller has the instructions.
    unsafe { vcvtq_f32_u32(vorrq_u32(vshlq_n_u32::<1>(integers), vdupq_n_u32(1))) }
}

/// The scales of IQ2_XS and IQ2_S: sixteen nibbles.
#[inline(always)]
unsafe fn nibble_scales(address: *const u8, d: f32, scales: &mut [f32; 16]) {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = vld1_u8(address);
        let both = vzip_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes));
        for (half, eight) in [both.0, both.1].into_iter().enumerate() {
            let words = vmovl_u8(eight);
            store(scales, 8 * half, times(halves_up(vmovl_u16(vget_low_u16(words))), d, 0.25));
            store(scales, 8 * half + 4, times(halves_up(vmovl_u16(vget_high_u16(words))), d, 0.25));
        }
    }
}

/// The lowest 28 bits of words as four bytes of seven bits.
#[inline(always)]
unsafe fn sevens(words: uint32x4_t) -> uint8x16_t {
    // SAFETY: the caller has the instructions.
    unsafe {
        let fourteens = vbslq_u32(vdupq_n_u32(0x3FFF), words, vshlq_n_u32::<2>(words));
        let sevens = vbslq_u32(vdupq_n_u32(0x007F_007F), fourteens, vshlq_n_u32::<1>(fourteens));
        vandq_u8(vreinterpretq_u8_u32(sevens), vdupq_n_u8(127))
    }
}

/// Bytes of seven bits with an eighth that makes their number even.
#[inline(always)]
unsafe fn even_signs(sevens: uint8x16_t) -> uint8x16_t {
    // SAFETY: the caller has the instructions.
    unsafe { vsliq_n_u8::<7>(sevens, vcntq_u8(sevens)) }
}

/// The 256 trits of a TQ1_0 block, of which a byte holds five (a fraction of 256): see `tq1_0_codes` in
/// `crate::quant::ternary`.
#[inline(always)]
unsafe fn trits(block: *const u8, codes: &mut [u8; 256]) {
    // SAFETY: the caller's promises: runs of a block, and codes of an array of 256.
    unsafe {
        let mut out = codes.as_mut_ptr();
        let mut bytes = [vld1q_u8(block), vld1q_u8(block.add(16))];
        for _ in 0..5 {
            for bytes in &mut bytes {
                vst1q_u8(out, digit(*bytes));
                out = out.add(16);
                *bytes = vmulq_u8(*bytes, vdupq_n_u8(3));
            }
        }
        let mut bytes = vld1q_u8(block.add(32));
        for _ in 0..5 {
            vst1q_u8(out, digit(bytes));
            out = out.add(16);
            bytes = vmulq_u8(bytes, vdupq_n_u8(3));
        }
        // Four bytes times 1, 3, 9 and 27.
        let last = vdupq_n_u32(block.add(48).cast::<u32>().read_unaligned());
        let factors = vld1q_u32([0x0101_0101, 0x0303_0303, 0x0909_0909, 0x1B1B_1B1B].as_ptr());
        vst1q_u8(out, digit(vmulq_u8(vreinterpretq_u8_u32(last), vreinterpretq_u8_u32(factors))));
    }
}

/// Three times a fraction, its whole part.
#[inline(always)]
unsafe fn digit(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: the caller has the instructions.
    unsafe { vshrq_n_u8::<6>(vhaddq_u8(bytes, vshrq_n_u8::<1>(bytes))) }
}

#[cfg(test)]
mod tests {
    use super::super::format::{Format, Unpacked, unpack_chunk};
    use super::super::with_format;
    use crate::tensor::DType;
    use proptest::prelude::*;

    fn check<F: Format>(dtype: DType, bytes: &[u8]) {
        let Some(packed) = F::PACKED else { return };
        let (mut plain, mut found) = (Unpacked::new(), Unpacked::new());
        unpack_chunk::<F>(&bytes[..F::BYTES], &mut plain);
        // SAFETY: every 64-bit Arm that runs the tests has NEON; the block is there.
        unsafe { super::unpack(packed, bytes.as_ptr(), &mut found) };
        assert_eq!(plain.codes, found.codes, "{dtype}");
        let bits = |weights: &Unpacked| weights.scales.map(f32::to_bits);
        // Halves of random bits may be no numbers, of which there are many.
        if plain.scales.iter().all(|scale| scale.is_finite()) {
            assert_eq!(bits(&plain), bits(&found), "{dtype}");
        } else {
            assert!(found.scales[..256 / F::SUB].iter().all(|scale| !scale.is_finite()), "{dtype}");
        }
    }

    proptest! {
        #[test]
        fn vectors_hold_what_plain_code_unpacks(bytes in prop::collection::vec(any::<u8>(), 128)) {
            for dtype in DType::all().filter(|dtype| dtype.is_quantized()) {
                with_format!(dtype, F => check::<F>(dtype, &bytes), ());
            }
        }
    }
}
