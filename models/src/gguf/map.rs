//! A file's bytes in memory: mapped, or copied, with the identity it had when it was opened.
//!
//! Invariant: the address and length of a [`Map`] never change while it lives. The bytes may, if somebody writes to the
//! file; all readers bounds-check against the length, which is fixed. A file that shrinks is `guard.rs`'s business:
//! every map is registered there from its first byte to its last.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use farpost_kernels::tensor::ByteOwner;
use memmap2::{Mmap, MmapMut};

use super::error::{GgufError, Grouped};
use super::guard::Registration;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device number; 0 where the system has none.
    pub device: u64,
    /// Inode number; 0 where the system has none.
    pub inode: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last modification.
    pub modified: Option<SystemTime>,
}

impl Identity {
    fn of(facts: &fs::Metadata) -> Self {
        #[cfg(unix)]
        let (device, inode) = {
            use std::os::unix::fs::MetadataExt;
            (facts.dev(), facts.ino())
        };
        #[cfg(not(unix))]
        let (device, inode) = (0, 0);
        Self { device, inode, size_bytes: facts.len(), modified: facts.modified().ok() }
    }

    /// The identity of whatever file is at `path` now; another than [`Map::identity`] if it was replaced.
    pub fn at(path: &Path) -> Result<Self, GgufError> {
        fs::metadata(path).map(|facts| Self::of(&facts)).map_err(|source| io_error(path, "look at it", source))
    }
}

/// Bytes of a huge page, which those of files are on x86-64 and on aarch64 with pages of 4 KiB.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;

/// How often this thread has to wait for the system to show it pages of a file, reading places all over these bytes: once
/// for a huge page.
#[cfg(target_os = "linux")]
fn faults_of(bytes: &[u8; HUGE_PAGE]) -> i64 {
    /// The system shows about as many bytes at once when pages are small.
    const STEP: usize = 64 << 10;
    let faults = || {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: there is room for the answer, which is all numbers.
        unsafe {
            libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
            usage.assume_init().ru_minflt
        }
    };
    let before = faults();
    for place in bytes.iter().step_by(STEP) {
        std::hint::black_box(*place);
    }
    faults() - before
}

/// The bytes of one file.
pub struct Map {
    name: String,
    bytes: Mmap,
    /// Kept open to ask for the size later; `None` for a copy, which nothing outside can change.
    file: Option<fs::File>,
    identity: Identity,
    registration: Option<Registration>,
}

impl Map {
    /// Maps the file at `path`, shared and read-only.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (file, identity, size) = open_regular(path)?;
        if size == 0 {
            return Self::empty(path, identity);
        }
        // SAFETY: the mapping is read-only and private to this value, and lives as long as it. Another program may
        // write to the file meanwhile: every reader treats the bytes as untrusted and bounds-checks against the fixed
        // length of the map, and reads beyond the end of a shortened file are the guard's (see guard.rs).
        let bytes = unsafe { memmap2::MmapOptions::new().len(size).map(&file) };
        let bytes = bytes.map_err(|source| io_error(path, "map it into memory", source))?;
        // Huge pages, where the file system has them: a third of the time to read a file that is not cached yet, and
        // weights are read faster ever after. A refused hint changes nothing but speed.
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        let registration = Some(Registration::new(bytes.as_ptr() as usize, bytes.len()));
        Ok(Self { name: path.display().to_string(), bytes, file: Some(file), identity, registration })
    }

    /// Reads the file at `path` into private, page-aligned memory.
    pub fn copy(path: &Path) -> Result<Self, GgufError> {
        let (mut file, identity, size) = open_regular(path)?;
        if size == 0 {
            return Self::empty(path, identity);
        }
        let no_memory = |source| io_error(path, "find memory for a copy of it", source);
        let mut bytes = MmapMut::map_anon(size).map_err(no_memory)?;
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        file.read_exact(&mut bytes).map_err(|source| io_error(path, "read all of it", source))?;
        let bytes = bytes.make_read_only().map_err(no_memory)?;
        Ok(Self { name: path.display().to_string(), bytes, file: None, identity, registration: None })
    }

    /// A file of no bytes: systems refuse to map it, the parser will say what is missing.
    fn empty(path: &Path, identity: Identity) -> Result<Self, GgufError> {
        let bytes = MmapMut::map_anon(0).and_then(MmapMut::make_read_only);
        let bytes = bytes.map_err(|source| io_error(path, "map it into memory", source))?;
        Ok(Self { name: path.display().to_string(), bytes, file: None, identity, registration: None })
    }

    /// The identity the file had when it was opened.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// True once the guard had to put zero pages in place of bytes the file no longer has.
    pub fn is_damaged(&self) -> bool {
        self.registration.as_ref().is_some_and(Registration::is_damaged)
    }

    /// Refuses if the mapped file is no longer what it was when it was opened. A copy never changes.
    pub fn check_unchanged(&self) -> Result<(), GgufError> {
        let Some(file) = &self.file else { return Ok(()) };
        let facts = file.metadata().map_err(|source| GgufError::Io {
            file: self.name.clone(),
            action: "look at it",
            source,
        })?;
        let now = Identity::of(&facts);
        let change = if now.size_bytes != self.identity.size_bytes {
            let (before, now) = (Grouped(self.identity.size_bytes), Grouped(now.size_bytes));
            format!("its size went from {before} to {now} bytes")
        } else if self.is_damaged() {
            "parts of it could not be read".to_owned()
        } else if now != self.identity {
            "it was written to (its modification time is another)".to_owned()
        } else {
            return Ok(());
        };
        Err(GgufError::Changed { file: self.name.clone(), change })
    }

    /// Whether the system has the file cached, as far as some pages all over it tell; true where it can't be asked.
    pub(super) fn is_cached(&self) -> bool {
        #[cfg(target_os = "linux")]
        if self.file.is_some() {
            /// Places asked for: some ten microseconds.
            const SAMPLES: usize = 64;
            /// Bytes between places that a page begins at, on any system.
            const STEP: usize = 64 << 10;
            let steps = self.bytes.len() / STEP;
            let n_samples = SAMPLES.min(steps);
            return (0..n_samples).all(|sample| {
                let at = sample * steps / n_samples * STEP;
                let mut state = 1_u8;
                // SAFETY: the byte lies in the map; one byte is one page, which has one state.
                let asked = unsafe { libc::mincore(self.bytes.as_ptr().add(at).cast_mut().cast(), 1, &raw mut state) };
                asked != 0 || state & 1 != 0
            });
        }
        true
    }

    /// Brings the `len` bytes from `start` on into memory and waits for them; false where there are none, or the system
    /// does not do that. A file that was cut is no danger: the system says so instead of raising a signal.
    pub(super) fn read_piece(&self, start: usize, len: usize) -> bool {
        #[cfg(target_os = "linux")]
        if self.file.is_some() && start < self.bytes.len() {
            let len = len.min(self.bytes.len() - start);
            return self.bytes.advise_range(memmap2::Advice::PopulateRead, start, len).is_ok();
        }
        let _ = (start, len);
        false
    }

    /// Whether the first `len` bytes, which are cached, lie there in small pages: as they were written, and not read from
    /// the disk since. Weights are read more slowly from these. False where that can't be told.
    pub(super) fn is_in_small_pages(&self, len: usize) -> bool {
        #[cfg(target_os = "linux")]
        if self.file.is_some() {
            /// Huge pages looked at: some hundred microseconds.
            const SAMPLES: usize = 8;
            let huge = self.bytes[..len.min(self.bytes.len())].as_chunks::<HUGE_PAGE>().0;
            let n_samples = SAMPLES.min(huge.len());
            // In a map that does not begin at one there are none.
            if n_samples == 0 || !self.bytes.as_ptr().addr().is_multiple_of(HUGE_PAGE) {
                return false;
            }
            let is_small = |sample: &usize| {
                let number = sample * huge.len() / n_samples;
                // What was shown before does not have to be waited for.
                self.release_piece(number * HUGE_PAGE, HUGE_PAGE);
                faults_of(&huge[number]) > 1
            };
            return 2 * (0..n_samples).filter(is_small).count() > n_samples;
        }
        let _ = len;
        false
    }

    /// Drops the `len` bytes from `start` on from the system's cache, and brings them back from the file as
    /// [`Map::read_piece`] does; false as there. What others have mapped stays. All who read meanwhile wait for the file.
    pub(super) fn read_piece_again(&self, start: usize, len: usize) -> bool {
        #[cfg(target_os = "linux")]
        if let Some(file) = self.file.as_ref().filter(|_| start < self.bytes.len()) {
            use std::os::fd::AsRawFd;
            let len = len.min(self.bytes.len() - start);
            self.release_piece(start, len);
            let (start, len) = (start as libc::off_t, len as libc::off_t);
            // SAFETY: a hint about the cache.
            let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), start, len, libc::POSIX_FADV_DONTNEED) };
        }
        self.read_piece(start, len)
    }

    /// As [`Map::release`], of `len` bytes from `start` on, which are there.
    #[cfg(target_os = "linux")]
    fn release_piece(&self, start: usize, len: usize) {
        // SAFETY: as in `release`.
        let _ = unsafe { self.bytes.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
    }

    /// Tells the system that the pages are not needed now, so that they no longer count as this program's memory.
    ///
    /// The next read brings them back from the file (most often from the system's cache).
    pub(super) fn release(&self) {
        #[cfg(unix)]
        if self.file.is_some() {
            // SAFETY: the map is shared and file-backed, so dropped pages come back with the file's bytes: readers see
            // what they may see at any time anyway (see `open`). A zero page that the guard put in place of a lost one
            // is zero again when it comes back. A refused hint changes nothing but memory.
            let _ = unsafe { self.bytes.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // Before the pages go: an address must never be registered once something else may be mapped there.
        self.registration = None;
    }
}

impl ByteOwner for Map {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn io_error(path: &Path, action: &'static str, source: std::io::Error) -> GgufError {
    GgufError::Io { file: path.display().to_string(), action, source }
}

/// Opens a plain file. Looks before opening, because opening a pipe would wait for its other end.
fn open_regular(path: &Path) -> Result<(fs::File, Identity, usize), GgufError> {
    let refuse = |source| io_error(path, "open it", source);
    let facts = fs::metadata(path).map_err(refuse)?;
    if !facts.is_file() {
        let what = if facts.is_dir() { "it is a folder" } else { "it is not a plain file" };
        return Err(refuse(std::io::Error::new(std::io::ErrorKind::InvalidInput, what)));
    }
    let file = fs::File::open(path).map_err(refuse)?;
    let identity = Identity::of(&file.metadata().map_err(refuse)?);
    let size = usize::try_from(identity.size_bytes).ok().filter(|&size| isize::try_from(size).is_ok());
    let too_large = || std::io::Error::new(std::io::ErrorKind::OutOfMemory, "it is larger than the address range");
    Ok((file, identity, size.ok_or_else(|| io_error(path, "map it into memory", too_large()))?))
}
