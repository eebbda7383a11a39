//! Qwen 2 and 2.5 (arXiv 2407.10671): biases on queries, keys and values. Qwen 3 (arXiv 2505.09388): none of them, but
//! a norm on each query and key head before it rotates; dense or with experts.

use farpost_kernels::graph::{Activation, Graph, RopeStyle};

use super::decoder::{Attend, Decoder, Heads, named};
use super::error::FamilyError;

/// Builds the graph of architecture `qwen2`.
pub(super) fn build_qwen2(model: Decoder<'_>) -> Result<Graph, FamilyError> {
    build(model, |model, layer, heads| {
        // `Decoder::heads` added the biases that are there; without one of them the file is not whole.
        for (bias, width) in ["attn_q.bias", "attn_k.bias", "attn_v.bias"].into_iter().zip(model.head_widths(layer)) {
            model.weights.vector(&named(layer, bias), width)?;
        }
        Ok(heads)
    })
}

/// Builds the graph of architectures `qwen3` and `qwen3moe`, which differ in the feed-forward part alone.
pub(super) fn build_qwen3(model: Decoder<'_>) -> Result<Graph, FamilyError> {
    build(model, Decoder::norm_heads)
}

/// The layers, with `prepare` between projection and rotation.
fn build<'f>(
    mut model: Decoder<'f>,
    prepare: impl Fn(&mut Decoder<'f>, usize, Heads) -> Result<Heads, FamilyError>,
) -> Result<Graph, FamilyError> {
    let config = model.config;
    let rope = model.rope(&config.rope, RopeStyle::HalfSplit)?;
    // Files may name a window; published weights do not use it.
    let how = Attend { scale: model.attention_scale(), softcap: None, window: None };
    let mut x = model.embed(1.0)?;
    for layer in 0..config.n_layers {
        let normed = model.norm(layer, "attn_norm.weight", x)?;
        let heads = model.heads(layer, normed)?;
        let heads = prepare(&mut model, layer, heads)?;
        let heads = model.rotate(heads, &rope)?;
        let attended = model.attend(layer, heads, how)?;
        x = model.add(x, attended)?;

        let normed = model.norm(layer, "ffn_norm.weight", x)?;
        let fed = model.feed_forward(layer, Activation::Silu, normed)?;
        x = model.add(x, fed)?;
    }
    model.head(x, config.final_softcap)
}
