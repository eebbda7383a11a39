//! Lark grammars as requests write them: the JSON schemas in them are checked as any other.

use serde_json::Value as Json;

use super::{Fault, schema};

/// The same grammar with its schemas as they are enforced. What is no Lark is left for the parser to tell.
pub(super) fn checked(lark: &str) -> Result<String, Fault> {
    let mut out = String::with_capacity(lark.len());
    let mut rest = lark;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '#' => line(rest),
            '/' if rest.starts_with("//") => line(rest),
            '"' | '/' => quoted(rest, first),
            '<' => special(rest),
            '%' => {
                let len = rest[1..].find(|other: char| !other.is_ascii_alphabetic()).map_or(rest.len(), |len| 1 + len);
                let (keyword, behind) = rest.split_at(len);
                if !["%json", "%regex", "%llguidance"].contains(&keyword) {
                    len
                } else if let Some((json, n_bytes)) = json(behind) {
                    let json = if keyword == "%json" { in_lark(&json)? } else { json };
                    out.push_str(&format!("{keyword} {json}"));
                    rest = &behind[n_bytes..];
                    continue;
                } else {
                    len
                }
            }
            other => other.len_utf8(),
        };
        let (kept, behind) = rest.split_at(end);
        out.push_str(kept);
        rest = behind;
    }
    Ok(out)
}

fn in_lark(json: &Json) -> Result<Json, Fault> {
    schema::checked(json).map_err(|Fault { pointer, reason }| {
        let pointer = if pointer.is_empty() { "#" } else { &pointer };
        Fault::whole(format!("%json {pointer}: {reason}"))
    })
}

/// Up to the end of the line.
pub(super) fn line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// Up to behind the quote that closes what begins with one.
pub(super) fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (place, character) in text.char_indices().skip(1) {
        if character == quote && !is_escaped {
            return place + quote.len_utf8();
        }
        is_escaped = character == '\\' && !is_escaped;
    }
    text.len()
}

/// A special token, if it is one.
pub(super) fn special(text: &str) -> usize {
    let end = text[1..].find(|character: char| character == '<' || character == '>' || character.is_whitespace());
    end.filter(|end| text[1 + end..].starts_with('>')).map_or(1, |end| end + 2)
}

/// The JSON that a text begins with, and its length.
pub(super) fn json(text: &str) -> Option<(Json, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let json = values.next()?.ok()?;
    Some((json, values.byte_offset()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_schemas_are_looked_at() {
        let plain = "start: \"%json {\" /%json {\\/1/ x <|a\"b|> // %json {\n# \"\nx: \"a\\\"b\" %regex {\"substring_words\":\"a b\"}";
        assert_eq!(checked(plain).unwrap(), plain);
        let whole = checked("start: %json {\"type\": \"integer\", \"title\": \"x\"} \"!\"").unwrap();
        assert!(
            whole.contains("\"type\":\"integer\"") && !whole.contains("title") && whole.ends_with(" \"!\""),
            "{whole}"
        );
        // What was checked once may be checked again.
        assert_eq!(checked(&whole).unwrap(), whole);
        let fault = checked("start: %json {\"items\": {\"foo\": 1}}").unwrap_err();
        assert!(fault.reason.starts_with("%json #/items/foo: "), "{fault:?}");
    }
}
