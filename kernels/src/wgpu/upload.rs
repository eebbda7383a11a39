//! Weights brought onto the device: laid out anew some rows at a time, so that no second copy is ever whole in host memory.
//!
//! A matrix of more bytes than a shader can bind is cut by rows into parts. A matrix that is used twice (a tied embedding)
//! is uploaded once.

use std::collections::HashMap;
use std::rc::Rc;

use super::gpu::Gpu;
use crate::backend::DeviceError;
use crate::device::layout::{Layout, UNIT};
use crate::order;
use crate::tensor::Weight;

/// Bytes laid out at a time.
const WINDOW_BYTES: usize = 4 << 20;

/// Bytes on their way to the device before they are waited for.
const UNDER_WAY_BYTES: usize = 32 << 20;

/// Rows of a weight.
pub(super) struct Part {
    pub(super) codes: ::wgpu::Buffer,
    pub(super) scales: ::wgpu::Buffer,
    /// The first row, and how many there are.
    pub(super) first: usize,
    pub(super) n_rows: usize,
}

/// A weight on the device.
pub(super) struct Uploaded {
    pub(super) layout: Layout,
    pub(super) parts: Vec<Part>,
    pub(super) cols: usize,
}

impl Uploaded {
    /// Units of 32 weights of a row.
    pub(super) fn units(&self) -> usize {
        self.cols.div_ceil(UNIT)
    }
}

/// Where a weight's bytes are, with its shape.
type Identity = (usize, usize, usize);

/// Brings weights onto the device.
pub(super) struct Uploads<'g> {
    gpu: &'g Gpu,
    known: HashMap<Identity, Rc<Uploaded>>,
    vectors: HashMap<Identity, ::wgpu::Buffer>,
    /// Stands where nothing is bound.
    pub(super) nothing: ::wgpu::Buffer,
    under_way: usize,
    /// Bytes of weights on the device.
    pub(super) n_bytes: u64,
}

fn identity(weight: &Weight) -> Identity {
    (weight.bytes().as_slice().as_ptr() as usize, weight.bytes().len(), weight.cols())
}

impl<'g> Uploads<'g> {
    pub(super) fn new(gpu: &'g Gpu) -> Result<Self, DeviceError> {
        let nothing = gpu.storage("a buffer of nothing", 16)?;
        Ok(Self { gpu, known: HashMap::new(), vectors: HashMap::new(), nothing, under_way: 0, n_bytes: 0 })
    }

    /// A matrix in the form of its type.
    pub(super) fn matrix(&mut self, weight: &Weight) -> Result<Rc<Uploaded>, DeviceError> {
        if let Some(known) = self.known.get(&identity(weight)) {
            return Ok(Rc::clone(known));
        }
        let layout = Layout::of(weight.dtype());
        let (code_bytes, scale_bytes) = (layout.code_bytes(weight.cols()), 4 * layout.scale_words(weight.cols()));
        let most = self.gpu.max_binding / code_bytes.max(scale_bytes).max(1) as u64;
        if most == 0 {
            return Err(DeviceError::Refused(format!(
                "tensor '{}': a row takes {code_bytes} bytes, the device binds at most {} at once",
                weight.name(),
                self.gpu.max_binding
            )));
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let mut parts = Vec::new();
        for first in (0..weight.rows()).step_by(most) {
            parts.push(self.part(weight, &layout, first, most.min(weight.rows() - first))?);
        }
        let uploaded = Rc::new(Uploaded { layout, parts, cols: weight.cols() });
        self.known.insert(identity(weight), Rc::clone(&uploaded));
        Ok(uploaded)
    }

    fn part(&mut self, weight: &Weight, layout: &Layout, first: usize, n_rows: usize) -> Result<Part, DeviceError> {
        let cols = weight.cols();
        let (code_bytes, scale_words) = (layout.code_bytes(cols), layout.scale_words(cols));
        let codes = self.gpu.storage("weights", (n_rows * code_bytes) as u64)?;
        let scales = match scale_words {
            0 => self.nothing.clone(),
            words => self.gpu.storage("scales of weights", (n_rows * words * 4) as u64)?,
        };
        self.n_bytes += (n_rows * (code_bytes + 4 * scale_words)) as u64;
        let view = weight.view();
        let mut stored = vec![0; weight.row_bytes()];
        let window = (WINDOW_BYTES / code_bytes.max(1)).clamp(1, n_rows.max(1));
        let mut own_codes = vec![0; window * code_bytes];
        let mut own_scales = vec![0; window * scale_words];
        let mut scale_bytes = Vec::with_capacity(window * scale_words * 4);
        for start in (0..n_rows).step_by(window) {
            let count = window.min(n_rows - start);
            for row in 0..count {
                order::copy_row(&view, first + start + row, &mut stored);
                let codes = &mut own_codes[row * code_bytes..][..code_bytes];
                layout.lay(&stored, codes, &mut own_scales[row * scale_words..][..scale_words]);
            }
            self.write(&codes, start * code_bytes, &own_codes[..count * code_bytes])?;
            scale_bytes.clear();
            scale_bytes.extend(own_scales[..count * scale_words].iter().flat_map(|word| word.to_le_bytes()));
            self.write(&scales, start * scale_words * 4, &scale_bytes)?;
        }
        Ok(Part { codes, scales, first, n_rows })
    }

    /// A vector as f32.
    pub(super) fn vector(&mut self, weight: &Weight) -> Result<::wgpu::Buffer, DeviceError> {
        if let Some(known) = self.vectors.get(&identity(weight)) {
            return Ok(known.clone());
        }
        let mut values = vec![0.0; weight.cols()];
        order::decode_row(&weight.view(), 0, &mut values).map_err(|error| DeviceError::Refused(error.to_string()))?;
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        let buffer = self.gpu.storage("a vector", bytes.len() as u64)?;
        self.n_bytes += bytes.len() as u64;
        self.write(&buffer, 0, &bytes)?;
        self.vectors.insert(identity(weight), buffer.clone());
        Ok(buffer)
    }

    fn write(&mut self, buffer: &::wgpu::Buffer, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.gpu.scoped("weights", bytes.len() as u64, || self.gpu.queue.write_buffer(buffer, at as u64, bytes))?;
        self.under_way += bytes.len();
        if self.under_way >= UNDER_WAY_BYTES {
            self.under_way = 0;
            self.gpu.flush()?;
        }
        Ok(())
    }
}
