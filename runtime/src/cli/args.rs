//! The command line as a whole: options that every command knows, and the list of commands.

use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};

#[cfg(feature = "server")]
use super::serve;
use super::{
    amount, bench, chat, completions, doctor, embed, eval, exit, inspect, man, pack, quantize, run, synth, tokenize,
};

/// Runs language models on edge devices.
///
/// One program, one GGUF file. Without --model the built-in pocket model answers: it turns spoken-style commands for a
/// home or a plant into one JSON tool call.
#[derive(Parser, Debug)]
#[command(name = "farpost", version, max_term_width = 100, after_long_help = exit::long_help())]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Threads to compute with [default: one for each core the program may use]
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, value_parser = amount::whole::<u16>(1..=256))]
    pub threads: Option<u16>,
    /// Print results as JSON, for other programs
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colour; 'auto' means on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
    /// No progress and no notes on standard error, only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more on standard error about what is done
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// One variant a command, each in a file of its own.
#[derive(Subcommand, Debug)]
pub enum Command {
    Run(Box<run::Args>),
    Chat(Box<chat::Args>),
    #[cfg(feature = "server")]
    Serve(Box<serve::Args>),
    Embed(embed::Args),
    Eval(eval::Args),
    Bench(Box<bench::Args>),
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
    Quantize(quantize::Args),
    Pack(pack::Args),
    Synth(synth::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// The command line of this process. Ends the process where it only asks for help or makes no sense.
pub fn parse() -> Cli {
    let command = command().color(color_of(std::env::args_os().skip(1)));
    match Cli::from_arg_matches(&command.get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    }
}

/// The whole command line as clap sees it; for completions and manual pages too.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The colour asked for, before the command line is parsed: its own messages and help texts obey it too.
fn color_of(args: impl Iterator<Item = std::ffi::OsString>) -> ColorChoice {
    let mut choice = ColorChoice::Auto;
    let mut is_value = false;
    for arg in args {
        let Some(arg) = arg.to_str() else { continue };
        if arg == "--" {
            break;
        }
        let value = if std::mem::take(&mut is_value) { Some(arg) } else { arg.strip_prefix("--color=") };
        is_value = arg == "--color";
        choice = match value {
            Some("always") => ColorChoice::Always,
            Some("never") => ColorChoice::Never,
            _ => choice,
        };
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        command().debug_assert();
    }

    #[test]
    fn color_is_known_before_anything_else_is_parsed() {
        let color = |line: &str| color_of(line.split(' ').map(Into::into));
        assert_eq!(color("inspect --color never --nonsense"), ColorChoice::Never);
        assert_eq!(color("--color=always doctor"), ColorChoice::Always);
        assert_eq!(color("tokenize -- --color=always"), ColorChoice::Auto);
        assert_eq!(color("tokenize --color"), ColorChoice::Auto);
    }
}
