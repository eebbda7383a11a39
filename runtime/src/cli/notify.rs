//! Tells systemd how a service is (sd_notify): one datagram of `NAME=VALUE` to the socket that `NOTIFY_SOCKET` names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state`, such as `READY=1`, if somebody waits for it. That it can't be told ends nothing.
pub fn tell(state: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) {
        let _ = send(&socket, state);
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
