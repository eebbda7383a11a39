//! `docs/cli.md`: its examples are run as they are written, one after the other in one folder.

use std::path::Path;

use crate::program::{Folder, command, finish};

/// Contents of the blocks marked `sh`.
fn blocks(page: &str) -> Vec<String> {
    let fences = page.split("```").skip(1).step_by(2);
    fences.filter_map(|block| block.strip_prefix("sh\n")).map(str::to_owned).collect()
}

#[test]
fn examples_run_as_written() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let page = std::fs::read_to_string(page).unwrap();
    let folder = Folder::new("guide");
    let program = Path::new(env!("CARGO_BIN_EXE_farpost")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let blocks = blocks(&page);
    assert!(blocks.len() >= 6);
    for block in blocks {
        let mut shell = std::process::Command::new("bash");
        let farpost = command(&[]);
        for (name, value) in farpost.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.args(["-euo", "pipefail", "-c", &block]).env("PATH", &path).current_dir(folder.path());
        let ran = finish(&mut shell, b"");
        assert_eq!(ran.code, Some(0), "{block}\n{}", ran.err);
    }
}

#[test]
fn every_command_has_a_section_or_shares_one() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md")).unwrap();
    let headings: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    for name in crate::help::COMMANDS {
        assert!(headings.iter().any(|heading| heading.split(' ').any(|word| word == name)), "{name} has no section");
    }
}
