//! How the server is: `/healthz`, `/readyz`, `/version` and `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use farpost_models::families::Pooling;
use farpost_models::gguf::File;
use serde_json::{Value as Json, json};

use super::app::App;
use super::catalogue::Standing;

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

/// The same for JSON that is text already.
pub(super) fn json_text(status: StatusCode, json: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// 200 if all models of the start have answered once, queues move, and requests are taken. `degraded` tells of devices that
/// failed, while others do their work.
async fn readyz(State(app): State<Arc<App>>) -> Response {
    let state = app.readiness();
    let status = if state == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let degraded: Vec<String> = app.catalogue.backends().iter().filter_map(Standing::trouble).collect();
    let mut body = json!({ "status": state });
    if !degraded.is_empty() {
        body["degraded"] = degraded.into();
    }
    let mut response = json_response(status, &body);
    if state == "draining" {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

async fn version(State(app): State<Arc<App>>) -> Response {
    let features: Vec<&str> =
        [("pocket", cfg!(feature = "pocket")), ("grammar", cfg!(feature = "grammar")), ("server", true)]
            .into_iter()
            .filter_map(|(name, is_in)| is_in.then_some(name))
            .collect();
    let models: Vec<Json> = app
        .catalogue
        .entries()
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

async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, EXPOSITION)], super::metrics::page(&app)).into_response()
}
