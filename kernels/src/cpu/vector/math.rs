//! Functions of floats in lanes: exponential, sigmoid, hyperbolic tangent.
//!
//! Polynomials fitted here to minimise the largest relative error (see the tests for bounds). NaN stays NaN.

use super::Vector;

/// Below it the exponential is zero in f32 even as a subnormal; above the other bound it is infinite.
const EXP_LOWEST: f32 = -104.0;
const EXP_HIGHEST: f32 = 89.0;
/// ln 2 in two parts: the first has few enough bits that its product with a whole number is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// e to the power of x: within 1.2e-7 of the result, zero from -104 down (minus infinity included), infinite from 88.8 up.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        // In this order NaN passes both bounds.
        let x = V::splat(EXP_HIGHEST).min(V::splat(EXP_LOWEST).max(x));
        let power = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let rest = power.neg_mul_add(V::splat(LN_2_HIGH), x);
        let rest = power.neg_mul_add(V::splat(LN_2_LOW), rest);
        // e^r = 1 + r + r² p(r) for |r| <= ln 2 / 2.
        let mut p = V::splat(EXP_TERMS[0]);
        for term in &EXP_TERMS[1..] {
            p = p.mul_add(rest, V::splat(*term));
        }
        let tail = p.mul_add(rest.mul(rest), rest);
        tail.add(V::splat(1.0)).times_power_of_two(power)
    }
}

/// Terms of `(e^r - 1 - r) / r²`, the highest power first.
const EXP_TERMS: [f32; 5] = [0.0013814599, 0.008368717, 0.04166839, 0.16666521, 0.49999993];

/// 1 / (1 + e^-x): within 3e-7 of the result where that is not subnormal.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(crate) unsafe fn sigmoid<V: Vector>(x: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let one = V::splat(1.0);
        one.div(one.add(exp(V::splat(0.0).sub(x))))
    }
}

/// Below it the hyperbolic tangent is a polynomial; above, one minus a small quotient.
const TANH_SMALL: f32 = 0.625;

/// Hyperbolic tangent, within 3e-7 of the result.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(crate) unsafe fn tanh<V: Vector>(x: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let square = x.mul(x);
        // tanh x = x + x³ p(x²) for |x| <= 0.625.
        let mut p = V::splat(TANH_TERMS[0]);
        for term in &TANH_TERMS[1..] {
            p = p.mul_add(square, V::splat(*term));
        }
        let small = p.mul(square).mul_add(x, x);
        let magnitude = x.abs();
        let one = V::splat(1.0);
        let quotient = V::splat(2.0).div(exp(magnitude.add(magnitude)).add(one));
        let large = one.sub(quotient).with_sign_of(x);
        magnitude.where_less(V::splat(TANH_SMALL), small, large)
    }
}

/// Terms of `(tanh x - x) / x³` in x², the highest power first.
const TANH_TERMS: [f32; 5] = [-0.0057047495, 0.020638883, -0.053739655, 0.13331442, -0.3333328];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;
    use crate::cpu::vector::dispatch;
    use proptest::prelude::*;

    /// Which function.
    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp,
        Sigmoid,
        Tanh,
    }
    use Function::{Exp, Sigmoid, Tanh};

    dispatch! {
        fn in_lanes(function: Function, values: &mut [f32; 16]) = body or truth
    }

    #[inline(always)]
    unsafe fn body<V: Vector>(function: Function, values: &mut [f32; 16]) {
        for at in (0..16).step_by(V::LANES) {
            let place = values[at..].as_mut_ptr();
            // SAFETY: whole registers of the array; `dispatch` enables the set.
            unsafe {
                let x = V::load(place);
                let y = match function {
                    Exp => exp(x),
                    Sigmoid => sigmoid(x),
                    Tanh => tanh(x),
                };
                y.store(place);
            }
        }
    }

    fn truth(function: Function, values: &mut [f32; 16]) {
        for value in values {
            let x = f64::from(*value);
            *value = match function {
                Exp => x.exp(),
                Sigmoid => 1.0 / (1.0 + (-x).exp()),
                Tanh => x.tanh(),
            } as f32;
        }
    }

    fn values(isa: Isa, function: Function, x: [f32; 16]) -> [f32; 16] {
        let mut values = x;
        // SAFETY: tests pass sets from `Isa::available`.
        unsafe { in_lanes(isa, function, &mut values) };
        values
    }

    fn check(function: Function, x: [f32; 16], bound: f64) {
        let truth = values(Isa::Scalar, function, x);
        for isa in Isa::available() {
            for ((found, expected), x) in values(isa, function, x).into_iter().zip(truth).zip(x) {
                // Subnormal results have fewer bits, or none where the exponential below a fraction is infinite.
                let subnormal = if matches!(function, Sigmoid) { f64::from(f32::MIN_POSITIVE) } else { 3e-45 };
                let error = (f64::from(found) - f64::from(expected)).abs();
                let allowed = bound * f64::from(expected).abs() + subnormal;
                assert!(found == expected || error <= allowed, "{function:?}({x}) on {isa}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn a_sweep_over_all_magnitudes_stays_within_the_bounds() {
        for step in (-400_000_i32..400_000).step_by(16) {
            let x = std::array::from_fn(|lane| (step + lane as i32) as f32 * 2.7e-4);
            check(Exp, x, 2.0e-7);
            check(Sigmoid, x, 4e-7);
            check(Tanh, x, 4e-7);
        }
    }

    proptest! {
        #[test]
        fn any_bits_give_what_the_plain_functions_give(bits in any::<[u32; 16]>()) {
            let x = bits.map(f32::from_bits).map(|x| if x.is_nan() { 0.5 } else { x });
            check(Exp, x, 2.0e-7);
            check(Sigmoid, x, 4e-7);
            check(Tanh, x, 4e-7);
        }
    }

    #[test]
    fn ends_of_the_range_are_exact_and_nan_stays() {
        for isa in Isa::available() {
            for (function, x, expected) in [
                (Exp, 0.0, 1.0),
                (Exp, f32::NEG_INFINITY, 0.0),
                (Exp, f32::INFINITY, f32::INFINITY),
                (Exp, -1e30, 0.0),
                (Exp, 1e30, f32::INFINITY),
                (Sigmoid, f32::NEG_INFINITY, 0.0),
                (Sigmoid, f32::INFINITY, 1.0),
                (Tanh, 0.0, 0.0),
                (Tanh, f32::NEG_INFINITY, -1.0),
                (Tanh, f32::INFINITY, 1.0),
            ] {
                assert_eq!(values(isa, function, [x; 16]), [expected; 16], "{function:?}({x}) on {isa}");
            }
            for function in [Exp, Sigmoid, Tanh] {
                assert!(values(isa, function, [f32::NAN; 16]).iter().all(|value| value.is_nan()));
            }
        }
    }
}
