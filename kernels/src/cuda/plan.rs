//! A graph made ready for the device: weights and cache there, kernels with their arguments, and the step that runs them.
//!
//! A step runs in slices of rows, one submission each; most steps have one slice. What a step needs to know is one small
//! buffer, written before each submission. Submissions of few rows are recorded once for each power of two of rows and
//! results, and run as one from then on: kernels ask the step how many rows there really are.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::cache::{Cache, Memory};
use super::driver::Launch;
use super::gpu::{Buffer, Gpu, Recording};
use super::lower::{Drafts, Lowering, MAX_HEAD};
use super::rooms::{Angles, Rooms, STEP_HEAD, STEP_ROW, Sizes};
use super::stage::{Counts, DraftStage, Stage};
use super::upload::Uploads;
use crate::backend::{Answer, Batch, DeviceError, KvStore, Limits, MemoryUse, Output, Plan, Row, Sequence, WantKind};
use crate::checks::{Bounds, check_batch, check_limits, refuse};
use crate::cpu::are_fine;
use crate::cpu::choose::Chooser;
use crate::cpu::isa::Isa;
use crate::device::answers::{NOT_FINITE, Part, choose, floats, interrupted, not_finite};
use crate::device::fuse::fuse;
use crate::device::pages::cache_bytes;
use crate::device::places::{Places, stride};
use crate::graph::Graph;

/// Rows, and results, up to which submissions are recorded.
const MOST_RECORDED: u32 = 64;

/// Which stages a submission runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Parts {
    layers: bool,
    gather: bool,
    head: bool,
    arg_max: bool,
}

/// A compiled graph.
pub(super) struct CudaPlan {
    gpu: Arc<Gpu>,
    // Recordings go before the memory that they use.
    recordings: HashMap<(Counts, Parts), Recording>,
    cache: Cache,
    bounds: Bounds,
    layers: Vec<Stage>,
    gather: Vec<Stage>,
    head: Vec<Stage>,
    arg_max: Vec<Stage>,
    angles: Angles,
    sizes: Sizes,
    rooms: Rooms,
    /// Held until nothing is run any more.
    _weights: Vec<Buffer>,
    /// Elements of a row as the head reads it.
    width: usize,
    /// The words of a step, its launches and its results as they are made.
    words: Vec<u8>,
    launches: Vec<Launch>,
    results: Vec<u8>,
    lens: Vec<(Sequence, usize)>,
    chooser: Chooser,
    isa: Isa,
    weight_bytes: u64,
    cache_bytes: u64,
    scratch_bytes: u64,
    /// Why it can't go on.
    dead: Option<DeviceError>,
}

/// Makes the plan of `graph` within `limits`.
pub(super) fn compile(gpu: &Arc<Gpu>, graph: &Graph, limits: &Limits) -> Result<CudaPlan, DeviceError> {
    check_limits(graph, limits)?;
    for (number, layer) in graph.kv_layers().iter().enumerate() {
        let longest = layer.key_dim.max(layer.value_dim);
        if longest > MAX_HEAD {
            return refuse(format!("layer {number}: heads of {longest} elements, this device has room for {MAX_HEAD}"));
        }
    }
    let is_fine = are_fine(graph, limits.activations);
    let works = fuse(graph);
    let places = Places::new(graph, &works);
    let cache_bytes = cache_bytes(graph.kv_layers(), limits);
    // As many pools as there are windows, and that of layers without.
    let mut windows: Vec<_> = graph.kv_layers().iter().filter_map(|layer| layer.window).collect();
    windows.sort_unstable();
    windows.dedup();
    let sizes = Sizes::new(graph, limits, &works, &places, 1 + windows.len(), is_fine);
    let scratch_bytes = sizes.bytes();
    if let Some(cap) = limits.memory_cap {
        for (what, needed_bytes, free_bytes) in
            [("scratch", scratch_bytes, cap), ("keys and values", cache_bytes, cap.saturating_sub(scratch_bytes))]
        {
            if needed_bytes > free_bytes {
                return Err(DeviceError::OutOfMemory { what, needed_bytes, free_bytes: Some(free_bytes) });
            }
        }
    }
    let cache = Cache::new(Memory(Arc::clone(gpu)), graph.kv_layers(), limits)?;
    let rooms = sizes.rooms(gpu)?;
    let angles = Angles::new(graph);
    let mut lowering = Lowering {
        graph,
        places: &places,
        rooms: &rooms,
        angles: &angles,
        cache: &cache,
        uploads: Uploads::new(gpu),
        kv_type: limits.kv_type,
        page_tokens: limits.page_tokens,
        parts: sizes.parts,
        is_fine,
        held_floats: None,
        held_bytes: None,
    };
    let Drafts { layers, gather, head, arg_max } = lowering.run(&works)?;
    let weight_bytes = lowering.uploads.n_bytes;
    let weights = lowering.uploads.into_buffers();
    let stages = |drafts: Vec<DraftStage>| -> Result<Vec<Stage>, DeviceError> {
        drafts.into_iter().map(|draft| Stage::new(gpu, draft)).collect()
    };
    let [layers, gather, head, arg_max] = [stages(layers)?, stages(gather)?, stages(head)?, stages(arg_max)?];
    gpu.wait()?;
    Ok(CudaPlan {
        gpu: Arc::clone(gpu),
        recordings: HashMap::new(),
        cache,
        bounds: Bounds { max_rows: limits.max_rows, n_vocab: graph.n_vocab(), max_context: graph.max_context() },
        layers,
        gather,
        head,
        arg_max,
        angles,
        rooms,
        _weights: weights,
        width: graph.width(),
        words: Vec::with_capacity(sizes.step as usize),
        launches: Vec::new(),
        results: Vec::new(),
        lens: Vec::with_capacity(limits.max_rows),
        chooser: Chooser::new(1),
        isa: Isa::detect(),
        weight_bytes,
        cache_bytes,
        scratch_bytes,
        sizes,
        dead: None,
    })
}

impl CudaPlan {
    /// Checks a batch against the cache, and makes what it writes the sequences' own.
    fn prepare(&mut self, batch: &Batch) -> Result<(), DeviceError> {
        let paging = &self.cache.paging;
        check_batch(batch, &self.bounds, |sequence| paging.is_open(sequence))?;
        self.lens.clear();
        for (number, row) in batch.rows.iter().enumerate() {
            let known = self.lens.iter().position(|(sequence, _)| *sequence == row.sequence);
            let place = known.unwrap_or_else(|| {
                self.lens.push((row.sequence, paging.len(row.sequence)));
                self.lens.len() - 1
            });
            let (found, expected) = (row.position, self.lens[place].1);
            if found != expected {
                return refuse(format!("row {number}: position {found}, expected {expected} in its sequence"));
            }
            self.lens[place].1 += 1;
        }
        for &(sequence, to) in &self.lens {
            let len = self.cache.paging.len(sequence);
            if self.cache.paging.resumable(sequence, len) < len {
                return refuse(format!("sequence {}: positions that its rows look at are gone", sequence.0));
            }
            if !self.cache.make_writable(sequence, len, to) {
                return refuse(format!("sequence {}: {to} positions are not reserved", sequence.0));
            }
        }
        Ok(())
    }

    /// Runs all slices of a batch.
    fn run(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        let n_rows = batch.rows.len();
        for start in (0..n_rows).step_by(self.sizes.slice_rows) {
            let rows = start..n_rows.min(start + self.sizes.slice_rows);
            let is_here = |want: &(usize, crate::backend::Want)| rows.contains(&want.1.row);
            let want: Vec<_> = batch.want.iter().copied().enumerate().filter(is_here).collect();
            let mut parts = want.chunks(self.sizes.slice_wants);
            interrupted(batch.interrupt.as_ref())?;
            self.submit(batch, rows.clone(), true, &Part::new(parts.next().unwrap_or(&[])), out)?;
            for part in parts {
                interrupted(batch.interrupt.as_ref())?;
                self.submit(batch, rows.clone(), false, &Part::new(part), out)?;
            }
        }
        Ok(())
    }

    /// Runs some rows, if they have not run yet, and brings results of theirs back.
    fn submit(
        &mut self,
        batch: &Batch,
        rows: Range<usize>,
        is_new: bool,
        part: &Part<'_>,
        out: &mut Output,
    ) -> Result<(), DeviceError> {
        self.write_step(&batch.rows[rows.clone()], rows.start, part)?;
        let counts = Counts { rows: rows.len() as u32, wants: part.want.len() as u32 };
        let parts = Parts {
            layers: is_new,
            gather: counts.wants > 0,
            head: part.wants_logits || part.wants_ids,
            arg_max: part.wants_ids,
        };
        self.launch(counts, parts)?;
        if part.want.is_empty() {
            return self.gpu.wait();
        }
        self.read_results(part, out)
    }

    /// Runs the kernels of a submission.
    fn launch(&mut self, counts: Counts, parts: Parts) -> Result<(), DeviceError> {
        let is_recorded = counts.rows.max(counts.wants) <= MOST_RECORDED;
        // Rooms have place for no more than a slice.
        let rounded = |count: u32, most: usize| if count == 0 { 0 } else { count.next_power_of_two().min(most as u32) };
        let counts = if is_recorded {
            let Sizes { slice_rows, slice_wants, .. } = self.sizes;
            Counts { rows: rounded(counts.rows, slice_rows), wants: rounded(counts.wants, slice_wants) }
        } else {
            counts
        };
        if is_recorded && let Some(recording) = self.recordings.get(&(counts, parts)) {
            // SAFETY: what the kernels use is the plan's: `Self::record` says which.
            return unsafe { recording.replay() };
        }
        self.launches.clear();
        let lists = [
            (parts.layers, &self.layers),
            (parts.gather, &self.gather),
            (parts.head, &self.head),
            (parts.arg_max, &self.arg_max),
        ];
        for stage in lists.into_iter().filter(|(is_run, _)| *is_run).flat_map(|(_, stages)| stages) {
            stage.launches(counts, &mut self.launches);
        }
        if is_recorded {
            let launches: Vec<&Launch> = self.launches.iter().collect();
            // SAFETY: arguments were made by `lower.rs` of the structures that kernels declare, which tests compare in
            // size; addresses are of rooms, weights and pages that are as large as `rooms.rs`, `upload.rs` and
            // `device/pages.rs` say and live as long as the plan, as recordings do.
            let recording = unsafe { self.gpu.record(&launches)? };
            // SAFETY: the same.
            unsafe { recording.replay()? };
            self.recordings.insert((counts, parts), recording);
            return Ok(());
        }
        for launch in &self.launches {
            // SAFETY: the same.
            unsafe { self.gpu.launch(launch)? };
        }
        Ok(())
    }

    fn read_results(&mut self, part: &Part<'_>, out: &mut Output) -> Result<(), DeviceError> {
        let n_wants = part.want.len();
        let (n_vocab, width) = (self.bounds.n_vocab, self.width);
        let mut results = std::mem::take(&mut self.results);
        results.clear();
        let mut read = |buffer: &Buffer, is_wanted: bool, words: usize| {
            let start = results.len();
            if is_wanted {
                results.resize(start + 4 * n_wants * words, 0);
                self.gpu.read(buffer, 0, &mut results[start..])?;
            }
            Ok(start / 4)
        };
        let ids_at = read(&self.rooms.ids, part.wants_ids, 1)?;
        let rows_at = read(&self.rooms.head_floats, part.wants_rows, stride(width))?;
        let logits_at = read(&self.rooms.logits, part.wants_logits, stride(n_vocab))?;
        self.results = results;
        let words = self.results.as_chunks::<4>().0;
        for (place, (number, want)) in part.want.iter().enumerate() {
            let of_row = |at: usize, len: usize| &words[at + place * stride(len)..][..len];
            let answer = &mut out.results[*number];
            match want.kind {
                WantKind::Greedy => match u32::from_le_bytes(words[ids_at + place]) {
                    NOT_FINITE => return Err(not_finite()),
                    id => *answer = Answer::Greedy(id),
                },
                WantKind::Hidden => *answer = Answer::Hidden(floats(of_row(rows_at, width), answer)?),
                kind => choose(kind, of_row(logits_at, n_vocab), (&mut self.chooser, self.isa), answer)?,
            }
        }
        Ok(())
    }

    /// Writes what kernels know of a step: see `base.cu`.
    fn write_step(&mut self, rows: &[Row], first_row: usize, part: &Part<'_>) -> Result<(), DeviceError> {
        let (n_pools, page_tokens) = (self.cache.paging.n_pools(), self.cache.paging.page_tokens());
        let words = &mut self.words;
        words.clear();
        let mut put = |word: usize| words.extend((word as u32).to_le_bytes());
        // Which sequences there are, and how many positions of theirs are looked at.
        let mut sequences: Vec<(Sequence, usize)> = Vec::with_capacity(self.lens.len());
        let mut place_of = |row: &Row| {
            let known = sequences.iter().position(|(sequence, _)| *sequence == row.sequence);
            let place = known.unwrap_or_else(|| {
                sequences.push((row.sequence, 0));
                sequences.len() - 1
            });
            sequences[place].1 = row.position + 1;
            place
        };
        let places: Vec<usize> = rows.iter().map(&mut place_of).collect();
        let wants_at = STEP_HEAD + STEP_ROW * rows.len();
        let heads_at = wants_at + part.want.len();
        let tables_at = heads_at + sequences.len() * n_pools;
        let n_pages = |&(sequence, len): &(Sequence, usize), pool: usize| {
            len.div_ceil(page_tokens).min(self.cache.paging.table(sequence, pool).len())
        };
        let pools = || sequences.iter().flat_map(|sequence| (0..n_pools).map(move |pool| (sequence, pool)));
        let angles_at = tables_at + pools().map(|(sequence, pool)| n_pages(sequence, pool)).sum::<usize>();
        [rows.len(), part.want.len(), wants_at, angles_at].into_iter().for_each(&mut put);
        for (row, place) in rows.iter().zip(places) {
            [row.token as usize, row.position, heads_at + place * n_pools, 0].into_iter().for_each(&mut put);
        }
        part.want.iter().for_each(|(_, want)| put(want.row - first_row));
        let mut at = tables_at;
        for (sequence, pool) in pools() {
            put(at);
            at += n_pages(sequence, pool);
        }
        for (sequence, pool) in pools() {
            let table = self.cache.paging.table(sequence.0, pool);
            table[..n_pages(sequence, pool)].iter().for_each(|page| put(*page as usize));
        }
        for row in rows {
            for (rope, _) in &self.angles.ropes {
                let turns = rope.frequencies.iter().map(|frequency| row.position as f64 * frequency);
                turns.clone().for_each(|angle| put((angle.cos() as f32 * rope.magnitude).to_bits() as usize));
                turns.for_each(|angle| put((angle.sin() as f32 * rope.magnitude).to_bits() as usize));
            }
        }
        self.gpu.write(&self.rooms.step, 0, &self.words)
    }
}

impl Drop for CudaPlan {
    fn drop(&mut self) {
        // Nothing may run in memory that is given back; where it can't be waited for, nothing runs any more.
        let _ = self.gpu.wait();
    }
}

impl Plan for CudaPlan {
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        if let Some(error) = &self.dead {
            return Err(error.clone());
        }
        self.gpu.check()?;
        self.prepare(batch)?;
        out.results.resize(batch.want.len(), Answer::Greedy(0));
        let result = self.run(batch, out);
        if let Err(error @ (DeviceError::Lost(_) | DeviceError::Hung(_))) = &result {
            self.dead = Some(error.clone());
        }
        result?;
        for &(sequence, len) in &self.lens {
            self.cache.paging.set_len(sequence, len);
        }
        Ok(())
    }

    fn kv(&mut self) -> &mut dyn KvStore {
        &mut self.cache
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse {
            weights_copied: self.weight_bytes,
            kv: self.cache_bytes,
            scratch: self.scratch_bytes,
            ..MemoryUse::default()
        }
    }
}
