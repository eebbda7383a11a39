//! Values as Python writes them: `json.dumps` for the filter `tojson`, `str` and `repr` for output.

use std::fmt::Write as _;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::chat::MOST_OUTPUT_BYTES;

/// Deepest nesting that is written.
const DEEPEST: usize = 128;

/// How `json.dumps` separates and indents.
pub(super) struct Style {
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sorts_keys: bool,
    pub(super) escapes_non_ascii: bool,
    /// Never escaped.
    pub(super) marker: Option<char>,
}

/// True for `None`, be it the engine's or ours.
pub(super) fn is_none(value: &Value) -> bool {
    value.is_none() || value.downcast_object_ref::<super::python::NoneValue>().is_some()
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("values are nested more than {DEEPEST} deep"))
}

/// Refuses to write `n_bytes` more where that would be more than any text may have: values can be far larger than what they
/// are made of.
fn check_room(out: &str, n_bytes: usize) -> Result<(), Error> {
    if out.len().saturating_add(n_bytes) <= MOST_OUTPUT_BYTES {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("a value has more than {MOST_OUTPUT_BYTES} bytes as text")))
}

/// `json.dumps(value)`.
pub(super) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = String::new();
    dump(value, style, 0, &mut out)?;
    Ok(out)
}

fn dump(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(too_deep());
    }
    if is_none(value) {
        out.push_str("null");
        return Ok(());
    }
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = &style.indent {
            check_room(out, depth * indent.len())?;
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
        Ok::<_, Error>(())
    };
    let separate = |separator: &str, out: &mut String| {
        check_room(out, separator.len())?;
        out.push_str(separator);
        Ok::<_, Error>(())
    };
    match value.kind() {
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), style, out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut first = true;
            for item in value.try_iter()? {
                if !std::mem::take(&mut first) {
                    separate(&style.item_separator, out)?;
                }
                line(depth + 1, out)?;
                dump(&item, style, depth + 1, out)?;
            }
            if !first {
                line(depth, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sorts_keys {
                keys.sort();
            }
            out.push('{');
            let mut first = true;
            for key in keys {
                if !std::mem::take(&mut first) {
                    separate(&style.item_separator, out)?;
                }
                line(depth + 1, out)?;
                match key.as_str() {
                    Some(text) => quote(text, style, out),
                    None => {
                        let mut text = String::new();
                        dump(&key, style, depth + 1, &mut text)?;
                        quote(&text, style, out);
                    }
                }
                separate(&style.key_separator, out)?;
                dump(&value.get_item(&key)?, style, depth + 1, out)?;
            }
            if !first {
                line(depth, out)?;
            }
            out.push('}');
        }
        kind => {
            let message = format!("{kind} is not JSON serializable");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}

/// Integers as they are, floats as the shortest text that reads back the same, as Python writes both.
fn number(value: &Value, out: &mut String) {
    if value.is_integer() {
        let _ = write!(out, "{value}");
        return;
    }
    let float = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    out.push_str(&python_float(float));
}

fn python_float(float: f64) -> String {
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let size = float.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = format!("{float}");
    if text.contains('.') { text } else { text + ".0" }
}

fn quote(text: &str, style: &Style, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || (style.escapes_non_ascii && !c.is_ascii() && Some(c) != style.marker) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `str(value)`.
pub(super) fn to_text(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.as_str() {
        Some(text) => out.push_str(text),
        None => repr(value, 0, &mut out)?,
    }
    Ok(out)
}

fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(too_deep());
    }
    if is_none(value) {
        out.push_str("None");
        return Ok(());
    }
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match () {
            () if value.is_integer() => number(value, out),
            () => {
                let mut text = String::new();
                number(value, &mut text);
                out.push_str(match text.as_str() {
                    "NaN" => "nan",
                    "Infinity" => "inf",
                    "-Infinity" => "-inf",
                    text => text,
                });
            }
        },
        ValueKind::String => quote_python(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (at, item) in value.try_iter()?.enumerate() {
                check_room(out, 0)?;
                if at > 0 {
                    out.push_str(", ");
                }
                repr(&item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                check_room(out, 0)?;
                if at > 0 {
                    out.push_str(", ");
                }
                repr(&key, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

fn quote_python(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if u32::from(c) < 0x20 || c == '\x7F' => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (61.5, "61.5"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (float, text) in cases {
            assert_eq!(python_float(float), text);
        }
    }

    #[test]
    fn values_that_are_far_larger_than_what_they_are_made_of_are_refused() {
        let doubled = (0..40).fold(Value::from(1), |value, _| Value::from(vec![value.clone(), value]));
        assert!(to_text(&doubled).unwrap_err().to_string().contains("has more than"));
        let style = |separator: &str, indent: Option<String>| Style {
            indent,
            item_separator: separator.to_owned(),
            key_separator: ": ".to_owned(),
            sorts_keys: false,
            escapes_non_ascii: false,
            marker: None,
        };
        let flat = Value::from((0..9000).collect::<Vec<_>>());
        for style in [style(&"x".repeat(900_000), None), style(",", Some(" ".repeat(900_000))), style(",", None)] {
            let value = if style.indent.is_none() && style.item_separator == "," { &doubled } else { &flat };
            assert!(dumps(value, &style).unwrap_err().to_string().contains("has more than"));
        }
    }

    #[test]
    fn texts_are_quoted_as_python_quotes_them() {
        let of = |text: &str| to_text(&Value::from(vec![Value::from(text)])).expect("flat");
        assert_eq!(of("plain"), "['plain']");
        assert_eq!(of("it's"), "[\"it's\"]");
        assert_eq!(of("'\"\n\u{1}"), "['\\'\"\\n\\x01']");
    }
}
