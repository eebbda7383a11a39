//! Codebooks and trits for AVX-512: entries are loaded into lanes, signs are masks.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::codebook::{Book, Negative, Packed};
use super::picks_x86::{Picks, half, read, trits};
use super::unpack_avx512::Chunk;

/// Unpacks a block of 256 weights; minima become zero.
///
/// # Safety
/// The processor has AVX2, F16C and AVX-512 F, BW, VL and DQ; the block is there.
#[inline(always)]
pub(super) unsafe fn unpack(packed: Packed, block: *const u8, out: &mut Chunk) {
    // SAFETY: the caller's promises; picks are written before they are read; entries are below the number that the type's
    // bits can name, which the book has.
    unsafe {
        out.mins = _mm512_setzero_ps();
        if packed == Packed::Trits {
            let [a, b, c, d, e, f, g, h] = trits(block);
            out.codes = [joined(a, b), joined(c, d), joined(e, f), joined(g, h)];
            out.scales = _mm512_zextps256_ps512(half(block.add(52)));
            return;
        }
        let mut picks = MaybeUninit::<Picks>::uninit();
        let [low, high] = read(packed, block, picks.as_mut_ptr());
        let entries = (&raw const (*picks.as_ptr()).entries).cast::<u16>();
        let signs = (&raw const (*picks.as_ptr()).signs).cast::<u64>();
        out.scales = _mm512_insertf32x8::<1>(_mm512_zextps256_ps512(low), high);
        // One by one: a loop over codes keeps them in memory.
        out.codes = [
            codes::<0>(packed, entries, signs),
            codes::<1>(packed, entries, signs),
            codes::<2>(packed, entries, signs),
            codes::<3>(packed, entries, signs),
        ];
    }
}

/// Codes `64 * PART ..` of the block.
#[inline(always)]
unsafe fn codes<const PART: usize>(packed: Packed, entries: *const u16, signs: *const u64) -> __m512i {
    // SAFETY: the caller's promises.
    unsafe {
        let positive = match packed.book() {
            Book::Eights(book) => eights(book, entries.add(8 * PART)),
            Book::Fours(book) => fours(book, entries.add(16 * PART)),
        };
        negative(packed, positive, *signs.add(PART))
    }
}

/// Codes, those of negative weights for what they are.
#[inline(always)]
pub(super) unsafe fn negative(packed: Packed, positive: __m512i, is_negative: u64) -> __m512i {
    // SAFETY: the caller has the instructions.
    unsafe {
        match packed.negative() {
            Negative::From(top) => {
                _mm512_mask_sub_epi8(positive, is_negative, _mm512_set1_epi8(top.cast_signed()), positive)
            }
            Negative::Less(step) => {
                _mm512_mask_sub_epi8(positive, is_negative, positive, _mm512_set1_epi8(step.cast_signed()))
            }
        }
    }
}

/// Two halves.
#[inline(always)]
pub(super) unsafe fn joined(low: __m256i, high: __m256i) -> __m512i {
    // SAFETY: the caller has the instructions.
    unsafe { _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high) }
}

/// Eight entries of eight codes.
#[inline(always)]
unsafe fn eights(book: &[u64], entries: *const u16) -> __m512i {
    // SAFETY: the caller's promises.
    unsafe {
        let entry = |number: usize| book.as_ptr().add(usize::from(*entries.add(number))).cast::<i64>().read();
        _mm512_setr_epi64(entry(0), entry(1), entry(2), entry(3), entry(4), entry(5), entry(6), entry(7))
    }
}

/// Sixteen entries of four codes.
#[inline(always)]
unsafe fn fours(book: &[u32], entries: *const u16) -> __m512i {
    // SAFETY: the caller's promises.
    unsafe {
        let entry = |number: usize| book.as_ptr().add(usize::from(*entries.add(number))).cast::<i32>().read();
        let four = |first: usize| _mm_setr_epi32(entry(first), entry(first + 1), entry(first + 2), entry(first + 3));
        joined(_mm256_setr_m128i(four(0), four(4)), _mm256_setr_m128i(four(8), four(12)))
    }
}
