//! Attention as it reads in a textbook: the truth that the kernels in lanes are tested against.

use super::Job;
use super::partial::{Part, join_in_turn};

/// Runs a job query by query.
///
/// # Safety
/// As [`super::attend`].
pub(super) unsafe fn in_turn(job: &mut Job<'_>) {
    let (keys, values) = (job.head.key_plane(), job.head.value_plane());
    let (row, sums) = (job.scratch.row.at(0), job.scratch.sums.at(0));
    for (index, query) in job.queries.iter().enumerate() {
        let seen = job.seen(index);
        if seen.is_empty() {
            continue;
        }
        let score = |position: usize| {
            // SAFETY: the position has a written key and the row has room for it; the query has as many elements.
            let product: f64 = unsafe {
                keys.read_from(keys.place(position), 0, row);
                (0..keys.dim).map(|at| f64::from(*query.q.add(at)) * f64::from(*row.add(at))).sum()
            };
            let score = (product * f64::from(job.scores.scale)) as f32;
            job.scores.softcap.map_or(score, |cap| cap * (score / cap).tanh())
        };
        // `max` leaves a NaN out; its exponential brings it back in.
        let largest = seen.clone().map(score).fold(f32::NEG_INFINITY, f32::max);
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        // SAFETY: the scratch has room for one row of values and of sums; the partial row is this query's.
        unsafe {
            sums.write_bytes(0, values.dim);
            let mut total = 0.0;
            for position in seen {
                let weight = (score(position) - base).exp();
                total += weight;
                values.read_from(values.place(position), 0, row);
                for at in 0..values.dim {
                    *sums.add(at) += weight * *row.add(at);
                }
            }
            join_in_turn(job.partials.row(index), Part { values: sums, largest, sum: total }, values.dim);
        }
    }
}
