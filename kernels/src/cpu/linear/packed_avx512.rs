//! Codebooks and trits for AVX-512: entries are loaded into lanes, signs are masks.

use std::arch::x86_64::*;

use super::codebook::{Book, Negative, Packed};
use super::picks_x86::{Picks, half, read, trits};
use super::unpack_avx512::Chunk;

/// Unpacks a block of 256 weights; minima become zero.
///
/// # Safety
/// The processor has AVX2, F16C and AVX-512 F, BW, VL and DQ; the block is there.
#[inline(always)]
pub(super) unsafe fn unpack(packed: Packed, block: *const u8, out: &mut Chunk) {
    // SAFETY: the caller's promises; entries are below the number that the type's bits can name, which the book has.
    unsafe {
        out.mins = _mm512_setzero_ps();
        if packed == Packed::Trits {
            let trits = trits(block);
            for (part, codes) in out.codes.iter_mut().enumerate() {
                *codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(trits[2 * part]), trits[2 * part + 1]);
            }
            let d = half(block.add(52));
            out.scales = _mm512_zextps256_ps512(d);
            return;
        }
        let mut picks = Picks::new();
        let [low, high] = read(packed, block, &mut picks);
        out.scales = _mm512_insertf32x8::<1>(_mm512_zextps256_ps512(low), high);
        for (part, codes) in out.codes.iter_mut().enumerate() {
            let positive = match packed.book() {
                Book::Eights(book) => eights(book, picks.entries.as_ptr().add(8 * part)),
                Book::Fours(book) => fours(book, picks.entries.as_ptr().add(16 * part)),
            };
            let signs = picks.signs[part];
            *codes = match packed.negative() {
                Negative::From(top) => {
                    _mm512_mask_sub_epi8(positive, signs, _mm512_set1_epi8(top.cast_signed()), positive)
                }
                Negative::Less(step) => {
                    _mm512_mask_sub_epi8(positive, signs, positive, _mm512_set1_epi8(step.cast_signed()))
                }
            };
        }
    }
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
        let low = _mm256_setr_m128i(four(0), four(4));
        let high = _mm256_setr_m128i(four(8), four(12));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}
