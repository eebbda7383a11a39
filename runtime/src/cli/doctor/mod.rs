//! `farpost doctor`: what this machine offers, what the program makes of it, and why not more.

mod backends;
mod report;

use std::time::Duration;

use farpost::Library;
use farpost_kernels::cpu::isa::{Isa, IsaError};
use farpost_kernels::cpu::roof::Roof;

use super::console::Console;
use super::exit::Failure;
use super::machine::Machine;

/// Check the machine: processor, memory, read bandwidth, devices, models
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Leave out the bandwidth measurement, which reads memory for about half a second
    #[arg(long)]
    quick: bool,
}

/// How long reads are measured.
const PATIENCE: Duration = Duration::from_millis(500);

/// How fast memory is read: the bound of every decode step.
#[derive(Clone, Copy, Debug)]
struct Bandwidth {
    buffer_bytes: u64,
    threads: usize,
    rounds: usize,
    bytes_per_second: f64,
}

/// Everything found out.
struct Findings {
    machine: Machine,
    available: Vec<Isa>,
    chosen: Result<Isa, IsaError>,
    /// `FARPOST_CPU`, where it is set.
    forced: Option<String>,
    threads: usize,
    bandwidth: Option<Bandwidth>,
    backends: Vec<backends::Finding>,
    /// What models run on unless otherwise asked, and why.
    choice: String,
    models: Library,
}

/// Looks around and reports.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let forced = super::device::forced_isa();
    let chosen = Isa::choose(forced.as_deref());
    let machine = Machine::look();
    let threads = if console.threads() == 0 { machine.n_cores } else { console.threads() };
    if !args.quick {
        console.detail(&format!("reading memory on {threads} threads"));
    }
    let (backends, choice) = backends::all(&chosen);
    let findings = Findings {
        available: Isa::available(),
        threads,
        bandwidth: (!args.quick).then(|| bandwidth(&chosen, threads, machine.most_bytes())).flatten(),
        backends,
        choice,
        models: Library::of_user(),
        machine,
        chosen,
        forced,
    };
    if console.is_json() {
        console.print_json(&report::json(&findings))?;
    } else {
        console.print(&report::text(&findings, console.paint()))?;
    }
    // A forced set that is not there would stop every other command too.
    match findings.chosen {
        Ok(_) => Ok(()),
        Err(error) => Err(super::device::refused(&error)),
    }
}

/// Reads memory; `None` where it is too short for that.
fn bandwidth(chosen: &Result<Isa, IsaError>, threads: usize, free_bytes: Option<u64>) -> Option<Bandwidth> {
    let isa = chosen.as_ref().map_or_else(|_| Isa::detect(), |isa| *isa);
    let mut roof = Roof::new(isa, threads, free_bytes).ok()?;
    let rate = roof.read_bytes(PATIENCE).ok()??;
    Some(Bandwidth {
        buffer_bytes: roof.buffer_bytes(),
        threads: roof.threads(),
        rounds: rate.rounds,
        bytes_per_second: rate.per_second,
    })
}
