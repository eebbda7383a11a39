//! The grammar of a turn: its reasoning, and then an answer, calls, or the form that the answer must have. In the Lark
//! syntax of the engine's grammars.

use farpost_models::tokenizer::Tokenizer;

use super::{CallFormat, Calls, Turn, control};
use crate::engine::{EngineError, Grammar};

/// White space between the reasoning and what has a form.
const GAP: &str = "/[ \\n]{1,4}/";

impl Turn {
    /// What holds a model to this turn, with a `form` for its answer; `None` if it may write what it likes.
    ///
    /// # Errors
    /// A form that is not what it should be. Whether it can be enforced shows when the engine takes it.
    pub(in crate::server) fn grammar(
        &self,
        form: Option<Grammar>,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Grammar>, EngineError> {
        let calls = self.calls.as_ref().filter(|calls| calls.is_enforced);
        if calls.is_none() && (form.is_none() || self.thinking.is_none() || self.has_thought) {
            return Ok(form);
        }
        let writer = Writer { turn: self, tokenizer };
        let mut lines = Vec::new();
        let answer = match (calls, &form) {
            (Some(calls), _) if calls.is_required => "calls",
            (Some(_), None) => "TEXT? | calls",
            (Some(_), Some(_)) => "form | calls",
            (None, _) => "form",
        };
        // Free text has room for the gap itself.
        let gap = if answer.starts_with("TEXT") { "" } else { "GAP? " };
        let thought = writer.thought(gap, &mut lines);
        lines.push(format!("start: {thought}({answer})"));
        lines.push(format!("TEXT: {}", writer.text(calls)));
        lines.push(format!("GAP: {GAP}"));
        if let Some(form) = &form {
            lines.push(format!("form: {}", form.as_part()?));
        }
        if let Some(calls) = calls {
            writer.calls(calls, form.is_none(), &mut lines)?;
        }
        Ok(Some(Grammar::Lark(lines.join("\n"))))
    }
}

struct Writer<'t> {
    turn: &'t Turn,
    tokenizer: &'t Tokenizer,
}

impl Writer<'_> {
    /// A mark as a part of a rule, and whether it is text.
    fn mark(&self, mark: &str) -> (String, bool) {
        match control(mark, self.tokenizer) {
            Some(id) => (format!("<[{id}]>"), false),
            None => (quoted(mark), true),
        }
    }

    /// The reasoning, as the beginning of a rule.
    fn thought(&self, gap: &str, lines: &mut Vec<String>) -> String {
        let Some(marks) = self.turn.thinking.filter(|_| !self.turn.has_thought) else { return String::new() };
        let ((open, is_text), (close, _)) = (self.mark(marks.open), self.mark(marks.close));
        let open = if self.turn.is_thinking { String::new() } else { format!("{open} ") };
        lines.push(format!("INNER: {}", free(&[escaped(marks.close)])));
        // Of text one lexeme: what is reasoning must not be taken for the beginning of something else.
        let name = if is_text { "THOUGHT" } else { "thought" };
        lines.push(format!("{name}: {open}INNER? {close}"));
        if self.turn.is_thinking { format!("{name} {gap}") } else { format!("({name} {gap})? ") }
    }

    /// Text that is neither reasoning nor a call.
    fn text(&self, calls: Option<&Calls>) -> String {
        let mut marks: Vec<String> = self.turn.marks().map(escaped).collect();
        marks.extend(calls.filter(|calls| calls.format.open.is_empty()).map(bare_opening));
        free(&marks)
    }

    /// One or more calls, after text if that `may_have_text`.
    fn calls(&self, calls: &Calls, may_have_text: bool, lines: &mut Vec<String>) -> Result<(), EngineError> {
        let CallFormat { open, close, is_list, is_single, .. } = *calls.format;
        let many = calls.is_parallel && !is_single;
        let may_have_text = may_have_text && !calls.is_required;
        let ((opening, is_text), (closing, _)) = (self.mark(open), self.mark(close));
        let close = if close.is_empty() { String::new() } else { format!(" {closing}") };
        let all = (0..calls.tools.len()).map(|place| format!("call_{place}")).collect::<Vec<_>>().join(" | ");
        // What stands between the mark and the first call, between two calls, and behind the last one.
        let (first, next, last) = match (is_list, open.is_empty()) {
            (true, _) => ("[", "\", \"".to_owned(), format!("\"]\"{close}")),
            (false, false) => ("\n", format!("\"\\n\"{close} \"\\n\" {opening} \"\\n\""), format!("\"\\n\"{close}")),
            (false, true) => ("", String::new(), String::new()),
        };
        let more = if many { format!("({next} any)* ") } else { String::new() };
        let has_leads = is_text && may_have_text;
        if has_leads {
            // Text and the beginning of a call are one lexeme: where one ends shows at its mark only.
            let leads = (0..calls.tools.len()).map(|place| format!("LEAD_{place} tail_{place}"));
            lines.push(format!("calls: ({}) {more}{last}", leads.collect::<Vec<_>>().join(" | ")));
        } else {
            let text = if may_have_text { "TEXT? " } else { "" };
            let opening = if open.is_empty() { String::new() } else { format!("{opening} ") };
            let first = if first.is_empty() { String::new() } else { format!("{} ", quoted(first)) };
            lines.push(format!("calls: {text}{opening}{first}any {more}{last}"));
        }
        lines.push(format!("any: {all}"));
        for (place, tool) in calls.tools.iter().enumerate() {
            let head = calls.format.head(&tool.name);
            let schema = tool.schema.clone().map_or(Grammar::JsonObject, Grammar::JsonSchema);
            if has_leads {
                lines.push(format!("LEAD_{place}: TEXT? {}", quoted(&format!("{open}{first}{head}"))));
            }
            // The brace by itself, as in the JSON that may stand here instead.
            let rest = head.strip_prefix('{').unwrap_or(&head);
            lines.push(format!("call_{place}: \"{{\" {} tail_{place}", quoted(rest)));
            lines.push(format!("tail_{place}: arguments_{place} \"}}\""));
            lines.push(format!("arguments_{place}: {}", schema.as_part()?));
        }
        Ok(())
    }
}

/// Any text without these in it, as a regular expression.
fn free(marks: &[String]) -> String {
    match marks {
        [] => "/(.|\\n)+/".to_owned(),
        marks => format!("/(.|\\n)+/ & ~/(.|\\n)*({})(.|\\n)*/", marks.join("|")),
    }
}

/// The beginning of a call that has no mark, however it is spaced.
fn bare_opening(calls: &Calls) -> String {
    let names: Vec<&str> = calls.tools.iter().map(|tool| tool.name.as_str()).collect();
    let space = "[ \\t\\r\\n]*";
    format!("\\{{{space}\"{}\"{space}:{space}\"({})\"", calls.format.name, names.join("|"))
}

/// Text between quotes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Text as it stands in a regular expression.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if ".+*?()|[]{}^$\\/".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
    out
}
