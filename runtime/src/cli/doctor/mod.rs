//! `farpost doctor`: what this machine offers, what the program makes of it, and why not more.

mod backends;
mod bandwidth;
mod report;

use farpost::Library;
use farpost_kernels::cpu::isa::{Isa, IsaError};

use super::console::Console;
use super::exit::Failure;
use super::machine::Machine;
use bandwidth::Bandwidth;

/// Check the machine: processor, memory, read bandwidth, devices, models
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Leave out the bandwidth measurement, which reads memory for about half a second
    #[arg(long)]
    quick: bool,
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
    let findings = Findings {
        available: Isa::available(),
        threads,
        bandwidth: (!args.quick).then(|| bandwidth::measure(threads, machine.most_bytes())).flatten(),
        backends: backends::all(&chosen),
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
