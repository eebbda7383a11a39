//! Many queries, side by side in the lanes: scores `[key][lane]`, weighted values `[dim][lane]`.

use std::ops::Range;

use super::Job;
use super::lanes::{GroupState, Pass, scored};
use super::scratch::{Group, MAX_WIDTH, TILE};
use crate::cpu::vector::{Vector, math};

/// Rows of accumulators where there are 32 registers, and where there are 16.
const TALL: usize = 8;
const LOW: usize = 4;

/// Takes the rows of a tile into the softmax of a group of `VECS` registers of queries.
///
/// # Safety
/// As [`super::attend`]; the tile's rows are read, the state is the group's; the processor has the set.
#[inline(always)]
pub(super) unsafe fn step<V: Vector, const VECS: usize>(
    job: &Job<'_>,
    pass: &Pass,
    group: Group,
    state: GroupState,
    tile: usize,
    rows: Range<usize>,
) {
    // SAFETY: the caller's promises.
    unsafe {
        products::<V, VECS>(pass, state.queries, rows.clone());
        let factors = softmax::<V, VECS>(job, pass, group, state, tile, rows.clone());
        weighted_values::<V, VECS>(pass, state.sums, factors, rows);
    }
}

/// Dot products of all queries with rows of the key tile.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn products<V: Vector, const VECS: usize>(pass: &Pass, queries: *const f32, rows: Range<usize>) {
    let mut row = rows.start;
    while row < rows.end {
        let left = rows.end - row;
        // SAFETY: the caller's promises; so many rows are left.
        row += unsafe {
            if V::REGISTERS >= 32 && left >= TALL {
                product_block::<V, VECS, TALL>(pass, queries, row)
            } else if left >= LOW {
                product_block::<V, VECS, LOW>(pass, queries, row)
            } else {
                product_block::<V, VECS, 1>(pass, queries, row)
            }
        };
    }
}

#[inline(always)]
unsafe fn product_block<V: Vector, const VECS: usize, const ROWS: usize>(
    pass: &Pass,
    queries: *const f32,
    row: usize,
) -> usize {
    // SAFETY: the caller's promises: `ROWS` rows of the tile, `key_dim` elements of `VECS` registers of queries.
    unsafe {
        let keys = pass.keys.add(row * pass.key_stride).cast_const();
        let mut sums = [[V::splat(0.0); VECS]; ROWS];
        for at in 0..pass.key_dim {
            let mut q = [V::splat(0.0); VECS];
            for (vec, q) in q.iter_mut().enumerate() {
                *q = V::load(queries.add((at * VECS + vec) * V::LANES));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let key = V::splat(*keys.add(row * pass.key_stride + at));
                for (vec, sum) in sums.iter_mut().enumerate() {
                    *sum = q[vec].mul_add(key, *sum);
                }
            }
        }
        for (index, sums) in sums.iter().enumerate() {
            for (vec, sum) in sums.iter().enumerate() {
                sum.store(pass.scores.add(((row + index) * VECS + vec) * V::LANES));
            }
        }
    }
    ROWS
}

/// Turns dot products into exponentials relative to the new largest scores; returns what earlier sums are worth now.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn softmax<V: Vector, const VECS: usize>(
    job: &Job<'_>,
    pass: &Pass,
    group: Group,
    state: GroupState,
    tile: usize,
    rows: Range<usize>,
) -> [V; VECS] {
    // Rows that each lane sees, and whether that is all of them.
    let (mut from, mut to) = ([0.0; MAX_WIDTH], [0.0; MAX_WIDTH]);
    let mut sees_all = true;
    for lane in 0..group.width {
        let seen = job.seen(group.first + lane.min(group.count - 1));
        let (start, end) = (seen.start.saturating_sub(tile).min(TILE), seen.end.saturating_sub(tile).min(TILE));
        sees_all &= start <= rows.start && end >= rows.end;
        (from[lane], to[lane]) = (start as f32, end as f32);
    }
    // SAFETY: the caller's promises; scores and state have `VECS` registers a row.
    unsafe {
        let nothing = V::splat(f32::NEG_INFINITY);
        let mut factors = [V::splat(0.0); VECS];
        for (vec, factor) in factors.iter_mut().enumerate() {
            let offset = vec * V::LANES;
            let place = |row: usize| pass.scores.add(row * VECS * V::LANES + offset);
            let old = V::load(state.largest.add(offset));
            let mut largest = old;
            let (from, to) = (V::load(from.as_ptr().add(offset)), V::load(to.as_ptr().add(offset)));
            for row in rows.clone() {
                let mut scores = scored(pass, V::load(place(row)));
                if !sees_all {
                    let number = V::splat(row as f32);
                    scores = number.where_less(from, nothing, number.where_less(to, scores, nothing));
                }
                largest = largest.max(scores);
                scores.store(place(row));
            }
            // Lanes that have seen nothing yet: minus infinity less itself would be NaN.
            let base = nothing.where_less(largest, largest, V::splat(0.0));
            let mut total = V::splat(0.0);
            for row in rows.clone() {
                let weights = math::exp(V::load(place(row)).sub(base));
                total = total.add(weights);
                weights.store(place(row));
            }
            *factor = math::exp(old.sub(base));
            largest.store(state.largest.add(offset));
            V::load(state.totals.add(offset)).mul_add(*factor, total).store(state.totals.add(offset));
        }
        factors
    }
}

/// Adds rows of the value tile, times their exponentials, to the sums of all queries.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn weighted_values<V: Vector, const VECS: usize>(
    pass: &Pass,
    sums: *mut f32,
    factors: [V; VECS],
    rows: Range<usize>,
) {
    let mut at = 0;
    while at < pass.value_dim {
        let left = pass.value_dim - at;
        // SAFETY: the caller's promises; so many elements are left.
        at += unsafe {
            if V::REGISTERS >= 32 && left >= TALL {
                value_block::<V, VECS, TALL>(pass, sums, factors, rows.clone(), at)
            } else if left >= LOW {
                value_block::<V, VECS, LOW>(pass, sums, factors, rows.clone(), at)
            } else {
                value_block::<V, VECS, 1>(pass, sums, factors, rows.clone(), at)
            }
        };
    }
}

#[inline(always)]
unsafe fn value_block<V: Vector, const VECS: usize, const ROWS: usize>(
    pass: &Pass,
    sums: *mut f32,
    factors: [V; VECS],
    rows: Range<usize>,
    at: usize,
) -> usize {
    // SAFETY: the caller's promises: `ROWS` elements from `at` on.
    unsafe {
        let place = |index: usize, vec: usize| sums.add(((at + index) * VECS + vec) * V::LANES);
        let mut own = [[V::splat(0.0); VECS]; ROWS];
        for (index, own) in own.iter_mut().enumerate() {
            for (vec, own) in own.iter_mut().enumerate() {
                *own = V::load(place(index, vec)).mul(factors[vec]);
            }
        }
        for row in rows {
            let mut weights = [V::splat(0.0); VECS];
            for (vec, weights) in weights.iter_mut().enumerate() {
                *weights = V::load(pass.scores.add((row * VECS + vec) * V::LANES));
            }
            let values = pass.values.add(row * pass.value_stride + at).cast_const();
            for (index, own) in own.iter_mut().enumerate() {
                let value = V::splat(*values.add(index));
                for (vec, own) in own.iter_mut().enumerate() {
                    *own = weights[vec].mul_add(value, *own);
                }
            }
        }
        for (index, own) in own.iter().enumerate() {
            for (vec, own) in own.iter().enumerate() {
                own.store(place(index, vec));
            }
        }
    }
    ROWS
}
