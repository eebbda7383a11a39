//! Keeps control tokens that come from outside from being taken for the template's own.
//!
//! Before rendering, one private character is put inside everything in the input that is a control token's name, or
//! that could become one together with what the template writes around it. The template handles such a text as it
//! handles any other. After rendering the character is taken out again, and where it was, no control token may lie:
//! the text of the prompt is what it would have been, only its ids differ.

use std::collections::HashSet;

use serde_json::Value;

use super::error::TemplateError;
use crate::tokenizer::Tokenizer;

/// All strings of a value, keys too.
fn each_string(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| each_string(item, visit)),
        Value::Object(entries) => entries.iter().for_each(|(key, item)| {
            visit(key);
            each_string(item, visit);
        }),
        _ => {}
    }
}

/// Bytes of all strings.
pub(super) fn size(values: &[&Value]) -> usize {
    let mut bytes = 0;
    values.iter().for_each(|value| each_string(value, &mut |text| bytes += text.len()));
    bytes
}

/// A character that occurs nowhere in the input and the template: a noncharacter or one for private use.
pub(super) fn marker(values: &[&Value], template: &str) -> Result<char, TemplateError> {
    let mut used = HashSet::new();
    let mut note = |text: &str| used.extend(text.chars().filter(|&c| c >= '\u{FDD0}'));
    note(template);
    values.iter().for_each(|value| each_string(value, &mut note));
    let mut candidates = ('\u{FDD0}'..='\u{FDEF}').chain('\u{F0000}'..='\u{FFFFD}');
    candidates.find(|c| !used.contains(c)).ok_or(TemplateError::NoMarker)
}

/// `value` with the marker in all that could be, or become, a control token of `tokenizer`.
pub(super) fn mark(value: &Value, tokenizer: &Tokenizer, marker: char) -> Value {
    let text = |text: &String| tokenizer.break_control_tokens(text, marker).unwrap_or_else(|| text.clone());
    match value {
        Value::String(content) => Value::String(text(content)),
        Value::Array(items) => Value::Array(items.iter().map(|item| mark(item, tokenizer, marker)).collect()),
        Value::Object(entries) => {
            Value::Object(entries.iter().map(|(key, item)| (text(key), mark(item, tokenizer, marker))).collect())
        }
        other => other.clone(),
    }
}

/// Takes the marker out; gives where in the rest it was.
pub(super) fn unmark(text: &str, marker: char) -> (String, Vec<usize>) {
    let mut clean = String::with_capacity(text.len());
    let mut breaks = Vec::new();
    for (at, part) in text.split(marker).enumerate() {
        if at > 0 {
            breaks.push(clean.len());
        }
        clean.push_str(part);
    }
    (clean, breaks)
}
