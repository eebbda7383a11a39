//! Sixteen lanes: AVX-512.

use std::arch::x86_64::*;

use super::{Vector, instructions};

/// A register of 16 floats.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// Even places of two registers.
const EVEN: [i32; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
/// Odd places of two registers.
const ODD: [i32; 16] = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31];
/// The first halves of two registers, in turn.
const FIRST: [i32; 16] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
/// The second halves of two registers, in turn.
const SECOND: [i32; 16] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];

/// Chosen places of two registers.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn chosen(a: __m512, b: __m512, places: &[i32; 16]) -> __m512 {
    // SAFETY: 16 integers; the instructions are there by the caller's promise.
    unsafe { _mm512_permutex2var_ps(a, _mm512_loadu_si512(places.as_ptr().cast()), b) }
}

impl Vector for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;

    instructions! {
        splat(value: f32) -> Self = Self(_mm512_set1_ps(value));
        splat_half(from: *const u16) -> Self =
            Self(_mm512_cvtph_ps(_mm256_set1_epi16(from.read_unaligned().cast_signed())));
        load(from: *const f32) -> Self = Self(_mm512_loadu_ps(from));
        load_halves(from: *const u16) -> Self = Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())));
        load_bytes(from: *const i8) -> Self =
            Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))));
        load_pairs(from: *const f32) -> (Self, Self) = {
            let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
            (Self(chosen(a, b, &EVEN)), Self(chosen(a, b, &ODD)))
        };
        store(self, to: *mut f32) = _mm512_storeu_ps(to, self.0);
        store_halves(self, to: *mut u16) =
            _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
        store_pairs(even: Self, odd: Self, to: *mut f32) = {
            _mm512_storeu_ps(to, chosen(even.0, odd.0, &FIRST));
            _mm512_storeu_ps(to.add(16), chosen(even.0, odd.0, &SECOND));
        };
        add(self, other: Self) -> Self = Self(_mm512_add_ps(self.0, other.0));
        sub(self, other: Self) -> Self = Self(_mm512_sub_ps(self.0, other.0));
        mul(self, other: Self) -> Self = Self(_mm512_mul_ps(self.0, other.0));
        div(self, other: Self) -> Self = Self(_mm512_div_ps(self.0, other.0));
        mul_add(self, factor: Self, term: Self) -> Self = Self(_mm512_fmadd_ps(self.0, factor.0, term.0));
        neg_mul_add(self, factor: Self, term: Self) -> Self = Self(_mm512_fnmadd_ps(self.0, factor.0, term.0));
        max(self, other: Self) -> Self = Self(_mm512_max_ps(self.0, other.0));
        min(self, other: Self) -> Self = Self(_mm512_min_ps(self.0, other.0));
        abs(self) -> Self = Self(_mm512_abs_ps(self.0));
        // Bitwise `(sign & mask) | (self & !mask)`: a ternary function of table 0xD8 with the mask last.
        with_sign_of(self, sign: Self) -> Self = Self(_mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xD8>(
            _mm512_castps_si512(self.0),
            _mm512_castps_si512(sign.0),
            _mm512_set1_epi32(i32::MIN),
        )));
        round(self) -> Self = Self(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(self.0));
        times_power_of_two(self, power: Self) -> Self = Self(_mm512_scalef_ps(self.0, power.0));
        where_less(self, bound: Self, yes: Self, no: Self) -> Self =
            Self(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0), no.0, yes.0));
        first(self) -> f32 = _mm512_cvtss_f32(self.0);
        sum(self) -> f32 = _mm512_reduce_add_ps(self.0);
        store_sums(of: [Self; 4], to: *mut f32) = {
            // Quarters of registers first, then lanes of quarters.
            let [Self(a), Self(b), Self(c), Self(d)] = of;
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xEE>(c, d));
            let all = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd));
            let all = _mm512_add_ps(all, _mm512_permute_ps::<0b01_00_11_10>(all));
            let all = _mm512_add_ps(all, _mm512_permute_ps::<0b10_11_00_01>(all));
            _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, all)));
        };
        largest(self) -> f32 = _mm512_reduce_max_ps(self.0);
    }
}
