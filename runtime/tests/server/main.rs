//! `farpost serve` from outside: the real program, asked over plain sockets, so that every byte of an answer counts.

#![allow(clippy::needless_pass_by_value, reason = "JSON is written where it is used")]

mod access;
mod chat;
mod completions;
mod devices;
mod embedded;
#[path = "../embedder/mod.rs"]
mod embedder;
mod embeddings;
mod endings;
mod families;
mod fields;
mod heads;
mod http;
mod http2;
mod keys;
mod load;
mod logs;
mod models;
mod program;
mod service;
mod status;
mod streams;
mod telemetry;
mod tls;
mod tools;
