//! Gemma 2 (arXiv 2408.00118) and Gemma 3 (arXiv 2503.19786): embeddings times sqrt(width), norms before and after
//! attention and feed-forward, layers with a sliding window between layers without.
//!
//! Gemma 2 caps scores and logits, and every other layer has the window, the first included. Gemma 3 has a norm on
//! each query and key head instead of caps; of six layers the first five have the window and rotary frequencies of
//! their own, which are never stretched. Norm weights in files include the 1 that the papers add.

use std::sync::Arc;

use farpost_kernels::graph::{Activation, Graph, Rope, RopeStyle};

use super::config::Config;
use super::decoder::{Attend, Decoder};
use super::error::FamilyError;
use super::keys::every_but;

/// What sets a member of the family apart.
struct Member {
    /// Layers of the size whose queries are scaled by the model's width over the heads, not by the size of a head.
    n_layers_scaled_by_width: usize,
    /// Tokens of the window where the file names none.
    window: usize,
    /// Every so many layers one is without window, where the file names no pattern.
    period: usize,
    /// A norm on each query and key head.
    has_head_norms: bool,
    /// Base of the rotary frequencies in layers with the window, where the file names none; `None` is the other base.
    windowed_base: Option<f32>,
    /// Caps of scores and logits where the file names none.
    softcaps: Option<(f32, f32)>,
}

/// Builds the graph of architecture `gemma2`.
pub(super) fn build_gemma2(model: Decoder<'_>) -> Result<Graph, FamilyError> {
    let member = Member {
        n_layers_scaled_by_width: 46,
        window: 4096,
        period: 2,
        has_head_norms: false,
        windowed_base: None,
        softcaps: Some((50.0, 30.0)),
    };
    build(model, &member)
}

/// Builds the graph of architecture `gemma3`.
pub(super) fn build_gemma3(model: Decoder<'_>) -> Result<Graph, FamilyError> {
    let member = Member {
        n_layers_scaled_by_width: 62,
        window: 1024,
        period: 6,
        has_head_norms: true,
        windowed_base: Some(10_000.0),
        softcaps: None,
    };
    build(model, &member)
}

fn build(mut model: Decoder<'_>, member: &Member) -> Result<Graph, FamilyError> {
    let config = model.config;
    let rope = model.rope(&config.rope, RopeStyle::HalfSplit)?;
    let windowed_rope = windowed_rope(config, member, &rope);
    let windowed = config.windowed_layers.clone().unwrap_or_else(|| every_but(member.period, config.n_layers));
    let window = config.window.unwrap_or(member.window);
    let scale = query_scale(&model, member);
    let softcap = config.attention_softcap.or(member.softcaps.map(|(scores, _)| scores));
    let final_softcap = config.final_softcap.or(member.softcaps.map(|(_, logits)| logits));

    let mut x = model.embed((config.width as f64).sqrt() as f32)?;
    for (layer, is_windowed) in windowed.into_iter().enumerate() {
        let normed = model.norm(layer, "attn_norm.weight", x)?;
        let mut heads = model.heads(layer, normed)?;
        if member.has_head_norms {
            heads = model.norm_heads(layer, heads)?;
        }
        let heads = model.rotate(heads, if is_windowed { &windowed_rope } else { &rope })?;
        let how = Attend { scale, softcap, window: is_windowed.then_some(window) };
        let attended = model.attend(layer, heads, how)?;
        let attended = model.norm(layer, "post_attention_norm.weight", attended)?;
        x = model.add(x, attended)?;

        let normed = model.norm(layer, "ffn_norm.weight", x)?;
        let fed = model.feed_forward(layer, Activation::GeluTanh, normed)?;
        let fed = model.norm(layer, "post_ffw_norm.weight", fed)?;
        x = model.add(x, fed)?;
    }
    model.head(x, final_softcap)
}

/// The frequencies of layers with the window.
fn windowed_rope(config: &Config, member: &Member, rope: &Arc<Rope>) -> Arc<Rope> {
    match config.rope.windowed_base.or(member.windowed_base) {
        Some(base) => Arc::new(config.rope.unscaled(base).table(RopeStyle::HalfSplit, None)),
        None => Arc::clone(rope),
    }
}

/// Factor on scores: `1 / sqrt(head)`, but `1 / sqrt(width / heads)` in the 27B models.
fn query_scale(model: &Decoder<'_>, member: &Member) -> f32 {
    let config = model.config;
    if config.attention_scale.is_none() && config.n_layers == member.n_layers_scaled_by_width {
        return (config.n_heads as f64 / config.width as f64).sqrt() as f32;
    }
    model.attention_scale()
}
