//! Unpacking for AVX2: a chunk of weights goes from the file's bits to registers without a stop in memory.
//!
//! As `unpack_avx512`, with vectors of 32 codes: the bytes behind them are loaded so that each stands where its code
//! belongs (once per plane), then shifted in 64-bit lanes and masked.

use std::arch::x86_64::*;

use super::codebook::packed_of;
use super::format::Format;
use super::input::CHUNK;
use super::layout::{Blocks, High, Layout, Planes, Scales, high_of, low_of};
use super::packed_avx2;

/// A chunk: scales and minima of 32 weights each stand in the first vector; the second is not used then.
#[derive(Clone, Copy)]
pub(crate) struct Chunk {
    pub(super) codes: [__m256i; 8],
    pub(super) scales: [__m256; 2],
    /// What the sums of activations are multiplied with: the minima less the offset of the codes, where the engine
    /// takes it back.
    pub(super) mins: [__m256; 2],
}

/// Unpacks the next chunk of a row, of which `bytes` is the rest: one block at least.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[inline(always)]
pub(super) unsafe fn unpack<F: Format>(bytes: &[u8], takes_offset_back: bool, out: &mut Chunk) {
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
            None => packed_avx2::unpack(packed_of::<F>(), bytes.as_ptr(), out),
        }
        if takes_offset_back && F::OFFSET > 0 {
            let offset = _mm256_set1_ps(f32::from(F::OFFSET));
            for (min, scale) in out.mins.iter_mut().zip(out.scales) {
                *min = _mm256_fnmadd_ps(offset, scale, *min);
            }
        }
    }
}

/// # Safety
/// As [`unpack`]; the blocks are there.
#[inline(always)]
unsafe fn blocks<F: Format>(layout: Layout, blocks: Blocks, out: &mut Chunk) {
    // SAFETY: the caller's promise.
    unsafe {
        out.codes = [
            codes::<F, 0>(blocks),
            codes::<F, 1>(blocks),
            codes::<F, 2>(blocks),
            codes::<F, 3>(blocks),
            codes::<F, 4>(blocks),
            codes::<F, 5>(blocks),
            codes::<F, 6>(blocks),
            codes::<F, 7>(blocks),
        ];
        (out.scales, out.mins) = scales::<F>(layout.scales, blocks);
        if blocks.len < CHUNK / F::LEN {
            // Codes may be anything: activations are zero there. Scales must not be NaN.
            let there = _mm256_set1_epi32((blocks.len * (F::LEN / F::SUB)) as i32);
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            for half in 0..2 {
                let lanes = _mm256_add_epi32(lanes, _mm256_set1_epi32(8 * half as i32));
                let mask = _mm256_castsi256_ps(_mm256_cmpgt_epi32(there, lanes));
                out.scales[half] = _mm256_and_ps(out.scales[half], mask);
                out.mins[half] = _mm256_and_ps(out.mins[half], mask);
            }
        }
    }
}

/// Codes `32 * PART ..` of the chunk.
#[inline(always)]
unsafe fn codes<F: Format, const PART: usize>(blocks: Blocks) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let Some(Layout { low, high, .. }) = F::LAYOUT else { return _mm256_setzero_si256() };
        let bytes = spread::<F, PART>(low, blocks);
        let mut codes = if low.bits == 8 {
            _mm256_xor_si256(bytes, _mm256_set1_epi8(i8::MIN))
        } else {
            let moves = const { moves(low_of::<F>(), F::LEN, PART, 0) };
            _mm256_and_si256(moved(bytes, moves), _mm256_set1_epi8((1 << low.bits) - 1))
        };
        match high {
            High::None => {}
            High::Word(at) => {
                let is_set = bytes_of_bits(blocks.at::<F>(PART, at).cast::<i32>().read_unaligned());
                codes = _mm256_or_si256(codes, _mm256_and_si256(is_set, _mm256_set1_epi8(1 << low.bits)));
            }
            High::Planes(planes) => {
                let moves = const { moves(high_of::<F>(), F::LEN, PART, low_of::<F>().bits) };
                let bits = moved(spread::<F, PART>(planes, blocks), moves);
                let mask = ((1 << planes.bits) - 1) << low.bits;
                codes = _mm256_or_si256(codes, _mm256_and_si256(bits, _mm256_set1_epi8(mask)));
            }
        }
        match F::TABLE {
            Some(table) => {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                _mm256_shuffle_epi8(table, codes)
            }
            None => codes,
        }
    }
}

/// For codes `32 * PART ..` the bytes they are in.
#[inline(always)]
unsafe fn spread<F: Format, const PART: usize>(planes: Planes, blocks: Blocks) -> __m256i {
    let weight = 32 * PART;
    let at = blocks.at::<F>(weight / F::LEN, planes.at + planes.place(weight % F::LEN).0);
    // SAFETY: the caller's promise; groups lie inside of blocks.
    unsafe {
        match planes.group {
            32.. => _mm256_loadu_si256(at.cast()),
            16.. => _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast())),
            _ => {
                let groups = _mm256_castsi128_si256(_mm_loadu_si128(at.cast()));
                _mm256_permute4x64_epi64::<0b01_01_00_00>(groups)
            }
        }
    }
}

/// How far right, and then left, each eight bytes have to be shifted to bring their plane to bit `to`.
const fn moves(planes: Planes, block_len: usize, part: usize, to: usize) -> [[i64; 4]; 2] {
    let mut out = [[0; 4]; 2];
    let mut lane = 0;
    while lane < 4 {
        let (_, up) = planes.place((32 * part + 8 * lane) % block_len);
        out[0][lane] = up.saturating_sub(to) as i64;
        out[1][lane] = to.saturating_sub(up) as i64;
        lane += 1;
    }
    out
}

/// Shifts by constants: what does not move costs nothing.
#[inline(always)]
unsafe fn moved(bytes: __m256i, [right, left]: [[i64; 4]; 2]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let down = _mm256_srlv_epi64(bytes, _mm256_setr_epi64x(right[0], right[1], right[2], right[3]));
        _mm256_sllv_epi64(down, _mm256_setr_epi64x(left[0], left[1], left[2], left[3]))
    }
}

/// All bits of a byte for each bit that is set.
#[inline(always)]
pub(super) unsafe fn bytes_of_bits(bits: i32) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let (first, second) = (0x0101_0101_0101_0101, 0x0303_0303_0303_0303);
        let each = _mm256_setr_epi64x(0, first, 2 * first, second);
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), each);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit)
    }
}

/// Scales and minima of the chunk.
#[inline(always)]
unsafe fn scales<F: Format>(stored: Scales, blocks: Blocks) -> ([__m256; 2], [__m256; 2]) {
    let block = blocks.start;
    // SAFETY: the caller's promise.
    unsafe {
        let none = _mm256_setzero_ps();
        match stored {
            Scales::Half { d } if F::LEN == 32 => ([eight_halves::<F>(blocks, d), none], [none; 2]),
            Scales::Half { d } => ([splat_half(block.add(d)), none], [none; 2]),
            Scales::HalfAndMin { d, min } => {
                ([eight_halves::<F>(blocks, d), none], [eight_halves::<F>(blocks, min), none])
            }
            Scales::Exponent => {
                let byte = |number: usize| u64::from(*blocks.at::<F>(number, 0)) << (8 * number);
                let first = byte(0) | byte(1) | byte(2) | byte(3);
                let last = byte(4) | byte(5) | byte(6) | byte(7);
                let exponents = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((first | last).cast_signed()));
                let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponents, _mm256_set1_epi32(1)));
                let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponents);
                let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponents);
                ([_mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small)), none], [none; 2])
            }
            Scales::Small => {
                let four = |number: usize| blocks.at::<F>(number, 0).cast::<i32>().read_unaligned();
                let bytes = _mm_setr_epi32(four(0), four(1), four(2), four(3));
                // As the bits of halves, eight exponents lower; the top bit is ignored, but 0x7F without it is zero.
                let wide = _mm256_cvtepu8_epi16(bytes);
                let is_zero = _mm256_cmpeq_epi16(wide, _mm256_set1_epi16(0x7F));
                let magnitudes = _mm256_and_si256(wide, _mm256_set1_epi16(0x7F));
                let halves = _mm256_andnot_si256(is_zero, _mm256_slli_epi16::<7>(magnitudes));
                let (low, high) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
                let lifted = |halves| _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(128.0));
                ([lifted(low), lifted(high)], [none; 2])
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
                let [scales, mins] = floats(integers);
                let negative = _mm256_xor_ps(splat_half(block.add(2)), _mm256_set1_ps(-0.0));
                ([_mm256_mul_ps(scales, splat_half(block)), none], [_mm256_mul_ps(mins, negative), none])
            }
            Scales::NibblePairs { d, min } => {
                let bytes = _mm_loadu_si128(block.cast());
                let nibble = _mm_set1_epi8(15);
                let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
                let negative = _mm256_xor_ps(splat_half(block.add(min)), _mm256_set1_ps(-0.0));
                let scales = times(floats(_mm_and_si128(bytes, nibble)), splat_half(block.add(d)));
                (scales, times(floats(high), negative))
            }
            Scales::SixBits { at, d } => {
                let word = |number: usize| block.add(at + 4 * number).cast::<i32>().read_unaligned();
                let low = _mm_setr_epi32(word(0), word(1), word(0), word(1));
                let low = _mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 4, 4));
                let high = _mm_srlv_epi32(_mm_set1_epi32(word(2)), _mm_setr_epi32(0, 2, 4, 6));
                let high = _mm_slli_epi32::<4>(_mm_and_si128(high, _mm_set1_epi8(3)));
                let integers = _mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)), high);
                let signed = _mm_sub_epi8(integers, _mm_set1_epi8(32));
                (times(signed_floats(signed), splat_half(block.add(d))), [none; 2])
            }
            Scales::Bytes { at, d } => {
                let integers = signed_floats(_mm_loadu_si128(block.add(at).cast()));
                (times(integers, splat_half(block.add(d))), [none; 2])
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
                ([_mm256_mul_ps(values, splat_half(block)), none], [none; 2])
            }
        }
    }
}

/// Byte `at` on of each of eight blocks, as halves.
#[inline(always)]
unsafe fn eight_halves<F: Format>(blocks: Blocks, at: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let half = |block: usize| blocks.at::<F>(block, at).cast::<i16>().read_unaligned();
        _mm256_cvtph_ps(_mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7)))
    }
}

/// One half in all lanes.
#[inline(always)]
unsafe fn splat_half(address: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(address.cast::<i16>().read_unaligned())) }
}

/// Sixteen unsigned bytes.
#[inline(always)]
unsafe fn floats(bytes: __m128i) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    unsafe { [bytes, _mm_srli_si128::<8>(bytes)].map(|eight| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight))) }
}

/// Sixteen signed bytes.
#[inline(always)]
unsafe fn signed_floats(bytes: __m128i) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    unsafe { [bytes, _mm_srli_si128::<8>(bytes)].map(|eight| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight))) }
}

#[inline(always)]
unsafe fn times(values: [__m256; 2], factor: __m256) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    unsafe { values.map(|values| _mm256_mul_ps(values, factor)) }
}

#[cfg(test)]
mod tests {
    use super::super::avx2::Avx2;
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
            let mut chunk = Avx2::no_weights();
            Avx2::unpack::<F>(bytes, &mut chunk);
            Avx2::spill(&chunk, &mut found);
        }
        let there = n_blocks.min(per_chunk) * F::LEN;
        assert_eq!(found.codes[..there], plain.codes[..there]);
        for sub in 0..CHUNK / F::SUB {
            let same = |found: f32, plain: f32| found == plain || (found.is_nan() && plain.is_nan());
            assert!(same(found.scales[sub], plain.scales[sub]), "scale {sub}");
            let takes_back = F::OFFSET > 0 && Avx2::takes_offset_back::<F>();
            let offset = if takes_back { f32::from(F::OFFSET) * plain.scales[sub] } else { 0.0 };
            let min = if F::HAS_MIN { plain.mins[sub] } else { 0.0 } - offset;
            assert!(same(found.mins[sub], min), "minimum {sub}: {} is not {min}", found.mins[sub]);
        }
    }

    proptest! {
        #[test]
        fn vectors_hold_what_plain_code_unpacks(
            bytes in prop::collection::vec(any::<u8>(), 612),
            n_blocks in 1..12_usize,
        ) {
            if Isa::available().contains(&Isa::Avx2) {
                for dtype in DType::all().filter(|dtype| dtype.is_quantized()) {
                    with_format!(dtype, F => check::<F>(&bytes, n_blocks), ());
                }
            }
        }
    }
}
