//! What an owner has while no device can compile its model: nothing runs, and there is room for nothing.

use std::ops::Range;

use farpost_kernels::backend::{Batch, DeviceError, ImageShape, KvStore, MemoryUse, Output, Plan, Sequence};

/// No plan.
pub(super) struct NoPlan;

impl Plan for NoPlan {
    fn step(&mut self, _: &Batch, _: &mut Output) -> Result<(), DeviceError> {
        Err(DeviceError::Lost("no device can run the model".to_owned()))
    }

    fn kv(&mut self) -> &mut dyn KvStore {
        self
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }
}

impl KvStore for NoPlan {
    fn open(&mut self) -> Option<Sequence> {
        None
    }

    fn reserve(&mut self, _: Sequence, _: usize) -> bool {
        false
    }

    fn len(&self, _: Sequence) -> usize {
        0
    }

    fn resumable(&self, _: Sequence, _: usize) -> usize {
        0
    }

    fn truncate(&mut self, _: Sequence, _: usize) -> usize {
        0
    }

    fn fork(&mut self, _: Sequence, _: usize) -> Option<Sequence> {
        None
    }

    fn close(&mut self, _: Sequence) {}

    fn free_tokens(&self) -> usize {
        0
    }

    fn image(&self) -> ImageShape {
        ImageShape::new([])
    }

    fn read(&self, _: Sequence, _: usize, _: Range<usize>, _: &mut [u8]) -> bool {
        false
    }

    fn append(&mut self, _: Sequence, _: usize, _: usize, _: &[u8]) -> bool {
        false
    }
}
