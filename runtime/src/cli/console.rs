//! What the program shows: results on standard output, all else on standard error, colour where it is wanted.

use std::io::{IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ColorChoice;

use super::args::Global;
use super::exit::Failure;
use super::plain;

/// The two streams and how talkative to be.
#[derive(Clone, Debug)]
pub struct Console {
    is_json: bool,
    is_quiet: bool,
    is_verbose: bool,
    /// What is said is a log: lines with their time, or one JSON object a line.
    is_log: bool,
    is_stderr_terminal: bool,
    is_stdout_terminal: bool,
    out: Paint,
    err: Paint,
    threads: Option<usize>,
}

impl Console {
    /// As the command line and the environment ask for.
    pub fn new(global: &Global) -> Self {
        let is_stderr_terminal = std::io::stderr().is_terminal();
        let is_stdout_terminal = std::io::stdout().is_terminal();
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let paint = |is_terminal: bool| Paint {
            is_on: match global.color {
                ColorChoice::Always => true,
                ColorChoice::Never => false,
                ColorChoice::Auto => is_terminal && !is_plain,
            },
        };
        Self {
            is_json: global.json,
            is_quiet: global.quiet,
            is_verbose: global.verbose,
            is_log: false,
            is_stderr_terminal,
            is_stdout_terminal,
            out: paint(is_stdout_terminal),
            err: paint(is_stderr_terminal),
            threads: global.threads.map(usize::from),
        }
    }

    /// The same, with the time of each note, and as JSON objects where results are: for a program whose results are its
    /// log.
    #[cfg(feature = "server")]
    pub fn for_log(&self) -> Self {
        Self { is_log: true, ..self.clone() }
    }

    /// Results are wanted as JSON.
    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// Progress may be drawn over itself.
    pub fn draws_progress(&self) -> bool {
        self.is_stderr_terminal && !self.is_quiet
    }

    /// Nothing but errors on standard error.
    pub fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Threads asked for; 0 where the choice is free.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or(0)
    }

    /// Colours for standard output.
    pub fn paint(&self) -> Paint {
        self.out
    }

    /// Writes to standard output, at once.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        self.print_bytes(text.as_bytes())
    }

    /// Writes what a model says to standard output, at once: as it is to a program, without control characters to a
    /// terminal.
    pub fn print_said(&self, text: &str) -> Result<(), Failure> {
        if self.is_stdout_terminal { self.print(&plain::for_terminal(text)) } else { self.print(text) }
    }

    /// Writes bytes to standard output, at once.
    pub fn print_bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
    }

    /// Writes a JSON value on one line to standard output.
    pub fn print_json(&self, value: &serde_json::Value) -> Result<(), Failure> {
        self.print(&format!("{value}\n"))
    }

    /// Says something on standard error, unless it shall be quiet.
    pub fn note(&self, text: &str) {
        if !self.is_quiet {
            self.tell(text, text);
        }
    }

    /// Says something on standard error that was asked for.
    pub fn say(&self, text: &str) {
        Self::complain(text);
    }

    /// Says something on standard error if details are wanted.
    pub fn detail(&self, text: &str) {
        if self.is_verbose {
            self.tell(text, &self.err.dim(text));
        }
    }

    /// The error and what to do about it.
    pub fn error(&self, message: &str, hint: Option<&str>) {
        Self::complain(&format!("{} {message}", self.err.red("error:")));
        if let Some(hint) = hint {
            Self::complain(&format!("{} {hint}", self.err.cyan("hint:")));
        }
    }

    /// An error that does not end the program.
    pub fn complain_of(&self, failure: &Failure) {
        let (message, hint) = failure.words();
        // Names and texts in a message may come from a hostile file.
        self.error(&plain::one_line(message), hint);
    }

    /// Says `text`, to people as it is `shown`.
    fn tell(&self, text: &str, shown: &str) {
        if self.is_log && self.is_json {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            Self::complain(&serde_json::json!({ "time": time, "message": text }).to_string());
        } else {
            Self::complain(&format!("{}{shown}", self.time()));
        }
    }

    /// What a line begins with.
    fn time(&self) -> String {
        #[cfg(feature = "server")]
        if self.is_log {
            return farpost::server::log_time() + " ";
        }
        String::new()
    }

    fn complain(text: &str) {
        // Where standard error is closed, nobody listens and the exit code says it all.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    is_on: bool,
}

impl Paint {
    fn style(self, code: &str, text: &str) -> String {
        if self.is_on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Headings and names.
    pub fn bold(self, text: &str) -> String {
        self.style("1", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.style("2", text)
    }

    /// Errors.
    pub fn red(self, text: &str) -> String {
        self.style("1;31", text)
    }

    /// What is well.
    pub fn green(self, text: &str) -> String {
        self.style("32", text)
    }

    /// Keys and hints.
    pub fn cyan(self, text: &str) -> String {
        self.style("36", text)
    }
}
