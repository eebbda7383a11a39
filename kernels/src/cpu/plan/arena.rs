//! Where values lie: one block of floats in which values that are never alive together share their place.

use super::stage::Stages;
use crate::backend::DeviceError;
use crate::cpu::memory::Block;
use crate::graph::Value;

/// Places are kept on cache lines.
const LINE_FLOATS: usize = 16;

/// Place and size of every value.
pub(super) struct Layout {
    offsets: Vec<usize>,
    widths: Vec<usize>,
    len: usize,
}

impl Layout {
    /// Finds places for `max_rows` rows of every value; greedy, first fit in the order of first use.
    pub(super) fn new(stages: &Stages, widths: &[usize], max_rows: usize) -> Self {
        let mut lives: Vec<Option<(usize, usize)>> = vec![None; widths.len()];
        for (number, stage) in stages.stages.iter().enumerate() {
            let (reads, writes) = stage.uses();
            for value in reads.into_iter().chain(writes) {
                let life = &mut lives[stages.place_of[value.0].0];
                *life = Some(life.map_or((number, number), |(first, _)| (first, number)));
            }
        }
        let mut order: Vec<usize> = (0..widths.len()).filter(|&value| lives[value].is_some()).collect();
        order.sort_by_key(|&value| lives[value]);
        let mut offsets = vec![0; widths.len()];
        // Offset, end, last stage.
        let mut taken: Vec<(usize, usize, usize)> = Vec::new();
        let mut len = 0;
        for value in order {
            let Some((first, last)) = lives[value] else { continue };
            taken.retain(|place| place.2 >= first);
            taken.sort_unstable();
            let size = (widths[value] * max_rows).next_multiple_of(LINE_FLOATS);
            let mut offset = 0;
            for (start, end, _) in &taken {
                if offset + size <= *start {
                    break;
                }
                offset = offset.max(*end);
            }
            offsets[value] = offset;
            taken.push((offset, offset + size, last));
            len = len.max(offset + size);
        }
        for value in 0..widths.len() {
            offsets[value] = offsets[stages.place_of[value].0];
        }
        Self { offsets, widths: widths.to_vec(), len }
    }

    /// Bytes of all places.
    pub(super) fn bytes(&self) -> u64 {
        Block::<f32>::bytes_for(self.len)
    }

    /// The block itself.
    pub(super) fn allocate(self) -> Result<Arena, DeviceError> {
        Ok(Arena { block: Block::try_new(self.len)?, layout: self })
    }
}

/// The values of a step.
pub(super) struct Arena {
    layout: Layout,
    block: Block<f32>,
}

impl Arena {
    /// Elements of one row of a value.
    pub(super) fn width(&self, value: Value) -> usize {
        self.layout.widths[value.0]
    }

    /// Bytes taken.
    pub(super) fn bytes(&self) -> u64 {
        self.block.bytes()
    }

    /// First element of a row.
    pub(super) fn at(&self, value: Value, row: usize) -> *mut f32 {
        self.block.at(self.layout.offsets[value.0] + row * self.layout.widths[value.0])
    }

    /// A row to read.
    ///
    /// # Safety
    /// `row` is below the rows of the plan and nobody writes it meanwhile.
    pub(super) unsafe fn row(&self, value: Value, row: usize) -> &[f32] {
        // SAFETY: inside the block by the layout; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.at(value, row), self.width(value)) }
    }

    /// A row to write.
    ///
    /// # Safety
    /// `row` is below the rows of the plan and nobody else reads or writes it meanwhile.
    #[allow(clippy::mut_from_ref)] // Disjoint rows of one block are written by several threads.
    pub(super) unsafe fn row_mut(&self, value: Value, row: usize) -> &mut [f32] {
        // SAFETY: inside the block by the layout; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(value, row), self.width(value)) }
    }
}
