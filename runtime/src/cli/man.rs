//! `farpost man`: the manual pages, made from the same text as `--help`.

use std::io;
use std::path::{Path, PathBuf};

use super::console::Console;
use super::exit::{self, Failure};

/// Print the manual page, or write the pages of all commands to a folder
///
/// To read it: farpost man | man -l -
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The command whose page to print, such as run or bench serve [default: the program's own]
    command: Vec<String>,
    /// Write the pages of the program and of all commands to this folder, which is made if it is not there
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

/// What the environment decides, for every page.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("FARPOST_CPU", "forces the instruction set of the kernels: scalar, avx2, avx512, amx, neon, neon-dot, neon-i8mm"),
    ("FARPOST_MODELS", "the folder in which models are found by name, otherwise ~/.local/share/farpost/models"),
    ("NO_COLOR", "no colour, unless --color asks for it"),
];

/// Prints or writes pages.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let mut root = super::args::command().disable_help_subcommand(true).after_long_help("");
    root.build();
    if let Some(folder) = &args.dir {
        std::fs::create_dir_all(folder).map_err(|error| Failure::file(folder, "make the folder", &error))?;
        return write_all(&root, folder);
    }
    let mut command = &root;
    for name in &args.command {
        let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        let unknown = || match names[..] {
            [] => Failure::usage(format_args!("there is no command '{name}' within another")),
            _ => Failure::usage(format_args!("there is no command '{name}', there are {}", names.join(", "))),
        };
        command = command.find_subcommand(name).ok_or_else(unknown)?;
    }
    print(command.clone(), console)
}

fn print(command: clap::Command, console: &Console) -> Result<(), Failure> {
    let page = page(command).map_err(|error| Failure::system("make the manual page", &error))?;
    console.print_bytes(&page)
}

/// The page of a command, and those of the commands within it.
fn write_all(command: &clap::Command, folder: &Path) -> Result<(), Failure> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = folder.join(format!("{name}.1"));
    let written = page(command.clone()).and_then(|page| std::fs::write(&path, page));
    written.map_err(|error| Failure::file(&path, "write the manual page", &error))?;
    command.get_subcommands().filter(|command| !command.is_hide_set()).try_for_each(|within| write_all(within, folder))
}

/// One page in roff.
fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let has_subcommands = command.get_subcommands().next().is_some();
    let man = clap_mangen::Man::new(command);
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if has_subcommands {
        man.render_subcommands_section(&mut out)?;
    }
    section(&mut out, "EXIT STATUS", exit::codes().map(|(code, meaning)| (code.to_string(), meaning)));
    section(&mut out, "ENVIRONMENT", ENVIRONMENT.into_iter().map(|(name, text)| (name.to_owned(), text)));
    Ok(out)
}

/// A list of terms and what they mean.
fn section(out: &mut Vec<u8>, title: &str, entries: impl Iterator<Item = (String, &'static str)>) {
    let mut text = format!(".SH \"{title}\"\n");
    for (term, meaning) in entries {
        text += &format!(".TP\n\\fB{term}\\fR\n{}\n", meaning.replace('-', "\\-"));
    }
    out.extend_from_slice(text.as_bytes());
}
