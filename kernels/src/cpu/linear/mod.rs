//! Products of stored weights with rows of activations.
//!
//! [`Input`] holds the activations of a stage, quantized once; [`multiply`] is the one entry for one row (decode) as
//! for hundreds (prefill) and picks the kernel by instruction set, type and number of rows. Block types reach kernels
//! through [`format`]: codes, scales and minima, whatever the bits in the file. Where accuracy matters more than speed
//! activations have two codes each (see `fine`).

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, reason = "for vectors"))]
mod codebook;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod codes;
mod drive;
mod drive_floats;
mod fine;
#[cfg(target_arch = "x86_64")]
mod flat_avx512;
mod format;
mod formats_linear;
mod formats_table;
mod input;
mod input_tiles;
mod job;
#[cfg(target_arch = "x86_64")]
mod lanes_avx512;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "NEON unpacks planes of bits with plain code"))]
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_i8mm;
#[cfg(target_arch = "x86_64")]
mod packed_avx2;
#[cfg(target_arch = "x86_64")]
mod packed_avx512;
#[cfg(target_arch = "x86_64")]
mod packed_lanes_avx512;
#[cfg(target_arch = "aarch64")]
mod packed_neon;
#[cfg(target_arch = "x86_64")]
mod picks_x86;
mod quantize;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod transpose;
#[cfg(target_arch = "x86_64")]
mod unpack_avx2;
#[cfg(target_arch = "x86_64")]
mod unpack_avx512;
#[cfg(target_arch = "x86_64")]
mod unpack_bf16;
#[cfg(target_arch = "x86_64")]
mod woven_avx512;

use std::ops::Range;

pub use input::{Input, InputKind, input_kind};
pub use input_tiles::FEWEST_ROWS as FEWEST_TILE_ROWS;
pub use job::{OutRows, Scratch};

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::tile_products;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) use codes::{Coded, coded};
pub(crate) use format::half_value;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::sdot;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon_i8mm::smmla;

use super::isa::Isa;
use crate::order::Order;
use crate::tensor::{DType, WeightView};
use job::Job;

/// Runs `$body` with `$F` being the format of a block type, `$other` for plain floats.
macro_rules! with_format {
    ($dtype:expr, $F:ident => $body:expr, $other:expr) => {{
        use $crate::cpu::linear::{formats_linear as linear, formats_table as table};
        match $dtype {
            DType::Q4_0 => with_format!(@ $F, linear::Q4_0, $body),
            DType::Q4_1 => with_format!(@ $F, linear::Q4_1, $body),
            DType::Q5_0 => with_format!(@ $F, linear::Q5_0, $body),
            DType::Q5_1 => with_format!(@ $F, linear::Q5_1, $body),
            DType::Q8_0 => with_format!(@ $F, linear::Q8_0, $body),
            DType::Q2_K => with_format!(@ $F, linear::Q2K, $body),
            DType::Q3_K => with_format!(@ $F, linear::Q3K, $body),
            DType::Q4_K => with_format!(@ $F, linear::Q4K, $body),
            DType::Q5_K => with_format!(@ $F, linear::Q5K, $body),
            DType::Q6_K => with_format!(@ $F, linear::Q6K, $body),
            DType::TQ1_0 => with_format!(@ $F, linear::Tq1, $body),
            DType::TQ2_0 => with_format!(@ $F, linear::Tq2, $body),
            DType::IQ1_S => with_format!(@ $F, table::Iq1S, $body),
            DType::IQ1_M => with_format!(@ $F, table::Iq1M, $body),
            DType::IQ2_XXS => with_format!(@ $F, table::Iq2Xxs, $body),
            DType::IQ2_XS => with_format!(@ $F, table::Iq2Xs, $body),
            DType::IQ2_S => with_format!(@ $F, table::Iq2S, $body),
            DType::IQ3_XXS => with_format!(@ $F, table::Iq3Xxs, $body),
            DType::IQ3_S => with_format!(@ $F, table::Iq3S, $body),
            DType::IQ4_NL => with_format!(@ $F, table::Iq4Nl, $body),
            DType::IQ4_XS => with_format!(@ $F, table::Iq4Xs, $body),
            DType::MXFP4 => with_format!(@ $F, table::Mxfp4, $body),
            DType::NVFP4 => with_format!(@ $F, table::Nvfp4, $body),
            DType::F32 | DType::F16 | DType::BF16 => $other,
        }
    }};
    (@ $F:ident, $format:ty, $body:expr) => {{
        type $F = $format;
        $body
    }};
}
#[cfg(any(test, feature = "cuda", feature = "wgpu"))]
use with_format;

/// A kernel of one type and instruction set.
type Kernel = unsafe fn(&Job<'_>);

/// The kernel of module `$set` for a type.
macro_rules! pick {
    ($dtype:expr, $set:ident, $blocks:ident, $floats:ident) => {
        with_format!(
            $dtype,
            F => $set::$blocks::<F>,
            match $dtype {
                DType::F32 => $set::$floats::<scalar::F32>,
                DType::F16 => $set::$floats::<scalar::F16>,
                _ => $set::$floats::<scalar::Bf16>,
            }
        )
    };
}

/// The kernel for few input rows, or for many.
fn kernel(isa: Isa, dtype: DType, is_tall: bool) -> Kernel {
    match (isa, is_tall) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Amx, false) => pick!(dtype, avx512, flat, floats_flat),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Amx, true) => pick!(dtype, avx512, tall, floats_tall),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, false) => pick!(dtype, avx2, flat, floats_flat),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, true) => pick!(dtype, avx2, tall, floats_tall),
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, false) => pick!(dtype, neon, flat, floats_flat),
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, true) => pick!(dtype, neon, tall, floats_tall),
        #[cfg(target_arch = "aarch64")]
        (Isa::NeonDot, false) => pick!(dtype, neon, flat_dot, floats_flat),
        #[cfg(target_arch = "aarch64")]
        (Isa::NeonDot, true) => pick!(dtype, neon, tall_dot, floats_tall),
        #[cfg(target_arch = "aarch64")]
        (Isa::NeonI8mm, false) => pick!(dtype, neon, flat_i8mm, floats_flat),
        #[cfg(target_arch = "aarch64")]
        (Isa::NeonI8mm, true) => pick!(dtype, neon, tall_i8mm, floats_tall),
        _ => pick!(dtype, scalar, blocks, floats),
    }
}

/// The kernel for input rows held as tiles.
#[cfg(target_arch = "x86_64")]
fn tiles_kernel(dtype: DType) -> Kernel {
    pick!(dtype, amx, tall, floats_tall)
}

/// No other processor has tiles.
#[cfg(not(target_arch = "x86_64"))]
fn tiles_kernel(dtype: DType) -> Kernel {
    pick!(dtype, scalar, blocks, floats)
}

/// Weight rows that the kernels for many input rows take together: jobs do well to have whole panels.
pub(crate) fn panel_rows(isa: Isa) -> usize {
    if isa == Isa::Amx { 4 * input_tiles::TILE_ROWS } else { job::PANEL_ROWS }
}

/// Most input rows for which weights are used as they come; more are worth unpacking a panel first. It is the same in
/// whatever order weights lie, so that a packed file changes no bit of a result.
fn max_flat_rows(isa: Isa, dtype: DType) -> usize {
    // AVX2 unpacks row by row; AVX-512 sixteen rows at a time.
    if isa == Isa::Avx2 && dtype.is_quantized() { 4 } else { 16 }
}

/// The order of blocks that products are fastest with.
pub fn order_for(isa: Isa, dtype: DType) -> Order {
    match isa {
        Isa::Avx512 if Order::Sixteens.holds(dtype) => Order::Sixteens,
        _ => Order::Rows,
    }
}

/// Multiplies weight rows `rows` with input rows `input_rows`: `out[input row][weight row]` becomes their dot product.
///
/// For whole panels let `rows` start and end on multiples of 16 (with AMX of 64) where many input rows are used; any range
/// is right, but for rows that lie side by side, which must stay together.
///
/// # Safety
/// `isa` is available, `weight.bytes` is `weight.rows` rows of whole blocks (as [`crate::tensor::Weight`] ensures),
/// nobody fills `input` meanwhile, and nobody else reads or writes these elements of `out`.
pub unsafe fn multiply(
    isa: Isa,
    weight: &WeightView<'_>,
    rows: Range<usize>,
    input: &Input,
    input_rows: Range<usize>,
    scratch: &mut Scratch,
    out: OutRows,
) {
    if rows.is_empty() || input_rows.is_empty() {
        return;
    }
    let row_bytes = weight.dtype.row_bytes(weight.cols).expect("a weight's rows are whole blocks");
    assert!(rows.end <= weight.rows && weight.rows * row_bytes == weight.bytes.len(), "rows lie inside the weight");
    let code_rows = input.kind().code_rows();
    assert!(input.cols() == weight.cols && (code_rows > 0) == weight.dtype.is_quantized(), "the input fits the weight");
    assert!(input_rows.end <= input.rows() && out.holds(input_rows.end, rows.end), "results have room");
    assert!(weight.cols <= scratch.max_cols(), "the scratch fits the weight");
    assert!(weight.order == Order::Rows || weight.order == order_for(isa, weight.dtype), "the kernel reads this order");
    assert!(weight.order.is_cut_at(rows.start, rows.end, weight.rows), "rows side by side stay together");
    let kernel = if input.is_tiles() {
        assert!(isa == Isa::Amx, "tiles are for AMX");
        tiles_kernel(weight.dtype)
    } else {
        // Counted in rows of the step, whatever they become: for so many, results do not depend on how many there are.
        let is_tall = input_rows.len() > max_flat_rows(isa, weight.dtype);
        kernel(isa, weight.dtype, is_tall)
    };
    let job = Job { weight: *weight, row_bytes, rows, input, input_rows, panel: scratch, out };
    // SAFETY: the set is available and the job is checked, the rest being the caller's promise.
    unsafe {
        if input.kind() == InputKind::Q16x32 {
            fine::multiply(&job, kernel);
        } else {
            kernel(&job);
        }
    }
}

#[cfg(test)]
mod tests;
