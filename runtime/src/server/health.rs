//! How the server is: `/healthz`, `/readyz`, `/version` and `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use farpost_models::families::Pooling;
use farpost_models::gguf::File;
use serde_json::{Value as Json, json};

use super::app::App;
use super::catalogue::{Entry, Standing};
use super::guard::Visit;

/// Text as Prometheus reads it.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/healthz", get(|| async { json_response(StatusCode::OK, &json!({ "status": "ok" })) }))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
}

/// JSON with a status.
pub(super) fn json_response(status: StatusCode, json: &Json) -> Response {
    json_text(status, json.to_string())
}

/// The same for JSON that is written already.
pub(super) fn json_text(status: StatusCode, json: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], json.into()).into_response()
}

/// 200 if all models of the start have answered once, queues move, and requests are taken. `degraded` tells of devices that
/// failed, while others do their work. If it is not ready, what is wrong is told of each part.
async fn readyz(State(app): State<Arc<App>>, Extension(visit): Extension<Visit>) -> Response {
    let state = app.readiness();
    let status = if state == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let backends = app.catalogue.backends();
    let degraded: Vec<String> = backends.iter().filter_map(Standing::trouble).collect();
    let mut body = json!({ "status": state });
    if !degraded.is_empty() {
        body["degraded"] = degraded.into();
    }
    if state != "ready" {
        let reason = match state {
            "draining" => "it is shutting down",
            "loading" => "models of the start are not loaded yet",
            _ => "there is work and no step",
        };
        body["server"] = json!({ "state": state, "reason": reason });
        body["models"] = app.catalogue.entries().map(|entry| model(&app, &visit, entry)).collect();
        body["backends"] = backends.iter().map(Standing::json).collect();
    }
    let mut response = json_response(status, &body);
    let retry_after = match state {
        "draining" => Some(1),
        "loading" => Some(app.catalogue.loading().as_secs_f64().ceil() as u64),
        _ => None,
    };
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// How a model is. Its name is told to who may know it, and why it can't be loaded to who runs the server.
fn model(app: &App, visit: &Visit, entry: &Entry) -> Json {
    let is_known = visit.caller.may_know(&entry.served.name);
    let (mut state, mut reason) = entry.standing(is_known && visit.caller.is_operator());
    if entry.hosted().is_some_and(|hosted| hosted.is_stalled(app.options.stall_timeout)) {
        (state, reason) = ("stalled", Some("there is work and no step".to_owned()));
    }
    let mut json = json!({ "state": state, "reason": reason });
    if is_known {
        json["name"] = entry.served.name.as_str().into();
    }
    json
}

async fn version(State(app): State<Arc<App>>, Extension(visit): Extension<Visit>) -> Response {
    let features: Vec<&str> =
        [("pocket", cfg!(feature = "pocket")), ("grammar", cfg!(feature = "grammar")), ("server", true)]
            .into_iter()
            .filter_map(|(name, is_in)| is_in.then_some(name))
            .collect();
    let models: Vec<Json> = app
        .catalogue
        .entries()
        .filter(|entry| visit.caller.may_know(&entry.served.name))
        .map(|entry| {
            let Some(hosted) = entry.hosted() else {
                return json!({ "name": entry.served.name, "state": entry.state_name() });
            };
            json!({
                "name": hosted.name,
                "state": "loaded",
                "architecture": hosted.engine.model().config().architecture,
                "pooling": hosted.engine.model().pooling().map(Pooling::name),
                "size_bytes": hosted.engine.model().file().size_bytes(),
                "quantization": quantization(hosted.engine.model().file()),
                "fingerprint": hosted.fingerprint(),
                "sha256": hosted.hash.get().map(ToString::to_string),
                "context_tokens": hosted.engine.context(),
                "loaded": hosted.created,
            })
        })
        .collect();
    let version = json!({
        "program": "farpost",
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("FARPOST_COMMIT"),
        "built": env!("FARPOST_BUILT").parse::<u64>().ok(),
        "features": features,
        "backends": app.catalogue.backends().iter().map(Standing::json).collect::<Vec<_>>(),
        "models": models,
    });
    json_response(StatusCode::OK, &version)
}

/// The type in which most bytes of the weights are stored.
fn quantization(file: &File) -> Option<String> {
    let mut bytes = BTreeMap::<String, u64>::new();
    for tensor in file.tensors() {
        *bytes.entry(tensor.dtype().name().to_owned()).or_default() += tensor.weight().bytes().len() as u64;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(name, _)| name)
}

async fn metrics(State(app): State<Arc<App>>, Extension(visit): Extension<Visit>) -> Response {
    ([(header::CONTENT_TYPE, EXPOSITION)], super::metrics::page(&app, &visit.caller)).into_response()
}
