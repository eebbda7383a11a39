//! The program `farpost` from outside: what it prints, where, and how it ends.

mod bench;
mod chat;
mod embed;
#[path = "../embedder/mod.rs"]
mod embedder;
mod errors;
mod eval;
mod files;
mod guide;
mod help;
mod machine;
mod pack;
mod pipes;
mod program;
mod run;
mod scarce;
mod terminal;
mod tokens;
