//! Floats in lanes: what an instruction set offers to kernels of plain f32 arithmetic.
//!
//! A kernel's body is written once over [`Vector`]; [`dispatch`] compiles it for every set and picks one at run time.
//! The plain version stays a function of its own, without lanes: the truth. [`math`] has the functions all kernels
//! share (exponential, sigmoid, hyperbolic tangent).

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;

/// A register of floats.
///
/// # Safety
/// All functions need the instructions of the set, and pointers to as many elements as they say. None of them may be
/// called but from a function that enables the instructions, directly or inlined.
pub(crate) trait Vector: Copy {
    /// Floats in it.
    const LANES: usize;
    /// Registers there are: how large a block of accumulators may be.
    const REGISTERS: usize;

    /// The same number in every lane.
    unsafe fn splat(value: f32) -> Self;
    /// A half in every lane, widened.
    unsafe fn splat_half(from: *const u16) -> Self;
    /// `LANES` floats.
    unsafe fn load(from: *const f32) -> Self;
    /// `LANES` halves, widened.
    unsafe fn load_halves(from: *const u16) -> Self;
    /// `LANES` signed bytes, as floats.
    unsafe fn load_bytes(from: *const i8) -> Self;
    /// `2 * LANES` floats: those of even places and those of odd ones.
    unsafe fn load_pairs(from: *const f32) -> (Self, Self);
    /// Writes `LANES` floats.
    unsafe fn store(self, to: *mut f32);
    /// Writes `LANES` halves, rounded to nearest even.
    unsafe fn store_halves(self, to: *mut u16);
    /// What [`Vector::load_pairs`] reads.
    unsafe fn store_pairs(even: Self, odd: Self, to: *mut f32);
    /// Sum.
    unsafe fn add(self, other: Self) -> Self;
    /// Difference.
    unsafe fn sub(self, other: Self) -> Self;
    /// Product.
    unsafe fn mul(self, other: Self) -> Self;
    /// Quotient, correctly rounded.
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `term - self * factor`, rounded once.
    unsafe fn neg_mul_add(self, factor: Self, term: Self) -> Self;
    /// The larger; where `other` is NaN, NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; where `other` is NaN, NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// Without the sign.
    unsafe fn abs(self) -> Self;
    /// With the sign of `sign`.
    unsafe fn with_sign_of(self, sign: Self) -> Self;
    /// The nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// Times two to the power of a whole number from -200 to 200; what leaves the range ends in zero or infinity.
    unsafe fn times_power_of_two(self, power: Self) -> Self;
    /// `yes` where `self < bound`, else `no`, also where one of them is NaN.
    unsafe fn where_less(self, bound: Self, yes: Self, no: Self) -> Self;
    /// The first lane.
    unsafe fn first(self) -> f32;
    /// Sum of all lanes.
    unsafe fn sum(self) -> f32;
    /// Writes four floats: the sum of all lanes of each.
    unsafe fn store_sums(of: [Self; 4], to: *mut f32);
    /// Largest lane; any number if a lane is NaN.
    unsafe fn largest(self) -> f32;
}

/// Makes a function that runs `$body::<V>` on the set it is given, `$plain` where the set has no lanes.
///
/// It may have one generic parameter, which the body takes after the set.
/// Callers of the function promise that the set is available and whatever the body asks for.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$G:ident: $bound:path>)? ($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? =
        $body:ident or $plain:ident) => {
        $(#[$doc])*
        $vis unsafe fn $name $(<$G: $bound>)? (isa: $crate::cpu::isa::Isa, $($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            mod sets {
                use super::*;
                use $crate::cpu::vector::{avx2::Avx2, avx512::Avx512};
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
                pub(super) unsafe fn avx512 $(<$G: $bound>)? ($($arg: $type),*) $(-> $out)? {
                    // SAFETY: the caller's promises.
                    unsafe { $body::<Avx512 $(, $G)?>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                pub(super) unsafe fn avx2 $(<$G: $bound>)? ($($arg: $type),*) $(-> $out)? {
                    // SAFETY: the caller's promises.
                    unsafe { $body::<Avx2 $(, $G)?>($($arg),*) }
                }
            }
            #[cfg(target_arch = "aarch64")]
            mod sets {
                use super::*;
                use $crate::cpu::vector::neon::Neon;
                #[target_feature(enable = "neon")]
                pub(super) unsafe fn neon $(<$G: $bound>)? ($($arg: $type),*) $(-> $out)? {
                    // SAFETY: the caller's promises.
                    unsafe { $body::<Neon $(, $G)?>($($arg),*) }
                }
            }
            // SAFETY: the set is available and the arguments are what the body asks for: the caller's promises.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::Avx512 | $crate::cpu::isa::Isa::Amx => sets::avx512 $(::<$G>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::Avx2 => sets::avx2 $(::<$G>)? ($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::cpu::isa::Isa::Neon
                    | $crate::cpu::isa::Isa::NeonDot
                    | $crate::cpu::isa::Isa::NeonI8mm => sets::neon $(::<$G>)? ($($arg),*),
                    _ => $plain $(::<$G>)? ($($arg),*),
                }
            }
        }
    };
}
pub(crate) use dispatch;

/// Writes functions of a [`Vector`] whose body is one expression of instructions.
macro_rules! instructions {
    ($($name:ident($($args:tt)*) $(-> $out:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($args)*) $(-> $out)? {
            // SAFETY: callers have the instructions and pass pointers to what `Vector` asks for.
            unsafe { $body }
        }
    )*};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use instructions;
