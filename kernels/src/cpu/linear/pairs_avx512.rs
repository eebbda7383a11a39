//! One or two input rows with AVX-512: two weight rows at a time, far from each other, of types whose blocks hold the codes
//! of 32 weights in nibbles.
//!
//! Each row is unpacked into registers chunk by chunk and multiplied there. Adding lanes up costs as much as products do,
//! and moving codes to the places of their columns more; here codes stay as they are stored, activations are moved to
//! them, and two rows fill the vectors of sums.

use std::arch::x86_64::*;

use super::avx512::{Avx512, begin, fold};
use super::drive::{Engine, add_outliers_of_blocks};
use super::flat_avx512::HALF;
use super::format::Format;
use super::input::{CHUNK, QuantRow};
use super::job::Job;
use super::unpack_avx512::{Chunk, halves_of_chunk, unpack_halves};

/// Bytes that are fetched before they are used.
const AHEAD: usize = 2048;

/// Blocks of a chunk.
const CHUNK_BLOCKS: usize = CHUNK / 32;

/// Products of all input rows of a job with weight rows, of which `eights` says where each two times [`HALF`] begin.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and VNNI; the job keeps its promises and has the rows.
#[inline(always)]
pub(super) unsafe fn flat<F: Format>(job: &Job<'_>, eights: impl Iterator<Item = [usize; 2]>) {
    for [first, second] in eights {
        for row in 0..HALF {
            let rows = [first + row, second + row];
            let mut inputs = job.input_rows.clone();
            // SAFETY: the caller's promises.
            unsafe {
                while inputs.len() > 1 {
                    pair::<F, 2>(job, rows, inputs.start);
                    inputs.start += 2;
                }
                if !inputs.is_empty() {
                    pair::<F, 1>(job, rows, inputs.start);
                }
            }
        }
    }
}

/// Two weight rows times `N` input rows from `start` on.
///
/// # Safety
/// As [`flat`]; the rows are there.
#[inline(always)]
unsafe fn pair<F: Format, const N: usize>(job: &Job<'_>, rows: [usize; 2], start: usize) {
    let inputs: [QuantRow; N] = std::array::from_fn(|index| job.input.quant_row(start + index));
    let n_whole = job.cols() / CHUNK;
    let [first, second] = rows.map(|row| job.row_start(row));
    // SAFETY: the caller's promises; an input row has `n_chunks` whole chunks, a weight row as many as it has columns for.
    unsafe {
        // The sums of the first row stand in the lower eight lanes, as those of `Avx512` do; those of the second above.
        let mut sums = [_mm512_setzero_ps(); N];
        let mut of_outliers = [[0.0_f32; 2]; N];
        for chunk in 0..job.input.n_chunks() {
            let weights = if chunk < n_whole {
                [unpacked::<F>(first, chunk), unpacked::<F>(second, chunk)]
            } else {
                [last::<F>(job, rows[0], chunk), last::<F>(job, rows[1], chunk)]
            };
            let mut has_outliers = false;
            for (input, sum) in inputs.iter().zip(&mut sums) {
                let input = input.advance(chunk);
                *sum = dot::<F>(*sum, &weights, input);
                has_outliers |= input.has_outliers();
            }
            if has_outliers {
                outliers::<F, N>([first, second], &inputs, chunk, &mut of_outliers);
            }
        }
        for (index, sum) in sums.into_iter().enumerate() {
            let totals = totals(sum);
            for (which, row) in rows.into_iter().enumerate() {
                *job.out.at(start + index, row) = totals[which] + of_outliers[index][which];
            }
        }
    }
}

/// Unpacks a whole chunk of a row, and fetches one to come.
#[inline(always)]
unsafe fn unpacked<F: Format>(row: *const u8, chunk: usize) -> Chunk {
    let start = row.wrapping_add(chunk * CHUNK_BLOCKS * F::BYTES);
    // SAFETY: the caller has the instructions and a chunk.
    unsafe {
        for line in 0..(CHUNK_BLOCKS * F::BYTES).div_ceil(64) {
            Avx512::prefetch(start.wrapping_add(AHEAD + 64 * line));
        }
        halves_of_chunk::<F>(start)
    }
}

/// Unpacks the last chunk of a row, which is not whole. No need to be fast.
#[cold]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn last<F: Format>(job: &Job<'_>, row: usize, chunk: usize) -> Chunk {
    // SAFETY: the caller has the instructions.
    unsafe {
        let mut weights = Chunk::new();
        unpack_halves::<F>(&job.row_bytes(row)[chunk * CHUNK_BLOCKS * F::BYTES..], &mut weights);
        weights
    }
}

/// Adds the products of a chunk of two rows with the outliers of input rows. Apart, so that it takes no registers.
///
/// # Safety
/// As [`pair`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn outliers<F: Format, const N: usize>(
    rows: [*const u8; 2],
    inputs: &[QuantRow; N],
    chunk: usize,
    sums: &mut [[f32; 2]; N],
) {
    for (input, sums) in inputs.iter().zip(sums) {
        for (row, sum) in rows.iter().zip(sums) {
            let start = row.wrapping_add(chunk * CHUNK_BLOCKS * F::BYTES);
            // SAFETY: the caller's promises.
            unsafe { add_outliers_of_blocks::<Avx512, F>(start, input.advance(chunk), sum) };
        }
    }
}

/// Adds the products of a chunk of two rows, in the order and with the roundings of the kernel for several input rows
/// (`flat_avx512::products`), so that results are the same to the bit.
#[inline(always)]
unsafe fn dot<F: Format>(sum: __m512, [first, second]: &[Chunk; 2], input: QuantRow) -> __m512 {
    // SAFETY: the caller has the instructions and a chunk.
    unsafe {
        let x = input.codes;
        let [a, b] = sums_of_four_blocks([first.codes[0], first.codes[1]], [second.codes[0], second.codes[1]], x);
        let [c, d] =
            sums_of_four_blocks([first.codes[2], first.codes[3]], [second.codes[2], second.codes[3]], x.add(128));
        // Element `4 * (block % 4) + block / 4` is of a block of the first row, the one two further of the second.
        let sums = fold::<F, 8>([a, c, b, d]);
        let by_row = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let minus = begin::<F>(_mm512_broadcast_i32x8(_mm256_loadu_si256(input.minus32.cast())));
        let products = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_permutexvar_epi32(by_row, sums), minus));
        let scales = _mm512_insertf32x8::<1>(first.scales, _mm512_castps512_ps256(second.scales));
        let own = _mm512_broadcast_f32x8(_mm256_loadu_ps(input.scales));
        let sum = _mm512_fmadd_ps(products, _mm512_mul_ps(scales, own), sum);
        if !F::HAS_MIN {
            return sum;
        }
        let mins = _mm512_insertf32x8::<1>(first.mins, _mm512_castps512_ps256(second.mins));
        _mm512_fmadd_ps(mins, _mm512_broadcast_f32x8(_mm256_loadu_ps(input.sums32)), sum)
    }
}

/// Products of four blocks of 32 columns, eight in an element and four elements a block, of two rows.
#[inline(always)]
unsafe fn sums_of_four_blocks(first: [__m512i; 2], second: [__m512i; 2], x: *const i8) -> [__m512i; 2] {
    // SAFETY: the caller has the instructions and the columns.
    unsafe {
        let zero = _mm512_setzero_si512();
        let (a, b) = (_mm512_loadu_si512(x.cast()), _mm512_loadu_si512(x.add(64).cast()));
        let lower = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        let upper = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        [
            _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, first[0], lower), first[1], upper),
            _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, second[0], lower), second[1], upper),
        ]
    }
}

/// The sum of each eight lanes, by the tree of [`Avx512::total`].
#[inline(always)]
unsafe fn totals(sums: __m512) -> [f32; 2] {
    // SAFETY: the caller has the instructions.
    unsafe {
        let (lower, upper) =
            (_mm512_shuffle_f32x4::<0b10_00_10_00>(sums, sums), _mm512_shuffle_f32x4::<0b11_01_11_01>(sums, sums));
        let four = _mm512_castps512_ps256(_mm512_add_ps(lower, upper));
        let two = _mm256_add_ps(four, _mm256_permute_ps::<0b11_10_11_10>(four));
        let one = _mm256_add_ps(two, _mm256_movehdup_ps(two));
        [_mm256_cvtss_f32(one), _mm_cvtss_f32(_mm256_extractf128_ps::<1>(one))]
    }
}
