//! The processor as a [`Backend`].

use std::num::NonZero;

use super::isa::Isa;
use super::{plan, self_test};
use crate::backend::{Backend, DeviceError, DeviceInfo, Limits, Plan};
use crate::graph::Graph;

/// The device that is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    isa: Isa,
}

impl Cpu {
    /// Computes with the given instructions, which must be available (see [`Isa`]).
    pub fn new(isa: Isa) -> Self {
        assert!(isa.is_available(), "{isa} must come from `Isa::available`, `detect` or `choose`");
        Self { isa }
    }

    /// Computes with the best instructions of this processor.
    pub fn detect() -> Self {
        Self::new(Isa::detect())
    }

    /// The instructions in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads that a plan takes when its limits leave the choice: the processors this program may use.
    pub fn default_threads() -> usize {
        std::thread::available_parallelism().map_or(1, NonZero::get)
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::detect()
    }
}

impl Backend for Cpu {
    fn describe(&self) -> DeviceInfo {
        DeviceInfo {
            backend: "cpu",
            name: product_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            driver: self.isa.name().to_owned(),
            memory_bytes: None,
            features: Isa::available().into_iter().map(|isa| isa.name().to_owned()).collect(),
        }
    }

    fn self_test(&self) -> Result<(), DeviceError> {
        self_test::run(self.isa)
    }

    fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError> {
        let threads = if limits.threads == 0 { Self::default_threads() } else { limits.threads };
        plan::compile(self.isa, graph, limits, threads)
    }
}

/// What the system calls the processor.
fn product_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name") || line.starts_with("Model"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_of_this_processor_passes_its_self_test() {
        for isa in Isa::available() {
            assert_eq!(Cpu::new(isa).self_test(), Ok(()));
        }
    }

    #[test]
    fn the_device_says_what_it_is() {
        let info = Cpu::detect().describe();
        assert_eq!((info.backend, info.driver.as_str()), ("cpu", Isa::detect().name()));
        assert!(!info.name.is_empty() && info.features[0] == "scalar");
    }
}
