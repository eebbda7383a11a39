//! Which state of which model a packed file was made of.

use std::path::Path;
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::{PackError, key};
use crate::gguf::{ContentHash, File, Problem, Value, Writer};

/// Tensors that are looked into.
const SAMPLES: usize = 16;
/// Bytes of each.
const SAMPLE_BYTES: usize = 4096;

/// Size and time of last writing of each of the model's files, and a hash of some of its weights: what is compared
/// whenever a model is opened.
///
/// Copies made with their times, and images in which all times are equal, are why the weights are looked into; another
/// training or another quantization changes them everywhere.
///
/// Device and inode are left out, so that model and packed file may be copied together (with their times).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    sizes: Vec<u64>,
    /// Nanoseconds since 1970; 0 where the system knows no time, which is equal to nothing.
    times: Vec<u64>,
    sample: String,
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
            sample: sample(model),
        })
    }

    /// As it stands in a packed file.
    pub(super) fn read(file: &File) -> Result<Self, PackError> {
        Ok(Self {
            sizes: numbers(file, key::MODEL_SIZES)?,
            times: numbers(file, key::MODEL_TIMES)?,
            sample: file.metadata().required_string(key::MODEL_SAMPLE)?.to_owned(),
        })
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.set(key::MODEL_SIZES, self.sizes.as_slice()).set(key::MODEL_TIMES, self.times.as_slice());
        writer.set(key::MODEL_SAMPLE, self.sample.as_str());
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
        if self.sample != packed.sample {
            let (found, expected) = (self.sample.clone(), packed.sample.clone());
            return Err(PackError::Stale { file: path.to_owned(), what: "a hash of some weights", found, expected });
        }
        Ok(())
    }
}

/// SHA-256 of the middle of some of the model's tensors, spread over all of them.
fn sample(model: &File) -> String {
    let (tensors, mut hash) = (model.tensors(), Sha256::new());
    let n_samples = SAMPLES.min(tensors.len());
    for sample in 0..n_samples {
        let bytes = tensors[sample * tensors.len() / n_samples].weight().bytes().as_slice();
        let len = bytes.len().min(SAMPLE_BYTES);
        hash.update(&bytes[(bytes.len() - len) / 2..][..len]);
    }
    ContentHash(hash.finalize().into()).to_string()
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
