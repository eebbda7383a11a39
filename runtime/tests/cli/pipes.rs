//! Colour and progress where there is no terminal, pipes that close early, disks that are full.

use std::fs::OpenOptions;
use std::io::Read;
use std::process::Stdio;

use crate::program::{command, farpost, finish, model};

#[test]
fn a_pipe_gets_no_colour_unless_it_is_forced_and_no_color_wins_over_auto() {
    let has_colour = |args: &[&str]| farpost(args).done().contains('\x1b');
    assert!(!has_colour(&["inspect"]));
    assert!(has_colour(&["inspect", "--color", "always"]));
    assert!(!has_colour(&["inspect", "--color", "never"]));
    assert!(has_colour(&["--color=always", "--help"]));
    assert!(!has_colour(&["--help"]));
    let error = farpost(&["inspect", "/nonexistent/x", "--color", "always"]);
    assert!(error.err.starts_with("\x1b[1;31merror:\x1b[0m "), "{:?}", error.err);
    let ran = finish(command(&["inspect", "--color", "always"]).env("NO_COLOR", "1"), b"");
    assert!(ran.done().contains('\x1b'), "what is asked for by name is given");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let path = model("gemma-3-270m-q4_k_m.gguf");
    let mut child =
        command(&["inspect", "--full", &path]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut few = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut few).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn a_full_disk_is_an_error() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&["inspect"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("error: cannot write to standard output: No space left"), "{error}");
}

#[test]
fn quiet_work_says_nothing_and_plain_progress_has_no_control_characters() {
    let folder = crate::program::Folder::new("progress");
    let input = model("gemma-3-270m-q4_k_m.gguf");
    let loud = farpost(&["quantize", &input, &folder.file("a.gguf"), "--type", "q8_0", "--threads", "1"]);
    loud.done();
    assert!(!loud.err.contains(['\x1b', '\r']), "{:?}", loud.err);
    let quiet = farpost(&["quantize", &input, &folder.file("b.gguf"), "--type", "q8_0", "--quiet"]);
    assert_eq!((quiet.code, quiet.err.as_str()), (Some(0), ""));
}
