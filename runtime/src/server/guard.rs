//! At the door: request ids, Host and Origin, keys. Every request passes here first, and every response last.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::app::App;
use super::error::Problem;
use super::keys::{Key, Keys, Scope};
use super::wire;

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    /// Its key; `None` where no keys are asked for.
    key: Option<Key>,
    /// Place of its metrics.
    pub(super) place: usize,
}

impl Caller {
    /// What logs call it; empty for nobody in particular.
    pub(super) fn id(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.id)
    }

    pub(super) fn may_ask(&self, model: &str) -> bool {
        self.key.as_ref().is_none_or(|key| key.may_ask(model))
    }
}

/// What a handler knows of the request beside its body.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    pub(super) id: Arc<str>,
    pub(super) caller: Caller,
}

/// What went wrong, on its way from a handler to the log.
#[derive(Clone, Debug)]
pub(super) struct Blame(pub(super) Problem);

pub(super) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(request.headers()).unwrap_or_else(|| format!("req_{}", app.fresh_id()).into());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut caller_id = String::new();
    let mut response = match enter(&app, &request) {
        Ok(_) if method == Method::OPTIONS && origin.is_some() => preflight(),
        Ok(caller) => {
            caller.id().clone_into(&mut caller_id);
            request.extensions_mut().insert(Visit { id: Arc::clone(&id), caller });
            next.run(request).await
        }
        Err(problem) => wire::refuse(&path, &problem),
    };
    let headers = response.headers_mut();
    let mut set = |name: &'static str, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    set("x-request-id", &id);
    set("openai-processing-ms", &start.elapsed().as_millis().to_string());
    set("x-farpost-version", env!("CARGO_PKG_VERSION"));
    // Only origins that were let in get here with a response worth reading.
    if let Some(origin) = origin.filter(|_| response.status() != StatusCode::FORBIDDEN) {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
    let blame = response.extensions().get::<Blame>().map(|Blame(problem)| problem.clone());
    if let Some(problem) = &blame {
        app.metrics.count_refusal(problem.reason());
    }
    super::log::request(&app, &id, &method, &path, &caller_id, response.status(), start.elapsed(), blame.as_ref());
    response
}

/// Whoever asks, if it may.
fn enter(app: &App, request: &Request) -> Result<Caller, Problem> {
    let ends = request.extensions().get::<Ends>();
    check_host(app, request, ends)?;
    check_origin(app, request)?;
    let path = request.uri().path();
    let Some(keys) = &app.options.keys else { return Ok(Caller::default()) };
    let is_near = ends.is_some_and(|ends| ends.peer.ip().to_canonical().is_loopback());
    // Whether it lives is no secret. Preflights carry no keys.
    let is_free = matches!(path, "/healthz" | "/readyz") || (path == "/version" && is_near);
    if is_free || (request.method() == Method::OPTIONS && request.headers().contains_key(header::ORIGIN)) {
        return Ok(Caller::default());
    }
    let scope = if path == "/metrics" { Scope::Metrics } else { Scope::Infer };
    let (place, key) = identify(keys, request.headers())?;
    // Whoever may read metrics or run the server may see its version.
    if path != "/version" && !key.may(scope) {
        return Err(Problem::Scope(scope.name()));
    }
    Ok(Caller { key: Some(key.clone()), place: place + 1 })
}

fn identify<'k>(keys: &'k Keys, headers: &HeaderMap) -> Result<(usize, &'k Key), Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| {
        let (kind, key) = value.split_once(' ')?;
        kind.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let given = bearer.or_else(|| text("api-key")).ok_or(Problem::NoKey)?;
    keys.find(given).ok_or(Problem::WrongKey)
}

/// A page on the internet can name any address its own; it can not choose the Host header that comes of it.
fn check_host(app: &App, request: &Request, ends: Option<&Ends>) -> Result<(), Problem> {
    let header = request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or("?"));
    let host = header.or_else(|| request.uri().authority().map(axum::http::uri::Authority::as_str)).unwrap_or("");
    let name = host_name(host);
    let is_ours = match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) => {
            let local = ends.map(|ends| ends.local.ip().to_canonical());
            ip.to_canonical().is_loopback() || local == Some(ip.to_canonical())
        }
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    let is_named = app.options.hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
    if is_ours || is_named { Ok(()) } else { Err(Problem::Host(host.to_owned())) }
}

/// The host of `host[:port]`.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The last colon of an address in brackets may be its own.
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

/// The origin of a page must be this server, or be listed.
fn check_origin(app: &App, request: &Request) -> Result<(), Problem> {
    let Some(origin) = request.headers().get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("?");
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let is_same = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(host);
    let is_listed = app.options.origins.iter().any(|known| known == origin);
    if is_same || is_listed { Ok(()) } else { Err(Problem::Origin(origin.to_owned())) }
}

/// A browser asks whether it may ask.
fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, api-key, content-type, x-request-id"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers, Body::empty()).into_response()
}

/// The id a client gave, if it can be put into a log.
fn request_id(headers: &HeaderMap) -> Option<Arc<str>> {
    let given = headers.get("x-request-id")?.to_str().ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&given.len()).then_some(())?;
    given.bytes().all(is_plain).then(|| given.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_ports() {
        let names = ["localhost:80", "localhost", "127.0.0.1:8080", "[::1]:80", "[::1]", ""].map(host_name);
        assert_eq!(names, ["localhost", "localhost", "127.0.0.1", "[::1]", "[::1]", ""]);
    }

    #[test]
    fn ids_of_clients_are_kept_if_they_are_plain() {
        let id = |text: &'static str| {
            request_id(&HeaderMap::from_iter([("x-request-id".parse().unwrap(), HeaderValue::from_static(text))]))
        };
        assert_eq!(id("a-1_b.c").as_deref(), Some("a-1_b.c"));
        assert_eq!([id(""), id("a b"), id("a\tb")], [const { None }; 3]);
    }
}
