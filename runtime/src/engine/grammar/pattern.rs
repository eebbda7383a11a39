//! Regular expressions as requests write them, put into what the parser reads.

/// The same regular expression, with `\d`, `\w`, `\s` and their opposites for ASCII alone.
///
/// The parser's own are of all scripts; ECMA-262, which JSON Schema refers to, has digits and words of ASCII.
pub(super) fn ascii(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut characters = regex.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('d') => out.push_str("[0-9]"),
            Some('D') => out.push_str("[^0-9]"),
            Some('w') => out.push_str("[0-9A-Za-z_]"),
            Some('W') => out.push_str("[^0-9A-Za-z_]"),
            Some('s') => out.push_str(r"[ \t\n\r\f\v]"),
            Some('S') => out.push_str(r"[^ \t\n\r\f\v]"),
            // ECMA-262 lets a slash be escaped, the parser does not.
            Some('/') => out.push('/'),
            other => {
                out.push('\\');
                out.extend(other);
            }
        }
    }
    out
}

/// The same as it stands between two slashes in a Lark grammar. Pairs of characters that begin with a backslash stay as
/// they are.
pub(super) fn between_slashes(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut is_escaped = false;
    for character in regex.chars() {
        match character {
            '/' if !is_escaped => out.push_str("\\/"),
            '\n' if !is_escaped => out.push_str("\\n"),
            '\r' if !is_escaped => out.push_str("\\r"),
            other => out.push(other),
        }
        is_escaped = character == '\\' && !is_escaped;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_of_ascii_and_all_else_stays() {
        assert_eq!(ascii(r"^\d{3}-[\w.]\S$"), r"^[0-9]{3}-[[0-9A-Za-z_].][^ \t\n\r\f\v]$");
        assert_eq!(ascii(r"\\d\.\/a\"), r"\\d\./a\");
        assert_eq!(ascii("é/x"), "é/x");
    }

    #[test]
    fn slashes_and_line_ends_are_escaped_once() {
        assert_eq!(between_slashes("a/b\n\\\\/\\."), "a\\/b\\n\\\\\\/\\.");
    }
}
