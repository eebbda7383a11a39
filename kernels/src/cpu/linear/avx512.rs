//! AVX-512 with VNNI: `vpdpbusd` multiplies the raw unsigned codes with signed activations; minima take the offset
//! back through the sums of the activations.

use std::arch::asm;
use std::arch::x86_64::*;

use super::drive::{self, Engine};
use super::drive_floats;
pub(super) use super::flat_avx512::flat;
use super::format::{Format, Unpacked};
use super::input::{CHUNK, QuantRow};
use super::job::{Job, PANEL_ROWS};
use super::lanes_avx512::{self, Panel, Sixteen, Woven};
use super::layout::Layout;
use super::scalar::Float;
use super::transpose::transpose;
use super::unpack_avx512::{self, Chunk};
use crate::order::Order;

pub(crate) struct Avx512;

/// Input rows of a tile: 12 integer and 12 float accumulators of 32 registers.
const TILE: usize = 12;

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

/// For vector `j` of a chunk's four, the sub-block of each of its lanes (of 4 weights).
const SUB32: [[i32; 16]; 4] = lane_subs(8);
const SUB16: [[i32; 16]; 4] = lane_subs(4);

const fn lane_subs(lanes_per_sub: usize) -> [[i32; 16]; 4] {
    let mut out = [[0; 16]; 4];
    let mut lane = 0;
    while lane < 64 {
        out[lane / 16][lane % 16] = (lane / lanes_per_sub) as i32;
        lane += 1;
    }
    out
}

/// Each of eight activation scales twice.
const TWICE: [i32; 16] = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7];

// SAFETY (all functions): callers have the instructions; pointers are to whole chunks, as `Engine` demands.
impl Engine for Avx512 {
    type Weights = Chunk;
    type Sum = [__m512; 2];
    type Floats = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 16;
    const UNSIGNED: bool = true;

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        // SAFETY: see the impl.
        unsafe { [_mm512_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn no_weights() -> Chunk {
        // SAFETY: see the impl.
        unsafe { Chunk { codes: [_mm512_setzero_si512(); 4], scales: _mm512_setzero_ps(), mins: _mm512_setzero_ps() } }
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
            let mut sum = sum;
            let own = _mm512_zextps256_ps512(_mm256_loadu_ps(input.scales));
            let (own, sums, subs) = if F::SUB == 32 {
                (own, _mm512_zextps256_ps512(_mm256_loadu_ps(input.sums32)), &SUB32)
            } else {
                let twice = _mm512_loadu_si512(TWICE.as_ptr().cast());
                (_mm512_permutexvar_ps(twice, own), _mm512_loadu_ps(input.sums16), &SUB16)
            };
            let scales = _mm512_mul_ps(weights.scales, own);
            if drive::adds_mins::<Self, F>() {
                sum[1] = _mm512_fmadd_ps(weights.mins, sums, sum[1]);
            }
            for part in 0..4 {
                let x = _mm512_loadu_si512(input.codes.add(64 * part).cast());
                let products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights.codes[part], x);
                let scale = _mm512_permutexvar_ps(_mm512_loadu_si512(subs[part].as_ptr().cast()), scales);
                sum[part % 2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sum[part % 2]);
            }
            sum
        }
    }

    #[inline(always)]
    unsafe fn total(sum: Self::Sum) -> f32 {
        // SAFETY: see the impl.
        unsafe { _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1])) }
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
    unsafe fn pack<F: Format>(job: &Job<'_>, row: usize, n_rows: usize) {
        // SAFETY: see the impl.
        unsafe {
            match (F::LAYOUT, job.weight.order) {
                (Some(layout), Order::Sixteens) if n_rows == PANEL_ROWS => {
                    whole_panel::<F>(job, layout, Woven::new(job.row_start(row)));
                }
                _ => drive::pack::<Self, F>(job, row, n_rows),
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

/// Unpacks sixteen weight rows that lie side by side into the panel.
///
/// # Safety
/// The kernels' instructions; the blocks are those of the job's rows.
#[inline(always)]
unsafe fn whole_panel<F: Format>(job: &Job<'_>, layout: Layout, blocks: Woven) {
    let (codes, scales, mins) = (job.panel.values.at(0), job.panel.scales.at(0), job.panel.mins.at(0));
    let subs = F::LEN / F::SUB * PANEL_ROWS;
    // SAFETY: the caller's promises; the scratch holds all columns.
    unsafe {
        for block in 0..job.cols() / F::LEN {
            let panel = Panel {
                codes: codes.add(block * F::LEN * PANEL_ROWS),
                scales: scales.add(block * subs),
                mins: mins.add(block * subs),
            };
            lanes_avx512::unpack::<F, _>(layout, blocks.advance::<F>(block), panel, || {});
            if F::OFFSET > 0 {
                for sub in 0..F::LEN / F::SUB {
                    let scale = _mm512_load_ps(panel.scales.add(PANEL_ROWS * sub));
                    let min = _mm512_fnmadd_ps(_mm512_set1_ps(f32::from(F::OFFSET)), scale, _mm512_setzero_ps());
                    _mm512_store_ps(panel.mins.add(PANEL_ROWS * sub), min);
                }
            }
        }
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

/// The panel times `N` input rows from `start` on: 16 weight rows in the lanes, 4 columns an instruction.
///
/// # Safety
/// As the kernels; the input rows are there.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile<F: Format, const N: usize>(job: &Job<'_>, row: usize, n_rows: usize, start: usize) -> usize {
    let input = job.input.quant_row(start);
    let (stride, n_chunks) = (job.input.stride(), job.input.n_chunks());
    let (scale_stride, sums_stride) = (n_chunks * 8, n_chunks * CHUNK / F::SUB);
    let sums_of = if F::SUB == 32 { input.sums32 } else { input.sums16 };
    let (mut codes, mut x) = (job.panel.values.at(0).cast_const(), input.codes);
    let (scales, mins) = (job.panel.scales.at(0).cast_const(), job.panel.mins.at(0).cast_const());
    // SAFETY: the panel and `N` input rows have `cols / SUB` sub-blocks; instructions as the caller promised.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); N];
        let strides = std::array::from_fn(|half| opaque((2 * half + 1) * stride));
        for sub in 0..job.cols() / F::SUB {
            let mut products = [_mm512_setzero_si512(); N];
            for step in 0..F::SUB / 4 {
                let weights = _mm512_load_si512(codes.add(64 * step).cast());
                for (index, products) in products.iter_mut().enumerate() {
                    let four = x.add(far(&strides, index) + 4 * step).cast::<i32>().read_unaligned();
                    *products = _mm512_dpbusd_epi32(*products, weights, _mm512_set1_epi32(four));
                    // No instruction: it keeps the compiler from sorting by input row, which makes chains that wait.
                    asm!("/* {0} */", inout(zmm_reg) * products, options(nomem, nostack, preserves_flags));
                }
            }
            codes = codes.add(16 * F::SUB);
            x = x.add(F::SUB);
            let scale = _mm512_load_ps(scales.add(16 * sub));
            let min = _mm512_load_ps(mins.add(16 * sub));
            for (index, sum) in sums.iter_mut().enumerate() {
                let own = _mm512_set1_ps(*input.scales.add(index * scale_stride + sub * F::SUB / 32));
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[index]), _mm512_mul_ps(scale, own), *sum);
                if drive::adds_mins::<Avx512, F>() {
                    let own = _mm512_set1_ps(*sums_of.add(index * sums_stride + sub));
                    *sum = _mm512_fmadd_ps(min, own, *sum);
                }
            }
        }
        for (index, sum) in sums.into_iter().enumerate() {
            let mut lanes = [0.0; 16];
            _mm512_storeu_ps(lanes.as_mut_ptr(), sum);
            drive::put(job, start + index, row, n_rows, &lanes);
        }
    }
    N
}
