//! The device that models run on, and sessions opened on it.

use std::sync::Arc;

use farpost::Model;
use farpost::engine::{Session, SessionOptions};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::cpu::isa::{Isa, IsaError};

use super::console::Console;
use super::exit::Failure;
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

/// Most memory to take: what was asked for, or what is available; better refused than killed.
pub fn memory_cap(memory: &MemoryArgs) -> Option<u64> {
    memory.memory_cap.or_else(|| Machine::look().most_bytes())
}

/// A session of `model` on the processor.
pub fn open(model: Model, memory: &MemoryArgs, console: &Console) -> Result<Session, Failure> {
    open_with(model, memory, SessionOptions::default().batch_rows, console)
}

/// The same, running at most `batch_rows` tokens of a prompt in one step.
pub fn open_with(model: Model, memory: &MemoryArgs, batch_rows: usize, console: &Console) -> Result<Session, Failure> {
    let options = options(memory, batch_rows, console);
    Ok(Session::open(Arc::new(model), &cpu()?, &options)?)
}

/// A session with a draft model.
pub fn open_with_draft(model: Model, draft: Model, memory: &MemoryArgs, console: &Console) -> Result<Session, Failure> {
    let options = options(memory, SessionOptions::default().batch_rows, console);
    Ok(Session::open_with_draft(Arc::new(model), Arc::new(draft), &cpu()?, &options)?)
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
