//! A device of the wgpu crate with what can go wrong: lost, out of memory, hung, commands refused.
//!
//! Nothing here panics on what the device does: errors that no scope catches and the loss of the device are noted by
//! callbacks and found by [`Gpu::check`]; waiting has an end.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use ::wgpu::{
    Adapter, AdapterInfo, BufferUsages, DeviceType, ErrorFilter, Features, PollError, PollType, SubmissionIndex,
};

use super::device::Options;
use super::pipelines::{Pipelines, Tile};
use crate::backend::DeviceError;

/// What callbacks of the device noted.
#[derive(Default)]
struct Fault {
    lost: OnceLock<String>,
    /// The first error that nobody waited for.
    error: OnceLock<DeviceError>,
}

/// What is used of what an adapter offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uses {
    /// Threads of a subgroup at least, where sums are made with subgroups.
    pub(super) subgroup: Option<u32>,
    /// Whether there are halves as numbers.
    pub(super) has_halves: bool,
    /// Whether four bytes are met at once.
    pub(super) has_packed: bool,
}

/// Vendor of processors whose graphics have no product of bytes: it would be made of many others.
const APPLE: u32 = 0x106B;

impl Uses {
    fn new(offered: Features, info: &AdapterInfo, options: &Options) -> Self {
        // Sums are over sixteen lanes: smaller subgroups do the last steps of them, larger ones all.
        let least = info.subgroup_min_size.min(16);
        let has_subgroups = options.subgroups && offered.contains(Features::SUBGROUP) && least >= 4;
        Self {
            subgroup: has_subgroups.then_some(least),
            has_halves: options.halves && offered.contains(Features::SHADER_F16),
            has_packed: options.packed && info.vendor != APPLE,
        }
    }

    fn features(self) -> Features {
        let mut features = Features::empty();
        features.set(Features::SUBGROUP, self.subgroup.is_some());
        features.set(Features::SHADER_F16, self.has_halves);
        features
    }

    /// What many inputs are met as where they may be rounded: halves are the more exact.
    pub(super) fn tile(self) -> Option<Tile> {
        if self.has_halves { Some(Tile::Halves) } else { self.has_packed.then_some(Tile::Bytes) }
    }

    /// Names for people.
    pub(super) fn names(self) -> impl Iterator<Item = String> {
        let all = [(self.subgroup.is_some(), "subgroups"), (self.has_halves, "f16"), (self.has_packed, "int8")];
        all.into_iter().filter(|(is_used, _)| *is_used).map(|(_, name)| name.to_owned())
    }
}

/// An open device.
pub(super) struct Gpu {
    pub(super) device: ::wgpu::Device,
    pub(super) queue: ::wgpu::Queue,
    pub(super) pipelines: Pipelines,
    /// What is used of what the adapter offers.
    pub(super) uses: Uses,
    fault: Arc<Fault>,
    /// How long a submission may take.
    patience: Duration,
    /// Most bytes that a shader sees of a buffer.
    pub(super) max_binding: u64,
    pub(super) max_buffer: u64,
    /// Whether its memory is that of the processor.
    pub(super) shares_memory: bool,
}

impl Gpu {
    /// Opens a device of `adapter` with all it allows and `options` ask for.
    pub(super) fn open(
        adapter: &Adapter,
        info: &AdapterInfo,
        options: &Options,
        patience: Duration,
    ) -> Result<Self, DeviceError> {
        let limits = adapter.limits();
        let offered = adapter.features();
        let uses = Uses::new(offered, info, options);
        let descriptor = ::wgpu::DeviceDescriptor {
            label: Some("farpost"),
            required_features: uses.features() | (offered & Features::PIPELINE_CACHE),
            required_limits: limits.clone(),
            memory_hints: ::wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = block_on(adapter.request_device(&descriptor))
            .map_err(|error| DeviceError::Lost(format!("the device cannot be opened: {error}")))?;
        let fault = Arc::new(Fault::default());
        let noted = Arc::clone(&fault);
        device.set_device_lost_callback(move |_, message| {
            let _ = noted.lost.set(one_line(&message));
        });
        let noted = Arc::clone(&fault);
        device.on_uncaptured_error(Arc::new(move |error| {
            let _ = noted.error.set(of_error(&error, "a command", 0));
        }));
        let bound = limits.max_storage_buffer_binding_size;
        let max_binding = options.most_bound_bytes.map_or(bound, |most| most.min(bound));
        let pipelines = Pipelines::new(&device, info, uses, Arc::clone(&options.keep));
        let max_buffer = limits.max_buffer_size;
        let shares_memory = matches!(info.device_type, DeviceType::IntegratedGpu | DeviceType::Cpu);
        Ok(Self { device, queue, pipelines, uses, fault, patience, max_binding, max_buffer, shares_memory })
    }

    /// What went wrong so far, if anything did.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        if let Some(message) = self.fault.lost.get() {
            return Err(DeviceError::Lost(message.clone()));
        }
        self.fault.error.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// A buffer of whole words that shaders can bind, zero at first.
    pub(super) fn storage(&self, what: &'static str, n_bytes: u64) -> Result<::wgpu::Buffer, DeviceError> {
        let n_bytes = n_bytes.max(16).next_multiple_of(16);
        if n_bytes > self.max_binding {
            return Err(DeviceError::Refused(format!(
                "{what} of {n_bytes} bytes, the device binds at most {} at once",
                self.max_binding
            )));
        }
        self.buffer(what, n_bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC)
    }

    /// A buffer.
    pub(super) fn buffer(
        &self,
        what: &'static str,
        n_bytes: u64,
        usage: BufferUsages,
    ) -> Result<::wgpu::Buffer, DeviceError> {
        self.check()?;
        if n_bytes > self.max_buffer {
            let free_bytes = Some(self.max_buffer);
            return Err(DeviceError::OutOfMemory { what, needed_bytes: n_bytes, free_bytes });
        }
        let descriptor =
            ::wgpu::BufferDescriptor { label: Some(what), size: n_bytes, usage, mapped_at_creation: false };
        self.scoped(what, n_bytes, || self.device.create_buffer(&descriptor))
    }

    /// Runs what creates something, and tells what the device had against it.
    pub(super) fn scoped<T>(
        &self,
        what: &'static str,
        n_bytes: u64,
        create: impl FnOnce() -> T,
    ) -> Result<T, DeviceError> {
        let memory = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(ErrorFilter::Internal);
        let validation = self.device.push_error_scope(ErrorFilter::Validation);
        let created = create();
        let errors = [block_on(validation.pop()), block_on(internal.pop()), block_on(memory.pop())];
        match errors.into_iter().flatten().next() {
            Some(error) => {
                // Of a lost device everything is invalid; whether it is lost is told when it is asked for news.
                let _ = catch_unwind(AssertUnwindSafe(|| self.device.poll(PollType::Poll)));
                Err(self.check().err().unwrap_or_else(|| of_error(&error, what, n_bytes)))
            }
            None => Ok(created),
        }
    }

    /// Waits until a submission is done.
    pub(super) fn wait(&self, submission: SubmissionIndex) -> Result<(), DeviceError> {
        let wait = PollType::Wait { submission_index: Some(submission), timeout: Some(self.patience) };
        // The crate panics where a device is lost while it is waited for.
        let polled = catch_unwind(AssertUnwindSafe(|| self.device.poll(wait)));
        let message = match polled {
            Ok(Ok(_)) => return self.check(),
            Ok(Err(PollError::Timeout)) => {
                self.check()?;
                let message = format!("no answer within {} seconds", self.patience.as_secs());
                // Nobody else shall wait for it.
                let _ = self.fault.lost.set(message.clone());
                return Err(DeviceError::Hung(message));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it failed while it was waited for".to_owned(),
        };
        Err(self.lose(message))
    }

    /// Takes the device for lost from now on.
    fn lose(&self, message: String) -> DeviceError {
        DeviceError::Lost(self.fault.lost.get_or_init(|| message).clone())
    }

    /// Submits, and waits until it is done.
    pub(super) fn run(&self, encoder: ::wgpu::CommandEncoder) -> Result<(), DeviceError> {
        let submission = self.queue.submit([encoder.finish()]);
        self.wait(submission)
    }

    /// Sends what was written to buffers on its way, and waits until it is there: the crate keeps copies until then.
    pub(super) fn flush(&self) -> Result<(), DeviceError> {
        let submission = self.queue.submit([]);
        self.wait(submission)
    }

    /// An encoder of commands.
    pub(super) fn encoder(&self) -> ::wgpu::CommandEncoder {
        self.device.create_command_encoder(&::wgpu::CommandEncoderDescriptor::default())
    }

    /// Submits copies into `staging`, a buffer to be mapped, and hands its first `n_bytes` to `take`.
    pub(super) fn read_back<T>(
        &self,
        encoder: ::wgpu::CommandEncoder,
        staging: &::wgpu::Buffer,
        n_bytes: u64,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, DeviceError> {
        let submission = self.queue.submit([encoder.finish()]);
        let slice = staging.slice(..n_bytes);
        let state = Arc::new(OnceLock::new());
        let done = Arc::clone(&state);
        slice.map_async(::wgpu::MapMode::Read, move |result| {
            let _ = done.set(result.is_ok());
        });
        self.wait(submission)?;
        if state.get() != Some(&true) {
            return Err(self.lose("results cannot be read back".to_owned()));
        }
        let taken = match slice.get_mapped_range() {
            Ok(bytes) => take(&bytes),
            Err(error) => return Err(self.lose(format!("results cannot be read back: {error}"))),
        };
        staging.unmap();
        Ok(taken)
    }
}

fn of_error(error: &::wgpu::Error, what: &'static str, needed_bytes: u64) -> DeviceError {
    match error {
        ::wgpu::Error::OutOfMemory { .. } => DeviceError::OutOfMemory { what, needed_bytes, free_bytes: None },
        other => DeviceError::Wrong(format!("{what}: {}", one_line(&other.to_string()))),
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The result of a future, waited for on this thread. Those of the crate are ready at once but on the web.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result,
            Poll::Pending => std::thread::park(),
        }
    }
}
