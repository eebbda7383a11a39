//! A file under a temporary name in the folder of the final one, which it gets only when it is whole and on the disk;
//! given up, it leaves nothing behind.
//!
//! Renaming would replace whatever has the final name: only a plain file may be there, and links are followed first.
//!
//! A program that is killed can't remove its file. Whoever writes holds a lock on it, so the next who writes a file of the
//! same name sees that nobody does any more, and removes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::error::GgufError;

/// Links followed before it must be a circle, as Linux has it.
const MOST_LINKS: usize = 40;

/// What temporary names end in.
const ENDING: &str = ".partial";
/// Younger files may be of somebody who has not locked them yet.
const LEAST_AGE: Duration = Duration::from_secs(60);

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
        remove_stale(&target, &temporary);
        temporary.push(format!(".{}-{number}{ENDING}", std::process::id()));
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
        // Where the system knows no locks, what is left of a killed program stays.
        let _ = file.try_lock();
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

/// Removes what killed programs have left of files that were to become `target`: they begin with `beginning`, and nobody
/// holds them.
fn remove_stale(target: &Path, beginning: &std::ffi::OsStr) {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let (name, beginning) = (entry.file_name(), beginning.as_encoded_bytes());
        let number = name.as_encoded_bytes().strip_prefix(beginning).and_then(|rest| rest.strip_prefix(b"."));
        let number = number.and_then(|rest| rest.strip_suffix(ENDING.as_bytes()));
        let is_ours = number.is_some_and(|number| {
            number.contains(&b'-') && number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-')
        });
        let is_old = |facts: fs::Metadata| {
            let age = SystemTime::now().duration_since(facts.modified()?);
            Ok::<_, io::Error>(facts.is_file() && age.is_ok_and(|age| age >= LEAST_AGE))
        };
        if !is_ours || !entry.metadata().and_then(is_old).unwrap_or(false) {
            continue;
        }
        let is_free = fs::File::options().write(true).open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if is_free {
            // At worst it stays, as before.
            let _ = fs::remove_file(entry.path());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_program_has_left_is_removed_by_the_next_and_what_is_written_is_not() {
        let folder = std::env::temp_dir().join(format!("farpost-partial-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let target = folder.join("a.pack");
        let old = SystemTime::now() - 2 * LEAST_AGE;
        let make = |name: &str| {
            let file = fs::File::create(folder.join(name)).unwrap();
            file.set_modified(old).unwrap();
            file
        };
        // Nobody holds these; only the first is one of a file of this name.
        for name in [".a.pack.77-0.partial", ".a.pack.x.partial", ".b.pack.77-0.partial", "a.pack.77-0.partial"] {
            drop(make(name));
        }
        // Somebody writes this one, slowly, and has just begun another.
        let held = make(".a.pack.78-3.partial");
        held.try_lock().unwrap();
        drop(fs::File::create(folder.join(".a.pack.79-0.partial")).unwrap());
        let (partial, file) = Partial::create(&target).unwrap();
        let mut names: Vec<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.contains(&format!("{}-", std::process::id())))
            .collect();
        names.sort();
        let kept = [
            ".a.pack.78-3.partial",
            ".a.pack.79-0.partial",
            ".a.pack.x.partial",
            ".b.pack.77-0.partial",
            "a.pack.77-0.partial",
        ];
        assert_eq!(names, kept);
        drop((file, held));
        partial.rename().unwrap();
        assert!(target.is_file());
        fs::remove_dir_all(&folder).unwrap();
    }
}
