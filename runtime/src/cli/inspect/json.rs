//! The report as one JSON object.

use farpost_kernels::backend::KvType;
use farpost_models::gguf::{File, MemoryNeed};
use serde_json::{Map, Value as Json, json};

use super::{contexts, types, values};

/// All of it. Without `is_full` long arrays of metadata are shortened.
pub fn report(file: &File, need: Result<&MemoryNeed, &String>, runs: &Result<(), String>, is_full: bool) -> Json {
    let metadata: Map<String, Json> =
        file.metadata().iter().map(|(key, value)| (key.to_owned(), values::json(value, is_full))).collect();
    let tensors = file.tensors().iter().map(|tensor| {
        json!({
            "name": tensor.name(),
            "type": tensor.dtype().name(),
            "dims": tensor.dims(),
            "bytes": tensor.weight().bytes().len(),
            "offset": tensor.offset(),
            "part": tensor.part(),
        })
    });
    let types = types(file).into_iter().map(|entry| {
        json!({
            "type": entry.dtype.name(),
            "tensors": entry.n_tensors,
            "weights": entry.n_weights,
            "bytes": entry.n_bytes,
        })
    });
    json!({
        "file": file.name(),
        "version": file.version(),
        "parts": file.n_parts(),
        "size_bytes": file.size_bytes(),
        "alignment": file.alignment(),
        "metadata": metadata,
        "tensors": tensors.collect::<Vec<_>>(),
        "types": types.collect::<Vec<_>>(),
        "runnable": runs.is_ok(),
        "reason": runs.as_ref().err(),
        "memory": need.map_or(Json::Null, memory),
        "memory_unknown_because": need.err(),
    })
}

fn memory(need: &MemoryNeed) -> Json {
    let contexts = contexts(need.trained_context).into_iter().map(|tokens| {
        let (half, eight) = (need.kv(tokens, KvType::F16), need.kv(tokens, KvType::Q8_0));
        json!({
            "tokens": tokens,
            "kv_f16_bytes": half.all_kept_bytes,
            "kv_q8_0_bytes": eight.all_kept_bytes,
            "kv_f16_windows_dropped_bytes": half.windows_dropped_bytes,
            "kv_q8_0_windows_dropped_bytes": eight.windows_dropped_bytes,
            "total_f16_bytes": need.weights_bytes.saturating_add(half.windows_dropped_bytes),
        })
    });
    json!({
        "weights_bytes": need.weights_bytes,
        "trained_context": need.trained_context,
        "layers": need.layers.len(),
        "contexts": contexts.collect::<Vec<_>>(),
    })
}
