//! Runs tests on a plan: the same tokens in every repetition, each in a sequence of its own, between two looks at the
//! machine's roof.

use std::time::{Duration, Instant};

use farpost::Model;
use farpost::engine::EngineError;
use farpost_kernels::backend::{
    Activations, Backend, Batch, DeviceError, KvType, Limits, Output, Plan, Row, Sequence, Want, WantKind,
};
use farpost_kernels::cpu::roof::Roof;

use super::energy::Counters;
use super::statistics::median;
use super::work::{self, Bound, Rates};
use super::workload::Workload;
use crate::device;
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// How long the roof is measured at first, and between repetitions.
const FIRST_LOOK: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(40);

/// How often a test is run.
#[derive(Clone, Copy, Debug)]
pub struct Repetitions {
    /// Those that count.
    pub counted: usize,
    /// Those before that do not.
    pub warmup: usize,
}

/// What plans are compiled for.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub threads: usize,
    pub kv_type: KvType,
    pub activations: Activations,
    pub memory_cap: Option<u64>,
    /// Whether the roof that is measured is that of the device.
    pub has_roof: bool,
}

/// What was measured of one test.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub workload: Workload,
    pub threads: usize,
    pub kv_type: KvType,
    pub activations: Activations,
    /// Tokens a second in each repetition, over all sequences.
    pub rates: Vec<f64>,
    /// The roof beside each repetition: the mean of the looks before and after it.
    pub roofs: Vec<Rates>,
    /// Time at the roof as a share of the time taken, in each repetition; none where memory reads can't be measured.
    pub shares: Option<Vec<f64>>,
    /// What bounds most of the work.
    pub bound: Bound,
    /// Median over the repetitions, where the machine has counters.
    pub tokens_per_joule: Option<f64>,
}

/// The work of the whole program, as far as it shows and can be stopped.
pub struct Course<'a> {
    pub progress: &'a mut Progress,
    pub interrupt: &'a Interrupt,
    /// Tokens run so far.
    pub done: u64,
}

/// Everything the roof says, after measuring for `patience` each.
fn look(roof: &mut Roof, patience: Duration) -> Result<Rates, Failure> {
    let mut look = || {
        Ok(Rates {
            read_bytes_per_second: roof.read_bytes(patience)?.map(|rate| rate.per_second),
            int8_macs_per_second: roof.int8_macs(patience / 2)?.per_second,
            bf16_macs_per_second: roof.bf16_macs(patience / 2)?.map(|rate| rate.per_second),
            f32_macs_per_second: roof.f32_macs(patience / 2)?.per_second,
        })
    };
    look().map_err(|error: DeviceError| EngineError::from(error).into())
}

/// The first look at the roof, a longer one.
pub fn first_look(roof: &mut Roof) -> Result<Rates, Failure> {
    look(roof, FIRST_LOOK)
}

fn mean(before: &Rates, after: &Rates) -> Rates {
    let mean = |a: f64, b: f64| f64::midpoint(a, b);
    Rates {
        read_bytes_per_second: before.read_bytes_per_second.zip(after.read_bytes_per_second).map(|(a, b)| mean(a, b)),
        bf16_macs_per_second: before.bf16_macs_per_second.zip(after.bf16_macs_per_second).map(|(a, b)| mean(a, b)),
        int8_macs_per_second: mean(before.int8_macs_per_second, after.int8_macs_per_second),
        f32_macs_per_second: mean(before.f32_macs_per_second, after.f32_macs_per_second),
    }
}

/// A model compiled for a number of tests.
pub struct Bench<'m> {
    model: &'m Model,
    plan: Box<dyn Plan>,
    settings: Settings,
    chunk_rows: usize,
    batch: Batch,
    output: Output,
}

impl<'m> Bench<'m> {
    /// Compiles `model` with room for each of `workloads`.
    pub fn new(
        model: &'m Model,
        device: &dyn Backend,
        workloads: &[Workload],
        settings: Settings,
    ) -> Result<Self, Failure> {
        let defaults = Limits::default();
        let most = |of: &dyn Fn(&Workload) -> usize| workloads.iter().map(of).max().unwrap_or(0);
        let chunk_rows = most(&|workload| workload.prompt.max(workload.depth)).clamp(1, defaults.max_rows);
        let max_batch = most(&|workload| workload.batch);
        let limits = Limits {
            max_rows: chunk_rows.max(max_batch),
            // One more, whose tokens all others share.
            max_sequences: max_batch + 1,
            max_windows: max_batch + 1,
            kv_tokens: most(&|workload| kv_tokens(workload, defaults.page_tokens)),
            kv_type: settings.kv_type,
            activations: settings.activations,
            threads: settings.threads,
            memory_cap: settings.memory_cap,
            ..defaults
        };
        let plan = device.compile(model.graph(), &limits).map_err(refused)?;
        let (batch, output) = (Batch::default(), Output::default());
        Ok(Self { model, plan, settings, chunk_rows, batch, output })
    }

    /// Where the model is computed, if not on the processor alone.
    pub fn told(&self, device: &dyn Backend) -> Option<String> {
        let (n_dispatches, placement) = (self.plan.n_dispatches(), self.plan.placement());
        n_dispatches.map(|_| device::told(device, n_dispatches, placement))
    }

    /// Runs one test.
    pub fn run(
        &mut self,
        workload: &Workload,
        repetitions: Repetitions,
        roof: &mut Roof,
        counters: Option<&Counters>,
        course: &mut Course<'_>,
    ) -> Result<Outcome, Failure> {
        let base = self.plan.kv().open().ok_or_else(no_room)?;
        if !self.plan.kv().reserve(base, workload.depth) {
            return Err(no_room());
        }
        let name = workload.to_string();
        self.prefill(base, 0, workload.depth, &name, course)?;
        for _ in 0..repetitions.warmup {
            self.repeat(base, workload, &name, None, course)?;
        }
        let work = work::of(self.model.graph(), workload, self.chunk_rows, self.settings.kv_type);
        let n_tokens = workload.n_tokens() as f64;
        let (mut rates, mut roofs, mut shares, mut per_joule) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut bounds = Vec::new();
        let mut before = look(roof, LOOK)?;
        for _ in 0..repetitions.counted {
            let (time, joules) = self.repeat(base, workload, &name, counters, course)?;
            let after = look(roof, LOOK)?;
            let beside = mean(&before, &after);
            before = after;
            let seconds = time.as_secs_f64().max(1e-9);
            let (least_seconds, bound) = work::least_seconds(&work, &beside);
            rates.push(n_tokens / seconds);
            if self.settings.has_roof && beside.read_bytes_per_second.is_some() {
                shares.push(least_seconds / seconds);
            }
            roofs.push(beside);
            bounds.push(bound);
            per_joule.extend(joules.filter(|&joules| joules > 0.0).map(|joules| n_tokens / joules));
        }
        self.plan.kv().close(base);
        let is_whole = |values: &[f64]| values.len() == rates.len();
        Ok(Outcome {
            workload: *workload,
            threads: self.settings.threads,
            kv_type: self.settings.kv_type,
            activations: self.settings.activations,
            shares: is_whole(&shares).then_some(shares),
            bound: bounds.get(bounds.len() / 2).copied().unwrap_or(Bound::Reading),
            tokens_per_joule: is_whole(&per_joule).then(|| median(&per_joule)),
            rates,
            roofs,
        })
    }

    /// Runs the test once, in sequences that begin with the tokens of `base`: its time and, with counters, its energy.
    fn repeat(
        &mut self,
        base: Sequence,
        workload: &Workload,
        name: &str,
        counters: Option<&Counters>,
        course: &mut Course<'_>,
    ) -> Result<(Duration, Option<f64>), Failure> {
        let kv = self.plan.kv();
        let mut sequences = Vec::with_capacity(workload.batch);
        for _ in 0..workload.batch {
            let sequence = kv.fork(base, workload.depth).ok_or_else(no_room)?;
            if !kv.reserve(sequence, workload.context()) {
                return Err(no_room());
            }
            sequences.push(sequence);
        }
        let joules = counters.and_then(Counters::read);
        let start = Instant::now();
        if let [only] = sequences[..] {
            self.prefill(only, workload.depth, workload.prompt, name, course)?;
        }
        for number in 0..workload.generated {
            let position = workload.depth + workload.prompt + number;
            self.batch.rows.clear();
            self.batch.rows.extend(sequences.iter().map(|&sequence| row(self.model, sequence, position)));
            self.batch.want.clear();
            self.batch.want.extend((0..sequences.len()).map(|row| Want { row, kind: WantKind::Greedy }));
            self.step(name, course)?;
        }
        let time = start.elapsed();
        let joules = counters.zip(joules).and_then(|(counters, start)| counters.joules_since(&start));
        for sequence in sequences {
            self.plan.kv().close(sequence);
        }
        Ok((time, joules))
    }

    /// Runs `n_tokens` from `start` on in steps of many rows; the last row answers.
    fn prefill(
        &mut self,
        sequence: Sequence,
        start: usize,
        n_tokens: usize,
        name: &str,
        course: &mut Course<'_>,
    ) -> Result<(), Failure> {
        let end = start + n_tokens;
        for first in (start..end).step_by(self.chunk_rows) {
            let last = end.min(first + self.chunk_rows);
            self.batch.rows.clear();
            self.batch.rows.extend((first..last).map(|position| row(self.model, sequence, position)));
            self.batch.want.clear();
            self.batch.want.extend((last == end).then_some(Want { row: last - first - 1, kind: WantKind::Greedy }));
            self.step(name, course)?;
        }
        Ok(())
    }

    fn step(&mut self, name: &str, course: &mut Course<'_>) -> Result<(), Failure> {
        if course.interrupt.is_asked() {
            return Err(Failure::interrupted());
        }
        let stepped = self.plan.step(&self.batch, &mut self.output);
        if let Some(file) = self.model.files().find(|file| file.is_damaged()) {
            return Err(EngineError::Damaged { file: file.name().to_owned() }.into());
        }
        stepped.map_err(refused)?;
        course.done += self.batch.rows.len() as u64;
        course.progress.at(course.done, name);
        Ok(())
    }
}

/// Tokens of whole pages that a test takes: those that all sequences share, and what each has for itself, a copy of
/// the page where they part counted in.
fn kv_tokens(workload: &Workload, page_tokens: usize) -> usize {
    let own = workload.context() - workload.depth / page_tokens * page_tokens;
    workload
        .depth
        .next_multiple_of(page_tokens)
        .saturating_add(own.next_multiple_of(page_tokens).saturating_mul(workload.batch))
}

/// A made-up token: any of the vocabulary, the same in every run, another in every sequence.
fn row(model: &Model, sequence: Sequence, position: usize) -> Row {
    let mixed =
        (position as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(sequence.0).wrapping_mul(0xD1B5_4A32);
    let token = (mixed >> 20) % model.graph().n_vocab() as u64;
    Row { token: token as u32, position, sequence }
}

fn refused(error: DeviceError) -> Failure {
    match error {
        DeviceError::OutOfMemory { .. } => Failure::new(Exit::Memory, error)
            .hint("a smaller --depth or --batch, --kv-type q8_0 or a larger --memory-cap"),
        _ => EngineError::from(error).into(),
    }
}

/// The plan was compiled with room for every test.
fn no_room() -> Failure {
    Failure::new(Exit::Failed, "the plan has less room for keys and values than it was compiled for")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_whole_pages_of_what_is_shared_and_what_is_not() {
        let tokens = |depth, prompt, generated, batch| kv_tokens(&Workload { depth, prompt, generated, batch }, 32);
        assert_eq!(tokens(0, 512, 0, 1), 512);
        assert_eq!(tokens(0, 0, 1, 8), 8 * 32);
        assert_eq!(tokens(64, 0, 33, 2), 64 + 2 * 64);
        // The page of positions 32 to 63 is begun by all and copied by each.
        assert_eq!(tokens(40, 0, 24, 3), 64 + 3 * 32);
        assert_eq!(tokens(40, 0, 25, 3), 64 + 3 * 64);
    }
}
