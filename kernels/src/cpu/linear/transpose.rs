//! Rows to columns, 16 words wide.

use std::arch::x86_64::*;

/// Gives each column of 16 rows of `4 * n_fours` words, `stride` bytes apart, with its number.
///
/// # Safety
/// The processor has AVX-512 F; the words are there.
#[inline(always)]
pub(super) unsafe fn transpose(rows: *const u8, stride: usize, n_fours: usize, mut put: impl FnMut(usize, __m512i)) {
    // SAFETY: the caller's promise.
    unsafe {
        for four in 0..n_fours {
            let load = |row: usize| _mm_loadu_si128(rows.add(row * stride + 16 * four).cast());
            // Rows `row`, `row + 4`, `row + 8`, `row + 12`.
            let lanes = |row: usize| {
                let first = _mm512_castsi128_si512(load(row));
                let second = _mm512_mask_broadcast_i32x4(first, 0x00F0, load(row + 4));
                let third = _mm512_mask_broadcast_i32x4(second, 0x0F00, load(row + 8));
                _mm512_mask_broadcast_i32x4(third, 0xF000, load(row + 12))
            };
            let (a, b, c, d) = (lanes(0), lanes(1), lanes(2), lanes(3));
            let (low_ab, high_ab) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (low_cd, high_cd) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            put(4 * four, _mm512_unpacklo_epi64(low_ab, low_cd));
            put(4 * four + 1, _mm512_unpackhi_epi64(low_ab, low_cd));
            put(4 * four + 2, _mm512_unpacklo_epi64(high_ab, high_cd));
            put(4 * four + 3, _mm512_unpackhi_epi64(high_ab, high_cd));
        }
    }
}
