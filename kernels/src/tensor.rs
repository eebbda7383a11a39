//! Element types, shared bytes and weight matrices.
//!
//! A [`Weight`] never owns a copy of its numbers: it holds a [`Bytes`] view that keeps the map (or buffer) alive.
//! Its constructor proves `bytes.len() == rows * row_bytes`, and every kernel relies on that.
//! Type ids, block sizes and layouts are those of the GGUF format.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::order::Order;

/// Element type of a stored tensor. Ids are the ones GGUF files use.
#[allow(missing_docs, non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum DType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
}

/// One line of the type table: type, name, weights per block, bytes per block.
const TYPES: &[(DType, &str, usize, usize)] = &[
    (DType::F32, "f32", 1, 4),
    (DType::F16, "f16", 1, 2),
    (DType::BF16, "bf16", 1, 2),
    (DType::Q4_0, "q4_0", 32, 18),
    (DType::Q4_1, "q4_1", 32, 20),
    (DType::Q5_0, "q5_0", 32, 22),
    (DType::Q5_1, "q5_1", 32, 24),
    (DType::Q8_0, "q8_0", 32, 34),
    (DType::Q2_K, "q2_k", 256, 84),
    (DType::Q3_K, "q3_k", 256, 110),
    (DType::Q4_K, "q4_k", 256, 144),
    (DType::Q5_K, "q5_k", 256, 176),
    (DType::Q6_K, "q6_k", 256, 210),
    (DType::IQ1_S, "iq1_s", 256, 50),
    (DType::IQ1_M, "iq1_m", 256, 56),
    (DType::IQ2_XXS, "iq2_xxs", 256, 66),
    (DType::IQ2_XS, "iq2_xs", 256, 74),
    (DType::IQ2_S, "iq2_s", 256, 82),
    (DType::IQ3_XXS, "iq3_xxs", 256, 98),
    (DType::IQ3_S, "iq3_s", 256, 110),
    (DType::IQ4_NL, "iq4_nl", 32, 18),
    (DType::IQ4_XS, "iq4_xs", 256, 136),
    (DType::TQ1_0, "tq1_0", 256, 54),
    (DType::TQ2_0, "tq2_0", 256, 66),
    (DType::MXFP4, "mxfp4", 32, 17),
    (DType::NVFP4, "nvfp4", 64, 36),
];

impl DType {
    /// Every type, in table order.
    pub fn all() -> impl Iterator<Item = Self> {
        TYPES.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (Self, &'static str, usize, usize) {
        TYPES.iter().find(|row| row.0 == self).expect("TYPES has a line for every variant (tested)")
    }

    /// The type a GGUF file calls `id`, if it is one we know.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::all().find(|dtype| *dtype as u32 == id)
    }

    /// The type named `name` ("q4_k", any case).
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// The id used in GGUF files.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Lower-case name as used in file names and on the command line.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Weights per block; 1 for plain floats.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Bytes of a row of `cols` weights; `None` if `cols` is no multiple of the block or the product overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// True for block types, false for F32, F16 and BF16.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that keeps bytes in place while it lives: a file map, a buffer, a static.
///
/// `as_ref` must return the same address and length on every call.
pub trait ByteOwner: Send + Sync + 'static {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}

impl ByteOwner for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl ByteOwner for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A range of somebody's bytes, kept alive by a shared owner: cheap to clone, never a copy.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn ByteOwner>,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: Arc<dyn ByteOwner>) -> Self {
        let range = 0..owner.bytes().len();
        Self { owner, range }
    }

    /// A sub-range, relative to this view; `None` if it does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { owner: Arc::clone(&self.owner), range: start..start + range.len() })
    }

    /// The bytes themselves. Call once per stage, not once per block: it goes through the owner's vtable.
    pub fn as_slice(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Arc::new(bytes))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({:?})", self.range)
    }
}

/// Why a weight could not be made from its bytes.
#[derive(Debug, thiserror::Error)]
#[error("tensor '{name}': {rows} x {cols} {dtype} needs {expected} bytes, found {found}")]
pub struct WeightError {
    name: String,
    dtype: DType,
    rows: usize,
    cols: usize,
    expected: String,
    found: usize,
}

/// A row-major matrix of stored weights: `rows` x `cols`, a vector being one row. Its blocks may lie in another order.
///
/// Invariant: `bytes.len() == rows * dtype.row_bytes(cols)`.
#[derive(Clone, Debug)]
pub struct Weight {
    name: Arc<str>,
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: Bytes,
    order: Order,
}

impl Weight {
    /// Ties bytes to a shape; fails unless they have exactly the size the shape needs.
    pub fn new(name: &str, dtype: DType, rows: usize, cols: usize, bytes: Bytes) -> Result<Self, WeightError> {
        let expected = dtype.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        if expected == Some(bytes.len()) {
            return Ok(Self { name: name.into(), dtype, rows, cols, bytes, order: Order::Rows });
        }
        Err(WeightError {
            name: name.to_owned(),
            dtype,
            rows,
            cols,
            expected: expected.map_or_else(|| "whole blocks and".to_owned(), |n| n.to_string()),
            found: bytes.len(),
        })
    }

    /// A weight of F32 values made at load (rope factors, merged scales); owns its numbers.
    pub fn from_f32(name: &str, rows: usize, cols: usize, values: &[f32]) -> Result<Self, WeightError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(name, DType::F32, rows, cols, bytes.into())
    }

    /// The same bytes, said to lie in `order`; `None` if weights of the type can't.
    pub fn in_order(self, order: Order) -> Option<Self> {
        order.holds(self.dtype).then_some(Self { order, ..self })
    }

    /// Rows `range` as a weight of their own, sharing the bytes; `None` if out of range, or in the midst of rows that lie
    /// side by side.
    ///
    /// This is how a fused Q/K/V matrix or one expert of a 3-D tensor is addressed.
    pub fn slice_rows(&self, range: Range<usize>) -> Option<Self> {
        if !self.order.is_cut_at(range.start, range.end, self.rows) {
            return None;
        }
        let row_bytes = self.row_bytes();
        let bytes = self.bytes.slice(range.start.checked_mul(row_bytes)?..range.end.checked_mul(row_bytes)?)?;
        Some(Self { name: Arc::clone(&self.name), rows: range.len(), bytes, ..*self })
    }

    /// Name in the file, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows (outputs of a product).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs of a product).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How its blocks lie.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.cols).expect("`new` checked that a row is whole blocks")
    }

    /// Borrowed view for kernels.
    pub fn view(&self) -> WeightView<'_> {
        WeightView {
            dtype: self.dtype,
            rows: self.rows,
            cols: self.cols,
            bytes: self.bytes.as_slice(),
            order: self.order,
        }
    }

    /// The shared bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Bytes of one weight matrix, borrowed: `cols` a multiple of the block,
/// `bytes.len() == rows * row_bytes`. Made by [`Weight::view`], which keeps that promise.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'m> {
    /// Element type.
    pub dtype: DType,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// The blocks.
    pub bytes: &'m [u8],
    /// How they lie.
    pub order: Order,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_line_and_survives_its_id_and_name() {
        for dtype in DType::all() {
            assert_eq!(DType::from_id(dtype.id()), Some(dtype));
            assert_eq!(DType::from_name(&dtype.name().to_uppercase()), Some(dtype));
        }
        assert_eq!(DType::all().count(), 26);
        assert_eq!(DType::from_id(4), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(DType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(DType::Q4_K.row_bytes(511), None);
        assert_eq!(DType::F32.row_bytes(usize::MAX), None);
    }

    #[test]
    fn a_weight_refuses_bytes_of_the_wrong_size_and_slices_without_copying() {
        let bytes: Bytes = vec![7_u8; 3 * 34].into();
        assert!(Weight::new("w", DType::Q8_0, 4, 32, bytes.clone()).is_err());
        let weight = Weight::new("w", DType::Q8_0, 3, 32, bytes.clone()).unwrap();
        let tail = weight.slice_rows(1..3).unwrap();
        assert_eq!(tail.view().bytes.as_ptr(), bytes.as_slice()[34..].as_ptr());
        assert!(weight.slice_rows(2..4).is_none());
    }
}
