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
use super::input_tiles::{STEP, TILE_ROWS};
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
/// While the tile registers multiply, the vector registers unpack the next panel: some of its rows after each tile.
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
            let sums = job.panel.sums.at(number % per_chunk * tiles.len() * SUMS_LEN);
            for (index, tile) in tiles.clone().enumerate() {
                let sums = sums.add(index * SUMS_LEN);
                multiply(own.start, job.input.tile(own.chunk, tile), sums, n_steps, own.chunk == 0);
                if let Some(next) = next {
                    pack::<F>(job, next, index * share..(index + 1) * share);
                }
                if own.chunk + 1 == n_chunks {
                    put(job, own.row, own.n_rows, tile, sums);
                }
            }
        }
    }
}

/// Adds the products of a panel and a tile of input rows to their sums, or sets these to them.
///
/// `panel`: per step four tiles of 16 weight rows x 32 columns. `input`: per step a tile of 16 pairs of columns x 16
/// input rows. `sums`: four tiles of 16 weight rows x 16 input rows.
#[inline(always)]
unsafe fn multiply(panel: *const u8, input: *const u16, sums: *mut f32, n_steps: usize, is_first: bool) {
    /// The instructions after `$begin`, which sets the sums in registers. Four sums hide the latency of a product. The
    /// input is loaded so that it leaves the first-level cache to the panel; the sums of the next tile are asked for.
    macro_rules! products {
        ($($begin:literal),*) => {
            asm!(
                $($begin,)*
                "2:",
                "tileloaddt1 tmm7, [{input} + {stride}]",
                "tileloadd tmm4, [{panel} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm7",
                "prefetchw [{next}]",
                "prefetchw [{next} + 64]",
                "tileloadd tmm5, [{panel} + {stride} + 1024]",
                "tdpbf16ps tmm1, tmm5, tmm7",
                "prefetchw [{next} + 128]",
                "prefetchw [{next} + 192]",
                "tileloadd tmm6, [{panel} + {stride} + 2048]",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "prefetchw [{next} + 256]",
                "prefetchw [{next} + 320]",
                "tileloadd tmm4, [{panel} + {stride} + 3072]",
                "tdpbf16ps tmm3, tmm4, tmm7",
                "prefetchw [{next} + 384]",
                "prefetchw [{next} + 448]",
                "add {panel}, 4096",
                "add {input}, 1024",
                "add {next}, 512",
                "dec {n_steps}",
                "jnz 2b",
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 1024], tmm1",
                "tilestored [{sums} + {stride} + 2048], tmm2",
                "tilestored [{sums} + {stride} + 3072], tmm3",
                panel = inout(reg) panel => _,
                input = inout(reg) input => _,
                next = inout(reg) sums.wrapping_add(SUMS_LEN) => _,
                n_steps = inout(reg) n_steps => _,
                sums = in(reg) sums,
                stride = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        };
    }
    // SAFETY: the caller has taken the registers; `n_steps > 0` steps are there on either side, and room for the sums.
    unsafe {
        if is_first {
            products!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
        } else {
            products!(
                "tileloadd tmm0, [{sums} + {stride}]",
                "tileloadd tmm1, [{sums} + {stride} + 1024]",
                "tileloadd tmm2, [{sums} + {stride} + 2048]",
                "tileloadd tmm3, [{sums} + {stride} + 3072]"
            );
        }
    }
}

/// Writes the sums of a panel and a tile of input rows to their place.
#[inline(always)]
unsafe fn put(job: &Job<'_>, row: usize, n_rows: usize, tile: usize, sums: *const f32) {
    let first = tile * TILE_ROWS;
    // SAFETY: results of the job; lanes that are not are left out.
    unsafe {
        for start in (0..n_rows).step_by(TILE_ROWS) {
            let mask = ((1_u32 << (n_rows - start).min(TILE_ROWS)) - 1) as u16;
            transpose(sums.add(start * TILE_ROWS).cast(), 4 * TILE_ROWS, TILE_ROWS / 4, |column, lanes| {
                let input_row = first + column;
                if job.input_rows.contains(&input_row) {
                    let out = job.out.at(input_row, row + start);
                    _mm512_mask_storeu_ps(out, mask, _mm512_castsi512_ps(lanes));
                }
            });
        }
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
