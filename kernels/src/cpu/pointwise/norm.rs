//! Root-mean-square norms.

use crate::cpu::isa::Isa;
use crate::cpu::vector::{Vector, dispatch};

/// Sum of the squares of `len` elements.
///
/// # Safety
/// They may be read; the processor has the set.
#[inline(always)]
unsafe fn sum_of_squares<V: Vector>(x: *const f32, len: usize) -> f32 {
    // SAFETY: the caller's promises.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        let mut at = 0;
        while at + 4 * V::LANES <= len {
            for (part, sum) in sums.iter_mut().enumerate() {
                let place = at + part * V::LANES;
                let values = V::load(x.add(place));
                *sum = values.mul_add(values, *sum);
            }
            at += 4 * V::LANES;
        }
        while at + V::LANES <= len {
            let values = V::load(x.add(at));
            sums[0] = values.mul_add(values, sums[0]);
            at += V::LANES;
        }
        let mut total = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
        while at < len {
            total += *x.add(at) * *x.add(at);
            at += 1;
        }
        total
    }
}

/// One group to normalise: `len` elements each. `out` may be `x`.
#[derive(Clone, Copy)]
struct Group {
    x: *const f32,
    weight: *const f32,
    out: *mut f32,
    len: usize,
    eps: f32,
}

dispatch! {
    fn normalise(group: Group) = normalise_in_lanes or normalise_in_turn
}

/// # Safety
/// All elements of the group may be read, `out` written.
unsafe fn normalise_in_turn(group: Group) {
    // SAFETY: the caller's promise.
    unsafe {
        let squares = (0..group.len).map(|at| f64::from(*group.x.add(at)).powi(2)).sum::<f64>();
        let factor = 1.0 / (squares / group.len as f64 + f64::from(group.eps)).sqrt();
        for at in 0..group.len {
            *group.out.add(at) = (f64::from(*group.x.add(at)) * factor * f64::from(*group.weight.add(at))) as f32;
        }
    }
}

/// # Safety
/// As [`normalise_in_turn`]; the processor has the set.
#[inline(always)]
unsafe fn normalise_in_lanes<V: Vector>(group: Group) {
    // SAFETY: the caller's promises.
    unsafe {
        let squares = sum_of_squares::<V>(group.x, group.len);
        let factor = 1.0 / (squares / group.len as f32 + group.eps).sqrt();
        let factors = V::splat(factor);
        let mut at = 0;
        while at + V::LANES <= group.len {
            let scaled = V::load(group.x.add(at)).mul(factors);
            scaled.mul(V::load(group.weight.add(at))).store(group.out.add(at));
            at += V::LANES;
        }
        while at < group.len {
            *group.out.add(at) = *group.x.add(at) * factor * *group.weight.add(at);
            at += 1;
        }
    }
}

/// Divides every group of `weight.len()` neighbours by the root of its mean square (plus `eps`), times `weight`.
///
/// A row is one group, a row of heads as many as it has heads.
///
/// # Safety
/// `isa` is available.
pub unsafe fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == out.len(), "rows are of one length");
    // SAFETY: two slices of this length; the set is available by the caller's promise.
    unsafe { norm_groups(isa, x.as_ptr(), weight, eps, out.as_mut_ptr(), x.len()) };
}

/// As [`rms_norm`], over its own input.
///
/// # Safety
/// `isa` is available.
pub unsafe fn rms_norm_in_place(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    let (out, len) = (x.as_mut_ptr(), x.len());
    // SAFETY: a slice of this length; the set is available by the caller's promise.
    unsafe { norm_groups(isa, out, weight, eps, out, len) };
}

/// # Safety
/// `len` elements of `x` may be read and of `out` written; the set is available.
unsafe fn norm_groups(isa: Isa, x: *const f32, weight: &[f32], eps: f32, out: *mut f32, len: usize) {
    let group = weight.len();
    assert!(group > 0 && len.is_multiple_of(group), "groups of {group} divide a row of {len}");
    for at in (0..len).step_by(group) {
        // SAFETY: whole groups of the row.
        unsafe {
            normalise(isa, Group { x: x.add(at), weight: weight.as_ptr(), out: out.add(at), len: group, eps });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normed(isa: Isa, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len()];
        let mut in_place = x.to_vec();
        // SAFETY: tests pass sets from `Isa::available`.
        unsafe {
            rms_norm(isa, x, weight, 1e-6, &mut out);
            rms_norm_in_place(isa, &mut in_place, weight, 1e-6);
        }
        assert!(out.iter().zip(&in_place).all(|(a, b)| a.to_bits() == b.to_bits()));
        out
    }

    proptest! {
        #[test]
        fn lanes_give_what_plain_code_gives(
            weight in prop::collection::vec(-2.0_f32..2.0, 1..300),
            groups in 1_usize..4,
            exponent in -15_i32..15,
            seed in prop::collection::vec(-1.0_f32..1.0, 1200),
        ) {
            let x: Vec<f32> = seed[..groups * weight.len()].iter().map(|x| x * 10_f32.powi(exponent)).collect();
            let truth = normed(Isa::Scalar, &x, &weight);
            for isa in Isa::available() {
                for (found, expected) in normed(isa, &x, &weight).iter().zip(&truth) {
                    prop_assert!((found - expected).abs() <= expected.abs() * 2e-6, "{isa}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn wide_rows_stay_accurate() {
        let x: Vec<f32> = (0..16_384).map(|at| (at as f32 * 0.37).sin() * 3.0).collect();
        let weight = vec![1.25; x.len()];
        let truth = normed(Isa::Scalar, &x, &weight);
        for isa in Isa::available() {
            for (found, expected) in normed(isa, &x, &weight).iter().zip(&truth) {
                assert!((found - expected).abs() <= expected.abs() * 2e-6, "{isa}: {found} {expected}");
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero_and_nan_spreads_over_its_group_only() {
        for isa in Isa::available() {
            assert_eq!(normed(isa, &[0.0; 40], &[1.0; 40]), [0.0; 40]);
            let mut x = [1.0; 40];
            x[3] = f32::NAN;
            let out = normed(isa, &x, &[1.0; 20]);
            assert!(out[..20].iter().all(|value| value.is_nan()) && out[20..].iter().all(|value| value.is_finite()));
        }
    }
}
