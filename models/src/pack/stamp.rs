//! Which state of which model a packed file was made of.

use std::path::Path;
use std::time::UNIX_EPOCH;

use super::{PackError, key};
use crate::gguf::{File, Problem, Value, Writer};

/// Size and time of last writing of each of the model's files: what is compared whenever a model is opened.
///
/// Device and inode are left out, so that model and packed file may be copied together (with their times).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    sizes: Vec<u64>,
    /// Nanoseconds since 1970; 0 where the system knows no time, which is equal to nothing.
    times: Vec<u64>,
}

impl Stamp {
    /// Of the model as it was opened.
    pub(super) fn of(model: &File) -> Result<Self, PackError> {
        let identities: Vec<_> = model.identities().collect();
        if identities.len() != model.n_parts() {
            return Err(PackError::NoFile { file: model.name().to_owned() });
        }
        let time = |identity: &crate::gguf::Identity| {
            let since = identity.modified?.duration_since(UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok()
        };
        Ok(Self {
            sizes: identities.iter().map(|identity| identity.size_bytes).collect(),
            times: identities.iter().map(|identity| time(identity).unwrap_or(0)).collect(),
        })
    }

    /// As it stands in a packed file.
    pub(super) fn read(file: &File) -> Result<Self, PackError> {
        Ok(Self { sizes: numbers(file, key::MODEL_SIZES)?, times: numbers(file, key::MODEL_TIMES)? })
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.set(key::MODEL_SIZES, self.sizes.as_slice()).set(key::MODEL_TIMES, self.times.as_slice());
    }

    /// Refuses where `packed`, that of the packed file at `path`, is another.
    pub(super) fn require(&self, packed: &Self, path: &Path) -> Result<(), PackError> {
        let stale = |what, found: &[u64], expected: &[u64]| {
            let [found, expected] = [found, expected].map(|numbers| {
                let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
                numbers.join(", ")
            });
            Err(PackError::Stale { file: path.to_owned(), what, found, expected })
        };
        if self.sizes != packed.sizes {
            return stale("the size", &self.sizes, &packed.sizes);
        }
        if self.times != packed.times || self.times.contains(&0) {
            return stale("the time of last writing (ns)", &self.times, &packed.times);
        }
        Ok(())
    }
}

fn numbers(file: &File, key: &'static str) -> Result<Vec<u64>, PackError> {
    let expected = "an array of unsigned integers";
    let metadata = file.metadata();
    let Some(value) = metadata.get(key) else {
        return Err(
            crate::gguf::GgufError::MissingKey { file: file.name().to_owned(), key: key.to_owned(), expected }.into()
        );
    };
    let numbers = match value {
        Value::Array(array) => array.values().map(|value| u64::try_from(value.as_integer()?).ok()).collect(),
        _ => None,
    };
    let wrong = || metadata.defect(key, Problem::WrongType { found: value.describe(), expected });
    numbers.ok_or_else(|| wrong().into())
}
