//! Runs the real program in an environment of its own and keeps what it said.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A run that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Ran {
    /// Standard output, which must be text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("the program prints text")
    }

    /// Standard output, if the run went well.
    #[track_caller]
    pub fn done(&self) -> &str {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.text()
    }

    /// Standard output as one JSON value, if the run went well.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let text = self.done();
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The error line, if the run ended with this code, one line of error and nothing on standard output.
    #[track_caller]
    pub fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{}{}", self.text(), self.err);
        assert_eq!(self.text(), "");
        let lines: Vec<&str> = self.err.lines().collect();
        assert!(matches!(lines.len(), 1 | 2), "{}", self.err);
        assert!(lines.get(1).is_none_or(|hint| hint.starts_with("hint: ")), "{}", self.err);
        let line = lines[0].strip_prefix("error: ").expect("the first line is the error");
        assert!(!line.chars().any(char::is_control), "{line:?}");
        line
    }
}

/// The program with nothing of the tester's environment in its way.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farpost"));
    command.args(args);
    for variable in ["NO_COLOR", "COLUMNS", "TERM", "FARPOST_CPU", "FARPOST_MODELS", "XDG_DATA_HOME"] {
        command.env_remove(variable);
    }
    // What tests expect comes from the processor, whatever else the tester's machine has.
    command.env("FARPOST_BACKEND", "cpu");
    // Drivers complain on standard error where it is not set.
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    // What is found out about devices is kept from test to test.
    command.env("FARPOST_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn farpost(args: &[&str]) -> Ran {
    finish(&mut command(args), b"")
}

/// Runs it to its end with something on standard input.
pub fn farpost_with(args: &[&str], input: &[u8]) -> Ran {
    finish(&mut command(args), input)
}

/// Runs a prepared command to its end.
pub fn finish(command: &mut Command, input: &[u8]) -> Ran {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let input = input.to_vec();
    let writer = child.stdin.take().map(|mut stdin| {
        // A program that does not read all of it is no error here.
        std::thread::spawn(move || drop(stdin.write_all(&input)))
    });
    let output = child.wait_with_output().expect("the program ends");
    if let Some(writer) = writer {
        writer.join().expect("the writer does not panic");
    }
    let err = String::from_utf8(output.stderr).expect("errors are text");
    Ran { code: output.status.code(), out: output.stdout, err }
}

/// Sends a running program what Ctrl-C sends.
pub fn interrupt(child: &std::process::Child) {
    // Built into every shell; a program of that name is not everywhere.
    let sent =
        Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().expect("there is a shell");
    assert!(sent.success());
}

/// A folder that goes away with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("farpost-cli-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary files can be written");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Path of a file in it, as an argument.
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().expect("test paths are text")
    }

    /// Writes a file and gives its path.
    pub fn with(&self, name: &str, content: &[u8]) -> String {
        let path = self.file(name);
        std::fs::write(&path, content).expect("temporary files can be written");
        path
    }

    /// Names of what is in it.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("the folder is there");
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().expect("test paths are text")).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A fixture's path as an argument.
pub fn model(name: &str) -> String {
    farpost_firmware_tests::model(name).into_os_string().into_string().expect("fixture paths are text")
}

/// A golden file's path as an argument.
pub fn golden(name: &str) -> String {
    farpost_firmware_tests::golden(name).into_os_string().into_string().expect("fixture paths are text")
}
