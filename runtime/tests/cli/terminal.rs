//! The program on a terminal: colour, progress that is drawn and taken away, Ctrl-C from the keyboard.

use rexpect::session::{PtySession, spawn_command};

use crate::program::{Folder, command, model};

/// Longer than anything here takes on a slow machine; a test that waits so long has failed.
const DEADLINE_MS: u64 = 120_000;

/// The program on a terminal of its own.
pub fn on_terminal(args: &[&str], environment: &[(&str, &str)]) -> PtySession {
    let mut command = command(args);
    command.env("TERM", "xterm-256color").envs(environment.iter().copied());
    // The terminal takes the place of the input that tests have otherwise.
    command.stdin(std::process::Stdio::inherit());
    spawn_command(command, Some(DEADLINE_MS)).expect("a terminal can be made")
}

/// Waits for the end and gives the exit code.
pub fn exit_code(session: &PtySession) -> i32 {
    // The type of the status has no public name: "Exited(Pid(7), 130)".
    let status = format!("{:?}", session.process().wait().expect("the program ends"));
    let code = status.strip_prefix("Exited(").and_then(|rest| rest.strip_suffix(')')?.rsplit(' ').next()?.parse().ok());
    code.unwrap_or_else(|| panic!("it ended by {status}"))
}

#[test]
fn a_terminal_gets_colour_unless_no_color_is_set() {
    let mut session = on_terminal(&["inspect"], &[]);
    let text = session.exp_eof().unwrap();
    assert!(text.contains("\x1b[1mTypes\x1b[0m"), "{text:?}");
    let mut session = on_terminal(&["inspect"], &[("NO_COLOR", "1")]);
    assert!(!session.exp_eof().unwrap().contains('\x1b'));
    let mut session = on_terminal(&["inspect", "--color", "never"], &[]);
    assert!(!session.exp_eof().unwrap().contains('\x1b'));
}

#[test]
fn long_work_draws_a_bar_and_the_keyboard_interrupts_it() {
    let folder = Folder::new("bar");
    let input = model("gemma-3-270m-q4_k_m.gguf");
    let args = ["quantize", &input, &folder.file("out.gguf"), "--type", "iq4_xs", "--threads", "1"];
    let mut session = on_terminal(&args, &[]);
    session.exp_string("quantizing").unwrap();
    session.exp_regex(r"\d+ %").unwrap();
    session.send_control('c').unwrap();
    session.exp_eof().unwrap();
    assert_eq!(exit_code(&session), 130);
    assert_eq!(folder.names(), [""; 0]);
}
