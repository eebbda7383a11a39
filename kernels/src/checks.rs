//! What every device refuses: limits that make no sense, batches that break the contract.

use crate::backend::{Batch, DeviceError, KvType, Limits, Sequence, WantKind};
use crate::cpu::kv::Q8_LEN;
use crate::graph::Graph;

/// Bounds that batches are held to.
pub(crate) struct Bounds {
    pub(crate) max_rows: usize,
    pub(crate) n_vocab: usize,
    pub(crate) max_context: usize,
}

pub(crate) fn refuse<T>(message: String) -> Result<T, DeviceError> {
    Err(DeviceError::Refused(message))
}

/// Refuses parts of a graph that was cut, limits out of range, and those that the graph does not fit.
pub(crate) fn check_limits(graph: &Graph, limits: &Limits) -> Result<(), DeviceError> {
    if graph.given().is_some() {
        return refuse("this device runs whole models only".to_owned());
    }
    check_sizes(graph, limits)
}

/// Refuses limits out of range, and those that the graph does not fit.
pub(crate) fn check_sizes(graph: &Graph, limits: &Limits) -> Result<(), DeviceError> {
    // With these bounds, sizes of what a step works in are numbers that 64 bits hold. The cache, which has more factors, sees
    // to itself.
    for (name, value, most) in [
        ("max_rows", limits.max_rows, 1 << 20),
        ("max_sequences", limits.max_sequences, 1 << 20),
        ("kv_tokens", limits.kv_tokens, 1 << 30),
        ("page_tokens", limits.page_tokens, 1 << 16),
        ("max_windows", limits.max_windows, 1 << 20),
    ] {
        if value == 0 || value > most {
            return refuse(format!("limit {name} is {value}, expected 1 to {most}"));
        }
    }
    if limits.kv_type == KvType::Q8_0 {
        for (number, layer) in graph.kv_layers().iter().enumerate() {
            for dim in [layer.key_dim, layer.value_dim] {
                if !dim.is_multiple_of(Q8_LEN) {
                    return refuse(format!(
                        "a q8_0 cache needs heads of a multiple of {Q8_LEN} elements, layer {number} has {dim}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Refuses what does not hang on the cache, but for sequences that are not open.
pub(crate) fn check_batch(
    batch: &Batch,
    bounds: &Bounds,
    is_open: impl Fn(Sequence) -> bool,
) -> Result<(), DeviceError> {
    if batch.rows.len() > bounds.max_rows {
        return refuse(format!("a batch of {} rows, at most {} fit", batch.rows.len(), bounds.max_rows));
    }
    if batch.want.len() > bounds.max_rows {
        return refuse(format!("{} results, at most {} fit", batch.want.len(), bounds.max_rows));
    }
    for (index, row) in batch.rows.iter().enumerate() {
        if row.token as usize >= bounds.n_vocab {
            return refuse(format!("row {index}: token {} of a vocabulary of {}", row.token, bounds.n_vocab));
        }
        if row.position >= bounds.max_context {
            return refuse(format!("row {index}: position {} of a context of {}", row.position, bounds.max_context));
        }
        if !is_open(row.sequence) {
            return refuse(format!("row {index}: sequence {} is not open", row.sequence.0));
        }
    }
    for (index, want) in batch.want.iter().enumerate() {
        if want.row >= batch.rows.len() {
            return refuse(format!("result {index}: row {} of {}", want.row, batch.rows.len()));
        }
        match want.kind {
            WantKind::TopK(k) if k == 0 || k > bounds.n_vocab => {
                return refuse(format!("result {index}: the best {k} of {}, expected 1 to all", bounds.n_vocab));
            }
            WantKind::Score(token) if token as usize >= bounds.n_vocab => {
                return refuse(format!("result {index}: token {token} of a vocabulary of {}", bounds.n_vocab));
            }
            _ => {}
        }
    }
    Ok(())
}
