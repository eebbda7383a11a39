//! Too little memory: whatever the limit, a run answers or says so, and never dies of it.

use std::process::Command;

use crate::program::{Ran, command, finish, model};

/// Runs the program in an address space of `kib`.
fn within(kib: u64, args: &[&str]) -> Ran {
    let program = command(args);
    // The shell sets the limit and becomes the program.
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -v {kib} && exec \"$0\" \"$@\"")]).arg(program.get_program()).args(args);
    for (variable, value) in program.get_envs() {
        match value {
            Some(value) => limited.env(variable, value),
            None => limited.env_remove(variable),
        };
    }
    finish(limited.stdin(std::process::Stdio::null()), b"")
}

/// Goes up the ladder; gives how many runs ended well, and the errors of the others.
fn climb(ladder: impl Iterator<Item = u64>, args: &[&str]) -> (usize, Vec<String>) {
    let (mut n_done, mut errors) = (0, Vec::new());
    for kib in ladder {
        let ran = within(kib, args);
        match ran.code {
            Some(0) => n_done += 1,
            Some(4) => errors.push(ran.error(4).to_owned()),
            code => panic!("{kib} KiB: ended with {code:?}: {}{}", ran.text(), ran.err),
        }
    }
    (n_done, errors)
}

#[test]
fn a_model_that_barely_fits_answers_or_says_what_it_lacks() {
    let gemma = model("gemma-3-270m-q4_k_m.gguf");
    let args = ["run", "--model", &gemma, "--raw", "--max-tokens", "2", "--threads", "2", "hello"];
    let size_kib = std::fs::metadata(&gemma).unwrap().len() / 1024;
    // From less than the file to several times it.
    let ladder = (60..=600).step_by(12).map(|mib| mib * 1024);
    let (n_done, errors) = climb(ladder.clone(), &args);
    assert!(n_done > 5 && n_done + errors.len() == ladder.count(), "{n_done} done, {errors:#?}");
    assert!(size_kib > 60 * 1024 && errors[0].contains("cannot map it into memory"), "{}", errors[0]);
    let of_the_plan = "MiB needed for scratch, keys and values, the system gives less";
    assert!(
        errors.iter().any(|error| error.starts_with("out of memory: ") && error.ends_with(of_the_plan)),
        "{errors:#?}"
    );
}

#[test]
fn threads_that_cannot_start_are_too_little_of_something() {
    // Stacks of 256 threads are more than there is room for.
    for args in [
        &["run", "--threads", "256", "--memory-cap", "1G", "turn on the porch light"][..],
        &["bench", "--threads", "256", "--pp", "4", "--repetitions", "1"],
    ] {
        let ran = within(150 * 1024, args);
        let line = ran.error(4);
        assert!(line.starts_with("cannot start 256 threads: "), "{line}");
    }
}

#[test]
fn the_built_in_model_answers_in_little_memory() {
    let args = ["run", "--threads", "2", "turn on the porch light"];
    let ladder = (60..=600).step_by(60).map(|mib| mib * 1024);
    assert_eq!(climb(ladder.clone(), &args), (ladder.count(), Vec::new()));
}
