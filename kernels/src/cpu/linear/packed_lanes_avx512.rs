//! Codebooks and trits for AVX-512, sixteen weight rows at once.
//!
//! What a block says (entries, signs, scales) is read row by row. Then each lane takes the entry of its row from the
//! codebook, so that codes stand in the order of a panel at once.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::codebook::{Book, Packed, packed_of};
use super::format::Format;
use super::lanes_avx512::{Blocks, Panel, ROWS, Sixteen, spread_bits};
use super::packed_avx512::{joined, negative};
use super::picks_x86::{Picks, read};
use super::transpose::transpose;
use crate::quant::ternary::TQ1_0_RUNS;

/// Unpacks one block of sixteen rows; calls `each` sixteen times meanwhile.
///
/// # Safety
/// The processor has AVX2, F16C and AVX-512 F, BW, VL and DQ; the blocks are there; the panel has room for a block.
#[inline(always)]
pub(super) unsafe fn unpack<F: Format>(blocks: Blocks, panel: Panel, mut each: impl FnMut()) {
    let packed = const { packed_of::<F>() };
    // SAFETY: the caller's promises; picks are written before they are read; entries are below the number that the type's
    // bits can name, which the book has.
    unsafe {
        if packed == Packed::Trits {
            return trits::<F>(blocks, panel, each);
        }
        let mut picks = MaybeUninit::<[Picks; ROWS]>::uninit();
        let first: *mut Picks = picks.as_mut_ptr().cast();
        for row in 0..ROWS {
            each();
            let picks = first.add(row);
            let [low, high] = read(packed, blocks.start(row), picks);
            let scales = (&raw mut (*picks).scales).cast::<f32>();
            _mm256_store_ps(scales, low);
            if F::SUB == 16 {
                _mm256_store_ps(scales.add(8), high);
            }
        }
        transpose((&raw const (*first).scales).cast(), size_of::<Picks>(), F::LEN / F::SUB / 4, |sub, scales| {
            _mm512_store_si512(panel.scales.add(ROWS * sub).cast(), scales);
        });
        // A word for 32 weights.
        let mut signs = [_mm512_setzero_si512(); 8];
        transpose((&raw const (*first).signs).cast(), size_of::<Picks>(), 2, |word, bits| signs[word] = bits);
        // Functions, not closures: those are not inlined here, and the instructions then not into them.
        let mut out = Out { codes: panel.codes, signs: _mm512_setzero_si512() };
        for (sub, signs) in signs.into_iter().enumerate() {
            out.signs = signs;
            match packed.book() {
                Book::Eights(book) => {
                    for entry in 4 * sub..4 * sub + 4 {
                        let low = eights(book, first.cast::<u16>().add(entry));
                        let high = eights(book, first.add(8).cast::<u16>().add(entry));
                        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                        let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
                        out.put(packed, _mm512_permutex2var_epi32(low, even, high));
                        out.put(packed, _mm512_permutex2var_epi32(low, odd, high));
                    }
                }
                Book::Fours(book) => {
                    for entry in 8 * sub..8 * sub + 8 {
                        out.put(packed, fours(book, first.cast::<u16>().add(entry)));
                    }
                }
            }
        }
    }
}

/// Where the next codes go, and the signs of the next weights in the lowest bits.
struct Out {
    codes: *mut u8,
    signs: __m512i,
}

impl Out {
    /// Four codes of each row, which get their signs.
    #[inline(always)]
    unsafe fn put(&mut self, packed: Packed, positive: __m512i) {
        const BITS: [u32; 16] = spread_bits(7);
        // SAFETY: the caller has the instructions, and room for codes.
        unsafe {
            let bits = _mm512_permutexvar_epi32(self.signs, _mm512_loadu_si512(BITS.as_ptr().cast()));
            let codes = negative(packed, positive, _mm512_movepi8_mask(bits));
            _mm512_store_si512(self.codes.cast(), codes);
            self.codes = self.codes.add(4 * ROWS);
            self.signs = _mm512_srli_epi32::<4>(self.signs);
        }
    }
}

/// The number of an entry, `row` rows further.
#[inline(always)]
unsafe fn number(entries: *const u16, row: usize) -> usize {
    // SAFETY: the caller's promise.
    usize::from(unsafe { *entries.add(row * size_of::<Picks>() / 2) })
}

/// The entries of eight rows.
#[inline(always)]
unsafe fn eights(book: &[u64], entries: *const u16) -> __m512i {
    // SAFETY: the caller's promises.
    unsafe {
        let entry = |row: usize| book.as_ptr().add(number(entries, row)).cast::<i64>().read();
        _mm512_setr_epi64(entry(0), entry(1), entry(2), entry(3), entry(4), entry(5), entry(6), entry(7))
    }
}

/// The entries of sixteen rows.
#[inline(always)]
unsafe fn fours(book: &[u32], entries: *const u16) -> __m512i {
    // SAFETY: the caller's promises.
    unsafe {
        let entry = |row: usize| book.as_ptr().add(number(entries, row)).cast::<i32>().read();
        let four = |row: usize| _mm_setr_epi32(entry(row), entry(row + 1), entry(row + 2), entry(row + 3));
        joined(_mm256_setr_m128i(four(0), four(4)), _mm256_setr_m128i(four(8), four(12)))
    }
}

/// Trits: five share a byte, see `tq1_0_codes` in `crate::quant::ternary`.
#[inline(always)]
unsafe fn trits<F: Format>(blocks: Blocks, panel: Panel, mut each: impl FnMut()) {
    // SAFETY: the caller's promises.
    unsafe {
        let scale = blocks.half::<F>(52);
        for sub in 0..F::LEN / F::SUB {
            _mm512_store_ps(panel.scales.add(ROWS * sub), scale);
        }
        let mut weight = 0;
        for (first, n_bytes, n_trits) in TQ1_0_RUNS {
            for at in (0..n_bytes).step_by(16) {
                let words =
                    if n_bytes < 16 { [blocks.word::<F>(first + at); 4] } else { blocks.four_words::<F>(first + at) };
                for (number, mut bytes) in words.into_iter().enumerate().take(n_bytes.div_ceil(4)) {
                    each();
                    let mut out = panel.codes.add(ROWS * (weight + at + 4 * number));
                    for _ in 0..n_trits {
                        let is_one = _mm512_cmpgt_epu8_mask(bytes, _mm512_set1_epi8(85));
                        let is_two = _mm512_cmpgt_epu8_mask(bytes, _mm512_set1_epi8(170_u8.cast_signed()));
                        let one = _mm512_maskz_set1_epi8(is_one, 1);
                        _mm512_store_si512(out.cast(), _mm512_mask_set1_epi8(one, is_two, 2));
                        out = out.add(ROWS * n_bytes);
                        bytes = _mm512_add_epi8(_mm512_add_epi8(bytes, bytes), bytes);
                    }
                }
            }
            weight += n_bytes * n_trits;
        }
    }
}
