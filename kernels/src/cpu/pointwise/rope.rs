//! Rotary positions: pairs of a head's elements turn by an angle of their own.

use crate::cpu::isa::Isa;
use crate::cpu::vector::{Vector, dispatch};
use crate::graph::RopeStyle;

/// The heads of a row and the angles: `heads * dim` elements, `pairs` cosines and sines, `2 * pairs <= dim`.
#[derive(Clone, Copy)]
struct Heads {
    x: *mut f32,
    heads: usize,
    dim: usize,
    cos: *const f32,
    sin: *const f32,
    pairs: usize,
    style: RopeStyle,
}

impl Heads {
    /// Places of the two elements of a pair of a head.
    #[inline(always)]
    fn places(&self, head: usize, pair: usize) -> (*mut f32, *mut f32) {
        let head = self.x.wrapping_add(head * self.dim);
        match self.style {
            RopeStyle::Normal => (head.wrapping_add(2 * pair), head.wrapping_add(2 * pair + 1)),
            RopeStyle::HalfSplit => (head.wrapping_add(pair), head.wrapping_add(self.pairs + pair)),
        }
    }

    /// Turns pairs from `first` on, one by one.
    ///
    /// # Safety
    /// The elements are there, for one user.
    #[inline(always)]
    unsafe fn turn(&self, head: usize, first: usize) {
        for pair in first..self.pairs {
            let (a, b) = self.places(head, pair);
            // SAFETY: the caller's promise; pairs lie inside their head.
            unsafe {
                let (cos, sin) = (*self.cos.add(pair), *self.sin.add(pair));
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

dispatch! {
    fn rotate(heads: Heads) = rotate_in_lanes or rotate_in_turn
}

/// # Safety
/// As [`Heads`] says, for one user.
unsafe fn rotate_in_turn(heads: Heads) {
    for head in 0..heads.heads {
        // SAFETY: the caller's promise.
        unsafe { heads.turn(head, 0) };
    }
}

/// # Safety
/// As [`rotate_in_turn`]; the processor has the set.
#[inline(always)]
unsafe fn rotate_in_lanes<V: Vector>(heads: Heads) {
    for head in 0..heads.heads {
        let mut pair = 0;
        while pair + V::LANES <= heads.pairs {
            let (first, second) = heads.places(head, pair);
            // SAFETY: the caller's promises; `LANES` pairs from `pair` on lie inside the head.
            unsafe {
                let (cos, sin) = (V::load(heads.cos.add(pair)), V::load(heads.sin.add(pair)));
                let (a, b) = match heads.style {
                    RopeStyle::Normal => V::load_pairs(first),
                    RopeStyle::HalfSplit => (V::load(first), V::load(second)),
                };
                let (turned_a, turned_b) = (b.neg_mul_add(sin, a.mul(cos)), a.mul_add(sin, b.mul(cos)));
                match heads.style {
                    RopeStyle::Normal => V::store_pairs(turned_a, turned_b, first),
                    RopeStyle::HalfSplit => {
                        turned_a.store(first);
                        turned_b.store(second);
                    }
                }
            }
            pair += V::LANES;
        }
        // SAFETY: the caller's promise.
        unsafe { heads.turn(head, pair) };
    }
}

/// Turns the first `2 * cos.len()` elements of every head of a row; the others stay.
///
/// `cos` and `sin` are those of the row's position, one of each per pair, magnitude included.
///
/// # Safety
/// `isa` is available.
pub unsafe fn rope_in_place(isa: Isa, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], style: RopeStyle) {
    assert!(head_dim > 0 && x.len().is_multiple_of(head_dim), "heads of {head_dim} divide a row of {}", x.len());
    assert!(cos.len() == sin.len() && 2 * cos.len() <= head_dim, "{} pairs fit a head of {head_dim}", cos.len());
    let heads = Heads {
        heads: x.len() / head_dim,
        x: x.as_mut_ptr(),
        dim: head_dim,
        cos: cos.as_ptr(),
        sin: sin.as_ptr(),
        pairs: cos.len(),
        style,
    };
    // SAFETY: checked; the set is available by the caller's promise.
    unsafe { rotate(isa, heads) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn turned(isa: Isa, x: &[f32], head_dim: usize, angles: &[f32], style: RopeStyle) -> Vec<f32> {
        let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
        let mut out = x.to_vec();
        // SAFETY: tests pass sets from `Isa::available`.
        unsafe { rope_in_place(isa, &mut out, head_dim, &cos, &sin, style) };
        out
    }

    proptest! {
        #[test]
        fn lanes_give_what_plain_code_gives_and_the_rest_of_a_head_stays(
            pairs in 0_usize..70,
            rest in 0_usize..9,
            heads in 1_usize..4,
            x in prop::collection::vec(-10.0_f32..10.0, 4 * 150),
            angles in prop::collection::vec(-7.0_f32..7.0, 70),
        ) {
            let head_dim = 2 * pairs + rest.max(usize::from(pairs == 0));
            let x = &x[..heads * head_dim];
            for style in [RopeStyle::Normal, RopeStyle::HalfSplit] {
                let truth = turned(Isa::Scalar, x, head_dim, &angles[..pairs], style);
                for isa in Isa::available() {
                    let found = turned(isa, x, head_dim, &angles[..pairs], style);
                    for (at, (found, expected)) in found.iter().zip(&truth).enumerate() {
                        prop_assert!((found - expected).abs() <= 2e-6, "{isa} {style:?} {at}: {found} {expected}");
                        if at % head_dim >= 2 * pairs {
                            prop_assert_eq!(*found, x[at]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_quarter_turn_swaps_a_pair_and_changes_one_sign() {
        let quarter = std::f32::consts::FRAC_PI_2;
        for isa in Isa::available() {
            let close = |found: Vec<f32>, expected: [f32; 5]| {
                assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{isa}: {found:?}");
            };
            let x = [1.0, 2.0, 3.0, 4.0, 5.0];
            close(turned(isa, &x, 5, &[quarter, 0.0], RopeStyle::Normal), [-2.0, 1.0, 3.0, 4.0, 5.0]);
            close(turned(isa, &x, 5, &[quarter, 0.0], RopeStyle::HalfSplit), [-3.0, 2.0, 1.0, 4.0, 5.0]);
        }
    }
}
