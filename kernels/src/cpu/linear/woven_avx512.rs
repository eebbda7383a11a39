//! Weights that lie side by side in sixteens (`crate::order`), for AVX-512: each load has a word of sixteen rows.
//!
//! Few input rows are multiplied with codes as they are unpacked, which then go nowhere else.

use std::arch::x86_64::*;
use std::ops::Range;

use super::flat_avx512::{Codes, Inputs, SUMS, multiply, outliers, put};
use super::format::Format;
use super::input::CHUNK;
use super::job::Job;
use super::lanes_avx512::{Panel, ROWS, Sink, Sixteen, Store, high_half, low_half, planes, scales, shift};
use super::layout::{High, Layout, Planes, low_of};

/// Input rows at once: as many sums, and what is multiplied with them, fit the registers.
const AT_ONCE: usize = 8;

/// Vectors of codes in a block.
const WORDS: usize = 8;

/// Bytes that are fetched before they are used.
const AHEAD: usize = 4096;

/// Blocks in the order of [`Order::Sixteens`](crate::order::Order): word by word those of all rows side by side.
#[derive(Clone, Copy)]
pub(super) struct Woven {
    layout: Layout,
    start: *const u8,
}

/// Bytes of a block before its words (see `crate::order`).
const fn odd<F: Format>() -> usize {
    low_of::<F>().at % 4
}

impl Woven {
    /// Blocks of a type with a layout, which alone has this order.
    pub(super) fn new(layout: Layout, start: *const u8) -> Self {
        Self { layout, start }
    }

    /// The raw codes of a weight, as many weights further as it says, which may be in a later block.
    #[inline(always)]
    pub(super) unsafe fn codes_of<F: Format>(self, at: usize) -> __m512i {
        let (blocks, weight) = (self.advance::<F>(at / F::LEN), at % F::LEN);
        let Layout { low, high, .. } = self.layout;
        // SAFETY: the caller's promise: the weight is there.
        unsafe {
            let mut codes = blocks.bits_of::<F>(low, weight);
            if low.bits == 8 {
                codes = _mm512_xor_si512(codes, _mm512_set1_epi32(0x80));
            }
            let above = match high {
                High::None => _mm512_setzero_si512(),
                High::Word(at) => some_bits(blocks.word::<F>(at), weight, 1),
                High::Planes(planes) => blocks.bits_of::<F>(planes, weight),
            };
            codes = _mm512_or_si512(codes, _mm512_sllv_epi32(above, shift(low.bits)));
            match F::TABLE {
                None => codes,
                Some(table) => {
                    let table = _mm512_cvtepu8_epi32(_mm_loadu_si128(table.as_ptr().cast()));
                    _mm512_permutexvar_epi32(codes, table)
                }
            }
        }
    }

    /// The bits of a weight in some planes.
    #[inline(always)]
    unsafe fn bits_of<F: Format>(self, planes: Planes, weight: usize) -> __m512i {
        let (byte, from) = planes.place(weight);
        // SAFETY: the caller's promise: the weight is there.
        unsafe { some_bits(self.word::<F>(planes.at + byte / 4 * 4), 8 * (byte % 4) + from, planes.bits) }
    }
}

impl Sixteen for Woven {
    #[inline(always)]
    fn advance<F: Format>(self, n: usize) -> Self {
        Self { start: self.start.wrapping_add(n * ROWS * F::BYTES), ..self }
    }

    #[inline(always)]
    unsafe fn four_words<F: Format>(self, at: usize) -> [__m512i; 4] {
        // SAFETY: the caller's promise.
        unsafe { std::array::from_fn(|word| self.word::<F>(at + 4 * word)) }
    }

    #[inline(always)]
    unsafe fn word<F: Format>(self, at: usize) -> __m512i {
        let start = self.start.wrapping_add(ROWS * at);
        // SAFETY: the caller's promise: words begin behind the odd bytes.
        unsafe {
            match odd::<F>() {
                1 if at == 0 => _mm512_cvtepu8_epi32(_mm_loadu_si128(start.cast())),
                2 if at == 0 => _mm512_cvtepu16_epi32(_mm256_loadu_si256(start.cast())),
                _ => _mm512_loadu_si512(start.cast()),
            }
        }
    }

    #[inline(always)]
    unsafe fn half<F: Format>(self, at: usize) -> __m512 {
        // SAFETY: the caller's promise: blocks begin with their halves, which are odd bytes or part of a word.
        unsafe {
            match (odd::<F>(), at) {
                (0, 0) => low_half(self.word::<F>(0)),
                (0, _) => high_half(self.word::<F>(at - 2)),
                _ => _mm512_cvtph_ps(_mm256_loadu_si256(self.start.cast())),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack<F: Format>(self, panel: Panel, each: impl FnMut()) {
        // SAFETY: the caller's promises.
        unsafe {
            scales::<F, Self>(self.layout.scales, self, panel);
            planes::<F, Self>(self.layout, self, &mut Store(panel.codes), each);
        }
    }
}

/// So many bits of words, from a place on.
#[inline(always)]
unsafe fn some_bits(words: __m512i, from: usize, bits: usize) -> __m512i {
    // SAFETY: the caller has the instructions.
    unsafe { _mm512_and_si512(_mm512_srlv_epi32(words, shift(from)), _mm512_set1_epi32((1 << bits) - 1)) }
}

/// The codes of a block, four of each row in a vector.
struct Block([__m512i; WORDS]);

impl Sink for Block {
    #[inline(always)]
    unsafe fn take(&mut self, weight: usize, codes: __m512i) {
        self.0[weight / 4] = codes;
    }
}

/// Products of weight rows, which are whole sixteens, with input rows.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and VNNI; the job keeps its promises and its weights, of a type with blocks of
/// one scale, lie in sixteens.
#[inline(always)]
pub(super) unsafe fn flat<F: Format>(job: &Job<'_>, rows: Range<usize>) {
    for row in rows.step_by(ROWS) {
        for start in job.input_rows.clone().step_by(AT_ONCE) {
            let run = match job.input_rows.end - start {
                1 => few_rows::<F, 1>,
                2 => few_rows::<F, 2>,
                3 => few_rows::<F, 3>,
                4 => few_rows::<F, 4>,
                5 => few_rows::<F, 5>,
                6 => few_rows::<F, 6>,
                7 => few_rows::<F, 7>,
                _ => few_rows::<F, AT_ONCE>,
            };
            // SAFETY: the caller's promises.
            unsafe { run(job, row, start) };
        }
    }
}

/// # Safety
/// As [`flat`]: sixteen rows from `row` on with `N` input rows.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn few_rows<F: Format, const N: usize>(job: &Job<'_>, row: usize, start: usize) {
    // Not an argument, so that it is a constant. Others have no such order.
    let Some(layout) = F::LAYOUT.filter(|_| F::LEN == F::SUB) else { return };
    let panel = Panel { codes: job.panel.values.at(0), scales: job.panel.scales.at(0), mins: job.panel.mins.at(0) };
    let n_chunks = job.input.n_chunks();
    let per_chunk = CHUNK / F::LEN;
    let n_blocks = job.cols() / F::LEN;
    let mut blocks = Woven::new(layout, job.row_start(row));
    // SAFETY: the caller's promises; the scratch holds a chunk of sixteen rows.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); SUMS]; N];
        for chunk in 0..n_chunks {
            let inputs = Inputs::new::<F>(job.input, chunk, start).opaque();
            let first = blocks;
            for block in 0..per_chunk.min(n_blocks - chunk * per_chunk) {
                // For outliers, too.
                let at = block * ROWS;
                let panel = Panel { scales: panel.scales.add(at), mins: panel.mins.add(at), ..panel };
                scales::<F, _>(layout.scales, blocks, panel);
                let mut codes = Block([_mm512_setzero_si512(); WORDS]);
                planes::<F, _>(layout, blocks, &mut codes, || {});
                let mut products = inputs.begin::<N>(block, F::HAS_MIN, F::OFFSET.is_power_of_two());
                // Said one by one: so much is not unrolled.
                macro_rules! words {
                    ($($word:literal)*) => {
                        $(multiply!(inputs, block * F::LEN + 4 * $word, codes.0[$word], products);)*
                    };
                }
                words!(0 1 2 3 4 5 6 7);
                for line in 0..(ROWS * F::BYTES).div_ceil(64) {
                    _mm_prefetch::<_MM_HINT_T0>(blocks.start.wrapping_add(AHEAD + 64 * line).cast());
                }
                let min = if F::HAS_MIN { Some(_mm512_load_ps(panel.mins)) } else { None };
                let scale = _mm512_load_ps(panel.scales);
                inputs.add((block, F::SUB), scale, min, products, sums.as_mut_ptr().cast());
                blocks = blocks.advance::<F>(1);
            }
            outliers::<F>(job, panel, Codes::Woven(first), chunk, start, &mut sums);
        }
        for (index, sums) in sums.iter().enumerate() {
            put(job, start + index, [row, row + ROWS / 2], sums);
        }
    }
}
