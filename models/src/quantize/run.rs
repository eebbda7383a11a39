//! Writing a model anew in other types.
//!
//! Weights pass in windows: several threads decode and encode one window each, then the windows are written in order.
//! Every block is encoded by itself, so the bytes do not depend on threads or windows. Memory: two windows of f32 and
//! their blocks a thread, and the pages of the input that are being read.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use farpost_kernels::quant::{QuantError, decode, encode};
use farpost_kernels::tensor::DType;

use super::mixture::{Assignment, ModelShape};
use super::{Mixture, QuantizeError};
use crate::gguf::{File, FileWriter, Tensor, Writer};

/// Weights in a window: a multiple of every block, large enough that starting threads costs nothing beside it.
const WINDOW: usize = 1 << 18;

/// Version of the block formats, as files state it.
const QUANTIZATION_VERSION: u32 = 2;

/// How to quantize.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which tensor gets which type.
    pub mixture: &'static Mixture,
    /// Threads to use; 0 means as many as there are processors.
    pub threads: usize,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor being written.
    pub tensor: &'a str,
    /// The type it is written in.
    pub dtype: DType,
    /// Input bytes done.
    pub done_bytes: u64,
    /// Input bytes in all.
    pub total_bytes: u64,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Tensors written.
    pub n_tensors: usize,
    /// Bytes of tensor data read.
    pub input_bytes: u64,
    /// Size of the file written.
    pub output_bytes: u64,
    /// Weights written.
    pub n_weights: u64,
    /// Tensors that got another type because their rows are not whole blocks: name and wanted type.
    pub substituted: Vec<(String, DType)>,
}

/// Writes `input` to `output` in the types of a mixture; metadata is kept, but for the file type.
///
/// Tensors that have their type already are copied as they are; quantized ones are decoded first. `progress` is called
/// after every window and may stop the work. The output appears under its name only when it is whole and the input
/// did not change meanwhile.
pub fn quantize_file(
    input: &File,
    output: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Summary, QuantizeError> {
    refuse_onto_input(input, output)?;
    let shape = ModelShape::of(input)?;
    let mut writer = Writer::with_metadata_of(input.metadata());
    writer.set("general.file_type", options.mixture.file_type());
    writer.set("general.quantization_version", QUANTIZATION_VERSION);
    let mut plan = Vec::with_capacity(input.tensors().len());
    let mut substituted = Vec::new();
    for tensor in input.tensors() {
        let Assignment { dtype, instead_of } = options.mixture.assign(&shape, tensor.name(), tensor.dims());
        writer.tensor(tensor.name(), dtype, tensor.dims())?;
        substituted.extend(instead_of.map(|wanted| (tensor.name().to_owned(), wanted)));
        let (rows, cols) = (tensor.weight().rows(), tensor.weight().cols());
        // Blocks hold more weights than bytes: only a large address range has room for all their numbers.
        let n_weights = rows.checked_mul(cols).ok_or_else(|| QuantizeError::TooLarge {
            file: input.name().to_owned(),
            tensor: tensor.name().to_owned(),
            rows,
            cols,
        })?;
        plan.push((tensor, dtype, n_weights));
    }
    let bytes_of = |tensor: &Tensor| tensor.weight().bytes().len() as u64;
    let total_bytes = input.tensors().iter().map(bytes_of).sum();
    let mut job = Job { input, threads: threads(options.threads), writer: writer.create(output)?, windows: Vec::new() };
    let mut done_bytes = 0;
    for &(tensor, dtype, n_weights) in &plan {
        job.tensor(tensor, dtype, n_weights, &mut |bytes| {
            done_bytes += bytes;
            progress(Progress { tensor: tensor.name(), dtype, done_bytes, total_bytes })
        })?;
    }
    input.check_unchanged()?;
    Ok(Summary {
        n_tensors: input.tensors().len(),
        input_bytes: total_bytes,
        output_bytes: job.writer.finish()?,
        n_weights: plan.iter().map(|(.., n_weights)| *n_weights as u64).sum(),
        substituted,
    })
}

/// A piece of a tensor on its way: its weights, and the blocks it becomes.
#[derive(Default)]
struct Window {
    weights: Vec<f32>,
    blocks: Vec<u8>,
}

struct Job<'a> {
    input: &'a File,
    threads: usize,
    writer: FileWriter,
    /// Buffers, kept from round to round.
    windows: Vec<Window>,
}

impl Job<'_> {
    fn tensor(
        &mut self,
        tensor: &Tensor,
        dtype: DType,
        n_weights: usize,
        advance: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), QuantizeError> {
        // Small tensors are spread over all threads too.
        let window = n_weights.div_ceil(self.threads * 256).saturating_mul(256).clamp(256, WINDOW);
        let starts: Vec<usize> = (0..n_weights).step_by(window).collect();
        for round in starts.chunks(2 * self.threads) {
            let bytes = |weights: usize| tensor.dtype().row_bytes(weights).unwrap_or(tensor.weight().bytes().len());
            let first = bytes(round[0]);
            let last = bytes(round.last().map_or(n_weights, |start| (start + window).min(n_weights)));
            let source = tensor.weight().view().bytes;
            if tensor.dtype() == dtype {
                self.writer.append(tensor.name(), &source[first..last])?;
            } else {
                self.encode_round(tensor, dtype, round, window, n_weights)?;
                for done in &self.windows[..round.len()] {
                    self.writer.append(tensor.name(), &done.blocks)?;
                }
            }
            self.input.release_pages();
            if advance((last - first) as u64).is_break() {
                return Err(QuantizeError::Stopped { file: self.input.name().to_owned() });
            }
        }
        Ok(())
    }

    /// Encodes the windows that start at `round`, each of `window` weights or what is left.
    fn encode_round(
        &mut self,
        tensor: &Tensor,
        dtype: DType,
        round: &[usize],
        window: usize,
        n_weights: usize,
    ) -> Result<(), QuantizeError> {
        self.windows.resize_with(self.windows.len().max(round.len()), Window::default);
        let work = Mutex::new(round.iter().zip(&mut self.windows));
        // The failure at the lowest weight is the one reported, whichever thread met one first.
        let failure = Mutex::new(None);
        let worker = || {
            loop {
                let next = lock(&work).next();
                let Some((&start, buffers)) = next else { return };
                if let Err(source) = buffers.fill(tensor, dtype, start, window.min(n_weights - start)) {
                    let mut failure = lock(&failure);
                    if failure.as_ref().is_none_or(|(first, _)| start < *first) {
                        *failure = Some((start, source));
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(round.len()) {
                let thread = std::thread::Builder::new().name("farpost-quantize".to_owned());
                // Where the system gives no more threads, those that run do the work.
                let Ok(_) = thread.spawn_scoped(scope, worker) else { break };
            }
            worker();
        });
        match lock(&failure).take() {
            None => Ok(()),
            Some((start, source)) => Err(QuantizeError::Tensor {
                file: self.input.name().to_owned(),
                tensor: tensor.name().to_owned(),
                source: counted_from(start, source),
            }),
        }
    }
}

impl Window {
    /// Decodes and encodes `weights` weights of `tensor` from number `start` on.
    fn fill(&mut self, tensor: &Tensor, dtype: DType, start: usize, weights: usize) -> Result<(), QuantError> {
        let source = tensor.dtype();
        let partial = |dtype| QuantError::PartialBlock { dtype, weights };
        let first = source.row_bytes(start).ok_or(partial(source))?;
        let n_bytes = source.row_bytes(weights).ok_or(partial(source))?;
        self.weights.resize(weights, 0.0);
        self.blocks.resize(dtype.row_bytes(weights).ok_or(partial(dtype))?, 0);
        decode(source, &tensor.weight().view().bytes[first..first + n_bytes], &mut self.weights)?;
        encode(dtype, &self.weights, None, &mut self.blocks)
    }
}

/// The same message with the weight counted from the start of its tensor.
fn counted_from(start: usize, error: QuantError) -> QuantError {
    match error {
        QuantError::NotFinite { dtype, index, value } => QuantError::NotFinite { dtype, index: start + index, value },
        other => other,
    }
}

fn threads(wanted: usize) -> usize {
    let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if wanted == 0 { available() } else { wanted.min(256) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse_onto_input(input: &File, output: &Path) -> Result<(), QuantizeError> {
    if input.has_part_at(output) {
        return Err(QuantizeError::OntoInput { file: output.display().to_string() });
    }
    Ok(())
}
