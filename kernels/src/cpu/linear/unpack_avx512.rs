//! Unpacking for AVX-512: a chunk of weights goes from the file's bits to registers without a stop in memory.
//!
//! Bit planes: the bytes behind 64 codes are loaded so that each stands where its code belongs (once per plane), then
//! every 64-bit lane is turned by its own amount and masked.

use std::arch::x86_64::*;

use super::codebook::packed_of;
use super::format::Format;
use super::input::CHUNK;
use super::layout::{Blocks, High, Layout, Planes, Scales, high_of, low_of};
use super::packed_avx512;

/// A chunk: scales and minima of 32 weights each stand in the lower eight lanes, with zeros above.
#[derive(Clone, Copy)]
pub(crate) struct Chunk {
    pub(super) codes: [__m512i; 4],
    pub(super) scales: __m512,
    /// What the sums of activations are multiplied with.
    pub(super) mins: __m512,
}

impl Chunk {
    /// To be replaced.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        // SAFETY: the caller has the instructions.
        unsafe { Self { codes: [_mm512_setzero_si512(); 4], scales: _mm512_setzero_ps(), mins: _mm512_setzero_ps() } }
    }
}

/// Unpacks the next chunk of a row, of which `bytes` is the rest: one block at least.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL and DQ.
#[inline(always)]
pub(super) unsafe fn unpack<F: Format>(bytes: &[u8], out: &mut Chunk) {
    let per_chunk = CHUNK / F::LEN;
    let len = (bytes.len() / F::BYTES).min(per_chunk);
    assert!(len > 0, "a chunk has a block");
    // SAFETY: the caller's promise; `len` blocks are there.
    unsafe {
        match F::LAYOUT {
            // Twice, so that the number is a constant in one of them.
            Some(layout) if len == per_chunk => {
                blocks::<F>(layout, Blocks { start: bytes.as_ptr(), len: per_chunk }, out);
            }
            Some(layout) => blocks::<F>(layout, Blocks { start: bytes.as_ptr(), len }, out),
            None => packed_avx512::unpack(packed_of::<F>(), bytes.as_ptr(), out),
        }
    }
}

/// # Safety
/// As [`unpack`]; the blocks are there.
#[inline(always)]
unsafe fn blocks<F: Format>(layout: Layout, blocks: Blocks, out: &mut Chunk) {
    // SAFETY: the caller's promise.
    unsafe {
        out.codes = [codes::<F, 0>(blocks), codes::<F, 1>(blocks), codes::<F, 2>(blocks), codes::<F, 3>(blocks)];
        (out.scales, out.mins) = scales::<F>(layout.scales, blocks);
        if blocks.len < CHUNK / F::LEN {
            // Codes may be anything: activations are zero there. Scales must not be NaN.
            let there = (1 << (blocks.len * (F::LEN / F::SUB))) - 1;
            out.scales = _mm512_maskz_mov_ps(there, out.scales);
            out.mins = _mm512_maskz_mov_ps(there, out.mins);
        }
    }
}

/// Codes `64 * PART ..` of the chunk.
#[inline(always)]
unsafe fn codes<F: Format, const PART: usize>(blocks: Blocks) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let Some(Layout { low, high, .. }) = F::LAYOUT else { return _mm512_setzero_si512() };
        let bytes = spread::<F, PART>(low, blocks);
        let mut codes = if low.bits == 8 {
            _mm512_xor_si512(bytes, _mm512_set1_epi8(i8::MIN))
        } else {
            let up = const { turns(low_of::<F>(), F::LEN, PART, 0) };
            _mm512_and_si512(turned(bytes, up), _mm512_set1_epi8((1 << low.bits) - 1))
        };
        match high {
            High::None => {}
            High::Word(at) => {
                let word = |block| u64::from(blocks.at::<F>(block, at).cast::<u32>().read_unaligned());
                let is_set = word(2 * PART) | word(2 * PART + 1) << 32;
                codes = _mm512_mask_add_epi8(codes, is_set, codes, _mm512_set1_epi8(1 << low.bits));
            }
            High::Planes(planes) => {
                let up = const { turns(high_of::<F>(), F::LEN, PART, low_of::<F>().bits) };
                let bits = turned(spread::<F, PART>(planes, blocks), up);
                let mask = ((1 << planes.bits) - 1) << low.bits;
                codes = _mm512_or_si512(codes, _mm512_and_si512(bits, _mm512_set1_epi8(mask)));
            }
        }
        match F::TABLE {
            Some(table) => {
                let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
                _mm512_shuffle_epi8(table, codes)
            }
            None => codes,
        }
    }
}

/// For codes `64 * PART ..` the bytes they are in.
#[inline(always)]
unsafe fn spread<F: Format, const PART: usize>(planes: Planes, blocks: Blocks) -> __m512i {
    // The bytes of the weight at `weight`.
    let at = |weight: usize| blocks.at::<F>(weight / F::LEN, planes.at + planes.place(weight % F::LEN).0);
    let first = 64 * PART;
    // SAFETY: the caller's promise; groups lie inside of blocks.
    unsafe {
        match (planes.group, planes.bits) {
            (64.., _) => _mm512_loadu_si512(at(first).cast()),
            (32, 8) => {
                let low = _mm512_castsi256_si512(_mm256_loadu_si256(at(first).cast()));
                _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(at(first + 32).cast()))
            }
            (32, _) => _mm512_broadcast_i64x4(_mm256_loadu_si256(at(first).cast())),
            (16, _) => {
                let low = _mm512_broadcast_i32x4(_mm_loadu_si128(at(first).cast()));
                _mm512_mask_broadcast_i32x4(low, 0xFF00, _mm_loadu_si128(at(first + 32).cast()))
            }
            _ => {
                let groups = _mm512_castsi256_si512(_mm256_loadu_si256(at(first).cast()));
                _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), groups)
            }
        }
    }
}

/// How far left each eight bytes have to be turned to bring their plane to bit `to`.
const fn turns(planes: Planes, block_len: usize, part: usize, to: usize) -> [i64; 8] {
    let mut out = [0; 8];
    let mut lane = 0;
    while lane < 8 {
        let (_, up) = planes.place((64 * part + 8 * lane) % block_len);
        out[lane] = ((64 + to - up) % 64) as i64;
        lane += 1;
    }
    out
}

#[inline(always)]
unsafe fn turned(bytes: __m512i, up: [i64; 8]) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_rolv_epi64(bytes, _mm512_loadu_si512(up.as_ptr().cast())) }
}

/// Scales and minima of the chunk.
#[inline(always)]
unsafe fn scales<F: Format>(stored: Scales, blocks: Blocks) -> (__m512, __m512) {
    let block = blocks.start;
    // SAFETY: the caller's promise.
    unsafe {
        let none = _mm512_setzero_ps();
        match stored {
            Scales::Half { d } if F::LEN == 32 => (eight_halves::<F>(blocks, d), none),
            Scales::Half { d } => (_mm512_maskz_mov_ps(0xFF, splat_half(block.add(d))), none),
            Scales::HalfAndMin { d: 0, min: 2 } if blocks.len == 8 && F::BYTES == 20 => {
                // Blocks of five words, of which two vectors hold all first ones.
                let words = _mm512_setr_epi32(0, 5, 10, 15, 16, 21, 26, 31, 0, 0, 0, 0, 0, 0, 0, 0);
                let last = _mm512_loadu_si512(block.add(80).cast());
                let both = _mm512_permutex2var_epi32(_mm512_loadu_si512(block.cast()), words, last);
                let both = _mm512_castsi512_si256(both);
                let (d, min) = (_mm256_cvtepi32_epi16(both), _mm256_cvtepi32_epi16(_mm256_srli_epi32::<16>(both)));
                (_mm512_zextps256_ps512(_mm256_cvtph_ps(d)), _mm512_zextps256_ps512(_mm256_cvtph_ps(min)))
            }
            Scales::HalfAndMin { d, min } => (eight_halves::<F>(blocks, d), eight_halves::<F>(blocks, min)),
            Scales::Exponent => {
                let byte = |number: usize| u64::from(*blocks.at::<F>(number, 0)) << (8 * number);
                let first = byte(0) | byte(1) | byte(2) | byte(3);
                let last = byte(4) | byte(5) | byte(6) | byte(7);
                let exponents = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((first | last).cast_signed()));
                let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponents, _mm256_set1_epi32(1)));
                let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponents);
                let is_small = _mm256_cmplt_epu32_mask(exponents, _mm256_set1_epi32(2));
                let bits = _mm256_mask_mov_epi32(normal, is_small, small);
                (_mm512_zextps256_ps512(_mm256_castsi256_ps(bits)), none)
            }
            Scales::Small => {
                let four = |number: usize| blocks.at::<F>(number, 0).cast::<i32>().read_unaligned();
                let bytes = _mm_setr_epi32(four(0), four(1), four(2), four(3));
                // As the bits of halves, eight exponents lower; the top bit is ignored, but 0x7F without it is zero.
                let wide = _mm256_cvtepu8_epi16(bytes);
                let is_number = _mm256_cmpneq_epi16_mask(wide, _mm256_set1_epi16(0x7F));
                let magnitudes = _mm256_and_si256(wide, _mm256_set1_epi16(0x7F));
                let halves = _mm256_maskz_slli_epi16::<7>(is_number, magnitudes);
                (_mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(128.0)), none)
            }
            Scales::SixBitPairs => {
                let all = _mm_loadu_si128(block.cast());
                // Words 1 and 2 hold the first four scales and minima and the top bits of the last four.
                let twice = _mm_srlv_epi32(_mm_shuffle_epi32::<0b10_10_01_01>(all), _mm_setr_epi32(0, 2, 0, 2));
                let low = _mm_srlv_epi32(_mm_shuffle_epi32::<0xFF>(all), _mm_setr_epi32(0, 0, 0, 4));
                let integers = _mm_or_si128(
                    _mm_and_si128(twice, _mm_setr_epi32(0x3F3F_3F3F, 0x3030_3030, 0x3F3F_3F3F, 0x3030_3030)),
                    _mm_and_si128(low, _mm_setr_epi32(0, 0x0F0F_0F0F, 0, 0x0F0F_0F0F)),
                );
                let factors = _mm512_castps128_ps512(_mm_cvtph_ps(all));
                let each = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
                let both = _mm512_mul_ps(floats(integers), _mm512_permutexvar_ps(each, factors));
                let mins = _mm512_extractf32x8_ps::<1>(both);
                let negative = _mm256_xor_ps(mins, _mm256_set1_ps(-0.0));
                (_mm512_zextps256_ps512(_mm512_castps512_ps256(both)), _mm512_zextps256_ps512(negative))
            }
            Scales::NibblePairs { d, min } => {
                let bytes = _mm_loadu_si128(block.cast());
                let nibble = _mm_set1_epi8(15);
                let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
                let scales = _mm512_mul_ps(floats(_mm_and_si128(bytes, nibble)), splat_half(block.add(d)));
                let mins = _mm512_mul_ps(floats(high), splat_half(block.add(min)));
                (scales, _mm512_xor_ps(mins, _mm512_set1_ps(-0.0)))
            }
            Scales::SixBits { at, d } => {
                let word = |number: usize| block.add(at + 4 * number).cast::<i32>().read_unaligned();
                let low = _mm_setr_epi32(word(0), word(1), word(0), word(1));
                let low = _mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 4, 4));
                let high = _mm_srlv_epi32(_mm_set1_epi32(word(2)), _mm_setr_epi32(0, 2, 4, 6));
                let high = _mm_slli_epi32::<4>(_mm_and_si128(high, _mm_set1_epi8(3)));
                let integers = _mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)), high);
                let signed = _mm_sub_epi8(integers, _mm_set1_epi8(32));
                let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(signed));
                (_mm512_mul_ps(values, splat_half(block.add(d))), none)
            }
            Scales::Bytes { at, d } => {
                let integers = _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(at).cast()));
                (_mm512_mul_ps(_mm512_cvtepi32_ps(integers), splat_half(block.add(d))), none)
            }
            Scales::Split => {
                let all = block.cast::<u64>().read_unaligned();
                let low = _mm256_set1_epi32((all >> 32) as i32);
                let low = _mm256_srlv_epi32(low, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
                let high = _mm256_set1_epi32((all >> 16) as i32 & 0xFFFF);
                let high = _mm256_srlv_epi32(high, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
                let high = _mm256_slli_epi32::<4>(_mm256_and_si256(high, _mm256_set1_epi32(3)));
                let integers = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), high);
                let values = _mm256_cvtepi32_ps(_mm256_sub_epi32(integers, _mm256_set1_epi32(32)));
                let d = _mm512_castps512_ps256(splat_half(block));
                (_mm512_zextps256_ps512(_mm256_mul_ps(values, d)), none)
            }
        }
    }
}

/// Byte `at` on of each of eight blocks, as halves.
#[inline(always)]
unsafe fn eight_halves<F: Format>(blocks: Blocks, at: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        if blocks.len == 8 && F::BYTES == 18 && at == 0 {
            // Blocks of nine words, of which two vectors hold all first ones.
            let words = _mm512_setr_epi64(0x001B_0012_0009_0000, 0x003F_0036_002D_0024, 0, 0, 0, 0, 0, 0);
            let low = _mm512_loadu_si512(blocks.start.cast());
            let high = _mm512_loadu_si512(blocks.start.add(64).cast());
            let bits = _mm512_castsi512_si128(_mm512_permutex2var_epi16(low, words, high));
            return _mm512_zextps256_ps512(_mm256_cvtph_ps(bits));
        }
        let half = |block: usize| blocks.at::<F>(block, at).cast::<i16>().read_unaligned();
        let bits = _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7));
        _mm512_zextps256_ps512(_mm256_cvtph_ps(bits))
    }
}

/// One half in all lanes.
#[inline(always)]
unsafe fn splat_half(address: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(address.cast::<i16>().read_unaligned())) }
}

/// Sixteen unsigned bytes.
#[inline(always)]
unsafe fn floats(bytes: __m128i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::super::avx512::Avx512;
    use super::super::drive::Engine;
    use super::super::format::{Unpacked, unpack_chunk};
    use super::super::with_format;
    use super::*;
    use crate::cpu::isa::Isa;
    use crate::tensor::DType;
    use proptest::prelude::*;

    fn check<F: Format>(bytes: &[u8], n_blocks: usize) {
        let per_chunk = CHUNK / F::LEN;
        let n_blocks = n_blocks.min(bytes.len() / F::BYTES);
        let bytes = &bytes[..n_blocks * F::BYTES];
        let (mut plain, mut found) = (Unpacked::new(), Unpacked::new());
        unpack_chunk::<F>(bytes, &mut plain);
        // SAFETY: only called where the set is available.
        unsafe {
            let mut chunk = Avx512::no_weights();
            Avx512::unpack::<F>(bytes, &mut chunk);
            Avx512::spill(&chunk, &mut found);
        }
        let there = n_blocks.min(per_chunk) * F::LEN;
        assert_eq!(found.codes[..there], plain.codes[..there]);
        for sub in 0..CHUNK / F::SUB {
            let same = |found: f32, plain: f32| found == plain || (found.is_nan() && plain.is_nan());
            assert!(same(found.scales[sub], plain.scales[sub]), "scale {sub}");
            let min = if F::HAS_MIN { plain.mins[sub] } else { 0.0 };
            assert!(same(found.mins[sub], min), "minimum {sub}: {} is not {min}", found.mins[sub]);
        }
    }

    proptest! {
        #[test]
        fn vectors_hold_what_plain_code_unpacks(
            bytes in prop::collection::vec(any::<u8>(), 612),
            n_blocks in 1..12_usize,
        ) {
            if Isa::available().contains(&Isa::Avx512) {
                for dtype in DType::all().filter(|dtype| dtype.is_quantized()) {
                    with_format!(dtype, F => check::<F>(&bytes, n_blocks), ());
                }
            }
        }
    }
}
