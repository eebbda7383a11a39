//! How deep reading a form goes. `llguidance` follows references, rules and groups by calling itself, and a stack that is too
//! small for that ends the process. So forms are read on a large one, and what they could come to is bounded before.
//!
//! Each thing that can be referred to is read once, when it is met first. So the reading is never deeper than the sum of how
//! deep each of them is.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::{Fault, lark};

/// Of the thread that reads a form.
pub(super) const STACK_BYTES: usize = 64 << 20;
/// Levels that reading may go down: some 5 KB of stack each.
const MOST_LEVELS: usize = 4_000;
/// Levels of terminals: they become parts of one expression, which is gone down again with every token, on stacks of 2 MiB.
const MOST_TERMINAL_LEVELS: usize = 300;

/// Refuses schemas that take too deep a stack to read.
pub(super) fn check_schema(schema: &Json) -> Result<(), Fault> {
    check(of_schema(schema), MOST_LEVELS, "it")
}

/// Refuses grammars that take too deep a stack to read.
pub(super) fn check_lark(lark: &str) -> Result<(), Fault> {
    let (all, terminals) = of_lark(lark);
    check(all, MOST_LEVELS, "it")?;
    check(terminals, MOST_TERMINAL_LEVELS, "what its terminals are made of")
}

fn check(found: usize, most: usize, what: &str) -> Result<(), Fault> {
    if found <= most {
        return Ok(());
    }
    Err(Fault::whole(format!("{what} may be nested {found} deep through its references, expected at most {most}")))
}

fn of_schema(schema: &Json) -> usize {
    let mut references = BTreeSet::new();
    let mut levels = depth(schema, &mut references);
    for reference in &references {
        let target = reference.strip_prefix('#').and_then(|pointer| schema.pointer(pointer)).unwrap_or(schema);
        levels += depth(target, &mut BTreeSet::new());
    }
    levels
}

/// How deep a value is nested; adds what it refers to. JSON as it is parsed is nested 128 deep at most.
fn depth<'s>(value: &'s Json, references: &mut BTreeSet<&'s str>) -> usize {
    let parts: Vec<&Json> = match value {
        Json::Object(fields) => {
            references.extend(fields.get("$ref").and_then(Json::as_str));
            fields.values().collect()
        }
        Json::Array(items) => items.iter().collect(),
        _ => return 1,
    };
    1 + parts.into_iter().map(|part| depth(part, references)).max().unwrap_or(0)
}

/// Levels of all lines of a grammar, and of those that define terminals.
fn of_lark(text: &str) -> (usize, usize) {
    let (mut levels, mut terminals) = (0, 0);
    // Of the rule that a line belongs to, which goes on while groups are open.
    let (mut open, mut deepest, mut is_empty, mut is_terminal) = (0_usize, 0_usize, true, false);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '#' => lark::line(rest),
            '/' if rest.starts_with("//") => lark::line(rest),
            '"' | '/' => lark::quoted(rest, first),
            '<' => lark::special(rest),
            '%' if rest.starts_with("%json") => match lark::json(&rest["%json".len()..]) {
                Some((schema, n_bytes)) => {
                    levels += of_schema(&schema);
                    "%json".len() + n_bytes
                }
                None => 1,
            },
            other => other.len_utf8(),
        };
        match first {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ if first.is_whitespace() => {}
            _ if is_empty && open == 0 => {
                // What goes on from the line before is of the same kind.
                is_terminal = if first == '|' { is_terminal } else { first.is_uppercase() };
            }
            _ => {}
        }
        is_empty &= first.is_whitespace();
        deepest = deepest.max(open);
        rest = &rest[end..];
        let is_end = first == '\n' || rest.is_empty();
        if is_end && !is_empty {
            levels += 1 + deepest;
            terminals += if is_terminal { 1 + deepest } else { 0 };
            (deepest, is_empty) = (open, true);
        }
    }
    (levels, terminals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_are_as_deep_as_all_that_they_refer_to() {
        assert_eq!(of_schema(&json!({ "type": "string" })), 2);
        let chain = json!({ "$ref": "#/$defs/a", "$defs": {
            "a": { "properties": { "x": { "$ref": "#/$defs/b" } } }, "b": { "items": { "$ref": "#/$defs/a" } },
        } });
        // The whole, `a` and `b`.
        assert_eq!(of_schema(&chain), 6 + 4 + 3);
        let of = |n: usize| -> Json {
            let defs: serde_json::Map<_, _> = (0..n)
                .map(|i| (format!("a{i}"), json!({ "items": { "$ref": format!("#/$defs/a{}", i + 1) } })))
                .collect();
            json!({ "$ref": "#/$defs/a0", "$defs": defs })
        };
        assert!(check_schema(&of(500)).is_ok() && check_schema(&of(5000)).is_err());
    }

    #[test]
    fn grammars_are_as_deep_as_all_their_rules_and_groups() {
        assert_eq!(of_lark("start: a b\n\na: (\"(\" (b))\nb: /((/ // ((\n"), (1 + 3 + 1, 0));
        assert_eq!(of_lark("start: A\nA: \"x\" (B)\n | \"y\"\nB: /z/"), (1 + 2 + 1 + 1, 4));
        assert_eq!(of_lark("start: %json {\"items\": {\"type\": \"null\"}}"), (1 + 3, 0));
        assert_eq!(of_lark("start: <|a|> \"é\" [ \"b\" ]"), (2, 0));
    }
}
