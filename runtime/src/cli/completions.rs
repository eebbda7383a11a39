//! `farpost completions`: what a shell needs to complete the command line.

use clap_complete::Shell;

use super::console::Console;
use super::exit::Failure;

/// Print the completion script of a shell
///
/// For bash: farpost completions bash > ~/.local/share/bash-completion/completions/farpost
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::args::command(), "farpost", &mut script);
    console.print_bytes(&script)
}
