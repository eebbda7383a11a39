//! Every kind of device the program knows: usable, or why not.

use std::time::Instant;

use farpost_kernels::backend::Backend;
use farpost_kernels::cpu::Cpu;
use farpost_kernels::cpu::isa::{Isa, IsaError};
#[cfg(feature = "cuda")]
use farpost_kernels::cuda::Cuda;
#[cfg(feature = "wgpu")]
use farpost_kernels::wgpu::{Adapters, Wgpu};

use crate::amount;
#[cfg(feature = "cuda")]
use crate::device;

#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
const ABSENT: &str = "not built into this program";

/// One kind of device.
#[derive(Debug)]
pub struct Finding {
    /// Its name: cpu, wgpu, cuda.
    pub backend: &'static str,
    /// What it is, if it can be used; otherwise why it can't.
    pub state: Result<String, String>,
}

/// All kinds, the one that is always there first.
pub fn all(chosen: &Result<Isa, IsaError>) -> Vec<Finding> {
    let cpu = match chosen {
        Ok(isa) => test(&Cpu::new(*isa)),
        Err(error) => Err(error.to_string()),
    };
    let finding = |backend, state| Finding { backend, state };
    vec![finding("cpu", cpu), finding("wgpu", graphics()), finding("cuda", nvidia())]
}

#[cfg(feature = "wgpu")]
fn graphics() -> Result<String, String> {
    let device = Wgpu::open(Adapters::Any).map_err(|error| error.to_string())?;
    let tested = test(&device).map_err(|error| format!("{}: {error}", device.describe().name))?;
    let played = if device.is_software() { " (the processor plays it: taken only if asked for)" } else { "" };
    Ok(format!("{}{played}, {tested}", device.describe().name))
}

#[cfg(not(feature = "wgpu"))]
fn graphics() -> Result<String, String> {
    Err(ABSENT.to_owned())
}

#[cfg(feature = "cuda")]
fn nvidia() -> Result<String, String> {
    let device = Cuda::open(device::kernels_folder()).map_err(|error| error.to_string())?;
    let name = device.describe().name;
    test(&device).map(|tested| format!("{name}, {tested}")).map_err(|error| format!("{name}: {error}"))
}

#[cfg(not(feature = "cuda"))]
fn nvidia() -> Result<String, String> {
    Err(ABSENT.to_owned())
}

/// Lets a device compute what is known already.
fn test(backend: &dyn Backend) -> Result<String, String> {
    let start = Instant::now();
    backend.self_test().map_err(|error| error.to_string())?;
    Ok(format!("{}, self-test passed in {}", backend.describe().driver, amount::duration(start.elapsed())))
}
