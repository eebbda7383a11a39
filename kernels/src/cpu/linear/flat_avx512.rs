//! One to sixteen input rows with AVX-512: sixteen weight rows at a time, each in a lane of its own.
//!
//! A chunk of sixteen rows is unpacked into a panel that stays in the first cache (see `lanes_avx512`), then met with up
//! to eight input rows at once: no sum crosses lanes, scales are applied once per sub-block for sixteen rows.
//!
//! One input row alone is not worth turning weights into columns, nor are two where stores are slow: `drive::flat`
//! multiplies row by row, as the weights that are left over. Both add the same numbers in the same order, so that a result
//! is the same to the bit however many input rows there are.
//!
//! A core waits for memory more than it computes, and has more reads under way when it follows two streams: eight of the
//! sixteen rows lie far from the other eight. While a panel is multiplied the next rows of both are fetched, in the order
//! they lie in memory.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{Avx512, opaque, sum_of_eight};
use super::drive;
use super::format::Format;
use super::input::{CHUNK, Input, Outlier};
use super::job::Job;
use super::lanes_avx512::{Blocks, Panel, ROWS, Sixteen, groups};
use super::woven_avx512::{self, Woven};
use crate::cpu::isa::works_in_halves;
use crate::order::Order;

/// Rows of a stream.
const HALF: usize = ROWS / 2;

/// Bytes from one stream to the other: other pages, and nowhere near a power of two, where they would wait for the same
/// bank of memory.
const APART: usize = 88 << 10;

/// About what unpacking a chunk takes, counted in products of it with an input row.
const UNPACKING: usize = 5;

/// Sums of a result: sub-block `n` is added to sum `n % SUMS`.
pub(super) const SUMS: usize = 8;

/// Input rows at once: as many integer sums, and what they are multiplied with, fit the registers.
const AT_ONCE: usize = 8;
/// Input rows of a call at most.
pub(super) const MOST: usize = 16;

/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and VNNI; the job keeps its promises.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn flat<F: Format>(job: &Job<'_>) {
    // SAFETY: the caller's promises; parts of the job are jobs.
    unsafe {
        let rest = job.rows.end - job.rows.len() % ROWS..job.rows.end;
        let whole = job.rows.start..rest.start;
        // Codebooks are looked up as fast for sixteen rows as for one.
        let row_by_row = match (F::PACKED, works_in_halves()) {
            (Some(_), _) => 0,
            (None, true) => 2,
            (None, false) => 1,
        };
        if job.weight.order == Order::Sixteens {
            woven_avx512::flat::<F>(job, whole);
        } else if job.input_rows.len() <= row_by_row {
            return drive::flat::<Avx512, F>(job);
        } else {
            lanes::<F>(job, whole);
        }
        if !rest.is_empty() {
            drive::flat::<Avx512, F>(&Job { rows: rest, input_rows: job.input_rows.clone(), ..*job });
        }
    }
}

/// Products of weight rows, which are whole sixteens.
///
/// # Safety
/// As [`flat`].
#[inline(always)]
unsafe fn lanes<F: Format>(job: &Job<'_>, whole: Range<usize>) {
    for start in job.input_rows.clone().step_by(MOST) {
        let input_rows = start..job.input_rows.end.min(start + MOST);
        let mut pairs = pairs(whole.clone(), job.row_bytes);
        let mut rows = pairs.next();
        if let Some(first) = rows {
            // Nobody fetched these while multiplying something before.
            Ahead(first.map(|row| job.row_start(row))).fetch((HALF * job.row_bytes).div_ceil(64));
        }
        while let Some(now) = rows {
            rows = pairs.next();
            // After the last, what follows in memory: a worker's next job is most likely there.
            let next = rows.unwrap_or(now.map(|row| row + HALF));
            // SAFETY: the caller's promises.
            unsafe { sixteen_rows::<F>(job, now, next, input_rows.clone()) };
        }
    }
}

/// Whole sixteens of `rows`, eight and eight: where each eight begins.
fn pairs(rows: Range<usize>, row_bytes: usize) -> impl Iterator<Item = [usize; 2]> {
    let at_once = (2 * APART / row_bytes.max(1)).max(ROWS) / ROWS * ROWS;
    rows.clone().step_by(at_once).flat_map(move |start| {
        let half = (rows.end - start).min(at_once) / 2;
        (start..start + half).step_by(HALF).map(move |row| [row, row + half])
    })
}

/// # Safety
/// As [`flat`]; there are eight rows from each of `rows` on, and at most [`MOST`] input rows.
#[inline(always)]
unsafe fn sixteen_rows<F: Format>(job: &Job<'_>, rows: [usize; 2], next: [usize; 2], input_rows: Range<usize>) {
    let panel = Panel { codes: job.panel.values.at(0), scales: job.panel.scales.at(0), mins: job.panel.mins.at(0) };
    let blocks = Blocks::new(rows.map(|row| job.row_start(row)), job.row_bytes);
    let count = input_rows.len();
    let n_blocks = job.cols() / F::LEN;
    let per_chunk = CHUNK / F::LEN;
    let mut ahead = Ahead(next.map(|row| job.row_start(row)));
    // While unpacking and while multiplying, as long as each takes: a core has few reads under way at a time.
    let lines = HALF * F::BYTES * per_chunk / 64;
    let n_groups = groups::<F>() * per_chunk;
    let per_group = (lines * UNPACKING).div_ceil((UNPACKING + count.min(AT_ONCE)) * n_groups);
    let per_sub = lines.saturating_sub(per_group * n_groups) / (CHUNK / F::SUB);
    let at_end = lines.saturating_sub(per_group * n_groups) % (CHUNK / F::SUB);
    // SAFETY: the caller's promises; the scratch holds a chunk of sixteen rows.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); SUMS]; MOST];
        for chunk in 0..n_blocks.div_ceil(per_chunk) {
            let first = chunk * per_chunk;
            let n_blocks = per_chunk.min(n_blocks - first);
            for block in 0..n_blocks {
                let subs = block * (F::LEN / F::SUB) * ROWS;
                blocks.advance::<F>(first + block).unpack::<F>(
                    Panel {
                        codes: panel.codes.add(block * F::LEN * ROWS),
                        scales: panel.scales.add(subs),
                        mins: panel.mins.add(subs),
                    },
                    || ahead.fetch(per_group),
                );
            }
            let n_subs = n_blocks * F::LEN / F::SUB;
            for first in (0..count).step_by(AT_ONCE) {
                let products = match (F::SUB, F::HAS_MIN, F::OFFSET.is_power_of_two()) {
                    (32, true, _) => products_of::<32, true, false>,
                    (32, false, true) => products_of::<32, false, true>,
                    (32, false, false) => products_of::<32, false, false>,
                    (_, true, _) => products_of::<16, true, false>,
                    (_, false, true) => products_of::<16, false, true>,
                    (_, false, false) => products_of::<16, false, false>,
                };
                let inputs = Inputs::new::<F>(job.input, chunk, input_rows.start + first);
                products((count - first).min(AT_ONCE))(
                    panel,
                    n_subs,
                    inputs,
                    sums[first..].as_mut_ptr().cast(),
                    ahead,
                    if first == 0 { per_sub } else { 0 },
                );
            }
            ahead.skip(n_subs * per_sub);
            ahead.fetch(at_end);
            outliers::<F>(job, panel, Codes::Panel(panel.codes), chunk, input_rows.start, &mut sums[..count]);
        }
        for (index, sums) in sums.iter().take(count).enumerate() {
            put(job, input_rows.start + index, rows, sums);
        }
    }
}

/// Writes the results of sixteen rows with an input row.
///
/// # Safety
/// As [`sixteen_rows`].
#[inline(always)]
pub(super) unsafe fn put(job: &Job<'_>, input_row: usize, rows: [usize; 2], sums: &[__m512; SUMS]) {
    // SAFETY: the caller's promises.
    unsafe {
        let sum = sum_of_eight(sums);
        let [first, second] = rows.map(|row| job.out.at(input_row, row));
        _mm256_storeu_ps(first, _mm512_castps512_ps256(sum));
        _mm256_storeu_ps(second, _mm512_extractf32x8_ps::<1>(sum));
    }
}

/// Adds the products of codes with those of every input row from a column on.
///
/// No function, as only functions that are compiled with the instructions may name their registers.
macro_rules! multiply {
    ($inputs:expr, $at:expr, $codes:expr, $products:expr) => {
        for (index, products) in $products.iter_mut().enumerate() {
            *products = _mm512_dpbusd_epi32(*products, $codes, _mm512_set1_epi32($inputs.four(index, $at)));
            // No instruction: it keeps the compiler from sorting by input row, which makes chains that wait.
            std::arch::asm!("/* {0} */", inout(zmm_reg) * products, options(nomem, nostack, preserves_flags));
        }
    };
}
pub(super) use multiply;

/// A chunk of some input rows.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    codes: *const i8,
    scales: *const f32,
    sums: *const f32,
    minus: *const i32,
    /// What codes are above the weights they stand for: a power of two as a shift, as other numbers are slower.
    offset: u32,
    /// Elements from row to row, once, three, five and seven times: of codes, scales and sums.
    strides: [[usize; 4]; 3],
}

impl Inputs {
    #[inline(always)]
    pub(super) fn new<F: Format>(input: &Input, chunk: usize, start: usize) -> Self {
        let row = input.quant_row(start).advance(chunk);
        let n_chunks = input.n_chunks();
        let odd = |stride: usize| [stride, 3 * stride, 5 * stride, 7 * stride];
        Self {
            codes: row.codes,
            scales: row.scales,
            sums: if F::SUB == 32 { row.sums32 } else { row.sums16 },
            minus: if F::SUB == 32 { row.minus32 } else { row.minus16 },
            offset: if F::OFFSET.is_power_of_two() { F::OFFSET.ilog2() } else { u32::from(F::OFFSET) },
            strides: [odd(input.stride()), odd(8 * n_chunks), odd(CHUNK / F::SUB * n_chunks)],
        }
    }

    /// Keeps the compiler from making addresses of its own of the strides.
    #[inline(always)]
    pub(super) fn opaque(self) -> Self {
        Self { strides: self.strides.map(|strides| strides.map(opaque)), ..self }
    }

    /// Sums of a sub-block's products begin with what takes the offset of raw codes back, where minima don't.
    #[inline(always)]
    pub(super) unsafe fn begin<const N: usize>(self, sub: usize, has_min: bool, shifts: bool) -> [__m512i; N] {
        // SAFETY: the caller has the instructions and so many input rows.
        unsafe {
            let mut products = [_mm512_setzero_si512(); N];
            if !has_min {
                let offset = _mm512_set1_epi32(self.offset.cast_signed());
                for (index, products) in products.iter_mut().enumerate() {
                    let minus = _mm512_set1_epi32(*self.minus.add(far(&self.strides[2], index) + sub));
                    *products =
                        if shifts { _mm512_sllv_epi32(minus, offset) } else { _mm512_mullo_epi32(minus, offset) };
                }
            }
            products
        }
    }

    /// Four codes of an input row from column `at` on.
    #[inline(always)]
    pub(super) unsafe fn four(self, index: usize, at: usize) -> i32 {
        // SAFETY: the caller's promise: they are there.
        unsafe { self.codes.add(far(&self.strides[0], index) + at).cast::<i32>().read_unaligned() }
    }

    /// Adds what the products of a sub-block of `len` weights stand for to the sums of results.
    #[inline(always)]
    pub(super) unsafe fn add<const N: usize>(
        self,
        (sub, len): (usize, usize),
        scale: __m512,
        min: Option<__m512>,
        products: [__m512i; N],
        sums: *mut __m512,
    ) {
        // SAFETY: the caller has the instructions, so many input rows and their sums.
        unsafe {
            for (index, product) in products.into_iter().enumerate() {
                let of_input = _mm512_set1_ps(*self.scales.add(far(&self.strides[1], index) + sub * len / 32));
                let at = sums.add(SUMS * index + sub % SUMS);
                let mut sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), _mm512_mul_ps(scale, of_input), *at);
                if let Some(min) = min {
                    let of_row = _mm512_set1_ps(*self.sums.add(far(&self.strides[2], index) + sub));
                    sum = _mm512_fmadd_ps(min, of_row, sum);
                }
                *at = sum;
            }
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

/// Where to fetch next: two streams.
#[derive(Clone, Copy)]
struct Ahead([*const u8; 2]);

impl Ahead {
    /// Fetches so many lines of each stream.
    #[inline(always)]
    fn fetch(&mut self, lines: usize) {
        for _ in 0..lines {
            for line in self.0 {
                // SAFETY: a hint; any address is allowed.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
            }
            self.skip(1);
        }
    }

    #[inline(always)]
    fn skip(&mut self, lines: usize) {
        self.0 = self.0.map(|line| line.wrapping_add(64 * lines));
    }
}

/// Products with `n` input rows, at most [`AT_ONCE`].
fn products_of<const SUB: usize, const MINS: bool, const SHIFTS: bool>(n: usize) -> Products {
    match n {
        1 => products::<SUB, MINS, SHIFTS, 1>,
        2 => products::<SUB, MINS, SHIFTS, 2>,
        3 => products::<SUB, MINS, SHIFTS, 3>,
        4 => products::<SUB, MINS, SHIFTS, 4>,
        5 => products::<SUB, MINS, SHIFTS, 5>,
        6 => products::<SUB, MINS, SHIFTS, 6>,
        7 => products::<SUB, MINS, SHIFTS, 7>,
        _ => products::<SUB, MINS, SHIFTS, 8>,
    }
}

/// # Safety
/// As [`flat`]; the panel is filled and the `N` input rows and their sums are there.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn products<const SUB: usize, const MINS: bool, const SHIFTS: bool, const N: usize>(
    panel: Panel,
    n_subs: usize,
    inputs: Inputs,
    sums: *mut __m512,
    mut ahead: Ahead,
    per_sub: usize,
) {
    let inputs = inputs.opaque();
    // SAFETY: the caller's promises.
    unsafe {
        for sub in 0..n_subs {
            ahead.fetch(per_sub);
            let mut products = inputs.begin::<N>(sub, MINS, SHIFTS);
            for step in 0..SUB / 4 {
                let weights = _mm512_load_si512(panel.codes.add(ROWS * SUB * sub + 64 * step).cast());
                multiply!(inputs, SUB * sub + 4 * step, weights, products);
            }
            let scale = _mm512_load_ps(panel.scales.add(ROWS * sub));
            let min = if MINS { Some(_mm512_load_ps(panel.mins.add(ROWS * sub))) } else { None };
            inputs.add((sub, SUB), scale, min, products, sums);
        }
    }
}

/// Where outliers find the codes of a chunk.
#[derive(Clone, Copy)]
pub(super) enum Codes {
    /// In a panel.
    Panel(*const u8),
    /// As they are stored.
    Woven(Woven),
}

/// Adds the products of a chunk with the outliers of the input rows, that of block `n` to sum `n`. Minima are there already:
/// they multiply sums that the outliers are part of.
///
/// # Safety
/// As [`products`], which were added before; the panel has the scales of the chunk.
#[inline(always)]
pub(super) unsafe fn outliers<F: Format>(
    job: &Job<'_>,
    panel: Panel,
    codes: Codes,
    chunk: usize,
    start: usize,
    sums: &mut [[__m512; SUMS]],
) {
    for (index, sums) in sums.iter_mut().enumerate() {
        let input = job.input.quant_row(start + index).advance(chunk);
        // SAFETY: the caller's promises; outliers lie below the columns, which the panel holds.
        unsafe {
            for Outlier { at, value } in input.outliers_of_chunk() {
                let codes = match codes {
                    Codes::Panel(codes) => {
                        let words = _mm512_load_si512(codes.add(ROWS * (at / 4 * 4)).cast());
                        let down = _mm512_srlv_epi32(words, _mm512_set1_epi32(8 * (at % 4) as i32));
                        _mm512_and_si512(down, _mm512_set1_epi32(0xFF))
                    }
                    Codes::Woven(blocks) => blocks.codes_of::<F>(at),
                };
                let codes = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(i32::from(F::OFFSET))));
                let scale = _mm512_load_ps(panel.scales.add(ROWS * (at / F::SUB)));
                let sum = &mut sums[at / 32];
                *sum = _mm512_fmadd_ps(_mm512_mul_ps(scale, codes), _mm512_set1_ps(value), *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_row_is_in_one_eight(first in 0_usize..99, sixteens in 0_usize..99, row_bytes in 0_usize..99_999) {
            let rows = first..first + ROWS * sixteens;
            let mut found: Vec<usize> =
                pairs(rows.clone(), row_bytes).flatten().flat_map(|row| row..row + HALF).collect();
            found.sort_unstable();
            prop_assert_eq!(found, rows.collect::<Vec<_>>());
        }
    }
}
