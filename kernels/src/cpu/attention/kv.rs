//! Where the keys and values of one head lie, and how a token's vector is read from there.

use crate::backend::KvType;
use crate::cpu::linear::half_value;
use crate::cpu::vector::Vector;

/// Elements under one scale of a Q8_0 vector.
pub(super) const Q8_LEN: usize = 32;

/// One layer's keys and values of one KV head of one sequence.
///
/// Page `p` of the sequence is page `pages[p]` of the store; its block of keys lies at
/// `keys + pages[p] * key_page_stride` bytes, that of values likewise. A block is `[token][dim]`: floats or halves; for
/// Q8_0 first the codes of all tokens, then their scales `[token][dim / 32]` as halves.
#[derive(Clone, Copy, Debug)]
pub struct KvHead<'a> {
    /// How elements are stored.
    pub kv_type: KvType,
    /// Elements of a key; a multiple of 32 for Q8_0.
    pub key_dim: usize,
    /// Elements of a value; likewise.
    pub value_dim: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Page table of the sequence.
    pub pages: &'a [u32],
    /// This head's block of keys of page 0.
    pub keys: *const u8,
    /// Bytes from one page to the next.
    pub key_page_stride: usize,
    /// This head's block of values of page 0.
    pub values: *const u8,
    /// Bytes from one page to the next.
    pub value_page_stride: usize,
}

impl KvHead<'_> {
    /// Stops a call whose sizes make no sense.
    pub(super) fn check(&self) {
        let is_whole = |dim: usize| dim > 0 && (self.kv_type != KvType::Q8_0 || dim.is_multiple_of(Q8_LEN));
        assert!(is_whole(self.key_dim) && is_whole(self.value_dim), "vectors are whole blocks");
        assert!(self.page_tokens > 0, "a page holds tokens");
    }

    /// The keys.
    #[inline(always)]
    pub(super) fn key_plane(&self) -> Plane<'_> {
        let (start, page_stride) = (self.keys, self.key_page_stride);
        let Self { kv_type, page_tokens, pages, .. } = *self;
        Plane { kv_type, dim: self.key_dim, page_tokens, pages, start, page_stride }
    }

    /// The values.
    #[inline(always)]
    pub(super) fn value_plane(&self) -> Plane<'_> {
        let (start, page_stride) = (self.values, self.value_page_stride);
        let Self { kv_type, page_tokens, pages, .. } = *self;
        Plane { kv_type, dim: self.value_dim, page_tokens, pages, start, page_stride }
    }
}

/// Keys or values.
#[derive(Clone, Copy)]
pub(super) struct Plane<'a> {
    pub(super) kv_type: KvType,
    pub(super) dim: usize,
    page_tokens: usize,
    pages: &'a [u32],
    start: *const u8,
    page_stride: usize,
}

/// Where a token's vector lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) elements: *const u8,
    /// Of Q8_0 only.
    pub(super) scales: *const u8,
}

/// Positions of a plane in turn: a walk spares a division per position.
pub(super) struct Places<'a> {
    plane: Plane<'a>,
    page: usize,
    token: usize,
}

impl Places<'_> {
    /// Where the next position's vector lies.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Place {
        let Plane { kv_type, dim, page_tokens, pages, start, page_stride } = self.plane;
        let block = start.wrapping_add(pages[self.page] as usize * page_stride);
        let place = place_in(kv_type, block, page_tokens, dim, self.token);
        self.token += 1;
        if self.token == page_tokens {
            (self.page, self.token) = (self.page + 1, 0);
        }
        place
    }
}

/// Places of token `token` of a block.
#[inline(always)]
pub(super) fn place_in(kv_type: KvType, block: *const u8, page_tokens: usize, dim: usize, token: usize) -> Place {
    let bytes = match kv_type {
        KvType::F32 => 4 * dim,
        KvType::F16 => 2 * dim,
        KvType::Q8_0 => dim,
    };
    let scales = block.wrapping_add(page_tokens * dim + token * (dim / Q8_LEN) * 2);
    Place { elements: block.wrapping_add(token * bytes), scales }
}

/// Rows of elements that a loop reads as floats, whatever they are stored as.
///
/// # Safety
/// `load` reads a register of elements from `at` on; rows and elements must be there, the processor have the set.
pub(super) trait Rows: Copy {
    /// `LANES` elements of a row.
    unsafe fn load<V: Vector>(self, row: usize, at: usize) -> V;
}

/// Rows of floats in one array.
#[derive(Clone, Copy)]
pub(super) struct Widened {
    pub(super) start: *const f32,
    pub(super) stride: usize,
}

impl Rows for Widened {
    #[inline(always)]
    unsafe fn load<V: Vector>(self, row: usize, at: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(self.start.add(row * self.stride + at)) }
    }
}

/// Rows of halves where they are stored.
#[derive(Clone, Copy)]
pub(super) struct Halves(pub(super) *const Place);

impl Rows for Halves {
    #[inline(always)]
    unsafe fn load<V: Vector>(self, row: usize, at: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_halves((*self.0.add(row)).elements.cast::<u16>().add(at)) }
    }
}

/// Rows of Q8_0 where they are stored.
#[derive(Clone, Copy)]
pub(super) struct Codes(pub(super) *const Place);

impl Rows for Codes {
    #[inline(always)]
    unsafe fn load<V: Vector>(self, row: usize, at: usize) -> V {
        // SAFETY: the caller's promise; a register lies inside one block.
        unsafe {
            let place = *self.0.add(row);
            let scale = V::splat_half(place.scales.cast::<u16>().add(at / Q8_LEN));
            V::load_bytes(place.elements.cast::<i8>().add(at)).mul(scale)
        }
    }
}

impl<'a> Plane<'a> {
    /// Where the vectors of positions from `first` on lie, one after the other.
    #[inline(always)]
    pub(super) fn places_from(self, first: usize) -> Places<'a> {
        Places { plane: self, page: first / self.page_tokens, token: first % self.page_tokens }
    }

    /// Where the vector of a position lies.
    #[inline(always)]
    pub(super) fn place(&self, position: usize) -> Place {
        let page = self.pages[position / self.page_tokens] as usize;
        let block = self.start.wrapping_add(page * self.page_stride);
        place_in(self.kv_type, block, self.page_tokens, self.dim, position % self.page_tokens)
    }

    /// Elements from `first` on of a vector, one by one.
    ///
    /// # Safety
    /// The place is of this plane and written; `out` has room for `dim`.
    #[inline(always)]
    pub(super) unsafe fn read_from(&self, place: Place, first: usize, out: *mut f32) {
        for at in first..self.dim {
            // SAFETY: the caller's promise.
            unsafe {
                *out.add(at) = match self.kv_type {
                    KvType::F32 => place.elements.cast::<f32>().add(at).read_unaligned(),
                    KvType::F16 => half_value(place.elements.cast::<u16>().add(at).read_unaligned()),
                    KvType::Q8_0 => {
                        let scale = half_value(place.scales.cast::<u16>().add(at / Q8_LEN).read_unaligned());
                        f32::from(*place.elements.cast::<i8>().add(at)) * scale
                    }
                };
            }
        }
    }

    /// A vector, followed by zeros up to `stride` elements.
    ///
    /// # Safety
    /// As [`Plane::read_from`], with room for `stride >= dim`, a multiple of the lanes; the processor has the set.
    #[inline(always)]
    pub(super) unsafe fn read<V: Vector>(&self, place: Place, stride: usize, out: *mut f32) {
        let whole = self.dim - self.dim % V::LANES;
        // SAFETY: the caller's promises; whole registers below `dim`. Q8_0 vectors are whole blocks, blocks whole
        // registers.
        unsafe {
            match self.kv_type {
                KvType::F32 => {
                    for at in (0..whole).step_by(V::LANES) {
                        V::load(place.elements.cast::<f32>().add(at)).store(out.add(at));
                    }
                }
                KvType::F16 => {
                    for at in (0..whole).step_by(V::LANES) {
                        V::load_halves(place.elements.cast::<u16>().add(at)).store(out.add(at));
                    }
                }
                KvType::Q8_0 => {
                    for block in 0..self.dim / Q8_LEN {
                        let scale = V::splat_half(place.scales.cast::<u16>().add(block));
                        for at in (block * Q8_LEN..(block + 1) * Q8_LEN).step_by(V::LANES) {
                            let codes = V::load_bytes(place.elements.cast::<i8>().add(at));
                            codes.mul(scale).store(out.add(at));
                        }
                    }
                }
            }
            if whole < stride {
                out.add(whole).write_bytes(0, stride - whole);
                self.read_from(place, whole, out);
            }
        }
    }
}
