//! The plain product: the truth that every other kernel is tested against.

use super::format::{Format, Unpacked, half_value, unpack_chunk};
use super::input::CHUNK;
use super::job::Job;

/// Products of rows of a block type with every input row.
///
/// # Safety
/// `job` keeps its promises (see [`Job`]).
pub(crate) unsafe fn blocks<F: Format>(job: &Job<'_>) {
    let mut unpacked = Unpacked::new();
    for row in job.rows.clone() {
        let bytes = job.row_bytes(row);
        for input_row in job.input_rows.clone() {
            let input = job.input.quant_row(input_row);
            let mut total = 0.0_f64;
            for chunk in 0..job.input.n_chunks() {
                unpack_chunk::<F>(&bytes[chunk * (CHUNK / F::LEN) * F::BYTES..], &mut unpacked);
                let subs = (job.cols() - chunk * CHUNK).min(CHUNK) / F::SUB;
                // SAFETY: the row is filled; chunks are below `n_chunks`.
                for outlier in unsafe { input.advance(chunk).outliers_of_chunk() } {
                    let (sub, code) = (outlier.at / F::SUB, unpacked.codes[outlier.at]);
                    let weight = f64::from(unpacked.scales[sub]) * (f64::from(code) - f64::from(F::OFFSET));
                    let min = if F::HAS_MIN { f64::from(unpacked.mins[sub]) } else { 0.0 };
                    total += (weight + min) * f64::from(outlier.value);
                }
                for sub in 0..subs {
                    let at = chunk * CHUNK + sub * F::SUB;
                    // SAFETY: an input row has `n_chunks * CHUNK` codes and a scale per 32 of them.
                    let (codes, scale) = unsafe {
                        (std::slice::from_raw_parts(input.codes.add(at), F::SUB), *input.scales.add(at / 32))
                    };
                    let (mut sum, mut plain) = (0, 0);
                    for (weight, code) in unpacked.codes[sub * F::SUB..].iter().zip(codes) {
                        sum += (i32::from(*weight) - i32::from(F::OFFSET)) * i32::from(*code);
                        plain += i32::from(*code);
                    }
                    total += f64::from(unpacked.scales[sub]) * f64::from(scale) * f64::from(sum);
                    if F::HAS_MIN {
                        total += f64::from(unpacked.mins[sub]) * f64::from(scale) * f64::from(plain);
                    }
                }
            }
            // SAFETY: rows and input rows of the job are ours to write.
            unsafe { *job.out.at(input_row, row) = total as f32 };
        }
    }
}

/// How plain numbers are stored.
pub(crate) trait Float: 'static {
    /// Bytes of one.
    const BYTES: usize;
    /// Whether it is an IEEE half (and not the upper half of an f32).
    const IS_HALF: bool = false;
    /// The number at the start of `bytes`.
    fn value(bytes: &[u8]) -> f32;
}

/// F32.
pub(crate) struct F32;
impl Float for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn value(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

/// F16.
pub(crate) struct F16;
impl Float for F16 {
    const BYTES: usize = 2;
    const IS_HALF: bool = true;
    #[inline(always)]
    fn value(bytes: &[u8]) -> f32 {
        half_value(u16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

/// BF16.
pub(crate) struct Bf16;
impl Float for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn value(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }
}

/// Products of rows of plain numbers with every input row.
///
/// # Safety
/// `job` keeps its promises (see [`Job`]).
pub(crate) unsafe fn floats<T: Float>(job: &Job<'_>) {
    for row in job.rows.clone() {
        let bytes = job.row_bytes(row);
        for input_row in job.input_rows.clone() {
            // SAFETY: a float row has at least `cols` elements.
            let input = unsafe { std::slice::from_raw_parts(job.input.float_row(input_row), job.cols()) };
            let products = bytes.chunks_exact(T::BYTES).zip(input);
            let total: f64 = products.map(|(weight, x)| f64::from(T::value(weight)) * f64::from(*x)).sum();
            // SAFETY: rows and input rows of the job are ours to write.
            unsafe { *job.out.at(input_row, row) = total as f32 };
        }
    }
}
