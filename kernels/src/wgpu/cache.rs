//! Keys and values on the device, in pages: [`Paging`] says whose they are, here are their bytes.
//!
//! In each layer, page `p` of KV head `h` is one block `[token][dim]`, a vector filled up to whole fours; for Q8_0 first the
//! codes of all tokens, then their scales, one f32 per 32 that a half holds too. Shared pages are copied on the device.

use std::ops::Range;
use std::sync::Arc;

use ::wgpu::BufferUsages;

use super::gpu::Gpu;
use crate::backend::{DeviceError, ImageShape, KvStore, KvType, Limits, Sequence};
use crate::cpu::kv::Q8_LEN;
use crate::graph::KvLayer;
use crate::paging::{Copies, Paging, n_pages};

/// Keys or values of one layer.
pub(super) struct Plane {
    pub(super) buffer: ::wgpu::Buffer,
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
    page_tokens as u64 * n_heads as u64 * (elements + scales) as u64
}

impl Plane {
    fn new(gpu: &Gpu, layer: &KvLayer, dim: usize, limits: &Limits) -> Result<Self, DeviceError> {
        let Limits { kv_type, page_tokens, .. } = *limits;
        let n_heads = layer.n_kv_heads;
        let n_bytes =
            page_bytes(kv_type, page_tokens, n_heads, dim).saturating_mul(n_pages(layer.window, limits) as u64);
        let buffer = gpu.storage("keys or values of a layer", n_bytes)?;
        Ok(Self { buffer, n_heads, dim, kv_type, page_tokens })
    }

    fn page_bytes(&self) -> u64 {
        page_bytes(self.kv_type, self.page_tokens, self.n_heads, self.dim)
    }

    /// Where the vector of a head lies in a page: elements and their length, then scales and theirs.
    fn place(&self, head: usize, token: usize) -> [(usize, usize); 2] {
        let (elements, scales) = vector_bytes(self.kv_type, self.dim);
        let block = head * self.page_tokens * (elements + scales);
        let of_scales = block + self.page_tokens * elements + token * scales;
        [(block + token * elements, elements), (of_scales, scales)]
    }

    /// Bytes of a position in an image.
    fn image_bytes(&self) -> usize {
        self.n_heads * self.kv_type.vector_bytes(self.dim)
    }

    /// A position of a page as images have it.
    fn to_image(&self, page: &[u8], token: usize, out: &mut [u8]) {
        for (head, out) in out.chunks_exact_mut(self.kv_type.vector_bytes(self.dim)).enumerate() {
            let [elements, scales] = self.place(head, token).map(|(start, len)| &page[start..start + len]);
            let (own, of_scales) = out.split_at_mut(out.len() - scales.len() / 2);
            own.copy_from_slice(&elements[..own.len()]);
            for (half, scale) in of_scales.as_chunks_mut::<2>().0.iter_mut().zip(scales.as_chunks::<4>().0) {
                *half = half::f16::from_f32(f32::from_le_bytes(*scale)).to_le_bytes();
            }
        }
    }

    /// The vector of a head as it lies in a page, from an image: elements, then scales.
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
pub(super) struct Layer {
    pool: usize,
    pub(super) keys: Plane,
    pub(super) values: Plane,
}

impl Layer {
    fn planes(&self) -> [&Plane; 2] {
        [&self.keys, &self.values]
    }
}

/// Layers, with what copies pages.
struct Pages {
    gpu: Arc<Gpu>,
    layers: Vec<Layer>,
    /// Takes a page on its way: a buffer is not copied onto itself.
    passage: ::wgpu::Buffer,
}

impl Copies for Pages {
    fn copy_page(&mut self, pool: usize, from: u32, to: u32) {
        let mut encoder = self.gpu.encoder();
        for plane in self.layers.iter().filter(|layer| layer.pool == pool).flat_map(Layer::planes) {
            let n_bytes = plane.page_bytes();
            encoder.copy_buffer_to_buffer(&plane.buffer, u64::from(from) * n_bytes, &self.passage, 0, n_bytes);
            encoder.copy_buffer_to_buffer(&self.passage, 0, &plane.buffer, u64::from(to) * n_bytes, n_bytes);
        }
        // What follows is done after it; if it fails, that fails too.
        self.gpu.queue.submit([encoder.finish()]);
    }
}

/// The cache of a plan.
pub(super) struct Cache {
    pub(super) paging: Paging,
    pages: Pages,
    kv_type: KvType,
}

impl Cache {
    /// Bytes that a cache takes.
    pub(super) fn bytes_for(layers: &[KvLayer], limits: &Limits) -> u64 {
        let of = |layer: &KvLayer| {
            let plane = |dim| page_bytes(limits.kv_type, limits.page_tokens, layer.n_kv_heads, dim);
            (plane(layer.key_dim) + plane(layer.value_dim)).saturating_mul(n_pages(layer.window, limits) as u64)
        };
        layers.iter().map(of).fold(0, u64::saturating_add)
    }

    pub(super) fn new(gpu: &Arc<Gpu>, layers: &[KvLayer], limits: &Limits) -> Result<Self, DeviceError> {
        let paging = Paging::try_new(layers, limits)?;
        let planes = |(number, layer): (usize, &KvLayer)| {
            let keys = Plane::new(gpu, layer, layer.key_dim, limits)?;
            let values = Plane::new(gpu, layer, layer.value_dim, limits)?;
            Ok(Layer { pool: paging.pool_of(number), keys, values })
        };
        let layers: Vec<Layer> = layers.iter().enumerate().map(planes).collect::<Result<_, DeviceError>>()?;
        let most = layers.iter().flat_map(Layer::planes).map(Plane::page_bytes).max().unwrap_or(16);
        let passage = gpu.buffer("a page on its way", most, BufferUsages::COPY_SRC | BufferUsages::COPY_DST)?;
        let pages = Pages { gpu: Arc::clone(gpu), layers, passage };
        Ok(Self { paging, pages, kv_type: limits.kv_type })
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> &Layer {
        &self.pages.layers[layer]
    }

    /// Makes positions the sequence's own to write.
    pub(super) fn make_writable(&mut self, sequence: Sequence, from: usize, to: usize) -> bool {
        self.paging.make_writable(sequence, from, to, &mut self.pages)
    }

    /// Layers that keep a position of a text of `n_tokens`, with their numbers.
    fn keeping(&self, position: usize, n_tokens: usize) -> impl Iterator<Item = (usize, &Layer)> {
        let is_kept = move |number: usize| position >= self.paging.first_kept(number, n_tokens);
        self.pages.layers.iter().enumerate().filter(move |(number, _)| is_kept(*number))
    }

    /// Copies positions of one page place out of all layers that keep any of them.
    fn read_place(
        &self,
        sequence: Sequence,
        n_tokens: usize,
        positions: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        let gpu = &self.pages.gpu;
        let page_tokens = self.paging.page_tokens();
        let place = positions.start / page_tokens;
        // Windows only ever keep the later positions: the last one's layers are all.
        let kept: Vec<(usize, &Layer)> = self.keeping(positions.end - 1, n_tokens).collect();
        let n_bytes: u64 = kept.iter().flat_map(|(_, layer)| layer.planes()).map(Plane::page_bytes).sum();
        if n_bytes == 0 {
            return Ok(());
        }
        let staging = gpu.buffer("pages to read", n_bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        let mut encoder = gpu.encoder();
        let mut at = 0;
        for (_, layer) in &kept {
            let page = u64::from(self.paging.table(sequence, layer.pool)[place]);
            for plane in layer.planes() {
                let n_bytes = plane.page_bytes();
                encoder.copy_buffer_to_buffer(&plane.buffer, page * n_bytes, &staging, at, n_bytes);
                at += n_bytes;
            }
        }
        gpu.read_back(encoder, &staging, n_bytes, |bytes| {
            let mut rest = out;
            for position in positions {
                let mut at = 0;
                for (number, layer) in &kept {
                    let is_kept = position >= self.paging.first_kept(*number, n_tokens);
                    for plane in layer.planes() {
                        let page = &bytes[at..at + plane.page_bytes() as usize];
                        at += page.len();
                        if is_kept {
                            let (own, behind) = std::mem::take(&mut rest).split_at_mut(plane.image_bytes());
                            plane.to_image(page, position % page_tokens, own);
                            rest = behind;
                        }
                    }
                }
            }
        })
    }

    /// Writes positions of a text into their pages, which are the sequence's own.
    fn write_positions(&self, sequence: Sequence, n_tokens: usize, positions: Range<usize>, bytes: &[u8]) {
        let page_tokens = self.paging.page_tokens();
        let (mut rest, mut elements, mut scales) = (bytes, Vec::new(), Vec::new());
        for position in positions {
            let (place, token) = (position / page_tokens, position % page_tokens);
            for (_, layer) in self.keeping(position, n_tokens) {
                let page = u64::from(self.paging.table(sequence, layer.pool)[place]);
                for plane in layer.planes() {
                    for head in 0..plane.n_heads {
                        let (own, behind) = rest.split_at(self.kv_type.vector_bytes(plane.dim));
                        rest = behind;
                        elements.clear();
                        scales.clear();
                        plane.of_image(own, &mut elements, &mut scales);
                        for ((start, _), bytes) in plane.place(head, token).into_iter().zip([&elements, &scales]) {
                            let at = page * plane.page_bytes() + start as u64;
                            if !bytes.is_empty() {
                                self.pages.gpu.queue.write_buffer(&plane.buffer, at, bytes);
                            }
                        }
                    }
                }
            }
        }
    }
}

impl KvStore for Cache {
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
        let of_layer = |(number, layer): (usize, &Layer)| {
            (self.paging.window(number), layer.planes().into_iter().map(Plane::image_bytes).sum())
        };
        ImageShape::new(self.pages.layers.iter().enumerate().map(of_layer))
    }

    /// Page place after page place, each with a buffer of its own: slow, but for files.
    fn read(&self, sequence: Sequence, n_tokens: usize, positions: Range<usize>, out: &mut [u8]) -> bool {
        let (image, page_tokens) = (self.image(), self.paging.page_tokens());
        let is_readable = self.paging.is_readable(sequence, n_tokens, &positions);
        if !is_readable || image.bytes(n_tokens, positions.clone()) != out.len() as u64 {
            return false;
        }
        let (mut rest, mut from) = (out, positions.start);
        while from < positions.end {
            let to = positions.end.min((from / page_tokens + 1) * page_tokens);
            let n_bytes = image.bytes(n_tokens, from..to) as usize;
            let (own, behind) = std::mem::take(&mut rest).split_at_mut(n_bytes);
            rest = behind;
            if self.read_place(sequence, n_tokens, from..to, own).is_err() {
                return false;
            }
            from = to;
        }
        true
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
        self.write_positions(sequence, n_tokens, from..end, bytes);
        if self.pages.gpu.flush().is_err() {
            return false;
        }
        self.paging.set_len(sequence, end);
        true
    }
}
