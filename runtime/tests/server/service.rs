//! As a service of systemd: what it is told and when, and the unit that is shipped.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use crate::program::{PATIENCE, TempFile, command, start_command};

#[test]
fn systemd_is_told_when_it_is_ready_that_it_lives_and_when_it_ends() {
    let path = TempFile::new("notify.sock", "");
    std::fs::remove_file(&path.0).unwrap();
    let socket = UnixDatagram::bind(&path.0).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut buffer = [0; 64];
        let n = socket.recv(&mut buffer).expect("it is told in time");
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    };
    let mut command = command(&[]);
    command.env("NOTIFY_SOCKET", &path.0).env("WATCHDOG_USEC", "50000");
    let mut server = start_command(command);
    while told() != "READY=1" {}
    assert_eq!([told(), told(), told()], ["WATCHDOG=1"; 3]);
    // There are no files to read again; systemd may ask for it all the same.
    server.signal("HUP");
    assert_eq!([told(), told(), told()], ["WATCHDOG=1"; 3]);
    server.signal("TERM");
    while told() != "STOPPING=1" {}
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn the_unit_that_is_shipped_is_sound() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/farpost.service");
    let text = std::fs::read_to_string(unit).unwrap();
    for line in ["Type=notify", "WatchdogSec=2min", "NoNewPrivileges=yes", "ProtectSystem=strict", "DynamicUser=yes"] {
        assert!(text.lines().any(|found| found == line), "{line} is missing");
    }
    // Where there is no systemd, nobody installs it either.
    let program = env!("CARGO_BIN_EXE_farpost");
    let copy = TempFile::new("unit.service", &text.replace("/usr/local/bin/farpost", program));
    if let Ok(output) = Command::new("systemd-analyze").args(["verify", copy.path()]).output() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains("unit.service"), "{said}");
    }
}
