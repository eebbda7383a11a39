//! Sources of kernels compiled by NVRTC, NVIDIA's compiler as a library, for one kind of device.
//!
//! What was compiled is kept in a folder, in files named after all that it depends on: the text, the kind of device, the
//! compiler and the driver. A file that is not whole is not taken.

use std::ffi::{CString, c_char, c_int};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};

use super::driver::Source;
use crate::backend::DeviceError;

/// Functions of the library that are called here.
const FUNCTIONS: [&[u8]; 11] = [
    b"nvrtcVersion\0",
    b"nvrtcGetNumSupportedArchs\0",
    b"nvrtcGetSupportedArchs\0",
    b"nvrtcCreateProgram\0",
    b"nvrtcCompileProgram\0",
    b"nvrtcDestroyProgram\0",
    b"nvrtcGetProgramLogSize\0",
    b"nvrtcGetProgramLog\0",
    b"nvrtcGetCUBINSize\0",
    b"nvrtcGetCUBIN\0",
    b"nvrtcGetPTX\0",
];

/// Bytes behind what was compiled that say it is whole.
const CHECK_BYTES: usize = 8;

/// The compiler.
pub(super) struct Compiler {
    pub(super) version: String,
    /// Kinds of devices that it compiles for, in ascending order: 90 is 9.0.
    kinds: Vec<u32>,
    /// Where it keeps what it compiled.
    folder: Option<PathBuf>,
}

/// What came of a source.
pub(super) struct Compiled {
    /// For the driver: instructions of the device, or else of PTX, which it compiles on.
    pub(super) image: Vec<u8>,
    /// What the compiler said.
    #[cfg_attr(not(test), allow(dead_code, reason = "registers and spills, for the report"))]
    pub(super) log: String,
}

impl Compiler {
    /// Opens the library.
    ///
    /// # Errors
    /// [`DeviceError::Absent`] where there is none.
    pub(super) fn open(folder: Option<&Path>) -> Result<Self, DeviceError> {
        let absent = |what: &str| {
            DeviceError::Absent(format!("{what}: install libnvrtc of CUDA 12, or say where it is by LD_LIBRARY_PATH"))
        };
        // SAFETY: the library is NVIDIA's; opening it runs nothing else.
        if !unsafe { sys::is_culib_present() } {
            return Err(absent("no compiler for kernels"));
        }
        // SAFETY: it is there.
        let library = unsafe { sys::culib() };
        for function in FUNCTIONS {
            // SAFETY: it is looked for and not called.
            if unsafe { library.get::<unsafe extern "C" fn()>(function) }.is_err() {
                return Err(absent("the compiler for kernels is too old"));
            }
        }
        let (mut major, mut minor, mut n_kinds): (c_int, c_int, c_int) = (0, 0, 0);
        let asked =
            |result: sys::nvrtcResult| result.result().map_err(|error| absent(&format!("the compiler says {error}")));
        // SAFETY: it writes two numbers, then one.
        asked(unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) })?;
        // SAFETY: the same.
        asked(unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut n_kinds) })?;
        let mut kinds = vec![0; n_kinds.max(0) as usize];
        // SAFETY: there is room for as many as it said.
        asked(unsafe { sys::nvrtcGetSupportedArchs(kinds.as_mut_ptr()) })?;
        let mut kinds: Vec<u32> = kinds.into_iter().map(|kind| kind as u32).collect();
        kinds.sort_unstable();
        Ok(Self { version: format!("{major}.{minor}"), kinds, folder: folder.map(Path::to_owned) })
    }

    /// Compiles for devices of a compute capability, or takes what was compiled before. `driver` is that of the device.
    pub(super) fn compile(&self, source: &Source, capability: u32, driver: &str) -> Result<Compiled, DeviceError> {
        let file = self.folder.as_ref().map(|folder| folder.join(self.name(source, capability, driver)));
        if let Some(image) = file.as_ref().and_then(|file| read(file)) {
            return Ok(Compiled { image, log: String::new() });
        }
        let compiled = self.compile_anew(source, capability)?;
        if let Some(file) = file {
            // Without the file it is compiled again next time.
            let _ = write(&file, &compiled.image);
        }
        Ok(compiled)
    }

    fn name(&self, source: &Source, capability: u32, driver: &str) -> String {
        let mut hasher = DefaultHasher::new();
        (&source.text, capability, &self.version, driver).hash(&mut hasher);
        let first = hasher.finish();
        "more bits".hash(&mut hasher);
        format!("{first:016x}{:016x}.bin", hasher.finish())
    }

    fn compile_anew(&self, source: &Source, capability: u32) -> Result<Compiled, DeviceError> {
        let refused = |what: &str| DeviceError::Refused(format!("kernels '{}': {what}", source.name));
        let is_known = self.kinds.contains(&capability);
        let kind = self.kinds.iter().rev().find(|kind| **kind <= capability);
        let Some(kind) = kind else {
            return Err(refused(&format!("the compiler knows no devices of {}.{}", capability / 10, capability % 10)));
        };
        let target = if is_known { format!("sm_{kind}") } else { format!("compute_{kind}") };
        let options = [
            &format!("--gpu-architecture={target}"),
            "--std=c++17",
            "--ptxas-options=-v",
            "--ptxas-options=-warn-spills",
        ];
        let text = CString::new(source.text.as_str()).map_err(|_| refused("a zero in the text"))?;
        let program = result::create_program(&text, None).map_err(|error| refused(&error.to_string()))?;
        // SAFETY: the program was made above and is destroyed below.
        let done = unsafe { result::compile_program(program, &options) };
        let log = log(program);
        let image = match done {
            Err(error) => Err(refused(&format!("{error}: {log}"))),
            Ok(()) => image(program, is_known).map_err(|error| refused(&error.to_string())),
        };
        // SAFETY: it is not used any more. What can go wrong is that it was none.
        let _ = unsafe { result::destroy_program(program) };
        Ok(Compiled { image: image?, log })
    }
}

fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: the program is there.
    let bytes = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let bytes: Vec<u8> = bytes.into_iter().map(|byte| byte as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn image(program: sys::nvrtcProgram, is_of_device: bool) -> Result<Vec<u8>, result::NvrtcError> {
    let bytes: Vec<c_char> = if is_of_device {
        let mut n_bytes = 0;
        // SAFETY: the program is there and was compiled; it writes one number.
        unsafe { sys::nvrtcGetCUBINSize(program, &raw mut n_bytes) }.result()?;
        let mut bytes = vec![0; n_bytes];
        // SAFETY: there is room for as many as it said.
        unsafe { sys::nvrtcGetCUBIN(program, bytes.as_mut_ptr()) }.result()?;
        bytes
    } else {
        // With the zero at its end, which the driver looks for.
        // SAFETY: the program is there and was compiled.
        unsafe { result::get_ptx(program)? }
    };
    Ok(bytes.into_iter().map(|byte| byte as u8).collect())
}

fn check(image: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = DefaultHasher::new();
    image.hash(&mut hasher);
    hasher.finish().to_le_bytes()
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(file).ok()?;
    let image = bytes.len().checked_sub(CHECK_BYTES)?;
    if bytes[image..] != check(&bytes[..image]) {
        return None;
    }
    bytes.truncate(image);
    Some(bytes)
}

/// Writes a file that is there whole or not at all.
fn write(file: &Path, image: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let new = file.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&new, [image, &check(image)].concat())?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_whole_is_not_taken() {
        let file = std::env::temp_dir().join(format!("farpost-compiler-{}/image", std::process::id()));
        write(&file, b"an image").unwrap();
        assert_eq!(read(&file).as_deref(), Some(&b"an image"[..]));
        for cut in [0, 3, 15] {
            let bytes = std::fs::read(&file).unwrap();
            std::fs::write(&file, &bytes[..cut]).unwrap();
            assert_eq!(read(&file), None);
            std::fs::write(&file, bytes).unwrap();
        }
        std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    }
}
