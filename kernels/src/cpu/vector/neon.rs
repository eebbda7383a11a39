//! Four lanes: 64-bit Arm. Conversions of halves are written as assembly: their intrinsics are not stable.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Vector, instructions};

/// A register of 4 floats.
#[derive(Clone, Copy)]
pub(crate) struct Neon(float32x4_t);

/// Four halves, widened.
#[inline(always)]
fn widened(bits: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: registers only; part of every 64-bit Arm processor with NEON.
    unsafe {
        asm!(
            "fcvtl {out:v}.4s, {bits:v}.4h",
            out = out(vreg) out, bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// Four floats as halves, rounded to nearest even.
#[inline(always)]
fn narrowed(values: float32x4_t) -> uint16x4_t {
    let out: uint16x4_t;
    // SAFETY: as above.
    unsafe {
        asm!(
            "fcvtn {out:v}.4h, {values:v}.4s",
            out = out(vreg) out, values = in(vreg) values,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// Two to the power of whole numbers from -126 to 127.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn power_of_two(power: int32x4_t) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(power, vdupq_n_s32(127)))) }
}

impl Vector for Neon {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;

    instructions! {
        splat(value: f32) -> Self = Self(vdupq_n_f32(value));
        splat_half(from: *const u16) -> Self = Self(widened(vdup_n_u16(from.read_unaligned())));
        load(from: *const f32) -> Self = Self(vld1q_f32(from));
        load_halves(from: *const u16) -> Self = Self(widened(vld1_u16(from)));
        load_bytes(from: *const i8) -> Self = {
            let four = vreinterpret_s8_u32(vdup_n_u32(from.cast::<u32>().read_unaligned()));
            Self(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(four)))))
        };
        load_pairs(from: *const f32) -> (Self, Self) = {
            let both = vld2q_f32(from);
            (Self(both.0), Self(both.1))
        };
        store(self, to: *mut f32) = vst1q_f32(to, self.0);
        store_halves(self, to: *mut u16) = vst1_u16(to, narrowed(self.0));
        store_pairs(even: Self, odd: Self, to: *mut f32) = vst2q_f32(to, float32x4x2_t(even.0, odd.0));
        add(self, other: Self) -> Self = Self(vaddq_f32(self.0, other.0));
        sub(self, other: Self) -> Self = Self(vsubq_f32(self.0, other.0));
        mul(self, other: Self) -> Self = Self(vmulq_f32(self.0, other.0));
        div(self, other: Self) -> Self = Self(vdivq_f32(self.0, other.0));
        mul_add(self, factor: Self, term: Self) -> Self = Self(vfmaq_f32(term.0, self.0, factor.0));
        neg_mul_add(self, factor: Self, term: Self) -> Self = Self(vfmsq_f32(term.0, self.0, factor.0));
        max(self, other: Self) -> Self = Self(vmaxq_f32(self.0, other.0));
        min(self, other: Self) -> Self = Self(vminq_f32(self.0, other.0));
        abs(self) -> Self = Self(vabsq_f32(self.0));
        with_sign_of(self, sign: Self) -> Self = Self(vbslq_f32(vdupq_n_u32(1 << 31), sign.0, self.0));
        round(self) -> Self = Self(vrndnq_f32(self.0));
        // In two halves, each of which has an exponent in range.
        times_power_of_two(self, power: Self) -> Self = {
            let power = vcvtq_s32_f32(power.0);
            let half = vshrq_n_s32::<1>(power);
            Self(vmulq_f32(vmulq_f32(self.0, power_of_two(half)), power_of_two(vsubq_s32(power, half))))
        };
        where_less(self, bound: Self, yes: Self, no: Self) -> Self =
            Self(vbslq_f32(vcltq_f32(self.0, bound.0), yes.0, no.0));
        first(self) -> f32 = vgetq_lane_f32::<0>(self.0);
        sum(self) -> f32 = vaddvq_f32(self.0);
        store_sums(of: [Self; 4], to: *mut f32) =
            vst1q_f32(to, vpaddq_f32(vpaddq_f32(of[0].0, of[1].0), vpaddq_f32(of[2].0, of[3].0)));
        largest(self) -> f32 = vmaxvq_f32(self.0);
    }
}
