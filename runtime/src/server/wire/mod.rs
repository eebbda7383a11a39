//! Protocols: what they share, and one module each.

mod body;
mod openai;

#[cfg(feature = "fuzzing")]
pub(super) use openai::read_only;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::response::Response;

use super::app::App;
use super::error::Problem;

/// The routes of all protocols.
pub(super) fn routes() -> Router<Arc<App>> {
    openai::routes()
}

/// What a client is told of a problem before a path is known.
pub(super) fn error(problem: &Problem) -> String {
    openai::error(problem).to_string()
}

/// What OpenTelemetry calls what is asked for at a path.
pub(super) fn operation(path: &str) -> &'static str {
    match path {
        _ if path.ends_with("/chat/completions") => "chat",
        _ if path.ends_with("/embeddings") => "embeddings",
        _ => "text_completion",
    }
}

/// Routes with what is said where there is none.
pub(super) fn or_refuse(routes: Router<Arc<App>>) -> Router<Arc<App>> {
    routes
        .fallback(|uri: Uri| async move { refuse(uri.path(), &Problem::NoRoute(uri.path().to_owned())) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            refuse(uri.path(), &Problem::Method(method.to_string()))
        })
}

/// A refusal in the words of the protocol that `path` belongs to.
pub(super) fn refuse(_path: &str, problem: &Problem) -> Response {
    // There is one protocol, and who asks for anything else understands its errors as well as others.
    openai::refuse(problem)
}
