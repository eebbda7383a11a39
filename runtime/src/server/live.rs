//! Settings that are read from files while the server runs: read again when a file changes, or when told to. What can't
//! be read leaves in force what was read before.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::options::ServerError;

/// Bytes of a file of settings, at most.
const MOST_BYTES: u64 = 4 << 20;

/// A file's time of change and its size; `None` where there is none.
type Stamp = Option<(SystemTime, u64)>;

/// What is read from files, as it stands.
pub(super) struct Live<T> {
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, ServerError> + Send + Sync>,
    current: Mutex<Arc<T>>,
    stamps: Mutex<Vec<Stamp>>,
}

impl<T> Live<T> {
    /// Reads for the first time. `files` are those that `read` reads.
    pub(super) fn new(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, ServerError> + Send + Sync + 'static,
    ) -> Result<Self, ServerError> {
        let stamps = stamps(&files);
        let current = Mutex::new(Arc::new(read()?));
        Ok(Self { files, read: Box::new(read), current, stamps: Mutex::new(stamps) })
    }

    /// What was read last without error.
    pub(super) fn get(&self) -> Arc<T> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads again if a file has changed, or in any case. `None` if it was not read.
    pub(super) fn refresh(&self, in_any_case: bool) -> Option<Result<(), ServerError>> {
        // Before they are read: what changes meanwhile is read the next time.
        let now = stamps(&self.files);
        let mut known = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == now && !in_any_case {
            return None;
        }
        *known = now;
        Some((self.read)().map(|new| *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(new)))
    }

    /// The files, for messages.
    pub(super) fn names(&self) -> String {
        self.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let metadata = fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().map(stamp).collect()
}

/// All of a file of settings. `expected` says what it should be.
pub(super) fn read(path: &Path, expected: &'static str) -> Result<Vec<u8>, ServerError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    match file {
        Err(error) => Err(wrong(path, format!("cannot read it: {error}, expected {expected}"))),
        Ok(_) if bytes.len() as u64 > MOST_BYTES => {
            Err(wrong(path, format!("is larger than {MOST_BYTES} bytes, expected {expected}")))
        }
        Ok(_) => Ok(bytes),
    }
}

/// A file that is not what it should be.
pub(super) fn wrong(path: &Path, problem: String) -> ServerError {
    ServerError::File { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_again_when_they_change_and_bad_ones_change_nothing() {
        let path = std::env::temp_dir().join(format!("farpost-live-{}", std::process::id()));
        fs::write(&path, "1").unwrap();
        let file = path.clone();
        let number = move || {
            let text = String::from_utf8(read(&file, "a number")?).unwrap();
            text.parse::<u32>().map_err(|_| wrong(&file, format!("holds {text:?}, expected a number")))
        };
        let live = Live::new(vec![path.clone()], number).unwrap();
        assert!(live.refresh(false).is_none());
        fs::write(&path, "22").unwrap();
        assert!(live.refresh(false).unwrap().is_ok());
        fs::write(&path, "two").unwrap();
        let error = live.refresh(false).unwrap().unwrap_err().to_string();
        assert_eq!(error, format!("{}: holds \"two\", expected a number", path.display()));
        assert_eq!((*live.get(), live.refresh(false).is_none()), (22, true));
        fs::remove_file(&path).unwrap();
        assert!(live.refresh(false).unwrap().is_err() && live.refresh(true).unwrap().is_err());
        assert_eq!(*live.get(), 22);
    }
}
