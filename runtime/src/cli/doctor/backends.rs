//! Every kind of device the program knows: usable, or why not; and which one models would run on.

use std::sync::Arc;
use std::time::Instant;

use farpost_kernels::backend::{Backend, DeviceInfo};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::cpu::isa::{Isa, IsaError};
use farpost_kernels::keep::Keep;
use farpost_kernels::select::{self, Kind, Which};

use crate::{amount, kept};

/// One kind of device.
#[derive(Debug)]
pub struct Finding {
    /// Its name: cpu, wgpu, cuda.
    pub backend: &'static str,
    /// What it is, if it can be used; otherwise why it can't.
    pub state: Result<String, String>,
}

/// All kinds, the one that is always there first; and what models run on unless otherwise asked, with the reason.
pub fn all(chosen: &Result<Isa, IsaError>) -> (Vec<Finding>, String) {
    let keep = kept::of_user();
    let isa = chosen.as_ref().map_or_else(|_| Isa::detect(), |isa| *isa);
    let cpu = match chosen {
        Ok(isa) => test(&Cpu::new(*isa)),
        Err(error) => Err(error.to_string()),
    };
    let mut findings = vec![Finding { backend: "cpu", state: cpu }];
    findings.extend(select::KINDS.iter().map(|kind| Finding { backend: kind.name, state: of_kind(kind, &keep) }));
    (findings, choice(&Cpu::new(isa), &keep))
}

fn of_kind(kind: &Kind, keep: &Arc<dyn Keep>) -> Result<String, String> {
    let opened = (kind.open)(Which::Any, keep).map_err(|error| error.to_string())?;
    let DeviceInfo { name, features, .. } = opened.backend.describe();
    let tested = test(&*opened.backend).map_err(|error| format!("{name}: {error}"))?;
    let played = if opened.is_software { " (the processor plays it: taken only if asked for)" } else { "" };
    Ok(format!("{name}{played}, {tested}; {}", features.join(", ")))
}

/// What models run on, and why not on others.
fn choice(cpu: &Cpu, keep: &Arc<dyn Keep>) -> String {
    let (mut taken, mut others) = (None, Vec::new());
    for finding in select::look(cpu, keep) {
        match (finding.state, finding.info) {
            (Ok((device, rate)), _) if taken.is_none() => {
                taken = Some(format!("{}: decodes {rate:.0} tokens a second of a small model", device.describe().name));
            }
            (Ok((device, rate)), _) => others.push(format!("{}: {rate:.0}", device.describe().name)),
            (Err(why), Some(info)) => others.push(format!("{}: {why}", info.name)),
            (Err(why), None) => others.push(format!("{}: {why}", finding.kind)),
        }
    }
    let taken = taken.unwrap_or_else(|| "cpu".to_owned());
    if others.is_empty() { taken } else { format!("{taken} ({})", others.join("; ")) }
}

/// Lets a device compute what is known already.
fn test(backend: &dyn Backend) -> Result<String, String> {
    let start = Instant::now();
    backend.self_test().map_err(|error| error.to_string())?;
    Ok(format!("{}, self-test passed in {}", backend.describe().driver, amount::duration(start.elapsed())))
}
