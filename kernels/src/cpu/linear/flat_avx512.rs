//! Few input rows with AVX-512: sixteen weight rows at a time, each in a lane of its own.
//!
//! A chunk of sixteen rows is unpacked into a panel that stays in the first cache (see `lanes_avx512`), then met with up
//! to eight input rows at once: no sum crosses lanes, scales are applied once per sub-block for sixteen rows. While a
//! panel is multiplied the next sixteen rows are fetched, in the order they lie in memory.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{Avx512, opaque};
use super::drive;
use super::format::Format;
use super::input::{CHUNK, Input, Outlier};
use super::job::Job;
use super::lanes_avx512::{Blocks, Panel, ROWS, unpack};
use super::layout::Layout;
use super::row_avx512::one_row;

/// Input rows at once: as many integer and as many float sums fit the registers.
const AT_ONCE: usize = 8;
/// Input rows of a call at most.
pub(super) const MOST: usize = 16;

/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and VNNI; the job keeps its promises.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn flat<F: Format>(job: &Job<'_>) {
    // SAFETY: the caller's promises; parts of the job are jobs.
    unsafe {
        let layout = match F::LAYOUT {
            _ if job.input_rows.len() == 1 => return one_row::<F>(job),
            None => return drive::flat::<Avx512, F>(job),
            Some(layout) => layout,
        };
        let rest = job.rows.end - job.rows.len() % ROWS..job.rows.end;
        for start in job.input_rows.clone().step_by(MOST) {
            let input_rows = start..job.input_rows.end.min(start + MOST);
            for row in (job.rows.start..rest.start).step_by(ROWS) {
                sixteen_rows::<F>(job, layout, row, input_rows.clone());
            }
        }
        if !rest.is_empty() {
            drive::flat::<Avx512, F>(&Job { rows: rest, input_rows: job.input_rows.clone(), ..*job });
        }
    }
}

/// # Safety
/// As [`flat`]; there are sixteen rows and at most [`MOST`] input rows.
#[inline(always)]
unsafe fn sixteen_rows<F: Format>(job: &Job<'_>, layout: Layout, row: usize, input_rows: Range<usize>) {
    let panel = Panel { codes: job.panel.values.at(0), scales: job.panel.scales.at(0), mins: job.panel.mins.at(0) };
    let count = input_rows.len();
    let n_blocks = job.cols() / F::LEN;
    let per_chunk = CHUNK / F::LEN;
    let blocks = Blocks::new(job.row_bytes(row).as_ptr(), job.row_bytes);
    // What follows the sixteen rows in memory: most likely the next ones.
    let mut ahead = Ahead(job.row_bytes(row).as_ptr().wrapping_add(ROWS * job.row_bytes));
    // SAFETY: the caller's promises; the scratch holds a chunk of sixteen rows.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); MOST];
        for chunk in 0..n_blocks.div_ceil(per_chunk) {
            let first = chunk * per_chunk;
            let n_blocks = per_chunk.min(n_blocks - first);
            for block in 0..n_blocks {
                ahead.fetch(ROWS * F::BYTES / 2);
                let subs = block * (F::LEN / F::SUB) * ROWS;
                unpack::<F>(
                    layout,
                    blocks.advance((first + block) * F::BYTES),
                    Panel {
                        codes: panel.codes.add(block * F::LEN * ROWS),
                        scales: panel.scales.add(subs),
                        mins: panel.mins.add(subs),
                    },
                );
            }
            let n_subs = n_blocks * F::LEN / F::SUB;
            // Half while unpacking, half while multiplying: a core has few reads under way at a time.
            let per_sub = ROWS * F::BYTES * F::SUB / F::LEN / 2 / count.div_ceil(AT_ONCE);
            for first in (0..count).step_by(AT_ONCE) {
                let products = match (F::SUB, drive::adds_mins::<Avx512, F>()) {
                    (32, true) => products_of::<32, true>,
                    (32, false) => products_of::<32, false>,
                    (_, true) => products_of::<16, true>,
                    (_, false) => products_of::<16, false>,
                };
                let inputs = Inputs::new::<F>(job.input, chunk, input_rows.start + first);
                products((count - first).min(AT_ONCE))(
                    panel,
                    n_subs,
                    inputs,
                    sums[first..].as_mut_ptr(),
                    ahead,
                    per_sub,
                );
                ahead.0 = ahead.0.wrapping_add(n_subs * per_sub);
            }
            outliers::<F>(job, panel, chunk, input_rows.start, &mut sums[..count]);
        }
        for (index, sum) in sums.iter().take(count).enumerate() {
            _mm512_storeu_ps(job.out.at(input_rows.start + index, row), *sum);
        }
    }
}

/// A chunk of some input rows.
#[derive(Clone, Copy)]
struct Inputs {
    codes: *const i8,
    scales: *const f32,
    sums: *const f32,
    /// Elements from row to row, once, three, five and seven times: of codes, scales and sums.
    strides: [[usize; 4]; 3],
}

impl Inputs {
    #[inline(always)]
    fn new<F: Format>(input: &Input, chunk: usize, start: usize) -> Self {
        let row = input.quant_row(start).advance(chunk);
        let n_chunks = input.n_chunks();
        let odd = |stride: usize| [stride, 3 * stride, 5 * stride, 7 * stride];
        Self {
            codes: row.codes,
            scales: row.scales,
            sums: if F::SUB == 32 { row.sums32 } else { row.sums16 },
            strides: [odd(input.stride()), odd(8 * n_chunks), odd(CHUNK / F::SUB * n_chunks)],
        }
    }
}

/// `index` strides below eight: what is added up is part of the address of a load.
#[inline(always)]
fn far(odd_strides: &[usize; 4], index: usize) -> usize {
    if index == 0 {
        return 0;
    }
    let twos = index.trailing_zeros();
    odd_strides[(index >> twos) / 2] << twos
}

/// Adds the products of a chunk, so many sub-blocks of it, with input rows to their sums.
type Products = unsafe fn(Panel, usize, Inputs, *mut __m512, Ahead, usize);

/// Where to fetch next.
#[derive(Clone, Copy)]
struct Ahead(*const u8);

impl Ahead {
    /// Fetches the lines in which the next `n_bytes` begin.
    #[inline(always)]
    unsafe fn fetch(&mut self, n_bytes: usize) {
        let end = self.0.wrapping_add(n_bytes);
        let mut line = self.0.map_addr(|address| address.next_multiple_of(64));
        while line < end {
            // SAFETY: a hint; any address is allowed.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
            line = line.wrapping_add(64);
        }
        self.0 = end;
    }
}

/// Products with `n` input rows, at most [`AT_ONCE`].
fn products_of<const SUB: usize, const MINS: bool>(n: usize) -> Products {
    match n {
        1 => products::<SUB, MINS, 1>,
        2 => products::<SUB, MINS, 2>,
        3 => products::<SUB, MINS, 3>,
        4 => products::<SUB, MINS, 4>,
        5 => products::<SUB, MINS, 5>,
        6 => products::<SUB, MINS, 6>,
        7 => products::<SUB, MINS, 7>,
        _ => products::<SUB, MINS, 8>,
    }
}

/// # Safety
/// As [`flat`]; the panel is filled and the `N` input rows and their sums are there.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn products<const SUB: usize, const MINS: bool, const N: usize>(
    panel: Panel,
    n_subs: usize,
    inputs: Inputs,
    sums: *mut __m512,
    mut ahead: Ahead,
    per_sub: usize,
) {
    let strides = inputs.strides.map(|strides| strides.map(opaque));
    // SAFETY: the caller's promises.
    unsafe {
        let mut own: [__m512; N] = std::array::from_fn(|index| *sums.add(index));
        for sub in 0..n_subs {
            ahead.fetch(per_sub);
            let mut products = [_mm512_setzero_si512(); N];
            let (codes, x) = (panel.codes.add(ROWS * SUB * sub), inputs.codes.add(SUB * sub));
            for step in 0..SUB / 4 {
                let weights = _mm512_load_si512(codes.add(64 * step).cast());
                for (index, products) in products.iter_mut().enumerate() {
                    let four = x.add(far(&strides[0], index) + 4 * step).cast::<i32>().read_unaligned();
                    *products = _mm512_dpbusd_epi32(*products, weights, _mm512_set1_epi32(four));
                    // No instruction: it keeps the compiler from sorting by input row, which makes chains that wait.
                    asm!("/* {0} */", inout(zmm_reg) * products, options(nomem, nostack, preserves_flags));
                }
            }
            let scale = _mm512_load_ps(panel.scales.add(ROWS * sub));
            let min = _mm512_load_ps(panel.mins.add(ROWS * sub));
            for (index, own) in own.iter_mut().enumerate() {
                let of_input = _mm512_set1_ps(*inputs.scales.add(far(&strides[1], index) + sub * SUB / 32));
                *own = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[index]), _mm512_mul_ps(scale, of_input), *own);
                if MINS {
                    let sum = _mm512_set1_ps(*inputs.sums.add(far(&strides[2], index) + sub));
                    *own = _mm512_fmadd_ps(min, sum, *own);
                }
            }
        }
        for (index, own) in own.into_iter().enumerate() {
            *sums.add(index) = own;
        }
    }
}

/// Adds the products of a chunk with the outliers of the input rows. Minima are there already: they multiply sums that
/// the outliers are part of.
///
/// # Safety
/// As [`products`], which were added before.
#[inline(always)]
unsafe fn outliers<F: Format>(job: &Job<'_>, panel: Panel, chunk: usize, start: usize, sums: &mut [__m512]) {
    for (index, sum) in sums.iter_mut().enumerate() {
        let input = job.input.quant_row(start + index).advance(chunk);
        // SAFETY: the caller's promises; outliers lie below the columns, which the panel holds.
        unsafe {
            input.outliers_of_chunk(|Outlier { at, value }| {
                let words = _mm512_load_si512(panel.codes.add(ROWS * (at / 4 * 4)).cast());
                let down = _mm512_srlv_epi32(words, _mm512_set1_epi32(8 * (at % 4) as i32));
                let codes = _mm512_cvtepi32_ps(_mm512_and_si512(down, _mm512_set1_epi32(0xFF)));
                let scale = _mm512_load_ps(panel.scales.add(ROWS * (at / F::SUB)));
                *sum = _mm512_fmadd_ps(_mm512_mul_ps(scale, codes), _mm512_set1_ps(value), *sum);
            });
        }
    }
}
