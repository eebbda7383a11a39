//! A device with its driver: memory that is given back when nobody uses it, kernels that are compiled once.

use std::sync::{Arc, OnceLock};

use super::driver::{Device, Driver, Kernel, Launch};
use super::sources::Module;
use crate::backend::DeviceError;

/// An open device.
pub(super) struct Gpu {
    driver: Arc<dyn Driver>,
    pub(super) device: Device,
    /// What made it useless, if anything did.
    lost: OnceLock<DeviceError>,
}

/// Memory of a device, given back with the last clone.
#[derive(Clone)]
pub(super) struct Buffer(Arc<Allocation>);

struct Allocation {
    gpu: Arc<Gpu>,
    address: u64,
    n_bytes: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.gpu.driver.free(self.address);
    }
}

impl Buffer {
    pub(super) fn address(&self) -> u64 {
        self.0.address
    }

    pub(super) fn n_bytes(&self) -> u64 {
        self.0.n_bytes
    }
}

impl Gpu {
    pub(super) fn new(driver: Arc<dyn Driver>) -> Self {
        Self { device: driver.device(), driver, lost: OnceLock::new() }
    }

    /// What made it useless, if anything did.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        self.lost.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Asks the driver, unless the device is lost; notes if it is now.
    fn ask<T>(&self, ask: impl FnOnce(&dyn Driver) -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        self.check()?;
        ask(&*self.driver).inspect_err(|error| {
            if let DeviceError::Lost(_) | DeviceError::Hung(_) = error {
                let _ = self.lost.set(error.clone());
            }
        })
    }

    /// Memory, of whole vectors.
    pub(super) fn buffer(self: &Arc<Self>, what: &'static str, n_bytes: u64) -> Result<Buffer, DeviceError> {
        let n_bytes = n_bytes.max(16).next_multiple_of(16);
        let address = self.ask(|driver| driver.allocate(what, n_bytes))?;
        Ok(Buffer(Arc::new(Allocation { gpu: Arc::clone(self), address, n_bytes })))
    }

    /// Writes to a buffer from byte `at` on.
    pub(super) fn write(&self, buffer: &Buffer, at: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        check_range(buffer, at, bytes.len() as u64)?;
        self.ask(|driver| driver.write(buffer.address() + at, bytes))
    }

    /// Reads a buffer from byte `at` on, when all before is done.
    pub(super) fn read(&self, buffer: &Buffer, at: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        check_range(buffer, at, out.len() as u64)?;
        self.ask(|driver| driver.read(buffer.address() + at, out))
    }

    /// Copies bytes within a buffer.
    pub(super) fn copy(&self, buffer: &Buffer, from: u64, to: u64, n_bytes: u64) -> Result<(), DeviceError> {
        check_range(buffer, from.max(to), n_bytes)?;
        self.ask(|driver| driver.copy(buffer.address() + from, buffer.address() + to, n_bytes))
    }

    /// A kernel of a module.
    pub(super) fn kernel(&self, module: &Module, name: &str) -> Result<Kernel, DeviceError> {
        self.ask(|driver| driver.kernel(&module.source(), name))
    }

    /// Waits until all is done.
    pub(super) fn wait(&self) -> Result<(), DeviceError> {
        self.ask(|driver| driver.wait())
    }

    /// Runs kernels one after the other.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    pub(super) unsafe fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        // SAFETY: the caller's.
        self.ask(|driver| unsafe { driver.launch(launch) })
    }

    /// Records kernels that run one after the other.
    ///
    /// # Safety
    /// As for [`Driver::record`].
    pub(super) unsafe fn record(self: &Arc<Self>, launches: &[&Launch]) -> Result<Recording, DeviceError> {
        // SAFETY: the caller's.
        let recording = self.ask(|driver| unsafe { driver.record(launches) })?;
        Ok(Recording { gpu: Arc::clone(self), recording })
    }
}

/// What is written never lies beside its buffer, whatever the host gets wrong.
fn check_range(buffer: &Buffer, at: u64, n_bytes: u64) -> Result<(), DeviceError> {
    if at.checked_add(n_bytes).is_some_and(|end| end <= buffer.n_bytes()) {
        return Ok(());
    }
    Err(DeviceError::Refused(format!("{n_bytes} bytes at {at} of a buffer of {}", buffer.n_bytes())))
}

/// Launches that were recorded, forgotten when nobody has them any more.
pub(super) struct Recording {
    gpu: Arc<Gpu>,
    recording: super::driver::Recording,
}

impl Recording {
    /// Runs them.
    ///
    /// # Safety
    /// As for [`Driver::replay`].
    pub(super) unsafe fn replay(&self) -> Result<(), DeviceError> {
        // SAFETY: the caller's.
        self.gpu.ask(|driver| unsafe { driver.replay(self.recording) })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.gpu.driver.forget(self.recording);
    }
}
