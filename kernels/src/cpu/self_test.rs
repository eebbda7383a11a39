//! A known-answer test of the products, quick enough for every start: all types and kinds of input, few and many input
//! rows.

use super::isa::Isa;
use super::linear::{Input, InputKind, OutRows, Scratch, input_kind, multiply};
use crate::backend::DeviceError;
use crate::order::Order;
use crate::tensor::{DType, WeightView};

/// Two chunks, the second not whole.
const COLS: usize = 512;
const ROWS: usize = 19;
/// Enough for the kernels that unpack panels, with a tail.
const INPUT_ROWS: usize = 21;

/// Compares every product of `isa` with the plain one.
pub(super) fn run(isa: Isa) -> Result<(), DeviceError> {
    DType::all().try_for_each(|dtype| {
        check(isa, dtype, input_kind(dtype))?;
        if dtype.is_quantized() { check(isa, dtype, InputKind::Q16x32) } else { Ok(()) }
    })
}

fn check(isa: Isa, dtype: DType, kind: InputKind) -> Result<(), DeviceError> {
    let row_bytes = dtype.row_bytes(COLS).expect("whole blocks of every type");
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // Any byte or half may be a scale: exponents are kept in the middle of their range.
    let words = (0..(ROWS * row_bytes).div_ceil(8)).map(|_| next() & 0xBFBF_BFBF_BFBF_BFBF | 0x2020_2020_2020_2020);
    let bytes: Vec<u8> = words.collect::<Vec<_>>().into_iter().flat_map(u64::to_le_bytes).collect();
    let view = WeightView { dtype, rows: ROWS, cols: COLS, bytes: &bytes[..ROWS * row_bytes], order: Order::Rows };
    // Whole numbers, which every kind of input holds exactly, so that what differs comes from the products; eighths, which
    // only a second code holds.
    let steps = if kind == InputKind::Q16x32 { 8.0 } else { 1.0 };
    let mut value = |at| if at % 32 == 0 { 127.0 } else { ((next() >> 57) as f32 - 64.0) / steps };
    let values: Vec<f32> = (0..INPUT_ROWS * COLS).map(&mut value).collect();
    let product = |isa, input_rows: usize| -> Result<_, DeviceError> {
        let input = Input::try_new(isa, kind, input_rows, COLS)?;
        let mut scratch = Scratch::try_new(isa, COLS)?;
        input.begin(input_rows);
        for (row, values) in values.chunks_exact(COLS).take(input_rows).enumerate() {
            // SAFETY: one thread.
            unsafe { input.fill_row(row, values) };
        }
        // SAFETY: as above.
        unsafe { input.settle(0..input_rows) };
        let mut out = vec![0.0_f32; input_rows * ROWS];
        // SAFETY: whole rows of blocks, a set that is available, room for all results.
        unsafe {
            let rows = OutRows::new(out.as_mut_ptr(), ROWS, input_rows, ROWS);
            multiply(isa, &view, 0..ROWS, &input, 0..input_rows, &mut scratch, rows);
        }
        Ok((out, input.is_tiles()))
    };
    for input_rows in [1, 3, INPUT_ROWS] {
        let ((expected, _), (found, is_rounded)) = (product(Isa::Scalar, input_rows)?, product(isa, input_rows)?);
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let norm = square(&mut expected.iter().map(|value| f64::from(*value)));
        let error = square(&mut expected.iter().zip(&found).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        // Tiles hold weights rounded to bf16.
        let allowed = if is_rounded { 1e-5 } else { 1e-9 };
        if error.is_nan() || error > norm * allowed {
            return Err(DeviceError::Wrong(format!(
                "self-test of {dtype} products with {isa}, {input_rows} {kind:?} rows"
            )));
        }
    }
    Ok(())
}
