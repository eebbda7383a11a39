//! Keys and values of all sequences, in pages that sequences share until one of them writes.
//!
//! Which pages are whose is kept by [`Paging`]; here are their bytes. In each layer, page `p` of KV head `h` is one block
//! of bytes, `[token][dim]`: halves or floats, or for Q8_0 first the codes of all tokens and then their scales, one half
//! per 32. Everything is allocated once (the system commits memory as pages fill), steps allocate nothing.

mod image;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::memory::Block;
use crate::backend::{DeviceError, ImageShape, KvStore, KvType, Limits, Sequence};
use crate::graph::KvLayer;
use crate::paging::{Copies, Paging, n_pages};

/// Elements under one scale of a Q8_0 cache.
pub(crate) const Q8_LEN: usize = 32;

/// Bytes that `tokens` vectors of `dim` elements take in one block, on whole cache lines; the most there can be where that
/// is more.
pub(crate) fn block_bytes(kv_type: KvType, tokens: usize, dim: usize) -> usize {
    tokens.saturating_mul(kv_type.vector_bytes(dim)).checked_next_multiple_of(64).unwrap_or(usize::MAX)
}

/// Bytes of the keys or the values of one layer, likewise.
fn plane_bytes(kv_type: KvType, n_pages: usize, page_tokens: usize, n_heads: usize, dim: usize) -> usize {
    n_pages.saturating_mul(n_heads).saturating_mul(block_bytes(kv_type, page_tokens, dim))
}

/// Keys or values of one layer.
struct Plane {
    bytes: Block<u8>,
    /// Of one head of one page.
    block_bytes: usize,
    n_heads: usize,
    /// Elements of a vector.
    dim: usize,
}

impl Plane {
    fn try_new(
        kv_type: KvType,
        n_pages: usize,
        page_tokens: usize,
        n_heads: usize,
        dim: usize,
    ) -> Result<Self, DeviceError> {
        let block_bytes = block_bytes(kv_type, page_tokens, dim);
        let n_bytes = plane_bytes(kv_type, n_pages, page_tokens, n_heads, dim);
        Ok(Self { bytes: Block::try_new(n_bytes)?, block_bytes, n_heads, dim })
    }

    fn page_bytes(&self) -> usize {
        self.n_heads * self.block_bytes
    }

    fn copy_page(&mut self, from: u32, to: u32) {
        let n_bytes = self.page_bytes();
        // SAFETY: both pages lie inside, they differ (one is in use, the other was free), and the borrow is exclusive.
        unsafe {
            let source = self.bytes.at(from as usize * n_bytes).cast_const();
            std::ptr::copy_nonoverlapping(source, self.bytes.at(to as usize * n_bytes), n_bytes);
        }
    }

    fn head(&self, head: usize) -> Place {
        Place { start: self.bytes.at(head * self.block_bytes), page_stride: self.page_bytes() }
    }
}

/// Where the blocks of one head lie: page `p` begins at `start + p * page_stride` bytes.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) start: *mut u8,
    pub(crate) page_stride: usize,
}

/// Keys and values of one layer, in pages of a pool.
struct Layer {
    pool: usize,
    keys: Plane,
    values: Plane,
}

impl Copies for Vec<Layer> {
    fn copy_page(&mut self, pool: usize, from: u32, to: u32) {
        for layer in self.iter_mut().filter(|layer| layer.pool == pool) {
            layer.keys.copy_page(from, to);
            layer.values.copy_page(from, to);
        }
    }
}

/// The cache of a plan.
pub(crate) struct KvCache {
    kv_type: KvType,
    layers: Vec<Layer>,
    paging: Paging,
}

impl KvCache {
    /// Bytes that a cache takes.
    pub(crate) fn bytes_for(layers: &[KvLayer], limits: &Limits) -> u64 {
        let (kv_type, page_tokens) = (limits.kv_type, limits.page_tokens);
        let of_layer = |layer: &KvLayer| {
            let n_pages = n_pages(layer.window, limits);
            let plane = |dim| plane_bytes(kv_type, n_pages, page_tokens, layer.n_kv_heads, dim) as u64;
            plane(layer.key_dim).saturating_add(plane(layer.value_dim))
        };
        layers.iter().map(of_layer).fold(0, u64::saturating_add)
    }

    pub(crate) fn try_new(layers: &[KvLayer], limits: &Limits) -> Result<Self, DeviceError> {
        let Limits { kv_type, page_tokens, .. } = *limits;
        let paging = Paging::try_new(layers, limits)?;
        let planes = |(number, layer): (usize, &KvLayer)| {
            let n_pages = n_pages(layer.window, limits);
            let plane = |dim| Plane::try_new(kv_type, n_pages, page_tokens, layer.n_kv_heads, dim);
            Ok(Layer { pool: paging.pool_of(number), keys: plane(layer.key_dim)?, values: plane(layer.value_dim)? })
        };
        let layers = layers.iter().enumerate().map(planes).collect::<Result<_, DeviceError>>()?;
        Ok(Self { kv_type, layers, paging })
    }

    pub(crate) fn kv_type(&self) -> KvType {
        self.kv_type
    }

    pub(crate) fn page_tokens(&self) -> usize {
        self.paging.page_tokens()
    }

    /// Bytes of all layers.
    pub(crate) fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.keys.bytes.bytes() + layer.values.bytes.bytes()).sum()
    }

    /// Key blocks of a head.
    pub(crate) fn keys(&self, layer: usize, head: usize) -> Place {
        self.layers[layer].keys.head(head)
    }

    /// Value blocks of a head.
    pub(crate) fn values(&self, layer: usize, head: usize) -> Place {
        self.layers[layer].values.head(head)
    }

    /// True if `sequence` is open.
    pub(crate) fn is_open(&self, sequence: Sequence) -> bool {
        self.paging.is_open(sequence)
    }

    /// The page table of a sequence for a layer; empty if the sequence is not open. Where positions are behind the
    /// layer's window there may be no page.
    pub(crate) fn pages(&self, sequence: Sequence, layer: usize) -> &[u32] {
        self.paging.table(sequence, self.layers[layer].pool)
    }

    /// Makes positions `from..to` the sequence's own to write; false if they are not reserved, or a page is missing: for
    /// a copy of one that another sequence shares.
    pub(crate) fn make_writable(&mut self, sequence: Sequence, from: usize, to: usize) -> bool {
        self.paging.make_writable(sequence, from, to, &mut self.layers)
    }

    /// Counts positions as written.
    pub(crate) fn set_len(&mut self, sequence: Sequence, len: usize) {
        self.paging.set_len(sequence, len);
    }
}

impl KvStore for KvCache {
    fn open(&mut self) -> Option<Sequence> {
        self.paging.open()
    }

    fn reserve(&mut self, sequence: Sequence, tokens: usize) -> bool {
        self.paging.reserve(sequence, tokens, &mut self.layers)
    }

    fn len(&self, sequence: Sequence) -> usize {
        self.paging.len(sequence)
    }

    fn resumable(&self, sequence: Sequence, tokens: usize) -> usize {
        self.paging.resumable(sequence, tokens)
    }

    fn truncate(&mut self, sequence: Sequence, tokens: usize) -> usize {
        self.paging.truncate(sequence, tokens)
    }

    fn fork(&mut self, from: Sequence, tokens: usize) -> Option<Sequence> {
        self.paging.fork(from, tokens)
    }

    fn close(&mut self, sequence: Sequence) {
        self.paging.close(sequence);
    }

    fn free_tokens(&self) -> usize {
        self.paging.free_tokens()
    }

    fn image(&self) -> ImageShape {
        image::shape(self)
    }

    fn read(&self, sequence: Sequence, n_tokens: usize, positions: Range<usize>, out: &mut [u8]) -> bool {
        image::read(self, sequence, n_tokens, positions, out)
    }

    fn append(&mut self, sequence: Sequence, n_tokens: usize, n_positions: usize, bytes: &[u8]) -> bool {
        image::append(self, sequence, n_tokens, n_positions, bytes)
    }
}
