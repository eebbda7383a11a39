//! Unpacking to bf16: a chunk of a weight row becomes the numbers it stands for, in the order of `input_tiles`.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::format::{Format, Unpacked};
use super::layout::{High, Layout};
use super::unpack_avx512::{self, Chunk};

/// A type whose codes stay as stored where a table stands behind them.
struct Stored<F>(PhantomData<F>);

impl<F: Format> Format for Stored<F> {
    const BYTES: usize = F::BYTES;
    const LEN: usize = F::LEN;
    const SUB: usize = F::SUB;
    const OFFSET: u8 = F::OFFSET;
    const HAS_MIN: bool = F::HAS_MIN;
    const STORED_HALVES: bool = F::STORED_HALVES;
    const LAYOUT: Option<Layout> = F::LAYOUT;
    #[inline(always)]
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        F::unpack(block, codes, scales, mins);
    }
}

/// The levels of a type of four bits under scales of 32; none for others.
const fn levels<F: Format>() -> Option<[f32; 16]> {
    let four_bits = match F::LAYOUT {
        Some(Layout { low, high: High::None, .. }) => low.bits == 4,
        _ => false,
    };
    if !four_bits || F::SUB != 32 {
        return None;
    }
    let mut levels = [0.0; 16];
    let mut code = 0;
    while code < 16 {
        levels[code] = match F::TABLE {
            Some(table) => table[code] as f32,
            None => code as f32,
        };
        code += 1;
    }
    Some(levels)
}

/// Writes the eight steps of the next chunk of a row, `stride` bytes apart; `bytes` is the rest of the row, one block at
/// least.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and BF16; `out` is aligned and has room.
#[inline(always)]
pub(super) unsafe fn unpack<F: Format>(bytes: &[u8], out: *mut u8, stride: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut chunk = Chunk::new();
        let part = |part: usize| out.add(2 * part * stride);
        if let Some(levels) = const { levels::<F>() } {
            unpack_avx512::unpack::<Stored<F>>(bytes, &mut chunk);
            let mut plain = Unpacked::new();
            _mm512_store_ps(plain.scales.as_mut_ptr(), chunk.scales);
            _mm512_store_ps(plain.mins.as_mut_ptr(), chunk.mins);
            for (number, codes) in chunk.codes.into_iter().enumerate() {
                looked_up(levels, codes, &plain.scales[2 * number..], &plain.mins[2 * number..], part(number), stride);
            }
        } else {
            unpack_avx512::unpack::<F>(bytes, &mut chunk);
            computed::<F, 0>(&chunk, part(0), stride);
            computed::<F, 1>(&chunk, part(1), stride);
            computed::<F, 2>(&chunk, part(2), stride);
            computed::<F, 3>(&chunk, part(3), stride);
        }
    }
}

/// The numbers of 64 codes of four bits: all that two blocks may hold are computed and rounded once, then looked up.
#[inline(always)]
unsafe fn looked_up(levels: [f32; 16], codes: __m512i, scales: &[f32], mins: &[f32], out: *mut u8, stride: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        let levels = _mm512_loadu_ps(levels.as_ptr());
        let numbers =
            |block: usize| _mm512_fmadd_ps(levels, _mm512_set1_ps(scales[block]), _mm512_set1_ps(mins[block]));
        let table: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(numbers(1), numbers(0)));
        let second = _mm512_maskz_set1_epi64(0xF0, 0x1010_1010_1010_1010);
        let codes = _mm512_or_si512(codes, second);
        // Of the words that choose, five bits count.
        _mm512_store_si512(out.cast(), _mm512_permutexvar_epi16(codes, table));
        _mm512_store_si512(out.add(stride).cast(), _mm512_permutexvar_epi16(_mm512_srli_epi16::<8>(codes), table));
    }
}

/// For 64 codes of a chunk, the sub-blocks of the pairs of each half.
const fn subs(sub: usize, part: usize) -> [[i32; 16]; 2] {
    let mut out = [[0; 16]; 2];
    let mut pair = 0;
    while pair < 32 {
        out[pair / 16][pair % 16] = ((64 * part + 2 * pair) / sub) as i32;
        pair += 1;
    }
    out
}

/// The numbers of codes `64 * PART ..` of a chunk: the even ones in one step, the odd ones in the next.
#[inline(always)]
unsafe fn computed<F: Format, const PART: usize>(chunk: &Chunk, out: *mut u8, stride: usize) {
    let codes = chunk.codes[PART];
    let places = const { subs(F::SUB, PART) };
    // SAFETY: the caller's promises.
    unsafe {
        let each = |half: usize, of| _mm512_permutexvar_ps(_mm512_loadu_si512(places[half].as_ptr().cast()), of);
        let scales = [each(0, chunk.scales), each(1, chunk.scales)];
        let mins = [each(0, chunk.mins), each(1, chunk.mins)];
        let even = _mm512_and_si512(codes, _mm512_set1_epi16(0xFF));
        let odd = _mm512_srli_epi16::<8>(codes);
        for (parity, codes) in [even, odd].into_iter().enumerate() {
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(codes));
            let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(codes));
            let low = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), scales[0], mins[0]);
            let high = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), scales[1], mins[1]);
            out.add(parity * stride).cast::<__m512bh>().write(_mm512_cvtne2ps_pbh(high, low));
        }
    }
}
