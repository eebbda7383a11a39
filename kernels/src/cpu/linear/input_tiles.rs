//! Many input rows as AMX wants them: bf16, in tiles of 16 rows.
//!
//! A chunk of 256 columns is eight steps of 32: of every 64 columns the even ones, then the odd ones (an order in which
//! codes of a byte each are cheap to take apart). A step of a tile is 16 pairs of columns x 16 rows x 2 numbers, 1 KiB;
//! the steps of a chunk follow each other, then the tiles, then the chunks.

use super::input::CHUNK;
use crate::cpu::isa::Isa;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Columns of a step.
pub(crate) const STEP: usize = 32;
/// Steps of a chunk.
pub(crate) const STEPS: usize = CHUNK / STEP;
/// Numbers of a step of a tile.
pub(crate) const TILE_LEN: usize = STEP * TILE_ROWS;
/// The fewest rows held as tiles: with fewer, unpacking weights costs more than products with int8.
const FEWEST_ROWS: usize = 17;

/// Whether `rows` rows of a quantized kind are held as tiles.
pub(super) fn are_tiles(isa: Isa, rows: usize) -> bool {
    isa == Isa::Amx && rows >= FEWEST_ROWS
}

/// Numbers that tiles of `rows` rows of `n_chunks` chunks take.
pub(super) fn len(rows: usize, n_chunks: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * n_chunks * STEPS * TILE_LEN
}

/// Rounds a row into its lane of a tile. `lane` is the row's first pair in the first chunk, chunks are `stride` numbers
/// apart. What is not finite stays so.
///
/// # Safety
/// The processor has AVX-512 F, BW and BF16; the tile has room for the row.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn fill(values: &[f32], lane: *mut u16, stride: usize) {
    use std::arch::x86_64::*;
    // Columns 4n, 4n + 2, 4n + 1, 4n + 3: a pair of the even step and one of the odd.
    const PAIRS: [i8; 16] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
    // SAFETY: the caller's promise; values past the row are not read.
    unsafe {
        let order = _mm512_broadcast_i32x4(_mm_loadu_si128(PAIRS.as_ptr().cast()));
        for (number, values) in values.chunks(32).enumerate() {
            let mask = |at: usize| ((1_u64 << values.len().saturating_sub(at).min(16)) - 1) as u16;
            let low = _mm512_maskz_loadu_ps(mask(0), values.as_ptr());
            let high = _mm512_maskz_loadu_ps(mask(16), values.as_ptr().wrapping_add(16));
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            let mut pairs = [0_u32; 16];
            _mm512_storeu_si512(pairs.as_mut_ptr().cast(), _mm512_shuffle_epi8(rounded, order));
            let (chunk, part, half) = (number / 8, number % 8 / 2, number % 2);
            let place = lane.add(chunk * stride + 2 * part * TILE_LEN + half * TILE_LEN / 2).cast::<u32>();
            for (at, pair) in pairs.into_iter().enumerate() {
                place.add(at % 2 * TILE_LEN / 2 + at / 2 * TILE_ROWS).write(pair);
            }
        }
    }
}
