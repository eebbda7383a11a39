//! A graph made ready for the device: weights and cache there, dispatches bound, and the step that runs them.
//!
//! A step runs in slices of rows, one submission each, so that scratch stays small and no submission takes long; most
//! steps have one slice. Results of a slice come back before the next one begins. Wants of more rows than logits have room
//! for take submissions of their own.

use std::ops::Range;
use std::sync::Arc;

use ::wgpu::BufferUsages;

use super::cache::{self, Cache};
use super::gpu::Gpu;
use super::lower::{Angles, Drafts, ExpertRoom, Lowering, MAX_HEAD, Rooms};
use super::stage::{Counts, ENOUGH_GROUPS, Stage, finish};
use super::upload::{Uploads, weights_for};
use crate::backend::{
    Answer, Batch, DeviceError, KvStore, Limits, MemoryUse, Output, Plan, Row, Sequence, Want, WantKind,
};
use crate::checks::{Bounds, check_batch, check_sizes, refuse};
use crate::cpu::choose::Chooser;
use crate::cpu::isa::Isa;
use crate::cpu::plan::are_fine;
use crate::device::answers::{NOT_FINITE, Part, choose, floats, interrupted, not_finite};
use crate::device::fuse::fuse;
use crate::device::pages::cache_bytes;
use crate::device::places::{Places, stride};
use crate::graph::Graph;

/// Rows of a submission, at most.
const SLICE_ROWS: usize = 256;

/// Bytes that logits may take, but for those of one row.
const LOGITS_BYTES: usize = 64 << 20;

/// Words before the rows of a step, and of a row: see `step.wgsl`.
const STEP_HEAD: usize = 4;
const STEP_ROW: usize = 4;

/// Words before the sums of a part of keys: see `attention.wgsl`.
const PART_HEAD: usize = 4;

/// A compiled graph.
pub(super) struct WgpuPlan {
    gpu: Arc<Gpu>,
    cache: Cache,
    bounds: Bounds,
    layers: Vec<Stage>,
    gather: Vec<Stage>,
    head: Vec<Stage>,
    arg_max: Vec<Stage>,
    angles: Angles,
    sizes: Sizes,
    step: ::wgpu::Buffer,
    rooms: Rooms,
    /// What results are read back through.
    staging: ::wgpu::Buffer,
    /// Elements of a row as the head reads it.
    width: usize,
    /// Where rows that are given with a step go, and their elements.
    given: Option<(::wgpu::Buffer, usize)>,
    /// The words of a step as they are made, and its angles.
    words: Vec<u32>,
    turns: Vec<f32>,
    lens: Vec<(Sequence, usize)>,
    chooser: Chooser,
    isa: Isa,
    /// What does not change: weights, parameters.
    weight_bytes: u64,
    cache_bytes: u64,
    scratch_bytes: u64,
    /// Why it can't go on.
    dead: Option<DeviceError>,
}

/// How large everything is that is not the cache or a weight.
struct Sizes {
    /// Rows of a submission.
    slice_rows: usize,
    /// Results of a submission.
    slice_wants: usize,
    /// Bytes of each place and of each room for experts.
    places: Vec<u64>,
    experts: Vec<u64>,
    step: u64,
    head_in: u64,
    logits: u64,
    staging: u64,
    /// What parts of keys come to: how many there is room for, and bytes of all.
    key_groups: u32,
    key_parts: u64,
}

impl Sizes {
    fn new(graph: &Graph, limits: &Limits, places: &Places, n_pools: usize, max_binding: u64) -> Self {
        let experts = ExpertRoom::new(graph).words();
        let widest = places.strides.iter().chain(&experts).copied().max().unwrap_or(4).max(4);
        let most = usize::try_from(max_binding / 4).unwrap_or(usize::MAX) / widest;
        let slice_rows = limits.max_rows.min(SLICE_ROWS).min(most).max(1);
        let vocab = stride(graph.n_vocab());
        let room = LOGITS_BYTES.min(usize::try_from(max_binding).unwrap_or(usize::MAX));
        let slice_wants = (room / (4 * vocab)).clamp(1, slice_rows);
        let bytes = |words: usize| 4 * (words * slice_rows) as u64;
        let n_sequences = limits.max_sequences.min(slice_rows);
        let n_pages = limits.kv_tokens.min(graph.max_context()).div_ceil(limits.page_tokens);
        let tables = n_sequences * n_pools * (1 + n_pages);
        let head_in = 4 * (slice_wants * stride(graph.width())) as u64;
        let logits = 4 * (slice_wants * vocab) as u64;
        let widest_value = graph.kv_layers().iter().map(|layer| stride(layer.value_dim)).max().unwrap_or(0);
        let part_words = PART_HEAD + widest_value;
        let key_groups = (max_binding / 4 / part_words as u64).min(ENOUGH_GROUPS.into()) as u32;
        let key_parts = 4 * u64::from(key_groups) * part_words as u64;
        Self {
            slice_rows,
            slice_wants,
            key_groups,
            key_parts,
            places: places.strides.iter().map(|stride| bytes(*stride)).collect(),
            experts: experts.iter().map(|words| bytes(*words)).collect(),
            step: 4 * (STEP_HEAD + STEP_ROW * slice_rows + slice_wants + tables) as u64,
            head_in,
            logits,
            staging: 4 * slice_wants as u64 + head_in + logits,
        }
    }

    fn bytes(&self, angles: &Angles) -> u64 {
        let rooms = self.places.iter().chain(&self.experts).sum::<u64>() + 4 * angles.n_floats as u64;
        rooms + self.step + self.head_in + self.logits + self.staging + self.key_parts + 4 * self.slice_wants as u64
    }

    fn rooms(&self, gpu: &Gpu, angles: &Angles) -> Result<Rooms, DeviceError> {
        let all = |sizes: &[u64]| -> Result<Vec<_>, DeviceError> {
            sizes.iter().map(|bytes| gpu.storage("values of a step", *bytes)).collect()
        };
        Ok(Rooms {
            places: all(&self.places)?,
            experts: all(&self.experts)?,
            key_parts: gpu.storage("parts of keys", self.key_parts)?,
            angles: gpu.storage("angles of a step", 4 * angles.n_floats as u64)?,
            head_in: gpu.storage("rows for the head", self.head_in)?,
            logits: gpu.storage("logits", self.logits)?,
            ids: gpu.storage("ids", 4 * self.slice_wants as u64)?,
        })
    }
}

/// Makes the plan of `graph` within `limits`.
pub(super) fn compile(gpu: &Arc<Gpu>, graph: &Graph, limits: &Limits) -> Result<WgpuPlan, DeviceError> {
    check_sizes(graph, limits)?;
    for (number, layer) in graph.kv_layers().iter().enumerate() {
        let longest = layer.key_dim.max(layer.value_dim);
        if longest > MAX_HEAD {
            return refuse(format!("layer {number}: heads of {longest} elements, this device has room for {MAX_HEAD}"));
        }
    }
    let works = fuse(graph);
    let places = Places::new(graph, &works);
    let cache_bytes = cache_bytes(graph.kv_layers(), limits);
    // As many pools as there are windows, and that of layers without.
    let mut windows: Vec<_> = graph.kv_layers().iter().filter_map(|layer| layer.window).collect();
    windows.sort_unstable();
    windows.dedup();
    let sizes = Sizes::new(graph, limits, &places, 1 + windows.len(), gpu.max_binding);
    let angles = Angles::new(graph, sizes.slice_rows);
    let scratch_bytes = sizes.bytes(&angles);
    if let Some(cap) = limits.memory_cap {
        // Copies of weights count where they lie in the memory that the cap is of.
        let weight_bytes = if gpu.shares_memory { weights_for(graph) } else { 0 };
        let after_scratch = cap.saturating_sub(scratch_bytes);
        for (what, needed_bytes, free_bytes) in [
            ("scratch", scratch_bytes, cap),
            ("keys and values", cache_bytes, after_scratch),
            ("copies of weights", weight_bytes, after_scratch.saturating_sub(cache_bytes)),
        ] {
            if needed_bytes > free_bytes {
                return Err(DeviceError::OutOfMemory { what, needed_bytes, free_bytes: Some(free_bytes) });
            }
        }
    }
    let cache = cache::open(gpu, graph.kv_layers(), limits)?;
    let rooms = sizes.rooms(gpu, &angles)?;
    let given = graph.given().map(|value| {
        let place = places.of_value[value.0].place;
        (rooms.places[place].clone(), graph.widths()[value.0])
    });
    let step = gpu.storage("a step", sizes.step)?;
    let staging = gpu.buffer("results", sizes.staging, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
    let mut lowering = Lowering {
        graph,
        places: &places,
        rooms: &rooms,
        angles: &angles,
        cache: &cache,
        uploads: Uploads::new(gpu, graph)?,
        kv_type: limits.kv_type,
        page_tokens: limits.page_tokens,
        tile: gpu.uses.tile().filter(|_| !are_fine(graph, limits.activations)),
    };
    let Drafts { layers, gather, head, arg_max } = lowering.run(&works)?;
    let weight_bytes = lowering.uploads.n_bytes;
    let ([layers, gather, head, arg_max], params_bytes) = finish(gpu, &step, [layers, gather, head, arg_max])?;
    gpu.flush()?;
    Ok(WgpuPlan {
        gpu: Arc::clone(gpu),
        cache,
        bounds: Bounds { max_rows: limits.max_rows, n_vocab: graph.n_vocab(), max_context: graph.max_context() },
        layers,
        gather,
        head,
        arg_max,
        angles,
        step,
        rooms,
        staging,
        width: graph.width(),
        given,
        words: Vec::with_capacity(sizes.step as usize / 4),
        turns: Vec::new(),
        lens: Vec::with_capacity(limits.max_rows),
        chooser: Chooser::new(1),
        isa: Isa::detect(),
        weight_bytes: weight_bytes + params_bytes,
        cache_bytes,
        scratch_bytes,
        sizes,
        dead: None,
    })
}

impl WgpuPlan {
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
    fn run(&mut self, batch: &Batch, given: &[f32], out: &mut Output) -> Result<(), DeviceError> {
        let n_rows = batch.rows.len();
        for start in (0..n_rows).step_by(self.sizes.slice_rows) {
            let rows = start..n_rows.min(start + self.sizes.slice_rows);
            let is_here = |want: &(usize, Want)| rows.contains(&want.1.row);
            let want: Vec<(usize, Want)> = batch.want.iter().copied().enumerate().filter(is_here).collect();
            let mut parts = want.chunks(self.sizes.slice_wants);
            interrupted(batch.interrupt.as_ref())?;
            self.write_given(given, rows.clone());
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
        self.write_step(&batch.rows[rows.clone()], rows.start, part);
        if is_new {
            self.write_angles(&batch.rows[rows.clone()]);
        }
        let longest = batch.rows[rows.clone()].iter().map(|row| row.position + 1).max().unwrap_or(0) as u32;
        let (n_rows, wants, most_groups) = (rows.len() as u32, part.want.len() as u32, self.sizes.key_groups);
        let counts = Counts { rows: n_rows, wants, longest, most_groups };
        let mut encoder = self.gpu.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&::wgpu::ComputePassDescriptor::default());
            let mut record = |stages: &[Stage]| stages.iter().for_each(|stage| stage.record(&mut pass, counts));
            if is_new {
                record(&self.layers);
            }
            if counts.wants > 0 {
                record(&self.gather);
            }
            if part.wants_logits || part.wants_ids {
                record(&self.head);
            }
            if part.wants_ids {
                record(&self.arg_max);
            }
        }
        if part.want.is_empty() {
            return self.gpu.run(encoder);
        }
        let n_wants = part.want.len();
        let (n_vocab, width) = (self.bounds.n_vocab, self.width);
        let mut n_words = 0;
        let mut copy = |buffer: &::wgpu::Buffer, is_wanted: bool, words: usize| {
            let at = n_words;
            if is_wanted {
                let n_bytes = 4 * (n_wants * words) as u64;
                encoder.copy_buffer_to_buffer(buffer, 0, &self.staging, 4 * at as u64, n_bytes);
                n_words += n_wants * words;
            }
            at
        };
        let ids_at = copy(&self.rooms.ids, part.wants_ids, 1);
        let rows_at = copy(&self.rooms.head_in, part.wants_rows, stride(width));
        let logits_at = copy(&self.rooms.logits, part.wants_logits, stride(n_vocab));
        let (chooser, isa) = (&mut self.chooser, self.isa);
        self.gpu.read_back(encoder, &self.staging, 4 * n_words as u64, |bytes| {
            let words = bytes.as_chunks::<4>().0;
            for (place, (number, want)) in part.want.iter().enumerate() {
                let of_row = |at: usize, len: usize| &words[at + place * stride(len)..][..len];
                let answer = &mut out.results[*number];
                match want.kind {
                    WantKind::Greedy => match u32::from_le_bytes(words[ids_at + place]) {
                        NOT_FINITE => return Err(not_finite()),
                        id => *answer = Answer::Greedy(id),
                    },
                    WantKind::Hidden => *answer = Answer::Hidden(floats(of_row(rows_at, width), answer)?),
                    kind => choose(kind, of_row(logits_at, n_vocab), (&mut *chooser, isa), answer)?,
                }
            }
            Ok(())
        })?
    }

    /// Writes what shaders know of a step: see `step.wgsl`.
    fn write_step(&mut self, rows: &[Row], first_row: usize, part: &Part<'_>) {
        let (n_pools, page_tokens) = (self.cache.paging.n_pools(), self.cache.paging.page_tokens());
        let words = &mut self.words;
        words.clear();
        let wants_at = STEP_HEAD + STEP_ROW * rows.len();
        words.extend([rows.len() as u32, part.want.len() as u32, wants_at as u32, 0]);
        // Where each sequence's tables begin is known once all are placed.
        let mut sequences: Vec<(Sequence, usize)> = Vec::with_capacity(self.lens.len());
        for row in rows {
            let last = row.position + 1;
            let known = sequences.iter().position(|(sequence, _)| *sequence == row.sequence);
            let place = known.unwrap_or_else(|| {
                sequences.push((row.sequence, 0));
                sequences.len() - 1
            });
            sequences[place].1 = last;
            words.extend([row.token, row.position as u32, place as u32, 0]);
        }
        words.extend(part.want.iter().map(|(_, want)| (want.row - first_row) as u32));
        let heads_at = words.len();
        words.resize(heads_at + sequences.len() * n_pools, 0);
        for (place, (sequence, len)) in sequences.iter().enumerate() {
            for pool in 0..n_pools {
                words[heads_at + place * n_pools + pool] = words.len() as u32;
                let table = self.cache.paging.table(*sequence, pool);
                words.extend_from_slice(&table[..len.div_ceil(page_tokens).min(table.len())]);
            }
        }
        for row in words[STEP_HEAD..wants_at].chunks_exact_mut(STEP_ROW) {
            row[2] = heads_at as u32 + row[2] * n_pools as u32;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.gpu.queue.write_buffer(&self.step, 0, &bytes);
    }

    /// Writes rows that come from another device.
    fn write_given(&self, given: &[f32], rows: Range<usize>) {
        let Some((buffer, width)) = &self.given else { return };
        let own = &given[rows.start * width..rows.end * width];
        let padding = [0; 4 * 3];
        let n_padding = 4 * (stride(*width) - width);
        let row_bytes = |row: &[f32]| -> Vec<u8> {
            row.iter().flat_map(|value| value.to_le_bytes()).chain(padding[..n_padding].iter().copied()).collect()
        };
        let bytes: Vec<u8> = own.chunks_exact(*width).flat_map(row_bytes).collect();
        self.gpu.queue.write_buffer(buffer, 0, &bytes);
    }

    /// Writes cosines and sines of all rotations, row by row.
    fn write_angles(&mut self, rows: &[Row]) {
        for (rope, at) in &self.angles.ropes {
            self.turns.clear();
            for row in rows {
                let angle = |frequency: &f64| row.position as f64 * frequency;
                let turns = rope.frequencies.iter().map(angle);
                self.turns.extend(turns.clone().map(|angle| angle.cos() as f32 * rope.magnitude));
                self.turns.extend(turns.map(|angle| angle.sin() as f32 * rope.magnitude));
            }
            let bytes: Vec<u8> = self.turns.iter().flat_map(|turn| turn.to_le_bytes()).collect();
            if !bytes.is_empty() {
                self.gpu.queue.write_buffer(&self.rooms.angles, 4 * *at as u64, &bytes);
            }
        }
    }
}

impl Plan for WgpuPlan {
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        self.step_given(batch, &[], out)
    }

    fn step_given(&mut self, batch: &Batch, rows: &[f32], out: &mut Output) -> Result<(), DeviceError> {
        if let Some(error) = &self.dead {
            return Err(error.clone());
        }
        self.gpu.check()?;
        self.prepare(batch)?;
        let expected = self.given.as_ref().map_or(0, |(_, width)| width * batch.rows.len());
        if rows.len() != expected {
            return refuse(format!("{} elements of rows given, expected {expected}", rows.len()));
        }
        out.results.resize(batch.want.len(), Answer::Greedy(0));
        let result = self.run(batch, rows, out);
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

    fn n_dispatches(&self) -> Option<usize> {
        let all = [&self.layers, &self.gather, &self.head, &self.arg_max];
        Some(all.into_iter().flatten().filter(|stage| stage.is_always_there()).count())
    }
}
