//! One call of a kernel: which weight rows meet which input rows, and where the results go.

use std::ops::Range;

use super::input::{CHUNK, Input};
use super::input_tiles::TILE_ROWS;
use crate::backend::DeviceError;
use crate::cpu::isa::Isa;
use crate::cpu::memory::Block;
use crate::tensor::WeightView;

/// Where results go: element [input row][weight row] of a matrix that several workers fill in disjoint parts.
#[derive(Clone, Copy, Debug)]
pub struct OutRows {
    start: *mut f32,
    stride: usize,
    n_rows: usize,
    n_cols: usize,
}

// SAFETY: an address; writing through it is unsafe and its users keep writes disjoint.
unsafe impl Send for OutRows {}
// SAFETY: as above.
unsafe impl Sync for OutRows {}

impl OutRows {
    /// `n_rows` rows of `n_cols` elements, `stride` elements apart, from `start` on.
    ///
    /// # Safety
    /// All of them must be valid to write for as long as this value is used.
    pub unsafe fn new(start: *mut f32, stride: usize, n_rows: usize, n_cols: usize) -> Self {
        assert!(n_cols <= stride || n_rows <= 1, "rows do not overlap");
        Self { start, stride, n_rows, n_cols }
    }

    /// Address of an element; must be inside, which [`super::multiply`] checked for the whole job.
    #[inline(always)]
    pub(crate) fn at(&self, input_row: usize, weight_row: usize) -> *mut f32 {
        debug_assert!(input_row < self.n_rows && weight_row < self.n_cols);
        self.start.wrapping_add(input_row * self.stride + weight_row)
    }

    /// True if the element past the largest row and column is still inside.
    pub(crate) fn holds(&self, input_rows: usize, weight_rows: usize) -> bool {
        input_rows <= self.n_rows && weight_rows <= self.n_cols
    }
}

/// A checked call. Made by [`super::multiply`] only, which guarantees for all kernels: `weight.bytes` has exactly
/// `weight.rows` rows of whole blocks, `rows` lies inside it, `input` has its columns and kind and at least
/// `input_rows.end` rows, `out` holds all results, and no one else writes them or the input meanwhile.
pub(crate) struct Job<'a> {
    pub(crate) weight: WeightView<'a>,
    pub(crate) row_bytes: usize,
    pub(crate) rows: Range<usize>,
    pub(crate) input: &'a Input,
    pub(crate) input_rows: Range<usize>,
    pub(crate) panel: &'a Scratch,
    pub(crate) out: OutRows,
}

impl Job<'_> {
    /// Bytes of one weight row.
    #[inline(always)]
    pub(crate) fn row_bytes(&self, row: usize) -> &[u8] {
        &self.weight.bytes[row * self.row_bytes..][..self.row_bytes]
    }

    /// Where a weight row begins; past the last one an address that only prefetches may take.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn row_start(&self, row: usize) -> *const u8 {
        self.weight.bytes.as_ptr().wrapping_add(row * self.row_bytes)
    }

    /// Columns of the weight.
    #[inline(always)]
    pub(crate) fn cols(&self) -> usize {
        self.weight.cols
    }
}

/// Weight rows of a panel, at most.
pub(crate) const PANEL_ROWS: usize = 16;
/// Panels of codes at once, at most: no more bytes than one of floats.
pub(crate) const PANELS: usize = 2;

/// Weight rows whose sums wait for the next columns together, and tiles of input rows: half of a second-level cache's
/// megabyte or two.
pub(crate) const SUM_ROWS: usize = 256;
pub(crate) const SUM_TILES: usize = 32;

/// Numbers of a scratch: bytes of values, scales, sums.
fn lens(isa: Isa, cols: usize) -> [usize; 3] {
    let sums = if isa == Isa::Amx { SUM_ROWS * SUM_TILES * TILE_ROWS } else { 0 };
    // Two panels for AMX are no larger than 1024 columns of one for others.
    [cols.max(1024) * PANEL_ROWS * size_of::<f32>(), cols / 16 * PANEL_ROWS * PANELS, sums]
}

/// What one worker works in: room for an unpacked panel. Made once; products allocate nothing.
pub struct Scratch {
    max_cols: usize,
    /// Codes of [`PANELS`] panels, or floats of one: `PANEL_ROWS` x columns, in the order of the micro-kernel.
    pub(crate) values: Block<u8>,
    /// Scales, per panel and 16 or 32 columns `PANEL_ROWS` of them.
    pub(crate) scales: Block<f32>,
    /// Minima, likewise.
    pub(crate) mins: Block<f32>,
    /// Results before they are added (see [`super::fine`]).
    pub(crate) results: Block<f32>,
    /// Sums of [`SUM_ROWS`] weight rows and [`SUM_TILES`] tiles of input rows; for AMX only.
    pub(crate) sums: Block<f32>,
}

impl Scratch {
    /// Room for weights of up to `max_cols` columns of any type.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn try_new(isa: Isa, max_cols: usize) -> Result<Self, DeviceError> {
        let cols = max_cols.next_multiple_of(CHUNK);
        let [values, scales, sums] = lens(isa, cols);
        Ok(Self {
            max_cols: cols,
            values: Block::try_new(values)?,
            scales: Block::try_new(scales)?,
            mins: Block::try_new(scales)?,
            results: Block::try_new(super::fine::ROOM)?,
            sums: Block::try_new(sums)?,
        })
    }

    /// Bytes that [`Scratch::try_new`] takes.
    pub fn bytes_for(isa: Isa, max_cols: usize) -> u64 {
        let [values, scales, sums] = lens(isa, max_cols.next_multiple_of(CHUNK));
        (values + (2 * scales + super::fine::ROOM + sums) * size_of::<f32>()) as u64
    }

    /// Most columns of a weight.
    pub fn max_cols(&self) -> usize {
        self.max_cols
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        let panel = self.values.bytes() + self.scales.bytes() + self.mins.bytes();
        panel + self.results.bytes() + self.sums.bytes()
    }
}
