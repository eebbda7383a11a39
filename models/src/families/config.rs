//! What a model's metadata says of it, checked once so that nobody below has to.
//!
//! A `Config` holds the file's facts with the defaults that all families share; what one family takes for granted
//! (which layers have a window, how queries are scaled) stands in that family's file.

use crate::gguf;

use super::Options;
use super::error::FamilyError;
use super::keys::Keys;
use super::rope::RopeSettings;

// More than any model has; they bound loops and tables that numbers from files drive. Sizes of tensors need no bound
// of their own: the tensors must be there.
const MAX_LAYERS: usize = 16_384;
const MAX_WIDTH: usize = 1 << 24;
const MAX_HEADS: usize = 1 << 16;
const MAX_HEAD_DIM: usize = 1 << 16;
const MAX_EXPERTS: usize = 1 << 16;

/// Most positions a graph can be built for.
pub(super) const MAX_CONTEXT: usize = 1 << 24;

/// The feed-forward part of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// One gated unit.
    Gated {
        /// Its hidden width.
        ff: usize,
    },
    /// A mixture of gated units.
    Experts {
        /// Experts in a layer.
        n: usize,
        /// Experts a token uses.
        n_used: usize,
        /// Hidden width of one expert.
        ff: usize,
    },
}

impl FeedForward {
    /// Hidden width of one unit.
    pub fn ff(&self) -> usize {
        match *self {
            Self::Gated { ff } | Self::Experts { ff, .. } => ff,
        }
    }
}

/// How the rows of a text become one embedding, in models that are made for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all rows.
    Mean,
    /// The row of the first token.
    First,
    /// The row of the last token, which has seen all others.
    Last,
}

impl Pooling {
    /// Its name in reports: "mean", "cls" or "last", as the field has them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::First => "cls",
            Self::Last => "last",
        }
    }
}

/// The shape and settings of a model, from its metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of the architecture.
    pub architecture: &'static str,
    /// Number of layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads of each layer; they divide the query heads.
    pub n_kv_heads: Vec<usize>,
    /// Elements of one query or key head.
    pub key_dim: usize,
    /// Elements of one value head.
    pub value_dim: usize,
    /// The feed-forward part.
    pub feed_forward: FeedForward,
    /// Positions the model was trained for.
    pub trained_context: usize,
    /// Positions the graph is built for.
    pub context: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeSettings,
    /// Sliding window in tokens, in the layers that have one.
    pub window: Option<usize>,
    /// Which layers have the window, if the file says so.
    pub windowed_layers: Option<Vec<bool>>,
    /// Factor on attention scores, if the file names one; else families compute it.
    pub attention_scale: Option<f32>,
    /// Cap of attention scores.
    pub attention_softcap: Option<f32>,
    /// Cap of logits.
    pub final_softcap: Option<f32>,
    /// How texts become embeddings; `None` for models that write.
    pub pooling: Option<Pooling>,
}

impl Config {
    /// Reads and checks the metadata of `file`.
    pub(super) fn read(file: &gguf::File, architecture: &'static str, options: &Options) -> Result<Self, FamilyError> {
        let keys = Keys::new(file.metadata(), architecture);
        let n_layers = keys.required_size("block_count", MAX_LAYERS)?;
        let width = keys.required_size("embedding_length", MAX_WIDTH)?;
        let n_heads = keys
            .shared_size("attention.head_count", MAX_HEADS, n_layers)?
            .ok_or_else(|| keys.missing("attention.head_count", "an integer of at least 1"))?;
        let n_kv_heads = n_kv_heads(&keys, n_layers, n_heads)?;

        let key_dim = match keys.size("attention.key_length", MAX_HEAD_DIM)? {
            Some(dim) => dim,
            None if width.is_multiple_of(n_heads) => width / n_heads,
            None => {
                let found = format!("{n_heads} for a width of {width}");
                let expected = "a divisor of embedding_length where attention.key_length is not given";
                return Err(keys.out_of_range("attention.head_count", found, expected).into());
            }
        };
        let value_dim = keys.size("attention.value_length", MAX_HEAD_DIM)?.unwrap_or(key_dim);

        let trained_context = keys.required_size("context_length", MAX_CONTEXT)?;
        let context = options.context.unwrap_or(trained_context);
        if !(1..=MAX_CONTEXT).contains(&context) {
            return Err(FamilyError::Context { file: file.name().to_owned(), found: context, most: MAX_CONTEXT });
        }

        let norm_eps = keys
            .positive("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon", "a finite number above 0"))?;
        // Converters write a window of 0 for "none".
        let window = file.metadata().u32(&format!("{architecture}.attention.sliding_window"))?;
        let window = window.map(|tokens| tokens as usize).filter(|tokens| *tokens > 0);

        const CAUSAL: &str = "attention.causal";
        if file.metadata().bool(&format!("{architecture}.{CAUSAL}"))? == Some(false) {
            let expected = "true: attention to tokens that come later is not supported";
            return Err(keys.out_of_range(CAUSAL, "false".to_owned(), expected).into());
        }

        Ok(Self {
            architecture,
            n_layers,
            width,
            n_heads,
            n_kv_heads,
            key_dim,
            value_dim,
            feed_forward: feed_forward(&keys, n_layers)?,
            trained_context,
            context,
            n_vocab: n_vocab(file, &keys)?,
            norm_eps,
            rope: RopeSettings::read(&keys, key_dim, trained_context, MAX_CONTEXT)?,
            window,
            windowed_layers: keys.window_pattern("attention.sliding_window_pattern", n_layers)?,
            attention_scale: keys.positive("attention.scale")?,
            attention_softcap: keys.positive("attn_logit_softcapping")?,
            final_softcap: keys.positive("final_logit_softcapping")?,
            pooling: pooling(file, &keys)?,
        })
    }
}

/// Key and value heads of each layer; as many as query heads where the file names none.
fn n_kv_heads(keys: &Keys<'_>, n_layers: usize, n_heads: usize) -> Result<Vec<usize>, FamilyError> {
    const KEY: &str = "attention.head_count_kv";
    let n_kv_heads = keys.sizes(KEY, MAX_HEADS, n_layers)?.unwrap_or_else(|| vec![n_heads; n_layers]);
    match n_kv_heads.iter().find(|n| !n_heads.is_multiple_of(**n)) {
        Some(found) => {
            let found = format!("{found} for {n_heads} query heads");
            Err(keys.out_of_range(KEY, found, "a divisor of attention.head_count").into())
        }
        None => Ok(n_kv_heads),
    }
}

/// How a file says that its rows become embeddings, by the numbers of llama.cpp.
fn pooling(file: &gguf::File, keys: &Keys<'_>) -> Result<Option<Pooling>, FamilyError> {
    const KEY: &str = "pooling_type";
    match file.metadata().u32(&keys.full(KEY))? {
        None | Some(0) => Ok(None),
        Some(1) => Ok(Some(Pooling::Mean)),
        Some(2) => Ok(Some(Pooling::First)),
        Some(3) => Ok(Some(Pooling::Last)),
        Some(other) => {
            let expected = "0 (none), 1 (mean), 2 (cls) or 3 (last)";
            Err(keys.out_of_range(KEY, other.to_string(), expected).into())
        }
    }
}

/// One unit or experts; files of dense models name no experts, or 0 of them.
fn feed_forward(keys: &Keys<'_>, n_layers: usize) -> Result<FeedForward, FamilyError> {
    let ff = || {
        let ff = keys.shared_size("feed_forward_length", MAX_WIDTH, n_layers)?;
        ff.ok_or_else(|| keys.missing("feed_forward_length", "an integer of at least 1"))
    };
    if keys.is_zero_or_absent("expert_count")? {
        return Ok(FeedForward::Gated { ff: ff()? });
    }
    let n = keys.required_size("expert_count", MAX_EXPERTS)?;
    let n_used = keys.required_size("expert_used_count", MAX_EXPERTS)?;
    if n_used > n {
        let found = format!("{n_used} of {n} experts");
        return Err(keys.out_of_range("expert_used_count", found, "at most expert_count").into());
    }
    // Mixtral's experts have the only width that its metadata names; others name theirs.
    let ff = keys.size("expert_feed_forward_length", MAX_WIDTH)?.map_or_else(ff, Ok)?;
    Ok(FeedForward::Experts { n, n_used, ff })
}

/// Tokens in the vocabulary: the file's list of them, else a number, else the rows of the embedding.
fn n_vocab(file: &gguf::File, keys: &Keys<'_>) -> Result<usize, FamilyError> {
    if let Some(tokens) = file.metadata().strings("tokenizer.ggml.tokens")? {
        return Ok(tokens.len());
    }
    let rows = file.tensor("token_embd.weight").map(farpost_kernels::tensor::Weight::rows);
    Ok(match keys.size("vocab_size", u32::MAX as usize)? {
        Some(n_vocab) => n_vocab,
        None => rows.unwrap_or(0),
    })
}
