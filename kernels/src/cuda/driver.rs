//! What the backend needs of a driver: memory, kernels, launches in order.
//!
//! `nvidia.rs` is the one of graphics processors. Tests have another, which runs the same sources on the processor
//! (`tests/emulator`): so all that is not the driver itself is tested where there is no graphics processor.

use crate::backend::DeviceError;

/// What a driver computes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Product name.
    pub name: String,
    /// The driver, with its version.
    pub driver: String,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Compute capability: 90 is 9.0.
    pub capability: u32,
    /// Blocks that it computes at the same time, about: multiprocessors.
    pub n_processors: u32,
}

/// Sources of kernels, whole: nothing is included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// For messages.
    pub name: String,
    /// The text.
    pub text: String,
}

/// A kernel as its driver knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(pub u64);

/// A kernel with all that it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks along each dimension, none of them zero.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Its one argument, a structure.
    pub args: Vec<u8>,
}

/// Launches that were recorded to be run again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recording(pub u64);

/// A driver. What it is told to do is done in order; what it was told before [`Driver::read`] is done when that returns.
///
/// Errors: [`DeviceError::OutOfMemory`] where memory does not suffice, [`DeviceError::Hung`] where there is no answer in
/// time, [`DeviceError::Lost`] for whatever leaves the device useless, [`DeviceError::Refused`] for sources that can't be
/// compiled.
pub trait Driver: Send + Sync {
    /// What it computes on.
    fn device(&self) -> Device;
    /// The address of `n_bytes` of memory at a multiple of 256; what is there is not known.
    fn allocate(&self, what: &'static str, n_bytes: u64) -> Result<u64, DeviceError>;
    /// Gives memory back that [`Driver::allocate`] gave and nothing uses any more.
    fn free(&self, address: u64);
    /// Writes to memory.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError>;
    /// Reads memory, when all that was to be done before is done.
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError>;
    /// Copies memory.
    fn copy(&self, from: u64, to: u64, n_bytes: u64) -> Result<(), DeviceError>;
    /// A kernel of a source, which is compiled when it is first asked for.
    fn kernel(&self, source: &Source, name: &str) -> Result<Kernel, DeviceError>;
    /// Runs a kernel.
    ///
    /// # Safety
    /// The argument is what the kernel takes, and addresses in it are of memory as large as it uses.
    unsafe fn launch(&self, launch: &Launch) -> Result<(), DeviceError>;
    /// Records launches, without running them.
    ///
    /// # Safety
    /// As for [`Driver::launch`], whenever it is run.
    unsafe fn record(&self, launches: &[&Launch]) -> Result<Recording, DeviceError>;
    /// Runs what was recorded.
    ///
    /// # Safety
    /// Memory that the launches use is still there.
    unsafe fn replay(&self, recording: Recording) -> Result<(), DeviceError>;
    /// Forgets what was recorded.
    fn forget(&self, recording: Recording);
    /// Waits until all is done.
    fn wait(&self) -> Result<(), DeviceError>;
}
