//! AVX-512 with VNNI: `vpdpbusd` multiplies the raw unsigned codes with signed activations; sums begin at what takes the
//! codes' offset back.

use std::arch::asm;
use std::arch::x86_64::*;

use super::drive::{self, Engine};
use super::drive_floats;
pub(super) use super::flat_avx512::flat;
use super::format::{Format, Unpacked};
use super::input::{CHUNK, QuantRow};
use super::job::{Job, PANEL_ROWS};
use super::lanes_avx512::{Panel, Sixteen};
use super::scalar::Float;
use super::transpose::transpose;
use super::unpack_avx512::{self, Chunk};
use super::woven_avx512::Woven;
use crate::order::Order;

pub(crate) struct Avx512;

/// Panels of a tile: a load of input codes serves both. Zen 4 loads one vector a cycle, as many as it multiplies.
const PANELS: usize = 2;
/// Input rows of a tile: 12 integer and 12 float accumulators of 32 registers.
const TILE: usize = 6;

macro_rules! kernel {
    ($name:ident<$T:ident: $bound:path> => $body:expr) => {
        /// # Safety
        /// The processor has AVX-512 F, BW, VL, DQ and VNNI; the job keeps its promises.
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        pub(crate) unsafe fn $name<$T: $bound>(job: &Job<'_>) {
            // SAFETY: the caller's promises.
            unsafe { $body(job) }
        }
    };
}
kernel!(tall<F: Format> => drive::tall::<Avx512, F>);
kernel!(floats_flat<T: Float> => drive_floats::floats_flat::<Avx512, T>);
kernel!(floats_tall<T: Float> => drive_floats::floats_tall::<Avx512, T, 16>);

/// Where the sum of sub-block `n`'s products stands among those of sixteen columns each (see [`sums_of_sixteen`]): of 16
/// columns, or of the first and of the last 16 of 32.
const PLACES16: [i32; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
const PLACES32: [i32; 16] = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15];

/// Each of eight activation scales twice.
const TWICE: [i32; 16] = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7];

// SAFETY (all functions): callers have the instructions; pointers are to whole chunks, as `Engine` demands.
impl Engine for Avx512 {
    type Weights = Chunk;
    /// Sub-blocks `n`, `n + 8`, `n + 16`, ... in lane `n`, and after those of a chunk the outlier of its block `n`.
    type Sum = __m256;
    type Floats = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 16;
    const PANELS: usize = PANELS;
    const UNSIGNED: bool = true;

    #[inline(always)]
    fn takes_offset_back<F: Format>() -> bool {
        false
    }

    #[inline(always)]
    fn adds_outliers<F: Format>() -> bool {
        true
    }

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        // SAFETY: see the impl.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn no_weights() -> Chunk {
        // SAFETY: see the impl.
        unsafe { Chunk::new() }
    }

    #[inline(always)]
    unsafe fn unpack<F: Format>(bytes: &[u8], out: &mut Chunk) {
        // SAFETY: see the impl.
        unsafe { unpack_avx512::unpack::<F>(bytes, out) };
    }

    #[inline(always)]
    unsafe fn spill(weights: &Chunk, out: &mut Unpacked) {
        // SAFETY: see the impl; the arrays are aligned.
        unsafe {
            for (part, codes) in weights.codes.into_iter().enumerate() {
                _mm512_store_si512(out.codes.as_mut_ptr().add(64 * part).cast(), codes);
            }
            _mm512_store_ps(out.scales.as_mut_ptr(), weights.scales);
            _mm512_store_ps(out.mins.as_mut_ptr(), weights.mins);
        }
    }

    #[inline(always)]
    unsafe fn dot<F: Format>(sum: Self::Sum, weights: &Chunk, input: QuantRow) -> Self::Sum {
        // SAFETY: see the impl.
        unsafe {
            let products = |part: usize| {
                let x = _mm512_loadu_si512(input.codes.add(64 * part).cast());
                _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights.codes[part], x)
            };
            let sums = sums_of_sixteen([products(0), products(1), products(2), products(3)]);
            let own = _mm256_loadu_ps(input.scales);
            if F::SUB == 32 {
                let halves = _mm512_permutexvar_epi32(_mm512_loadu_si512(PLACES32.as_ptr().cast()), sums);
                let sums = _mm256_add_epi32(_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves));
                let sums = _mm256_add_epi32(
                    sums,
                    _mm512_castsi512_si256(begin::<F>(_mm512_castsi256_si512(_mm256_loadu_si256(
                        input.minus32.cast(),
                    )))),
                );
                let [scales, mins] = [weights.scales, weights.mins].map(|lanes| _mm512_castps512_ps256(lanes));
                return add::<F>(sum, sums, scales, mins, own, _mm256_loadu_ps(input.sums32));
            }
            let sums = _mm512_permutexvar_epi32(_mm512_loadu_si512(PLACES16.as_ptr().cast()), sums);
            let sums = _mm512_add_epi32(sums, begin::<F>(_mm512_loadu_si512(input.minus16.cast())));
            let own = _mm512_permutexvar_ps(_mm512_loadu_si512(TWICE.as_ptr().cast()), _mm512_castps256_ps512(own));
            let first = |lanes: __m512| _mm512_castps512_ps256(lanes);
            let sum = add::<F>(
                sum,
                _mm512_castsi512_si256(sums),
                first(weights.scales),
                first(weights.mins),
                first(own),
                _mm256_loadu_ps(input.sums16),
            );
            let last = |lanes: __m512| _mm512_extractf32x8_ps::<1>(lanes);
            add::<F>(
                sum,
                _mm512_extracti64x4_epi64::<1>(sums),
                last(weights.scales),
                last(weights.mins),
                last(own),
                _mm256_loadu_ps(input.sums16.add(8)),
            )
        }
    }

    #[inline(always)]
    unsafe fn add_outliers<F: Format>(sum: Self::Sum, weights: &Chunk, _: *const u8, input: QuantRow) -> Self::Sum {
        // SAFETY: see the impl; a chunk has eight blocks of 32, of which the flags say which have an outlier.
        unsafe {
            let places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(input.places.cast()));
            // The word of each, counted in two vectors of codes; then its byte.
            let of_block = _mm256_setr_epi32(0, 8, 16, 24, 0, 8, 16, 24);
            let words = _mm512_castsi256_si512(_mm256_add_epi32(_mm256_srli_epi32::<2>(places), of_block));
            // No closure: that would not be compiled with the instructions.
            let first = _mm512_permutex2var_epi32(weights.codes[0], words, weights.codes[1]);
            let last = _mm512_permutex2var_epi32(weights.codes[2], words, weights.codes[3]);
            let words = _mm256_blend_epi32::<0xF0>(_mm512_castsi512_si256(first), _mm512_castsi512_si256(last));
            let shifts = _mm256_slli_epi32::<3>(_mm256_and_si256(places, _mm256_set1_epi32(3)));
            let codes = _mm256_and_si256(_mm256_srlv_epi32(words, shifts), _mm256_set1_epi32(0xFF));
            let codes = _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(i32::from(F::OFFSET))));
            let scales = if F::SUB == 32 {
                weights.scales
            } else {
                let subs =
                    _mm256_add_epi32(_mm256_srli_epi32::<4>(places), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
                _mm512_permutexvar_ps(_mm512_castsi256_si512(subs), weights.scales)
            };
            let weights = _mm256_mul_ps(_mm512_castps512_ps256(scales), codes);
            _mm256_mask3_fmadd_ps(weights, _mm256_loadu_ps(input.outliers), sum, *input.flags)
        }
    }

    #[inline(always)]
    unsafe fn total(sum: Self::Sum) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            // As [`sum_of_eight`].
            let four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn interleave(
        rows: &[Unpacked; PANEL_ROWS],
        subs: usize,
        codes: *mut u32,
        scales: *mut f32,
        mins: *mut f32,
    ) {
        // SAFETY: see the impl; whole vectors of arrays that lie `size_of::<Unpacked>()` bytes apart.
        unsafe {
            let columns = |rows: *const u8, n_fours: usize, out: *mut u32| {
                transpose(rows, size_of::<Unpacked>(), n_fours, |column, words| {
                    _mm512_store_si512(out.add(16 * column).cast(), words);
                });
            };
            columns(rows[0].codes.as_ptr(), CHUNK / 16, codes);
            columns(rows[0].scales.as_ptr().cast(), subs / 4, scales.cast());
            columns(rows[0].mins.as_ptr().cast(), subs / 4, mins.cast());
        }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: a hint; any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }

    #[inline(always)]
    unsafe fn pack<F: Format>(job: &Job<'_>, number: usize, row: usize, n_rows: usize) {
        // SAFETY: see the impl.
        unsafe {
            match (F::LAYOUT, job.weight.order) {
                (Some(layout), Order::Sixteens) if n_rows == PANEL_ROWS => {
                    whole_panel::<F>(job, number, Woven::new(layout, job.row_start(row)));
                }
                _ => drive::pack::<Self, F>(job, number, row, n_rows),
            }
        }
    }

    #[inline(always)]
    unsafe fn tiles<F: Format>(job: &Job<'_>, row: usize, n_rows: usize) {
        let mut start = job.input_rows.start;
        while start < job.input_rows.end {
            let left = job.input_rows.end - start;
            // SAFETY: see the impl; the tile's input rows are inside the job.
            start += unsafe {
                if left >= TILE {
                    tile::<F, TILE>(job, row, n_rows, start)
                } else if left >= 4 {
                    tile::<F, 4>(job, row, n_rows, start)
                } else {
                    tile::<F, 1>(job, row, n_rows, start)
                }
            };
        }
    }

    #[inline(always)]
    unsafe fn floats_zero() -> Self::Floats {
        // SAFETY: see the impl.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        // SAFETY: see the impl.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load<T: Float>(bytes: *const u8) -> Self::Floats {
        // SAFETY: see the impl.
        unsafe {
            if T::BYTES == 4 {
                _mm512_loadu_ps(bytes.cast())
            } else if T::IS_HALF {
                _mm512_cvtph_ps(_mm256_loadu_si256(bytes.cast()))
            } else {
                let upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper))
            }
        }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, sum: Self::Floats) -> Self::Floats {
        // SAFETY: see the impl.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn store(values: Self::Floats, out: *mut f32) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(out, values) };
    }
}

/// Unpacks sixteen weight rows that lie side by side into a panel.
///
/// # Safety
/// The kernels' instructions; the blocks are those of the job's rows.
#[inline(always)]
unsafe fn whole_panel<F: Format>(job: &Job<'_>, number: usize, blocks: Woven) {
    let (codes, scales, mins) = drive::panel::<Avx512, F>(job, number);
    let subs = F::LEN / F::SUB * PANEL_ROWS;
    // SAFETY: the caller's promises; the scratch holds all columns.
    unsafe {
        for block in 0..job.cols() / F::LEN {
            let panel = Panel {
                codes: codes.add(block * F::LEN * PANEL_ROWS),
                scales: scales.add(block * subs),
                mins: mins.add(block * subs),
            };
            blocks.advance::<F>(block).unpack::<F>(panel, || {});
        }
    }
}

/// Where sums of products with raw codes begin, from negated sums of the other side's codes.
#[inline(always)]
unsafe fn begin<F: Format>(minus: __m512i) -> __m512i {
    // SAFETY: the caller has the instructions.
    unsafe {
        if F::OFFSET == 0 {
            _mm512_setzero_si512()
        } else if F::OFFSET.is_power_of_two() {
            _mm512_sllv_epi32(minus, _mm512_set1_epi32(F::OFFSET.trailing_zeros().cast_signed()))
        } else {
            _mm512_mullo_epi32(minus, _mm512_set1_epi32(i32::from(F::OFFSET)))
        }
    }
}

/// Sums of four each of the products of a chunk's 64 columns times four: element `4 * n + part` belongs to columns
/// `64 * part + 16 * n` on.
#[inline(always)]
unsafe fn sums_of_sixteen(products: [__m512i; 4]) -> __m512i {
    // SAFETY: the caller has the instructions.
    unsafe {
        let pairs = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (first, last) = (pairs(products[0], products[1]), pairs(products[2], products[3]));
        _mm512_add_epi32(_mm512_unpacklo_epi64(first, last), _mm512_unpackhi_epi64(first, last))
    }
}

/// Adds eight sub-blocks, in the order and with the roundings of the kernel for several input rows
/// (`flat_avx512::products`), so that results are the same to the bit.
#[inline(always)]
unsafe fn add<F: Format>(
    sum: __m256,
    products: __m256i,
    scales: __m256,
    mins: __m256,
    own: __m256,
    sums: __m256,
) -> __m256 {
    // SAFETY: the caller has the instructions.
    unsafe {
        let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_mul_ps(scales, own), sum);
        if F::HAS_MIN { _mm256_fmadd_ps(mins, sums, sum) } else { sum }
    }
}

/// The sum of eight, by the tree that [`Avx512::total`] adds its lanes by.
#[inline(always)]
pub(super) unsafe fn sum_of_eight(sums: &[__m512; 8]) -> __m512 {
    // SAFETY: the caller has the instructions.
    unsafe {
        let pair = |n: usize| _mm512_add_ps(sums[n], sums[n + 4]);
        _mm512_add_ps(_mm512_add_ps(pair(0), pair(2)), _mm512_add_ps(pair(1), pair(3)))
    }
}

/// A number that the compiler takes for unrelated to the one given.
#[inline(always)]
pub(super) fn opaque(number: usize) -> usize {
    let mut number = number;
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    number
}

/// `index` strides, of which the odd multiples are given: the rest is part of the address of a load. Left to itself, the
/// compiler adds up stride by stride and the tile waits for the front end.
#[inline(always)]
fn far(odd_strides: &[usize; TILE / 2], index: usize) -> usize {
    if index == 0 {
        return 0;
    }
    let twos = index.trailing_zeros();
    odd_strides[(index >> twos) / 2] << twos
}

/// Panels times `N` input rows from `start` on: 16 weight rows each in the lanes, 4 columns an instruction.
///
/// # Safety
/// As the kernels; the input rows are there.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile<F: Format, const N: usize>(job: &Job<'_>, row: usize, n_rows: usize, start: usize) -> usize {
    let input = job.input.quant_row(start);
    let (stride, n_chunks) = (job.input.stride(), job.input.n_chunks());
    let (scale_stride, sums_stride) = (n_chunks * 8, n_chunks * CHUNK / F::SUB);
    let (sums_of, minus) = if F::SUB == 32 { (input.sums32, input.minus32) } else { (input.sums16, input.minus16) };
    let (mut codes, scales, mins) = drive::panel::<Avx512, F>(job, 0);
    let (second, second_sub) = (16 * CHUNK * n_chunks, 16 * CHUNK * n_chunks / F::SUB);
    let mut x = input.codes;
    // SAFETY: the panels and `N` input rows have `cols / SUB` sub-blocks; instructions as the caller promised.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); PANELS]; N];
        let strides = std::array::from_fn(|half| opaque((2 * half + 1) * stride));
        for sub in 0..job.cols() / F::SUB {
            let mut products = [[_mm512_setzero_si512(); PANELS]; N];
            if F::OFFSET > 0 {
                for (index, products) in products.iter_mut().enumerate() {
                    *products = [begin::<F>(_mm512_set1_epi32(*minus.add(index * sums_stride + sub))); PANELS];
                }
            }
            for step in 0..F::SUB / 4 {
                let weights = codes.add(64 * step);
                let weights = [0, second].map(|panel| _mm512_load_si512(weights.add(panel).cast()));
                for (index, products) in products.iter_mut().enumerate() {
                    let four = x.add(far(&strides, index) + 4 * step).cast::<i32>().read_unaligned();
                    let four = _mm512_set1_epi32(four);
                    for (products, weights) in products.iter_mut().zip(weights) {
                        *products = _mm512_dpbusd_epi32(*products, weights, four);
                        // No instruction: it keeps the compiler from sorting by input row, which makes chains that wait.
                        asm!("/* {0} */", inout(zmm_reg) * products, options(nomem, nostack, preserves_flags));
                    }
                }
            }
            codes = codes.add(16 * F::SUB);
            x = x.add(F::SUB);
            let scale = [0, second_sub].map(|panel| _mm512_load_ps(scales.add(panel + 16 * sub)));
            let min = [0, second_sub].map(|panel| _mm512_load_ps(mins.add(panel + 16 * sub)));
            for (index, sums) in sums.iter_mut().enumerate() {
                let own = _mm512_set1_ps(*input.scales.add(index * scale_stride + sub * F::SUB / 32));
                let of_row = _mm512_set1_ps(*sums_of.add(index * sums_stride + sub));
                for (panel, sum) in sums.iter_mut().enumerate() {
                    let product = _mm512_cvtepi32_ps(products[index][panel]);
                    *sum = _mm512_fmadd_ps(product, _mm512_mul_ps(scale[panel], own), *sum);
                    if F::HAS_MIN {
                        *sum = _mm512_fmadd_ps(min[panel], of_row, *sum);
                    }
                }
            }
        }
        for (index, sums) in sums.into_iter().enumerate() {
            for (panel, sum) in sums.into_iter().enumerate() {
                let mut lanes = [0.0; 16];
                _mm512_storeu_ps(lanes.as_mut_ptr(), sum);
                if n_rows > 16 * panel {
                    drive::put(job, start + index, row + 16 * panel, (n_rows - 16 * panel).min(16), &lanes);
                }
            }
        }
    }
    N
}
