//! The loops for weights of plain numbers: few input rows and many, written once as in [`super::drive`].

use super::drive::Engine;
use super::job::Job;
use super::scalar::{F32, Float};

/// Few input rows, weights of plain numbers.
///
/// # Safety
/// As [`super::drive::flat`].
#[inline(always)]
pub(crate) unsafe fn floats_flat<E: Engine, T: Float>(job: &Job<'_>) {
    let cols = job.cols();
    let whole = cols / E::LANES * E::LANES;
    for row in job.rows.clone() {
        let bytes = job.row_bytes(row);
        // The last columns, padded with zeros.
        let mut tail = [0_u8; 64];
        tail[..(cols - whole) * T::BYTES].copy_from_slice(&bytes[whole * T::BYTES..]);
        for input_row in job.input_rows.clone() {
            let x = job.input.float_row(input_row).cast::<u8>();
            // SAFETY: `whole` weights are there; input rows go on with zeros to a whole chunk.
            unsafe {
                let mut sums = [E::floats_zero(); 4];
                let mut at = 0;
                while at + 4 * E::LANES <= whole {
                    for (part, sum) in sums.iter_mut().enumerate() {
                        let place = at + part * E::LANES;
                        E::prefetch(bytes.as_ptr().wrapping_add(place * T::BYTES + 2048));
                        let weights = E::load::<T>(bytes.as_ptr().add(place * T::BYTES));
                        *sum = E::multiply_add(weights, E::load::<F32>(x.add(4 * place)), *sum);
                    }
                    at += 4 * E::LANES;
                }
                while at < cols {
                    let weights = if at < whole { bytes.as_ptr().add(at * T::BYTES) } else { tail.as_ptr() };
                    let x = E::load::<F32>(x.add(4 * at));
                    sums[0] = E::multiply_add(E::load::<T>(weights), x, sums[0]);
                    at += E::LANES;
                }
                let mut lanes = [[0.0_f32; 16]; 4];
                for (lanes, sum) in lanes.iter_mut().zip(sums) {
                    E::store(sum, lanes.as_mut_ptr());
                }
                let total: f32 = (0..E::LANES)
                    .map(|lane| (lanes[0][lane] + lanes[1][lane]) + (lanes[2][lane] + lanes[3][lane]))
                    .sum();
                *job.out.at(input_row, row) = total;
            }
        }
    }
}

/// Many input rows, weights of plain numbers.
///
/// # Safety
/// As [`super::drive::flat`].
#[inline(always)]
pub(crate) unsafe fn floats_tall<E: Engine, T: Float, const COLS: usize>(job: &Job<'_>) {
    let panel = job.panel.values.at(0).cast::<f32>();
    let mut row = job.rows.start;
    while row < job.rows.end {
        let n_rows = E::LANES.min(job.rows.end - row);
        for lane in 0..E::LANES {
            let bytes = (lane < n_rows).then(|| job.row_bytes(row + lane));
            for col in 0..job.cols() {
                // SAFETY: the panel holds `PANEL_ROWS >= LANES` floats per column.
                unsafe {
                    *panel.add(col * E::LANES + lane) = bytes.map_or(0.0, |bytes| T::value(&bytes[col * T::BYTES..]));
                }
            }
        }
        let mut start = job.input_rows.start;
        while start < job.input_rows.end {
            let left = job.input_rows.end - start;
            // SAFETY: the input rows of the tile are inside the job.
            start += unsafe {
                if left >= COLS {
                    float_tile::<E, COLS>(job, row, n_rows, start)
                } else if left >= 4 {
                    float_tile::<E, 4>(job, row, n_rows, start)
                } else {
                    float_tile::<E, 1>(job, row, n_rows, start)
                }
            };
        }
        row += n_rows;
    }
}

#[inline(always)]
unsafe fn float_tile<E: Engine, const N: usize>(job: &Job<'_>, row: usize, n_rows: usize, start: usize) -> usize {
    let panel = job.panel.values.at(0);
    let (x, stride) = (job.input.float_row(start), job.input.stride());
    // SAFETY: the panel has `cols` columns, input rows `start .. start + N` are there.
    unsafe {
        let mut sums = [E::floats_zero(); N];
        for col in 0..job.cols() {
            let weights = E::load::<F32>(panel.add(col * E::LANES * 4));
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum = E::multiply_add(weights, E::splat(*x.add(index * stride + col)), *sum);
            }
        }
        for (index, sum) in sums.into_iter().enumerate() {
            let mut lanes = [0.0; 16];
            E::store(sum, lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), job.out.at(start + index, row), n_rows);
        }
    }
    N
}
