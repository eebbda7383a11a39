//! AMX: tiles of bf16 numbers, 16 x 32 times 32 x 16 an instruction, sums in f32.
//!
//! Weights become numbers (scale times code plus minimum) as they are unpacked, so nothing is left to scale afterwards
//! whatever the type; activations come as bf16 too (see `input_tiles`). Both are rounded once, to eight bits: less than
//! what rounding activations to int8 costs. (`docs/decisions/009-amx.md` has the figures.)
//!
//! A panel of 64 weight rows by 256 columns is unpacked into the first-level cache and met with all input rows, whose
//! share of these columns streams from the second; sums wait in memory for the next 256 columns.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::format::Format;
use super::input::CHUNK;
use super::input_tiles::{STEP, STEPS, TILE_LEN, TILE_ROWS};
use super::job::{Job, SUM_ROWS, SUM_TILES};
use super::transpose::transpose;
use super::unpack_bf16::unpack;

pub(crate) use super::avx512::floats_tall;

/// Weight rows of a panel: four tiles.
pub(super) const PANEL_ROWS: usize = 4 * TILE_ROWS;
/// Bytes of a panel.
const PANEL_BYTES: usize = PANEL_ROWS * CHUNK * 2;
/// Bytes of a tile of either side.
const TILE_BYTES: usize = 1024;
/// Bytes of a cache line, a row of a tile.
const LINE: usize = 64;
/// Cache lines of a step of a tile of input rows.
const INPUT_LINES: usize = 16;
/// Floats of the sums of a panel and a tile of input rows.
const SUMS_LEN: usize = PANEL_ROWS * TILE_ROWS;

/// Shapes of the tile registers, as `ldtilecfg` takes them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Tile registers in use by this thread. Given back when dropped: a thread that sleeps with them carries 8 KiB of state.
struct Registers;

impl Registers {
    /// # Safety
    /// The processor has AMX and the process may use it.
    unsafe fn take() -> Self {
        // SAFETY: the caller's promise; the shapes are those of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(readonly, nostack, preserves_flags)) };
        Self
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: they were taken, so the instruction is there.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// `repeats` times four products of tiles on registers alone; gives the number of multiply-adds.
///
/// # Safety
/// The processor has the instructions of `Isa::Amx`.
pub(crate) unsafe fn tile_products(repeats: usize) -> usize {
    if repeats > 0 {
        // SAFETY: the caller's promise; registers only.
        unsafe {
            let _registers = Registers::take();
            asm!(
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {repeats}",
                "jnz 2b",
                repeats = inout(reg) repeats => _,
                options(nomem, nostack)
            );
        }
    }
    repeats * 4 * TILE_ROWS * TILE_ROWS * STEP
}

/// Many input rows, held as tiles.
///
/// # Safety
/// The processor has the instructions of `Isa::Amx`; the job keeps its promises and its input is tiles.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")]
pub(crate) unsafe fn tall<F: Format>(job: &Job<'_>) {
    let inputs = job.input_rows.start / TILE_ROWS..job.input_rows.end.div_ceil(TILE_ROWS);
    // SAFETY: the caller's promises.
    unsafe {
        let _registers = Registers::take();
        for first in inputs.clone().step_by(SUM_TILES) {
            for row in job.rows.clone().step_by(SUM_ROWS) {
                let rows = row..job.rows.end.min(row + SUM_ROWS);
                block::<F>(job, rows, first..inputs.end.min(first + SUM_TILES));
            }
        }
    }
}

/// A panel: 64 weight rows from `row` on, in one chunk of columns.
#[derive(Clone, Copy)]
struct Panel {
    row: usize,
    n_rows: usize,
    chunk: usize,
    /// Where it is unpacked to.
    start: *mut u8,
}

/// At most [`SUM_ROWS`] weight rows times at most [`SUM_TILES`] tiles of input rows.
///
/// While the tile registers multiply, the vector registers unpack the next panel and write the results of the tile before:
/// a little after each step, for the processor looks no further ahead.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")]
unsafe fn block<F: Format>(job: &Job<'_>, rows: Range<usize>, tiles: Range<usize>) {
    let (n_chunks, per_chunk) = (job.input.n_chunks(), rows.len().div_ceil(PANEL_ROWS));
    let panel = |number: usize| {
        let row = rows.start + number % per_chunk * PANEL_ROWS;
        let start = job.panel.values.at(number % 2 * PANEL_BYTES);
        Panel { row, n_rows: PANEL_ROWS.min(rows.end - row), chunk: number / per_chunk, start }
    };
    let share = PANEL_ROWS.div_ceil(tiles.len());
    // SAFETY: the caller's promises; the scratch has room for two panels and the sums of so many rows and tiles.
    unsafe {
        pack::<F>(job, panel(0), 0..PANEL_ROWS);
        for number in 0..n_chunks * per_chunk {
            let own = panel(number);
            let next = (number + 1 < n_chunks * per_chunk).then(|| panel(number + 1));
            let n_steps = (job.cols() - own.chunk * CHUNK).min(CHUNK).div_ceil(2 * STEP) * 2;
            let sums = |index: usize| job.panel.sums.at((number % per_chunk * tiles.len() + index) * SUMS_LEN);
            let is_last = own.chunk + 1 == n_chunks;
            // The panels of a chunk share out the next chunk of the input.
            let lines = if is_last { 0 } else { INPUT_LINES.div_ceil(per_chunk) };
            let mut ahead = job.input.tile(own.chunk, tiles.start).cast_const().cast::<u8>();
            ahead =
                ahead.wrapping_add(job.input.chunk_len() * 2 + number % per_chunk * tiles.len() * STEPS * lines * LINE);
            for (index, tile) in tiles.clone().enumerate() {
                let (own_sums, input) = (sums(index), job.input.tile(own.chunk, tile).cast_const());
                take_up(own_sums, own.chunk == 0);
                for step in 0..n_steps {
                    let to_come = own_sums.wrapping_add(SUMS_LEN + step * SUMS_LEN / STEPS);
                    multiply(own.start.add(step * 4 * TILE_BYTES), input.add(step * TILE_LEN), to_come);
                    for line in 0..lines {
                        _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line * LINE).cast());
                    }
                    ahead = ahead.wrapping_add(lines * LINE);
                    if let Some(next) = next {
                        let part = |step: usize| index * share + share * step / n_steps;
                        pack::<F>(job, next, part(step)..part(step + 1));
                    }
                    if is_last && index > 0 {
                        for quarter in 4 * step / n_steps..4 * (step + 1) / n_steps {
                            put(job, own, tile - 1, quarter, sums(index - 1));
                        }
                    }
                }
                put_down(own_sums);
            }
            if is_last {
                for quarter in 0..4 {
                    put(job, own, tiles.end - 1, quarter, sums(tiles.len() - 1));
                }
            }
        }
    }
}

// The tile registers keep their values from one of the next three functions to the other: nothing else in the program
// touches them, and the compiler does not use them by itself.

/// Begins sums: at zero, or where they were left.
#[inline(always)]
unsafe fn take_up(sums: *const f32, is_first: bool) {
    // SAFETY: the caller has taken the registers, and has four tiles of sums.
    unsafe {
        if is_first {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, preserves_flags));
        } else {
            asm!(
                "tileloadd tmm0, [{sums} + {stride}]",
                "tileloadd tmm1, [{sums} + {stride} + 1024]",
                "tileloadd tmm2, [{sums} + {stride} + 2048]",
                "tileloadd tmm3, [{sums} + {stride} + 3072]",
                sums = in(reg) sums,
                stride = in(reg) LINE,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Adds the products of a step: four tiles of 16 weight rows x 32 columns with one of 16 pairs of columns x 16 input
/// rows. Four sums hide the latency of a product. The input is loaded so that it leaves the first-level cache to the
/// panel; `to_come` is a part of the sums that are next.
#[inline(always)]
unsafe fn multiply(panel: *const u8, input: *const u16, to_come: *const f32) {
    // SAFETY: the caller has taken the registers; the tiles are there; any address may be asked for.
    unsafe {
        asm!(
            "tileloaddt1 tmm7, [{input} + {stride}]",
            "tileloadd tmm4, [{panel} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm7",
            "prefetchw [{to_come}]",
            "prefetchw [{to_come} + 64]",
            "tileloadd tmm5, [{panel} + {stride} + 1024]",
            "tdpbf16ps tmm1, tmm5, tmm7",
            "prefetchw [{to_come} + 128]",
            "prefetchw [{to_come} + 192]",
            "tileloadd tmm6, [{panel} + {stride} + 2048]",
            "tdpbf16ps tmm2, tmm6, tmm7",
            "prefetchw [{to_come} + 256]",
            "prefetchw [{to_come} + 320]",
            "tileloadd tmm4, [{panel} + {stride} + 3072]",
            "tdpbf16ps tmm3, tmm4, tmm7",
            "prefetchw [{to_come} + 384]",
            "prefetchw [{to_come} + 448]",
            panel = in(reg) panel,
            input = in(reg) input,
            to_come = in(reg) to_come,
            stride = in(reg) LINE,
            options(nostack, preserves_flags)
        );
    }
}

/// Leaves sums in memory: four tiles of 16 weight rows x 16 input rows.
#[inline(always)]
unsafe fn put_down(sums: *mut f32) {
    // SAFETY: the caller has taken the registers, and has room for four tiles of sums.
    unsafe {
        asm!(
            "tilestored [{sums} + {stride}], tmm0",
            "tilestored [{sums} + {stride} + 1024], tmm1",
            "tilestored [{sums} + {stride} + 2048], tmm2",
            "tilestored [{sums} + {stride} + 3072], tmm3",
            sums = in(reg) sums,
            stride = in(reg) LINE,
            options(nostack, preserves_flags)
        );
    }
}

/// Writes the sums of a quarter of a panel and a tile of input rows to their place.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn put(job: &Job<'_>, panel: Panel, tile: usize, quarter: usize, sums: *const f32) {
    let start = quarter * TILE_ROWS;
    let mask = ((1_u32 << panel.n_rows.saturating_sub(start).min(TILE_ROWS)) - 1) as u16;
    let first = tile * TILE_ROWS;
    // SAFETY: results of the job; lanes and input rows that are not are left out.
    unsafe {
        transpose(sums.add(start * TILE_ROWS).cast(), LINE, TILE_ROWS / 4, |column, lanes| {
            let input_row = first + column;
            if mask != 0 && job.input_rows.contains(&input_row) {
                _mm512_mask_storeu_ps(job.out.at(input_row, panel.row + start), mask, _mm512_castsi512_ps(lanes));
            }
        });
    }
}

/// Unpacks some rows of a panel. Rows that are missing stay what they were: nobody reads their sums.
#[inline(always)]
unsafe fn pack<F: Format>(job: &Job<'_>, panel: Panel, rows: Range<usize>) {
    let chunk_bytes = CHUNK / F::LEN * F::BYTES;
    for row in rows.start..rows.end.min(panel.n_rows) {
        let bytes = &job.row_bytes(panel.row + row)[panel.chunk * chunk_bytes..];
        // SAFETY: the caller's promises; the panel has room for a chunk of 64 rows; any address may be asked for.
        unsafe {
            for line in 0..chunk_bytes.div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(chunk_bytes + 64 * line).cast());
            }
            let out = panel.start.add(row / TILE_ROWS * TILE_BYTES + row % TILE_ROWS * 64);
            unpack::<F>(bytes, out, PANEL_ROWS / TILE_ROWS * TILE_BYTES);
        }
    }
}
