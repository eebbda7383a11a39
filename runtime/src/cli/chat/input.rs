//! Where messages come from: a line editor with history on a terminal, plain lines from a pipe.
//!
//! A message goes on in the next line after a backslash, or between two lines of three double quotes.

use std::cell::RefCell;
use std::io::{BufRead, ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};

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
    Interrupted { was_typing: bool },
    /// Something that is not UTF-8, and what was done with it.
    NotText(String),
    /// Ctrl-D, or the pipe is empty.
    End,
}

/// Reads message after message.
pub enum Source {
    Terminal {
        editor: Box<Editor<Lines, FileHistory>>,
        history: Option<PathBuf>,
        /// What the next line begins with.
        kept: String,
    },
    Pipe {
        /// Lines read so far.
        n_lines: u64,
    },
}

/// Most messages kept in the history file.
const MOST_HISTORY: usize = 1000;

impl Source {
    /// An editor if standard input is a terminal, which remembers messages of earlier conversations if it shall.
    pub fn open(remembers: bool) -> Result<Self, Failure> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe { n_lines: 0 });
        }
        let failed = |error: ReadlineError| {
            Failure::new(crate::exit::Exit::Failed, format_args!("cannot use the terminal: {error}"))
        };
        let config = Config::builder().max_history_size(MOST_HISTORY).map_err(failed)?;
        let config = config.auto_add_history(true).history_ignore_space(true).bracketed_paste(true).build();
        let history_file = FileHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history_file).map_err(failed)?;
        editor.set_helper(Some(Lines::default()));
        let history = remembers.then(history_path).flatten();
        if let Some(path) = history.as_deref().filter(|path| may_keep_history(path)) {
            // The first time there is none.
            let _ = editor.load_history(path);
        }
        Ok(Self::Terminal { editor: Box::new(editor), history, kept: String::new() })
    }

    /// True if a person types.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next message.
    pub fn next(&mut self, prompt: &str) -> Result<Input, Failure> {
        match self {
            Self::Terminal { editor, history, kept } => {
                match editor.readline_with_initial(prompt, (&std::mem::take(kept), "")) {
                    Ok(text) => {
                        if let Some(path) = history.as_deref().filter(|path| may_keep_history(path)) {
                            // A history that can't be written is no reason to stop talking.
                            let _ = editor.append_history(path);
                        }
                        Ok(Input::Text(joined(&text)))
                    }
                    Err(ReadlineError::Interrupted) => Ok(Input::Interrupted { was_typing: !typed(editor).is_empty() }),
                    Err(ReadlineError::Eof) => Ok(Input::End),
                    Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                        *kept = typed(editor);
                        Ok(Input::NotText("the line is not UTF-8; what is no text was left out".to_owned()))
                    }
                    Err(error) => {
                        Err(Failure::new(crate::exit::Exit::Failed, format_args!("cannot read the terminal: {error}")))
                    }
                }
            }
            Self::Pipe { n_lines } => from_pipe(&mut std::io::stdin().lock(), n_lines),
        }
    }
}

/// What is on the line, or was when reading it ended.
fn typed(editor: &Editor<Lines, FileHistory>) -> String {
    editor.helper().map(|lines| lines.typed.borrow().clone()).unwrap_or_default()
}

fn from_pipe(pipe: &mut impl BufRead, n_lines: &mut u64) -> Result<Input, Failure> {
    let mut bytes = Vec::new();
    let first = *n_lines + 1;
    loop {
        let n_bytes =
            pipe.read_until(b'\n', &mut bytes).map_err(|error| Failure::system("read standard input", &error))?;
        if n_bytes == 0 && bytes.is_empty() {
            return Ok(Input::End);
        }
        *n_lines += u64::from(n_bytes > 0);
        // Also where it is no text: the lines of a message go or stay together.
        let text = String::from_utf8_lossy(&bytes);
        let whole = text.strip_suffix('\n').unwrap_or(&text);
        let whole = whole.strip_suffix('\r').unwrap_or(whole);
        if n_bytes == 0 || is_whole(whole) {
            return Ok(match std::str::from_utf8(&bytes) {
                Ok(_) => Input::Text(joined(whole)),
                Err(error) => {
                    let before = bytes.iter().take(error.valid_up_to()).filter(|&&byte| byte == b'\n').count() as u64;
                    Input::NotText(format!("line {} is not UTF-8; it was not sent", first + before))
                }
            });
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

/// Lets the editor go on in the next line where a message is not whole, and knows what is on the line.
#[derive(Default)]
pub struct Lines {
    typed: RefCell<String>,
}

impl Completer for Lines {
    type Candidate = String;
}

impl Hinter for Lines {
    type Hint = String;

    /// Asked after every change. There is no hint, but no other way to know the line of a reading that did not end well.
    fn hint(&self, line: &str, _: usize, _: &rustyline::Context<'_>) -> Option<String> {
        line.clone_into(&mut self.typed.borrow_mut());
        None
    }
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

/// True if a plain file or nothing is there: whatever it is, the editor makes it the user's alone, and a device (a link
/// to `/dev/null` is an old way to keep no history) must stay what it is.
fn may_keep_history(path: &Path) -> bool {
    std::fs::metadata(path).map_or_else(|error| error.kind() == std::io::ErrorKind::NotFound, |facts| facts.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<String> {
        let (mut pipe, mut n_lines) = (text.as_bytes(), 0);
        let mut messages = Vec::new();
        while let Input::Text(message) = from_pipe(&mut pipe, &mut n_lines).unwrap() {
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
    fn a_message_that_is_no_text_is_told_with_its_line_and_left_out_whole() {
        let (mut pipe, mut n_lines) = (&b"one\ntwo\\\nthr\xffee\\\nfour\nfive\n\xe9"[..], 0);
        let mut next = || from_pipe(&mut pipe, &mut n_lines).unwrap();
        let not_text = |line: u64| Input::NotText(format!("line {line} is not UTF-8; it was not sent"));
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!([next(), next(), next(), next()], [text("one"), not_text(3), text("five"), not_text(6)]);
        assert_eq!(next(), Input::End);
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
