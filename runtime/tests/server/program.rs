//! Starts the real program on a free port and ends it with the test.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs.
pub struct Running {
    child: Child,
    pub address: SocketAddr,
    lines: Receiver<String>,
    seen: Vec<String>,
}

/// Serves the built-in model with these options.
pub fn serve(args: &[&str]) -> Running {
    let mut running = start(args);
    running.wait_for("ready: ");
    running
}

/// The same, not waiting until the model is loaded.
pub fn start(args: &[&str]) -> Running {
    start_command(command(args))
}

/// The same for a command that is made.
pub fn start_command(mut command: Command) -> Running {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
    let (sender, lines) = channel();
    let err = BufReader::new(child.stderr.take().expect("it was piped"));
    // Ends with the program.
    std::thread::spawn(move || err.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut running = Running { child, address: ([127, 0, 0, 1], 0).into(), lines, seen: Vec::new() };
    let line = running.wait_for("listening on http");
    running.address = line.rsplit('/').next().unwrap().trim_end_matches("\"}").parse().expect("it tells its address");
    running
}

/// The program with nothing of the tester's environment in its way.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farpost"));
    let port: &[&str] = if args.contains(&"--port") { &[] } else { &["--port", "0"] };
    command.arg("serve").args(port).args(args).stdin(Stdio::null()).stdout(Stdio::null());
    for variable in ["FARPOST_CPU", "FARPOST_MODELS", "XDG_DATA_HOME", "OTEL_EXPORTER_OTLP_ENDPOINT", "NOTIFY_SOCKET"] {
        command.env_remove(variable);
    }
    command.env("FARPOST_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.env("HOME", "/nonexistent").env("FARPOST_BACKEND", "cpu");
    command
}

impl Running {
    /// Waits for a line on standard error that has `part` in it.
    #[track_caller]
    pub fn wait_for(&mut self, part: &str) -> String {
        if let Some(line) = self.seen.iter().find(|line| line.contains(part)) {
            return line.clone();
        }
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(_) => panic!("{part:?} was not said, but {:#?}", self.seen),
            }
        }
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        // Built into every shell; a program of that name is not everywhere.
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("there is a shell").success());
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < end, "it does not end: {:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All it has said on standard error, once it has ended.
    pub fn said(&mut self) -> String {
        self.ended();
        self.seen.extend(self.lines.iter());
        self.seen.join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that goes away with the test.
pub struct TempFile(pub PathBuf);

impl TempFile {
    pub fn new(name: &str, content: &str) -> Self {
        Self::with(name, content.as_bytes())
    }

    pub fn with(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("farpost-server-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("temporary files can be written");
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("test paths are text")
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A fixture's path as an argument.
pub fn model(name: &str) -> String {
    farpost_firmware_tests::model(name).into_os_string().into_string().expect("fixture paths are text")
}
