//! Which file a model's name stands for: a path, a folder with one model, or a name in the model folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ENDING: &str = ".gguf";

/// Why a name stands for no file.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// Neither a file nor a model in the folder.
    #[error("{name}: there is no such file, and {place}")]
    NotFound {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// Something that can't be a name.
    #[error("model name {name:?} {problem}, expected a path, a folder or a name in the model folder")]
    BadName {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A folder without models.
    #[error("{}: there is no .gguf file in this folder", folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder with several.
    #[error("{}: the folder holds {} models, name one: {}", folder.display(), names.len(), names.join(", "))]
    Several {
        /// The folder.
        folder: PathBuf,
        /// Their files; of split models the first.
        names: Vec<String>,
    },
    /// A folder that can't be listed.
    #[error("{}: cannot list the folder: {source}", folder.display())]
    Unreadable {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A model in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name: that of its file without the ending, and without the number of its part.
    pub name: String,
    /// Its file; of a split model the first.
    pub path: PathBuf,
    /// Size of all its files.
    pub size_bytes: u64,
}

/// The folder in which models are found by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Library {
    folder: Option<PathBuf>,
}

impl Library {
    /// Models in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// The user's model folder: `FARPOST_MODELS`, else `farpost/models` in `XDG_DATA_HOME` or `~/.local/share`.
    pub fn of_user() -> Self {
        Self::from_settings(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }

    fn from_settings(set: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let data = || set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
        Self { folder: set("FARPOST_MODELS").or_else(|| Some(data()?.join("farpost/models"))) }
    }

    /// Where it is; `None` if nobody knows a home.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The models in it, by name.
    pub fn models(&self) -> Result<Vec<Entry>, LibraryError> {
        self.folder().map_or(Ok(Vec::new()), models_in)
    }

    /// The file that `name` stands for.
    ///
    /// What exists as a file or folder is that; else a name without separators is looked for in the model folder, with
    /// the ending `.gguf` or without.
    pub fn resolve(&self, name: &str) -> Result<PathBuf, LibraryError> {
        let refuse = |problem| Err(LibraryError::BadName { name: name.to_owned(), problem });
        if name.is_empty() {
            return refuse("is empty");
        }
        if name.contains('\0') {
            return refuse("holds a NUL");
        }
        let path = Path::new(name);
        if path.is_dir() {
            return only_model_in(path);
        }
        if path.exists() {
            return Ok(path.to_owned());
        }
        let not_found = |place| Err(LibraryError::NotFound { name: name.to_owned(), place });
        let is_name = !name.contains(std::path::is_separator) && name != "." && name != "..";
        let Some(folder) = self.folder() else { return not_found("no model folder is known".to_owned()) };
        if !is_name {
            return not_found("paths are not looked for in the model folder".to_owned());
        }
        let inside = folder.join(name);
        if inside.is_dir() {
            return only_model_in(&inside);
        }
        if inside.is_file() {
            return Ok(inside);
        }
        match models_in(folder) {
            Ok(models) => match models.into_iter().find(|model| model.name == name) {
                Some(model) => Ok(model.path),
                None => not_found(format!("none in {}", folder.display())),
            },
            Err(LibraryError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                not_found(format!("there is no model folder {}", folder.display()))
            }
            Err(error) => Err(error),
        }
    }
}

fn only_model_in(folder: &Path) -> Result<PathBuf, LibraryError> {
    let models = models_in(folder)?;
    match models.as_slice() {
        [] => Err(LibraryError::Empty { folder: folder.to_owned() }),
        [only] => Ok(only.path.clone()),
        several => {
            let file_name = |model: &Entry| model.path.file_name().map(|name| name.to_string_lossy().into_owned());
            let names = several.iter().filter_map(file_name).collect();
            Err(LibraryError::Several { folder: folder.to_owned(), names })
        }
    }
}

/// The models in `folder`, ordered by name; the parts of a split model are one. Links are followed: a model folder is
/// often made of them.
fn models_in(folder: &Path) -> Result<Vec<Entry>, LibraryError> {
    let unreadable = |source| LibraryError::Unreadable { folder: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let Ok(file) = entry.file_name().into_string() else { continue };
        let Some(stem) = file.strip_suffix(ENDING) else { continue };
        let Ok(facts) = fs::metadata(entry.path()) else { continue };
        if facts.is_file() {
            let (name, n_parts) = split_name(stem).unwrap_or((stem, 1));
            files.push((name.to_owned(), n_parts, entry.path(), facts.len()));
        }
    }
    files.sort();
    let parts = files.chunk_by(|a, b| a.1 > 1 && (&a.0, a.1) == (&b.0, b.1));
    let whole = parts.filter_map(|parts| {
        let (name, _, path, _) = parts.first()?;
        let size_bytes = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.3));
        Some(Entry { name: name.clone(), path: path.clone(), size_bytes })
    });
    Ok(whole.collect())
}

/// Name and number of parts of a model whose part is called `stem`: `m-00002-of-00003` is one of 3 of `m`.
fn split_name(stem: &str) -> Option<(&str, u32)> {
    let (rest, n_parts) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number(number) && is_number(n_parts) { Some((name, n_parts.parse().ok()?)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is gone when the test is over.
    struct Folder(PathBuf);

    impl Folder {
        fn with(test: &str, files: &[&str]) -> Self {
            let path = std::env::temp_dir().join(format!("farpost-library-{}-{test}", std::process::id()));
            for file in files {
                let file = path.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, "12345").unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const FILES: [&str; 7] = [
        "a.gguf",
        "b-00001-of-00002.gguf",
        "b-00002-of-00002.gguf",
        "notes.txt",
        "one/only.gguf",
        "two/x.gguf",
        "two/y.gguf",
    ];

    #[test]
    fn models_are_listed_by_name_and_parts_are_one() {
        let folder = Folder::with("list", &FILES);
        let models = Library::at(&folder.0).models().unwrap();
        let listed: Vec<_> = models.iter().map(|model| (model.name.as_str(), model.size_bytes)).collect();
        assert_eq!(listed, [("a", 5), ("b", 10)]);
        assert_eq!(models[1].path, folder.0.join(FILES[1]));
    }

    #[test]
    fn names_paths_and_folders_lead_to_files() {
        let folder = Folder::with("resolve", &FILES);
        let library = Library::at(&folder.0);
        let inside = |name: &str| folder.0.join(name);
        for (name, file) in [("a", "a.gguf"), ("a.gguf", "a.gguf"), ("b", FILES[1]), ("one", "one/only.gguf")] {
            assert_eq!(library.resolve(name).unwrap(), inside(file), "{name}");
        }
        for (path, file) in [("a.gguf", "a.gguf"), ("one", "one/only.gguf"), ("one/only.gguf", "one/only.gguf")] {
            let path = inside(path);
            assert_eq!(Library::default().resolve(path.to_str().unwrap()).unwrap(), inside(file));
        }
    }

    #[test]
    fn what_leads_to_no_file_or_to_several_is_told() {
        let folder = Folder::with("refuse", &FILES);
        fs::create_dir_all(folder.0.join("none")).unwrap();
        let library = Library::at(&folder.0);
        let message = |name: &str| library.resolve(name).unwrap_err().to_string();
        let place = folder.0.display();
        assert_eq!(message("two"), format!("{place}/two: the folder holds 2 models, name one: x.gguf, y.gguf"));
        assert_eq!(message("none"), format!("{place}/none: there is no .gguf file in this folder"));
        assert_eq!(message("c"), format!("c: there is no such file, and none in {place}"));
        assert_eq!(
            message("x/y.gguf"),
            "x/y.gguf: there is no such file, and paths are not looked for in the model folder"
        );
        let expected = "expected a path, a folder or a name in the model folder";
        assert_eq!(message(""), format!("model name \"\" is empty, {expected}"));
        assert_eq!(message("a\0"), format!("model name \"a\\0\" holds a NUL, {expected}"));
        let nowhere = Library::at(folder.0.join("nowhere"));
        let error = nowhere.resolve("a").unwrap_err().to_string();
        assert_eq!(error, format!("a: there is no such file, and there is no model folder {place}/nowhere"));
        assert!(matches!(nowhere.models(), Err(LibraryError::Unreadable { .. })));
    }

    #[test]
    fn names_do_not_lead_out_of_the_model_folder() {
        let folder = Folder::with("out", &["secret.gguf", "models/a.gguf"]);
        let library = Library::at(folder.0.join("models"));
        for name in ["../secret.gguf", "../secret", "models/../../secret.gguf"] {
            assert!(matches!(library.resolve(name), Err(LibraryError::NotFound { .. })), "{name}");
        }
    }

    #[test]
    fn the_users_folder_follows_the_settings() {
        let of = |settings: &[(&str, &str)]| {
            let found = |name: &str| settings.iter().find(|(other, _)| *other == name).map(|(_, path)| path.into());
            Library::from_settings(found).folder
        };
        let all = [("FARPOST_MODELS", "/m"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(of(&all), Some("/m".into()));
        assert_eq!(of(&all[1..]), Some("/x/farpost/models".into()));
        assert_eq!(of(&all[2..]), Some("/h/.local/share/farpost/models".into()));
        assert_eq!(of(&[]), None);
    }
}
