//! Keys and values in the memory of a device, in pages: [`Paging`] says whose they are, [`PageMemory`] keeps their bytes.
//!
//! In each layer, page `p` of KV head `h` is one block `[token][dim]`, a vector filled up to whole fours; for Q8_0 first the
//! codes of all tokens, then their scales, one f32 per 32 that a half holds too. Shared pages are copied on the device.

use std::ops::Range;

use crate::backend::{DeviceError, ImageShape, KvStore, KvType, Limits, Sequence};
use crate::cpu::kv::Q8_LEN;
use crate::graph::KvLayer;
use crate::paging::{Copies, Paging, n_pages};

/// Memory of a device that pages lie in.
pub(crate) trait PageMemory {
    /// A piece of it.
    type Buffer;
    /// A new piece.
    fn buffer(&self, n_bytes: u64) -> Result<Self::Buffer, DeviceError>;
    /// Copies so many bytes within pieces, from one place to another. If it fails, what follows fails too.
    fn copy(&self, copies: &[(&Self::Buffer, Range<u64>, u64)]);
    /// Reads parts of pieces, one after the other.
    fn read(&self, parts: &[(&Self::Buffer, Range<u64>)], out: &mut Vec<u8>) -> Result<(), DeviceError>;
    /// Writes to a piece from a byte on.
    fn write(&self, buffer: &Self::Buffer, at: u64, bytes: &[u8]) -> Result<(), DeviceError>;
    /// Waits until all that was written is there.
    fn flush(&self) -> Result<(), DeviceError>;
}

/// Keys or values of one layer.
pub(crate) struct Plane<B> {
    pub(crate) buffer: B,
    n_heads: usize,
    dim: usize,
    kv_type: KvType,
    page_tokens: usize,
}

/// Bytes of a vector: its elements in whole fours, and its scales.
fn vector_bytes(kv_type: KvType, dim: usize) -> (usize, usize) {
    let fours = dim.div_ceil(4);
    match kv_type {
        KvType::F16 => (8 * fours, 0),
        KvType::F32 => (16 * fours, 0),
        KvType::Q8_0 => (4 * fours, dim / Q8_LEN * 4),
    }
}

fn page_bytes(kv_type: KvType, page_tokens: usize, n_heads: usize, dim: usize) -> u64 {
    let (elements, scales) = vector_bytes(kv_type, dim);
    (page_tokens as u64).saturating_mul(n_heads as u64).saturating_mul((elements + scales) as u64)
}

/// Bytes of the largest page of any layer.
#[cfg_attr(not(feature = "wgpu"), allow(dead_code, reason = "for devices that copy through a buffer"))]
pub(crate) fn largest_page_bytes(layers: &[KvLayer], limits: &Limits) -> u64 {
    let of = |layer: &KvLayer| {
        let dim = layer.key_dim.max(layer.value_dim);
        page_bytes(limits.kv_type, limits.page_tokens, layer.n_kv_heads, dim)
    };
    layers.iter().map(of).max().unwrap_or(0)
}

impl<B> Plane<B> {
    fn new(
        memory: &impl PageMemory<Buffer = B>,
        layer: &KvLayer,
        dim: usize,
        limits: &Limits,
    ) -> Result<Self, DeviceError> {
        let Limits { kv_type, page_tokens, .. } = *limits;
        let n_heads = layer.n_kv_heads;
        let n_bytes =
            page_bytes(kv_type, page_tokens, n_heads, dim).saturating_mul(n_pages(layer.window, limits) as u64);
        Ok(Self { buffer: memory.buffer(n_bytes)?, n_heads, dim, kv_type, page_tokens })
    }

    fn page_bytes(&self) -> u64 {
        page_bytes(self.kv_type, self.page_tokens, self.n_heads, self.dim)
    }

    fn page(&self, number: u32) -> Range<u64> {
        let start = u64::from(number) * self.page_bytes();
        start..start + self.page_bytes()
    }

    /// Where the vector of a head lies in a page: elements and their length, then scales and theirs.
    fn place(&self, head: usize, token: usize) -> [(usize, usize); 2] {
        let (elements, scales) = vector_bytes(self.kv_type, self.dim);
        let block = head * self.page_tokens * (elements + scales);
        let of_scales = block + self.page_tokens * elements + token * scales;
        [(block + token * elements, elements), (of_scales, scales)]
    }

    /// Bytes of a head's vector in an image.
    fn image_vector_bytes(&self) -> usize {
        self.kv_type.vector_bytes(self.dim)
    }

    /// Bytes of a position in an image.
    fn image_bytes(&self) -> usize {
        self.n_heads * self.image_vector_bytes()
    }

    /// A position of a page as images have it.
    fn to_image(&self, page: &[u8], token: usize, out: &mut [u8]) {
        for (head, out) in out.chunks_exact_mut(self.image_vector_bytes()).enumerate() {
            let [elements, scales] = self.place(head, token).map(|(start, len)| &page[start..start + len]);
            let (own, of_scales) = out.split_at_mut(out.len() - scales.len() / 2);
            own.copy_from_slice(&elements[..own.len()]);
            for (half, scale) in of_scales.as_chunks_mut::<2>().0.iter_mut().zip(scales.as_chunks::<4>().0) {
                *half = half::f16::from_f32(f32::from_le_bytes(*scale)).to_le_bytes();
            }
        }
    }

    /// Appends the vector of a head as it lies in a page, from an image: elements, scales.
    fn of_image(&self, image: &[u8], elements: &mut Vec<u8>, scales: &mut Vec<u8>) {
        let (n_elements, n_scales) = vector_bytes(self.kv_type, self.dim);
        let (own, of_scales) = image.split_at(image.len() - n_scales / 2);
        let start = elements.len();
        elements.extend_from_slice(own);
        elements.resize(start + n_elements, 0);
        for half in of_scales.as_chunks::<2>().0 {
            scales.extend_from_slice(&half::f16::from_le_bytes(*half).to_f32().to_le_bytes());
        }
    }
}

/// Keys and values of one layer.
pub(crate) struct Layer<B> {
    pool: usize,
    pub(crate) keys: Plane<B>,
    pub(crate) values: Plane<B>,
}

impl<B> Layer<B> {
    fn planes(&self) -> [&Plane<B>; 2] {
        [&self.keys, &self.values]
    }
}

/// Layers, with what copies pages.
struct Pages<M: PageMemory> {
    memory: M,
    layers: Vec<Layer<M::Buffer>>,
}

impl<M: PageMemory> Copies for Pages<M> {
    fn copy_page(&mut self, pool: usize, from: u32, to: u32) {
        let planes = self.layers.iter().filter(|layer| layer.pool == pool).flat_map(Layer::planes);
        let copies: Vec<_> = planes.map(|plane| (&plane.buffer, plane.page(from), plane.page(to).start)).collect();
        self.memory.copy(&copies);
    }
}

/// The cache of a plan.
pub(crate) struct Cache<M: PageMemory> {
    pub(crate) paging: Paging,
    pages: Pages<M>,
}

/// Bytes that a cache takes.
pub(crate) fn cache_bytes(layers: &[KvLayer], limits: &Limits) -> u64 {
    let of = |layer: &KvLayer| {
        let plane = |dim| page_bytes(limits.kv_type, limits.page_tokens, layer.n_kv_heads, dim);
        (plane(layer.key_dim) + plane(layer.value_dim)).saturating_mul(n_pages(layer.window, limits) as u64)
    };
    layers.iter().map(of).fold(0, u64::saturating_add)
}

impl<M: PageMemory> Cache<M> {
    pub(crate) fn new(memory: M, layers: &[KvLayer], limits: &Limits) -> Result<Self, DeviceError> {
        let paging = Paging::try_new(layers, limits)?;
        let planes = |(number, layer): (usize, &KvLayer)| {
            let keys = Plane::new(&memory, layer, layer.key_dim, limits)?;
            let values = Plane::new(&memory, layer, layer.value_dim, limits)?;
            Ok(Layer { pool: paging.pool_of(number), keys, values })
        };
        let layers = layers.iter().enumerate().map(planes).collect::<Result<_, DeviceError>>()?;
        Ok(Self { paging, pages: Pages { memory, layers } })
    }

    /// Keys and values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> &Layer<M::Buffer> {
        &self.pages.layers[layer]
    }

    /// Makes positions the sequence's own to write.
    pub(crate) fn make_writable(&mut self, sequence: Sequence, from: usize, to: usize) -> bool {
        self.paging.make_writable(sequence, from, to, &mut self.pages)
    }

    /// Layers with the first of some positions of a text of `n_tokens` that they keep.
    fn kept(
        &self,
        positions: &Range<usize>,
        n_tokens: usize,
    ) -> impl Iterator<Item = (&Layer<M::Buffer>, usize)> + use<'_, M> {
        let (start, end) = (positions.start, positions.end);
        let first = move |number| self.paging.first_kept(number, n_tokens).max(start);
        let layers = self.pages.layers.iter().enumerate().map(move |(number, layer)| (layer, first(number)));
        layers.filter(move |(_, first)| *first < end)
    }

    /// Where each position begins in the bytes of some of a text, and where the last one ends.
    fn starts(&self, n_tokens: usize, positions: &Range<usize>) -> Vec<usize> {
        let image = self.image();
        let start = |end| image.bytes(n_tokens, positions.start..end) as usize;
        (positions.start..=positions.end).map(start).collect()
    }

    /// Copies positions of one page place out of all layers that keep any of them.
    fn read_place(
        &self,
        sequence: Sequence,
        n_tokens: usize,
        positions: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        let page_tokens = self.paging.page_tokens();
        let place = positions.start / page_tokens;
        let page_of = |layer: &Layer<_>| self.paging.table(sequence, layer.pool)[place];
        let kept = || self.kept(&positions, n_tokens);
        let parts =
            kept().flat_map(|(layer, _)| layer.planes().map(|plane| (&plane.buffer, plane.page(page_of(layer)))));
        let mut bytes = Vec::new();
        self.pages.memory.read(&parts.collect::<Vec<_>>(), &mut bytes)?;
        let mut starts = self.starts(n_tokens, &positions);
        let mut rest = &bytes[..];
        for (layer, first) in kept() {
            for plane in layer.planes() {
                let (page, behind) = rest.split_at(plane.page_bytes() as usize);
                rest = behind;
                for position in first..positions.end {
                    let start = &mut starts[position - positions.start];
                    plane.to_image(page, position % page_tokens, &mut out[*start..][..plane.image_bytes()]);
                    *start += plane.image_bytes();
                }
            }
        }
        Ok(())
    }

    /// Writes positions of one page place of a text into their pages, which are the sequence's own.
    fn write_place(
        &self,
        sequence: Sequence,
        n_tokens: usize,
        positions: Range<usize>,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let page_tokens = self.paging.page_tokens();
        let place = positions.start / page_tokens;
        let mut starts = self.starts(n_tokens, &positions);
        let (mut elements, mut scales) = (Vec::new(), Vec::new());
        for (layer, first) in self.kept(&positions, n_tokens) {
            let number = self.paging.table(sequence, layer.pool)[place];
            for plane in layer.planes() {
                let page = plane.page(number).start;
                for head in 0..plane.n_heads {
                    elements.clear();
                    scales.clear();
                    for position in first..positions.end {
                        let start = starts[position - positions.start] + head * plane.image_vector_bytes();
                        let image = &bytes[start..][..plane.image_vector_bytes()];
                        plane.of_image(image, &mut elements, &mut scales);
                    }
                    // Tokens of a head lie one behind the other.
                    let at = plane.place(head, first % page_tokens).map(|(start, _)| page + start as u64);
                    for (at, bytes) in at.into_iter().zip([&elements, &scales]) {
                        if !bytes.is_empty() {
                            self.pages.memory.write(&plane.buffer, at, bytes)?;
                        }
                    }
                }
                starts[first - positions.start..].iter_mut().for_each(|start| *start += plane.image_bytes());
            }
        }
        Ok(())
    }

    /// Some positions, and the bytes of each part of them that lies in one page place.
    fn by_place(&self, n_tokens: usize, positions: Range<usize>) -> Vec<(Range<usize>, Range<usize>)> {
        let (image, page_tokens) = (self.image(), self.paging.page_tokens());
        let (mut places, mut from, mut start) = (Vec::new(), positions.start, 0);
        while from < positions.end {
            let to = positions.end.min((from / page_tokens + 1) * page_tokens);
            let end = start + image.bytes(n_tokens, from..to) as usize;
            places.push((from..to, start..end));
            (from, start) = (to, end);
        }
        places
    }
}

impl<M: PageMemory> KvStore for Cache<M> {
    fn open(&mut self) -> Option<Sequence> {
        self.paging.open()
    }

    fn reserve(&mut self, sequence: Sequence, tokens: usize) -> bool {
        self.paging.reserve(sequence, tokens, &mut self.pages)
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
        let of_layer = |(number, layer): (usize, &Layer<_>)| {
            (self.paging.window(number), layer.planes().into_iter().map(Plane::image_bytes).sum())
        };
        ImageShape::new(self.pages.layers.iter().enumerate().map(of_layer))
    }

    fn read(&self, sequence: Sequence, n_tokens: usize, positions: Range<usize>, out: &mut [u8]) -> bool {
        let is_readable = self.paging.is_readable(sequence, n_tokens, &positions);
        if !is_readable || self.image().bytes(n_tokens, positions.clone()) != out.len() as u64 {
            return false;
        }
        let mut places = self.by_place(n_tokens, positions).into_iter();
        places.all(|(positions, bytes)| self.read_place(sequence, n_tokens, positions, &mut out[bytes]).is_ok())
    }

    fn append(&mut self, sequence: Sequence, n_tokens: usize, n_positions: usize, bytes: &[u8]) -> bool {
        let from = self.len(sequence);
        let end = from.saturating_add(n_positions);
        let is_text = self.paging.is_open(sequence) && end <= n_tokens;
        if !is_text || self.image().bytes(n_tokens, from..end) != bytes.len() as u64 {
            return false;
        }
        if !self.paging.begin_append(sequence, n_tokens, n_positions, &mut self.pages) {
            return false;
        }
        for (positions, own) in self.by_place(n_tokens, from..end) {
            if self.write_place(sequence, n_tokens, positions, &bytes[own]).is_err() {
                return false;
            }
        }
        if self.pages.memory.flush().is_err() {
            return false;
        }
        self.paging.set_len(sequence, end);
        true
    }
}
