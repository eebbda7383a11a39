//! Everything that opening leaves out: reads the model and the packed file from end to end.

use std::ops::ControlFlow;
use std::path::Path;

use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::graph::Graph;
use sha2::{Digest, Sha256};

use super::{PackError, Packed, key, open};
use crate::gguf::{ContentHash, File};

/// Opens the packed file at `path` as [`open`] does, then compares the model's content hash and the checksum of the
/// packed weights with what the file says. `progress` gets bytes done and bytes in all, and may stop the work.
pub fn check(
    path: &Path,
    model: &File,
    graph: &mut Graph,
    isa: Isa,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Packed, PackError> {
    let packed = open(path, model, graph, isa)?;
    let weights = || packed.file().tensors().iter().map(|tensor| tensor.weight().bytes().as_slice());
    let total = model.size_bytes() + weights().map(|bytes| bytes.len() as u64).sum::<u64>();
    let mut done = 0;
    let mut add = |bytes: &[u8]| {
        done += bytes.len() as u64;
        let stopped = || PackError::Stopped { file: model.name().to_owned() };
        if progress(done, total).is_break() { Err(stopped()) } else { Ok(()) }
    };
    let mut hash = Sha256::new();
    for piece in model.pieces() {
        hash.update(piece);
        add(piece)?;
    }
    let found = ContentHash(hash.finalize().into()).to_string();
    let expected = packed.model_hash()?.to_owned();
    if found != expected {
        return Err(PackError::Stale { file: path.to_owned(), what: "the SHA-256", found, expected });
    }
    let mut sum = Sha256::new();
    for piece in weights().flat_map(|bytes| bytes.chunks(8 << 20)) {
        sum.update(piece);
        add(piece)?;
    }
    let found = ContentHash(sum.finalize().into()).to_string();
    let expected = packed.file().metadata().required_string(key::CHECKSUM)?.to_owned();
    if found != expected {
        return Err(PackError::Damaged { file: path.to_owned(), found, expected });
    }
    model.check_unchanged()?;
    packed.file().check_unchanged()?;
    Ok(packed)
}
