//! Keys and values of all sequences, in pages that sequences share until one of them writes.
//!
//! A page holds `page_tokens` positions of every layer. In each layer, page `p` of KV head `h` is one block of bytes,
//! `[token][dim]`: halves or floats, or for Q8_0 first the codes of all tokens and then their scales, one half per 32.
//! A page in use has a count of the sequences that have it in their table; writing needs a count of one, so a shared
//! page is copied first. Everything is allocated once (the system commits memory as pages fill), steps allocate
//! nothing.

mod image;

use super::memory::{Block, room, zeros};
use crate::backend::{DeviceError, KvStore, KvType, Sequence};
use crate::graph::KvLayer;

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

#[derive(Default)]
struct Open {
    pages: Vec<u32>,
    len: usize,
}

/// The cache of a plan.
pub(crate) struct KvCache {
    kv_type: KvType,
    page_tokens: usize,
    /// Keys and values of each layer.
    layers: Vec<(Plane, Plane)>,
    /// How many sequences have a page in their table.
    n_users: Vec<u32>,
    free: Vec<u32>,
    sequences: Vec<Option<Open>>,
    /// Page tables of ended sequences, kept so that opening one allocates nothing.
    spare: Vec<Vec<u32>>,
}

impl KvCache {
    /// Bytes that a cache of `n_pages` takes.
    pub(crate) fn bytes_for(layers: &[KvLayer], kv_type: KvType, n_pages: usize, page_tokens: usize) -> u64 {
        let per_head = |layer: &KvLayer| {
            block_bytes(kv_type, page_tokens, layer.key_dim) + block_bytes(kv_type, page_tokens, layer.value_dim)
        };
        layers.iter().map(|layer| (n_pages * layer.n_kv_heads * per_head(layer)) as u64).sum()
    }

    pub(crate) fn try_new(
        layers: &[KvLayer],
        kv_type: KvType,
        n_pages: usize,
        page_tokens: usize,
        max_sequences: usize,
    ) -> Result<Self, DeviceError> {
        let plane = |heads, dim| Plane::try_new(kv_type, n_pages, page_tokens, heads, dim);
        let planes =
            |layer: &KvLayer| Ok((plane(layer.n_kv_heads, layer.key_dim)?, plane(layer.n_kv_heads, layer.value_dim)?));
        let mut free = room(n_pages)?;
        free.extend((0..n_pages as u32).rev());
        let mut sequences = room(max_sequences)?;
        sequences.resize_with(max_sequences, || None);
        let mut spare = room(max_sequences)?;
        for _ in 0..max_sequences {
            spare.push(room(n_pages)?);
        }
        Ok(Self {
            kv_type,
            page_tokens,
            layers: layers.iter().map(planes).collect::<Result<_, DeviceError>>()?,
            n_users: zeros(n_pages)?,
            free,
            sequences,
            spare,
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
        self.layers.iter().map(|(keys, values)| keys.bytes.bytes() + values.bytes.bytes()).sum()
    }

    /// Key blocks of a head.
    pub(crate) fn keys(&self, layer: usize, head: usize) -> Place {
        self.layers[layer].0.head(head)
    }

    /// Value blocks of a head.
    pub(crate) fn values(&self, layer: usize, head: usize) -> Place {
        self.layers[layer].1.head(head)
    }

    /// True if `sequence` is open.
    pub(crate) fn is_open(&self, sequence: Sequence) -> bool {
        self.open_ref(sequence).is_some()
    }

    /// The page table; empty if the sequence is not open.
    pub(crate) fn pages(&self, sequence: Sequence) -> &[u32] {
        self.open_ref(sequence).map_or(&[], |open| &open.pages)
    }

    fn open_ref(&self, sequence: Sequence) -> Option<&Open> {
        self.sequences.get(sequence.0 as usize)?.as_ref()
    }

    fn open_mut(&mut self, sequence: Sequence) -> Option<&mut Open> {
        self.sequences.get_mut(sequence.0 as usize)?.as_mut()
    }

    /// Makes positions `from..to` the sequence's own to write; false if they are not reserved, or a page that another
    /// sequence shares cannot be copied because none is free.
    pub(crate) fn make_writable(&mut self, sequence: Sequence, from: usize, to: usize) -> bool {
        let n_pages = self.pages(sequence).len();
        let (first, last) = (from / self.page_tokens, to.div_ceil(self.page_tokens));
        if last > n_pages {
            return false;
        }
        for index in first..last {
            let page = self.pages(sequence)[index];
            if self.n_users[page as usize] == 1 {
                continue;
            }
            let Some(own) = self.free.pop() else { return false };
            for (keys, values) in &mut self.layers {
                keys.copy_page(page, own);
                values.copy_page(page, own);
            }
            self.n_users[page as usize] -= 1;
            self.n_users[own as usize] = 1;
            if let Some(open) = self.open_mut(sequence) {
                open.pages[index] = own;
            }
        }
        true
    }

    /// Counts positions as written.
    pub(crate) fn set_len(&mut self, sequence: Sequence, len: usize) {
        if let Some(open) = self.open_mut(sequence) {
            open.len = len;
        }
    }

    fn release(n_users: &mut [u32], free: &mut Vec<u32>, page: u32) {
        let users = &mut n_users[page as usize];
        *users -= 1;
        if *users == 0 {
            free.push(page);
        }
    }
}

impl KvStore for KvCache {
    fn open(&mut self) -> Option<Sequence> {
        let slot = self.sequences.iter().position(Option::is_none)?;
        self.sequences[slot] = Some(Open { pages: self.spare.pop().unwrap_or_default(), len: 0 });
        Some(Sequence(slot as u32))
    }

    fn reserve(&mut self, sequence: Sequence, tokens: usize) -> bool {
        let Some(open) = self.open_ref(sequence) else { return false };
        let (have, len, n_pages) = (open.pages.len(), open.len, tokens.div_ceil(self.page_tokens));
        // The page that is written next may be shared: its copy takes one more.
        let next = open.pages.get(len / self.page_tokens);
        let needs_copy = tokens > len && next.is_some_and(|&page| self.n_users[page as usize] > 1);
        if n_pages.saturating_sub(have) + usize::from(needs_copy) > self.free.len() {
            return false;
        }
        if needs_copy && !self.make_writable(sequence, len, len + 1) {
            return false;
        }
        for _ in have..n_pages {
            let Some(page) = self.free.pop() else { return false };
            self.n_users[page as usize] = 1;
            if let Some(open) = self.open_mut(sequence) {
                open.pages.push(page);
            }
        }
        true
    }

    fn len(&self, sequence: Sequence) -> usize {
        self.open_ref(sequence).map_or(0, |open| open.len)
    }

    fn truncate(&mut self, sequence: Sequence, tokens: usize) {
        let Self { sequences, n_users, free, page_tokens, .. } = self;
        let Some(open) = sequences.get_mut(sequence.0 as usize).and_then(Option::as_mut) else { return };
        open.len = open.len.min(tokens);
        for page in open.pages.drain(open.pages.len().min(tokens.div_ceil(*page_tokens))..) {
            Self::release(n_users, free, page);
        }
    }

    fn fork(&mut self, from: Sequence, tokens: usize) -> Option<Sequence> {
        if tokens > self.open_ref(from)?.len {
            return None;
        }
        let fork = self.open()?;
        let Self { sequences, n_users, page_tokens, .. } = self;
        let mut taken = sequences[fork.0 as usize].take()?;
        let source = sequences[from.0 as usize].as_ref()?;
        taken.pages.extend_from_slice(&source.pages[..tokens.div_ceil(*page_tokens)]);
        taken.len = tokens;
        for &page in &taken.pages {
            n_users[page as usize] += 1;
        }
        sequences[fork.0 as usize] = Some(taken);
        Some(fork)
    }

    fn close(&mut self, sequence: Sequence) {
        self.truncate(sequence, 0);
        if let Some(open) = self.sequences.get_mut(sequence.0 as usize).and_then(Option::take) {
            self.spare.push(open.pages);
        }
    }

    fn free_tokens(&self) -> usize {
        self.free.len() * self.page_tokens
    }

    fn token_bytes(&self) -> usize {
        image::token_bytes(self)
    }

    fn read(&self, sequence: Sequence, from: usize, out: &mut [u8]) -> bool {
        image::read(self, sequence, from, out)
    }

    fn append(&mut self, sequence: Sequence, bytes: &[u8]) -> bool {
        image::append(self, sequence, bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer() -> KvLayer {
        KvLayer { n_kv_heads: 2, key_dim: 32, value_dim: 32, window: None }
    }

    fn cache(n_pages: usize) -> KvCache {
        KvCache::try_new(&[layer(), layer()], KvType::F16, n_pages, 4, 3).unwrap()
    }

    /// Stands for a step: marks the positions in the first byte of each token's key.
    fn write(cache: &mut KvCache, sequence: Sequence, from: usize, to: usize, mark: u8) -> bool {
        if !cache.make_writable(sequence, from, to) {
            return false;
        }
        for position in from..to {
            let (place, page) = (cache.keys(1, 1), cache.pages(sequence)[position / 4] as usize);
            // SAFETY: inside the page; tokens of 64 bytes.
            unsafe { *place.start.add(page * place.page_stride + position % 4 * 64) = mark };
        }
        cache.set_len(sequence, to);
        true
    }

    fn marks(cache: &KvCache, sequence: Sequence) -> Vec<u8> {
        let (place, pages) = (cache.keys(1, 1), cache.pages(sequence));
        let at = |position: usize| pages[position / 4] as usize * place.page_stride + position % 4 * 64;
        // SAFETY: inside the page.
        (0..cache.len(sequence)).map(|position| unsafe { *place.start.add(at(position)) }).collect()
    }

    #[test]
    fn a_fork_shares_pages_until_either_side_writes() {
        let mut cache = cache(8);
        let first = cache.open().unwrap();
        assert!(cache.reserve(first, 6) && write(&mut cache, first, 0, 6, 1));
        assert_eq!(cache.free_tokens(), 24);
        let second = cache.fork(first, 5).unwrap();
        assert_eq!((cache.len(second), cache.free_tokens()), (5, 24));
        assert!(cache.reserve(second, 7) && write(&mut cache, second, 5, 7, 2));
        assert!(write(&mut cache, first, 6, 8, 3));
        assert_eq!(marks(&cache, first), [1, 1, 1, 1, 1, 1, 3, 3]);
        assert_eq!(marks(&cache, second), [1, 1, 1, 1, 1, 2, 2]);
        cache.close(first);
        assert_eq!(marks(&cache, second), [1, 1, 1, 1, 1, 2, 2]);
        cache.close(second);
        assert_eq!(cache.free_tokens(), 32);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut cache = cache(2);
        let first = cache.open().unwrap();
        assert!(!cache.reserve(first, 9) && cache.free_tokens() == 8);
        assert!(cache.reserve(first, 8));
        let others = [cache.open().unwrap(), cache.open().unwrap()];
        assert!(cache.open().is_none() && !cache.reserve(others[0], 1));
        assert!(!cache.make_writable(first, 7, 9), "not reserved");
        assert!(cache.fork(first, 1).is_none(), "longer than what is written");
        cache.close(others[1]);
        assert!(!cache.is_open(others[1]) && !cache.reserve(others[1], 1) && cache.open().is_some());
    }

    #[test]
    fn a_quantized_block_has_room_for_codes_and_scales() {
        assert_eq!(block_bytes(KvType::Q8_0, 32, 64), 32 * 68);
        assert_eq!(block_bytes(KvType::F16, 32, 80), 32 * 160);
        assert_eq!(KvCache::bytes_for(&[layer()], KvType::F32, 3, 16), 3 * 2 * 2 * 16 * 32 * 4);
    }

    proptest! {
        #[test]
        fn sequences_never_see_each_others_writes(
            actions in prop::collection::vec((0_u8..5, 0_usize..3, 1_usize..9), 1..60),
        ) {
            let mut cache = cache(10);
            let mut model: Vec<Option<(Sequence, Vec<u8>)>> = vec![None, None, None];
            for (number, (action, slot, amount)) in actions.into_iter().enumerate() {
                let mark = number as u8 + 1;
                match (action, model[slot].clone()) {
                    (0, None) => model[slot] = cache.open().map(|sequence| (sequence, Vec::new())),
                    (1 | 2, Some((sequence, mut known))) => {
                        let (from, to) = (known.len(), known.len() + amount);
                        if cache.reserve(sequence, to) {
                            // Reserved pages may have been shared since; then a copy can be out of reach.
                            prop_assert!(write(&mut cache, sequence, from, to, mark));
                            known.resize(to, mark);
                            model[slot] = Some((sequence, known));
                        }
                    }
                    (3, Some((sequence, mut known))) => {
                        known.truncate(amount);
                        cache.truncate(sequence, amount);
                        model[slot] = Some((sequence, known));
                    }
                    (4, Some((sequence, known))) => match model.iter().position(Option::is_none) {
                        Some(free) if amount <= known.len() => {
                            let fork = cache.fork(sequence, amount);
                            model[free] = fork.map(|fork| (fork, known[..amount].to_vec()));
                        }
                        _ => {
                            cache.close(sequence);
                            model[slot] = None;
                        }
                    },
                    _ => {}
                }
                for (sequence, known) in model.iter().flatten() {
                    prop_assert_eq!(&marks(&cache, *sequence), known);
                }
                let used: std::collections::BTreeSet<u32> =
                    model.iter().flatten().flat_map(|(sequence, _)| cache.pages(*sequence).to_vec()).collect();
                prop_assert_eq!(cache.free_tokens(), 4 * (10 - used.len()));
            }
        }
    }
}
