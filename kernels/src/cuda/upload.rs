//! Weights on the device: laid out anew while they are copied from the map, some megabytes at a time.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::gpu::{Buffer, Gpu};
use crate::backend::DeviceError;
use crate::device::layout::{Layout, UNIT};
use crate::order;
use crate::tensor::Weight;

/// Bytes laid out at a time.
const WINDOW_BYTES: usize = 4 << 20;

/// A weight on the device.
pub(super) struct Uploaded {
    pub(super) layout: Layout,
    pub(super) codes: Buffer,
    /// None of plain numbers.
    pub(super) scales: Option<Buffer>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Uploaded {
    /// Units of 32 weights of a row.
    pub(super) fn units(&self) -> usize {
        self.cols.div_ceil(UNIT)
    }
}

/// Where a weight's bytes are, with its shape.
pub(super) type Identity = (usize, usize, usize);

/// What tells one weight from another.
pub(super) fn identity(weight: &Weight) -> Identity {
    (weight.bytes().as_slice().as_ptr() as usize, weight.bytes().len(), weight.cols())
}

/// Brings weights onto the device. One that is used twice (a tied embedding) is there once.
pub(super) struct Uploads<'g> {
    gpu: &'g Arc<Gpu>,
    known: HashMap<Identity, Rc<Uploaded>>,
    vectors: HashMap<Identity, Buffer>,
    /// Bytes of weights on the device.
    pub(super) n_bytes: u64,
}

impl<'g> Uploads<'g> {
    pub(super) fn new(gpu: &'g Arc<Gpu>) -> Self {
        Self { gpu, known: HashMap::new(), vectors: HashMap::new(), n_bytes: 0 }
    }

    /// All buffers that weights lie in.
    pub(super) fn into_buffers(self) -> Vec<Buffer> {
        let matrices = self.known.into_values();
        let of_matrices = matrices.flat_map(|weight| [Some(weight.codes.clone()), weight.scales.clone()]);
        of_matrices.flatten().chain(self.vectors.into_values()).collect()
    }

    /// A matrix in the form of its type.
    pub(super) fn matrix(&mut self, weight: &Weight) -> Result<Rc<Uploaded>, DeviceError> {
        if let Some(known) = self.known.get(&identity(weight)) {
            return Ok(Rc::clone(known));
        }
        let (cols, n_rows) = (weight.cols(), weight.rows());
        let layout = Layout::of(weight.dtype());
        let (code_bytes, scale_words) = (layout.code_bytes(cols), layout.scale_words(cols));
        let codes = self.gpu.buffer("weights", (n_rows * code_bytes) as u64)?;
        let scales = match scale_words {
            0 => None,
            words => Some(self.gpu.buffer("scales of weights", (n_rows * words * 4) as u64)?),
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
                order::copy_row(&view, start + row, &mut stored);
                let codes = &mut own_codes[row * code_bytes..][..code_bytes];
                layout.lay(&stored, codes, &mut own_scales[row * scale_words..][..scale_words]);
            }
            self.gpu.write(&codes, (start * code_bytes) as u64, &own_codes[..count * code_bytes])?;
            if let Some(scales) = &scales {
                scale_bytes.clear();
                scale_bytes.extend(own_scales[..count * scale_words].iter().flat_map(|word| word.to_le_bytes()));
                self.gpu.write(scales, (start * scale_words * 4) as u64, &scale_bytes)?;
            }
        }
        let uploaded = Rc::new(Uploaded { layout, codes, scales, rows: n_rows, cols });
        self.known.insert(identity(weight), Rc::clone(&uploaded));
        Ok(uploaded)
    }

    /// A vector as f32.
    pub(super) fn vector(&mut self, weight: &Weight) -> Result<Buffer, DeviceError> {
        if let Some(known) = self.vectors.get(&identity(weight)) {
            return Ok(known.clone());
        }
        let mut values = vec![0.0; weight.cols()];
        order::decode_row(&weight.view(), 0, &mut values).map_err(|error| DeviceError::Refused(error.to_string()))?;
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        let buffer = self.gpu.buffer("a vector", bytes.len() as u64)?;
        self.n_bytes += bytes.len() as u64;
        self.gpu.write(&buffer, 0, &bytes)?;
        self.vectors.insert(identity(weight), buffer.clone());
        Ok(buffer)
    }
}
