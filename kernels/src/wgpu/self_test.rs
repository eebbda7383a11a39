//! What the device computes against what is known: see `crate::device::known_answers`.

use std::sync::Arc;

use super::gpu::Gpu;
use super::plan;
use crate::backend::{Activations, DeviceError, Plan};
use crate::device::known_answers;

/// Squared error over the square of what is expected: sums in another order, and functions of the device.
const MOST_ERROR: f64 = 1e-7;

pub(super) fn run(gpu: &Arc<Gpu>) -> Result<(), DeviceError> {
    let compile = |graph: &_, limits: &_| -> Result<Box<dyn Plan>, DeviceError> {
        Ok(Box::new(plan::compile(gpu, graph, limits)?))
    };
    known_answers::check(&compile, &[(Activations::Auto, MOST_ERROR)])
}

#[cfg(test)]
mod tests {
    use crate::backend::Backend;
    use crate::wgpu::{Adapters, Wgpu};

    #[test]
    fn the_device_passes_its_self_test() {
        match Wgpu::open(Adapters::Any) {
            Ok(device) => assert_eq!(device.self_test(), Ok(())),
            Err(error) => println!("skipped: {error}"),
        }
    }
}
