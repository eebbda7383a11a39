//! `farpost bench`: how fast a model runs, as a share of what the machine can do.

mod compare;
mod energy;
mod measure;
mod remarks;
mod report;
#[cfg(feature = "server")]
mod serve;
mod statistics;
mod work;
mod workload;

use std::path::{Path, PathBuf};

use farpost::Model;
use farpost::engine::EngineError;
use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::cpu::roof::Roof;

use super::console::Console;
use super::device::{BackendChoice, GpuLayers};
use super::exit::Failure;
use super::generation::{ActivationsChoice, KvChoice};
use super::interrupt::Interrupt;
use super::machine::{Machine, load_now};
use super::pack::PackArgs;
use super::progress::{Progress, Unit};
use super::{amount, device, model};
use compare::{Earlier, compare};
use energy::Counters;
use measure::{Bench, Course, Outcome, Repetitions, Settings};
use remarks::Remarks;
use report::{About, Format, Line};
use work::Rates;
use workload::{Lists, Workload};

/// Tests without any of --pp, --tg and --pg, where the model has the context for it.
const DEFAULT_PROMPT: u32 = 512;
const DEFAULT_GENERATED: u32 = 64;

/// Measure how fast a model runs, as a share of what the machine can do
///
/// Prompts (pp) run in steps of up to 512 tokens, writing (tg) one token a step in each sequence; the tokens are made
/// up. Options with lists (comma-separated) are combined, each combination being a test. Beside every repetition the
/// machine's roof is measured: bytes read from memory, int8 and f32 multiply-adds a second, on the same threads.
/// Results are medians; their spread is that of the middle half of the repetitions (of fewer than five, of all), as a
/// share of the median.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Args {
    #[cfg(feature = "server")]
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    model: model::ModelArgs,
    #[command(flatten)]
    packed: PackArgs,
    /// Lengths of prompts to run [default: 512 if no test is named]
    #[arg(long, value_name = "LIST", value_delimiter = ',', allow_negative_numbers = true, value_parser = amount::whole::<u32>(1..))]
    pp: Vec<u32>,
    /// Numbers of tokens to write [default: 64 if no test is named]
    #[arg(long, value_name = "LIST", value_delimiter = ',', allow_negative_numbers = true, value_parser = amount::whole::<u32>(1..))]
    tg: Vec<u32>,
    /// A prompt and then writing as one test, such as 512,64 (may be given several times)
    #[arg(long, value_name = "PP,TG", value_parser = workload::parse_both)]
    pg: Vec<(u32, u32)>,
    /// Tokens in the context before time is taken
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0", allow_negative_numbers = true, value_parser = amount::whole::<u32>(0..))]
    depth: Vec<u32>,
    /// Sequences that write at once, in tests of writing
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1",
        allow_negative_numbers = true, value_parser = amount::whole::<u32>(1..=1024))]
    batch: Vec<u32>,
    /// Threads to compute with [default: one for each core the program may use]
    #[arg(id = "threads", long, value_name = "LIST", value_delimiter = ',',
        allow_negative_numbers = true, value_parser = amount::whole::<u16>(1..=256))]
    threads: Vec<u16>,
    /// Device to compute on: cpu, wgpu, cuda or auto; shares of the roof are told of the processor alone
    #[arg(
        long,
        value_name = "DEVICE",
        env = "FARPOST_BACKEND",
        hide_env = true,
        default_value = "cpu",
        hide_possible_values = true
    )]
    backend: BackendChoice,
    /// Last layers to compute there; auto: what has room
    #[arg(long, value_name = "N", default_value = "auto")]
    gpu_layers: GpuLayers,
    /// How keys and values are kept: f16, q8_0 (half of that) or f32
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "f16")]
    kv_type: Vec<KvChoice>,
    /// Bits that activations are rounded to for quantized weights: int8 (fast), int16, or int16 in small models only
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    activations: ActivationsChoice,
    /// How often each test is measured
    #[arg(short, long, value_name = "N", default_value_t = 5, allow_negative_numbers = true, value_parser = amount::whole::<u16>(1..))]
    repetitions: u16,
    /// How often each test is run before that
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = amount::whole::<u16>(0..))]
    warmup: u16,
    /// Refuse to take more memory than this beside the model's file, such as 512M or 2G [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = amount::parse_bytes)]
    memory_cap: Option<u64>,
    /// How to write the results [default: table]
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "json")]
    output: Option<Format>,
    /// Compare with an earlier run, a file of JSON lines
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

/// What else can be measured.
#[cfg(feature = "server")]
#[derive(clap::Subcommand, Debug)]
enum Other {
    Serve(Box<serve::Args>),
}

impl Args {
    /// The tests, of which every one fits the model.
    fn workloads(&self, model: &Model) -> Result<Vec<Workload>, Failure> {
        let most = model.graph().max_context();
        let deepest = self.depth.iter().copied().max().unwrap_or(0);
        let room = u32::try_from(most).unwrap_or(u32::MAX).saturating_sub(deepest).max(1);
        let is_named = !(self.pp.is_empty() && self.tg.is_empty() && self.pg.is_empty());
        let (prompt, generated) = ([DEFAULT_PROMPT.min(room)], [DEFAULT_GENERATED.min(room)]);
        let lists = Lists {
            prompts: if is_named { &self.pp } else { &prompt },
            generated: if is_named { &self.tg } else { &generated },
            both: &self.pg,
            depths: &self.depth,
            batches: &self.batch,
        };
        let workloads = lists.workloads();
        match workloads.iter().find(|workload| workload.context() > most) {
            Some(workload) => Err(Failure::usage(format_args!(
                "test {workload} takes a context of {}, expected no more than the model's {}",
                amount::count(workload.context() as u64, "token"),
                amount::grouped(most as u64),
            ))),
            None => Ok(workloads),
        }
    }

    fn repetitions(&self) -> Repetitions {
        Repetitions { counted: self.repetitions.into(), warmup: self.warmup.into() }
    }
}

/// Measures with progress.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    #[cfg(feature = "server")]
    if let Some(Other::Serve(args)) = &args.other {
        return serve::run(args, console);
    }
    let earlier = args.compare.as_deref().map(Earlier::read).transpose()?;
    let isa = Isa::choose(device::forced_isa().as_deref()).map_err(|error| device::refused(&error))?;
    let model = args.model.load(None, args.packed, console)?;
    let workloads = args.workloads(&model)?;
    let machine = Machine::look();
    let counters = Counters::find();
    let device = device::backend(args.backend, args.gpu_layers, console)?;
    let info = device.describe();
    let is_cpu = info.backend == "cpu";
    let isa_name = if is_cpu { isa.name().to_owned() } else { format!("{}: {}", info.backend, info.name) };
    let about = About {
        model: &model,
        isa: &isa_name,
        machine: &machine,
        repetitions: args.repetitions().counted,
        has_energy: counters.is_some(),
        compares: earlier.is_some(),
    };
    let mut threads: Vec<usize> = args.threads.iter().copied().map(usize::from).collect();
    if threads.is_empty() {
        threads.push(machine.n_cores);
    }
    let interrupt = Interrupt::listen()?;
    let n_tokens = n_tokens(&workloads, args.repetitions()) * (threads.len() * args.kv_type.len()) as u64;
    console.detail(&format!("measuring {} of {}", amount::count(workloads.len() as u64, "test"), model.name()));
    let mut progress = Progress::new(console, "measuring", n_tokens, Unit::Tokens);
    let mut course = Course { progress: &mut progress, interrupt: &interrupt, done: 0 };
    let mut told = Told::new(args, &about, console);
    let mut measure = || {
        for &threads in &threads {
            let mut roof = Roof::new(isa, threads, machine.most_bytes()).map_err(EngineError::from)?;
            told.roofs.push((threads, measure::first_look(&mut roof)?));
            for &KvChoice(kv_type) in &args.kv_type {
                let activations = args.activations.0;
                let settings = Settings { threads, kv_type, activations, memory_cap: cap(args), has_roof: is_cpu };
                let mut bench = Bench::new(&model, &*device, &workloads, settings)?;
                if let Some(how) = bench.told(&*device) {
                    course.progress.aside(|| console.say(&how));
                }
                for workload in &workloads {
                    let outcome = bench.run(workload, args.repetitions(), &mut roof, counters.as_ref(), &mut course)?;
                    course.progress.aside(|| console.detail(&report::in_short(&outcome)));
                    told.add(outcome, earlier.as_ref())?;
                }
            }
        }
        Ok(())
    };
    let measured: Result<(), Failure> = measure();
    drop(progress);
    // Whatever ended it, what was measured before is told; why it ended counts more than that it could not be told.
    measured.and(told.finish())
}

/// Better refused than killed: by default what is available now.
fn cap(args: &Args) -> Option<u64> {
    args.memory_cap.or_else(|| Machine::look().most_bytes())
}

/// Tokens that all tests run, for one number of threads and one type of keys and values.
fn n_tokens(workloads: &[Workload], repetitions: Repetitions) -> u64 {
    let times = (repetitions.counted + repetitions.warmup) as u64;
    let tokens =
        |workload: &Workload| (workload.n_tokens() as u64).saturating_mul(times).saturating_add(workload.depth as u64);
    workloads.iter().map(tokens).fold(0, u64::saturating_add)
}

/// Results on their way out: lines at once, tables when they are whole.
struct Told<'a> {
    format: Format,
    about: &'a About<'a>,
    console: &'a Console,
    roofs: Vec<(usize, Rates)>,
    lines: Vec<Line>,
    /// The file with an earlier run.
    compared: Option<&'a Path>,
    remarks: Remarks,
}

impl<'a> Told<'a> {
    fn new(args: &'a Args, about: &'a About<'a>, console: &'a Console) -> Self {
        let default = if console.is_json() { Format::Jsonl } else { Format::Table };
        Self {
            format: args.output.unwrap_or(default),
            about,
            console,
            roofs: Vec::new(),
            lines: Vec::new(),
            compared: args.compare.as_deref(),
            remarks: Remarks::default(),
        }
    }

    /// Threads of other programs that wanted to run: as found at first or, if more, now less all of this run's own. So
    /// a run does not find the machine busy with itself.
    fn load(&self) -> Option<f64> {
        let own = self.roofs.iter().map(|&(threads, _)| threads).max().unwrap_or(0) as f64;
        let now = load_now().map(|load| load - own);
        [self.about.machine.load, now].into_iter().flatten().reduce(f64::max)
    }

    fn add(&mut self, outcome: Outcome, earlier: Option<&Earlier>) -> Result<(), Failure> {
        let now = outcome.measured(self.about);
        let comparison = earlier.and_then(|earlier| earlier.find(&now)).map(|before| compare(&now, before));
        self.remarks.add(&now, comparison.as_ref());
        let line = Line { outcome, comparison, load: self.load() };
        let object = report::json(&line, self.about);
        match self.format {
            Format::Jsonl => self.console.print_json(&object.into())?,
            Format::Csv => {
                if self.lines.is_empty() {
                    self.console.print(&report::csv(object.iter(), true))?;
                }
                self.console.print(&report::csv(object.iter(), false))?;
            }
            Format::Table | Format::Markdown => {}
        }
        self.lines.push(line);
        Ok(())
    }

    /// Tells what is whole only now; nothing where no test came to its end.
    fn finish(self) -> Result<(), Failure> {
        if self.lines.is_empty() {
            return Ok(());
        }
        for note in self.compared.map(|file| self.remarks.notes(file)).unwrap_or_default() {
            self.console.note(&note);
        }
        let heading = report::heading(self.about, &self.roofs, &self.lines);
        match self.format {
            Format::Jsonl | Format::Csv => Ok(()),
            Format::Table => {
                let table = report::table(&self.lines, self.about, self.console.paint());
                self.console.print(&format!("{}\n\n{table}", heading.join("\n")))
            }
            Format::Markdown => {
                let table = report::markdown(&self.lines, self.about);
                self.console.print(&format!("{}\n\n{table}", heading.join("  \n")))
            }
        }
    }
}
