//! The server: models over HTTP, in protocols that clients know. See `docs/server.md`.
//!
//! A [`Server`] listens at once and answers 503 until its model is loaded. The async side and the engine meet at the
//! engine's streams only: what takes time on the way there, reading JSON and making tokens of text, runs on threads of
//! its own. Each protocol is one module in `wire`; what they share is here, in no protocol's words.

mod app;
mod error;
mod following;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guard;
mod health;
mod json;
mod keys;
mod listen;
mod log;
mod metrics;
mod options;
mod patient;
mod sse;
mod turn;
mod wire;

pub use app::Served;
pub use keys::{Keys, KeysError, Scope};
pub use listen::{Server, Stopper};
pub use options::{ServerError, ServerOptions};
