//! Codes, scales and minima of stored rows as [`Format`] gives them, for devices that keep weights in a form of their own.

use super::format::{Format, Unpacked, unpack_stored};
use super::input::CHUNK;
use super::with_format;
use crate::tensor::DType;

/// How a block type is coded: weight `i` is `scale[i / sub] * (code[i] - offset) + min[i / sub]`.
#[derive(Clone, Copy)]
pub(crate) struct Coded {
    /// Weights under one scale: 16 or 32.
    pub(crate) sub: usize,
    /// What a code stands above its level.
    pub(crate) offset: u8,
    /// Whether minima are anything but zero.
    pub(crate) has_min: bool,
    /// Whether scales and minima are given as the bits of halves.
    pub(crate) stored_halves: bool,
    /// What codes of 4 bits stand for, above the offset.
    pub(crate) table: Option<[u8; 16]>,
    /// Bytes of 256 weights.
    chunk_bytes: usize,
    unpack: fn(&[u8], &mut Unpacked),
}

/// How a type is coded; `None` for plain numbers.
pub(crate) fn coded(dtype: DType) -> Option<Coded> {
    with_format!(dtype, F => Some(of::<F>()), None)
}

fn of<F: Format>() -> Coded {
    Coded {
        sub: F::SUB,
        offset: F::OFFSET,
        has_min: F::HAS_MIN,
        stored_halves: F::STORED_HALVES,
        table: F::TABLE,
        chunk_bytes: CHUNK / F::LEN * F::BYTES,
        unpack: unpack_stored::<F>,
    }
}

impl Coded {
    /// Calls `visit` with codes, scales and minima of 256 weights after 256 of a row, the last ones fewer: those that lie
    /// behind the row's end stand for nothing. Codes with a table are left as stored.
    pub(crate) fn for_each_chunk(&self, row: &[u8], mut visit: impl FnMut(&[u8; CHUNK], &[f32; 16], &[f32; 16])) {
        let mut unpacked = Unpacked::new();
        for bytes in row.chunks(self.chunk_bytes) {
            (self.unpack)(bytes, &mut unpacked);
            visit(&unpacked.codes, &unpacked.scales, &unpacked.mins);
        }
    }
}
