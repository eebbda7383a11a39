//! Finds marks in a text that goes on: where one is, or where one may begin at its end.

use super::{Calls, Tool};

/// The first place of `mark` in `text`, or where it may begin at the end of it, with false.
pub(super) fn find(text: &str, mark: &str, is_end: bool) -> Option<(usize, bool)> {
    if let Some(at) = text.find(mark) {
        return Some((at, true));
    }
    let most = mark.len().saturating_sub(1).min(text.len());
    let mut ends = (1..=most).rev().filter(|len| mark.is_char_boundary(*len));
    let len = ends.find(|len| text.ends_with(&mark[..*len]))?;
    (!is_end).then_some((text.len() - len, false))
}

/// The first object that begins as a call of a known tool, or may yet do so, with false.
pub(super) fn find_bare(text: &str, calls: &Calls, is_end: bool) -> Option<(usize, bool)> {
    text.match_indices('{').find_map(|(at, _)| match begins(text.get(at..)?, calls) {
        Some(true) => Some((at, true)),
        None if !is_end => Some((at, false)),
        _ => None,
    })
}

/// Whether `text` begins `{"name": "a tool"`; `None` while that is open.
fn begins(text: &str, calls: &Calls) -> Option<bool> {
    let mut rest = text;
    let key = format!("\"{}\"", calls.format.name);
    for part in ["{", key.as_str(), ":"] {
        rest = match rest.strip_prefix(part) {
            Some(rest) => rest.trim_start(),
            None if part.starts_with(rest) => return None,
            None => return Some(false),
        };
    }
    let is_name = |tool: &Tool| -> Option<bool> {
        let name = format!("\"{}\"", tool.name);
        if rest.starts_with(&name) {
            Some(true)
        } else if name.starts_with(rest) {
            None
        } else {
            Some(false)
        }
    };
    let found: Vec<Option<bool>> = calls.tools.iter().map(is_name).collect();
    if found.contains(&Some(true)) {
        Some(true)
    } else if found.contains(&None) {
        None
    } else {
        Some(false)
    }
}
