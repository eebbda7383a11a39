//! 64-bit Arm: signed codes times signed activations, with `sdot` where the processor has it and with widening
//! multiplies and pairwise sums where not; with `smmla` see `neon_i8mm`.
//!
//! `sdot`, `fcvtl` and `prfm` are written as assembly: their intrinsics are not stable.

use std::arch::aarch64::*;
use std::arch::asm;

use super::drive::{self, Engine, UnpacksPlainly};
use super::drive_floats;
use super::format::{Format, Unpacked};
use super::input::{CHUNK, QuantRow};
use super::job::Job;
use super::neon_i8mm;
use super::packed_neon;
use super::scalar::Float;

/// NEON, with the dot product instructions or without, and where it has those with the matrix instructions for int8 or
/// without.
pub(crate) struct Neon<const DOT: bool, const I8MM: bool>;

/// Input rows of a tile: per row 8 weight rows, so 2 float and 2 (with `sdot`) or 4 integer accumulators.
const TILE: usize = 4;

macro_rules! kernel {
    ($features:literal, $name:ident<$T:ident: $bound:path> => $body:expr) => {
        /// # Safety
        /// The processor has the features; the job keeps its promises.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name<$T: $bound>(job: &Job<'_>) {
            // SAFETY: the caller's promises.
            unsafe { $body(job) }
        }
    };
}
kernel!("neon", flat<F: Format> => drive::flat::<Neon<false, false>, F>);
kernel!("neon", tall<F: Format> => drive::tall::<Neon<false, false>, F>);
kernel!("neon", floats_flat<T: Float> => drive_floats::floats_flat::<Neon<false, false>, T>);
kernel!("neon", floats_tall<T: Float> => drive_floats::floats_tall::<Neon<false, false>, T, 16>);
kernel!("neon,dotprod", flat_dot<F: Format> => drive::flat::<Neon<true, false>, F>);
kernel!("neon,dotprod", tall_dot<F: Format> => drive::tall::<Neon<true, false>, F>);
kernel!("neon,dotprod,i8mm", flat_i8mm<F: Format> => neon_i8mm::flat::<F>);
kernel!("neon,dotprod,i8mm", tall_i8mm<F: Format> => drive::tall::<Neon<true, true>, F>);

/// Adds to each of four sums the products of four neighbours.
///
/// # Safety
/// The processor has the dot product instructions.
#[inline(always)]
pub(crate) unsafe fn sdot(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: registers only; the instruction is there by the caller's promise.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Four halves as f32.
#[inline(always)]
fn widened_halves(bits: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: registers only; part of every 64-bit Arm processor with NEON.
    unsafe {
        asm!(
            "fcvtl {out:v}.4s, {bits:v}.4h",
            out = out(vreg) out, bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// Adds products of 16 weights to four sums, in any order.
///
/// # Safety
/// The processor has NEON, with `DOT` the dot product instructions too.
#[inline(always)]
unsafe fn products<const DOT: bool>(sum: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise. One product fits 16 bits: 128 * 127 = 16,256.
    unsafe {
        if DOT {
            return sdot(sum, weights, x);
        }
        let low = vmull_s8(vget_low_s8(weights), vget_low_s8(x));
        vpadalq_s16(vpadalq_s16(sum, low), vmull_high_s8(weights, x))
    }
}

// SAFETY (all functions): callers have the instructions.
impl<const DOT: bool, const I8MM: bool> UnpacksPlainly for Neon<DOT, I8MM> {
    #[inline(always)]
    unsafe fn look_up(table: [u8; 16], codes: &mut [u8; CHUNK]) {
        // SAFETY: see the impl; whole vectors of the array.
        unsafe {
            let table = vld1q_u8(table.as_ptr());
            for part in codes.as_chunks_mut::<16>().0 {
                vst1q_u8(part.as_mut_ptr(), vqtbl1q_u8(table, vld1q_u8(part.as_ptr())));
            }
        }
    }

    #[inline(always)]
    unsafe fn convert_halves(values: &mut [f32; 16]) {
        // SAFETY: see the impl; the first eight elements are there.
        unsafe {
            for four in values.as_chunks_mut::<4>().0.iter_mut().take(2) {
                let bits = vmovn_u32(vreinterpretq_u32_f32(vld1q_f32(four.as_ptr())));
                vst1q_f32(four.as_mut_ptr(), widened_halves(bits));
            }
        }
    }
}

// SAFETY (all functions): callers have the instructions; pointers are to whole chunks, as `Engine` demands.
impl<const DOT: bool, const I8MM: bool> Engine for Neon<DOT, I8MM> {
    type Weights = Unpacked;
    type Sum = [float32x4_t; 2];
    type Floats = float32x4_t;
    const LANES: usize = 4;
    const ROWS: usize = 8;
    const UNSIGNED: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_f32(0.0); 2] }
    }

    #[inline(always)]
    unsafe fn no_weights() -> Unpacked {
        Unpacked::new()
    }

    #[inline(always)]
    unsafe fn unpack<F: Format>(bytes: &[u8], out: &mut Unpacked) {
        // SAFETY: see the impl; blocks of 256 weights are whole chunks.
        unsafe {
            match F::PACKED {
                Some(packed) => packed_neon::unpack(packed, bytes[..F::BYTES].as_ptr(), out),
                None => drive::unpack_plain::<Self, F>(bytes, out),
            }
        }
    }

    #[inline(always)]
    unsafe fn spill(weights: &Unpacked, out: &mut Unpacked) {
        *out = *weights;
    }

    #[inline(always)]
    unsafe fn dot<F: Format>(sum: Self::Sum, weights: &Unpacked, input: QuantRow) -> Self::Sum {
        // SAFETY: see the impl.
        unsafe {
            let mut sum = sum;
            let offset = vdupq_n_u8(F::OFFSET);
            for sub in 0..CHUNK / F::SUB {
                let mut total = vdupq_n_s32(0);
                for part in 0..F::SUB / 16 {
                    let at = sub * F::SUB + 16 * part;
                    let codes = vsubq_u8(vld1q_u8(weights.codes.as_ptr().add(at)), offset);
                    total = products::<DOT>(total, vreinterpretq_s8_u8(codes), vld1q_s8(input.codes.add(at)));
                }
                let scale = weights.scales[sub] * *input.scales.add(sub * F::SUB / 32);
                sum[sub % 2] = vfmaq_n_f32(sum[sub % 2], vcvtq_f32_s32(total), scale);
            }
            if F::HAS_MIN {
                let sums = if F::SUB == 32 { input.sums32 } else { input.sums16 };
                for four in 0..CHUNK / F::SUB / 4 {
                    let mins = vld1q_f32(weights.mins.as_ptr().add(4 * four));
                    sum[four % 2] = vfmaq_f32(sum[four % 2], mins, vld1q_f32(sums.add(4 * four)));
                }
            }
            sum
        }
    }

    #[inline(always)]
    unsafe fn total(sum: Self::Sum) -> f32 {
        // SAFETY: see the impl.
        unsafe { vaddvq_f32(vaddq_f32(sum[0], sum[1])) }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: a hint; any address is allowed.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, preserves_flags, readonly)) };
    }

    #[inline(always)]
    fn place(word: usize, lane: usize) -> usize {
        // Two words of a row side by side where vectors are eight columns of two rows.
        if I8MM { word / 2 * 2 * Self::ROWS + 2 * lane + word % 2 } else { word * Self::ROWS + lane }
    }

    #[inline(always)]
    unsafe fn tiles<F: Format>(job: &Job<'_>, row: usize, n_rows: usize) {
        let mut start = job.input_rows.start;
        while start < job.input_rows.end {
            // SAFETY: see the impl; the tile's input rows are inside the job.
            start += unsafe {
                match job.input_rows.end - start {
                    TILE.. if I8MM => neon_i8mm::tile::<F, TILE, { TILE / 2 }>(job, row, n_rows, start),
                    2.. if I8MM => neon_i8mm::tile::<F, 2, 1>(job, row, n_rows, start),
                    _ if I8MM => neon_i8mm::tile::<F, 1, 1>(job, row, n_rows, start),
                    TILE.. => tile::<F, DOT, TILE>(job, row, n_rows, start),
                    _ => tile::<F, DOT, 1>(job, row, n_rows, start),
                }
            };
        }
    }

    #[inline(always)]
    unsafe fn floats_zero() -> Self::Floats {
        // SAFETY: see the impl.
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        // SAFETY: see the impl.
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn load<T: Float>(bytes: *const u8) -> Self::Floats {
        // SAFETY: see the impl.
        unsafe {
            if T::BYTES == 4 {
                vreinterpretq_f32_u8(vld1q_u8(bytes))
            } else if T::IS_HALF {
                widened_halves(vreinterpret_u16_u8(vld1_u8(bytes)))
            } else {
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(bytes))))
            }
        }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, sum: Self::Floats) -> Self::Floats {
        // SAFETY: see the impl.
        unsafe { vfmaq_f32(sum, a, b) }
    }
    #[inline(always)]
    unsafe fn store(values: Self::Floats, out: *mut f32) {
        // SAFETY: see the impl.
        unsafe { vst1q_f32(out, values) };
    }
}

/// The panel times `N` input rows from `start` on: 8 weight rows in two vectors, 4 columns an instruction.
#[inline(always)]
unsafe fn tile<F: Format, const DOT: bool, const N: usize>(
    job: &Job<'_>,
    row: usize,
    n_rows: usize,
    start: usize,
) -> usize {
    let input = job.input.quant_row(start);
    let (stride, n_chunks) = (job.input.stride(), job.input.n_chunks());
    let (scale_stride, sums_stride) = (n_chunks * 8, n_chunks * CHUNK / F::SUB);
    let sums_of = if F::SUB == 32 { input.sums32 } else { input.sums16 };
    let (mut codes, mut x) = (job.panel.values.at(0).cast_const().cast::<i8>(), input.codes);
    let (scales, mins) = (job.panel.scales.at(0).cast_const(), job.panel.mins.at(0).cast_const());
    // SAFETY: the panel and `N` input rows have `cols / SUB` sub-blocks; instructions as the caller promised.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); 2]; N];
        for sub in 0..job.cols() / F::SUB {
            // With `sdot` a lane is a weight row; without, two lanes are, to be added in the end.
            let mut totals = [[vdupq_n_s32(0); 4]; N];
            for step in 0..F::SUB / 4 {
                let weights = [vld1q_s8(codes.add(32 * step)), vld1q_s8(codes.add(32 * step + 16))];
                for (index, totals) in totals.iter_mut().enumerate() {
                    let four = x.add(index * stride + 4 * step).cast::<i32>().read_unaligned();
                    let four = vreinterpretq_s8_s32(vdupq_n_s32(four));
                    for half in 0..2 {
                        if DOT {
                            totals[half] = sdot(totals[half], weights[half], four);
                        } else {
                            let low = vmull_s8(vget_low_s8(weights[half]), vget_low_s8(four));
                            totals[2 * half] = vpadalq_s16(totals[2 * half], low);
                            let high = vmull_high_s8(weights[half], four);
                            totals[2 * half + 1] = vpadalq_s16(totals[2 * half + 1], high);
                        }
                    }
                }
            }
            codes = codes.add(8 * F::SUB);
            x = x.add(F::SUB);
            for half in 0..2 {
                let scale = vld1q_f32(scales.add(8 * sub + 4 * half));
                let min = vld1q_f32(mins.add(8 * sub + 4 * half));
                for (index, sum) in sums.iter_mut().enumerate() {
                    let own = *input.scales.add(index * scale_stride + sub * F::SUB / 32);
                    let total = if DOT {
                        totals[index][half]
                    } else {
                        vpaddq_s32(totals[index][2 * half], totals[index][2 * half + 1])
                    };
                    sum[half] = vfmaq_f32(sum[half], vcvtq_f32_s32(total), vmulq_n_f32(scale, own));
                    if F::HAS_MIN {
                        sum[half] = vfmaq_n_f32(sum[half], min, *sums_of.add(index * sums_stride + sub));
                    }
                }
            }
        }
        for (index, sum) in sums.into_iter().enumerate() {
            let mut lanes = [0.0; 8];
            vst1q_f32(lanes.as_mut_ptr(), sum[0]);
            vst1q_f32(lanes.as_mut_ptr().add(4), sum[1]);
            drive::put(job, start + index, row, n_rows, &lanes);
        }
    }
    N
}
