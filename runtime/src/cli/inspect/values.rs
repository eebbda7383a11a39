//! Metadata values as text and as JSON; long ones shortened unless they are wanted whole.

use farpost_models::gguf::{Array, Value};
use serde_json::{Value as Json, json};

use crate::plain;

/// Array entries and characters shown of a long value.
const FEW_ENTRIES: usize = 4;
const FEW_CHARACTERS: usize = 64;

/// Type of a value: u32, string, string[32000].
pub fn kind(value: Value<'_>) -> String {
    match value {
        Value::Array(array) => format!("{}[{}]", array.element(), array.len()),
        other => other.kind().to_string(),
    }
}

/// One line of text.
pub fn line(value: Value<'_>, is_full: bool) -> String {
    match value {
        Value::String(bytes) => {
            let text = plain::one_line(&String::from_utf8_lossy(bytes));
            if is_full { text } else { plain::shortened(&text, FEW_CHARACTERS) }
        }
        Value::Array(array) => entries(array, is_full),
        other => scalar(other),
    }
}

fn entries(array: Array<'_>, is_full: bool) -> String {
    let shown = if is_full { array.len() } else { FEW_ENTRIES };
    let each = |value| match value {
        Value::String(bytes) if is_full => plain::quoted(bytes),
        Value::String(bytes) => plain::shortened(&plain::quoted(bytes), FEW_CHARACTERS / FEW_ENTRIES),
        other => scalar(other),
    };
    let mut texts: Vec<String> = array.values().take(shown).map(each).collect();
    if array.len() > shown {
        texts.push("…".to_owned());
    }
    format!("[{}]", texts.join(", "))
}

fn scalar(value: Value<'_>) -> String {
    match (value, value.as_integer(), value.as_float()) {
        (Value::Bool(fact), ..) => fact.to_string(),
        // As the stored width prints: 1e-6 and not 9.999999974752427e-7.
        (Value::F32(number), ..) => number.to_string(),
        (_, Some(integer), _) => integer.to_string(),
        (_, _, Some(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// A value alone: a text as it is, each entry of an array on a line of its own.
pub fn whole(value: Value<'_>) -> String {
    match value {
        Value::String(bytes) => plain::lines(&String::from_utf8_lossy(bytes)) + "\n",
        Value::Array(array) => array.values().map(|entry| line(entry, true) + "\n").collect(),
        other => scalar(other) + "\n",
    }
}

/// A value as JSON. A shortened array is an object that says so.
pub fn json(value: Value<'_>, is_full: bool) -> Json {
    match value {
        Value::Bool(fact) => json!(fact),
        Value::String(bytes) => json!(String::from_utf8_lossy(bytes)),
        Value::Array(array) if is_full || array.len() <= FEW_ENTRIES => {
            array.values().map(|entry| json(entry, is_full)).collect()
        }
        Value::Array(array) => json!({
            "type": array.element().to_string(),
            "length": array.len(),
            "first": array.values().take(FEW_ENTRIES).map(|entry| json(entry, is_full)).collect::<Json>(),
        }),
        Value::U64(number) => json!(number),
        Value::I64(number) => json!(number),
        Value::F32(number) => short_float(number),
        other => match (other.as_integer().and_then(|number| i64::try_from(number).ok()), other.as_float()) {
            (Some(integer), _) => json!(integer),
            (_, number) => json!(number),
        },
    }
}

/// The shortest number that is the same f32; null where JSON has none.
fn short_float(number: f32) -> Json {
    json!(number.to_string().parse::<f64>().ok().filter(|number| number.is_finite()))
}
