//! What an engine is opened with.

use std::time::{Duration, Instant};

use farpost_kernels::backend::{Activations, KvType, Limits};

use super::error::EngineError;
use crate::model::Model;

/// Context of an engine or session that names none, if the model has as much.
pub(super) const DEFAULT_CONTEXT: usize = 4096;

/// Settings of an [`super::Engine`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens that one answer's prompt and text may have together, no more than the model's; by default the model's, but
    /// at most 4,096.
    pub context: Option<usize>,
    /// Tokens that the KV cache holds over all running answers and cached prefixes, at least one context; by default
    /// four contexts.
    pub kv_tokens: Option<usize>,
    /// Most answers that run at once, 1 to 1,024.
    pub max_running: usize,
    /// Most ended texts whose keys and values are kept for later prompts that begin alike.
    pub max_cached: usize,
    /// Most requests that wait, 1 or more; one more is refused.
    pub max_waiting: usize,
    /// Compute threads; 0 takes one per available core.
    pub threads: usize,
    /// Storage of keys and values.
    pub kv_type: KvType,
    /// How finely activations are rounded for products with quantized weights.
    pub activations: Activations,
    /// Most rows of one step, 1 or more. Cancelling waits for one stage of a step, a few in a layer.
    pub batch_rows: usize,
    /// While answers of the highest lane are written, a step has no more beside them than keeps it within this share of
    /// the time of a step of these answers alone, in percent: 100 or more. Several prompts of their lane that wait at
    /// once have more, see docs/engine.md.
    pub inter_token_percent: usize,
    /// Bytes that keys, values and scratch may take.
    pub memory_cap: Option<u64>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            context: None,
            kv_tokens: None,
            max_running: 8,
            max_cached: 24,
            max_waiting: 256,
            threads: 0,
            kv_type: limits.kv_type,
            activations: limits.activations,
            batch_rows: limits.max_rows,
            inter_token_percent: 150,
            memory_cap: None,
        }
    }
}

/// The moment `time` after `start`; some decades after it where that is longer than clocks go.
pub(crate) fn after(start: Instant, time: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(50 * 365 * 24 * 60 * 60);
    start.checked_add(time).unwrap_or_else(|| start + FAR)
}

/// Options made definite for a model.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) context: usize,
    pub(super) limits: Limits,
}

impl EngineOptions {
    /// The context for a model.
    pub(super) fn context_of(&self, model: &Model) -> usize {
        self.context.unwrap_or(model.graph().max_context().min(DEFAULT_CONTEXT))
    }

    /// Tokens of the KV cache for a model.
    pub(super) fn kv_tokens_of(&self, model: &Model) -> usize {
        self.kv_tokens.unwrap_or(self.context_of(model).saturating_mul(4))
    }

    /// The sizes for a model.
    pub(super) fn sizes(&self, model: &Model) -> Result<Sizes, EngineError> {
        let most = model.graph().max_context();
        let within = |parameter, found, least: usize, most: usize, what: &str| {
            if (least..=most).contains(&found) {
                return Ok(found);
            }
            let expected = match most {
                usize::MAX => format!("{least} or more{what}"),
                _ => format!("{least} to {most}{what}"),
            };
            Err(EngineError::OutOfRange { parameter, found, expected })
        };
        let context = within("context", self.context_of(model), 1, most, ", the context the model was opened for")?;
        let kv_tokens = within("kv_tokens", self.kv_tokens_of(model), context, usize::MAX, ", one context")?;
        let max_running = within("max_running", self.max_running, 1, 1024, "")?;
        let batch_rows = within("batch_rows", self.batch_rows, 1, usize::MAX, "")?;
        within("inter_token_percent", self.inter_token_percent, 100, usize::MAX, "")?;
        within("max_waiting", self.max_waiting, 1, usize::MAX, "")?;
        let limits = Limits {
            // Every running answer has a row of its own at least.
            max_rows: batch_rows.min(kv_tokens).max(max_running),
            // One more is copied to a file or from one.
            max_sequences: max_running.saturating_add(self.max_cached).saturating_add(1),
            // Those that run, and as many that are kept.
            max_windows: max_running.saturating_add(self.max_cached.min(max_running)),
            kv_tokens,
            kv_type: self.kv_type,
            activations: self.activations,
            threads: self.threads,
            memory_cap: self.memory_cap,
            ..Limits::default()
        };
        Ok(Sizes { context, limits })
    }
}
