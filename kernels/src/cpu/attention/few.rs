//! A few queries, the elements of a head in the lanes: scores `[query][key]`, weighted values `[query][dim]`.

use std::ops::Range;

use super::Job;
use super::kv::Rows;
use super::lanes::{GroupState, Pass, scored};
use super::scratch::{Group, MAX_WIDTH, TILE};
use crate::cpu::vector::{Vector, math};

/// Most queries of a group.
pub(super) const MOST: usize = 4;

/// Floats from the scores of one query to the next: a tile, and what [`Vector::store_sums`] may write past it.
const STRIDE: usize = TILE + 16;

/// Takes the rows of a tile into the softmax of `N` queries.
///
/// # Safety
/// As [`super::attend`]; the tile's rows are read, the state is the group's; the processor has the set.
#[inline(always)]
pub(super) unsafe fn step<V: Vector, R: Rows, const N: usize>(
    job: &Job<'_>,
    pass: &Pass,
    group: Group,
    state: GroupState,
    tile: usize,
    rows: Range<usize>,
    (keys, values): (R, R),
) {
    const { assert!(MOST * STRIDE <= TILE * MAX_WIDTH && N <= MOST) };
    // SAFETY: the caller's promises.
    unsafe {
        // As many accumulators as registers allow, beside what they are made from.
        if V::REGISTERS >= 32 {
            products::<V, R, N, 4>(pass, state.queries, keys, rows.clone());
        } else {
            products::<V, R, N, 2>(pass, state.queries, keys, rows.clone());
        }
        let mut factors = [V::splat(0.0); N];
        for (index, factor) in factors.iter_mut().enumerate() {
            let seen = job.seen(group.first + index);
            let start = seen.start.saturating_sub(tile).min(TILE);
            let seen = start..seen.end.saturating_sub(tile).min(TILE).max(start);
            *factor = softmax::<V>(pass, state, index, rows.clone(), seen);
        }
        if V::REGISTERS >= 32 {
            weighted_values::<V, R, N, 4>(pass, state.sums, factors, values, rows);
        } else {
            weighted_values::<V, R, N, 2>(pass, state.sums, factors, values, rows);
        }
    }
}

/// Dot products of `N` queries with rows of keys, `KEYS` at a time, and with rows beside them to make that whole.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn products<V: Vector, R: Rows, const N: usize, const KEYS: usize>(
    pass: &Pass,
    queries: *const f32,
    keys: R,
    rows: Range<usize>,
) {
    const { assert!(TILE.is_multiple_of(KEYS) && KEYS <= 4) };
    for row in (rows.start - rows.start % KEYS..rows.end).step_by(KEYS) {
        // SAFETY: the caller's promises; `KEYS` rows lie inside the tile, rows are whole registers.
        unsafe {
            let mut sums = [[V::splat(0.0); 4]; N];
            for at in (0..pass.key_stride).step_by(V::LANES) {
                let mut elements = [V::splat(0.0); KEYS];
                for (key, elements) in elements.iter_mut().enumerate() {
                    *elements = keys.load(row + key, at);
                }
                for (query, sums) in sums.iter_mut().enumerate() {
                    let q = V::load(queries.add(query * pass.key_stride + at));
                    for (sum, elements) in sums.iter_mut().zip(&elements) {
                        *sum = q.mul_add(*elements, *sum);
                    }
                }
            }
            for (query, sums) in sums.iter().enumerate() {
                V::store_sums(*sums, pass.scores.add(query * STRIDE + row));
            }
        }
    }
}

/// Turns the dot products of a query into exponentials relative to its new largest score, zero for what it does not
/// see; returns what its earlier sums are worth now.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn softmax<V: Vector>(
    pass: &Pass,
    state: GroupState,
    index: usize,
    rows: Range<usize>,
    seen: Range<usize>,
) -> V {
    const { assert!(TILE.is_multiple_of(V::LANES)) };
    let first = rows.start - rows.start % V::LANES;
    // SAFETY: the caller's promises; whole registers of the query's scores.
    unsafe {
        let scores = pass.scores.add(index * STRIDE);
        let nothing = V::splat(f32::NEG_INFINITY);
        let old = *state.largest.add(index);
        let mut highest = V::splat(old);
        let numbers = V::load(NUMBERS.as_ptr());
        let (from, to) = (V::splat(seen.start as f32), V::splat(seen.end as f32));
        for row in (first..rows.end).step_by(V::LANES) {
            let number = numbers.add(V::splat(row as f32));
            let score = scored(pass, V::load(scores.add(row)));
            let score = number.where_less(from, nothing, number.where_less(to, score, nothing));
            highest = highest.max(score);
            score.store(scores.add(row));
        }
        let largest = highest.largest();
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let mut total = V::splat(0.0);
        for row in (first..rows.end).step_by(V::LANES) {
            let weights = math::exp(V::load(scores.add(row)).sub(V::splat(base)));
            total = total.add(weights);
            weights.store(scores.add(row));
        }
        let factor = math::exp(V::splat(old - base));
        *state.largest.add(index) = largest;
        *state.totals.add(index) = *state.totals.add(index) * factor.first() + total.sum();
        factor
    }
}

/// Numbers of lanes.
const NUMBERS: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Adds rows of values, times their exponentials, to the sums of `N` queries, `VECS` registers of a row at a time.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn weighted_values<V: Vector, R: Rows, const N: usize, const VECS: usize>(
    pass: &Pass,
    sums: *mut f32,
    factors: [V; N],
    values: R,
    rows: Range<usize>,
) {
    let mut at = 0;
    while at < pass.value_stride {
        // SAFETY: the caller's promises; so many registers of a row are left.
        at += unsafe {
            if pass.value_stride - at >= VECS * V::LANES {
                value_block::<V, R, N, VECS>(pass, sums, factors, values, rows.clone(), at)
            } else {
                value_block::<V, R, N, 1>(pass, sums, factors, values, rows.clone(), at)
            }
        };
    }
}

#[inline(always)]
unsafe fn value_block<V: Vector, R: Rows, const N: usize, const VECS: usize>(
    pass: &Pass,
    sums: *mut f32,
    factors: [V; N],
    values: R,
    rows: Range<usize>,
    at: usize,
) -> usize {
    // SAFETY: the caller's promises: `VECS` registers of a row from `at` on.
    unsafe {
        let place = |query: usize, vec: usize| sums.add(query * pass.value_stride + at + vec * V::LANES);
        let mut own = [[V::splat(0.0); VECS]; N];
        for (query, own) in own.iter_mut().enumerate() {
            for (vec, own) in own.iter_mut().enumerate() {
                *own = V::load(place(query, vec)).mul(factors[query]);
            }
        }
        for row in rows {
            let mut elements = [V::splat(0.0); VECS];
            for (vec, elements) in elements.iter_mut().enumerate() {
                *elements = values.load(row, at + vec * V::LANES);
            }
            for (query, own) in own.iter_mut().enumerate() {
                let weight = V::splat(*pass.scores.add(query * STRIDE + row));
                for (own, elements) in own.iter_mut().zip(&elements) {
                    *own = elements.mul_add(weight, *own);
                }
            }
        }
        for (query, own) in own.iter().enumerate() {
            for (vec, own) in own.iter().enumerate() {
                own.store(place(query, vec));
            }
        }
    }
    VECS * V::LANES
}
