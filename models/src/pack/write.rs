//! Writing a packed file: read twice, once to hash and once to write, so that the head can say what follows.

use std::ops::ControlFlow;
use std::path::Path;

use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::graph::Graph;
use farpost_kernels::order::{Order, SIXTEEN, to_sixteens};
use sha2::{Digest, Sha256};

use super::entry::{Entry, entries};
use super::stamp::Stamp;
use super::{ALIGNMENT, ARCHITECTURE, PackError, VERSION, is_for, key};
use crate::gguf::{ContentHash, File, Writer};

/// Bytes that are turned at a time.
const WINDOW: usize = 4 << 20;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading the model for its content hash.
    Hashing,
    /// Reading and turning its weights for the checksum.
    Summing,
    /// Writing them.
    Writing,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes done in all stages together.
    pub done_bytes: u64,
    /// Bytes of all stages.
    pub total_bytes: u64,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Hash of the model.
    pub model_hash: ContentHash,
    /// Tensors in the file.
    pub n_tensors: usize,
    /// Those whose rows lie side by side.
    pub n_side_by_side: usize,
    /// Size of the model.
    pub model_bytes: u64,
    /// Size of the packed file.
    pub output_bytes: u64,
}

/// Writes the weights that `graph`, built of `model`, uses to `output`, in the order for `isa`.
///
/// `progress` is called after every window and may stop the work. The file appears under its name only when it is whole
/// and the model did not change meanwhile.
pub fn write(
    model: &File,
    graph: &Graph,
    isa: Isa,
    output: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Summary, PackError> {
    if !is_for(isa) {
        return Err(PackError::NoOrder { class: isa });
    }
    if model.has_part_at(output) {
        return Err(PackError::OntoModel { file: output.display().to_string() });
    }
    let stamp = Stamp::of(model)?;
    let entries = entries(model, graph, isa);
    let n_side_by_side = entries.iter().filter(|entry| entry.order != Order::Rows).count();
    if n_side_by_side == 0 {
        return Err(PackError::NothingToPack { file: model.name().to_owned(), class: isa });
    }
    let weight_bytes: u64 = entries.iter().map(|entry| entry.weight.bytes().len() as u64).sum();
    let mut course = Course { model, total_bytes: model.size_bytes() + 2 * weight_bytes, done_bytes: 0, progress };

    let mut hash = Sha256::new();
    for piece in model.pieces() {
        hash.update(piece);
        course.add(Stage::Hashing, piece.len())?;
    }
    let model_hash = ContentHash(hash.finalize().into());
    let mut sum = Sha256::new();
    for entry in &entries {
        turned(entry, &mut |bytes| {
            sum.update(bytes);
            course.add(Stage::Summing, bytes.len())
        })?;
    }

    let mut writer = Writer::new();
    let orders: Vec<u8> = entries.iter().map(|entry| entry.order as u8).collect();
    writer
        .set(key::ARCHITECTURE, ARCHITECTURE)
        .set(key::ALIGNMENT, ALIGNMENT)
        .set(key::VERSION, VERSION)
        .set(key::CLASS, isa.name())
        .set(key::ORDERS, orders.as_slice())
        .set(key::CHECKSUM, ContentHash(sum.finalize().into()).to_string().as_str())
        .set(key::MODEL_HASH, model_hash.to_string().as_str());
    stamp.write(&mut writer);
    for Entry { name, weight, .. } in &entries {
        writer.tensor(name, weight.dtype(), &[weight.cols(), weight.rows()])?;
    }
    let mut file = writer.create(output)?;
    for entry in &entries {
        turned(entry, &mut |bytes| {
            file.append(&entry.name, bytes)?;
            course.add(Stage::Writing, bytes.len())
        })?;
    }
    model.check_unchanged()?;
    Ok(Summary {
        model_hash,
        n_tensors: entries.len(),
        n_side_by_side,
        model_bytes: model.size_bytes(),
        output_bytes: file.finish()?,
    })
}

/// Counts what is done, and gives the model's pages back as they are used up.
struct Course<'a> {
    model: &'a File,
    total_bytes: u64,
    done_bytes: u64,
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl Course<'_> {
    fn stopped(&self) -> PackError {
        PackError::Stopped { file: self.model.name().to_owned() }
    }

    fn add(&mut self, stage: Stage, bytes: usize) -> Result<(), PackError> {
        /// Bytes of the model that may be in memory.
        const MOST: u64 = 64 << 20;
        let before = self.done_bytes;
        self.done_bytes += bytes as u64;
        if before / MOST != self.done_bytes / MOST {
            self.model.release_pages();
        }
        let now = Progress { stage, done_bytes: self.done_bytes, total_bytes: self.total_bytes };
        if (self.progress)(now).is_break() { Err(self.stopped()) } else { Ok(()) }
    }
}

/// Gives a weight's bytes in its new order, a window at a time.
fn turned(entry: &Entry, take: &mut dyn FnMut(&[u8]) -> Result<(), PackError>) -> Result<(), PackError> {
    let (bytes, row_bytes) = (entry.weight.bytes().as_slice(), entry.weight.row_bytes());
    let sixteen = SIXTEEN * row_bytes;
    let window = (WINDOW / sixteen).max(1) * sixteen;
    let mut out = Vec::new();
    for rows in bytes.chunks(window) {
        match entry.order {
            Order::Rows => take(rows)?,
            Order::Sixteens => {
                out.resize(rows.len(), 0);
                to_sixteens(entry.weight.dtype(), entry.weight.cols(), rows, &mut out);
                take(&out)?;
            }
        }
    }
    Ok(())
}
