//! Functions of one element, or of two at the same place: sums, factors, soft caps, gated units.

use crate::cpu::isa::Isa;
use crate::cpu::vector::{Vector, dispatch, math};
use crate::graph::Activation;

/// A function of two elements. Functions of one leave the second alone.
trait Elementwise: Copy {
    /// The truth.
    fn plain(self, a: f32, b: f32) -> f32;
    /// The same in lanes.
    ///
    /// # Safety
    /// As for [`Vector`].
    unsafe fn lanes<V: Vector>(self, a: V, b: V) -> V;
}

/// Where a function reads and writes: `len` elements each. `out` may be `a` or `b`.
#[derive(Clone, Copy)]
struct Places {
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    len: usize,
}

dispatch! {
    fn run<E: Elementwise>(function: E, places: Places) = in_lanes or in_turn
}

/// # Safety
/// All places may be read, `out` written.
unsafe fn in_turn<E: Elementwise>(function: E, places: Places) {
    for at in 0..places.len {
        // SAFETY: the caller's promise.
        unsafe { *places.out.add(at) = function.plain(*places.a.add(at), *places.b.add(at)) };
    }
}

/// # Safety
/// As [`in_turn`]; the processor has the set.
#[inline(always)]
unsafe fn in_lanes<V: Vector, E: Elementwise>(function: E, places: Places) {
    // SAFETY: the caller's promises; the last elements pass through buffers of a whole register.
    unsafe {
        let mut at = 0;
        while at + V::LANES <= places.len {
            function.lanes(V::load(places.a.add(at)), V::load(places.b.add(at))).store(places.out.add(at));
            at += V::LANES;
        }
        let rest = places.len - at;
        if rest > 0 {
            let (mut a, mut b) = ([0.0; 16], [0.0; 16]);
            a.as_mut_ptr().copy_from_nonoverlapping(places.a.add(at), rest);
            b.as_mut_ptr().copy_from_nonoverlapping(places.b.add(at), rest);
            function.lanes(V::load(a.as_ptr()), V::load(b.as_ptr())).store(a.as_mut_ptr());
            places.out.add(at).copy_from_nonoverlapping(a.as_ptr(), rest);
        }
    }
}

#[derive(Clone, Copy)]
struct Add;
impl Elementwise for Add {
    fn plain(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    unsafe fn lanes<V: Vector>(self, a: V, b: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { a.add(b) }
    }
}

#[derive(Clone, Copy)]
struct Scale(f32);
impl Elementwise for Scale {
    fn plain(self, a: f32, _: f32) -> f32 {
        a * self.0
    }
    #[inline(always)]
    unsafe fn lanes<V: Vector>(self, a: V, _: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { a.mul(V::splat(self.0)) }
    }
}

/// `cap * tanh(a * factor)`.
#[derive(Clone, Copy)]
struct Softcap {
    cap: f32,
    factor: f32,
}
impl Elementwise for Softcap {
    fn plain(self, a: f32, _: f32) -> f32 {
        self.cap * (a * self.factor).tanh()
    }
    #[inline(always)]
    unsafe fn lanes<V: Vector>(self, a: V, _: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { math::tanh(a.mul(V::splat(self.factor))).mul(V::splat(self.cap)) }
    }
}

#[derive(Clone, Copy)]
struct Silu;
impl Elementwise for Silu {
    fn plain(self, gate: f32, up: f32) -> f32 {
        gate / (1.0 + (-gate).exp()) * up
    }
    #[inline(always)]
    unsafe fn lanes<V: Vector>(self, gate: V, up: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { gate.mul(math::sigmoid(gate)).mul(up) }
    }
}

/// sqrt(2 / pi), of the tanh form of the Gaussian error unit.
const GELU_SLOPE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// `(1 + tanh u) / 2` is the sigmoid of `2u`, which keeps its precision where tanh is close to -1.
#[derive(Clone, Copy)]
struct GeluTanh;
impl Elementwise for GeluTanh {
    fn plain(self, gate: f32, up: f32) -> f32 {
        let inner = GELU_SLOPE * (gate + GELU_CUBIC * gate * gate * gate);
        gate / (1.0 + (-2.0 * inner).exp()) * up
    }
    #[inline(always)]
    unsafe fn lanes<V: Vector>(self, gate: V, up: V) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let cubic = gate.mul(gate).mul(V::splat(GELU_CUBIC)).mul_add(gate, gate);
            gate.mul(math::sigmoid(cubic.mul(V::splat(2.0 * GELU_SLOPE)))).mul(up)
        }
    }
}

/// `out = a + b`, rows of the same length.
///
/// # Safety
/// `isa` is available.
pub unsafe fn add(isa: Isa, a: &[f32], b: &[f32], out: &mut [f32]) {
    assert!(a.len() == b.len() && a.len() == out.len(), "rows are of one length");
    // SAFETY: three slices of `len`; the set is available by the caller's promise.
    unsafe { run(isa, Add, Places { a: a.as_ptr(), b: b.as_ptr(), out: out.as_mut_ptr(), len: a.len() }) };
}

/// `sum += term`, rows of the same length.
///
/// # Safety
/// `isa` is available.
pub unsafe fn add_in_place(isa: Isa, sum: &mut [f32], term: &[f32]) {
    assert!(sum.len() == term.len(), "rows are of one length");
    let out = sum.as_mut_ptr();
    // SAFETY: two slices of `len`; the set is available by the caller's promise.
    unsafe { run(isa, Add, Places { a: out, b: term.as_ptr(), out, len: sum.len() }) };
}

/// `values *= factor`.
///
/// # Safety
/// `isa` is available.
pub unsafe fn scale_in_place(isa: Isa, values: &mut [f32], factor: f32) {
    let out = values.as_mut_ptr();
    // SAFETY: a slice of `len`; the set is available by the caller's promise.
    unsafe { run(isa, Scale(factor), Places { a: out, b: out, out, len: values.len() }) };
}

/// `values = cap * tanh(values * scale / cap)`.
///
/// # Safety
/// `isa` is available.
pub unsafe fn softcap_in_place(isa: Isa, values: &mut [f32], cap: f32, scale: f32) {
    let out = values.as_mut_ptr();
    // SAFETY: a slice of `len`; the set is available by the caller's promise.
    unsafe { run(isa, Softcap { cap, factor: scale / cap }, Places { a: out, b: out, out, len: values.len() }) };
}

/// `out = activation(gate) * up`, rows of the same length.
///
/// # Safety
/// `isa` is available.
pub unsafe fn glu(isa: Isa, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "rows are of one length");
    let places = Places { a: gate.as_ptr(), b: up.as_ptr(), out: out.as_mut_ptr(), len: gate.len() };
    // SAFETY: three slices of `len`; the set is available by the caller's promise.
    unsafe {
        match activation {
            Activation::Silu => run(isa, Silu, places),
            Activation::GeluTanh => run(isa, GeluTanh, places),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every function on two rows, its results one after the other.
    fn all(isa: Isa, a: &[f32], b: &[f32]) -> Vec<Vec<f32>> {
        let mut outs = vec![vec![f32::NAN; a.len()]; 3];
        let (mut sum, mut scaled, mut capped) = (a.to_vec(), a.to_vec(), a.to_vec());
        // SAFETY: tests pass sets from `Isa::available`.
        unsafe {
            add(isa, a, b, &mut outs[0]);
            glu(isa, Activation::Silu, a, b, &mut outs[1]);
            glu(isa, Activation::GeluTanh, a, b, &mut outs[2]);
            add_in_place(isa, &mut sum, b);
            scale_in_place(isa, &mut scaled, 1.5);
            softcap_in_place(isa, &mut capped, 30.0, 0.5);
        }
        outs.extend([sum, scaled, capped]);
        outs
    }

    proptest! {
        #[test]
        fn lanes_give_what_plain_code_gives(
            rows in prop::collection::vec((-1.0_f32..1.0, -1.0_f32..1.0), 0..70),
            exponent in -30_i32..6,
        ) {
            let factor = 10_f32.powi(exponent);
            let (a, b): (Vec<f32>, Vec<f32>) = rows.iter().map(|(a, b)| (a * factor, b * factor)).unzip();
            let truth = all(Isa::Scalar, &a, &b);
            for isa in Isa::available() {
                for (function, (found, expected)) in all(isa, &a, &b).iter().zip(&truth).enumerate() {
                    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                        // The exponential of -x is off by the rounding of x times its size (at most 90 matter), and that of
                        // the gated unit is a sum of products: a few roundings.
                        let allowed = expected.abs() * 3e-5 + 1e-37;
                        prop_assert!((found - expected).abs() <= allowed, "{isa} {function} {at}: {found} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn known_values_of_the_gated_units() {
        for isa in Isa::available() {
            for (activation, expected) in [
                (Activation::Silu, [0.0, 0.731_058_6, -0.268_941_4, 20.0, -4.122_307e-8]),
                (Activation::GeluTanh, [0.0, 0.841_192, -0.158_808, 20.0, -0.0]),
            ] {
                let mut out = [f32::NAN; 5];
                // SAFETY: an available set.
                unsafe { glu(isa, activation, &[0.0, 1.0, -1.0, 20.0, -20.0], &[1.0; 5], &mut out) };
                for (found, expected) in out.iter().zip(expected) {
                    assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{activation:?} on {isa}: {out:?}");
                }
            }
        }
    }

    #[test]
    fn nan_stays_nan_and_far_ends_are_finite() {
        for isa in Isa::available() {
            let a = [f32::NAN, 1e4, -1e4, 80.0, -80.0, 1.0];
            let b = [1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN];
            for (function, out) in all(isa, &a, &b).iter().enumerate() {
                assert!(out[0].is_nan(), "{isa} {function}");
                assert!(out[1..5].iter().all(|value| value.is_finite()), "{isa} {function}: {out:?}");
                assert_eq!(out[5].is_nan(), function < 4, "{isa} {function}");
            }
        }
    }
}
