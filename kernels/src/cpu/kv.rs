//! Keys and values of all sequences, in pages that sequences share until one of them writes.
//!
//! A page holds `page_tokens` positions of all layers with the same window, or without one. In each layer, page `p` of KV
//! head `h` is one block of bytes, `[token][dim]`: halves or floats, or for Q8_0 first the codes of all tokens and then
//! their scales, one half per 32. Writing a page needs it in one table only, so a shared one is copied first. Layers with
//! a window keep what rows to come look at, and more while there is room; see [`pool`]. Everything is allocated once (the
//! system commits memory as pages fill), steps allocate nothing.

mod image;
mod pool;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::memory::{Block, room};
use crate::backend::{DeviceError, ImageShape, KvStore, KvType, Limits, Sequence};
use crate::graph::KvLayer;
use pool::Pool;

/// Elements under one scale of a Q8_0 cache.
pub(crate) const Q8_LEN: usize = 32;

/// Bytes that `tokens` vectors of `dim` elements take in one block, on whole cache lines.
pub(crate) fn block_bytes(kv_type: KvType, tokens: usize, dim: usize) -> usize {
    (tokens * kv_type.vector_bytes(dim)).next_multiple_of(64)
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
        Ok(Self { bytes: Block::try_new(n_pages * n_heads * block_bytes)?, block_bytes, n_heads, dim })
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

/// The cache of a plan.
pub(crate) struct KvCache {
    kv_type: KvType,
    page_tokens: usize,
    /// Most rows of a step.
    max_rows: usize,
    layers: Vec<Layer>,
    /// The first is that of layers without window, be there any or not: it counts the room for whole texts. One for each
    /// window follows.
    pools: Vec<Pool>,
    /// Positions written of the sequences that are open, by number.
    lens: Vec<Option<usize>>,
}

/// Pages of layers with a window, or without.
///
/// A sequence with a window has that many live positions behind the rows of a step, on pages that begin anywhere.
fn n_pages(window: Option<usize>, limits: &Limits) -> usize {
    let whole = limits.kv_tokens.div_ceil(limits.page_tokens);
    let Some(window) = window else { return whole };
    let n_windows = limits.max_windows.clamp(1, limits.max_sequences.max(1));
    let of_window = window.div_ceil(limits.page_tokens).saturating_add(2);
    n_windows.saturating_mul(of_window).saturating_add(limits.max_rows.div_ceil(limits.page_tokens)).min(whole)
}

impl KvCache {
    /// Bytes that a cache takes.
    pub(crate) fn bytes_for(layers: &[KvLayer], limits: &Limits) -> u64 {
        let (kv_type, page_tokens) = (limits.kv_type, limits.page_tokens);
        let per_head = |layer: &KvLayer| {
            block_bytes(kv_type, page_tokens, layer.key_dim) + block_bytes(kv_type, page_tokens, layer.value_dim)
        };
        layers.iter().map(|layer| (n_pages(layer.window, limits) * layer.n_kv_heads * per_head(layer)) as u64).sum()
    }

    pub(crate) fn try_new(layers: &[KvLayer], limits: &Limits) -> Result<Self, DeviceError> {
        let Limits { kv_type, page_tokens, max_rows, max_sequences, .. } = *limits;
        let mut windows = vec![None];
        for layer in layers {
            if !windows.contains(&layer.window) {
                windows.push(layer.window);
            }
        }
        let pool = |window: &Option<usize>| {
            Pool::try_new(*window, page_tokens, n_pages(*window, limits), max_sequences, n_pages(None, limits))
        };
        let planes = |layer: &KvLayer| {
            let n_pages = n_pages(layer.window, limits);
            let plane = |dim| Plane::try_new(kv_type, n_pages, page_tokens, layer.n_kv_heads, dim);
            let pool = windows.iter().position(|window| *window == layer.window).unwrap_or(0);
            Ok(Layer { pool, keys: plane(layer.key_dim)?, values: plane(layer.value_dim)? })
        };
        let mut lens = room(max_sequences)?;
        lens.resize(max_sequences, None);
        Ok(Self {
            kv_type,
            page_tokens,
            max_rows,
            layers: layers.iter().map(planes).collect::<Result<_, DeviceError>>()?,
            pools: windows.iter().map(pool).collect::<Result<_, DeviceError>>()?,
            lens,
        })
    }

    pub(crate) fn kv_type(&self) -> KvType {
        self.kv_type
    }

    pub(crate) fn page_tokens(&self) -> usize {
        self.page_tokens
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
        self.len_of(sequence).is_some()
    }

    /// The page table of a sequence for a layer; empty if the sequence is not open. Where positions are behind the
    /// layer's window there may be no page.
    pub(crate) fn pages(&self, sequence: Sequence, layer: usize) -> &[u32] {
        self.pools[self.layers[layer].pool].table(sequence.0 as usize)
    }

    fn len_of(&self, sequence: Sequence) -> Option<usize> {
        *self.lens.get(sequence.0 as usize)?
    }

    /// Makes positions `from..to` the sequence's own to write; false if they are not reserved, or a page is missing: for
    /// a copy of one that another sequence shares.
    pub(crate) fn make_writable(&mut self, sequence: Sequence, from: usize, to: usize) -> bool {
        let slot = sequence.0 as usize;
        let is_reserved = to.div_ceil(self.page_tokens) <= self.pools[0].table(slot).len();
        is_reserved && (0..self.pools.len()).all(|pool| self.own(pool, slot, from, to))
    }

    fn own(&mut self, pool: usize, slot: usize, from: usize, to: usize) -> bool {
        let Self { pools, layers, page_tokens, .. } = self;
        if !pools[pool].grow(slot, to) {
            return false;
        }
        for place in from / *page_tokens..to.div_ceil(*page_tokens) {
            if !pools[pool].is_shared(slot, place) {
                continue;
            }
            let Some((shared, own)) = pools[pool].part_with(slot, place) else { return false };
            for layer in layers.iter_mut().filter(|layer| layer.pool == pool) {
                layer.keys.copy_page(shared, own);
                layer.values.copy_page(shared, own);
            }
        }
        true
    }

    /// Counts positions as written.
    pub(crate) fn set_len(&mut self, sequence: Sequence, len: usize) {
        let slot = sequence.0 as usize;
        if let Some(old) = self.lens.get_mut(slot).and_then(Option::as_mut) {
            *old = len;
            self.pools.iter_mut().for_each(|pool| pool.set_len(slot, len));
        }
    }
}

impl KvStore for KvCache {
    fn open(&mut self) -> Option<Sequence> {
        let slot = self.lens.iter().position(Option::is_none)?;
        self.lens[slot] = Some(0);
        Some(Sequence(slot as u32))
    }

    fn reserve(&mut self, sequence: Sequence, tokens: usize) -> bool {
        let Some(len) = self.len_of(sequence) else { return false };
        let slot = sequence.0 as usize;
        // Behind a window there is room again by the time that later steps need it.
        let next_step = tokens.min(len.saturating_add(self.max_rows));
        let until = |pool: &Pool| if pool.window().is_some() { next_step } else { tokens };
        if self.pools.iter().any(|pool| pool.needed(slot, len, until(pool)) > pool.n_free()) {
            return false;
        }
        for pool in 0..self.pools.len() {
            let until = until(&self.pools[pool]);
            if tokens > len && !self.own(pool, slot, len, len + 1) || !self.pools[pool].grow(slot, until) {
                return false;
            }
        }
        true
    }

    fn len(&self, sequence: Sequence) -> usize {
        self.len_of(sequence).unwrap_or(0)
    }

    fn resumable(&self, sequence: Sequence, tokens: usize) -> usize {
        let mut tokens = tokens.min(self.len(sequence));
        loop {
            let least = self.pools.iter().map(|pool| pool.resumable(sequence.0 as usize, tokens)).min().unwrap_or(0);
            if least == tokens {
                return tokens;
            }
            tokens = least;
        }
    }

    fn truncate(&mut self, sequence: Sequence, tokens: usize) -> usize {
        if !self.is_open(sequence) {
            return 0;
        }
        let len = self.resumable(sequence, tokens);
        let slot = sequence.0 as usize;
        self.pools.iter_mut().for_each(|pool| pool.truncate(slot, len));
        self.lens[slot] = Some(len);
        len
    }

    fn fork(&mut self, from: Sequence, tokens: usize) -> Option<Sequence> {
        if tokens > self.len_of(from)? || self.resumable(from, tokens) < tokens {
            return None;
        }
        let fork = self.open()?;
        self.pools.iter_mut().for_each(|pool| pool.fork(from.0 as usize, fork.0 as usize, tokens));
        self.lens[fork.0 as usize] = Some(tokens);
        Some(fork)
    }

    fn close(&mut self, sequence: Sequence) {
        if self.is_open(sequence) {
            self.truncate(sequence, 0);
            self.lens[sequence.0 as usize] = None;
        }
    }

    fn free_tokens(&self) -> usize {
        self.pools[0].n_free() * self.page_tokens
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
