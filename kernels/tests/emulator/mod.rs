//! A driver of the CUDA backend that runs its kernels on the processor.
//!
//! The very sources that a graphics processor gets are compiled by the C++ compiler of the system, with `shim.h` before
//! them, and loaded. Memory ends where the next page can't be touched and is full of numbers that are none, so what is read
//! or written behind a buffer ends the test, and what is read before it is written shows in results.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farpost_kernels::backend::DeviceError;
use farpost_kernels::cuda::Cuda;
use farpost_kernels::cuda::driver::{Device, Driver, Kernel, Launch, Recording, Source};
use libloading::Library;

const SHIM: &str = include_str!("shim.h");

/// Bytes that the system protects at a time, at most.
const PAGE: usize = 64 << 10;

/// What a kernel is here: its argument and its size, blocks, threads; says what went wrong.
type Run = unsafe extern "C" fn(*const u8, usize, *const u32, u32) -> *const std::ffi::c_char;

/// A device of the processor's: 72 has products of four bytes at a time only, 80 and more those of tiles too.
pub fn open(capability: u32) -> Option<Cuda> {
    if Command::new("g++").arg("--version").output().is_err() {
        println!("skipped: no C++ compiler; install g++");
        return None;
    }
    Some(Cuda::with(move || Ok(Arc::new(Emulator { capability, state: Mutex::default() }))).unwrap())
}

/// The driver.
struct Emulator {
    capability: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: HashMap<u64, Allocation>,
    modules: HashMap<Source, Library>,
    kernels: Vec<Run>,
    recordings: Vec<Option<Vec<Launch>>>,
}

/// Memory of the system's, whose last bytes a buffer is.
struct Allocation {
    start: *mut libc::c_void,
    n_bytes: usize,
}

// SAFETY: it is memory, used under the lock of the driver.
unsafe impl Send for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and nobody uses it any more.
        unsafe { libc::munmap(self.start, self.n_bytes) };
    }
}

impl Emulator {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(state: &State, launch: &Launch) -> Result<(), DeviceError> {
        // Libraries are those of all drivers of the process, and what threads of a block share is in them.
        static RUNNING: Mutex<()> = Mutex::new(());
        let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the function is one that the shim made; its argument is as long as is said, or it says it is not.
        let error = unsafe {
            let run = state.kernels[launch.kernel.0 as usize];
            run(launch.args.as_ptr(), launch.args.len(), launch.grid.as_ptr(), launch.threads)
        };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: what it says is a text of its library, which is there.
        let error = unsafe { std::ffi::CStr::from_ptr(error) };
        Err(DeviceError::Wrong(format!("a launch of {launch:?}: {}", error.to_string_lossy())))
    }
}

/// Where libraries are kept, by all that goes into them.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/emulator")
}

fn library(source: &Source, capability: u32) -> Library {
    let mut hasher = DefaultHasher::new();
    (SHIM, &source.text, capability).hash(&mut hasher);
    let file = folder().join(format!("{:016x}.so", hasher.finish()));
    if !file.exists() {
        std::fs::create_dir_all(folder()).unwrap();
        let mine = |end: &str| file.with_extension(format!("{}.{end}", std::process::id()));
        let (text, built) = (mine("cpp"), mine("so"));
        std::fs::write(&text, format!("#define ARCH {}\n{SHIM}\n{}", capability * 10, source.text)).unwrap();
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-O2", "-shared", "-fPIC", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-o"]);
        let output = compiler.args([&built, &text]).output().unwrap();
        assert!(output.status.success(), "{}: {}", source.name, String::from_utf8_lossy(&output.stderr));
        std::fs::remove_file(&text).unwrap();
        std::fs::rename(&built, &file).unwrap();
    }
    // SAFETY: the library was made above, of sources that are trusted; nothing runs when it is loaded.
    unsafe { Library::new(&file) }.unwrap()
}

impl Driver for Emulator {
    fn device(&self) -> Device {
        Device {
            name: "emulated graphics processor".to_owned(),
            driver: "C++".to_owned(),
            memory_bytes: 1 << 30,
            capability: self.capability,
            n_processors: 1,
        }
    }

    fn allocate(&self, what: &'static str, n_bytes: u64) -> Result<u64, DeviceError> {
        let out_of_memory = DeviceError::OutOfMemory { what, needed_bytes: n_bytes, free_bytes: None };
        if n_bytes > 1 << 34 {
            return Err(out_of_memory);
        }
        let own = (n_bytes as usize).next_multiple_of(PAGE);
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory of the system's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), own + PAGE, access, kind | libc::MAP_NORESERVE, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(out_of_memory);
        }
        let allocation = Allocation { start, n_bytes: own + PAGE };
        // SAFETY: the last page of what was mapped above, the bytes before it.
        let address = unsafe {
            assert_eq!(libc::mprotect(start.byte_add(own), PAGE, libc::PROT_NONE), 0);
            let address = start.byte_add(own - n_bytes as usize);
            // Of what nobody writes nobody needs pages: large buffers stay as they are.
            if n_bytes <= 16 << 20 {
                address.cast::<u8>().write_bytes(0xFF, n_bytes as usize);
            }
            address as u64
        };
        self.state().memory.insert(address, allocation);
        Ok(address)
    }

    fn free(&self, address: u64) {
        self.state().memory.remove(&address);
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let _state = self.state();
        // SAFETY: the backend checked the range of what `allocate` gave.
        unsafe { (address as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let _state = self.state();
        // SAFETY: the same.
        unsafe { (address as *const u8).copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, n_bytes: u64) -> Result<(), DeviceError> {
        let _state = self.state();
        // SAFETY: the same.
        unsafe { (from as *const u8).copy_to(to as *mut u8, n_bytes as usize) };
        Ok(())
    }

    fn kernel(&self, source: &Source, name: &str) -> Result<Kernel, DeviceError> {
        let mut state = self.state();
        if !state.modules.contains_key(source) {
            state.modules.insert(source.clone(), library(source, self.capability));
        }
        // SAFETY: the shim gives every kernel this type; libraries are there as long as the driver.
        let run = unsafe { *state.modules[source].get::<Run>(name.as_bytes()).unwrap() };
        state.kernels.push(run);
        Ok(Kernel(state.kernels.len() as u64 - 1))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        Self::run(&self.state(), launch)
    }

    unsafe fn record(&self, launches: &[&Launch]) -> Result<Recording, DeviceError> {
        let mut state = self.state();
        state.recordings.push(Some(launches.iter().copied().cloned().collect()));
        Ok(Recording(state.recordings.len() as u64 - 1))
    }

    unsafe fn replay(&self, recording: Recording) -> Result<(), DeviceError> {
        let state = self.state();
        let launches = state.recordings[recording.0 as usize].as_ref().expect("it was not forgotten");
        launches.iter().try_for_each(|launch| Self::run(&state, launch))
    }

    fn forget(&self, recording: Recording) {
        self.state().recordings[recording.0 as usize] = None;
    }

    fn wait(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
