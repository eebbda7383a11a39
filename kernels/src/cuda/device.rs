//! Finding a device, and it as a [`Backend`].

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::driver::Driver;
use super::gpu::Gpu;
use super::nvidia::Nvidia;
use super::plan;
use crate::backend::{Activations, Backend, DeviceError, DeviceInfo, Limits, Plan};
use crate::device::known_answers;
use crate::graph::Graph;

/// Squared error over the square of what is expected in the self-test, after some twenty products: activations are rounded
/// to two bytes, or to one.
const MOST_ERRORS: [(Activations, f64); 2] = [(Activations::Int16, 1e-6), (Activations::Int8, 1e-2)];

/// Opens a driver, once more where it is lost.
type Open = dyn Fn() -> Result<Arc<dyn Driver>, DeviceError> + Send + Sync;

/// A graphics processor of NVIDIA. One is shared by all plans; if it is lost, the next plan opens it anew.
pub struct Cuda {
    open: Box<Open>,
    gpu: Mutex<Arc<Gpu>>,
}

impl Cuda {
    /// Opens the first device there is. What is compiled for it is kept in `folder`, where one is given.
    ///
    /// # Errors
    /// [`DeviceError::Absent`] where there is no driver, no device, or no compiler for its kernels.
    pub fn open(folder: Option<PathBuf>) -> Result<Self, DeviceError> {
        Self::with(move || Ok(Arc::new(Nvidia::open(folder.as_deref())?)))
    }

    /// A device behind a driver that `open` opens.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn with(
        open: impl Fn() -> Result<Arc<dyn Driver>, DeviceError> + Send + Sync + 'static,
    ) -> Result<Self, DeviceError> {
        let gpu = Arc::new(Gpu::new(open()?));
        Ok(Self { open: Box::new(open), gpu: Mutex::new(gpu) })
    }

    /// The device, opened again if it was lost.
    fn gpu(&self) -> Result<Arc<Gpu>, DeviceError> {
        let mut gpu = self.gpu.lock().unwrap_or_else(PoisonError::into_inner);
        if gpu.check().is_err() {
            *gpu = Arc::new(Gpu::new((self.open)()?));
        }
        Ok(Arc::clone(&gpu))
    }
}

impl Backend for Cuda {
    fn describe(&self) -> DeviceInfo {
        let gpu = self.gpu.lock().unwrap_or_else(PoisonError::into_inner);
        let device = &gpu.device;
        DeviceInfo {
            backend: "cuda",
            name: device.name.clone(),
            driver: device.driver.clone(),
            memory_bytes: Some(device.memory_bytes),
            features: vec![format!("compute {}.{}", device.capability / 10, device.capability % 10)],
        }
    }

    fn self_test(&self) -> Result<(), DeviceError> {
        let gpu = self.gpu()?;
        let compile = |graph: &_, limits: &_| -> Result<Box<dyn Plan>, DeviceError> {
            Ok(Box::new(plan::compile(&gpu, graph, limits)?))
        };
        known_answers::check(&compile, &MOST_ERRORS)
    }

    fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError> {
        Ok(Box::new(plan::compile(&self.gpu()?, graph, limits)?))
    }
}
