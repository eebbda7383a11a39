//! The loops around the instructions: few input rows (flat) and many (tall), written once.
//!
//! Flat: each weight row is unpacked chunk by chunk and met with all input rows at once. Tall: a panel of weight rows
//! is unpacked whole, in the order [k / 4][row][4] (or as [`Engine::place`] says), then runs over tiles of input rows; its codes are read and its
//! scales applied once per tile. An [`Engine`] brings the instructions; its functions are inlined into functions that
//! enable them.

use super::format::{Format, Unpacked, unpack_stored};
use super::input::{CHUNK, Outlier, QuantRow};
use super::job::{Job, PANEL_ROWS, PANELS};
use super::scalar::Float;

/// Input rows met with one unpacked chunk.
const FLAT_ROWS: usize = 16;

/// One instruction set.
///
/// # Safety
/// All functions need the instructions of the set, and pointers to as many elements as they say.
pub(crate) trait Engine {
    /// A chunk of weights in the form that products take.
    type Weights;
    /// Running sum of one dot product.
    type Sum: Copy;
    /// Floats of a vector.
    type Floats: Copy;
    /// Elements of [`Engine::Floats`].
    const LANES: usize;
    /// Weight rows of a panel, at most [`PANEL_ROWS`].
    const ROWS: usize;
    /// Panels that a tile takes side by side, at most [`PANELS`].
    const PANELS: usize = 1;
    /// Whether weights that may be needed again would have to be kept in memory; then they are read again.
    const FEW_REGISTERS: bool = false;
    /// Whether kernels multiply the raw unsigned codes, so that minima must take the offset back.
    const UNSIGNED: bool;

    /// Whether the sums of activations take the offset of raw codes back, so that outliers meet raw codes too.
    fn takes_offset_back<F: Format>() -> bool {
        Self::UNSIGNED
    }

    /// Whether [`Engine::add_outliers`] is there.
    fn adds_outliers<F: Format>() -> bool {
        false
    }

    /// Weights to be replaced.
    unsafe fn no_weights() -> Self::Weights;
    /// Unpacks the next chunk of a row, of which `bytes` is the rest. Minima become what the engine adds per sub-block:
    /// for unsigned codes they take the offset back.
    unsafe fn unpack<F: Format>(bytes: &[u8], out: &mut Self::Weights);
    /// Unpacks a chunk that is whole.
    #[inline(always)]
    unsafe fn unpack_whole<F: Format>(start: *const u8, out: &mut Self::Weights) {
        // SAFETY: the caller's promise.
        unsafe { Self::unpack::<F>(std::slice::from_raw_parts(start, CHUNK / F::LEN * F::BYTES), out) };
    }
    /// Writes weights out.
    unsafe fn spill(weights: &Self::Weights, out: &mut Unpacked);
    /// Writes out `weights`, which were unpacked from `bytes`; with few registers they are unpacked once more.
    #[inline(always)]
    unsafe fn spill_again<F: Format>(bytes: &[u8], weights: &Self::Weights, out: &mut Unpacked) {
        _ = bytes;
        // SAFETY: the caller's promise.
        unsafe { Self::spill(weights, out) };
    }
    /// Sum of nothing.
    unsafe fn zero() -> Self::Sum;
    /// Adds the products of a chunk.
    unsafe fn dot<F: Format>(sum: Self::Sum, weights: &Self::Weights, input: QuantRow) -> Self::Sum;
    /// Adds the products of a chunk, which was unpacked from `start` on, with outliers of the input: where
    /// [`Engine::adds_outliers`] says so.
    #[inline(always)]
    unsafe fn add_outliers<F: Format>(
        sum: Self::Sum,
        weights: &Self::Weights,
        start: *const u8,
        input: QuantRow,
    ) -> Self::Sum {
        _ = (weights, start, input);
        sum
    }
    /// The number a sum stands for.
    unsafe fn total(sum: Self::Sum) -> f32;
    /// Asks for the cache line at an address (which may be anything).
    unsafe fn prefetch(address: *const u8);
    /// Where a panel has the four codes `word` of a row, in words.
    #[inline(always)]
    fn place(word: usize, lane: usize) -> usize {
        word * Self::ROWS + lane
    }
    /// Writes one chunk of [`Engine::ROWS`] rows in the order of a panel: codes where [`Engine::place`] says, for every
    /// scale and every minimum those of all rows side by side.
    ///
    /// The places have room for a chunk: `ROWS` times 64 words of codes, `subs` scales and `subs` minima.
    #[inline(always)]
    unsafe fn interleave(
        rows: &[Unpacked; PANEL_ROWS],
        subs: usize,
        codes: *mut u32,
        scales: *mut f32,
        mins: *mut f32,
    ) {
        for (lane, row) in rows.iter().enumerate().take(Self::ROWS) {
            // SAFETY: the caller's promise.
            unsafe {
                for (word, four) in row.codes.as_chunks::<4>().0.iter().enumerate() {
                    *codes.add(Self::place(word, lane)) = u32::from_ne_bytes(*four);
                }
                for sub in 0..subs {
                    *scales.add(sub * Self::ROWS + lane) = row.scales[sub];
                    *mins.add(sub * Self::ROWS + lane) = row.mins[sub];
                }
            }
        }
    }
    /// Unpacks `n_rows` weight rows, at most [`Engine::ROWS`], into panel `number`; rows that are missing get scales of zero.
    #[inline(always)]
    unsafe fn pack<F: Format>(job: &Job<'_>, number: usize, row: usize, n_rows: usize)
    where
        Self: Sized,
    {
        // SAFETY: the caller's promise.
        unsafe { pack::<Self, F>(job, number, row, n_rows) };
    }
    /// Runs panels (see [`panel`]) of `n_rows` weight rows from `row` on over all input rows of a job.
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

/// An engine that unpacks with plain code, and does by itself only what plain code is slow at.
///
/// # Safety
/// As [`Engine`].
#[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "other sets unpack with vectors"))]
pub(crate) trait UnpacksPlainly: Engine {
    /// Replaces all codes (0..=15) by what a table has for them.
    unsafe fn look_up(table: [u8; 16], codes: &mut [u8; CHUNK]);
    /// Replaces the bits of halves, one in each of the first eight elements, by their values.
    unsafe fn convert_halves(values: &mut [f32; 16]);
}

/// A raw code as an outlier meets it.
#[inline(always)]
pub(crate) fn as_multiplied<E: Engine, F: Format>(code: u8) -> i32 {
    i32::from(code) - if E::takes_offset_back::<F>() { 0 } else { i32::from(F::OFFSET) }
}

/// Unpacks the next chunk of a row with plain code, in the form the engine multiplies.
///
/// # Safety
/// The processor has the engine's instructions.
#[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "other sets unpack with vectors"))]
#[inline(always)]
pub(crate) unsafe fn unpack_plain<E: UnpacksPlainly, F: Format>(bytes: &[u8], out: &mut Unpacked) {
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
#[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "other sets unpack with vectors"))]
#[inline(always)]
fn settle_mins<E: Engine, F: Format>(weights: &mut Unpacked) {
    if E::UNSIGNED && F::OFFSET > 0 {
        for (min, scale) in weights.mins.iter_mut().zip(&weights.scales) {
            let own = if F::HAS_MIN { *min } else { 0.0 };
            *min = own - f32::from(F::OFFSET) * scale;
        }
    }
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
            match end - start {
                1 => flat_rows::<E, F, 1>(job, start, 1),
                2 => flat_rows::<E, F, 2>(job, start, 2),
                count => flat_rows::<E, F, FLAT_ROWS>(job, start, count),
            }
        }
        start = end;
    }
}

#[inline(always)]
unsafe fn flat_rows<E: Engine, F: Format, const MAX: usize>(job: &Job<'_>, start: usize, count: usize) {
    let chunk_bytes = CHUNK / F::LEN * F::BYTES;
    let inputs: [QuantRow; MAX] = std::array::from_fn(|index| job.input.quant_row(start + index.min(count - 1)));
    // A number known beforehand where there are few.
    let count = if MAX < FLAT_ROWS { MAX } else { count };
    // SAFETY: the caller's promises; an input row has `n_chunks` whole chunks.
    unsafe {
        let (mut weights, mut plain) = (E::no_weights(), Unpacked::new());
        let n_whole = if E::FEW_REGISTERS { job.cols() / CHUNK } else { 0 };
        for row in job.rows.clone() {
            let bytes = job.row_bytes(row);
            let mut sums = [E::zero(); MAX];
            let mut outliers = [0.0_f32; MAX];
            for chunk in 0..job.input.n_chunks() {
                let start = bytes.as_ptr().wrapping_add(chunk * chunk_bytes);
                for line in 0..chunk_bytes.div_ceil(64) {
                    E::prefetch(start.wrapping_add(2048 + 64 * line));
                }
                if chunk < n_whole {
                    E::unpack_whole::<F>(start, &mut weights);
                } else {
                    E::unpack::<F>(&bytes[chunk * chunk_bytes..], &mut weights);
                }
                let mut has_outliers = false;
                for (sum, input) in sums.iter_mut().zip(&inputs).take(count) {
                    let input = input.advance(chunk);
                    *sum = E::dot::<F>(*sum, &weights, input);
                    has_outliers |= input.has_outliers();
                }
                if !has_outliers {
                    continue;
                }
                // Minima are there already: they multiply sums that the outliers are part of.
                if E::adds_outliers::<F>() {
                    for (sum, input) in sums.iter_mut().zip(&inputs).take(count) {
                        *sum = E::add_outliers::<F>(*sum, &weights, start, input.advance(chunk));
                    }
                    continue;
                }
                E::spill_again::<F>(&bytes[chunk * chunk_bytes..], &weights, &mut plain);
                for (sum, input) in outliers.iter_mut().zip(&inputs).take(count) {
                    for Outlier { at, value } in input.advance(chunk).outliers_of_chunk() {
                        let code = as_multiplied::<E, F>(plain.codes[at]) as f32;
                        *sum = (plain.scales[at / F::SUB] * code).mul_add(value, *sum);
                    }
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
        let n_rows = (E::PANELS * E::ROWS).min(job.rows.end - row);
        // SAFETY: the caller's promises; `in_panel <= ROWS <= PANEL_ROWS`.
        unsafe {
            let in_panel = |number: usize| n_rows.saturating_sub(number * E::ROWS).min(E::ROWS);
            for number in 0..E::PANELS {
                E::pack::<F>(job, number, row + number * E::ROWS, in_panel(number));
            }
            E::tiles::<F>(job, row, n_rows);
            for number in 0..n_rows.div_ceil(E::ROWS) {
                add_outliers::<E, F>(job, number, row + number * E::ROWS, in_panel(number));
            }
        }
        row += n_rows;
    }
}

/// Codes, scales and minima of a panel in the scratch.
#[inline(always)]
pub(crate) fn panel<E: Engine, F: Format>(job: &Job<'_>, number: usize) -> (*mut u8, *mut f32, *mut f32) {
    debug_assert!(number < E::PANELS && E::PANELS <= PANELS);
    let codes = number * E::ROWS * CHUNK * job.input.n_chunks();
    (job.panel.values.at(codes), job.panel.scales.at(codes / F::SUB), job.panel.mins.at(codes / F::SUB))
}

/// Adds the products of a panel with the outliers of all input rows.
#[inline(always)]
unsafe fn add_outliers<E: Engine, F: Format>(job: &Job<'_>, number: usize, row: usize, n_rows: usize) {
    let (codes, scales, _) = panel::<E, F>(job, number);
    let (words, scales) = (codes.cast::<u32>().cast_const(), scales.cast_const());
    for input_row in job.input_rows.clone() {
        let input = job.input.quant_row(input_row);
        let (mut sums, mut is_any) = ([0.0_f32; PANEL_ROWS], false);
        for chunk in 0..job.input.n_chunks() {
            // SAFETY: outliers lie below the columns, which the panel holds; `ROWS <= PANEL_ROWS`.
            unsafe {
                for Outlier { at, value } in input.advance(chunk).outliers_of_chunk() {
                    is_any = true;
                    let at = chunk * CHUNK + at;
                    let shift = 8 * (at % 4) as u32;
                    let scales = scales.add(at / F::SUB * E::ROWS);
                    for (lane, sum) in sums.iter_mut().enumerate().take(E::ROWS) {
                        let byte = ((*words.add(E::place(at / 4, lane))).to_le() >> shift) as u8;
                        // Panels of signed codes have the offset off already.
                        let code = if E::UNSIGNED { as_multiplied::<E, F>(byte) } else { i32::from(byte as i8) };
                        *sum += *scales.add(lane) * code as f32 * value;
                    }
                }
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

/// Unpacks `n_rows` weight rows into a panel; rows that are missing get scales of zero.
#[inline(always)]
pub(super) unsafe fn pack<E: Engine, F: Format>(job: &Job<'_>, number: usize, row: usize, n_rows: usize) {
    const { assert!(E::ROWS <= PANEL_ROWS) };
    let (subs, chunk_bytes) = (CHUNK / F::SUB, CHUNK / F::LEN * F::BYTES);
    let mut rows = [const { Unpacked::new() }; PANEL_ROWS];
    for chunk in 0..job.input.n_chunks() {
        // SAFETY: the caller's promise; `multiply` checked that the scratch, which is this worker's own, holds the
        // columns: `n_chunks * CHUNK` values of 4 bytes a row.
        unsafe {
            let mut weights = E::no_weights();
            for (lane, out) in rows.iter_mut().enumerate().take(n_rows) {
                let rest = &job.row_bytes(row + lane)[chunk * chunk_bytes..];
                // The same columns of the panel that comes after in its place.
                for line in 0..chunk_bytes.div_ceil(64) {
                    E::prefetch(rest.as_ptr().wrapping_add(E::PANELS * E::ROWS * job.row_bytes + 64 * line));
                }
                E::unpack::<F>(rest, &mut weights);
                E::spill(&weights, out);
                if !E::UNSIGNED {
                    for code in &mut out.codes {
                        *code = code.wrapping_sub(F::OFFSET);
                    }
                }
            }
            let (codes, scales, mins) = panel::<E, F>(job, number);
            let codes = codes.add(chunk * CHUNK * E::ROWS).cast::<u32>();
            let first = chunk * subs * E::ROWS;
            E::interleave(&rows, subs, codes, scales.add(first), mins.add(first));
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
