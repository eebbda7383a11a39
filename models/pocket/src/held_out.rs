//! Examples as lines of JSON, for programs that measure the model without this crate.
//!
//! `data/held-out.jsonl` is the first [`COUNT`] examples of the test split under seed 1; `data/hand-written.jsonl` was
//! written by hand, apart from the templates, before the model that is packed was trained. A line is an object with
//! `text` (what the user says), `answer` (the canonical JSON that is right) and `tool`.

use crate::call;
use crate::corpus::Example;
use serde_json::Value;

/// Lines of the committed file.
pub const COUNT: u64 = 200;

/// One example as one line, without its line break.
pub fn line(example: &Example) -> String {
    serde_json::json!({"text": example.text, "answer": example.answer, "tool": example.tool}).to_string()
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: expected an object with the texts 'text', 'answer' and the name of a tool, 'tool'")]
pub struct LineError {
    /// Its number, from 1.
    pub line: usize,
}

/// The examples of a file of lines.
pub fn read(text: &str) -> Result<Vec<Example>, LineError> {
    let example = |line: &str| -> Option<Example> {
        let value: Value = serde_json::from_str(line).ok()?;
        let text = |key: &str| value.get(key)?.as_str();
        let (tool, _) = call::TOOLS.iter().find(|(tool, _)| Some(*tool) == text("tool"))?;
        Some(Example { text: text("text")?.to_owned(), answer: text("answer")?.to_owned(), tool })
    };
    text.lines().zip(1..).map(|(line, number)| example(line).ok_or(LineError { line: number })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Corpus;
    use crate::template::Split;

    const COMMITTED: &str = include_str!("../data/held-out.jsonl");
    const HAND_WRITTEN: &str = include_str!("../data/hand-written.jsonl");

    #[test]
    fn the_committed_file_is_what_the_generator_gives() {
        let corpus = Corpus::new(1, Split::Test);
        let made: Vec<String> = (0..COUNT).map(|index| line(&corpus.example(index))).collect();
        let committed: Vec<&str> = COMMITTED.lines().collect();
        assert_eq!(committed, made, "to make it anew: farpost-pocket examples > models/pocket/data/held-out.jsonl");
    }

    #[test]
    fn lines_come_back_as_the_examples_they_were() {
        let corpus = Corpus::new(1, Split::Test);
        let examples: Vec<Example> = (0..COUNT).map(|index| corpus.example(index)).collect();
        assert_eq!(read(COMMITTED).unwrap(), examples);
        for bad in ["{}", "[]", "", r#"{"text":"a","answer":"{}","tool":"fly"}"#] {
            let text = format!("{}\n{bad}\n", line(&examples[0]));
            assert_eq!(read(&text).unwrap_err().line, 2, "{bad}");
        }
    }

    #[test]
    fn hand_written_answers_are_canonical() {
        let examples = read(HAND_WRITTEN).unwrap();
        assert_eq!(examples.len(), 100);
        for example in examples {
            let answer: Value = serde_json::from_str(&example.answer).unwrap();
            let values = answer["arguments"].as_object().unwrap().iter();
            let arguments: Vec<(String, String)> = values
                .map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
                .collect();
            assert_eq!(call::json(example.tool, &arguments).as_deref(), Some(&*example.answer), "{}", example.text);
        }
    }
}
