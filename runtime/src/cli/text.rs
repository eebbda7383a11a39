//! Texts that a command works on: from a file, or from standard input as it is.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::amount;
use super::exit::{Exit, Failure};

/// Texts of which each is dealt with by itself.
#[derive(clap::Args, Debug)]
pub struct TextsArgs {
    /// The text [default: standard input]
    text: Option<String>,
    /// Read the text from this file
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// What stands between the texts of the input; \n, \r, \t, \0 and \\ are understood
    #[arg(long, value_name = "TEXT", value_parser = unescaped)]
    separator: Option<String>,
}

impl TextsArgs {
    /// The whole input.
    pub fn input(&self) -> Result<String, Failure> {
        given(self.text.as_deref(), self.file.as_deref())
    }

    /// The texts of an input.
    pub fn parts<'t>(&self, input: &'t str) -> Vec<&'t str> {
        match &self.separator {
            Some(separator) => input.split(separator.as_str()).collect(),
            None => vec![input],
        }
    }
}

/// The text of the command line, else of a file, else of standard input.
fn given(text: Option<&str>, file: Option<&Path>) -> Result<String, Failure> {
    match (text, file) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some(path)) => of_file(path),
        (None, None) => of_stdin(),
    }
}

/// The whole text of a file.
pub fn of_file(path: &Path) -> Result<String, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::file(path, "read it", &error))?;
    checked(&path.display().to_string(), bytes)
}

/// All of standard input.
pub fn of_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(|error| Failure::system("read standard input", &error))?;
    checked("standard input", bytes)
}

fn checked(name: &str, bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let at = amount::grouped(error.utf8_error().valid_up_to() as u64);
        Failure::new(Exit::Failed, format_args!("{name}: byte {at} is not UTF-8, expected text"))
    })
}

/// Separators are often what a shell finds hard to write.
fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('0') => '\0',
                Some('\\') => '\\',
                Some(other) => return Err(format!("'\\{other}' is none of \\n, \\r, \\t, \\0, \\\\")),
                None => return Err("it ends in a single backslash; write \\\\ for one".to_owned()),
            },
            _ => c,
        });
    }
    if out.is_empty() { Err("it is empty".to_owned()) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_may_be_written_as_escapes() {
        assert_eq!(unescaped(r"\n--\0\\"), Ok("\n--\0\\".to_owned()));
        assert_eq!(unescaped("\n"), Ok("\n".to_owned()));
        assert!(unescaped(r"\x").is_err() && unescaped("\\").is_err() && unescaped("").is_err());
    }
}
