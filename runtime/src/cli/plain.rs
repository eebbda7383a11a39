//! Text from files made harmless for a terminal: control characters are shown as escapes, not obeyed.

/// `text` on one line, without control characters.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            _ if is_unsafe(c) => out.extend(c.escape_unicode()),
            _ => out.push(c),
        }
    }
    out
}

/// `text` with its line breaks, without other control characters.
pub fn lines(text: &str) -> String {
    text.split('\n').map(one_line).collect::<Vec<_>>().join("\n")
}

/// `text` for a terminal: without control characters but line breaks and tabs. What joins or orders characters of a
/// script stays.
pub fn for_terminal(text: &str) -> String {
    let is_harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if is_harmless(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

/// Control characters, and those that reorder or hide what stands around them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

/// Bytes in double quotes: text as it is, everything else as escapes.
pub fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push_str(&one_line(c.encode_utf8(&mut [0; 4])));
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

/// At most `most` characters of `text`, the last of them an ellipsis if something was cut.
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_a_hostile_name_are_shown_and_not_obeyed() {
        assert_eq!(one_line("a\u{1b}[31mb\nc\u{202e}d é"), "a\\u{1b}[31mb\\nc\\u{202e}d é");
    }

    #[test]
    fn a_model_cannot_steer_the_terminal_but_write_every_script() {
        assert_eq!(for_terminal("a\tb\n\u{1b}]0;x\u{7}"), "a\tb\n\\u{1b}]0;x\\u{7}");
        let family = "\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467} \u{200F}\u{5D0}";
        assert_eq!(for_terminal(family), family);
    }

    #[test]
    fn quoted_bytes_show_what_is_no_text() {
        assert_eq!(quoted(b"say \"hi\"\\ \xE2\x82 \n"), r#""say \"hi\"\\ \xe2\x82 \n""#);
    }

    #[test]
    fn text_is_cut_between_characters_and_only_where_it_is_too_long() {
        assert_eq!(shortened("grün", 4), "grün");
        assert_eq!(shortened("grüne", 4), "grü…");
    }
}
