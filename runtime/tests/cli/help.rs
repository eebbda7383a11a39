//! Help texts, completions and manual pages: everything is said once and shows everywhere.

use crate::program::{Folder, farpost};

pub const COMMANDS: [&str; 14] = [
    "run",
    "chat",
    "serve",
    "embed",
    "eval",
    "bench",
    "inspect",
    "tokenize",
    "quantize",
    "pack",
    "synth",
    "doctor",
    "completions",
    "man",
];

#[test]
fn help_texts_are_as_recorded() {
    insta::assert_snapshot!("help", farpost(&["--help"]).done());
    for command in COMMANDS {
        insta::assert_snapshot!(format!("help_{command}"), farpost(&[command, "--help"]).done());
    }
    insta::assert_snapshot!("help_bench_serve", farpost(&["bench", "serve", "--help"]).done());
}

#[test]
fn every_command_has_a_short_help_on_one_screen() {
    for command in COMMANDS {
        let lines = farpost(&[command, "-h"]).done().lines().count();
        assert!(lines <= 60, "{command}: {lines} lines");
    }
    assert!(farpost(&["bench", "serve", "-h"]).done().lines().count() <= 60);
}

#[test]
fn the_version_is_told() {
    assert_eq!(farpost(&["--version"]).done(), concat!("farpost ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn exit_codes_stand_in_help_and_manual() {
    let (help, page) = (farpost(&["--help"]), farpost(&["man"]));
    for code in ["0", "1", "2", "3", "4", "5", "6", "130"] {
        let is_listed = |line: &str| line.trim_start().split_once("  ").is_some_and(|(first, _)| first == code);
        assert!(help.done().lines().any(is_listed), "{code} is missing in {}", help.text());
        assert!(page.done().contains(&format!(".TP\n\\fB{code}\\fR\n")), "{code} is missing in {}", page.text());
    }
}

#[test]
fn every_shell_gets_completions_for_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = farpost(&["completions", shell]);
        for command in COMMANDS {
            assert!(script.done().contains(command), "{shell} does not know {command}");
        }
    }
}

#[test]
fn manual_pages_of_all_commands_are_written_to_a_folder() {
    let folder = Folder::new("man");
    let pages = folder.file("pages");
    farpost(&["man", "--dir", &pages]).done();
    for command in COMMANDS {
        let page = std::fs::read_to_string(format!("{pages}/farpost-{command}.1")).unwrap();
        assert!(page.contains(&format!("farpost\\-{command}")), "{page}");
    }
    assert!(std::fs::read_to_string(format!("{pages}/farpost.1")).unwrap().contains(".TH farpost 1"));
    assert!(farpost(&["man", "quantize"]).done().contains("memory does not grow"));
    assert!(farpost(&["man", "bench", "serve"]).done().contains("\\-\\-shared\\-prefix"));
    assert!(std::fs::exists(format!("{pages}/farpost-bench-serve.1")).unwrap());
    assert!(farpost(&["man", "dance"]).error(2).starts_with("there is no command 'dance', there are "));
}
