//! Routes to run the server by: which models are loaded, and loading and unloading them. They need the scope `admin`;
//! where no keys are asked for, they are for this machine only.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value as Json, json};

use super::app::App;
use super::catalogue::Entry;
use super::error::Problem;
use super::guard::Visit;
use super::health::json_response;
use super::{log, wire};

/// What all paths here begin with.
pub(super) const PREFIX: &str = "/admin/";

type Shared = State<Arc<App>>;
type Visitor = Extension<Visit>;
type Name = Result<Path<String>, PathRejection>;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/admin/models", get(list))
        .route("/admin/models/{name}/load", post(load))
        .route("/admin/models/{name}/unload", post(unload))
}

async fn list(State(app): Shared, Extension(visit): Visitor) -> Response {
    let entries = app.catalogue.entries().filter(|entry| visit.caller.may_ask(&entry.served.name));
    let models: Vec<Json> = entries.map(|entry| describe(&app, entry)).collect();
    json_response(StatusCode::OK, &json!({ "models": models }))
}

/// A model and where it is.
pub(super) fn describe(app: &App, entry: &Entry) -> Json {
    let name = &entry.served.name;
    let loaded = app.catalogue.models.loaded().into_iter().find(|loaded| loaded.name == *name);
    let state = match entry.state_name() {
        // It is making room for another one.
        "loaded" if loaded.is_none() => "away",
        state => state,
    };
    json!({
        "name": name,
        "state": state,
        "on_demand": entry.served.is_on_demand,
        "pinned": entry.served.is_pinned,
        "memory_bytes": loaded.as_ref().map(|loaded| {
            let memory = loaded.memory;
            json!({
                "weights_mapped": memory.weights_mapped,
                "weights_packed_mapped": memory.weights_packed,
                "weights_copied": memory.weights_copied,
                "kv": memory.kv,
                "scratch": memory.scratch,
                "requests": loaded.holdings.requests,
            })
        }),
        "unused_seconds": loaded.map(|loaded| loaded.unused.as_secs()),
    })
}

/// Loads a model and answers when it is there, or is not after a while.
async fn load(State(app): Shared, visit: Visitor, name: Name) -> Response {
    let work = |app: &App, entry: &Arc<Entry>| app.catalogue.ask(entry, app.options.load_wait).map(|_| ());
    change(app, visit, name, work).await
}

/// Unloads a model when what it does is done, or after the time that a server drains for.
async fn unload(State(app): Shared, visit: Visitor, name: Name) -> Response {
    let work = |app: &App, entry: &Arc<Entry>| {
        if app.catalogue.unload(entry, app.options.drain_timeout) {
            log::note(app, &format!("model {:?} was unloaded: that was asked for", entry.served.name));
        }
        Ok(())
    };
    change(app, visit, name, work).await
}

async fn change(
    app: Arc<App>,
    Extension(visit): Visitor,
    name: Name,
    work: fn(&App, &Arc<Entry>) -> Result<(), Problem>,
) -> Response {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let entry = match app.entry(&name, &visit) {
        Ok(entry) => Arc::clone(entry),
        Err(problem) => return wire::refuse(PREFIX, &problem),
    };
    let done = tokio::task::spawn_blocking(move || work(&app, &entry).map(|()| describe(&app, &entry)));
    match done.await {
        Ok(Ok(json)) => json_response(StatusCode::OK, &json),
        // Whoever runs the server is told.
        Ok(Err(Problem::ModelFailed { cause, .. })) => {
            wire::refuse(PREFIX, &Problem::ModelFailed { cause, is_told: true })
        }
        Ok(Err(problem)) => wire::refuse(PREFIX, &problem),
        Err(panic) => wire::refuse(PREFIX, &Problem::Internal(panic.to_string().into())),
    }
}
