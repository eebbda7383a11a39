//! The head of a session file: what stands before keys and values, and how long all is.

use farpost_kernels::backend::{Activations, KvType};
use farpost_kernels::graph::KvLayer;
use farpost_models::gguf::ContentHash;

use super::origin::Origin;

pub(super) const MAGIC: [u8; 8] = *b"FARPOSTS";
pub(super) const VERSION: u32 = 2;
/// Bytes of a checksum.
pub(super) const SUM_BYTES: usize = 32;
/// Bytes of what every head begins with.
pub(super) const FIXED_BYTES: usize = 104;
/// Bytes of the shape of a layer.
const LAYER_BYTES: usize = 16;

const KV_TYPES: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::F32];
const ACTIVATIONS: [Activations; 3] = [Activations::Auto, Activations::Int8, Activations::Int16];

/// What every head begins with, as it was found: nothing in it is checked but the magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fixed {
    pub(super) version: u32,
    kv_type: u32,
    activations: u32,
    pub(super) n_layers: u32,
    pub(super) n_tokens: u32,
    pub(super) note_bytes: u32,
    pub(super) kv_bytes: u64,
    model: ContentHash,
    rotations: ContentHash,
}

impl Fixed {
    /// `None` where the magic is another.
    pub(super) fn read(bytes: &[u8; FIXED_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let mut rest = rest;
        let mut number = || -> Option<u32> {
            let (number, behind) = rest.split_first_chunk()?;
            rest = behind;
            Some(u32::from_le_bytes(*number))
        };
        let [version, kv_type, activations, n_layers, n_tokens, note_bytes] =
            [number()?, number()?, number()?, number()?, number()?, number()?];
        let (kv_bytes, rest) = rest.split_first_chunk()?;
        let (model, rest) = rest.split_first_chunk()?;
        let (rotations, _) = rest.split_first_chunk()?;
        (*magic == MAGIC).then_some(Self {
            version,
            kv_type,
            activations,
            n_layers,
            n_tokens,
            note_bytes,
            kv_bytes: u64::from_le_bytes(*kv_bytes),
            model: ContentHash(*model),
            rotations: ContentHash(*rotations),
        })
    }

    /// Bytes between this and the checksum of the head.
    pub(super) fn rest_bytes(&self) -> u64 {
        let layers = u64::from(self.n_layers) * LAYER_BYTES as u64;
        layers + u64::from(self.n_tokens) * size_of::<u32>() as u64 + u64::from(self.note_bytes)
    }

    /// Bytes of the whole file; `None` where that is more than can be.
    pub(super) fn file_bytes(&self) -> Option<u64> {
        let head = FIXED_BYTES as u64 + self.rest_bytes() + 2 * SUM_BYTES as u64;
        self.kv_bytes.checked_add(head)
    }

    /// With what stands behind it; `None` if a number stands for nothing, or there is less than it says.
    pub(super) fn with_rest(&self, rest: &[u8]) -> Option<(Origin, Vec<u32>, Vec<u8>)> {
        let layer_bytes = (self.n_layers as usize).checked_mul(LAYER_BYTES)?;
        let (layers, rest) = rest.split_at_checked(layer_bytes)?;
        let (tokens, note) = rest.split_at_checked((self.n_tokens as usize).checked_mul(size_of::<u32>())?)?;
        let numbers =
            |bytes: &[u8]| -> Vec<u32> { bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect() };
        let layer = |bytes: &[u8; LAYER_BYTES]| {
            let [n_kv_heads, key_dim, value_dim, window] = numbers(bytes)[..] else { return None };
            let window = (window > 0).then_some(window as usize);
            let [n_kv_heads, key_dim, value_dim] = [n_kv_heads, key_dim, value_dim].map(|number| number as usize);
            Some(KvLayer { n_kv_heads, key_dim, value_dim, window })
        };
        let origin = Origin {
            model: self.model,
            rotations: self.rotations,
            kv_type: *KV_TYPES.get(self.kv_type as usize)?,
            activations: *ACTIVATIONS.get(self.activations as usize)?,
            layers: layers.as_chunks().0.iter().map(layer).collect::<Option<_>>()?,
        };
        Some((origin, numbers(tokens), note.to_vec()))
    }
}

/// The whole head without its checksum; `None` where a number is too large for its field.
pub(super) fn write(origin: &Origin, kv_bytes: u64, tokens: &[u32], note: &[u8]) -> Option<Vec<u8>> {
    let number = |number: usize| u32::try_from(number).ok();
    let kv_type = KV_TYPES.iter().position(|kv_type| *kv_type == origin.kv_type)?;
    let activations = ACTIVATIONS.iter().position(|activations| *activations == origin.activations)?;
    let mut bytes = MAGIC.to_vec();
    let counts = [kv_type, activations, origin.layers.len(), tokens.len(), note.len()];
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    for count in counts {
        bytes.extend_from_slice(&number(count)?.to_le_bytes());
    }
    bytes.extend_from_slice(&kv_bytes.to_le_bytes());
    bytes.extend_from_slice(&origin.model.0);
    bytes.extend_from_slice(&origin.rotations.0);
    for KvLayer { n_kv_heads, key_dim, value_dim, window } in &origin.layers {
        for count in [*n_kv_heads, *key_dim, *value_dim, window.unwrap_or(0)] {
            bytes.extend_from_slice(&number(count)?.to_le_bytes());
        }
    }
    tokens.iter().for_each(|token| bytes.extend_from_slice(&token.to_le_bytes()));
    bytes.extend_from_slice(note);
    Some(bytes)
}
