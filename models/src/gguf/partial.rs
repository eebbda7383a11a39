//! A file under a temporary name in the folder of the final one, which it gets only when it is whole and on the disk;
//! given up, it leaves nothing behind.
//!
//! Renaming would replace whatever has the final name: only a plain file may be there, and links are followed first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::GgufError;

/// Links followed before it must be a circle, as Linux has it.
const MOST_LINKS: usize = 40;

/// A file being written under a temporary name; removed when dropped before [`Partial::rename`].
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    target: PathBuf,
    /// As the caller named it.
    shown: String,
    is_renamed: bool,
}

impl Partial {
    /// An empty file that can become `target`, with the permissions of what is there.
    ///
    /// # Errors
    /// What the system refuses, and a target that is there and no plain file.
    pub fn create(target: &Path) -> Result<(Self, fs::File), GgufError> {
        Self::create_for(target, false)
    }

    /// The same, but only its owner may read and write it (on Unix), whatever is there now.
    ///
    /// # Errors
    /// As [`Partial::create`].
    pub fn create_private(target: &Path) -> Result<(Self, fs::File), GgufError> {
        Self::create_for(target, true)
    }

    fn create_for(target: &Path, is_private: bool) -> Result<(Self, fs::File), GgufError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let shown = target.display().to_string();
        let fail = |source| GgufError::Io { file: shown.clone(), action: "create it", source };
        let target = followed(target).map_err(fail)?;
        let replaced = replaceable(&target).map_err(fail)?;
        let Some(name) = target.file_name() else {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file")));
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{number}.partial", std::process::id()));
        let path = target.with_file_name(temporary);
        // Where nothing is replaced, for whoever the umask allows, as any file a user makes; never somebody else's file.
        let mut options = fs::File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        let permissions = {
            use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
            let private = is_private.then(|| fs::Permissions::from_mode(0o600));
            let permissions = private.or_else(|| replaced.map(|facts| facts.permissions()));
            // From the start: nobody shall read meanwhile what was not for them.
            permissions.iter().for_each(|permissions| {
                options.mode(permissions.mode() & 0o777);
            });
            permissions
        };
        let file = options.open(&path).map_err(fail)?;
        let partial = Self { path, target, shown: shown.clone(), is_renamed: false };
        #[cfg(unix)]
        if let Some(permissions) = permissions {
            // The umask may have taken some away.
            file.set_permissions(permissions).map_err(fail)?;
        }
        #[cfg(not(unix))]
        drop((replaced, is_private));
        Ok((partial, file))
    }

    /// Gives it its name, on the disk too. What was written must be on the disk before.
    ///
    /// # Errors
    /// What the system refuses, and something else than a plain file that came there meanwhile.
    pub fn rename(mut self) -> Result<(), GgufError> {
        let fail = |source| GgufError::Io { file: self.shown.clone(), action: "rename into place", source };
        // Something else may have come there meanwhile.
        replaceable(&self.target).map_err(fail)?;
        fs::rename(&self.path, &self.target).map_err(fail)?;
        // The name is safe only when the folder is on the disk too.
        #[cfg(unix)]
        let synced = {
            let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
            fs::File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(fail)
        };
        #[cfg(not(unix))]
        let synced = Ok(());
        self.is_renamed = true;
        synced
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_renamed {
            // Nobody is left to tell: at worst a hidden file stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where `path` leads to if it is a link, so that the link stays; the last of them may lead to nothing yet.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..=MOST_LINKS {
        match fs::read_link(&path) {
            Ok(next) => path = path.parent().unwrap_or(Path::new("")).join(next),
            // No link, or nothing that can be looked at: creating the file tells.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "the link leads to no end"))
}

/// What is there and may be replaced: a plain file, or nothing.
fn replaceable(path: &Path) -> io::Result<Option<fs::Metadata>> {
    let facts = match fs::symlink_metadata(path) {
        Ok(facts) => facts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if facts.is_file() {
        return Ok(Some(facts));
    }
    let what = if facts.is_dir() { "it is a folder" } else { "it is not a plain file" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}
