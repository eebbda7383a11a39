//! The program `farpost`: reads the command line and hands over to one file a command.

mod allocator;
mod amount;
mod answer;
mod args;
mod bench;
mod chat;
mod columns;
mod completions;
mod console;
mod device;
mod doctor;
mod embed;
mod eval;
mod exit;
mod generation;
mod inspect;
mod interrupt;
mod kept;
mod machine;
mod man;
mod model;
#[cfg(all(unix, feature = "server"))]
mod notify;
mod pack;
mod plain;
mod progress;
mod prompt;
mod quantize;
mod reply;
mod run;
mod sampling;
#[cfg(feature = "server")]
mod serve;
mod synth;
mod text;
mod tokenize;

use std::process::ExitCode;

use args::Command;
use console::Console;
use exit::Failure;

fn main() -> ExitCode {
    allocator::hold_to_few_arenas();
    device::hush_drivers();
    let cli = args::parse();
    let console = Console::new(&cli.global);
    exit::report(dispatch(&cli.command, &console), &console)
}

fn dispatch(command: &Command, console: &Console) -> Result<(), Failure> {
    // A model file that is cut short while it is mapped must not kill the program.
    farpost_models::gguf::install_sigbus_guard()
        .map_err(|error| Failure::system("install a signal handler", &error))?;
    match command {
        Command::Run(args) => run::run(args, console),
        Command::Chat(args) => chat::run(args, console),
        #[cfg(feature = "server")]
        Command::Serve(args) => serve::run(args, console),
        Command::Embed(args) => embed::run(args, console),
        Command::Eval(args) => eval::run(args, console),
        Command::Bench(args) => bench::run(args, console),
        Command::Inspect(args) => inspect::run(args, console),
        Command::Tokenize(args) => tokenize::run(args, console),
        Command::Quantize(args) => quantize::run(args, console),
        Command::Pack(args) => pack::run(args, console),
        Command::Synth(args) => synth::run(args, console),
        Command::Doctor(args) => doctor::run(args, console),
        Command::Completions(args) => completions::run(args, console),
        Command::Man(args) => man::run(args, console),
    }
}
