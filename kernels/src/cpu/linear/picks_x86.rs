//! What a block of a codebook type says, read with AVX2 for both sets of x86: which entries, which signs, which scales.
//!
//! Entries and signs go through memory: single numbers are loaded from there faster than they are moved out of vectors.

use std::arch::asm;
use std::arch::x86_64::*;

use super::codebook::Packed;

/// The entries and signs of a block, in the order of weights.
#[repr(C, align(64))]
pub(super) struct Picks {
    /// Numbers of entries: 32 of eight weights each, or 64 of four.
    pub(super) entries: [u16; 64],
    /// Room for scales.
    pub(super) scales: [f32; 16],
    /// A bit a weight: negative, or shifted down.
    pub(super) signs: [u64; 4],
}

/// Where picks go: memory that need not have been written before.
#[derive(Clone, Copy)]
struct Out(*mut Picks);

impl Out {
    /// Sixteen entries.
    #[inline(always)]
    unsafe fn put(self, sixteen: usize, entries: __m256i) {
        // SAFETY: the caller has the instructions and room; the array is aligned.
        unsafe { _mm256_store_si256((&raw mut (*self.0).entries).cast::<u16>().add(16 * sixteen).cast(), entries) };
    }

    /// Entries of eight bits, 32 of them.
    #[inline(always)]
    unsafe fn put_bytes(self, sixteen: usize, entries: __m256i) {
        // SAFETY: the caller has the instructions and room.
        unsafe {
            self.put(sixteen, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(entries)));
            self.put(sixteen + 1, _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(entries)));
        }
    }

    #[inline(always)]
    unsafe fn put_signs(self, signs: __m256i) {
        // SAFETY: the caller has the instructions and room; the array is aligned.
        unsafe { _mm256_store_si256((&raw mut (*self.0).signs).cast(), signs) };
    }
}

/// Reads a block; returns its scales, those of 32 weights in the first vector.
///
/// # Safety
/// The processor has AVX2 and F16C; the block is there, and room for picks.
#[inline(always)]
pub(super) unsafe fn read(packed: Packed, block: *const u8, out: *mut Picks) -> [__m256; 2] {
    // SAFETY: the caller's promises.
    unsafe {
        let out = Out(out);
        let load = |at: usize| _mm256_loadu_si256(block.add(at).cast());
        let load_half = |at: usize| _mm_loadu_si128(block.add(at).cast());
        let none = _mm256_setzero_ps();
        let scales = match packed {
            Packed::Iq2Xxs => {
                let (first, second) = (_mm256_castsi256_ps(load(2)), _mm256_castsi256_ps(load(34)));
                // Of each eight bytes the first four and the last four.
                let entries = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(first, second));
                let packed = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(first, second));
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                out.put_bytes(0, _mm256_permute4x64_epi64::<0b11_01_10_00>(entries));
                out.put_signs(even_signs(sevens(packed)));
                [times(halves_up(_mm256_srli_epi32::<28>(packed)), half(block), 0.25), none]
            }
            Packed::Iq2Xs => {
                let words = [load(2), load(34)];
                for (number, words) in words.into_iter().enumerate() {
                    out.put(number, _mm256_and_si256(words, _mm256_set1_epi16(511)));
                }
                let sevens = _mm256_packus_epi16(_mm256_srli_epi16::<9>(words[0]), _mm256_srli_epi16::<9>(words[1]));
                out.put_signs(even_signs(_mm256_permute4x64_epi64::<0b11_01_10_00>(sevens)));
                nibble_scales(block.add(66), half(block))
            }
            Packed::Iq2S => {
                let high = block.add(66).cast::<[i32; 2]>().read_unaligned();
                let low = [load_half(2), load_half(18)];
                for (number, (low, high)) in low.into_iter().zip(high).enumerate() {
                    // A byte for four entries, two bits each.
                    let (none, one) = (0x8000_8000_8000_8000_u64.cast_signed(), 0x0001_0001_0001_0001);
                    let each = _mm256_setr_epi64x(none, none + one, none + 2 * one, none + 3 * one);
                    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(high), each);
                    let up = _mm256_set1_epi64x(0x0004_0010_0040_0100);
                    let high = _mm256_and_si256(_mm256_mullo_epi16(bytes, up), _mm256_set1_epi16(0x300));
                    out.put(number, _mm256_or_si256(_mm256_cvtepu8_epi16(low), high));
                }
                out.put_signs(load(34));
                nibble_scales(block.add(74), half(block))
            }
            Packed::Iq3Xxs => {
                out.put_bytes(0, load(2));
                out.put_bytes(2, load(34));
                let packed = load(66);
                out.put_signs(even_signs(sevens(packed)));
                [times(halves_up(_mm256_srli_epi32::<28>(packed)), half(block), 0.5), none]
            }
            Packed::Iq3S => {
                let high = block.add(66).cast::<[i16; 4]>().read_unaligned();
                for (number, high) in high.into_iter().enumerate() {
                    let (low, high_bits) = (0x0080_0040_0020_0010, 0x8000_4000_2000_1000_u64.cast_signed());
                    let bit = _mm256_setr_epi64x(low >> 4, low, low << 4, high_bits);
                    let is_set = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(high), bit), bit);
                    let high = _mm256_and_si256(is_set, _mm256_set1_epi16(256));
                    out.put(number, _mm256_or_si256(_mm256_cvtepu8_epi16(load_half(2 + 16 * number)), high));
                }
                out.put_signs(load(74));
                let nibbles = _mm256_set1_epi32(block.add(106).cast::<i32>().read_unaligned());
                let nibbles = _mm256_srlv_epi32(nibbles, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
                let nibbles = _mm256_and_si256(nibbles, _mm256_set1_epi32(15));
                [_mm256_mul_ps(odd(nibbles), half(block)), none]
            }
            Packed::Iq1S => {
                let words = load_half(34);
                let both = _mm256_broadcastsi128_si256(words);
                // For four entries: the word three times, then its second byte.
                let (first, second) = (0x8001_0100_0100_0100_u64 as i64, 0x8003_0302_0302_0302_u64 as i64);
                let step = 0x0004_0404_0404_0404;
                let up = _mm256_set1_epi64x(0x0080_0004_0020_0100);
                for number in 0..2 {
                    let each = _mm256_setr_epi64x(first, second, first + step, second + step);
                    let each = _mm256_add_epi8(each, _mm256_set1_epi64x(2 * step * number as i64));
                    let high = _mm256_mullo_epi16(_mm256_shuffle_epi8(both, each), up);
                    let high = _mm256_and_si256(high, _mm256_set1_epi16(0x700));
                    let low = _mm256_cvtepu8_epi16(load_half(2 + 16 * number));
                    out.put(number, _mm256_or_si256(low, high));
                }
                let wide = _mm256_cvtepi16_epi32(words);
                out.put_signs(_mm256_srai_epi32::<31>(wide));
                let integers = _mm256_and_si256(_mm256_srli_epi32::<12>(wide), _mm256_set1_epi32(7));
                [_mm256_mul_ps(odd(integers), _mm256_mul_ps(half(block), _mm256_set1_ps(0.125))), none]
            }
            Packed::Iq1M => {
                let high = load_half(32);
                let (low_nibbles, high_nibbles) = (high, _mm_srli_epi16::<4>(high));
                let nibbles = _mm256_setr_m128i(
                    _mm_unpacklo_epi8(low_nibbles, high_nibbles),
                    _mm_unpackhi_epi8(low_nibbles, high_nibbles),
                );
                let three = _mm256_and_si256(nibbles, _mm256_set1_epi8(7));
                let down = _mm256_and_si256(nibbles, _mm256_set1_epi8(8));
                out.put_signs(_mm256_cmpeq_epi8(down, _mm256_set1_epi8(8)));
                let bytes = load(0);
                let (low, high) = (_mm256_unpacklo_epi8(bytes, three), _mm256_unpackhi_epi8(bytes, three));
                out.put(0, _mm256_permute2x128_si256::<0x20>(low, high));
                out.put(1, _mm256_permute2x128_si256::<0x31>(low, high));
                let words = block.add(48).cast::<u64>().read_unaligned();
                let d = (words >> 12) & 15 | (words >> 24) & 0xF0 | (words >> 36) & 0xF00 | (words >> 48) & 0xF000;
                let d = _mm256_cvtph_ps(_mm_set1_epi16(d as i16));
                let d = _mm256_mul_ps(d, _mm256_set1_ps(0.125));
                let wide = _mm256_castsi128_si256(_mm_cvtepu16_epi32(_mm_cvtsi64_si128(words.cast_signed())));
                let down = _mm256_setr_epi32(0, 3, 6, 9, 0, 3, 6, 9);
                let eight = |each: __m256i| {
                    let words = _mm256_permutevar8x32_epi32(wide, each);
                    let three = _mm256_and_si256(_mm256_srlv_epi32(words, down), _mm256_set1_epi32(7));
                    _mm256_mul_ps(odd(three), d)
                };
                [eight(_mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)), eight(_mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3))]
            }
            Packed::Trits => [none; 2],
        };
        // No instruction: what was stored has to be loaded again.
        asm!("/* {0} */", in(reg) out.0, options(nostack, preserves_flags));
        scales
    }
}

/// The half at an address in all lanes.
#[inline(always)]
pub(super) unsafe fn half(address: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(address.cast::<i16>().read_unaligned())) }
}

/// `d * sum * factor`, in this order, as decoders multiply.
#[inline(always)]
unsafe fn times(sum: __m256, d: __m256, factor: f32) -> __m256 {
    // SAFETY: the caller has the instructions.
    unsafe { _mm256_mul_ps(_mm256_mul_ps(d, sum), _mm256_set1_ps(factor)) }
}

/// Integers and a half more.
#[inline(always)]
unsafe fn halves_up(integers: __m256i) -> __m256 {
    // SAFETY: the caller has the instructions.
    unsafe { _mm256_add_ps(_mm256_cvtepi32_ps(integers), _mm256_set1_ps(0.5)) }
}

/// Twice the integers and one more.
#[inline(always)]
unsafe fn odd(integers: __m256i) -> __m256 {
    // SAFETY: the caller has the instructions.
    unsafe { _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_add_epi32(integers, integers), _mm256_set1_epi32(1))) }
}

/// The scales of IQ2_XS and IQ2_S: sixteen nibbles.
#[inline(always)]
unsafe fn nibble_scales(address: *const u8, d: __m256) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm_cvtsi64_si128(address.cast::<i64>().read_unaligned());
        let nibbles = _mm_and_si128(_mm_unpacklo_epi8(bytes, _mm_srli_epi16::<4>(bytes)), _mm_set1_epi8(15));
        let low = halves_up(_mm256_cvtepu8_epi32(nibbles));
        let high = halves_up(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(nibbles)));
        [times(low, d, 0.25), times(high, d, 0.25)]
    }
}

/// The lowest 28 bits of words as four bytes of seven bits.
#[inline(always)]
unsafe fn sevens(words: __m256i) -> __m256i {
    // SAFETY: the caller has the instructions.
    unsafe {
        let keep = |words: __m256i, mask: u32| _mm256_and_si256(words, _mm256_set1_epi32(mask.cast_signed()));
        let fourteens = _mm256_or_si256(keep(words, 0x0000_3FFF), keep(_mm256_slli_epi32::<2>(words), 0x3FFF_0000));
        _mm256_or_si256(keep(fourteens, 0x007F_007F), keep(_mm256_slli_epi32::<1>(fourteens), 0x7F00_7F00))
    }
}

/// Bytes of seven bits with an eighth that makes their number even.
#[inline(always)]
unsafe fn even_signs(sevens: __m256i) -> __m256i {
    // SAFETY: the caller has the instructions.
    unsafe {
        let o = i8::MIN;
        let odd = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, o, o, 0, o, 0, 0, o, o, 0, 0, o, 0, o, o, 0));
        let folded = _mm256_xor_si256(sevens, _mm256_srli_epi16::<4>(sevens));
        let parity = _mm256_shuffle_epi8(odd, _mm256_and_si256(folded, _mm256_set1_epi8(15)));
        _mm256_or_si256(sevens, parity)
    }
}

/// The 256 trits of a TQ1_0 block, of which a byte holds five (a fraction of 256): see `tq1_0_codes` in
/// `crate::quant::ternary`.
///
/// # Safety
/// The processor has AVX2; the block is there.
#[inline(always)]
pub(super) unsafe fn trits(block: *const u8) -> [__m256i; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        // Less 128, so that signed comparisons order them; modulo 256, three times that is three times the fraction less
        // 128 again. A fraction is one from 86 on and two from 171 on.
        let low = |bytes: __m256i| _mm256_xor_si256(bytes, _mm256_set1_epi8(i8::MIN));
        let three = |bytes: __m256i| _mm256_add_epi8(_mm256_add_epi8(bytes, bytes), bytes);
        let digit = |bytes: __m256i| {
            let is_one = _mm256_cmpgt_epi8(bytes, _mm256_set1_epi8((85 - 128_i32) as i8));
            let is_two = _mm256_cmpgt_epi8(bytes, _mm256_set1_epi8((170 - 128_i32) as i8));
            _mm256_abs_epi8(_mm256_add_epi8(is_one, is_two))
        };
        let mut out = [_mm256_setzero_si256(); 8];
        let mut bytes = low(_mm256_loadu_si256(block.cast()));
        for out in &mut out[..5] {
            *out = digit(bytes);
            bytes = three(bytes);
        }
        // Sixteen bytes, and beside them three times those.
        let once = low(_mm256_broadcastsi128_si256(_mm_loadu_si128(block.add(32).cast())));
        let mut bytes = _mm256_blend_epi32::<0xF0>(once, three(once));
        for out in &mut out[5..7] {
            *out = digit(bytes);
            bytes = three(three(bytes));
        }
        // Four bytes times 1, 3, 9 and 27.
        let last = _mm_set1_epi32(block.add(48).cast::<i32>().read_unaligned());
        let (one, nine) = (0x0001_0001_0001_0001, 0x0009_0009_0009_0009);
        let factors = _mm256_setr_epi64x(one, 3 * one, nine, 3 * nine);
        let words = _mm256_mullo_epi16(_mm256_cvtepu8_epi16(last), factors);
        let words = _mm256_and_si256(words, _mm256_set1_epi16(255));
        let last = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        out[7] = digit(_mm256_inserti128_si256::<1>(bytes, _mm_xor_si128(last, _mm_set1_epi8(i8::MIN))));
        out
    }
}
