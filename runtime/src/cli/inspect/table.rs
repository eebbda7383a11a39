//! The report for people: what is read most often, types and memory, comes last, where a terminal leaves the eye.

use farpost_kernels::backend::KvType;
use farpost_models::gguf::{File, MemoryNeed};

use super::{contexts, types, values};
use crate::amount;
use crate::columns::{Side, aligned};
use crate::console::Paint;
use crate::plain::one_line;

/// All of it as text.
pub fn report(
    file: &File,
    need: Result<&MemoryNeed, &String>,
    runs: &Result<(), String>,
    is_full: bool,
    paint: Paint,
) -> String {
    let mut out = format!("{}\n", paint.bold(&one_line(file.name())));
    let parts = if file.n_parts() > 1 { format!(" in {} files", file.n_parts()) } else { String::new() };
    let size = amount::bytes(file.size_bytes());
    out += &format!("GGUF version {}, {size}{parts}, alignment {}\n", file.version(), file.alignment());
    metadata(&mut out, file, is_full, paint);
    tensors(&mut out, file, paint);
    type_histogram(&mut out, file, paint);
    match need {
        Ok(need) => memory(&mut out, need, paint),
        Err(why) => {
            heading(&mut out, paint, "Memory");
            out += &format!("unknown: {}\n", one_line(why));
        }
    }
    match runs {
        Ok(()) => out += &format!("\nruns  {}\n", paint.green("yes")),
        Err(why) => out += &format!("\nruns  {}: {}\n", paint.red("no"), one_line(why)),
    }
    out
}

fn heading(out: &mut String, paint: Paint, text: &str) {
    *out += &format!("\n{}\n", paint.bold(text));
}

fn metadata(out: &mut String, file: &File, is_full: bool, paint: Paint) {
    heading(out, paint, &format!("Metadata ({})", amount::count(file.metadata().len() as u64, "key")));
    let rows = file.metadata().iter().map(|(key, value)| {
        vec![paint.cyan(&one_line(key)), paint.dim(&values::kind(value)), values::line(value, is_full)]
    });
    *out += &aligned(rows, &[Side::Left, Side::Left, Side::Left]);
}

fn tensors(out: &mut String, file: &File, paint: Paint) {
    heading(out, paint, &format!("Tensors ({})", amount::grouped(file.tensors().len() as u64)));
    let rows = file.tensors().iter().map(|tensor| {
        let dims: Vec<String> = tensor.dims().iter().map(usize::to_string).collect();
        let size = amount::bytes(tensor.weight().bytes().len() as u64);
        vec![paint.cyan(&one_line(tensor.name())), tensor.dtype().name().to_owned(), dims.join(" x "), size]
    });
    *out += &aligned(rows, &[Side::Left, Side::Left, Side::Left, Side::Right]);
}

fn type_histogram(out: &mut String, file: &File, paint: Paint) {
    heading(out, paint, "Types");
    let types = types(file);
    let weights = types.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.n_weights));
    let total: u64 = types.iter().map(|entry| entry.n_bytes).sum();
    let header = ["type", "tensors", "weights", "size", "share"].map(|text| paint.dim(text)).to_vec();
    let rows = types.iter().map(|entry| {
        vec![
            entry.dtype.name().to_owned(),
            amount::grouped(entry.n_tensors as u64),
            amount::grouped(entry.n_weights),
            amount::bytes(entry.n_bytes),
            format!("{:.1} %", entry.n_bytes as f64 * 100.0 / total.max(1) as f64),
        ]
    });
    *out += &aligned(
        std::iter::once(header).chain(rows),
        &[Side::Left, Side::Right, Side::Right, Side::Right, Side::Right],
    );
    if weights > 0 {
        let bits = total as f64 * 8.0 / weights as f64;
        *out += &format!(
            "{} weights, {} in all, {bits:.2} bits a weight\n",
            amount::grouped(weights),
            amount::bytes(total)
        );
    }
}

fn memory(out: &mut String, need: &MemoryNeed, paint: Paint) {
    heading(out, paint, "Memory for one sequence");
    let header = ["context", "KV f16", "KV q8_0", "weights + KV f16"].map(|text| paint.dim(text)).to_vec();
    let rows = contexts(need.trained_context).into_iter().map(|tokens| {
        let half = need.kv(tokens, KvType::F16).windows_dropped_bytes;
        vec![
            amount::grouped(tokens as u64),
            amount::bytes(half),
            amount::bytes(need.kv(tokens, KvType::Q8_0).windows_dropped_bytes),
            amount::bytes(need.weights_bytes.saturating_add(half)),
        ]
    });
    *out += &aligned(std::iter::once(header).chain(rows), &[Side::Right; 4]);
    if let Some(tokens) = need.trained_context {
        *out += &format!("made for {} tokens of context\n", amount::grouped(tokens as u64));
    }
    let windowed = need.layers.iter().filter(|layer| layer.window.is_some()).count();
    if let Some(window) = need.layers.iter().find_map(|layer| layer.window) {
        let (layers, window) = (need.layers.len(), amount::grouped(window as u64));
        *out += &format!("{windowed} of {layers} layers look back {window} tokens only, and keep little more\n");
    }
}
