//! 64-bit Arm with the matrix instructions for int8: `smmla` multiplies two weight rows by two input rows, eight columns
//! at a time.
//!
//! Two to sixteen input rows meet pairs of weight rows as they come, more of them panels in the order [k / 8][row][8], of
//! which a vector is a pair of rows. A single input row would leave half of each product unused: `sdot` takes it.
//! `smmla` is written as assembly: its intrinsic is not stable.

use std::arch::aarch64::*;
use std::arch::asm;

use super::drive::{self, Engine};
use super::format::{Format, Unpacked};
use super::input::{CHUNK, Outlier, QuantRow};
use super::job::Job;
use super::neon::Neon;

/// Vectors of this set outside of products.
type Set = Neon<true, true>;

/// Input rows met with one unpacked chunk.
const FLAT_ROWS: usize = 16;

/// Weight rows of a panel, in pairs.
const PANEL_PAIRS: usize = Set::ROWS / 2;

/// Adds the products of two rows `a` of eight numbers with two rows `b`: sums [row of a][row of b].
///
/// # Safety
/// The processor has the matrix instructions for int8.
#[inline(always)]
pub(crate) unsafe fn smmla(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: registers only; the instruction is there by the caller's promise.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Sixteen columns of two rows as two steps of eight.
///
/// # Safety
/// Both are there.
#[inline(always)]
unsafe fn steps(rows: [*const i8; 2]) -> [int8x16_t; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        // No `map` here nor below: it stays a call, around which all sums are stored and loaded again.
        let (first, second) = (vreinterpretq_s64_s8(vld1q_s8(rows[0])), vreinterpretq_s64_s8(vld1q_s8(rows[1])));
        [vreinterpretq_s8_s64(vzip1q_s64(first, second)), vreinterpretq_s8_s64(vzip2q_s64(first, second))]
    }
}

/// What belongs to two input rows, for each of two weight rows.
///
/// # Safety
/// Both are there.
#[inline(always)]
unsafe fn of_inputs(values: [*const f32; 2]) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vcombine_f32(vld1_dup_f32(values[0]), vld1_dup_f32(values[1])) }
}

/// What belongs to two weight rows, for each of two input rows.
///
/// # Safety
/// Two numbers are there.
#[inline(always)]
unsafe fn of_weights(values: *const f32) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        // One load and no more; weights of pairs begin at multiples of eight bytes.
        vreinterpretq_f32_u64(vld1q_dup_u64(values.cast()))
    }
}

/// `PAIRS` pairs of the `count` input rows from `start` on; the last row stands for one that is missing.
#[inline(always)]
fn input_pairs<const PAIRS: usize>(job: &Job<'_>, start: usize, count: usize) -> [[QuantRow; 2]; PAIRS] {
    std::array::from_fn(|pair| [0, 1].map(|second| job.input.quant_row(start + (2 * pair + second).min(count - 1))))
}

/// The sums of codes that minima multiply.
#[inline(always)]
fn sums_of<F: Format>(input: QuantRow) -> *const f32 {
    if F::SUB == 32 { input.sums32 } else { input.sums16 }
}

/// A chunk of two weight rows.
#[repr(C, align(64))]
struct Pair {
    /// Values, eight of the first row and eight of the second in turn.
    codes: [i8; 2 * CHUNK],
    /// Of the first row and of the second in turn.
    scales: [f32; 32],
    mins: [f32; 32],
}

impl Pair {
    /// # Safety
    /// The processor has NEON.
    #[inline(always)]
    unsafe fn set<F: Format>(&mut self, rows: &[Unpacked; 2]) {
        // SAFETY: whole vectors of arrays: twice as many numbers go in as each row has.
        unsafe {
            let offset = vreinterpretq_s8_u8(vdupq_n_u8(F::OFFSET));
            for at in (0..CHUNK).step_by(16) {
                let both = steps([rows[0].codes.as_ptr().add(at).cast(), rows[1].codes.as_ptr().add(at).cast()]);
                for (step, codes) in both.into_iter().enumerate() {
                    vst1q_s8(self.codes.as_mut_ptr().add(2 * at + 16 * step), vsubq_s8(codes, offset));
                }
            }
            let turns = |first: &[f32; 16], second: &[f32; 16], out: &mut [f32; 32]| {
                for at in (0..CHUNK / F::SUB).step_by(4) {
                    let (first, second) = (vld1q_f32(first.as_ptr().add(at)), vld1q_f32(second.as_ptr().add(at)));
                    vst1q_f32(out.as_mut_ptr().add(2 * at), vzip1q_f32(first, second));
                    vst1q_f32(out.as_mut_ptr().add(2 * at + 4), vzip2q_f32(first, second));
                }
            };
            turns(&rows[0].scales, &rows[1].scales, &mut self.scales);
            if F::HAS_MIN {
                turns(&rows[0].mins, &rows[1].mins, &mut self.mins);
            }
        }
    }

    /// Adds the products of a chunk with two input rows: sums [input row][weight row].
    ///
    /// # Safety
    /// The processor has the matrix instructions; the inputs go on for a chunk.
    #[inline(always)]
    unsafe fn dot<F: Format>(&self, sum: float32x4_t, inputs: [QuantRow; 2]) -> float32x4_t {
        let mut sum = sum;
        // SAFETY: the caller's promise.
        unsafe {
            for sub in 0..CHUNK / F::SUB {
                let mut total = vdupq_n_s32(0);
                for at in (sub * F::SUB..(sub + 1) * F::SUB).step_by(16) {
                    let x = steps([inputs[0].codes.add(at), inputs[1].codes.add(at)]);
                    for (step, x) in x.into_iter().enumerate() {
                        total = smmla(total, x, vld1q_s8(self.codes.as_ptr().add(2 * at + 16 * step)));
                    }
                }
                let block = sub * F::SUB / 32;
                let own = of_inputs([inputs[0].scales.add(block), inputs[1].scales.add(block)]);
                let scale = vmulq_f32(of_weights(self.scales.as_ptr().add(2 * sub)), own);
                sum = vfmaq_f32(sum, vcvtq_f32_s32(total), scale);
                if F::HAS_MIN {
                    let own = of_inputs([sums_of::<F>(inputs[0]).add(sub), sums_of::<F>(inputs[1]).add(sub)]);
                    sum = vfmaq_f32(sum, of_weights(self.mins.as_ptr().add(2 * sub)), own);
                }
            }
        }
        sum
    }
}

/// Few input rows.
///
/// # Safety
/// The processor has the matrix instructions for int8 and `job` keeps its promises.
#[inline(always)]
pub(super) unsafe fn flat<F: Format>(job: &Job<'_>) {
    // SAFETY: the caller's promises.
    unsafe {
        if job.input_rows.len() == 1 {
            return drive::flat::<Set, F>(job);
        }
        for start in job.input_rows.clone().step_by(FLAT_ROWS) {
            match (job.input_rows.end - start).min(FLAT_ROWS) {
                count @ ..=2 => flat_pairs::<F, 1>(job, start, count),
                count => flat_pairs::<F, { FLAT_ROWS / 2 }>(job, start, count),
            }
        }
    }
}

#[inline(always)]
unsafe fn flat_pairs<F: Format, const PAIRS: usize>(job: &Job<'_>, start: usize, count: usize) {
    let chunk_bytes = CHUNK / F::LEN * F::BYTES;
    let inputs = input_pairs::<PAIRS>(job, start, count);
    let n_pairs = count.div_ceil(2).min(PAIRS);
    let mut weights = [const { Unpacked::new() }; 2];
    let mut pair = Pair { codes: [0; 2 * CHUNK], scales: [0.0; 32], mins: [0.0; 32] };
    for row in job.rows.clone().step_by(2) {
        // A last row without a neighbour is its own.
        let rows = [row, (row + 1).min(job.rows.end - 1)];
        // SAFETY: the caller's promises; an input row has `n_chunks` whole chunks, results are the job's.
        unsafe {
            let mut sums = [vdupq_n_f32(0.0); PAIRS];
            let mut outliers = [[[0.0_f32; 2]; 2]; PAIRS];
            for chunk in 0..job.input.n_chunks() {
                for (row, weights) in rows.into_iter().zip(&mut weights) {
                    let rest = &job.row_bytes(row)[chunk * chunk_bytes..];
                    for line in 0..chunk_bytes.div_ceil(64) {
                        Set::prefetch(rest.as_ptr().wrapping_add(2048 + 64 * line));
                    }
                    Set::unpack::<F>(rest, weights);
                }
                pair.set::<F>(&weights);
                for ((sum, outliers), inputs) in sums.iter_mut().zip(&mut outliers).zip(inputs).take(n_pairs) {
                    let inputs = [inputs[0].advance(chunk), inputs[1].advance(chunk)];
                    *sum = pair.dot::<F>(*sum, inputs);
                    for (input, outliers) in inputs.into_iter().zip(outliers) {
                        for Outlier { at, value } in input.outliers_of_chunk() {
                            for (weights, sum) in weights.iter().zip(outliers.iter_mut()) {
                                let code = drive::as_multiplied::<Set, F>(weights.codes[at]) as f32;
                                *sum = (weights.scales[at / F::SUB] * code).mul_add(value, *sum);
                            }
                        }
                    }
                }
            }
            for index in 0..count {
                let mut lanes = [0.0; 4];
                vst1q_f32(lanes.as_mut_ptr(), sums[index / 2]);
                for (second, row) in rows.into_iter().enumerate() {
                    let outliers = outliers[index / 2][index % 2][second];
                    *job.out.at(start + index, row) = lanes[index % 2 * 2 + second] + outliers;
                }
            }
        }
    }
}

/// The panel times `N` input rows, in `PAIRS` pairs, from `start` on: pairs of weight rows in the vectors, 8 columns an
/// instruction.
///
/// # Safety
/// The processor has the matrix instructions for int8; the panel and these input rows are there.
#[inline(always)]
pub(super) unsafe fn tile<F: Format, const N: usize, const PAIRS: usize>(
    job: &Job<'_>,
    row: usize,
    n_rows: usize,
    start: usize,
) -> usize {
    let inputs = input_pairs::<PAIRS>(job, start, N);
    let (codes, scales, mins) = drive::panel::<Set, F>(job, 0);
    let (codes, scales, mins) = (codes.cast_const().cast::<i8>(), scales.cast_const(), mins.cast_const());
    // SAFETY: the panel and the input rows have `cols / SUB` sub-blocks; instructions as the caller promised.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); PANEL_PAIRS]; PAIRS];
        for sub in 0..job.cols() / F::SUB {
            let mut totals = [[vdupq_n_s32(0); PANEL_PAIRS]; PAIRS];
            for at in (sub * F::SUB..(sub + 1) * F::SUB).step_by(16) {
                let mut x = [[vdupq_n_s8(0); 2]; PAIRS];
                for (x, pair) in x.iter_mut().zip(&inputs) {
                    *x = steps([pair[0].codes.add(at), pair[1].codes.add(at)]);
                }
                for step in 0..2 {
                    for rows in 0..PANEL_PAIRS {
                        let weights = vld1q_s8(codes.add(Set::ROWS * (at + 8 * step) + 16 * rows));
                        for (totals, x) in totals.iter_mut().zip(&x) {
                            totals[rows] = smmla(totals[rows], x[step], weights);
                        }
                    }
                }
            }
            let block = sub * F::SUB / 32;
            for ((sums, totals), pair) in sums.iter_mut().zip(&totals).zip(&inputs) {
                let own = of_inputs([pair[0].scales.add(block), pair[1].scales.add(block)]);
                let own_sums = of_inputs([sums_of::<F>(pair[0]).add(sub), sums_of::<F>(pair[1]).add(sub)]);
                for rows in 0..PANEL_PAIRS {
                    let at = Set::ROWS * sub + 2 * rows;
                    let scale = vmulq_f32(of_weights(scales.add(at)), own);
                    sums[rows] = vfmaq_f32(sums[rows], vcvtq_f32_s32(totals[rows]), scale);
                    if F::HAS_MIN {
                        sums[rows] = vfmaq_f32(sums[rows], of_weights(mins.add(at)), own_sums);
                    }
                }
            }
        }
        for index in 0..N {
            let mut values = [0.0; Set::ROWS];
            for (rows, sums) in sums[index / 2].into_iter().enumerate() {
                let both = if index % 2 == 0 { vget_low_f32(sums) } else { vget_high_f32(sums) };
                vst1_f32(values.as_mut_ptr().add(2 * rows), both);
            }
            drive::put(job, start + index, row, n_rows, &values);
        }
    }
    N
}
