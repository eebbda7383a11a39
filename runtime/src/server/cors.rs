//! What browsers let pages of listed origins send and read (CORS; the Fetch standard, section 3.2).

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::app::App;

/// What any page may send that may ask at all.
const PLAIN: &str = "authorization, api-key, content-type, x-request-id";
/// Header fields that a page may ask to send, and bytes of their names, at most.
const MOST_FIELDS: usize = 64;
const MOST_BYTES: usize = 2048;
/// What pages may read of an answer beside its body and what browsers show anyway.
const SHOWN: &str = "x-request-id, retry-after, openai-processing-ms, x-farpost-version, \
    x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
    x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// Whether whoever runs the server has listed an origin.
pub(super) fn is_listed(app: &App, origin: &str) -> bool {
    app.options.origins.iter().any(|known| known == origin)
}

/// A browser asks whether it may ask. Pages that are listed may send what they like to: no field changes what they may do
/// but those that hold keys.
pub(super) fn preflight(app: &App, headers: &HeaderMap) -> Response {
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let wanted = headers
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .filter(|_| origin.is_some_and(|origin| is_listed(app, origin)));
    let wanted = wanted.and_then(|wanted| names(wanted.to_str().ok()?));
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.as_deref().unwrap_or(PLAIN)),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
        (header::VARY, "access-control-request-headers"),
    ];
    (StatusCode::NO_CONTENT, headers, Body::empty()).into_response()
}

/// Lets a page read an answer.
pub(super) fn show(app: &App, origin: HeaderValue, headers: &mut HeaderMap) {
    if origin.to_str().is_ok_and(|origin| is_listed(app, origin)) {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(SHOWN));
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

/// Names of header fields with commas between, written anew; `None` where they are too many or one is no name.
fn names(list: &str) -> Option<String> {
    if list.len() > MOST_BYTES {
        return None;
    }
    let names: Result<Vec<HeaderName>, _> = list.split(',').map(|name| name.trim().parse()).collect();
    let names = names.ok().filter(|names| names.len() <= MOST_FIELDS)?;
    Some(names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_and_not_too_many() {
        assert_eq!(names("X-Stainless-OS,traceparent , a").as_deref(), Some("x-stainless-os, traceparent, a"));
        for wrong in ["", "a,,b", "a b", "a:b", "a,\u{e4}", &"x".repeat(3000), &["a"; 65].join(",")] {
            assert_eq!(names(wrong), None, "{wrong}");
        }
    }
}
