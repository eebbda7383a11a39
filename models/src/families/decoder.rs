//! The blocks that decoder-only families are built from: embedding, projections, attention, feed-forward, head.
//!
//! A [`Decoder`] holds the graph so far, the file's tensors and the configuration. Each block fetches its tensors by
//! their usual names, so that a family's file says only in which order blocks follow and where it differs.

use std::sync::Arc;

use farpost_kernels::graph::{Activation, Graph, GraphBuilder, GraphError, KvLayer, Moe, Rope, RopeStyle, Value};
use farpost_kernels::tensor::Weight;

use super::config::{Config, FeedForward};
use super::error::FamilyError;
use super::rope::RopeSettings;
use super::weights::Weights;

/// Queries, keys and values of a layer.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) q: Value,
    pub(super) k: Value,
    pub(super) v: Value,
}

/// How the heads of a layer attend.
#[derive(Clone, Copy)]
pub(super) struct Attend {
    /// Factor on scores.
    pub(super) scale: f32,
    /// Cap of scores.
    pub(super) softcap: Option<f32>,
    /// Positions seen.
    pub(super) window: Option<usize>,
}

/// A model being built.
pub(super) struct Decoder<'f> {
    pub(super) config: &'f Config,
    pub(super) weights: Weights<'f>,
    pub(super) graph: GraphBuilder,
}

/// The name of a layer's tensor.
pub(super) fn named(layer: usize, part: &str) -> String {
    format!("blk.{layer}.{part}")
}

impl<'f> Decoder<'f> {
    pub(super) fn new(config: &'f Config, weights: Weights<'f>) -> Self {
        Self { config, weights, graph: GraphBuilder::new() }
    }

    /// Names the file beside what the graph found wrong.
    pub(super) fn checked<T>(&self, result: Result<T, GraphError>) -> Result<T, FamilyError> {
        result.map_err(|source| FamilyError::Graph { file: self.weights.file_name().to_owned(), source })
    }

    fn embedding(&mut self) -> Result<Weight, FamilyError> {
        let Config { n_vocab, width, .. } = *self.config;
        self.weights.matrix_because("token_embd.weight", n_vocab, width, "from the width and the number of tokens")
    }

    /// Rows of the embedding, times `scale`.
    pub(super) fn embed(&mut self, scale: f32) -> Result<Value, FamilyError> {
        let table = self.embedding()?;
        Ok(self.graph.embed(table, scale))
    }

    /// Rotary frequencies of `settings`, with the file's divisors: those of Llama 3, or the long or short ones of
    /// LongRoPE, chosen by the context the graph is built for against the original one.
    pub(super) fn rope(&mut self, settings: &RopeSettings, style: RopeStyle) -> Result<Arc<Rope>, FamilyError> {
        const LLAMA3: &str = "rope_freqs.weight";
        const LONG: &str = "rope_factors_long.weight";
        const SHORT: &str = "rope_factors_short.weight";
        let n_pairs = settings.dims / 2;
        let divisors = if self.weights.has(LLAMA3) {
            Some(self.weights.divisors(LLAMA3, n_pairs)?)
        } else if self.weights.has(LONG) || self.weights.has(SHORT) {
            let long = self.weights.divisors(LONG, n_pairs)?;
            let short = self.weights.divisors(SHORT, n_pairs)?;
            Some(if self.config.context > settings.original_context { long } else { short })
        } else {
            None
        };
        Ok(Arc::new(settings.table(style, divisors.as_deref())))
    }

    /// The norm `part` of a layer over whole rows.
    pub(super) fn norm(&mut self, layer: usize, part: &str, x: Value) -> Result<Value, FamilyError> {
        self.norm_of(&named(layer, part), self.config.width, x)
    }

    /// The norm `name` over groups of `len` neighbours.
    fn norm_of(&mut self, name: &str, len: usize, x: Value) -> Result<Value, FamilyError> {
        let weight = self.weights.vector(name, len)?;
        let normed = self.graph.norm(x, weight, self.config.norm_eps);
        self.checked(normed)
    }

    /// `x` times the matrix `stem.weight`, plus `stem.bias` where the file has one.
    pub(super) fn linear(&mut self, layer: usize, stem: &str, rows: usize, x: Value) -> Result<Value, FamilyError> {
        let weight = self.weights.matrix(&named(layer, &format!("{stem}.weight")), rows, self.graph.width(x))?;
        let bias = self.weights.optional_vector(&named(layer, &format!("{stem}.bias")), rows)?;
        let product = self.graph.linear(x, weight, bias);
        self.checked(product)
    }

    /// Widths of queries, keys and values in a layer.
    pub(super) fn head_widths(&self, layer: usize) -> [usize; 3] {
        let Config { n_heads, key_dim, value_dim, .. } = *self.config;
        // Bounded by `Config`: neither heads nor their size passes 2^16, and 32-bit targets saturate.
        let width = |heads: usize, dim: usize| heads.saturating_mul(dim);
        let n_kv_heads = self.config.n_kv_heads[layer];
        [width(n_heads, key_dim), width(n_kv_heads, key_dim), width(n_kv_heads, value_dim)]
    }

    /// Queries, keys and values from three matrices.
    pub(super) fn heads(&mut self, layer: usize, x: Value) -> Result<Heads, FamilyError> {
        let [q, k, v] = self.head_widths(layer);
        Ok(Heads {
            q: self.linear(layer, "attn_q", q, x)?,
            k: self.linear(layer, "attn_k", k, x)?,
            v: self.linear(layer, "attn_v", v, x)?,
        })
    }

    /// Norms of each query and key head by itself.
    pub(super) fn norm_heads(&mut self, layer: usize, heads: Heads) -> Result<Heads, FamilyError> {
        let dim = self.config.key_dim;
        let q = self.norm_of(&named(layer, "attn_q_norm.weight"), dim, heads.q)?;
        let k = self.norm_of(&named(layer, "attn_k_norm.weight"), dim, heads.k)?;
        Ok(Heads { q, k, ..heads })
    }

    /// Turns queries and keys by their positions.
    pub(super) fn rotate(&mut self, heads: Heads, rope: &Arc<Rope>) -> Result<Heads, FamilyError> {
        let dim = self.config.key_dim;
        let q = self.graph.rope(heads.q, dim, rope);
        let k = self.graph.rope(heads.k, dim, rope);
        Ok(Heads { q: self.checked(q)?, k: self.checked(k)?, ..heads })
    }

    /// Attention and the projection of its result.
    pub(super) fn attend(&mut self, layer: usize, heads: Heads, how: Attend) -> Result<Value, FamilyError> {
        let Config { n_heads, key_dim, value_dim, width, .. } = *self.config;
        let kv = KvLayer { n_kv_heads: self.config.n_kv_heads[layer], key_dim, value_dim, window: how.window };
        let mixed = self.graph.attention((heads.q, heads.k, heads.v), kv, n_heads, how.scale, how.softcap);
        let mixed = self.checked(mixed)?;
        self.linear(layer, "attn_output", width, mixed)
    }

    /// `1 / sqrt(key_dim)`, unless the file names the factor.
    pub(super) fn attention_scale(&self) -> f32 {
        self.config.attention_scale.unwrap_or_else(|| (1.0 / (self.config.key_dim as f64).sqrt()) as f32)
    }

    /// The feed-forward part: one gated unit, or experts.
    pub(super) fn feed_forward(
        &mut self,
        layer: usize,
        activation: Activation,
        x: Value,
    ) -> Result<Value, FamilyError> {
        match self.config.feed_forward {
            FeedForward::Gated { ff } => {
                let gate = self.linear(layer, "ffn_gate", ff, x)?;
                let up = self.linear(layer, "ffn_up", ff, x)?;
                self.gated_down(layer, activation, gate, up)
            }
            FeedForward::Experts { n, n_used, ff } => {
                let width = self.config.width;
                let moe = Moe {
                    router: self.weights.float_matrix(&named(layer, "ffn_gate_inp.weight"), n, width)?,
                    gate: self.weights.stack(&named(layer, "ffn_gate_exps.weight"), n, ff, width)?,
                    up: self.weights.stack(&named(layer, "ffn_up_exps.weight"), n, ff, width)?,
                    down: self.weights.stack(&named(layer, "ffn_down_exps.weight"), n, width, ff)?,
                    n_used,
                    // Mixtral and Qwen 3 both share out the whole weight among the chosen experts.
                    renormalise: true,
                    activation,
                };
                let mixed = self.graph.moe(x, moe);
                self.checked(mixed)
            }
        }
    }

    /// `activation(gate) * up`, and back to the model's width.
    pub(super) fn gated_down(
        &mut self,
        layer: usize,
        activation: Activation,
        gate: Value,
        up: Value,
    ) -> Result<Value, FamilyError> {
        let hidden = self.graph.glu(gate, up, activation);
        let hidden = self.checked(hidden)?;
        self.linear(layer, "ffn_down", self.config.width, hidden)
    }

    /// `a + b`.
    pub(super) fn add(&mut self, a: Value, b: Value) -> Result<Value, FamilyError> {
        let sum = self.graph.add(a, b);
        self.checked(sum)
    }

    /// The last norm and the logits, capped where families say so. Without a head of its own a model uses its embedding.
    pub(super) fn head(mut self, x: Value, softcap: Option<f32>) -> Result<Graph, FamilyError> {
        let Config { n_vocab, width, context, .. } = *self.config;
        let x = self.norm_of("output_norm.weight", width, x)?;
        let weight = if self.weights.has("output.weight") {
            self.weights.matrix("output.weight", n_vocab, width)?
        } else {
            self.embedding()?
        };
        let bias = self.weights.optional_vector("output.bias", n_vocab)?;
        let Self { weights, graph, .. } = self;
        let file = weights.file_name().to_owned();
        weights.finish()?;
        graph.head(x, weight, bias, 1.0, softcap, context).map_err(|source| FamilyError::Graph { file, source })
    }
}
