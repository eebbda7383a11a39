//! A few queries, the elements of a head in the lanes: scores `[query][key]`, weighted values `[query][dim]`.

use std::ops::Range;

use super::Job;
use super::lanes::{GroupState, Pass, scored};
use super::scratch::{Group, TILE};
use crate::cpu::vector::{Vector, math};

/// Keys met at a time.
const KEYS: usize = 4;

/// Registers of a value row kept as sums at a time.
const VECS: usize = 4;

/// Takes the rows of a tile into the softmax of `N` queries.
///
/// # Safety
/// As [`super::attend`]; the tile's rows are read, the state is the group's; the processor has the set.
#[inline(always)]
pub(super) unsafe fn step<V: Vector, const N: usize>(
    job: &Job<'_>,
    pass: &Pass,
    group: Group,
    state: GroupState,
    tile: usize,
    rows: Range<usize>,
) {
    // SAFETY: the caller's promises.
    unsafe {
        products::<V, N>(pass, state.queries, rows.clone());
        let mut factors = [0.0; N];
        for (index, factor) in factors.iter_mut().enumerate() {
            let seen = job.seen(group.first + index);
            let start = seen.start.saturating_sub(tile).min(TILE);
            let seen = start..seen.end.saturating_sub(tile).min(TILE).max(start);
            *factor = softmax::<V>(pass, state, index, rows.clone(), seen);
        }
        weighted_values::<V, N>(pass, state.sums, factors, rows);
    }
}

/// Dot products of `N` queries with rows of the key tile, and with rows beside them to make whole fours.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn products<V: Vector, const N: usize>(pass: &Pass, queries: *const f32, rows: Range<usize>) {
    const { assert!(TILE.is_multiple_of(KEYS)) };
    let mut row = rows.start - rows.start % KEYS;
    while row < rows.end {
        // SAFETY: the caller's promises; whole fours lie inside the tile, rows are whole registers.
        unsafe {
            let keys = pass.keys.add(row * pass.key_stride).cast_const();
            let mut sums = [[V::splat(0.0); KEYS]; N];
            for at in (0..pass.key_stride).step_by(V::LANES) {
                let mut four = [V::splat(0.0); KEYS];
                for (key, four) in four.iter_mut().enumerate() {
                    *four = V::load(keys.add(key * pass.key_stride + at));
                }
                for (query, sums) in sums.iter_mut().enumerate() {
                    let q = V::load(queries.add(query * pass.key_stride + at));
                    for (key, sum) in sums.iter_mut().enumerate() {
                        *sum = q.mul_add(four[key], *sum);
                    }
                }
            }
            for (query, sums) in sums.iter().enumerate() {
                V::store_sums(*sums, pass.scores.add(query * TILE + row));
            }
        }
        row += KEYS;
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
) -> f32 {
    const { assert!(TILE.is_multiple_of(V::LANES)) };
    let first = rows.start - rows.start % V::LANES;
    // SAFETY: the caller's promises; whole registers of the query's scores.
    unsafe {
        let scores = pass.scores.add(index * TILE);
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
        let factor = if largest > old { (old - base).exp() } else { 1.0 };
        *state.largest.add(index) = largest;
        *state.totals.add(index) = *state.totals.add(index) * factor + total.sum();
        factor
    }
}

/// Numbers of lanes.
const NUMBERS: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Adds rows of the value tile, times their exponentials, to the sums of `N` queries.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn weighted_values<V: Vector, const N: usize>(
    pass: &Pass,
    sums: *mut f32,
    factors: [f32; N],
    rows: Range<usize>,
) {
    let mut at = 0;
    while at < pass.value_stride {
        // SAFETY: the caller's promises; so many registers of a row are left.
        at += unsafe {
            if pass.value_stride - at >= VECS * V::LANES {
                value_block::<V, N, VECS>(pass, sums, factors, rows.clone(), at)
            } else {
                value_block::<V, N, 1>(pass, sums, factors, rows.clone(), at)
            }
        };
    }
}

#[inline(always)]
unsafe fn value_block<V: Vector, const N: usize, const VECS: usize>(
    pass: &Pass,
    sums: *mut f32,
    factors: [f32; N],
    rows: Range<usize>,
    at: usize,
) -> usize {
    // SAFETY: the caller's promises: `VECS` registers of a row from `at` on.
    unsafe {
        let place = |query: usize, vec: usize| sums.add(query * pass.value_stride + at + vec * V::LANES);
        let mut own = [[V::splat(0.0); VECS]; N];
        for (query, own) in own.iter_mut().enumerate() {
            for (vec, own) in own.iter_mut().enumerate() {
                *own = V::load(place(query, vec)).mul(V::splat(factors[query]));
            }
        }
        for row in rows {
            let mut values = [V::splat(0.0); VECS];
            for (vec, values) in values.iter_mut().enumerate() {
                *values = V::load(pass.values.add(row * pass.value_stride + at + vec * V::LANES));
            }
            for (query, own) in own.iter_mut().enumerate() {
                let weight = V::splat(*pass.scores.add(query * TILE + row));
                for (vec, own) in own.iter_mut().enumerate() {
                    *own = values[vec].mul_add(weight, *own);
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
