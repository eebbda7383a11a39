//! The body of a request: JSON, within its limits of size and time.

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header;

use crate::server::app::App;
use crate::server::error::{Invalid, Problem};

/// Reads the whole body of `request`.
pub(super) async fn read(app: &App, request: Request) -> Result<Bytes, Problem> {
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).map_or("", |kind| kind.to_str().unwrap_or("?"));
    let media = kind.split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("application/json") {
        return Err(Problem::MediaType(kind.to_owned()));
    }
    if let Some(encoding) = parts.headers.get(header::CONTENT_ENCODING) {
        return Err(Problem::Encoding(encoding.to_str().unwrap_or("?").to_owned()));
    }
    let most_bytes = app.options.max_body_bytes;
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > most_bytes) {
        return Err(Problem::TooLarge { most_bytes });
    }
    let read = axum::body::to_bytes(body, most_bytes);
    match tokio::time::timeout(app.options.body_timeout, read).await {
        Err(_) => Err(Problem::BodyTimeout),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(match is_limit(&error) {
            true => Problem::TooLarge { most_bytes },
            false => Invalid::body("the body ended early or is malformed".to_owned()).into(),
        }),
    }
}

/// Whether a body was longer than allowed, rather than broken.
fn is_limit(error: &axum::Error) -> bool {
    let first: &(dyn std::error::Error + 'static) = error;
    let mut chain = std::iter::successors(Some(first), |error| error.source());
    chain.any(|error| error.to_string() == "length limit exceeded")
}
