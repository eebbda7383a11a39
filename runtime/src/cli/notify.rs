//! Tells systemd how a service is (sd_notify): one datagram of `NAME=VALUE` to the socket that `NOTIFY_SOCKET` names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use farpost::server::Handle;

/// Sends `state`, such as `READY=1`, if somebody waits for it. That it can't be told ends nothing.
pub fn tell(state: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) {
        let _ = send(&socket, state);
    }
}

/// Tells systemd from time to time that the server's queue moves, for as long as it does; where a watchdog waits for it.
#[derive(Debug)]
pub struct Watchdog {
    /// Dropped to end the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Begins if `WATCHDOG_USEC` asks for it.
    pub fn start(server: Handle) -> Self {
        let usec = std::env::var("WATCHDOG_USEC").ok().and_then(|usec| usec.parse().ok()).filter(|usec| *usec > 0);
        let pid = std::env::var("WATCHDOG_PID").ok();
        let is_ours = pid.is_none_or(|pid| pid == std::process::id().to_string());
        let Some(usec) = usec.filter(|_| is_ours) else { return Self { end: None, thread: None } };
        let (end, ended) = std::sync::mpsc::channel();
        let work = move || {
            // Twice in the time, as sd_watchdog_enabled(3) has it.
            while ended.recv_timeout(Duration::from_micros(usec) / 2) == Err(RecvTimeoutError::Timeout) {
                if server.is_well() {
                    tell("WATCHDOG=1");
                }
            }
        };
        // Without it systemd takes the server for dead, and says so.
        let thread = std::thread::Builder::new().name("farpost-watchdog".to_owned()).spawn(work).ok();
        Self { end: Some(end), thread }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

fn send(socket: &OsStr, state: &str) -> std::io::Result<usize> {
    let address = match socket.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)?
        }
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_arrives() {
        let path = std::env::temp_dir().join(format!("farpost-notify-{}", std::process::id()));
        let listener = UnixDatagram::bind(&path).unwrap();
        assert_eq!(send(path.as_os_str(), "READY=1").unwrap(), 7);
        let mut buffer = [0; 16];
        assert_eq!(listener.recv(&mut buffer).unwrap(), 7);
        assert_eq!(&buffer[..7], b"READY=1");
        std::fs::remove_file(&path).unwrap();
        assert!(send(path.as_os_str(), "STOPPING=1").is_err());
    }
}
