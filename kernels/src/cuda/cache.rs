//! Keys and values on the device: see `crate::device::pages`.

use std::ops::Range;
use std::sync::Arc;

use super::gpu::{Buffer, Gpu};
use crate::backend::DeviceError;
use crate::device::pages::{self, PageMemory};

/// Memory that pages lie in.
pub(super) struct Memory(pub(super) Arc<Gpu>);

/// The cache of a plan.
pub(super) type Cache = pages::Cache<Memory>;

impl PageMemory for Memory {
    type Buffer = Buffer;

    fn buffer(&self, n_bytes: u64) -> Result<Buffer, DeviceError> {
        self.0.buffer("keys or values of a layer", n_bytes)
    }

    fn copy(&self, copies: &[(&Buffer, Range<u64>, u64)]) {
        for (buffer, from, to) in copies {
            // A device that can't is lost, which is noted.
            let _ = self.0.copy(buffer, from.start, *to, from.end - from.start);
        }
    }

    fn read(&self, parts: &[(&Buffer, Range<u64>)], out: &mut Vec<u8>) -> Result<(), DeviceError> {
        for (buffer, part) in parts {
            let start = out.len();
            out.resize(start + (part.end - part.start) as usize, 0);
            self.0.read(buffer, part.start, &mut out[start..])?;
        }
        Ok(())
    }

    fn write(&self, buffer: &Buffer, at: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.0.write(buffer, at, bytes)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.0.wait()
    }
}
