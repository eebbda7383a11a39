//! Eight lanes: AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use super::{Vector, instructions};

/// A register of 8 floats.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

impl Vector for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    instructions! {
        splat(value: f32) -> Self = Self(_mm256_set1_ps(value));
        splat_half(from: *const u16) -> Self =
            Self(_mm256_cvtph_ps(_mm_set1_epi16(from.read_unaligned().cast_signed())));
        load(from: *const f32) -> Self = Self(_mm256_loadu_ps(from));
        load_halves(from: *const u16) -> Self = Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())));
        load_bytes(from: *const i8) -> Self =
            Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))));
        load_pairs(from: *const f32) -> (Self, Self) = {
            let (a, b) = (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)));
            // The shuffles work on halves of registers; the pairs of floats in the middle change places after.
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
            (
                Self(_mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(even))),
                Self(_mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(odd))),
            )
        };
        store(self, to: *mut f32) = _mm256_storeu_ps(to, self.0);
        store_halves(self, to: *mut u16) =
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
        store_pairs(even: Self, odd: Self, to: *mut f32) = {
            let (a, b) = (_mm256_unpacklo_ps(even.0, odd.0), _mm256_unpackhi_ps(even.0, odd.0));
            _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(a, b));
            _mm256_storeu_ps(to.add(8), _mm256_permute2f128_ps::<0x31>(a, b));
        };
        add(self, other: Self) -> Self = Self(_mm256_add_ps(self.0, other.0));
        sub(self, other: Self) -> Self = Self(_mm256_sub_ps(self.0, other.0));
        mul(self, other: Self) -> Self = Self(_mm256_mul_ps(self.0, other.0));
        div(self, other: Self) -> Self = Self(_mm256_div_ps(self.0, other.0));
        mul_add(self, factor: Self, term: Self) -> Self = Self(_mm256_fmadd_ps(self.0, factor.0, term.0));
        neg_mul_add(self, factor: Self, term: Self) -> Self = Self(_mm256_fnmadd_ps(self.0, factor.0, term.0));
        max(self, other: Self) -> Self = Self(_mm256_max_ps(self.0, other.0));
        min(self, other: Self) -> Self = Self(_mm256_min_ps(self.0, other.0));
        abs(self) -> Self = Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0));
        with_sign_of(self, sign: Self) -> Self = {
            let mask = _mm256_set1_ps(-0.0);
            Self(_mm256_or_ps(_mm256_and_ps(mask, sign.0), _mm256_andnot_ps(mask, self.0)))
        };
        round(self) -> Self = Self(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0));
        // In two halves, each of which has an exponent in range.
        times_power_of_two(self, power: Self) -> Self = {
            let power = _mm256_cvtps_epi32(power.0);
            let half = _mm256_srai_epi32::<1>(power);
            Self(_mm256_mul_ps(_mm256_mul_ps(self.0, power_of_two(half)), power_of_two(_mm256_sub_epi32(power, half))))
        };
        where_less(self, bound: Self, yes: Self, no: Self) -> Self =
            Self(_mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0)));
        first(self) -> f32 = _mm256_cvtss_f32(self.0);
        sum(self) -> f32 = {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        };
        store_sums(of: [Self; 4], to: *mut f32) = {
            let (ab, cd) = (_mm256_hadd_ps(of[0].0, of[1].0), _mm256_hadd_ps(of[2].0, of[3].0));
            let halves = _mm256_hadd_ps(ab, cd);
            _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves)));
        };
        largest(self) -> f32 = {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        };
    }
}

/// Two to the power of whole numbers from -126 to 127.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn power_of_two(power: __m256i) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(power, _mm256_set1_epi32(127)))) }
}
