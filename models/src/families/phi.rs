//! Phi 3, 3.5 and 4 (arXiv 2404.14219): one matrix for queries, keys and values, one for gate and up (the gate comes
//! first), and long contexts through LongRoPE's divisors.

use farpost_kernels::graph::{Activation, Graph, RopeStyle, Value};

use super::decoder::{Attend, Decoder, Heads, named};
use super::error::FamilyError;

/// Builds the graph of architecture `phi3`.
pub(super) fn build(mut model: Decoder<'_>) -> Result<Graph, FamilyError> {
    let config = model.config;
    let rope = model.rope(&config.rope, RopeStyle::HalfSplit)?;
    let how = Attend { scale: model.attention_scale(), softcap: None, window: config.window };
    let mut x = model.embed(1.0)?;
    for layer in 0..config.n_layers {
        let normed = model.norm(layer, "attn_norm.weight", x)?;
        let widths = model.head_widths(layer);
        let [q, k, v] = split(&mut model, layer, "attn_qkv", widths, normed)?;
        let heads = model.rotate(Heads { q, k, v }, &rope)?;
        let attended = model.attend(layer, heads, how)?;
        x = model.add(x, attended)?;

        let normed = model.norm(layer, "ffn_norm.weight", x)?;
        let ff = config.feed_forward.ff();
        let [gate, up] = split(&mut model, layer, "ffn_up", [ff, ff], normed)?;
        let fed = model.gated_down(layer, Activation::Silu, gate, up)?;
        x = model.add(x, fed)?;
    }
    model.head(x, config.final_softcap)
}

/// Products with consecutive parts, of these many rows, of the matrix `stem.weight`.
fn split<const N: usize>(
    model: &mut Decoder<'_>,
    layer: usize,
    stem: &str,
    rows: [usize; N],
    x: Value,
) -> Result<[Value; N], FamilyError> {
    let total = rows.iter().fold(0_usize, |sum, rows| sum.saturating_add(*rows));
    let whole = model.weights.matrix(&named(layer, &format!("{stem}.weight")), total, model.graph.width(x))?;
    let mut products = [x; N];
    let mut start = 0;
    for (product, rows) in products.iter_mut().zip(rows) {
        let part = whole.slice_rows(start..start + rows).expect("the parts add up to the matrix's rows");
        start += rows;
        let made = model.graph.linear(x, part, None);
        *product = model.checked(made)?;
    }
    Ok(products)
}
