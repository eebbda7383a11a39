//! The driver of graphics processors of NVIDIA, opened at run time.
//!
//! Nothing here panics where there is no driver: it is asked for before anything else, and so is every function that is
//! called, since the crate cudarc panics without them. A context is the driver's idea of a process on the device; after most
//! errors it is useless, and the next plan opens another.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::panic::catch_unwind;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::{result, sys};

use super::compiler::Compiler;
use super::driver::{Device, Driver, Kernel, Launch, Recording, Source};
use crate::backend::DeviceError;

/// Functions of the driver that are called here.
const FUNCTIONS: [&[u8]; 30] = [
    b"cuInit\0",
    b"cuDriverGetVersion\0",
    b"cuDeviceGetCount\0",
    b"cuDeviceGet\0",
    b"cuDeviceGetName\0",
    b"cuDeviceTotalMem_v2\0",
    b"cuDeviceGetAttribute\0",
    b"cuCtxCreate_v2\0",
    b"cuCtxSetCurrent\0",
    b"cuCtxDestroy_v2\0",
    b"cuStreamCreate\0",
    b"cuStreamQuery\0",
    b"cuStreamBeginCapture_v2\0",
    b"cuStreamEndCapture\0",
    b"cuMemAlloc_v2\0",
    b"cuMemFree_v2\0",
    b"cuMemAllocHost_v2\0",
    b"cuMemFreeHost\0",
    b"cuMemcpyHtoDAsync_v2\0",
    b"cuMemcpyDtoHAsync_v2\0",
    b"cuMemcpyDtoDAsync_v2\0",
    b"cuModuleLoadData\0",
    b"cuModuleGetFunction\0",
    b"cuLaunchKernel\0",
    b"cuGraphInstantiateWithFlags\0",
    b"cuGraphLaunch\0",
    b"cuGraphDestroy\0",
    b"cuGraphExecDestroy\0",
    b"cuGetErrorName\0",
    b"cuGetErrorString\0",
];

/// Oldest kind of device that kernels are compiled for: 7.2.
const LEAST_CAPABILITY: u32 = 72;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that are read through memory of the host which the device writes to by itself.
const STAGING_BYTES: usize = 64 << 10;

/// How long the end of work is asked for without a pause.
const SPIN: Duration = Duration::from_millis(2);

/// Pauses between questions after that.
const PAUSE: Duration = Duration::from_micros(50);

/// A device with a context of its own.
pub(super) struct Nvidia {
    device: Device,
    context: sys::CUcontext,
    stream: sys::CUstream,
    staging: *mut c_void,
    compiler: Compiler,
    tables: Mutex<Tables>,
}

/// What was made so far.
#[derive(Default)]
struct Tables {
    modules: HashMap<Source, sys::CUmodule>,
    graphs: Vec<Option<sys::CUgraphExec>>,
}

// SAFETY: handles of the driver may be used by any thread, one call after the other or at once; staging memory is used
// under the lock of the tables.
unsafe impl Send for Nvidia {}
// SAFETY: the same.
unsafe impl Sync for Nvidia {}

fn absent<T>(why: impl Into<String>) -> Result<T, DeviceError> {
    Err(DeviceError::Absent(why.into()))
}

/// What the driver says of an error.
fn said(error: result::DriverError) -> String {
    error.error_string().map_or_else(|_| format!("{:?}", error.0), |text| text.to_string_lossy().into_owned())
}

fn lost(what: &str) -> impl Fn(result::DriverError) -> DeviceError {
    move |error| DeviceError::Lost(format!("{what}: {}", said(error)))
}

impl Nvidia {
    /// Opens the first device of the driver. What is compiled is kept in `folder`.
    pub(super) fn open(folder: Option<&Path>) -> Result<Self, DeviceError> {
        // Nothing is left half done where the crate panics in spite of all.
        let opened = catch_unwind(|| Self::open_first(folder));
        opened.unwrap_or_else(|_| absent("the driver can't be used: it lacks a function"))
    }

    fn open_first(folder: Option<&Path>) -> Result<Self, DeviceError> {
        // SAFETY: the library is NVIDIA's; opening it runs nothing else.
        if !unsafe { sys::is_culib_present() } {
            return absent("no driver library");
        }
        // SAFETY: it is there.
        let library = unsafe { sys::culib() };
        for function in FUNCTIONS {
            // SAFETY: it is looked for and not called.
            if unsafe { library.get::<unsafe extern "C" fn()>(function) }.is_err() {
                let name = String::from_utf8_lossy(&function[..function.len() - 1]);
                return absent(format!("the driver is too old: it has no {name}"));
            }
        }
        let failed = |error| DeviceError::Absent(format!("no device: {}", said(error)));
        result::init().map_err(failed)?;
        if result::device::get_count().map_err(failed)? == 0 {
            return absent("no device");
        }
        let ordinal = result::device::get(0).map_err(failed)?;
        let attribute = |of| {
            // SAFETY: the device is there.
            unsafe { result::device::get_attribute(ordinal, of) }.map(|value| value.max(0) as u32).map_err(failed)
        };
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let n_processors = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let name = result::device::get_name(ordinal).map_err(failed)?;
        let capability = 10 * major + minor;
        if capability < LEAST_CAPABILITY {
            return absent(format!("{name} is of compute capability {major}.{minor}, expected 7.2 or more"));
        }
        let compiler = Compiler::open(folder)?;
        let mut version: c_int = 0;
        // SAFETY: it writes one number.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed)?;
        let driver = format!("CUDA {}.{}, NVRTC {}", version / 1000, version % 1000 / 10, compiler.version);
        // SAFETY: the device is there.
        let memory_bytes = unsafe { result::device::total_mem(ordinal) }.map_err(failed)? as u64;
        let device = Device { name, driver, memory_bytes, capability, n_processors };
        let mut context = null_mut();
        // SAFETY: the device is there; it writes one handle.
        unsafe { sys::cuCtxCreate_v2(&raw mut context, 0, ordinal) }.result().map_err(failed)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(lost("a stream"))?;
        // SAFETY: the context is current.
        let staging = unsafe { result::malloc_host(STAGING_BYTES, 0) }.map_err(lost("memory of the host"))?;
        Ok(Self { device, context, stream, staging, compiler, tables: Mutex::default() })
    }

    /// Makes the context that of this thread: every call but those of another context goes to it.
    fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is there until `self` is gone.
        unsafe { result::ctx::set_current(self.context) }.map_err(lost("the context"))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all is done, but not for ever.
    fn finish(&self) -> Result<(), DeviceError> {
        let start = Instant::now();
        loop {
            // SAFETY: the stream is there.
            match unsafe { sys::cuStreamQuery(self.stream) } {
                sys::CUresult::CUDA_SUCCESS => return Ok(()),
                sys::CUresult::CUDA_ERROR_NOT_READY => {}
                error => return Err(lost("a kernel")(result::DriverError(error))),
            }
            match start.elapsed() {
                elapsed if elapsed < SPIN => std::hint::spin_loop(),
                elapsed if elapsed < PATIENCE => std::thread::sleep(PAUSE),
                _ => return Err(DeviceError::Hung(format!("no answer within {} seconds", PATIENCE.as_secs()))),
            }
        }
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        // What can't be given back any more is gone with its context.
        if self.enter().is_ok() {
            // SAFETY: nobody uses it any more.
            let _ = unsafe { result::free_host(self.staging) };
        }
        // SAFETY: the same; streams, modules and graphs go with it.
        let _ = unsafe { sys::cuCtxDestroy_v2(self.context) }.result();
    }
}

impl Driver for Nvidia {
    fn device(&self) -> Device {
        self.device.clone()
    }

    fn allocate(&self, what: &'static str, n_bytes: u64) -> Result<u64, DeviceError> {
        let out_of_memory = || DeviceError::OutOfMemory { what, needed_bytes: n_bytes, free_bytes: None };
        self.enter()?;
        let size = usize::try_from(n_bytes).map_err(|_| out_of_memory())?;
        // SAFETY: the size is not zero; the memory is freed by `free`.
        unsafe { result::malloc_sync(size) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY | sys::CUresult::CUDA_ERROR_INVALID_VALUE => out_of_memory(),
            _ => lost("memory")(error),
        })
    }

    fn free(&self, address: u64) {
        if self.enter().is_ok() {
            // SAFETY: it came from `allocate`, and nobody uses it any more. What fails is gone with its context.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: `Gpu::write` checked the range; of memory that the device does not write to by itself the driver takes a
        // copy before it returns.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream) }.map_err(lost("writing"))
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        self.enter()?;
        if out.len() > STAGING_BYTES {
            // It waits for the copy, but no longer than that takes.
            self.finish()?;
            // SAFETY: `Gpu::read` checked the range, and `out` is borrowed until the copy is done.
            unsafe { result::memcpy_dtoh_async(out, address, self.stream) }.map_err(lost("reading"))?;
            return self.finish();
        }
        // Nobody else uses the staging memory meanwhile.
        let _tables = self.tables();
        // SAFETY: there is room for as many bytes, which are the driver's until the stream is done.
        let staging = unsafe { std::slice::from_raw_parts_mut(self.staging.cast::<u8>(), out.len()) };
        // SAFETY: `Gpu::read` checked the range.
        unsafe { result::memcpy_dtoh_async(staging, address, self.stream) }.map_err(lost("reading"))?;
        self.finish()?;
        out.copy_from_slice(staging);
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, n_bytes: u64) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: `Gpu::copy` checked the ranges.
        unsafe { result::memcpy_dtod_async(to, from, n_bytes as usize, self.stream) }.map_err(lost("copying"))
    }

    fn kernel(&self, source: &Source, name: &str) -> Result<Kernel, DeviceError> {
        self.enter()?;
        let mut tables = self.tables();
        let module = match tables.modules.get(source) {
            Some(module) => *module,
            None => {
                let compiled = self.compiler.compile(source, self.device.capability, &self.device.driver)?;
                // SAFETY: the image is whole, with the zero at its end where it is a text.
                let module = unsafe { result::module::load_data(compiled.image.as_ptr().cast()) };
                let module = module.map_err(|error| {
                    DeviceError::Refused(format!("kernels '{}' can't be loaded: {}", source.name, said(error)))
                })?;
                tables.modules.insert(source.clone(), module);
                module
            }
        };
        let missing = || DeviceError::Refused(format!("kernels '{}' have no '{name}'", source.name));
        let name = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the module is there until the context is gone.
        let function = unsafe { result::module::get_function(module, name) }.map_err(|_| missing())?;
        Ok(Kernel(function as u64))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        self.enter()?;
        let [x, y, z] = launch.grid;
        let function = launch.kernel.0 as sys::CUfunction;
        let mut args = [launch.args.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the kernel is one of a module that is there; it reads its one argument, which the caller made as it takes
        // it, before this returns.
        unsafe { result::launch_kernel(function, (x, y, z), (launch.threads, 1, 1), 0, self.stream, &mut args) }
            .map_err(lost("a launch"))
    }

    unsafe fn record(&self, launches: &[&Launch]) -> Result<Recording, DeviceError> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is there.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(lost("recording"))?;
        // SAFETY: the caller's.
        let launched = launches.iter().try_for_each(|launch| unsafe { self.launch(launch) });
        // SAFETY: the stream is recording.
        let graph = unsafe { result::stream::end_capture(self.stream) }.map_err(lost("recording"));
        launched?;
        let graph = graph?;
        // SAFETY: the graph is whole.
        let made = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: what was made of it does not need it.
        let _ = unsafe { result::graph::destroy(graph) };
        let mut tables = self.tables();
        tables.graphs.push(Some(made.map_err(lost("a recording"))?));
        Ok(Recording(tables.graphs.len() as u64 - 1))
    }

    unsafe fn replay(&self, recording: Recording) -> Result<(), DeviceError> {
        self.enter()?;
        let graph = self.tables().graphs.get(recording.0 as usize).copied().flatten();
        let Some(graph) = graph else {
            return Err(DeviceError::Refused("a recording that was forgotten".to_owned()));
        };
        // SAFETY: it is there; what it uses is the caller's.
        unsafe { result::graph::launch(graph, self.stream) }.map_err(lost("running a recording"))
    }

    fn forget(&self, recording: Recording) {
        let graph = self.tables().graphs.get_mut(recording.0 as usize).and_then(Option::take);
        if let (Some(graph), Ok(())) = (graph, self.enter()) {
            // SAFETY: nobody has it any more. What fails is gone with its context.
            let _ = unsafe { result::graph::exec_destroy(graph) };
        }
    }

    fn wait(&self) -> Result<(), DeviceError> {
        self.enter()?;
        self.finish()
    }
}
