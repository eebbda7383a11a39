//! Llama (arXiv 2302.13971, 2307.09288, 2407.21783) and what shares its architecture: Mistral, SmolLM, TinyLlama, and
//! Mixtral (arXiv 2401.04088) with its experts.
//!
//! Files hold query and key rows reordered, so that neighbours rotate together.

use farpost_kernels::graph::{Activation, Graph, RopeStyle};

use super::decoder::{Attend, Decoder};
use super::error::FamilyError;

/// Builds the graph of architecture `llama`.
pub(super) fn build(mut model: Decoder<'_>) -> Result<Graph, FamilyError> {
    let config = model.config;
    let rope = model.rope(&config.rope, RopeStyle::Normal)?;
    let how = Attend { scale: model.attention_scale(), softcap: None, window: None };
    let mut x = model.embed(1.0)?;
    for layer in 0..config.n_layers {
        let normed = model.norm(layer, "attn_norm.weight", x)?;
        let heads = model.heads(layer, normed)?;
        let heads = model.rotate(heads, &rope)?;
        let attended = model.attend(layer, heads, how)?;
        x = model.add(x, attended)?;

        let normed = model.norm(layer, "ffn_norm.weight", x)?;
        let fed = model.feed_forward(layer, Activation::Silu, normed)?;
        x = model.add(x, fed)?;
    }
    model.head(x, config.final_softcap)
}
