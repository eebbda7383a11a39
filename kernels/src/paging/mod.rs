//! Which pages hold the keys and values of which sequences: the bookkeeping of a cache, wherever its bytes lie.
//!
//! A page holds `page_tokens` positions of all layers with the same window, or without one. Sequences share pages until
//! one of them writes: writing a page needs it in one table only, so a shared one is copied first, by whoever keeps the
//! bytes ([`Copies`]). Layers with a window keep what rows to come look at, and more while there is room; see [`pool`].
//! Tables and counts are made once, steps allocate nothing.

mod pool;

use std::ops::Range;

use crate::backend::{DeviceError, ImageShape, Limits, Sequence};
use crate::cpu::memory::room;
use crate::graph::KvLayer;
use pool::Pool;

/// Keeps the bytes of pages.
pub(crate) trait Copies {
    /// Copies a page of all layers of a pool into another page of it, which nobody uses.
    fn copy_page(&mut self, pool: usize, from: u32, to: u32);
}

/// Pages of all sequences.
pub(crate) struct Paging {
    page_tokens: usize,
    /// Most rows of a step.
    max_rows: usize,
    /// The pool that each layer's pages are of.
    layer_pools: Vec<usize>,
    /// The first is that of layers without window, be there any or not: it counts the room for whole texts. One for each
    /// window follows.
    pools: Vec<Pool>,
    /// Positions written of the sequences that are open, by number.
    lens: Vec<Option<usize>>,
}

/// Pages of layers with a window, or without.
///
/// A sequence with a window has that many live positions behind the rows of a step, on pages that begin anywhere.
pub(crate) fn n_pages(window: Option<usize>, limits: &Limits) -> usize {
    let whole = limits.kv_tokens.div_ceil(limits.page_tokens);
    let Some(window) = window else { return whole };
    let n_windows = limits.max_windows.clamp(1, limits.max_sequences.max(1));
    let of_window = window.div_ceil(limits.page_tokens).saturating_add(2);
    n_windows.saturating_mul(of_window).saturating_add(limits.max_rows.div_ceil(limits.page_tokens)).min(whole)
}

impl Paging {
    pub(crate) fn try_new(layers: &[KvLayer], limits: &Limits) -> Result<Self, DeviceError> {
        let Limits { page_tokens, max_rows, max_sequences, .. } = *limits;
        let mut windows = vec![None];
        for layer in layers {
            if !windows.contains(&layer.window) {
                windows.push(layer.window);
            }
        }
        let pool = |window: &Option<usize>| {
            Pool::try_new(*window, page_tokens, n_pages(*window, limits), max_sequences, n_pages(None, limits))
        };
        let of_layer = |layer: &KvLayer| windows.iter().position(|window| *window == layer.window).unwrap_or(0);
        let mut lens = room(max_sequences)?;
        lens.resize(max_sequences, None);
        Ok(Self {
            page_tokens,
            max_rows,
            layer_pools: layers.iter().map(of_layer).collect(),
            pools: windows.iter().map(pool).collect::<Result<_, DeviceError>>()?,
            lens,
        })
    }

    pub(crate) fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Pools there are.
    #[cfg_attr(
        not(any(feature = "cuda", feature = "wgpu")),
        allow(dead_code, reason = "for devices that take page tables over")
    )]
    pub(crate) fn n_pools(&self) -> usize {
        self.pools.len()
    }

    /// The pool that a layer's pages are of.
    pub(crate) fn pool_of(&self, layer: usize) -> usize {
        self.layer_pools[layer]
    }

    /// The page table of a sequence in a pool; empty if the sequence is not open. Where positions are behind the window
    /// there may be no page: then a number that is none.
    pub(crate) fn table(&self, sequence: Sequence, pool: usize) -> &[u32] {
        self.pools[pool].table(sequence.0 as usize)
    }

    /// True if `sequence` is open.
    pub(crate) fn is_open(&self, sequence: Sequence) -> bool {
        self.len_of(sequence).is_some()
    }

    fn len_of(&self, sequence: Sequence) -> Option<usize> {
        *self.lens.get(sequence.0 as usize)?
    }

    /// Positions written.
    pub(crate) fn len(&self, sequence: Sequence) -> usize {
        self.len_of(sequence).unwrap_or(0)
    }

    /// Makes positions `from..to` the sequence's own to write; false if they are not reserved, or a page is missing: for
    /// a copy of one that another sequence shares.
    pub(crate) fn make_writable(
        &mut self,
        sequence: Sequence,
        from: usize,
        to: usize,
        bytes: &mut impl Copies,
    ) -> bool {
        let slot = sequence.0 as usize;
        self.is_reserved(sequence, to) && (0..self.pools.len()).all(|pool| self.own(pool, slot, from, to, bytes))
    }

    fn is_reserved(&self, sequence: Sequence, to: usize) -> bool {
        to.div_ceil(self.page_tokens) <= self.table(sequence, 0).len()
    }

    fn own(&mut self, pool: usize, slot: usize, from: usize, to: usize, bytes: &mut impl Copies) -> bool {
        let pages = &mut self.pools[pool];
        if !pages.grow(slot, to) {
            return false;
        }
        for place in from / self.page_tokens..to.div_ceil(self.page_tokens) {
            if !pages.is_shared(slot, place) {
                continue;
            }
            let Some((shared, own)) = pages.part_with(slot, place) else { return false };
            bytes.copy_page(pool, shared, own);
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

    /// See [`crate::backend::KvStore::open`].
    pub(crate) fn open(&mut self) -> Option<Sequence> {
        let slot = self.lens.iter().position(Option::is_none)?;
        self.lens[slot] = Some(0);
        Some(Sequence(slot as u32))
    }

    /// See [`crate::backend::KvStore::reserve`].
    pub(crate) fn reserve(&mut self, sequence: Sequence, tokens: usize, bytes: &mut impl Copies) -> bool {
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
            if tokens > len && !self.own(pool, slot, len, len + 1, bytes) || !self.pools[pool].grow(slot, until) {
                return false;
            }
        }
        true
    }

    /// See [`crate::backend::KvStore::resumable`].
    pub(crate) fn resumable(&self, sequence: Sequence, tokens: usize) -> usize {
        let mut tokens = tokens.min(self.len(sequence));
        loop {
            let least = self.pools.iter().map(|pool| pool.resumable(sequence.0 as usize, tokens)).min().unwrap_or(0);
            if least == tokens {
                return tokens;
            }
            tokens = least;
        }
    }

    /// See [`crate::backend::KvStore::truncate`].
    pub(crate) fn truncate(&mut self, sequence: Sequence, tokens: usize) -> usize {
        if !self.is_open(sequence) {
            return 0;
        }
        let len = self.resumable(sequence, tokens);
        let slot = sequence.0 as usize;
        self.pools.iter_mut().for_each(|pool| pool.truncate(slot, len));
        self.lens[slot] = Some(len);
        len
    }

    /// See [`crate::backend::KvStore::fork`].
    pub(crate) fn fork(&mut self, from: Sequence, tokens: usize) -> Option<Sequence> {
        if tokens > self.len_of(from)? || self.resumable(from, tokens) < tokens {
            return None;
        }
        let fork = self.open()?;
        self.pools.iter_mut().for_each(|pool| pool.fork(from.0 as usize, fork.0 as usize, tokens));
        self.lens[fork.0 as usize] = Some(tokens);
        Some(fork)
    }

    /// See [`crate::backend::KvStore::close`].
    pub(crate) fn close(&mut self, sequence: Sequence) {
        if self.is_open(sequence) {
            self.truncate(sequence, 0);
            self.lens[sequence.0 as usize] = None;
        }
    }

    /// See [`crate::backend::KvStore::free_tokens`].
    pub(crate) fn free_tokens(&self) -> usize {
        self.pools[0].n_free() * self.page_tokens
    }

    /// The first position of a text of `n_tokens` that a layer keeps.
    pub(crate) fn first_kept(&self, layer: usize, n_tokens: usize) -> usize {
        ImageShape::first_kept(self.window(layer), n_tokens)
    }

    /// The window of a layer.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        self.pools[self.layer_pools[layer]].window()
    }

    /// Whether positions of the text that the first `n_tokens` of a sequence are can be read: those that each layer keeps
    /// of it are there.
    pub(crate) fn is_readable(&self, sequence: Sequence, n_tokens: usize, positions: &Range<usize>) -> bool {
        let is_text = positions.start <= positions.end && positions.end <= n_tokens && n_tokens <= self.len(sequence);
        let is_there = |pool: &Pool| {
            let from = positions.start.max(ImageShape::first_kept(pool.window(), n_tokens));
            pool.has(sequence.0 as usize, from, positions.end)
        };
        is_text && self.is_open(sequence) && self.pools.iter().all(is_there)
    }

    /// Makes room to append `n_positions` of a text of `n_tokens`: false if they are not all reserved, or there is no
    /// page. Of layers with a window, positions that it does not reach are left out.
    pub(crate) fn begin_append(
        &mut self,
        sequence: Sequence,
        n_tokens: usize,
        n_positions: usize,
        bytes: &mut impl Copies,
    ) -> bool {
        let from = self.len(sequence);
        let end = from.saturating_add(n_positions);
        if !self.is_reserved(sequence, end) {
            return false;
        }
        let slot = sequence.0 as usize;
        for pool in 0..self.pools.len() {
            let first = ImageShape::first_kept(self.pools[pool].window(), n_tokens);
            if first > from {
                self.pools[pool].begin_at(slot, first.min(end));
            }
            if first < end && !self.own(pool, slot, from.max(first), end, bytes) {
                return false;
            }
        }
        true
    }

    /// Whether the counts of all pools are those that their tables make.
    #[cfg(test)]
    pub(crate) fn recount(&self) {
        self.pools.iter().for_each(|pool| {
            pool.recounted();
        });
    }

    /// Whether no page is in use.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.pools.iter().all(pool::is_empty)
    }
}
