//! What keys and values come from: they are of use only where all of it is the same.

use farpost_kernels::backend::{Activations, KvType};
use farpost_kernels::graph::{Graph, KvLayer, Op, RopeStyle};
use farpost_models::gguf::ContentHash;
use sha2::{Digest, Sha256};

use super::error::SessionFileError;
use crate::model::Model;

/// Where keys and values come from.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) struct Origin {
    pub(super) model: ContentHash,
    /// Rotations are made when a model is opened; some depend on the context asked for.
    pub(super) rotations: ContentHash,
    pub(super) kv_type: KvType,
    pub(super) activations: Activations,
    pub(super) layers: Vec<KvLayer>,
}

impl Origin {
    /// That of a plan for `model`.
    pub(in crate::engine) fn of(
        model: &Model,
        kv_type: KvType,
        activations: Activations,
    ) -> Result<Self, SessionFileError> {
        let graph = model.graph();
        let (layers, rotations) = (graph.kv_layers().to_vec(), rotations(graph));
        Ok(Self { model: model.content_hash()?, rotations, kv_type, activations, layers })
    }

    /// Refuses what comes from elsewhere. `Err` holds what differs, what was found and what was expected.
    pub(super) fn require(&self, found: &Self) -> Result<(), (String, String, String)> {
        let same = |what: &str, is_same: bool, found: &dyn ToString, expected: &dyn ToString| match is_same {
            true => Ok(()),
            false => Err((what.to_owned(), found.to_string(), expected.to_string())),
        };
        let (kv, activations) = (self.kv_type, self.activations);
        same("the hash of the model it was made with", found.model == self.model, &found.model, &self.model)?;
        same("the storage of keys and values", found.kv_type == kv, &found.kv_type.name(), &kv.name())?;
        let is_same = found.activations == activations;
        same("the rounding of activations", is_same, &found.activations.name(), &activations.name())?;
        let is_same = found.rotations == self.rotations;
        same("the hash of the rotations for its context", is_same, &found.rotations, &self.rotations)?;
        same("the number of layers", found.layers.len() == self.layers.len(), &found.layers.len(), &self.layers.len())?;
        for (number, (found, expected)) in found.layers.iter().zip(&self.layers).enumerate() {
            let what = format!("the shape of layer {number}");
            same(&what, found == expected, &shape(found), &shape(expected))?;
        }
        Ok(())
    }
}

fn shape(layer: &KvLayer) -> String {
    let KvLayer { n_kv_heads, key_dim, value_dim, window } = layer;
    let window = window.map_or("none".to_owned(), |window| window.to_string());
    format!("{n_kv_heads} heads of {key_dim} and {value_dim} with window {window}")
}

/// SHA-256 of everything about rotations.
fn rotations(graph: &Graph) -> ContentHash {
    let mut hash = Sha256::new();
    for op in graph.ops() {
        let Op::Rope { head_dim, rope, .. } = op else { continue };
        let style = match rope.style {
            RopeStyle::Normal => 0_u64,
            RopeStyle::HalfSplit => 1,
        };
        for number in [style, *head_dim as u64, rope.frequencies.len() as u64] {
            hash.update(number.to_le_bytes());
        }
        hash.update(rope.magnitude.to_le_bytes());
        rope.frequencies.iter().for_each(|frequency| hash.update(frequency.to_le_bytes()));
    }
    ContentHash(hash.finalize().into())
}
