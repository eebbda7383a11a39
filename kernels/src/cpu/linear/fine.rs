//! Products with rows that are rounded finely: two int8 codes a value, the second of what the first leaves.
//!
//! To the kernels the two are two input rows, so weights are unpacked once for both; here their results are added.

use super::Kernel;
use super::job::{Job, OutRows, PANEL_ROWS};
use crate::tensor::WeightView;

/// Input rows of a call of the kernel, at most: enough to unpack panels seldom.
const MAX_ROWS: usize = 128;

/// Results of a call of the kernel, at most.
pub(crate) const ROOM: usize = 2 * MAX_ROWS * PANEL_ROWS;

/// Runs `kernel` over both codes of all input rows of `job`.
///
/// # Safety
/// The kernel's instructions are there and `job` keeps its promises, its input being of fine rows.
pub(crate) unsafe fn multiply(job: &Job<'_>, kernel: Kernel) {
    for start in job.input_rows.clone().step_by(MAX_ROWS) {
        let input_rows = start..job.input_rows.end.min(start + MAX_ROWS);
        let per_call = ROOM / (2 * input_rows.len()) / PANEL_ROWS * PANEL_ROWS;
        for row in job.rows.clone().step_by(per_call) {
            let count = per_call.min(job.rows.end - row);
            let bytes = &job.weight.bytes[row * job.row_bytes..(row + count) * job.row_bytes];
            let weight = WeightView { rows: count, bytes, ..job.weight };
            // The first code of input row `start` comes first.
            let results = job.panel.results.at(0).wrapping_sub(2 * start * count);
            // SAFETY: the caller's promises; the scratch, which is this worker's own, has room for these results, and the
            // added ones are the job's.
            unsafe {
                let out = OutRows::new(results, count, 2 * input_rows.end, count);
                let input_rows = 2 * input_rows.start..2 * input_rows.end;
                kernel(&Job { weight, rows: 0..count, input_rows, out, ..*job });
                for (index, input_row) in (start..job.input_rows.end).take(MAX_ROWS).enumerate() {
                    let both = job.panel.results.at(2 * index * count);
                    let both = std::slice::from_raw_parts(both, 2 * count).split_at(count);
                    let out = std::slice::from_raw_parts_mut(job.out.at(input_row, row), count);
                    for ((out, first), second) in out.iter_mut().zip(both.0).zip(both.1) {
                        *out = first + second;
                    }
                }
            }
        }
    }
}
