//! The pass over tiles of keys, in lanes: groups of queries, the tiles they see, and what is left at the end.
//!
//! Many queries stand side by side in the lanes of registers ([`super::many`]): every step of the softmax works on all
//! of them and nothing is summed across lanes. The few that do not fill a register have the elements of a head in the
//! lanes instead ([`super::few`]); where there are no others, they read keys and values as stored, each only once.

use std::ops::Range;

use super::kv::{Codes, Halves, Rows, Widened};
use super::partial::{Part, join_in_lanes};
use super::scratch::{ALIGN, Group, MAX_WIDTH, TILE};
use super::{Job, Order, few, many};
use crate::backend::KvType;
use crate::cpu::vector::{Vector, math};

/// The sizes and places that the loops of a call share.
pub(super) struct Pass {
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
    /// Floats of a row of the key tile, and of the value tile.
    pub(super) key_stride: usize,
    pub(super) value_stride: usize,
    pub(super) keys: *mut f32,
    pub(super) values: *mut f32,
    pub(super) scores: *mut f32,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
}

/// Places of a group.
#[derive(Clone, Copy)]
pub(super) struct GroupState {
    pub(super) queries: *mut f32,
    pub(super) sums: *mut f32,
    pub(super) largest: *mut f32,
    pub(super) totals: *mut f32,
}

/// Runs a job tile by tile.
///
/// # Safety
/// As [`super::attend`]; the processor has the set.
#[inline(always)]
pub(super) unsafe fn in_lanes<V: Vector>(job: &mut Job<'_>) {
    let head = job.head;
    let pass = Pass {
        key_dim: head.key_dim,
        value_dim: head.value_dim,
        key_stride: head.key_dim.next_multiple_of(ALIGN),
        value_stride: head.value_dim.next_multiple_of(ALIGN),
        keys: job.scratch.keys.at(0),
        values: job.scratch.values.at(0),
        scores: job.scratch.scores.at(0),
        scale: job.scores.scale,
        softcap: job.scores.softcap,
    };
    divide::<V>(job);
    for index in 0..job.scratch.groups.len() {
        let group = job.scratch.groups[index];
        // SAFETY: the scratch has room for the call, the group lies inside it.
        unsafe { take_queries(job, &pass, group) };
    }
    let seen = |groups: &[Group], start: usize, end: usize| {
        let inside = groups.iter().filter(|group| group.from < end && group.to > start);
        inside.fold((end, start), |(from, to), group| (from.min(group.from), to.max(group.to)))
    };
    let (start, end) = seen(&job.scratch.groups, 0, usize::MAX);
    let (keys, values) = (head.key_plane(), head.value_plane());
    let is_whole = head.key_dim.is_multiple_of(ALIGN) && head.value_dim.is_multiple_of(ALIGN);
    let is_alone = matches!(job.scratch.groups[..], [Group { width: 0, .. }]);
    let is_direct = is_alone && is_whole && head.kv_type != KvType::F32;
    let mut tile = start - start % TILE;
    while tile < end {
        let (from, to) = seen(&job.scratch.groups, tile, tile + TILE);
        let (from, to) = (from.max(tile), to.min(tile + TILE));
        if from < to {
            let rows = from - tile..to - tile;
            let (mut key_places, mut value_places) = (keys.places_from(from), values.places_from(from));
            if is_direct {
                // Rows that nobody sees are read as well, and left out later: any place will do for them.
                let mut places = [[keys.place(from); TILE], [values.place(from); TILE]];
                for row in rows.clone() {
                    (places[0][row], places[1][row]) = (key_places.next(), value_places.next());
                }
                let [key_places, value_places] = [places[0].as_ptr(), places[1].as_ptr()];
                let group = job.scratch.groups[0];
                // SAFETY: places of written keys and values, whole registers each; the group's own state.
                unsafe {
                    if head.kv_type == KvType::F16 {
                        let stored = (Halves(key_places), Halves(value_places));
                        few_step::<V, _>(job, &pass, group, tile, rows, stored);
                    } else {
                        let stored = (Codes(key_places), Codes(value_places));
                        few_step::<V, _>(job, &pass, group, tile, rows, stored);
                    }
                }
                tile += TILE;
                continue;
            }
            for row in rows {
                // SAFETY: positions seen have written keys and values; rows of a tile are `stride` floats.
                unsafe {
                    keys.read::<V>(key_places.next(), pass.key_stride, pass.keys.add(row * pass.key_stride));
                    let row = pass.values.add(row * pass.value_stride);
                    values.read::<V>(value_places.next(), pass.value_stride, row);
                }
            }
        }
        for index in 0..job.scratch.groups.len() {
            let group = job.scratch.groups[index];
            let (from, to) = (group.from.max(tile), group.to.min(tile + TILE));
            if from >= to {
                continue;
            }
            let rows = from - tile..to - tile;
            // SAFETY: rows of the tile that hold what was just read; the group's own state.
            unsafe {
                if group.width == 0 {
                    let read = (
                        Widened { start: pass.keys, stride: pass.key_stride },
                        Widened { start: pass.values, stride: pass.value_stride },
                    );
                    few_step::<V, _>(job, &pass, group, tile, rows, read);
                } else if group.width == V::LANES {
                    many::step::<V, 1>(job, &pass, group, state(job, &pass, group), tile, rows);
                } else {
                    many::step::<V, 2>(job, &pass, group, state(job, &pass, group), tile, rows);
                }
            }
        }
        tile += TILE;
    }
    for index in 0..job.scratch.groups.len() {
        let group = job.scratch.groups[index];
        // SAFETY: as above; partial rows are the job's.
        unsafe { give_results::<V>(job, &pass, group) };
    }
}

/// The step of a group of few, by their number.
///
/// # Safety
/// As [`few::step`].
#[inline(always)]
unsafe fn few_step<V: Vector, R: Rows>(
    job: &Job<'_>,
    pass: &Pass,
    group: Group,
    tile: usize,
    rows: Range<usize>,
    stored: (R, R),
) {
    let state = state(job, pass, group);
    // SAFETY: the caller's promises.
    unsafe {
        match group.count {
            1 => few::step::<V, R, 1>(job, pass, group, state, tile, rows, stored),
            2 => few::step::<V, R, 2>(job, pass, group, state, tile, rows, stored),
            3 => few::step::<V, R, 3>(job, pass, group, state, tile, rows, stored),
            _ => few::step::<V, R, 4>(job, pass, group, state, tile, rows, stored),
        }
    }
}

/// Divides the queries into groups: as many as fill two registers (or nearly), then one, the rest by few; all by few
/// where the order of sums is fixed.
fn divide<V: Vector>(job: &mut Job<'_>) {
    const { assert!(2 * V::LANES <= MAX_WIDTH) };
    job.scratch.groups.clear();
    let (mut first, mut slot) = (0, 0);
    while first < job.queries.len() {
        let left = job.queries.len() - first;
        let (width, count) = if job.order == Order::Fixed {
            (0, left.min(few::MOST))
        } else if left > V::LANES * 3 / 2 {
            (2 * V::LANES, left.min(2 * V::LANES))
        } else if left > V::LANES * 5 / 8 {
            (V::LANES, left.min(V::LANES))
        } else {
            (0, left.min(few::MOST))
        };
        let (mut from, mut to) = (usize::MAX, 0);
        for seen in (first..first + count).map(|query| job.seen(query)).filter(|seen| !seen.is_empty()) {
            (from, to) = (from.min(seen.start), to.max(seen.end));
        }
        job.scratch.groups.push(Group { first, count, width, from, to, slot });
        first += count;
        slot += width.max(count);
    }
}

fn state(job: &Job<'_>, pass: &Pass, group: Group) -> GroupState {
    GroupState {
        queries: job.scratch.queries.at(group.slot * pass.key_stride),
        sums: job.scratch.sums.at(group.slot * pass.value_stride),
        largest: job.scratch.largest.at(group.slot),
        totals: job.scratch.totals.at(group.slot),
    }
}

/// Copies the queries of a group to where its loops want them, and starts with nothing seen.
///
/// # Safety
/// As [`super::attend`].
unsafe fn take_queries(job: &Job<'_>, pass: &Pass, group: Group) {
    let GroupState { queries, sums, largest, totals } = state(job, pass, group);
    let slots = group.width.max(group.count);
    // SAFETY: the scratch has room for `slots` queries here; a query has `key_dim` floats.
    unsafe {
        for lane in 0..slots {
            let q = job.queries[group.first + lane.min(group.count - 1)].q;
            if group.width == 0 {
                let row = queries.add(lane * pass.key_stride);
                row.copy_from_nonoverlapping(q, pass.key_dim);
                row.add(pass.key_dim).write_bytes(0, pass.key_stride - pass.key_dim);
            } else {
                for at in 0..pass.key_dim {
                    *queries.add(at * group.width + lane) = *q.add(at);
                }
            }
            *largest.add(lane) = f32::NEG_INFINITY;
            *totals.add(lane) = 0.0;
        }
        sums.write_bytes(0, slots * pass.value_stride);
    }
}

/// Joins what a group found into its partial rows.
///
/// # Safety
/// As [`super::attend`]; the processor has the set.
#[inline(always)]
unsafe fn give_results<V: Vector>(job: &Job<'_>, pass: &Pass, group: Group) {
    let state = state(job, pass, group);
    for lane in 0..group.count {
        if job.seen(group.first + lane).is_empty() {
            continue;
        }
        let into = job.partials.row(group.first + lane);
        // SAFETY: the group's state in the scratch; a row of it has room for the values; the partial row is the job's.
        unsafe {
            let (largest, sum) = (*state.largest.add(lane), *state.totals.add(lane));
            let values = if group.width == 0 {
                state.sums.add(lane * pass.value_stride).cast_const()
            } else {
                let row = job.scratch.row.at(0);
                for at in 0..pass.value_dim {
                    *row.add(at) = *state.sums.add(at * group.width + lane);
                }
                row.cast_const()
            };
            join_in_lanes::<V>(into, Part { values, largest, sum }, pass.value_dim);
        }
    }
}

/// Scale and cap of a register of dot products.
///
/// # Safety
/// The processor has the set.
#[inline(always)]
pub(super) unsafe fn scored<V: Vector>(pass: &Pass, products: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let scores = products.mul(V::splat(pass.scale));
        match pass.softcap {
            Some(cap) => math::tanh(scores.mul(V::splat(1.0 / cap))).mul(V::splat(cap)),
            None => scores,
        }
    }
}
