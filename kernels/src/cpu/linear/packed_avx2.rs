//! Codebooks and trits for AVX2: entries are loaded into lanes, signs are bytes of ones.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::codebook::{Book, Negative, Packed};
use super::picks_x86::{Picks, half, read, trits};
use super::unpack_avx2::{Chunk, bytes_of_bits};

/// Unpacks a block of 256 weights; minima become zero.
///
/// # Safety
/// The processor has AVX2 and F16C; the block is there.
#[inline(always)]
pub(super) unsafe fn unpack(packed: Packed, block: *const u8, out: &mut Chunk) {
    // SAFETY: the caller's promises; picks are written before they are read; entries are below the number that the type's
    // bits can name, which the book has.
    unsafe {
        out.mins = [_mm256_setzero_ps(); 2];
        if packed == Packed::Trits {
            out.codes = trits(block);
            let d = half(block.add(52));
            out.scales = [d, _mm256_setzero_ps()];
            return;
        }
        let mut picks = MaybeUninit::<Picks>::uninit();
        out.scales = read(packed, block, picks.as_mut_ptr());
        let entries = (&raw const (*picks.as_ptr()).entries).cast::<u16>();
        let signs = (&raw const (*picks.as_ptr()).signs).cast::<i32>();
        // One by one: a loop over codes keeps them in memory.
        out.codes = [
            codes::<0>(packed, entries, signs),
            codes::<1>(packed, entries, signs),
            codes::<2>(packed, entries, signs),
            codes::<3>(packed, entries, signs),
            codes::<4>(packed, entries, signs),
            codes::<5>(packed, entries, signs),
            codes::<6>(packed, entries, signs),
            codes::<7>(packed, entries, signs),
        ];
    }
}

/// Codes `32 * PART ..` of the block.
#[inline(always)]
unsafe fn codes<const PART: usize>(packed: Packed, entries: *const u16, signs: *const i32) -> __m256i {
    // SAFETY: the caller's promises.
    unsafe {
        let positive = match packed.book() {
            Book::Eights(book) => eights(book, entries.add(4 * PART)),
            Book::Fours(book) => fours(book, entries.add(8 * PART)),
        };
        let is_negative = bytes_of_bits(*signs.add(PART));
        match packed.negative() {
            // All bits turned are 255 less the code.
            Negative::From(top) => {
                let up = _mm256_and_si256(is_negative, _mm256_set1_epi8(top.wrapping_add(1).cast_signed()));
                _mm256_add_epi8(_mm256_xor_si256(positive, is_negative), up)
            }
            Negative::Less(step) => {
                _mm256_sub_epi8(positive, _mm256_and_si256(is_negative, _mm256_set1_epi8(step.cast_signed())))
            }
        }
    }
}

/// Four entries of eight codes.
#[inline(always)]
unsafe fn eights(book: &[u64], entries: *const u16) -> __m256i {
    // SAFETY: the caller's promises.
    unsafe {
        let entry = |number: usize| book.as_ptr().add(usize::from(*entries.add(number))).cast::<i64>().read();
        _mm256_setr_epi64x(entry(0), entry(1), entry(2), entry(3))
    }
}

/// Eight entries of four codes.
#[inline(always)]
unsafe fn fours(book: &[u32], entries: *const u16) -> __m256i {
    // SAFETY: the caller's promises.
    unsafe {
        let entry = |number: usize| book.as_ptr().add(usize::from(*entries.add(number))).cast::<i32>().read();
        let four = |first: usize| _mm_setr_epi32(entry(first), entry(first + 1), entry(first + 2), entry(first + 3));
        _mm256_setr_m128i(four(0), four(4))
    }
}
