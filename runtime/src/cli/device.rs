//! The device that models run on, and sessions opened on it.

#[cfg(feature = "cuda")]
use std::path::PathBuf;
use std::sync::Arc;

use farpost::Model;
#[cfg(feature = "server")]
use farpost::engine::Backends;
use farpost::engine::{Session, SessionOptions};
use farpost_kernels::backend::Backend;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use farpost_kernels::backend::DeviceError;
use farpost_kernels::cpu::Cpu;
use farpost_kernels::cpu::isa::{Isa, IsaError};
#[cfg(feature = "cuda")]
use farpost_kernels::cuda::Cuda;
#[cfg(feature = "wgpu")]
use farpost_kernels::wgpu::{Adapters, Wgpu};

use super::console::Console;
use super::exit::{Exit, Failure};
use super::generation::MemoryArgs;
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
    /// A graphics processor where there is one, else the processor
    Auto,
    /// The processor
    Cpu,
    /// A graphics processor, or a driver that plays one
    Wgpu,
    /// A graphics processor of NVIDIA by its own driver
    Cuda,
}

/// The device that was asked for.
pub fn backend(choice: BackendChoice, console: &Console) -> Result<Arc<dyn Backend>, Failure> {
    match choice {
        BackendChoice::Cpu => Ok(Arc::new(cpu()?)),
        BackendChoice::Wgpu => graphics(console),
        BackendChoice::Cuda => nvidia(),
        BackendChoice::Auto => match nvidia_if_any(console).or_else(|| graphics_if_any(console)) {
            Some(found) => Ok(found),
            None => Ok(Arc::new(cpu()?)),
        },
    }
}

/// The devices to serve with: where a graphics processor fails, the processor goes on.
#[cfg(feature = "server")]
pub fn backends(choice: BackendChoice, console: &Console) -> Result<Backends, Failure> {
    let first = backend(choice, console)?;
    let is_cpu = first.describe().backend == "cpu";
    let backends = Backends::one(first);
    Ok(if is_cpu { backends } else { backends.or(Arc::new(cpu()?)) })
}

#[cfg(feature = "wgpu")]
fn graphics(console: &Console) -> Result<Arc<dyn Backend>, Failure> {
    let device = Wgpu::open(Adapters::Any)
        .map_err(|error| Failure::new(Exit::Device, error).hint("'farpost doctor' tells what devices there are"))?;
    if device.is_software() {
        console.note("the graphics processor is played by the processor: --backend cpu is much faster");
    }
    Ok(Arc::new(device))
}

#[cfg(not(feature = "wgpu"))]
fn graphics(_: &Console) -> Result<Arc<dyn Backend>, Failure> {
    Err(Failure::new(Exit::Device, "--backend wgpu: graphics processors are not built into this program"))
}

/// A graphics processor that computes what it should.
#[cfg(feature = "wgpu")]
fn graphics_if_any(console: &Console) -> Option<Arc<dyn Backend>> {
    tested(Wgpu::open(Adapters::Hardware), console)
}

#[cfg(not(feature = "wgpu"))]
fn graphics_if_any(_: &Console) -> Option<Arc<dyn Backend>> {
    None
}

/// A device, if it is there and computes what it should.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn tested<B: Backend + 'static>(device: Result<B, DeviceError>, console: &Console) -> Option<Arc<dyn Backend>> {
    let device = device.map_err(|error| console.detail(&error.to_string())).ok()?;
    let info = device.describe();
    match device.self_test() {
        Ok(()) => {
            console.detail(&format!("computing on {} ({})", info.name, info.backend));
            Some(Arc::new(device))
        }
        Err(error) => {
            console.note(&format!("{} ({}): {error}; not computing there", info.name, info.backend));
            None
        }
    }
}

#[cfg(feature = "cuda")]
fn nvidia() -> Result<Arc<dyn Backend>, Failure> {
    let device = Cuda::open(kernels_folder())
        .map_err(|error| Failure::new(Exit::Device, error).hint("'farpost doctor' tells what devices there are"))?;
    Ok(Arc::new(device))
}

#[cfg(not(feature = "cuda"))]
fn nvidia() -> Result<Arc<dyn Backend>, Failure> {
    Err(Failure::new(Exit::Device, "--backend cuda: CUDA is not built into this program"))
}

#[cfg(feature = "cuda")]
fn nvidia_if_any(console: &Console) -> Option<Arc<dyn Backend>> {
    tested(Cuda::open(kernels_folder()), console)
}

#[cfg(not(feature = "cuda"))]
fn nvidia_if_any(_: &Console) -> Option<Arc<dyn Backend>> {
    None
}

/// Where compiled kernels are kept: `farpost/kernels` in `XDG_CACHE_HOME` or `~/.cache`.
#[cfg(feature = "cuda")]
pub fn kernels_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("farpost/kernels"))
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
    let options = options(memory, batch_rows, console);
    Ok(Session::open(Arc::new(model), &*backend(memory.backend, console)?, &options)?)
}

/// A session with a draft model.
pub fn open_with_draft(model: Model, draft: Model, memory: &MemoryArgs, console: &Console) -> Result<Session, Failure> {
    let options = options(memory, SessionOptions::default().batch_rows, console);
    let backend = backend(memory.backend, console)?;
    Ok(Session::open_with_draft(Arc::new(model), Arc::new(draft), &*backend, &options)?)
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
