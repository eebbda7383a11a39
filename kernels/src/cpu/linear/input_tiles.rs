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
/// The fewest rows that are held as tiles with [`Isa::Amx`]: with fewer, unpacking weights costs more than products with int8.
pub const FEWEST_ROWS: usize = 17;

/// Whether `rows` rows of a quantized kind are held as tiles.
pub(super) fn are_tiles(isa: Isa, rows: usize) -> bool {
    isa == Isa::Amx && rows >= FEWEST_ROWS
}

/// Numbers that tiles of `rows` rows of `n_chunks` chunks take.
pub(super) fn len(rows: usize, n_chunks: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * n_chunks * STEPS * TILE_LEN
}

/// Rounds a row and brings it into the order of steps. `out` is its place in the first chunk, chunks are `stride` numbers
/// apart. What is not finite stays so.
///
/// # Safety
/// The processor has AVX-512 F, BW and BF16; there is room for the row in whole chunks.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn fill(values: &[f32], out: *mut u16, stride: usize) {
    use std::arch::x86_64::*;
    /// The words of two vectors, every second one from `first` on.
    const fn every_second(first: i16) -> [i16; 32] {
        let mut words = [0; 32];
        let mut word = 0;
        while word < 32 {
            words[word] = first + 2 * word as i16;
            word += 1;
        }
        words
    }
    const EVEN: [i16; 32] = every_second(0);
    const ODD: [i16; 32] = every_second(1);
    // SAFETY: the caller's promise; values past the row are not read.
    unsafe {
        let (even, odd) = (_mm512_loadu_si512(EVEN.as_ptr().cast()), _mm512_loadu_si512(ODD.as_ptr().cast()));
        for (number, values) in values.chunks(2 * STEP).enumerate() {
            let sixteen = |at: usize| {
                let mask = ((1_u64 << values.len().saturating_sub(at).min(16)) - 1) as u16;
                _mm512_maskz_loadu_ps(mask, values.as_ptr().wrapping_add(at))
            };
            let low: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(sixteen(16), sixteen(0)));
            let high: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(sixteen(48), sixteen(32)));
            let place = out.add(number / (STEPS / 2) * stride + number % (STEPS / 2) * 2 * STEP);
            _mm512_store_si512(place.cast(), _mm512_permutex2var_epi16(low, even, high));
            _mm512_store_si512(place.add(STEP).cast(), _mm512_permutex2var_epi16(low, odd, high));
        }
    }
}

/// Turns a chunk of 16 rows, one after the other, into the steps of a tile, in place.
///
/// # Safety
/// The processor has AVX-512 F; `chunk` is a chunk of a tile, aligned, which nobody else uses.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn turn(chunk: *mut u16) {
    use std::arch::x86_64::*;
    #[repr(C, align(64))]
    struct Turned([u32; STEPS * TILE_LEN / 2]);
    let mut turned = Turned([0; STEPS * TILE_LEN / 2]);
    let out = turned.0.as_mut_ptr();
    // SAFETY: the caller's promise.
    unsafe {
        super::transpose::transpose(chunk.cast(), 2 * CHUNK, CHUNK / 2 / 4, |column, pairs| {
            _mm512_store_si512(out.add(TILE_ROWS * column).cast(), pairs);
        });
        std::ptr::copy_nonoverlapping(out, chunk.cast(), turned.0.len());
    }
}
