//! The folder for what is worth keeping from one run of the program to the next: compiled shaders, what came of self-tests.
//! Everything in it can be made again, so nothing that goes wrong here is told.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use farpost_kernels::keep::{Keep, Nowhere};

/// Longest file that is read.
const MOST_BYTES: u64 = 256 << 20;

/// Files in a folder.
struct Folder(PathBuf);

/// Where the user, or a service, keeps such things; nowhere if nobody knows a home.
pub fn of_user() -> Arc<dyn Keep> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // A home that is not there is not made.
    match folder(|name| set(name).filter(|path| name != "HOME" || path.is_dir())) {
        Some(folder) => Arc::new(Folder(folder)),
        None => Arc::new(Nowhere),
    }
}

/// `FARPOST_CACHE`, or the folder that systemd gives a service, or that of the user.
fn folder(set: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let of_home = || set("HOME").map(|home| home.join(".cache"));
    let of_user = || set("XDG_CACHE_HOME").or_else(of_home).or_else(|| set("LOCALAPPDATA"));
    set("FARPOST_CACHE").or_else(|| set("CACHE_DIRECTORY")).or_else(|| Some(of_user()?.join("farpost")))
}

impl Keep for Folder {
    fn load(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.0.join(name);
        let length = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?.len();
        if length > MOST_BYTES {
            return None;
        }
        fs::read(path).ok()
    }

    /// Under another name first, so that nobody ever reads half of it.
    fn save(&self, name: &str, bytes: &[u8]) {
        let whole = || {
            create_private(&self.0)?;
            let begun = self.0.join(format!("{name}.{}.new", std::process::id()));
            let written = fs::File::create(&begun).and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            });
            let renamed = written.and_then(|()| fs::rename(&begun, self.0.join(name)));
            if renamed.is_err() {
                let _ = fs::remove_file(&begun);
            }
            renamed
        };
        let _: std::io::Result<()> = whole();
    }
}

/// Makes a folder that nobody else writes to: drivers trust what they once gave away.
fn create_private(folder: &std::path::Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_one_asked_for_or_that_of_a_service_or_the_user() {
        let of = |set: &[(&str, &str)]| {
            let set = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| PathBuf::from(value));
            folder(set).map(|folder| folder.display().to_string())
        };
        let home = ("HOME", "/h");
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[home]).as_deref(), Some("/h/.cache/farpost"));
        assert_eq!(of(&[home, ("XDG_CACHE_HOME", "/x")]).as_deref(), Some("/x/farpost"));
        assert_eq!(of(&[home, ("CACHE_DIRECTORY", "/var/cache/farpost")]).as_deref(), Some("/var/cache/farpost"));
        assert_eq!(of(&[home, ("CACHE_DIRECTORY", "/c"), ("FARPOST_CACHE", "/f")]).as_deref(), Some("/f"));
    }

    #[test]
    fn what_is_kept_is_whole_and_what_cannot_be_kept_is_not_there() {
        let place = std::env::temp_dir().join(format!("farpost-kept-{}", std::process::id()));
        let folder = Folder(place.join("deep/er"));
        assert_eq!(folder.load("name"), None);
        folder.save("name", b"first");
        folder.save("name", b"second");
        assert_eq!(folder.load("name").as_deref(), Some(&b"second"[..]));
        let names: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["name"], "nothing half written is left");
        // A file where the folder should be.
        let blocked = Folder(folder.0.join("name"));
        blocked.save("other", b"x");
        assert_eq!(blocked.load("other"), None);
        fs::remove_dir_all(place).unwrap();
    }
}
