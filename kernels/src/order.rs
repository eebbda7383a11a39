//! How the blocks of a matrix lie in memory: row after row, as model files have them, or sixteen rows side by side.
//!
//! Side by side, block `b` of rows `16 n .. 16 n + 16` lies in one place, and in it the same word of all sixteen rows
//! together, so that a vector load gives every row's word without shuffling. Bytes before the first word of codes (a
//! half in most types) come first and bytes behind the last whole word last, likewise together. Rows that are left over
//! at the end stay one after the other. Sixteen rows take the same bytes either way.

use crate::quant::{self, QuantError};
use crate::tensor::{DType, WeightView};

/// Rows side by side.
pub const SIXTEEN: usize = 16;

/// Bytes of the largest block, at least.
const MAX_BLOCK: usize = 64;

/// How blocks lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// Row after row.
    #[default]
    Rows,
    /// Sixteen rows side by side; of types that [`Order::holds`] only.
    Sixteens,
}

impl Order {
    /// Name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Sixteens => "sixteens",
        }
    }

    /// Whether weights of a type can lie in this order.
    pub fn holds(self, dtype: DType) -> bool {
        self == Self::Rows || odd_bytes(dtype).is_some()
    }

    /// Whether rows `start .. end` of `rows` are bytes in one piece.
    pub fn is_cut_at(self, start: usize, end: usize, rows: usize) -> bool {
        let is_edge = |row: usize| row.is_multiple_of(SIXTEEN) || row == rows;
        self == Self::Rows || (is_edge(start) && is_edge(end))
    }
}

/// Bytes of a block before its words; `None` for types without this order. It gains where a block has one scale: those of
/// many sub-blocks are as much work, or more, whichever way they lie.
pub(crate) fn odd_bytes(dtype: DType) -> Option<usize> {
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL => Some(2),
        DType::MXFP4 => Some(1),
        DType::Q4_1 | DType::Q5_1 => Some(0),
        _ => None,
    }
}

/// The pieces of a block that lie together, each by its place and length.
fn pieces(block_bytes: usize, odd: usize) -> impl Iterator<Item = (usize, usize)> {
    let words = (odd..block_bytes).step_by(4).map(move |at| (at, 4.min(block_bytes - at)));
    (odd > 0).then_some((0, odd)).into_iter().chain(words)
}

/// Lays rows out side by side: `rows` are whole rows of `cols` weights one after the other, of which the last one is the
/// last of its matrix unless they are a multiple of [`SIXTEEN`]; `out` has the same length.
///
/// # Panics
/// If the type has no such order or the lengths do not fit.
pub fn to_sixteens(dtype: DType, cols: usize, rows: &[u8], out: &mut [u8]) {
    let row_bytes = dtype.row_bytes(cols).expect("rows are whole blocks");
    let odd = odd_bytes(dtype).expect("the type has this order");
    assert!(rows.len() == out.len(), "the lengths are the same");
    if row_bytes == 0 {
        return;
    }
    assert!(rows.len().is_multiple_of(row_bytes), "there are whole rows");
    let block_bytes = dtype.block_bytes();
    let mut sixteens = rows.chunks_exact(SIXTEEN * row_bytes);
    let mut outs = out.chunks_exact_mut(SIXTEEN * row_bytes);
    for (rows, out) in sixteens.by_ref().zip(outs.by_ref()) {
        for (block, out) in out.chunks_exact_mut(SIXTEEN * block_bytes).enumerate() {
            for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                let bytes = &bytes[block * block_bytes..][..block_bytes];
                for (at, len) in pieces(block_bytes, odd) {
                    out[SIXTEEN * at + row * len..][..len].copy_from_slice(&bytes[at..at + len]);
                }
            }
        }
    }
    outs.into_remainder().copy_from_slice(sixteens.remainder());
}

/// Decodes row `row` of a matrix in either order; `out` has a place for each column. Nothing is allocated.
///
/// # Errors
/// As [`quant::decode`].
///
/// # Panics
/// If there is no such row.
pub fn decode_row(weight: &WeightView<'_>, row: usize, out: &mut [f32]) -> Result<(), QuantError> {
    let (dtype, row_bytes) = (weight.dtype, weight.dtype.row_bytes(weight.cols).expect("rows are whole blocks"));
    let first = row / SIXTEEN * SIXTEEN;
    let is_side_by_side = weight.order == Order::Sixteens && first + SIXTEEN <= weight.rows;
    let Some(odd) = odd_bytes(dtype).filter(|_| is_side_by_side) else {
        return quant::decode(dtype, &weight.bytes[row * row_bytes..][..row_bytes], out);
    };
    let (row, block_bytes) = (row - first, dtype.block_bytes());
    let blocks = weight.bytes[first * row_bytes..][..SIXTEEN * row_bytes].chunks_exact(SIXTEEN * block_bytes);
    let mut own = [0; MAX_BLOCK];
    for (block, out) in blocks.zip(out.chunks_mut(dtype.block_len())) {
        for (at, len) in pieces(block_bytes, odd) {
            own[at..at + len].copy_from_slice(&block[SIXTEEN * at + row * len..][..len]);
        }
        quant::decode(dtype, &own[..block_bytes], out)?;
    }
    Ok(())
}

/// Copies row `row` of a matrix in either order as model files have it, block after block.
///
/// # Panics
/// If there is no such row, or `out` is not as long.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) fn copy_row(weight: &WeightView<'_>, row: usize, out: &mut [u8]) {
    let (dtype, row_bytes) = (weight.dtype, weight.dtype.row_bytes(weight.cols).expect("rows are whole blocks"));
    let first = row / SIXTEEN * SIXTEEN;
    let is_side_by_side = weight.order == Order::Sixteens && first + SIXTEEN <= weight.rows;
    let Some(odd) = odd_bytes(dtype).filter(|_| is_side_by_side) else {
        out.copy_from_slice(&weight.bytes[row * row_bytes..][..row_bytes]);
        return;
    };
    let (row, block_bytes) = (row - first, dtype.block_bytes());
    let blocks = weight.bytes[first * row_bytes..][..SIXTEEN * row_bytes].chunks_exact(SIXTEEN * block_bytes);
    for (block, own) in blocks.zip(out.chunks_exact_mut(block_bytes)) {
        for (at, len) in pieces(block_bytes, odd) {
            own[at..at + len].copy_from_slice(&block[SIXTEEN * at + row * len..][..len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_of_sixteen_rows_lie_together() {
        let rows: Vec<u8> = (0..17 * 18).map(|at| (at / 18 * 10 + at % 18) as u8).collect();
        let mut out = vec![0; rows.len()];
        to_sixteens(DType::Q4_0, 32, &rows, &mut out);
        // The halves of rows 0, 1, …, the first words of rows 0, 1, …, and row 16 as it was.
        assert_eq!(out[..6], [0, 1, 10, 11, 20, 21]);
        assert_eq!(out[32..40], [2, 3, 4, 5, 12, 13, 14, 15]);
        assert_eq!(out[16 * 18..], rows[16 * 18..]);
    }

    proptest! {
        #[test]
        fn rows_of_either_order_decode_to_the_same(
            seed in any::<u64>(),
            n_rows in 0..40_usize,
            n_blocks in 0..5_usize,
        ) {
            for dtype in DType::all().filter(|&dtype| Order::Sixteens.holds(dtype)) {
                prop_assert!(dtype.block_bytes() <= MAX_BLOCK);
                let cols = n_blocks * dtype.block_len();
                let len = n_rows * n_blocks * dtype.block_bytes();
                let bytes: Vec<u8> =
                    (0..len as u64).map(|at| (seed.wrapping_mul(at * 2 + 1) >> 40) as u8 & 0x3B).collect();
                let mut woven = vec![0; len];
                to_sixteens(dtype, cols, &bytes, &mut woven);
                let of = |bytes, order| WeightView { dtype, rows: n_rows, cols, bytes, order };
                for row in 0..n_rows {
                    let (mut plain, mut found) = (vec![0.0_f32; cols], vec![1.0_f32; cols]);
                    decode_row(&of(&bytes, Order::Rows), row, &mut plain).unwrap();
                    decode_row(&of(&woven, Order::Sixteens), row, &mut found).unwrap();
                    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&plain), bits(&found));
                    #[cfg(any(feature = "cuda", feature = "wgpu"))]
                    {
                        let row_bytes = n_blocks * dtype.block_bytes();
                        let mut own = vec![0; row_bytes];
                        copy_row(&of(&woven, Order::Sixteens), row, &mut own);
                        prop_assert_eq!(&own[..], &bytes[row * row_bytes..][..row_bytes]);
                    }
                }
            }
        }
    }
}
