//! Traces: JSON lines that say when each request comes and how long it is.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value as Json};

use crate::exit::Failure;
use crate::text;

/// A longer answer is asked of no server.
const MOST_TOKENS: u64 = 1 << 20;
/// A trace may be as long as a year.
const MOST_SECONDS: f64 = 366.0 * 86_400.0;

/// What a request of a trace asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Made-up text of so many tokens.
    Tokens(u32),
    /// This text.
    Text(String),
}

/// A request of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Since the start of the trace.
    pub at: Duration,
    pub asks: Asks,
    pub answer_tokens: u32,
}

/// The requests of a file, in the order of their times.
pub fn read(path: &Path) -> Result<Vec<Entry>, Failure> {
    let wrong = |why: String| Failure::usage(format_args!("--trace: {}: {why}", path.display()));
    parse(&text::of_file(path)?).map_err(wrong)
}

/// One entry a line; empty lines count for nothing.
fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let entries = lines.map(|(number, line)| entry(line).map_err(|why| format!("line {number}: {why}")));
    let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
    if entries.is_empty() {
        return Err("there is no request in it, expected one JSON object a line".to_owned());
    }
    entries.sort_by_key(|entry| entry.at);
    Ok(entries)
}

fn entry(line: &str) -> Result<Entry, String> {
    let json: Json = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    let Json::Object(fields) = json else { return Err("expected a JSON object".to_owned()) };
    const KNOWN: [&str; 4] = ["at", "prompt_tokens", "prompt", "answer_tokens"];
    if let Some(name) = fields.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(format!("field '{name}' is not known, expected {}", KNOWN.join(", ")));
    }
    let at = fields.get("at").and_then(Json::as_f64).filter(|at| (0.0..=MOST_SECONDS).contains(at));
    let at = at.ok_or_else(|| wrong(&fields, "at", "seconds since the start, 0 or more"))?;
    let tokens = |name: &str| {
        let n = fields.get(name).and_then(Json::as_u64).filter(|n| (1..=MOST_TOKENS).contains(n));
        n.map(|n| n as u32).ok_or_else(|| wrong(&fields, name, "a whole number, 1 to 1048576"))
    };
    let asks = match (fields.get("prompt"), fields.contains_key("prompt_tokens")) {
        (Some(Json::String(prompt)), false) if !prompt.is_empty() => Asks::Text(prompt.clone()),
        (Some(_), true) => return Err("it has both 'prompt' and 'prompt_tokens', expected one of them".to_owned()),
        (Some(_), false) => return Err(wrong(&fields, "prompt", "a text that is not empty")),
        (None, _) => Asks::Tokens(tokens("prompt_tokens")?),
    };
    Ok(Entry { at: Duration::from_secs_f64(at), asks, answer_tokens: tokens("answer_tokens")? })
}

fn wrong(fields: &Map<String, Json>, name: &str, expected: &str) -> String {
    match fields.get(name) {
        None => format!("field '{name}' is missing, expected {expected}"),
        Some(found) => {
            let found = crate::plain::shortened(&found.to_string(), 40);
            format!("field '{name}' is {found}, expected {expected}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_in_the_order_of_their_times() {
        let text = "{\"at\": 1.5, \"prompt_tokens\": 100, \"answer_tokens\": 20}\n\n\
                    {\"at\": 0, \"prompt\": \"Once\", \"answer_tokens\": 5}\n";
        let first = Entry { at: Duration::ZERO, asks: Asks::Text("Once".to_owned()), answer_tokens: 5 };
        let second = Entry { at: Duration::from_millis(1500), asks: Asks::Tokens(100), answer_tokens: 20 };
        assert_eq!(parse(text), Ok(vec![first, second]));
    }

    #[test]
    fn what_is_wrong_is_told_with_line_and_field() {
        for (line, expected) in [
            ("", "there is no request in it"),
            ("[1]", "line 1: expected a JSON object"),
            ("{", "line 1: not JSON: "),
            ("{\"prompt_tokens\":1,\"answer_tokens\":1}", "line 1: field 'at' is missing, expected seconds"),
            ("{\"at\":-1,\"prompt_tokens\":1,\"answer_tokens\":1}", "field 'at' is -1"),
            ("{\"at\":1e99,\"prompt_tokens\":1,\"answer_tokens\":1}", "field 'at' is 1e+99"),
            ("{\"at\":0,\"prompt_tokens\":0,\"answer_tokens\":1}", "field 'prompt_tokens' is 0"),
            ("{\"at\":0,\"prompt_tokens\":1.5,\"answer_tokens\":1}", "field 'prompt_tokens' is 1.5"),
            ("{\"at\":0,\"answer_tokens\":1}", "field 'prompt_tokens' is missing"),
            ("{\"at\":0,\"prompt\":\"\",\"answer_tokens\":1}", "field 'prompt' is \"\""),
            ("{\"at\":0,\"prompt\":\"a\",\"prompt_tokens\":1,\"answer_tokens\":1}", "both 'prompt' and"),
            ("{\"at\":0,\"prompt\":\"a\",\"answer_tokens\":\"x\"}", "field 'answer_tokens' is \"x\""),
            ("{\"at\":0,\"prompt\":\"a\",\"answer\":1}", "field 'answer' is not known"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
