//! Models split over several files, `NAME-00001-of-00003.gguf`: found by name, checked to belong together.
//!
//! The first part holds the metadata; each has `split.no` (from 0), `split.count`, and `split.tensors.count`, the
//! number of tensors in all parts. Any part may be named when opening.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use farpost_kernels::tensor::Bytes;

use super::error::{GgufError, Problem, Shortened};
use super::file::{Access, Part};
use super::map::Map;
use super::metadata::Metadata;
use super::read::{self, Parsed};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
const ARCHITECTURE: &str = "general.architecture";

/// What one part says about the whole.
struct Share {
    number: u64,
    count: u64,
    tensors: Option<u64>,
}

impl Share {
    /// `None` if the file stands alone.
    fn of(metadata: &Metadata) -> Result<Option<Self>, GgufError> {
        let Some(count) = metadata.u64(COUNT)? else { return Ok(None) };
        if count <= 1 {
            return Ok(None);
        }
        if count > 99_999 {
            return Err(metadata.defect(COUNT, Problem::AboveLimit { found: count, limit: 99_999 }));
        }
        let number = metadata.required_u64(NUMBER)?;
        if number >= count {
            let expected = "the number of a part, counted from 0 and below split.count";
            return Err(metadata.defect(NUMBER, Problem::OutOfRange { found: number.to_string(), expected }));
        }
        Ok(Some(Self { number, count, tensors: metadata.u64(TENSORS)? }))
    }
}

/// Opens the file at `path` and, if it is one of several, all of them in order.
pub(super) fn open(path: &Path, access: Access) -> Result<Vec<(Part, Parsed)>, GgufError> {
    let named = open_part(path, access, 0)?;
    let Some(share) = Share::of(&named.1.metadata)? else { return Ok(vec![named]) };
    let Some((stem, in_name)) = numbered_stem(path) else {
        let problem = Problem::Split(format!(
            "this is one of {} parts, but its name does not end in -00001-of-{:05}.gguf, so the others cannot be found",
            share.count, share.count
        ));
        return Err(named.1.metadata.defect(COUNT, problem));
    };
    if in_name != (share.number + 1, share.count) {
        let problem = Problem::Split(format!(
            "the name says part {} of {}, the file says part {} of {}",
            in_name.0,
            in_name.1,
            share.number + 1,
            share.count
        ));
        return Err(named.1.metadata.defect(NUMBER, problem));
    }
    let mut named = Some(named);
    let mut whole: Vec<(Part, Parsed)> = Vec::new();
    for number in 0..share.count {
        let is_named = number == share.number;
        let part = match named.take_if(|_| is_named) {
            Some((part, mut parsed)) => {
                parsed.tensors.iter_mut().for_each(|tensor| tensor.part = number as usize);
                (part, parsed)
            }
            None => open_part(&part_path(&stem, number + 1, share.count), access, number as usize)?,
        };
        check_share(&part.1.metadata, number, &share)?;
        if let Some((_, first)) = whole.first() {
            check_architecture(&part.1.metadata, &first.metadata)?;
        }
        whole.push(part);
    }
    check_tensors(&whole, &share)?;
    Ok(whole)
}

/// Refuses a part of a split model that was given as bytes: there is no folder to find the others in.
pub(super) fn refuse_in_memory(metadata: &Metadata) -> Result<(), GgufError> {
    let Some(share) = Share::of(metadata)? else { return Ok(()) };
    let problem = format!("this is part {} of {} and cannot be opened from memory", share.number + 1, share.count);
    Err(metadata.defect(COUNT, Problem::Split(problem)))
}

fn open_part(path: &Path, access: Access, number: usize) -> Result<(Part, Parsed), GgufError> {
    let map = Arc::new(match access {
        Access::Map => Map::open(path)?,
        Access::Copy => Map::copy(path)?,
    });
    let bytes = Bytes::new(Arc::<Map>::clone(&map));
    let name = path.display().to_string();
    let parsed = read::parse(&name, &bytes, number)?;
    Ok((Part { name, bytes, map: Some(map) }, parsed))
}

fn check_share(metadata: &Metadata, number: u64, named: &Share) -> Result<(), GgufError> {
    let problem = match Share::of(metadata)? {
        None => format!("this part does not say that it is one of {}", named.count),
        Some(own) if own.count != named.count => {
            format!("this part belongs to a model of {} parts, not of {}", own.count, named.count)
        }
        Some(own) if own.number != number => {
            format!("this file is part {}, its name says part {}", own.number + 1, number + 1)
        }
        Some(own) if own.tensors != named.tensors => {
            "the parts disagree about the number of tensors in all of them".to_owned()
        }
        Some(_) => return Ok(()),
    };
    Err(metadata.defect(NUMBER, Problem::Split(problem)))
}

/// Later parts need not name the architecture, but must not name another.
fn check_architecture(later: &Metadata, first: &Metadata) -> Result<(), GgufError> {
    match (later.string(ARCHITECTURE)?, first.string(ARCHITECTURE)?) {
        (Some(own), Some(expected)) if own != expected => {
            let (own, expected) = (Shortened(own), Shortened(expected));
            let problem =
                format!("this part belongs to a model of architecture '{own}', the first to one of '{expected}'");
            Err(later.defect(ARCHITECTURE, Problem::Split(problem)))
        }
        _ => Ok(()),
    }
}

fn check_tensors(whole: &[(Part, Parsed)], share: &Share) -> Result<(), GgufError> {
    let found: u64 = whole.iter().map(|(_, parsed)| parsed.tensors.len() as u64).sum();
    match (share.tensors, whole.first()) {
        (Some(expected), Some((_, first))) if expected != found => {
            let problem = format!("the parts hold {found} tensors together, expected {expected}");
            Err(first.metadata.defect(TENSORS, Problem::Split(problem)))
        }
        _ => Ok(()),
    }
}

/// The path without `-00001-of-00003.gguf`, the part's number (from 1) and the count.
fn numbered_stem(path: &Path) -> Option<(PathBuf, (u64, u64))> {
    let name = path.file_name()?.to_str()?;
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five = |digits: &str| {
        let is_plain = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| digits.parse::<u64>().ok()).flatten()
    };
    Some((path.with_file_name(stem), (five(number)?, five(count)?)))
}

/// The path of a part without its number: `NAME.gguf`.
pub(super) fn common_path(path: &Path) -> Option<PathBuf> {
    let mut name = numbered_stem(path)?.0.into_os_string();
    name.push(".gguf");
    Some(name.into())
}

fn part_path(stem: &Path, number: u64, count: u64) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(format!("-{number:05}-of-{count:05}.gguf"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_by_its_name_and_leads_to_the_others() {
        let (stem, numbers) = numbered_stem(Path::new("/m/big-q4-00002-of-00003.gguf")).unwrap();
        assert_eq!(numbers, (2, 3));
        assert_eq!(part_path(&stem, 1, 3), Path::new("/m/big-q4-00001-of-00003.gguf"));
    }

    #[test]
    fn other_names_are_no_parts() {
        for name in ["m.gguf", "m-1-of-3.gguf", "m-00001-of-00003.bin", "m-0000+-of-00003.gguf", "-of-.gguf"] {
            assert_eq!(numbered_stem(Path::new(name)), None, "{name}");
        }
    }
}
