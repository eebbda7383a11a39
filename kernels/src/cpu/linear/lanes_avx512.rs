//! Unpacking for AVX-512, sixteen weight rows at once: each row has a lane of its own.
//!
//! Eight rows lie one after the other, and eight more somewhere else. Stored bytes of all sixteen are turned into columns
//! of words first, lane `r` of a word being row `r`'s. From then on all that a format asks for (planes, masks, integer
//! scales) is the same instruction for all rows, and what comes out stands in the order of a panel: four codes of every
//! row side by side, one scale of every row side by side.

use std::arch::x86_64::*;

use super::format::Format;
use super::layout::{High, Layout, Planes, Scales, low_of};
use super::packed_lanes_avx512;

/// Rows side by side.
pub(super) const ROWS: usize = 16;

/// The same block of sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    /// The block of the first row, and that of the ninth.
    starts: [*const u8; 2],
    /// Bytes from one row to the next: once, three, five and seven times.
    strides: [usize; 4],
}

/// The same block of sixteen rows, wherever their bytes lie.
///
/// # Safety
/// All functions need AVX-512 F, BW, VL and DQ, and the bytes to be there, inside of a block of type `F`.
pub(super) trait Sixteen: Copy {
    /// `n` blocks of type `F` further in every row.
    fn advance<F: Format>(self, n: usize) -> Self;
    /// Bytes `at .. at + 16` of every row as four words.
    unsafe fn four_words<F: Format>(self, at: usize) -> [__m512i; 4];
    /// Bytes `at .. at + 4` of every row; of what lies before the first whole word only that.
    unsafe fn word<F: Format>(self, at: usize) -> __m512i;
    /// The half at byte `at` of every row's block.
    unsafe fn half<F: Format>(self, at: usize) -> __m512;
    /// Unpacks a block into a panel that has room for it; calls `each` before every group of codes.
    unsafe fn unpack<F: Format>(self, panel: Panel, each: impl FnMut());
}

/// Blocks in the order of [`Order::Sixteens`](crate::order::Order): word by word those of all rows side by side.
#[derive(Clone, Copy)]
pub(super) struct Woven {
    layout: Layout,
    start: *const u8,
}

/// Bytes of a block before its words (see `crate::order`).
const fn odd<F: Format>() -> usize {
    low_of::<F>().at % 4
}

impl Woven {
    /// Blocks of a type with a layout, which alone has this order.
    pub(super) fn new(layout: Layout, start: *const u8) -> Self {
        Self { layout, start }
    }
}

impl Sixteen for Woven {
    #[inline(always)]
    fn advance<F: Format>(self, n: usize) -> Self {
        Self { start: self.start.wrapping_add(n * ROWS * F::BYTES), ..self }
    }

    #[inline(always)]
    unsafe fn four_words<F: Format>(self, at: usize) -> [__m512i; 4] {
        // SAFETY: the caller's promise.
        unsafe { std::array::from_fn(|word| self.word::<F>(at + 4 * word)) }
    }

    #[inline(always)]
    unsafe fn word<F: Format>(self, at: usize) -> __m512i {
        let start = self.start.wrapping_add(ROWS * at);
        // SAFETY: the caller's promise: words begin behind the odd bytes.
        unsafe {
            match odd::<F>() {
                1 if at == 0 => _mm512_cvtepu8_epi32(_mm_loadu_si128(start.cast())),
                2 if at == 0 => _mm512_cvtepu16_epi32(_mm256_loadu_si256(start.cast())),
                _ => _mm512_loadu_si512(start.cast()),
            }
        }
    }

    #[inline(always)]
    unsafe fn half<F: Format>(self, at: usize) -> __m512 {
        let odd = odd::<F>();
        // SAFETY: the caller's promise.
        unsafe {
            if at < odd || at + 2 == F::BYTES && (F::BYTES - odd) % 4 == 2 {
                return _mm512_cvtph_ps(_mm256_loadu_si256(self.start.wrapping_add(ROWS * at).cast()));
            }
            let (from, rest) = (at - (at - odd) % 4, (at - odd) % 4);
            if rest == 0 { low_half(self.word::<F>(from)) } else { high_half(self.word::<F>(from)) }
        }
    }
    #[inline(always)]
    unsafe fn unpack<F: Format>(self, panel: Panel, each: impl FnMut()) {
        // SAFETY: the caller's promises.
        unsafe { planes::<F, Self>(self.layout, self, panel, each) };
    }
}

/// Where unpacked blocks go, in the order of a panel. All vectors are aligned.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    /// Sixteen times four codes per vector.
    pub(super) codes: *mut u8,
    /// Sixteen scales per sub-block.
    pub(super) scales: *mut f32,
    /// Sixteen minima per sub-block, of types that have them.
    pub(super) mins: *mut f32,
}

impl Blocks {
    pub(super) fn new(starts: [*const u8; 2], row_bytes: usize) -> Self {
        Self { starts, strides: [row_bytes, 3 * row_bytes, 5 * row_bytes, 7 * row_bytes] }
    }

    /// Where the block of a row begins; for numbers that are not constants.
    #[inline(always)]
    pub(super) fn start(self, row: usize) -> *const u8 {
        self.starts[row / 8].wrapping_add(row % 8 * self.strides[0])
    }

    /// Byte `at` of a row's block: addresses that a load can add up by itself.
    #[inline(always)]
    fn row(self, row: usize, at: usize) -> *const u8 {
        let start = self.starts[row / 8].wrapping_add(at);
        let [one, three, five, seven] = self.strides;
        let far = match row % 8 {
            0 => 0,
            1 => one,
            2 => 2 * one,
            3 => three,
            4 => 4 * one,
            5 => five,
            6 => 2 * three,
            _ => seven,
        };
        start.wrapping_add(far)
    }
}

impl Sixteen for Blocks {
    #[inline(always)]
    fn advance<F: Format>(self, n: usize) -> Self {
        Self { starts: self.starts.map(|start| start.wrapping_add(n * F::BYTES)), ..self }
    }

    #[inline(always)]
    unsafe fn four_words<F: Format>(self, at: usize) -> [__m512i; 4] {
        // SAFETY: the caller's promise: these bytes are there.
        unsafe {
            let load = |row: usize| _mm_loadu_si128(self.row(row, at).cast());
            // Rows `row`, `row + 4`, `row + 8`, `row + 12`.
            let lanes = |row: usize| {
                let first = _mm512_castsi128_si512(load(row));
                let second = _mm512_mask_broadcast_i32x4(first, 0x00F0, load(row + 4));
                let third = _mm512_mask_broadcast_i32x4(second, 0x0F00, load(row + 8));
                _mm512_mask_broadcast_i32x4(third, 0xF000, load(row + 12))
            };
            let (a, b, c, d) = (lanes(0), lanes(1), lanes(2), lanes(3));
            let (low_ab, high_ab) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (low_cd, high_cd) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(low_ab, low_cd),
                _mm512_unpackhi_epi64(low_ab, low_cd),
                _mm512_unpacklo_epi64(high_ab, high_cd),
                _mm512_unpackhi_epi64(high_ab, high_cd),
            ]
        }
    }

    #[inline(always)]
    unsafe fn word<F: Format>(self, at: usize) -> __m512i {
        // SAFETY: the caller's promise: these bytes are there.
        unsafe {
            // Loads with a mask: no slower than a gather, and far faster where processors are guarded against leaks of
            // gathered data. Four chains, so that none waits long for itself.
            let load = |row: usize| self.row(row, at).cast::<i32>().read_unaligned();
            let four = |first: usize| {
                let words = _mm512_set1_epi32(load(first));
                let words = _mm512_mask_set1_epi32(words, 2 << first, load(first + 1));
                let words = _mm512_mask_set1_epi32(words, 4 << first, load(first + 2));
                _mm512_mask_set1_epi32(words, 8 << first, load(first + 3))
            };
            let low = _mm512_mask_mov_epi32(four(0), 0x00F0, four(4));
            let high = _mm512_mask_mov_epi32(four(8), 0xF000, four(12));
            _mm512_mask_mov_epi32(low, 0xFF00, high)
        }
    }

    #[inline(always)]
    unsafe fn half<F: Format>(self, at: usize) -> __m512 {
        // SAFETY: the caller's promise: the word lies inside of the block.
        unsafe { if at + 4 <= F::BYTES { low_half(self.word::<F>(at)) } else { high_half(self.word::<F>(at - 2)) } }
    }

    #[inline(always)]
    unsafe fn unpack<F: Format>(self, panel: Panel, each: impl FnMut()) {
        // SAFETY: the caller's promises.
        unsafe {
            match F::LAYOUT {
                Some(layout) => planes::<F, Self>(layout, self, panel, each),
                None => packed_lanes_avx512::unpack::<F>(self, panel, each),
            }
        }
    }
}

/// Halves in the low parts of words.
#[inline(always)]
unsafe fn low_half(words: __m512i) -> __m512 {
    // SAFETY: the caller has the instructions.
    unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)) }
}

/// Halves in the high parts of words.
#[inline(always)]
unsafe fn high_half(words: __m512i) -> __m512 {
    // SAFETY: the caller has the instructions.
    unsafe { low_half(_mm512_srli_epi32::<16>(words)) }
}

/// Byte `number` of words, as numbers.
#[inline(always)]
unsafe fn byte(words: __m512i, number: usize) -> __m512i {
    // SAFETY: the caller has the instructions.
    unsafe { _mm512_and_si512(_mm512_srlv_epi32(words, shift(8 * number)), _mm512_set1_epi32(0xFF)) }
}

/// Groups of codes in a block: what of [`Sixteen::unpack`] is done between two calls of `each`.
pub(super) const fn groups<F: Format>() -> usize {
    match F::LAYOUT {
        Some(layout) => F::LEN * layout.low.bits / 8 / 16,
        None => ROWS,
    }
}

/// Unpacks one block of sixteen rows of a type with a layout; calls `each` before every group of codes.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL and DQ; the blocks are there; the panel has room for a block.
#[inline(always)]
unsafe fn planes<F: Format, B: Sixteen>(layout: Layout, blocks: B, panel: Panel, mut each: impl FnMut()) {
    let n_bytes = F::LEN * layout.low.bits / 8;
    // SAFETY: the caller's promises.
    unsafe {
        scales::<F, B>(layout.scales, blocks, panel);
        let highs = highs::<F, B>(layout.high, blocks);
        // Said one by one, so that every place and every shift is a constant.
        macro_rules! group {
            ($($at:literal)*) => {$(
                if n_bytes > $at {
                    each();
                    codes::<F, B, $at>(layout, blocks, &highs, panel.codes);
                }
            )*};
        }
        group!(0 16 32 48 64 80 96 112);
    }
}

/// All words with high bits: 64 bytes of planes at most.
#[inline(always)]
unsafe fn highs<F: Format, B: Sixteen>(high: High, blocks: B) -> [[__m512i; 4]; 4] {
    // SAFETY: the caller's promises.
    unsafe {
        let none = [_mm512_setzero_si512(); 4];
        match high {
            High::None => [none; 4],
            High::Word(at) => [[blocks.word::<F>(at); 4], none, none, none],
            High::Planes(Planes { at, bits, .. }) => {
                let last = if bits == 2 {
                    [blocks.four_words::<F>(at + 32), blocks.four_words::<F>(at + 48)]
                } else {
                    [none; 2]
                };
                [blocks.four_words::<F>(at), blocks.four_words::<F>(at + 16), last[0], last[1]]
            }
        }
    }
}

/// Codes of which the low bits are in bytes `AT .. AT + 16` of the low planes.
#[inline(always)]
unsafe fn codes<F: Format, B: Sixteen, const AT: usize>(
    layout: Layout,
    blocks: B,
    highs: &[[__m512i; 4]; 4],
    out: *mut u8,
) {
    let Layout { low, high, .. } = layout;
    // SAFETY: the caller's promises.
    unsafe {
        let lows = blocks.four_words::<F>(low.at + AT);
        for plane in 0..8 / low.bits {
            for (word, lows) in lows.into_iter().enumerate() {
                let weight = low.weight(AT + 4 * word, plane);
                let mut codes = bits_of(low, weight, 0, lows);
                match high {
                    High::None => {}
                    High::Word(_) => {
                        let four = _mm512_srlv_epi32(highs[0][0], shift(weight));
                        let table = _mm512_loadu_si512(FIFTH_BITS.as_ptr().cast());
                        codes = _mm512_or_si512(codes, _mm512_permutexvar_epi32(four, table));
                    }
                    High::Planes(planes) => {
                        let place = planes.place(weight).0;
                        let words = highs[place / 16][place / 4 % 4];
                        codes = _mm512_or_si512(codes, bits_of(planes, weight, low.bits, words));
                    }
                }
                if let Some(table) = F::TABLE {
                    let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
                    codes = _mm512_shuffle_epi8(table, codes);
                }
                _mm512_store_si512(out.add(ROWS * weight).cast(), codes);
            }
        }
    }
}

/// For four bits, four bytes with bit 4 set or not.
const FIFTH_BITS: [u32; 16] = spread_bits(4);

/// For four bits, four bytes with bit `to` set or not.
pub(super) const fn spread_bits(to: u32) -> [u32; 16] {
    let mut out = [0; 16];
    let mut bits = 0_u32;
    while bits < 16 {
        out[bits as usize] = ((bits | bits << 7 | bits << 14 | bits << 21) & 0x0101_0101) << to;
        bits += 1;
    }
    out
}

/// The bits of the weights from `weight` on in the words they are in, moved to bit `to` of their bytes.
#[inline(always)]
unsafe fn bits_of(planes: Planes, weight: usize, to: usize, words: __m512i) -> __m512i {
    // SAFETY: the caller has the instructions.
    unsafe {
        if planes.bits == 8 {
            return _mm512_xor_si512(words, _mm512_set1_epi8(i8::MIN));
        }
        let (_, from) = planes.place(weight);
        let moved = if from >= to {
            _mm512_srlv_epi32(words, shift(from - to))
        } else {
            _mm512_sllv_epi32(words, shift(to - from))
        };
        _mm512_and_si512(moved, _mm512_set1_epi8(((1 << planes.bits) - 1) << to))
    }
}

/// Scales and minima of a block.
#[inline(always)]
unsafe fn scales<F: Format, B: Sixteen>(stored: Scales, blocks: B, panel: Panel) {
    // SAFETY: the caller's promises.
    unsafe {
        let none = _mm512_setzero_ps();
        let put = |sub: usize, scale: __m512, min: __m512| {
            _mm512_store_ps(panel.scales.add(ROWS * sub), scale);
            if F::HAS_MIN {
                _mm512_store_ps(panel.mins.add(ROWS * sub), min);
            }
        };
        let whole = |integers: __m512i| _mm512_cvtepi32_ps(integers);
        let negative = |number: __m512| _mm512_xor_ps(number, _mm512_set1_ps(-0.0));
        match stored {
            Scales::Half { d } => {
                let scale = blocks.half::<F>(d);
                (0..F::LEN / F::SUB).for_each(|sub| put(sub, scale, none));
            }
            Scales::HalfAndMin { d, min } => put(0, blocks.half::<F>(d), blocks.half::<F>(min)),
            Scales::Exponent => {
                let exponents = byte(blocks.word::<F>(0), 0);
                let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, _mm512_set1_epi32(1)));
                let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponents);
                let is_small = _mm512_cmplt_epu32_mask(exponents, _mm512_set1_epi32(2));
                put(0, _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_small, small)), none);
            }
            Scales::Small => {
                let word = blocks.word::<F>(0);
                for sub in 0..4 {
                    // As the bits of halves, eight exponents lower; the top bit is ignored, but 0x7F without it is zero.
                    let wide = byte(word, sub);
                    let is_number = _mm512_cmpneq_epi32_mask(wide, _mm512_set1_epi32(0x7F));
                    let magnitude = _mm512_maskz_and_epi32(is_number, wide, _mm512_set1_epi32(0x7F));
                    let half = low_half(_mm512_slli_epi32::<7>(magnitude));
                    put(sub, _mm512_mul_ps(half, _mm512_set1_ps(128.0)), none);
                }
            }
            Scales::SixBitPairs => {
                let [factors, first, second, last] = blocks.four_words::<F>(0);
                let (d, dmin) = (low_half(factors), negative(high_half(factors)));
                let splat = |byte: u8| _mm512_set1_epi8(byte.cast_signed());
                // The top bits of the last four.
                let top = |words: __m512i| _mm512_and_si512(_mm512_srli_epi32::<2>(words), splat(0x30));
                let low = |words: __m512i| _mm512_and_si512(words, splat(0x0F));
                let scales = [_mm512_and_si512(first, splat(0x3F)), _mm512_or_si512(low(last), top(first))];
                let high = low(_mm512_srli_epi32::<4>(last));
                let mins = [_mm512_and_si512(second, splat(0x3F)), _mm512_or_si512(high, top(second))];
                for sub in 0..8 {
                    let scale = _mm512_mul_ps(whole(byte(scales[sub / 4], sub % 4)), d);
                    put(sub, scale, _mm512_mul_ps(whole(byte(mins[sub / 4], sub % 4)), dmin));
                }
            }
            Scales::NibblePairs { d, min } => {
                let words = blocks.four_words::<F>(0);
                let (d, dmin) = (blocks.half::<F>(d), negative(blocks.half::<F>(min)));
                for sub in 0..16 {
                    let both = byte(words[sub / 4], sub % 4);
                    let scale = whole(_mm512_and_si512(both, _mm512_set1_epi32(15)));
                    let min = whole(_mm512_srli_epi32::<4>(both));
                    put(sub, _mm512_mul_ps(scale, d), _mm512_mul_ps(min, dmin));
                }
            }
            Scales::SixBits { at, d } => {
                let words = [blocks.word::<F>(at), blocks.word::<F>(at + 4)];
                let (high, d) = (blocks.word::<F>(at + 8), blocks.half::<F>(d));
                for sub in 0..16 {
                    let low = byte(_mm512_srlv_epi32(words[sub / 4 % 2], shift(sub / 8 * 4)), sub % 4);
                    let low = _mm512_and_si512(low, _mm512_set1_epi32(15));
                    let high = _mm512_srlv_epi32(high, shift(8 * (sub % 4) + 2 * (sub / 4)));
                    let high = _mm512_slli_epi32::<4>(_mm512_and_si512(high, _mm512_set1_epi32(3)));
                    let integer = _mm512_sub_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(32));
                    put(sub, _mm512_mul_ps(whole(integer), d), none);
                }
            }
            Scales::Bytes { at, d } => {
                let (words, d) = (blocks.four_words::<F>(at), blocks.half::<F>(d));
                for sub in 0..16 {
                    let up = _mm512_sllv_epi32(words[sub / 4], shift(24 - 8 * (sub % 4)));
                    put(sub, _mm512_mul_ps(whole(_mm512_srai_epi32::<24>(up)), d), none);
                }
            }
            Scales::Split => {
                let [first, low, ..] = blocks.four_words::<F>(0);
                let d = low_half(first);
                for sub in 0..8 {
                    let low = _mm512_and_si512(_mm512_srlv_epi32(low, shift(4 * sub)), _mm512_set1_epi32(15));
                    let high = _mm512_srlv_epi32(first, shift(16 + 2 * sub));
                    let high = _mm512_slli_epi32::<4>(_mm512_and_si512(high, _mm512_set1_epi32(3)));
                    let integer = _mm512_sub_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(32));
                    put(sub, _mm512_mul_ps(whole(integer), d), none);
                }
            }
        }
    }
}

/// The same shift for all lanes.
#[inline(always)]
unsafe fn shift(bits: usize) -> __m512i {
    // SAFETY: the caller has the instructions.
    unsafe { _mm512_set1_epi32(bits as i32) }
}
