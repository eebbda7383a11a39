//! Texts that a command works on: from a file, or from standard input as it is.

use std::io::Read;
use std::path::Path;

use super::amount;
use super::exit::{Exit, Failure};

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
