//! An opened model: one file or the parts of a split one, as metadata and tensors.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farpost_kernels::tensor::{Bytes, DType, Weight};

use super::error::{GgufError, Problem, Shortened};
use super::map::{Identity, Map};
use super::metadata::Metadata;
use super::place::Place;
use super::read::{self, MAX_DIMS, Parsed};
use super::split;

/// A tensor of an opened file: a shape and a view of the file's bytes.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(super) weight: Weight,
    pub(super) dims: [usize; MAX_DIMS],
    pub(super) n_dims: usize,
    pub(super) offset: u64,
    pub(super) part: usize,
    /// Where its description begins in the file.
    pub(super) described_at: u64,
}

impl Tensor {
    /// Name in the file.
    pub fn name(&self) -> &str {
        self.weight.name()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// Dimensions as stored, fastest first: `[cols, rows, ...]`.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.n_dims]
    }

    /// The matrix: the first dimension gives the columns, all others together the rows.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Place of its first byte, from the start of the file (of its part, if the model is split).
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Number of the part that holds it; 0 if the model is one file.
    pub fn part(&self) -> usize {
        self.part
    }
}

/// One file of a model.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) bytes: Bytes,
    /// `None` if the bytes were given by the caller.
    pub(super) map: Option<Arc<Map>>,
}

/// How the bytes of a file come into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// A shared, read-only memory map: pages come in on first use and may leave again.
    #[default]
    Map,
    /// A private copy, read at once: safe from whatever happens to the file, at the price of its size in memory.
    Copy,
}

/// An opened and checked GGUF model.
pub struct File {
    name: String,
    path: Option<PathBuf>,
    version: u32,
    alignment: u64,
    parts: Vec<Part>,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    by_name: Vec<u32>,
}

impl File {
    /// Maps and checks the file at `path`. If it is one part of a split model, the others are opened with it.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        Self::open_with(path, Access::Map)
    }

    /// [`File::open`] with a choice between map and copy.
    pub fn open_with(path: &Path, access: Access) -> Result<Self, GgufError> {
        let whole = split::open(path, access)?;
        Self::assemble(path.display().to_string(), Some(path.to_owned()), whole)
    }

    /// Checks a file that is already in memory; messages call it `name`.
    pub fn from_bytes(name: &str, bytes: Bytes) -> Result<Self, GgufError> {
        let parsed = read::parse(name, &bytes, 0)?;
        split::refuse_in_memory(&parsed.metadata)?;
        Self::assemble(name.to_owned(), None, vec![(Part { name: name.to_owned(), bytes, map: None }, parsed)])
    }

    /// Joins checked parts; the first one's metadata is the model's.
    fn assemble(name: String, path: Option<PathBuf>, whole: Vec<(Part, Parsed)>) -> Result<Self, GgufError> {
        let mut parts = Vec::with_capacity(whole.len());
        let mut tensors = Vec::new();
        let mut head = None;
        for (part, parsed) in whole {
            parts.push(part);
            tensors.extend(parsed.tensors);
            head.get_or_insert((parsed.version, parsed.alignment, parsed.metadata));
        }
        let (version, alignment, metadata) = head.expect("a model has at least one part");
        let by_name = read::sorted_by_name(&tensors);
        for pair in by_name.windows(2) {
            let (first, second) = (&tensors[pair[0] as usize], &tensors[pair[1] as usize]);
            if first.name() == second.name() {
                return Err(GgufError::Defect {
                    file: parts[second.part].name.clone(),
                    field: format!("tensor '{}' name", Shortened(second.name())),
                    offset: second.described_at,
                    problem: Problem::DuplicateInParts { first: parts[first.part].name.clone() },
                });
            }
        }
        Ok(Self { name, path, version, alignment, parts, metadata, tensors, by_name })
    }

    /// The file as the caller named it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was opened; `None` for bytes in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Format version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Number of files the model lies in.
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// Size of all files together.
    pub fn size_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The matrix called `name`.
    pub fn tensor(&self, name: &str) -> Option<&Weight> {
        self.find(name).map(Tensor::weight)
    }

    /// The tensor called `name`, with its dimensions.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        Some(&self.tensors[self.number_of(name)?])
    }

    /// Where the description of `tensor`, one of this file's, begins; for messages.
    pub fn place(&self, tensor: &Tensor) -> Place {
        Place {
            file: self.parts.get(tensor.part).map_or(&self.name, |part| &part.name).clone(),
            field: format!("tensor '{}'", Shortened(tensor.name())),
            offset: tensor.described_at,
        }
    }

    /// True once a read met pages that the file no longer has: results since then are worthless.
    ///
    /// One relaxed atomic load a part: cheap enough for every step. Needs [`super::install_sigbus_guard`].
    pub fn is_damaged(&self) -> bool {
        self.maps().any(Map::is_damaged)
    }

    /// Compares every part with what it was when opened (size, modification time; damage seen by the guard).
    ///
    /// A cut inside a page shows here and not in [`File::is_damaged`]: the rest of that page reads as zeros.
    pub fn check_unchanged(&self) -> Result<(), GgufError> {
        self.maps().try_for_each(Map::check_unchanged)
    }

    /// Gives the memory of all mapped pages back to the system; they are read again when they are needed.
    ///
    /// For work that goes through a file once. Reading on from other threads meanwhile is fine.
    pub fn release_pages(&self) {
        for map in self.maps() {
            map.release();
        }
    }

    /// True if `path` leads to a file this model lies in, under whatever name.
    pub fn has_part_at(&self, path: &Path) -> bool {
        let Ok(there) = Identity::at(path) else { return false };
        self.maps().any(|map| map.identity() == there)
    }

    /// What tells the state of each mapped part from another, as it was when opened.
    pub fn identities(&self) -> impl Iterator<Item = Identity> {
        self.maps().map(Map::identity)
    }

    /// Where the model lies: its file, or for a split one the name its parts have in common.
    pub(crate) fn whole_path(&self) -> Option<PathBuf> {
        let path = self.path()?;
        Some(if self.n_parts() > 1 { split::common_path(path)? } else { path.to_owned() })
    }

    /// Number of the tensor called `name` among [`File::tensors`].
    pub(crate) fn number_of(&self, name: &str) -> Option<usize> {
        let place = self.by_name.binary_search_by(|&number| self.tensors[number as usize].name().cmp(name)).ok()?;
        Some(self.by_name[place] as usize)
    }

    /// The bytes of each part.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Bytes> {
        self.parts.iter().map(|part| &part.bytes)
    }

    /// The maps, to be kept by others.
    pub(super) fn shared_maps(&self) -> impl Iterator<Item = &Arc<Map>> {
        self.parts.iter().filter_map(|part| part.map.as_ref())
    }

    fn maps(&self) -> impl Iterator<Item = &Map> {
        self.parts.iter().filter_map(|part| part.map.as_deref())
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gguf::File({}, {} tensors)", self.name, self.tensors.len())
    }
}
