//! Packed files: a model's weights once more, in the order in which the kernels of one processor class read them fastest.
//!
//! A packed file lies beside the model, `MODEL.CLASS.pack`, and is a GGUF file itself, so that everything the reader
//! refuses in a model (truncation, overlaps, offsets beyond the end) is refused here too. Its metadata say which model it
//! was made of; what they are and when a file counts as stale is told in `docs/decisions/014-packed-files.md`. It holds
//! all weights of the graph, so that where it is used no weight is read from the model.

mod check;
mod entry;
mod error;
mod open;
mod stamp;
mod write;

use std::path::{Path, PathBuf};

use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::cpu::linear::order_for;
use farpost_kernels::order::Order;
use farpost_kernels::tensor::DType;

pub use check::check;
pub use error::PackError;
pub use open::{Packed, open};
pub use write::{Progress, Stage, Summary, write};

use crate::gguf::File;

/// Architecture of packed files, which keeps others from taking them for models.
const ARCHITECTURE: &str = "farpost-pack";
/// Version of what follows; others are refused.
const VERSION: u32 = 1;
/// Alignment of its tensors: whole pages, so that none holds two.
const ALIGNMENT: u32 = 4096;
/// Keys of the metadata.
mod key {
    pub(super) const ARCHITECTURE: &str = "general.architecture";
    pub(super) const ALIGNMENT: &str = "general.alignment";
    pub(super) const VERSION: &str = "farpost-pack.version";
    pub(super) const CLASS: &str = "farpost-pack.class";
    pub(super) const ORDERS: &str = "farpost-pack.orders";
    pub(super) const CHECKSUM: &str = "farpost-pack.checksum";
    pub(super) const MODEL_HASH: &str = "farpost-pack.model.sha256";
    pub(super) const MODEL_SIZES: &str = "farpost-pack.model.sizes";
    pub(super) const MODEL_TIMES: &str = "farpost-pack.model.modified_ns";
    pub(super) const MODEL_SAMPLE: &str = "farpost-pack.model.sample";
}

/// Whether kernels of this set read any type faster in another order than files have.
pub fn is_for(isa: Isa) -> bool {
    DType::all().any(|dtype| order_for(isa, dtype) != Order::Rows)
}

/// Where the packed file of a model lies; `None` for a model without a file.
pub fn path_for(model: &File, isa: Isa) -> Option<PathBuf> {
    let mut path = model.whole_path()?.into_os_string();
    path.push(format!(".{isa}.pack"));
    Some(path.into())
}

/// Whether the file at `path` is a packed file, of whatever model and however old.
pub fn is_packed(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(file.metadata().string(key::ARCHITECTURE), Ok(Some(ARCHITECTURE)))
}
