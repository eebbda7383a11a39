//! The server: models over HTTP, in protocols that clients know. See `docs/server.md`.
//!
//! A [`Server`] listens at once and answers 503 until its models are loaded. The async side and the engine meet at the
//! engine's streams only: what takes time on the way there, reading JSON and making tokens of text, runs on threads of
//! its own. Each protocol is one module in `wire`; what they share is here, in no protocol's words.

mod admin;
mod app;
mod catalogue;
mod config;
mod cors;
mod courteous;
mod endpoint;
mod error;
mod following;
mod framing;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guard;
mod health;
mod http2;
mod json;
mod keys;
mod listen;
mod live;
mod log;
mod metrics;
mod options;
mod otlp;
mod page;
mod patient;
mod quota;
mod rewound;
mod sse;
mod tls;
mod turn;
mod wire;

/// Does work on a thread for work that takes long; fails where the system starts no more threads.
fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<tokio::task::JoinHandle<T>> {
    // It panics if there is no thread at all for such work, and can't start one.
    let begun = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tokio::task::spawn_blocking(work)));
    begun.map_err(|_| std::io::Error::other("the system starts no more threads"))
}

pub use catalogue::Served;
pub use config::{Config, ModelConfig};
pub use endpoint::Endpoint;
pub use listen::{Handle, Server};
pub use log::log_time;
pub use options::{ServerError, ServerOptions};
pub use otlp::OtlpOptions;
pub use tls::TlsFiles;
