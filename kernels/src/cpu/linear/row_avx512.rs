//! One input row with AVX-512: two weight rows at a time, far from each other.
//!
//! A core waits for memory more than it computes. It has more reads under way when it follows two streams, each of which
//! the hardware fetches ahead by itself up to the end of a page; prefetches carry it over that end.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::drive::{Engine, as_multiplied};
use super::format::{Format, Unpacked};
use super::input::{CHUNK, Outlier};
use super::job::Job;

/// How far ahead of a stream to fetch, in bytes: about half a page.
const AHEAD: usize = 2048;

/// Bytes from one stream to the other: other pages, and nowhere near a power of two, where they would wait for the same
/// bank of memory.
const APART: usize = 88 << 10;

/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and VNNI; the job keeps its promises and has one input row.
#[inline(always)]
pub(super) unsafe fn one_row<F: Format>(job: &Job<'_>) {
    let at_once = (2 * APART / job.row_bytes).max(1);
    for start in job.rows.clone().step_by(at_once) {
        let end = job.rows.end.min(start + at_once);
        let half = (end - start) / 2;
        // SAFETY: the caller's promises.
        unsafe {
            for row in start..start + half {
                rows::<F, 2>(job, [row, row + half]);
            }
            if (end - start) % 2 == 1 {
                rows::<F, 1>(job, [end - 1]);
            }
        }
    }
}

/// # Safety
/// As [`one_row`]; the rows are in the job.
#[inline(always)]
unsafe fn rows<F: Format, const N: usize>(job: &Job<'_>, rows: [usize; N]) {
    let chunk_bytes = CHUNK / F::LEN * F::BYTES;
    let input = job.input.quant_row(job.input_rows.start);
    let bytes = rows.map(|row| job.row_bytes(row));
    // SAFETY: the caller's promises; an input row has `n_chunks` whole chunks.
    unsafe {
        let mut sums = [Avx512::zero(); N];
        let mut outliers = [0.0_f32; N];
        for chunk in 0..job.input.n_chunks() {
            let input = input.advance(chunk);
            let mut weights = [Avx512::no_weights(); N];
            for (bytes, weights) in bytes.iter().zip(&mut weights) {
                let rest = &bytes[chunk * chunk_bytes..];
                for line in 0..chunk_bytes.div_ceil(64) {
                    _mm_prefetch::<_MM_HINT_T0>(rest.as_ptr().wrapping_add(AHEAD + 64 * line).cast());
                }
                Avx512::unpack::<F>(rest, weights);
            }
            for (sum, weights) in sums.iter_mut().zip(&weights) {
                *sum = Avx512::dot::<F>(*sum, weights, input);
            }
            if !input.has_outliers() {
                continue;
            }
            // Minima are there already: they multiply sums that the outliers are part of.
            for (sum, weights) in outliers.iter_mut().zip(&weights) {
                let mut plain = Unpacked::new();
                Avx512::spill(weights, &mut plain);
                input.outliers_of_chunk(|Outlier { at, value }| {
                    let code = as_multiplied::<Avx512, F>(plain.codes[at]) as f32;
                    *sum += plain.scales[at / F::SUB] * code * value;
                });
            }
        }
        for (row, (sum, outliers)) in rows.into_iter().zip(sums.into_iter().zip(outliers)) {
            *job.out.at(job.input_rows.start, row) = Avx512::total(sum) + outliers;
        }
    }
}
