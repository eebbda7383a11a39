//! Where messages come from: a line editor with history on a terminal, plain lines from a pipe.
//!
//! A message goes on in the next line after a backslash, or between two lines of three double quotes.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};

use crate::exit::Failure;

/// What the user gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// A whole message or command.
    Text(String),
    /// Ctrl-C; whether there was something on the line that is gone now.
    Interrupted,
    /// Ctrl-D, or the pipe is empty.
    End,
}

/// Reads message after message.
pub enum Source {
    Terminal { editor: Box<Editor<Lines, FileHistory>>, history: Option<PathBuf> },
    Pipe,
}

/// Most messages kept in the history file.
const MOST_HISTORY: usize = 1000;

impl Source {
    /// An editor if standard input is a terminal, which remembers messages of earlier conversations if it shall.
    pub fn open(remembers: bool) -> Result<Self, Failure> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let failed = |error: ReadlineError| {
            Failure::new(crate::exit::Exit::Failed, format_args!("cannot use the terminal: {error}"))
        };
        let config = Config::builder().max_history_size(MOST_HISTORY).map_err(failed)?;
        let config = config.auto_add_history(true).history_ignore_space(true).bracketed_paste(true).build();
        let history_file = FileHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history_file).map_err(failed)?;
        editor.set_helper(Some(Lines));
        let history = remembers.then(history_path).flatten();
        if let Some(path) = &history {
            // The first time there is none.
            let _ = editor.load_history(path);
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    /// True if a person types.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next message.
    pub fn next(&mut self, prompt: &str) -> Result<Input, Failure> {
        match self {
            Self::Terminal { editor, history } => match editor.readline(prompt) {
                Ok(text) => {
                    if let Some(path) = history {
                        // A history that can't be written is no reason to stop talking.
                        let _ = editor.append_history(path);
                    }
                    Ok(Input::Text(joined(&text)))
                }
                Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
                Err(ReadlineError::Eof) => Ok(Input::End),
                Err(error) => {
                    Err(Failure::new(crate::exit::Exit::Failed, format_args!("cannot read the terminal: {error}")))
                }
            },
            Self::Pipe => from_pipe(&mut std::io::stdin().lock()),
        }
    }
}

fn from_pipe(pipe: &mut impl BufRead) -> Result<Input, Failure> {
    let mut text = String::new();
    loop {
        let n_bytes = pipe.read_line(&mut text).map_err(|error| Failure::system("read standard input", &error))?;
        if n_bytes == 0 && text.is_empty() {
            return Ok(Input::End);
        }
        let whole = text.strip_suffix('\n').unwrap_or(&text);
        let whole = whole.strip_suffix('\r').unwrap_or(whole);
        if n_bytes == 0 || is_whole(whole) {
            return Ok(Input::Text(joined(whole)));
        }
    }
}

const QUOTES: &str = "\"\"\"";

/// False if the message goes on in the next line.
fn is_whole(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(quoted) => quoted.trim_end().ends_with(QUOTES),
        None => !text.ends_with('\\'),
    }
}

/// The message without the marks that held its lines together.
fn joined(text: &str) -> String {
    if let Some(quoted) = text.trim_start().strip_prefix(QUOTES) {
        let quoted = quoted.trim_end();
        return quoted.strip_suffix(QUOTES).unwrap_or(quoted).trim_matches('\n').to_owned();
    }
    text.replace("\\\n", "\n")
}

/// Lets the editor go on in the next line where a message is not whole.
pub struct Lines;

impl Completer for Lines {
    type Candidate = String;
}

impl Hinter for Lines {
    type Hint = String;
}

impl Highlighter for Lines {}

impl Helper for Lines {}

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_whole(context.input()) { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

/// Where the history is kept, in a folder that is made for it; `None` if there is no home.
fn history_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    let folder = state.join("farpost");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<String> {
        let mut pipe = text.as_bytes();
        let mut messages = Vec::new();
        while let Input::Text(message) = from_pipe(&mut pipe).unwrap() {
            messages.push(message);
        }
        messages
    }

    #[test]
    fn a_pipe_gives_one_message_a_line() {
        assert_eq!(all("one\r\n\ntwo\nlast"), ["one", "", "two", "last"]);
        assert_eq!(all(""), [""; 0]);
    }

    #[test]
    fn messages_go_on_after_a_backslash_and_between_quotes() {
        assert_eq!(all("one\\\ntwo\nthree\n"), ["one\ntwo", "three"]);
        assert_eq!(all("\"\"\"\nfirst\n\nsecond\n\"\"\"\nnext\n"), ["first\n\nsecond", "next"]);
        assert_eq!(all("\"\"\"in one line\"\"\"\n"), ["in one line"]);
        assert_eq!(all("\"\"\"never closed\n"), ["never closed"]);
        assert_eq!(all("ends in\\"), ["ends in\\"]);
    }
}
