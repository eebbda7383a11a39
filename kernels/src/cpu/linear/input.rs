//! The activation side of a product: rows of floats, kept as they are or quantized once for all products that read
//! them.
//!
//! A quantized row holds int8 codes with one f32 scale per 32 (round to nearest even, codes -127..=127, so a kernel
//! may negate them), and per 16 and per 32 the sum of codes, as it is and times the scale: what code offsets and minima
//! multiply.
//! Rows are padded with zero codes and zero scales to whole chunks of 256, so kernels have no tails in that
//! direction, and by one cache line more, so that rows do not compete for the same cache sets.
//! The outlier of a block, if it has one, has a code of zero and is kept as a float (see `quantize`).
//! Many rows for AMX are rounded to bf16 instead and held as tiles (see `input_tiles`).
//! A value that is not finite makes the scale of its 32 NaN and so the result: nothing is hidden.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::input_tiles::{self, TILE_ROWS};
use super::quantize::{Quantized, quantize, rest_of};
use crate::backend::DeviceError;
use crate::cpu::isa::Isa;
use crate::cpu::memory::Block;
use crate::tensor::DType;

/// Weights a kernel handles at a time; rows are padded to whole chunks.
pub(crate) const CHUNK: usize = 256;

/// How a product wants its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputKind {
    /// Floats as they are: for F32, F16 and BF16 weights.
    F32,
    /// int8 in blocks of 32 under an f32 scale: for all block types.
    Q8x32,
    /// As `Q8x32` twice, the second time what the first leaves: 16 bits in all, for block types where accuracy matters.
    Q16x32,
}

impl InputKind {
    /// Rows of codes that a row becomes.
    pub(crate) fn code_rows(self) -> usize {
        match self {
            Self::F32 => 0,
            Self::Q8x32 => 1,
            Self::Q16x32 => 2,
        }
    }
}

/// The kind that products with weights of `dtype` read where speed matters.
pub fn input_kind(dtype: DType) -> InputKind {
    if dtype.is_quantized() { InputKind::Q8x32 } else { InputKind::F32 }
}

/// Rows to multiply with, reused from step to step.
pub struct Input {
    isa: Isa,
    kind: InputKind,
    max_rows: usize,
    cols: usize,
    n_chunks: usize,
    stride: usize,
    rows: AtomicUsize,
    floats: Block<f32>,
    codes: Block<i8>,
    scales: Block<f32>,
    sums32: Block<f32>,
    sums16: Block<f32>,
    minus32: Block<i32>,
    minus16: Block<i32>,
    outliers: Block<f32>,
    places: Block<u8>,
    flags: Block<u8>,
    tiles: Block<u16>,
}

/// The outlier of a block of 32.
#[derive(Clone, Copy)]
pub(crate) struct Outlier {
    /// Element of the row.
    pub(crate) at: usize,
    pub(crate) value: f32,
}

/// Where one quantized row lies: whole chunks, zero past `cols`.
#[derive(Clone, Copy)]
pub(crate) struct QuantRow {
    pub(crate) codes: *const i8,
    /// One per 32.
    pub(crate) scales: *const f32,
    /// Scale times sum of codes, per 32.
    pub(crate) sums32: *const f32,
    /// Scale times sum of codes, per 16.
    pub(crate) sums16: *const f32,
    /// Sum of codes, negated, per 32: where sums of products with a type's raw codes begin, times its offset.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for AVX-512"))]
    pub(crate) minus32: *const i32,
    /// Sum of codes, negated, per 16.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for AVX-512"))]
    pub(crate) minus16: *const i32,
    /// Per 32 the value of an outlier, and its place in the block.
    pub(crate) outliers: *const f32,
    pub(crate) places: *const u8,
    /// A byte a chunk: which of its blocks have an outlier.
    pub(crate) flags: *const u8,
}

impl QuantRow {
    /// Part of the row from `chunk` on.
    #[inline(always)]
    pub(crate) fn advance(self, chunk: usize) -> Self {
        Self {
            codes: self.codes.wrapping_add(chunk * CHUNK),
            scales: self.scales.wrapping_add(chunk * 8),
            sums32: self.sums32.wrapping_add(chunk * 8),
            sums16: self.sums16.wrapping_add(chunk * 16),
            minus32: self.minus32.wrapping_add(chunk * 8),
            minus16: self.minus16.wrapping_add(chunk * 16),
            outliers: self.outliers.wrapping_add(chunk * 8),
            places: self.places.wrapping_add(chunk * 8),
            flags: self.flags.wrapping_add(chunk),
        }
    }

    /// Whether the first chunk has outliers.
    ///
    /// # Safety
    /// As [`QuantRow::outliers_of_chunk`].
    #[inline(always)]
    pub(crate) unsafe fn has_outliers(self) -> bool {
        // SAFETY: the caller's promise.
        unsafe { *self.flags != 0 }
    }

    /// The outliers of the first chunk, places counted from its start.
    ///
    /// # Safety
    /// The row is filled and goes on for a chunk, as long as the iterator is used.
    #[inline(always)]
    pub(crate) unsafe fn outliers_of_chunk(self) -> Outliers {
        // SAFETY: the caller's promise: a byte of flags a chunk.
        Outliers { row: self, flags: unsafe { *self.flags } }
    }
}

/// Outliers of a chunk, in order.
///
/// An iterator and no function that calls another: what kernels do in closures is not compiled with their instructions.
pub(crate) struct Outliers {
    row: QuantRow,
    /// A bit for each block that is still to come.
    flags: u8,
}

impl Iterator for Outliers {
    type Item = Outlier;

    #[inline(always)]
    fn next(&mut self) -> Option<Outlier> {
        if self.flags == 0 {
            return None;
        }
        let block = self.flags.trailing_zeros() as usize;
        self.flags &= self.flags - 1;
        // SAFETY: promised when this was made: the chunk has eight blocks.
        let (place, value) = unsafe { (*self.row.places.add(block), *self.row.outliers.add(block)) };
        Some(Outlier { at: 32 * block + usize::from(place), value })
    }
}

/// Rows that may be held as tiles: of an input with one code a value.
fn tile_rows(isa: Isa, kind: InputKind, max_rows: usize) -> usize {
    if kind == InputKind::Q8x32 && input_tiles::are_tiles(isa, max_rows) { max_rows } else { 0 }
}

impl Input {
    /// Room for `max_rows` rows of `cols` to multiply with `isa`, which is available; quantized kinds need `cols` to be a
    /// multiple of 32.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn try_new(isa: Isa, kind: InputKind, max_rows: usize, cols: usize) -> Result<Self, DeviceError> {
        assert!(kind == InputKind::F32 || cols.is_multiple_of(32), "quantized rows are whole blocks of 32");
        let n_chunks = cols.div_ceil(CHUNK);
        let (float_rows, quant_rows) =
            if kind == InputKind::F32 { (max_rows, 0) } else { (0, max_rows * kind.code_rows()) };
        // Padded to whole chunks plus one cache line of either element size.
        let stride = n_chunks * CHUNK + 64;
        let tile_rows = tile_rows(isa, kind, max_rows);
        Ok(Self {
            isa,
            kind,
            max_rows,
            cols,
            n_chunks,
            stride,
            rows: AtomicUsize::new(0),
            floats: Block::try_new(float_rows * stride)?,
            codes: Block::try_new(quant_rows * stride)?,
            scales: Block::try_new(quant_rows * n_chunks * 8)?,
            sums32: Block::try_new(quant_rows * n_chunks * 8)?,
            sums16: Block::try_new(quant_rows * n_chunks * 16)?,
            minus32: Block::try_new(quant_rows * n_chunks * 8)?,
            minus16: Block::try_new(quant_rows * n_chunks * 16)?,
            outliers: Block::try_new(quant_rows * n_chunks * 8)?,
            places: Block::try_new(quant_rows * n_chunks * 8)?,
            flags: Block::try_new(quant_rows * n_chunks)?,
            tiles: Block::try_new(input_tiles::len(tile_rows, n_chunks))?,
        })
    }

    /// Bytes that [`Input::try_new`] takes.
    pub fn bytes_for(isa: Isa, kind: InputKind, max_rows: usize, cols: usize) -> u64 {
        let n_chunks = cols.div_ceil(CHUNK);
        let stride = n_chunks * CHUNK + 64;
        match kind {
            InputKind::F32 => Block::<f32>::bytes_for(max_rows * stride),
            InputKind::Q8x32 | InputKind::Q16x32 => {
                let tile_rows = tile_rows(isa, kind, max_rows);
                let max_rows = max_rows * kind.code_rows();
                Block::<i8>::bytes_for(max_rows * stride)
                    + 4 * Block::<f32>::bytes_for(max_rows * n_chunks * 8)
                    + 2 * Block::<f32>::bytes_for(max_rows * n_chunks * 16)
                    + Block::<u8>::bytes_for(max_rows * n_chunks * 8)
                    + Block::<u8>::bytes_for(max_rows * n_chunks)
                    + Block::<u16>::bytes_for(input_tiles::len(tile_rows, n_chunks))
            }
        }
    }

    /// Kind of the rows.
    pub fn kind(&self) -> InputKind {
        self.kind
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows in use: what the last [`Input::begin`] said.
    pub fn rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }

    /// Most rows there can be.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        let quantized = self.codes.bytes() + self.scales.bytes() + self.sums32.bytes() + self.sums16.bytes();
        let quantized = quantized + self.minus32.bytes() + self.minus16.bytes();
        let outliers = self.outliers.bytes() + self.places.bytes() + self.flags.bytes();
        self.floats.bytes() + quantized + outliers + self.tiles.bytes()
    }

    /// Says that the next `rows` rows will be filled, no more than `max_rows`.
    pub fn begin(&self, rows: usize) {
        assert!(rows <= self.max_rows, "an input of {} rows cannot take {rows}", self.max_rows);
        self.rows.store(rows, Ordering::Relaxed);
    }

    /// Whether the rows in use are held as tiles of bf16, and not quantized.
    pub(crate) fn is_tiles(&self) -> bool {
        self.kind == InputKind::Q8x32 && input_tiles::are_tiles(self.isa, self.rows())
    }

    /// Rows that one worker fills, and settles together: calls of [`Input::settle`] begin at multiples of it.
    pub fn unit(&self) -> usize {
        if self.is_tiles() { TILE_ROWS } else { 1 }
    }

    /// Makes filled rows ready to be read: whole units, the last one as far as there are rows.
    ///
    /// # Safety
    /// These rows are filled, and nobody else uses them at the same time.
    pub unsafe fn settle(&self, rows: Range<usize>) {
        assert!(rows.end <= self.rows() && rows.start.is_multiple_of(self.unit()), "whole units inside of the input");
        #[cfg(target_arch = "x86_64")]
        if self.is_tiles() {
            for tile in rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS) {
                for chunk in 0..self.n_chunks {
                    // SAFETY: `is_tiles` says that the set has the instructions; the tile is ours.
                    unsafe { input_tiles::turn(self.tile(chunk, tile)) };
                }
            }
        }
    }

    /// Takes over the values of one row, to be settled before they are read; identical results with every instruction set
    /// that does not want tiles.
    ///
    /// `row` must be below [`Input::rows`] and `values` have `cols` elements.
    ///
    /// # Safety
    /// Nobody else fills or reads this row at the same time (other rows may be).
    pub unsafe fn fill_row(&self, row: usize, values: &[f32]) {
        assert!(row < self.rows() && values.len() == self.cols, "a row of the input's size, inside of it");
        if self.kind == InputKind::F32 {
            // SAFETY: the row lies inside (checked), is `stride >= cols` long and ours by the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(self.floats.at(row * self.stride), self.cols) }
                .copy_from_slice(values);
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if self.is_tiles() {
            let place = self.tile(0, row / TILE_ROWS).wrapping_add(row % TILE_ROWS * CHUNK);
            // SAFETY: `is_tiles` says that the set, which is available, has the instructions; the row's place is ours.
            unsafe { input_tiles::fill(values, place, self.chunk_len()) };
            return;
        }
        // SAFETY: the row is ours by the caller's promise, `isa` was available when this was made; one part of the row is
        // used at a time.
        unsafe {
            if self.kind == InputKind::Q8x32 {
                quantize(self.isa, values, self.part(row, 0, self.cols));
                return;
            }
            let mut rest = [0.0; CHUNK];
            for (chunk, values) in values.chunks(CHUNK).enumerate() {
                let rest = &mut rest[..values.len()];
                quantize(self.isa, values, self.part(2 * row, chunk, values.len()));
                rest_of(values, &self.part(2 * row, chunk, values.len()), rest);
                quantize(self.isa, rest, self.part(2 * row + 1, chunk, values.len()));
            }
        }
    }

    /// Where `cols` values of a row of codes go, from the start of a chunk on.
    ///
    /// # Safety
    /// They lie in the row, and nobody else uses them meanwhile.
    unsafe fn part(&self, row: usize, chunk: usize, cols: usize) -> Quantized<'_> {
        debug_assert!(chunk * CHUNK + cols <= self.cols);
        let (n_blocks, first_chunk) = (cols / 32, row * self.n_chunks + chunk);
        let first = first_chunk * 8;
        // SAFETY: the caller's promise; the arrays have `n_chunks` times 8 elements a row (16, or one), of which
        // `n_blocks` are for these columns.
        unsafe {
            Quantized {
                codes: std::slice::from_raw_parts_mut(self.codes.at(row * self.stride + chunk * CHUNK), cols),
                scales: std::slice::from_raw_parts_mut(self.scales.at(first), n_blocks),
                sums32: std::slice::from_raw_parts_mut(self.sums32.at(first), n_blocks),
                sums16: std::slice::from_raw_parts_mut(self.sums16.at(2 * first), 2 * n_blocks),
                minus32: std::slice::from_raw_parts_mut(self.minus32.at(first), n_blocks),
                minus16: std::slice::from_raw_parts_mut(self.minus16.at(2 * first), 2 * n_blocks),
                outliers: std::slice::from_raw_parts_mut(self.outliers.at(first), n_blocks),
                places: std::slice::from_raw_parts_mut(self.places.at(first), n_blocks),
                flags: std::slice::from_raw_parts_mut(self.flags.at(first_chunk), cols.div_ceil(CHUNK)),
            }
        }
    }

    /// Numbers of all tiles in a chunk.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn chunk_len(&self) -> usize {
        input_tiles::len(self.max_rows, 1)
    }

    /// The steps of a tile in a chunk.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn tile(&self, chunk: usize, tile: usize) -> *mut u16 {
        self.tiles.at(chunk * self.chunk_len() + tile * input_tiles::STEPS * input_tiles::TILE_LEN)
    }

    /// Chunks of [`CHUNK`] in a row.
    pub(crate) fn n_chunks(&self) -> usize {
        self.n_chunks
    }

    /// Elements from one row to the next (codes or floats).
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// A row of floats, zero from `cols` to the next multiple of [`CHUNK`].
    #[inline(always)]
    pub(crate) fn float_row(&self, row: usize) -> *const f32 {
        self.floats.at(row * self.stride)
    }

    /// A row of codes: row `n` of the input, or of its two codes (`2 * n` and `2 * n + 1`).
    #[inline(always)]
    pub(crate) fn quant_row(&self, row: usize) -> QuantRow {
        QuantRow {
            codes: self.codes.at(row * self.stride),
            scales: self.scales.at(row * self.n_chunks * 8),
            sums32: self.sums32.at(row * self.n_chunks * 8),
            sums16: self.sums16.at(row * self.n_chunks * 16),
            minus32: self.minus32.at(row * self.n_chunks * 8),
            minus16: self.minus16.at(row * self.n_chunks * 16),
            outliers: self.outliers.at(row * self.n_chunks * 8),
            places: self.places.at(row * self.n_chunks * 8),
            flags: self.flags.at(row * self.n_chunks),
        }
    }
}
