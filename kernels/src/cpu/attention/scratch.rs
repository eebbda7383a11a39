//! What one worker works in during a call.

use crate::backend::DeviceError;
use crate::cpu::memory::{Block, room};

/// Positions of a tile: what is widened at a time. Tiles start at multiples of it.
pub(super) const TILE: usize = 64;

/// Most queries handled at once: two registers of 16 lanes.
pub(super) const MAX_WIDTH: usize = 32;

/// Rows start on multiples of this many floats: a cache line.
pub(super) const ALIGN: usize = 16;

/// Queries that go through the loops together.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// First query.
    pub(super) first: usize,
    /// How many.
    pub(super) count: usize,
    /// Lanes they take (the last query fills what is left over), or 0 where each has its own rows.
    pub(super) width: usize,
    /// First position any of them sees, and the one after the last.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Place in the arrays of queries, values, largest scores and sums, in queries.
    pub(super) slot: usize,
}

/// Room for a call. Made once; attention allocates nothing.
pub struct Scratch {
    max_queries: usize,
    max_dim: usize,
    pub(super) groups: Vec<Group>,
    /// A tile of keys, and of values: [`TILE`] rows.
    pub(super) keys: Block<f32>,
    pub(super) values: Block<f32>,
    /// Scores of a tile, then their exponentials.
    pub(super) scores: Block<f32>,
    /// Queries: rows, or `[dim][lane]` per group.
    pub(super) queries: Block<f32>,
    /// Weighted sums of values, likewise.
    pub(super) sums: Block<f32>,
    /// Per query the largest score, and the sum of exponentials.
    pub(super) largest: Block<f32>,
    pub(super) totals: Block<f32>,
    /// One row.
    pub(super) row: Block<f32>,
}

impl Scratch {
    /// Room for calls of up to `max_queries` over heads of up to `max_dim` elements, keys or values.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn try_new(max_queries: usize, max_dim: usize) -> Result<Self, DeviceError> {
        let dim = max_dim.next_multiple_of(ALIGN);
        // Whoever fills the lanes left over takes a place as well.
        let slots = max_queries.next_multiple_of(MAX_WIDTH) + MAX_WIDTH;
        Ok(Self {
            max_queries,
            max_dim: dim,
            groups: room(max_queries)?,
            keys: Block::try_new(TILE * dim)?,
            values: Block::try_new(TILE * dim)?,
            scores: Block::try_new(TILE * MAX_WIDTH)?,
            queries: Block::try_new(slots * dim)?,
            sums: Block::try_new(slots * dim)?,
            largest: Block::try_new(slots)?,
            totals: Block::try_new(slots)?,
            row: Block::try_new(dim)?,
        })
    }

    /// Bytes that [`Scratch::try_new`] takes.
    pub fn bytes_for(max_queries: usize, max_dim: usize) -> u64 {
        let dim = max_dim.next_multiple_of(ALIGN);
        let slots = max_queries.next_multiple_of(MAX_WIDTH) + MAX_WIDTH;
        let floats = 2 * TILE * dim + TILE * MAX_WIDTH + 2 * slots * dim + 2 * slots + dim;
        (floats * size_of::<f32>() + max_queries * size_of::<Group>()) as u64
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        let blocks = [&self.keys, &self.values, &self.scores, &self.queries, &self.sums];
        let small = self.largest.bytes() + self.totals.bytes() + self.row.bytes();
        let groups = self.groups.capacity() * size_of::<Group>();
        blocks.iter().map(|block| block.bytes()).sum::<u64>() + small + groups as u64
    }

    /// True if a call of this size has room.
    pub(super) fn holds(&self, queries: usize, key_dim: usize, value_dim: usize) -> bool {
        queries <= self.max_queries && key_dim.max(value_dim) <= self.max_dim
    }
}
