//! The device that models run on, and sessions opened on it.

use std::sync::Arc;

use farpost::Model;
#[cfg(feature = "server")]
use farpost::engine::Backends;
use farpost::engine::{EngineError, Session, SessionOptions};
use farpost_kernels::backend::{Backend, DeviceError, DeviceInfo, Placement};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::cpu::isa::{Isa, IsaError};
use farpost_kernels::placed::{Layers, Placed};
use farpost_kernels::select::{self, Which};

use super::console::Console;
use super::exit::{Exit, Failure};
use super::generation::MemoryArgs;
use super::kept;
use super::machine::Machine;

/// The instruction set that `FARPOST_CPU` asks for, where it is set.
pub fn forced_isa() -> Option<String> {
    std::env::var("FARPOST_CPU").ok().filter(|name| !name.is_empty())
}

/// The instruction set to compute with.
pub fn isa() -> Result<Isa, Failure> {
    Isa::choose(forced_isa().as_deref()).map_err(|error| refused(&error))
}

/// The wrong usage of a variable.
pub fn refused(error: &IsaError) -> Failure {
    Failure::usage(format_args!("FARPOST_CPU: {error}"))
}

/// The processor, with the instruction set that was asked for.
pub fn cpu() -> Result<Cpu, Failure> {
    Ok(Cpu::new(isa()?))
}

/// What models run on, as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendChoice {
    /// The fastest device there is that computes right
    Auto,
    /// The processor
    Cpu,
    /// A graphics processor, or a driver that plays one
    Wgpu,
    /// A graphics processor of NVIDIA by its own driver
    Cuda,
}

/// [`Layers`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuLayers(pub Layers);

impl std::str::FromStr for GpuLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "auto" => Ok(Self(Layers::Auto)),
            Ok(n_layers) => Ok(Self(Layers::Last(n_layers))),
            Err(_) => Err("expected auto or a number of layers".to_owned()),
        }
    }
}

/// Keeps drivers from talking to users: before any thread is started.
///
/// Mesa's layer that chooses among devices asks the Wayland server, of which there is none on most machines, and says so
/// on the error stream. It chooses nothing that is not chosen here.
pub fn hush_drivers() {
    #[cfg(all(feature = "wgpu", target_os = "linux"))]
    if std::env::var_os("NODEVICE_SELECT").is_none() {
        // SAFETY: the program has one thread so far.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Devices to compute on, and those that are not taken.
pub struct Chosen {
    /// Best first; there is one at least.
    pub devices: Vec<Arc<dyn Backend>>,
    /// Those that are there, and why they are not among them.
    pub passed_over: Vec<(DeviceInfo, String)>,
}

/// The devices that were asked for, the processor behind all others.
pub fn choose(choice: BackendChoice, layers: GpuLayers, console: &Console) -> Result<Chosen, Failure> {
    let host: Arc<dyn Backend> = Arc::new(cpu()?);
    let mut chosen = Chosen { devices: Vec::new(), passed_over: Vec::new() };
    let mut take = |device| chosen.devices.push(Arc::new(Placed::new(device, Arc::clone(&host), layers.0)) as _);
    match choice {
        BackendChoice::Cpu => {}
        BackendChoice::Wgpu => take(forced("wgpu", console)?),
        BackendChoice::Cuda => take(forced("cuda", console)?),
        BackendChoice::Auto => {
            for finding in select::look(&*host, &kept::of_user()) {
                let name = finding.info.as_ref().map_or(finding.kind, |info| info.name.as_str());
                match (finding.state, finding.info.clone()) {
                    (Ok((device, rate)), _) => {
                        console.detail(&format!("{name}: decodes {rate:.0} tokens a second of a small model"));
                        take(device);
                    }
                    (Err(why), Some(info)) => {
                        console.detail(&format!("{name}: {why}"));
                        chosen.passed_over.push((info, why));
                    }
                    (Err(why), None) => console.detail(&format!("{name}: {why}")),
                }
            }
        }
    }
    chosen.devices.push(host);
    Ok(chosen)
}

/// The best device of a kind, whatever is known of it.
fn forced(name: &str, console: &Console) -> Result<Arc<dyn Backend>, Failure> {
    let absent = || Failure::new(Exit::Device, format!("--backend {name}: no such kind of device"));
    let kind = select::KINDS.iter().find(|kind| kind.name == name).ok_or_else(absent)?;
    let opened = (kind.open)(Which::Any, &kept::of_user()).map_err(|error| {
        Failure::new(Exit::Device, format!("--backend {name}: {error}"))
            .hint("'farpost doctor' tells what devices there are")
    })?;
    if opened.is_software {
        console.note("the graphics processor is played by the processor: --backend cpu is much faster");
    }
    Ok(opened.backend)
}

/// The first of the devices that were asked for.
pub fn backend(choice: BackendChoice, layers: GpuLayers, console: &Console) -> Result<Arc<dyn Backend>, Failure> {
    Ok(choose(choice, layers, console)?.devices.swap_remove(0))
}

/// The devices to serve with: where one fails, the next goes on.
#[cfg(feature = "server")]
pub fn backends(choice: BackendChoice, layers: GpuLayers, console: &Console) -> Result<Backends, Failure> {
    let Chosen { devices, passed_over } = choose(choice, layers, console)?;
    let mut devices = devices.into_iter();
    let first = devices.next().expect("the processor is always there");
    Ok(devices.fold(Backends::one(first), Backends::or).passing_over(passed_over))
}

/// Most memory to take: what was asked for, or what is available; better refused than killed.
pub fn memory_cap(memory: &MemoryArgs) -> Option<u64> {
    memory.memory_cap.or_else(|| Machine::look().most_bytes())
}

/// A session of `model` on the device asked for.
pub fn open(model: Model, memory: &MemoryArgs, console: &Console) -> Result<Session, Failure> {
    open_with(model, memory, SessionOptions::default().batch_rows, console)
}

/// The same, running at most `batch_rows` tokens of a prompt in one step.
pub fn open_with(model: Model, memory: &MemoryArgs, batch_rows: usize, console: &Console) -> Result<Session, Failure> {
    let (options, model) = (options(memory, batch_rows, console), Arc::new(model));
    on_any(memory, console, |backend| Session::open(Arc::clone(&model), backend, &options))
}

/// A session with a draft model.
pub fn open_with_draft(model: Model, draft: Model, memory: &MemoryArgs, console: &Console) -> Result<Session, Failure> {
    let options = options(memory, SessionOptions::default().batch_rows, console);
    let (model, draft) = (Arc::new(model), Arc::new(draft));
    on_any(memory, console, |backend| {
        Session::open_with_draft(Arc::clone(&model), Arc::clone(&draft), backend, &options)
    })
}

/// Opens on the first device that has room, and says where.
fn on_any(
    memory: &MemoryArgs,
    console: &Console,
    open: impl Fn(&dyn Backend) -> Result<Session, EngineError>,
) -> Result<Session, Failure> {
    let chosen = choose(memory.backend, memory.gpu_layers, console)?;
    let (last, others) = chosen.devices.split_last().expect("the processor is always there");
    for device in others {
        match open(&**device) {
            Ok(session) => {
                console.detail(&told(&**device, session.n_dispatches(), session.placement()));
                return Ok(session);
            }
            Err(EngineError::Device(error @ DeviceError::OutOfMemory { .. }))
                if memory.gpu_layers.0 == Layers::Auto =>
            {
                console.note(&format!("{}: {error}; computing on the processor", device.describe().name));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(open(&**last)?)
}

/// Where a model is computed, in words.
pub fn told(device: &dyn Backend, n_dispatches: Option<usize>, placement: Option<Placement>) -> String {
    let name = if n_dispatches.is_some() { device.describe().name } else { "the processor".to_owned() };
    let mut text = format!("computing on {name}");
    if let Some(Placement { n_layers, of }) = placement {
        text += &format!(", {n_layers} of {of} layers, the others on the processor");
    }
    if let Some(n_dispatches) = n_dispatches {
        text += &format!("; {n_dispatches} dispatches a token");
    }
    text
}

fn options(memory: &MemoryArgs, batch_rows: usize, console: &Console) -> SessionOptions {
    SessionOptions {
        context: memory.context.map(|tokens| tokens as usize),
        threads: console.threads(),
        kv_type: memory.kv_type.0,
        activations: memory.activations.0,
        batch_rows,
        memory_cap: memory_cap(memory),
    }
}
