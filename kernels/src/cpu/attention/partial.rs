//! Partial results of a softmax: what is known of a query after some of its keys.
//!
//! A partial row is `value_dim` floats of exponentials times values, then the largest score, then the sum of the
//! exponentials, both relative to that score. Nothing seen is zeros and minus infinity.

use crate::cpu::isa::Isa;
use crate::cpu::vector::{Vector, dispatch};

/// Floats of a partial row.
pub const fn partial_len(value_dim: usize) -> usize {
    value_dim + 2
}

/// The partial rows of a call: row `n` starts `n * stride` floats behind the first.
#[derive(Clone, Copy, Debug)]
pub struct PartialRows {
    /// The first row.
    pub start: *mut f32,
    /// Floats from one row to the next, at least [`partial_len`].
    pub stride: usize,
}

impl PartialRows {
    /// Where a row starts.
    #[inline(always)]
    pub(super) fn row(&self, query: usize) -> *mut f32 {
        self.start.wrapping_add(query * self.stride)
    }
}

/// Makes a partial row one that has seen nothing.
pub fn reset(partial: &mut [f32]) {
    partial.fill(0.0);
    if let [.., largest, _] = partial {
        *largest = f32::NEG_INFINITY;
    }
}

/// Softmax so far of one query: where its weighted values lie, largest score, sum of exponentials.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) values: *const f32,
    pub(super) largest: f32,
    pub(super) sum: f32,
}

impl Part {
    /// Reads a partial row.
    ///
    /// # Safety
    /// The row is whole.
    #[inline(always)]
    unsafe fn of_row(row: *const f32, value_dim: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { values: row, largest: *row.add(value_dim), sum: *row.add(value_dim + 1) } }
    }
}

/// Factors that bring two sums to their common largest score: what has seen nothing counts nothing.
#[inline(always)]
fn factors(a: f32, b: f32) -> (f32, f32, f32) {
    // `max` would hide a NaN; what is NaN has a NaN sum, so any score will do here.
    let largest = if b > a { b } else { a };
    let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
    (largest, (a - base).exp(), (b - base).exp())
}

/// Joins `from` into the partial row `into`, without lanes.
///
/// # Safety
/// Both are whole and apart; nobody else uses `into`.
pub(super) unsafe fn join_in_turn(into: *mut f32, from: Part, value_dim: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let own = Part::of_row(into, value_dim);
        let (largest, keep, take) = factors(own.largest, from.largest);
        for at in 0..value_dim {
            *into.add(at) = *into.add(at) * keep + *from.values.add(at) * take;
        }
        *into.add(value_dim) = largest;
        *into.add(value_dim + 1) = own.sum * keep + from.sum * take;
    }
}

/// As [`join_in_turn`], in lanes.
///
/// # Safety
/// As [`join_in_turn`]; the processor has the set.
#[inline(always)]
pub(super) unsafe fn join_in_lanes<V: Vector>(into: *mut f32, from: Part, value_dim: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        let own = Part::of_row(into, value_dim);
        let (largest, keep, take) = factors(own.largest, from.largest);
        let (keeps, takes) = (V::splat(keep), V::splat(take));
        let mut at = 0;
        while at + V::LANES <= value_dim {
            let taken = V::load(from.values.add(at)).mul(takes);
            V::load(into.add(at)).mul_add(keeps, taken).store(into.add(at));
            at += V::LANES;
        }
        while at < value_dim {
            *into.add(at) = *into.add(at) * keep + *from.values.add(at) * take;
            at += 1;
        }
        *into.add(value_dim) = largest;
        *into.add(value_dim + 1) = own.sum * keep + from.sum * take;
    }
}

dispatch! {
    fn join(into: *mut f32, from: *const f32, value_dim: usize) = rows_in_lanes or rows_in_turn
}

unsafe fn rows_in_turn(into: *mut f32, from: *const f32, value_dim: usize) {
    // SAFETY: the caller's promises: two whole rows.
    unsafe { join_in_turn(into, Part::of_row(from, value_dim), value_dim) };
}

#[inline(always)]
unsafe fn rows_in_lanes<V: Vector>(into: *mut f32, from: *const f32, value_dim: usize) {
    // SAFETY: the caller's promises: two whole rows.
    unsafe { join_in_lanes::<V>(into, Part::of_row(from, value_dim), value_dim) };
}

/// Joins the partial row `from` into `into`: the result for the keys of both, which must be disjoint.
///
/// # Safety
/// `isa` is available.
pub unsafe fn merge(isa: Isa, into: &mut [f32], from: &[f32]) {
    assert!(into.len() == from.len() && from.len() >= 2, "partial rows are of one length");
    // SAFETY: two whole rows; the set is available by the caller's promise.
    unsafe { join(isa, into.as_mut_ptr(), from.as_ptr(), from.len() - 2) };
}

/// Writes the attention row of a partial row: weighted values over the sum of weights, zeros where nothing was seen.
pub fn finish(partial: &[f32], out: &mut [f32]) {
    assert!(partial.len() == partial_len(out.len()), "a partial row of {} floats", partial_len(out.len()));
    let sum = partial[out.len() + 1];
    let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    for (out, value) in out.iter_mut().zip(partial) {
        *out = value * factor;
    }
}
