//! The loops around the instructions: few input rows (flat) and many (tall), written once.
//!
//! Flat: each weight row is unpacked chunk by chunk and met with all input rows at once. Tall: a panel of weight rows
//! is unpacked whole, in the order [k / 4][row][4], then runs over tiles of input rows; its codes are read and its
//! scales applied once per tile. An [`Engine`] brings the instructions; its functions are inlined into functions that
//! enable them.

use super::format::{Format, Unpacked, unpack_stored};
use super::input::{CHUNK, Outlier, QuantRow};
use super::job::{Job, PANEL_ROWS};
use super::scalar::Float;

/// Input rows met with one unpacked chunk.
const FLAT_ROWS: usize = 16;

/// One instruction set.
///
/// # Safety
/// All functions need the instructions of the set, and pointers to as many elements as they say.
pub(crate) trait Engine {
    /// Running sum of one dot product.
    type Sum: Copy;
    /// Floats of a vector.
    type Floats: Copy;
    /// Elements of [`Engine::Floats`].
    const LANES: usize;
    /// Weight rows of a panel, at most [`PANEL_ROWS`].
    const ROWS: usize;
    /// Whether kernels multiply the raw unsigned codes, so that minima must take the offset back.
    const UNSIGNED: bool;

    /// Whether the sums of activations take the offset of raw codes back, so that outliers meet raw codes too.
    fn takes_offset_back<F: Format>() -> bool {
        Self::UNSIGNED
    }

    /// Sum of nothing.
    unsafe fn zero() -> Self::Sum;
    /// Adds the products of a chunk.
    unsafe fn dot<F: Format>(sum: Self::Sum, weights: &Unpacked, input: QuantRow) -> Self::Sum;
    /// The number a sum stands for.
    unsafe fn total(sum: Self::Sum) -> f32;
    /// Replaces all codes (0..=15) by what a table has for them.
    unsafe fn look_up(table: [u8; 16], codes: &mut [u8; CHUNK]);
    /// Replaces the bits of halves, one in each of the first eight elements, by their values.
    unsafe fn convert_halves(values: &mut [f32; 16]);
    /// Asks for the cache line at an address (which may be anything).
    unsafe fn prefetch(address: *const u8);
    /// Runs a panel over all input rows of a job.
    unsafe fn tiles<F: Format>(job: &Job<'_>, row: usize, n_rows: usize);

    /// Zero in every lane.
    unsafe fn floats_zero() -> Self::Floats;
    /// The same number in every lane.
    unsafe fn splat(value: f32) -> Self::Floats;
    /// `LANES` stored numbers, as f32.
    unsafe fn load<T: Float>(bytes: *const u8) -> Self::Floats;
    /// `a * b + sum`, rounded once.
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, sum: Self::Floats) -> Self::Floats;
    /// Writes `LANES` numbers.
    unsafe fn store(values: Self::Floats, out: *mut f32);
}

/// A raw code as an outlier meets it.
#[inline(always)]
fn as_multiplied<E: Engine, F: Format>(code: u8) -> i32 {
    i32::from(code) - if E::takes_offset_back::<F>() { 0 } else { i32::from(F::OFFSET) }
}

/// Unpacks the next chunk of a row in the form the engine multiplies.
///
/// # Safety
/// The processor has the engine's instructions.
#[inline(always)]
unsafe fn unpack<E: Engine, F: Format>(bytes: &[u8], out: &mut Unpacked) {
    unpack_stored::<F>(bytes, out);
    if F::STORED_HALVES {
        // SAFETY: the caller's promise.
        unsafe {
            E::convert_halves(&mut out.scales);
            if F::HAS_MIN {
                E::convert_halves(&mut out.mins);
            }
        }
    }
    if let Some(table) = F::TABLE {
        // SAFETY: the caller's promise.
        unsafe { E::look_up(table, &mut out.codes) };
    }
    settle_mins::<E, F>(out);
}

/// Makes minima what the engine adds per sub-block: for unsigned codes they take the offset back.
#[inline(always)]
fn settle_mins<E: Engine, F: Format>(weights: &mut Unpacked) {
    if E::UNSIGNED && F::OFFSET > 0 {
        for (min, scale) in weights.mins.iter_mut().zip(&weights.scales) {
            let own = if F::HAS_MIN { *min } else { 0.0 };
            *min = own - f32::from(F::OFFSET) * scale;
        }
    }
}

/// Whether the engine has to add minima at all.
#[inline(always)]
pub(crate) const fn adds_mins<E: Engine, F: Format>() -> bool {
    F::HAS_MIN || (E::UNSIGNED && F::OFFSET > 0)
}

/// Few input rows.
///
/// # Safety
/// The processor has the engine's instructions and `job` keeps its promises.
#[inline(always)]
pub(crate) unsafe fn flat<E: Engine, F: Format>(job: &Job<'_>) {
    let mut start = job.input_rows.start;
    while start < job.input_rows.end {
        let end = job.input_rows.end.min(start + FLAT_ROWS);
        // SAFETY: the caller's promises.
        unsafe {
            if end - start == 1 {
                flat_rows::<E, F, 1>(job, start, 1);
            } else {
                flat_rows::<E, F, FLAT_ROWS>(job, start, end - start);
            }
        }
        start = end;
    }
}

#[inline(always)]
unsafe fn flat_rows<E: Engine, F: Format, const MAX: usize>(job: &Job<'_>, start: usize, count: usize) {
    let chunk_bytes = CHUNK / F::LEN * F::BYTES;
    let inputs: [QuantRow; MAX] = std::array::from_fn(|index| job.input.quant_row(start + index.min(count - 1)));
    let count = if MAX == 1 { 1 } else { count };
    let mut unpacked = Unpacked::new();
    for row in job.rows.clone() {
        let bytes = job.row_bytes(row);
        // SAFETY: the caller's promises; an input row has `n_chunks` whole chunks.
        unsafe {
            let mut sums = [E::zero(); MAX];
            let mut outliers = [0.0_f32; MAX];
            for chunk in 0..job.input.n_chunks() {
                let rest = &bytes[chunk * chunk_bytes..];
                for line in 0..chunk_bytes.div_ceil(64) {
                    E::prefetch(rest.as_ptr().wrapping_add(2048 + 64 * line));
                }
                unpack::<E, F>(rest, &mut unpacked);
                for (sum, input) in sums.iter_mut().zip(&inputs).take(count) {
                    *sum = E::dot::<F>(*sum, &unpacked, input.advance(chunk));
                }
                // Minima are there already: they multiply sums that the outliers are part of.
                for (sum, input) in outliers.iter_mut().zip(&inputs).take(count) {
                    input.advance(chunk).outliers_of_chunk(|Outlier { at, value }| {
                        let code = as_multiplied::<E, F>(unpacked.codes[at]) as f32;
                        *sum += unpacked.scales[at / F::SUB] * code * value;
                    });
                }
            }
            for (index, sum) in sums.iter().take(count).enumerate() {
                *job.out.at(start + index, row) = E::total(*sum) + outliers[index];
            }
        }
    }
}

/// Many input rows.
///
/// # Safety
/// As [`flat`].
#[inline(always)]
pub(crate) unsafe fn tall<E: Engine, F: Format>(job: &Job<'_>) {
    let mut row = job.rows.start;
    while row < job.rows.end {
        let n_rows = E::ROWS.min(job.rows.end - row);
        // SAFETY: the caller's promises; `n_rows <= ROWS <= PANEL_ROWS`.
        unsafe {
            pack::<E, F>(job, row, n_rows);
            E::tiles::<F>(job, row, n_rows);
            add_outliers::<E, F>(job, row, n_rows);
        }
        row += n_rows;
    }
}

/// Adds the products of the panel with the outliers of all input rows.
#[inline(always)]
unsafe fn add_outliers<E: Engine, F: Format>(job: &Job<'_>, row: usize, n_rows: usize) {
    let words = job.panel.values.at(0).cast::<u32>().cast_const();
    let scales = job.panel.scales.at(0).cast_const();
    for input_row in job.input_rows.clone() {
        let input = job.input.quant_row(input_row);
        let (mut sums, mut is_any) = ([0.0_f32; PANEL_ROWS], false);
        for chunk in 0..job.input.n_chunks() {
            // SAFETY: outliers lie below the columns, which the panel holds; `ROWS <= PANEL_ROWS`.
            unsafe {
                input.advance(chunk).outliers_of_chunk(|Outlier { at, value }| {
                    is_any = true;
                    let at = chunk * CHUNK + at;
                    let (words, shift) = (words.add(at / 4 * E::ROWS), 8 * (at % 4) as u32);
                    let scales = scales.add(at / F::SUB * E::ROWS);
                    for (lane, sum) in sums.iter_mut().enumerate().take(E::ROWS) {
                        let byte = ((*words.add(lane)).to_le() >> shift) as u8;
                        // Panels of signed codes have the offset off already.
                        let code = if E::UNSIGNED { as_multiplied::<E, F>(byte) } else { i32::from(byte as i8) };
                        *sum += *scales.add(lane) * code as f32 * value;
                    }
                });
            }
        }
        if is_any {
            for (lane, sum) in sums.iter().enumerate().take(n_rows) {
                // SAFETY: results of the job.
                unsafe { *job.out.at(input_row, row + lane) += sum };
            }
        }
    }
}

/// Unpacks `n_rows` weight rows into the panel; rows that are missing get scales of zero.
#[inline(always)]
unsafe fn pack<E: Engine, F: Format>(job: &Job<'_>, row: usize, n_rows: usize) {
    const { assert!(E::ROWS <= PANEL_ROWS) };
    let (words, subs) = (CHUNK / 4, CHUNK / F::SUB);
    let mut unpacked = Unpacked::new();
    for chunk in 0..job.input.n_chunks() {
        // `multiply` checked that the scratch holds the columns: `n_chunks * CHUNK` values of 4 bytes a row.
        let values = job.panel.values.at(chunk * CHUNK * E::ROWS).cast::<u32>();
        let scales = job.panel.scales.at(chunk * subs * E::ROWS);
        let mins = job.panel.mins.at(chunk * subs * E::ROWS);
        for lane in 0..E::ROWS {
            if lane < n_rows {
                let bytes = job.row_bytes(row + lane);
                // SAFETY: the caller's promise.
                unsafe { unpack::<E, F>(&bytes[chunk * (CHUNK / F::LEN) * F::BYTES..], &mut unpacked) };
                if !E::UNSIGNED {
                    for code in &mut unpacked.codes {
                        *code = code.wrapping_sub(F::OFFSET);
                    }
                }
            } else {
                unpacked.scales.fill(0.0);
                unpacked.mins.fill(0.0);
            }
            // SAFETY: inside the panel (see above); the scratch is this worker's own.
            unsafe {
                for (word, codes) in unpacked.codes.as_chunks::<4>().0.iter().enumerate().take(words) {
                    *values.add(word * E::ROWS + lane) = u32::from_ne_bytes(*codes);
                }
                for sub in 0..subs {
                    *scales.add(sub * E::ROWS + lane) = unpacked.scales[sub];
                    *mins.add(sub * E::ROWS + lane) = unpacked.mins[sub];
                }
            }
        }
    }
}

/// Writes one column of a tile: results of `n_rows` weight rows from `row` on for one input row.
///
/// # Safety
/// The elements lie inside `job.out`.
#[inline(always)]
pub(crate) unsafe fn put<const ROWS: usize>(
    job: &Job<'_>,
    input_row: usize,
    row: usize,
    n_rows: usize,
    values: &[f32; ROWS],
) {
    let out = job.out.at(input_row, row);
    // SAFETY: the caller's promise; `values` has `ROWS >= n_rows`.
    unsafe {
        if n_rows == ROWS {
            out.cast::<[f32; ROWS]>().write_unaligned(*values);
        } else {
            std::ptr::copy_nonoverlapping(values.as_ptr(), out, n_rows.min(ROWS));
        }
    }
}

/// Few input rows, weights of plain numbers.
///
/// # Safety
/// As [`flat`].
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
                        *sum = E::multiply_add(weights, E::load::<super::scalar::F32>(x.add(4 * place)), *sum);
                    }
                    at += 4 * E::LANES;
                }
                while at < cols {
                    let weights = if at < whole { bytes.as_ptr().add(at * T::BYTES) } else { tail.as_ptr() };
                    let x = E::load::<super::scalar::F32>(x.add(4 * at));
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
/// As [`flat`].
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
            let weights = E::load::<super::scalar::F32>(panel.add(col * E::LANES * 4));
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
