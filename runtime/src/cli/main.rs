//! The program `farpost`: parses the command line and dispatches to one file a command.

fn main() {}
