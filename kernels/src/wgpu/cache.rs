//! Keys and values on the device: see `crate::device::pages`.

use std::ops::Range;
use std::sync::Arc;

use ::wgpu::{Buffer, BufferUsages};

use super::gpu::Gpu;
use crate::backend::{DeviceError, Limits};
use crate::device::pages::{self, PageMemory, largest_page_bytes};
use crate::graph::KvLayer;

/// Memory that pages lie in.
pub(super) struct Memory {
    gpu: Arc<Gpu>,
    /// Takes a page on its way: a buffer is not copied onto itself.
    passage: Buffer,
}

/// The cache of a plan.
pub(super) type Cache = pages::Cache<Memory>;

/// A cache of these layers.
pub(super) fn open(gpu: &Arc<Gpu>, layers: &[KvLayer], limits: &Limits) -> Result<Cache, DeviceError> {
    let most = largest_page_bytes(layers, limits).max(16);
    let passage = gpu.buffer("a page on its way", most, BufferUsages::COPY_SRC | BufferUsages::COPY_DST)?;
    Cache::new(Memory { gpu: Arc::clone(gpu), passage }, layers, limits)
}

impl PageMemory for Memory {
    type Buffer = Buffer;

    fn buffer(&self, n_bytes: u64) -> Result<Buffer, DeviceError> {
        self.gpu.storage("keys or values of a layer", n_bytes)
    }

    fn copy(&self, copies: &[(&Buffer, Range<u64>, u64)]) {
        let mut encoder = self.gpu.encoder();
        for (buffer, from, to) in copies {
            let n_bytes = from.end - from.start;
            encoder.copy_buffer_to_buffer(buffer, from.start, &self.passage, 0, n_bytes);
            encoder.copy_buffer_to_buffer(&self.passage, 0, buffer, *to, n_bytes);
        }
        self.gpu.queue.submit([encoder.finish()]);
    }

    /// With a buffer of its own each time: slow, but for files.
    fn read(&self, parts: &[(&Buffer, Range<u64>)], out: &mut Vec<u8>) -> Result<(), DeviceError> {
        let n_bytes: u64 = parts.iter().map(|(_, part)| part.end - part.start).sum();
        if n_bytes == 0 {
            return Ok(());
        }
        let staging = self.gpu.buffer("pages to read", n_bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        let mut encoder = self.gpu.encoder();
        let mut at = 0;
        for (buffer, part) in parts {
            let n_bytes = part.end - part.start;
            encoder.copy_buffer_to_buffer(buffer, part.start, &staging, at, n_bytes);
            at += n_bytes;
        }
        self.gpu.read_back(encoder, &staging, n_bytes, |bytes| out.extend_from_slice(bytes))
    }

    fn write(&self, buffer: &Buffer, at: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.gpu.queue.write_buffer(buffer, at, bytes);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.gpu.flush()
    }
}
