//! The protocol of OpenAI's clients: chat completions, completions, embeddings, models. `docs/server.md` lists what is supported.

mod answer;
mod chat;
mod completions;
mod conversation;
mod embeddings;
mod hints;
mod messages;
mod narrate;
mod params;
mod sampling;
mod tokens;
mod tools;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value as Json, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::body;
use crate::server::app::App;
use crate::server::catalogue::{Entry, Hosted};
use crate::server::error::{Invalid, Problem};
use crate::server::following::Following;
use crate::server::guard::{Blame, Visit};
use crate::server::health::{json_response, json_text};
use crate::server::json::Fields;
use crate::server::sse;
use answer::Style;
use params::Asked;

type Shared = State<Arc<App>>;
type Visitor = Extension<Visit>;

pub(super) fn routes() -> Router<Arc<App>> {
    let text = |style: &'static Style| {
        post(move |app: Shared, visit: Visitor, request: Request| answer(app, visit, request, style))
    };
    let tokens =
        |told: Told| post(move |app: Shared, visit: Visitor, request: Request| tell(app, visit, request, told));
    Router::new()
        .route("/v1/chat/completions", text(&chat::STYLE))
        .route("/v1/completions", text(&completions::STYLE))
        .route("/v1/embeddings", post(embed))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/tokenize", tokens(tokens::tokenize))
        .route("/detokenize", tokens(tokens::detokenize))
}

/// A refusal in the shape of this protocol.
pub(super) fn refuse(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(status, &error(problem));
    if let Some(seconds) = problem.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response.extensions_mut().insert(Blame(problem.clone()));
    response
}

/// What a client is told of a problem.
pub(super) fn error(problem: &Problem) -> Json {
    let kind = match problem.status() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        409 => "conflict",
        429 => "rate_limit_error",
        500 => "internal_error",
        503 => "overloaded",
        504 => "deadline_exceeded",
        507 => "insufficient_memory",
        _ => "invalid_request_error",
    };
    json!({
        "error": {
            "message": problem.to_string(),
            "type": kind,
            "param": problem.param(),
            "code": problem.code(),
        }
    })
}

async fn models(State(app): Shared, Extension(visit): Visitor) -> Response {
    let entries = app.catalogue.entries().filter(|entry| visit.caller.may_ask(&entry.served.name));
    let data: Vec<Json> = entries.map(|entry| describe(&app, entry)).collect();
    json_response(StatusCode::OK, &json!({ "object": "list", "data": data }))
}

/// The name of a model in a path, unless it is no text.
type Name = Result<Path<String>, PathRejection>;

async fn model(State(app): Shared, Extension(visit): Visitor, name: Name) -> Response {
    let Ok(Path(name)) = name else { return refuse(&Problem::NoModel(String::new())) };
    match app.entry(&name, &visit) {
        Ok(entry) => json_response(StatusCode::OK, &describe(&app, entry)),
        Err(problem) => refuse(&problem),
    }
}

/// A model, whether or not it is loaded now.
fn describe(app: &App, entry: &Entry) -> Json {
    let created = entry.hosted().map_or(app.started_at, |hosted| hosted.created);
    json!({ "id": entry.served.name, "object": "model", "created": created, "owned_by": "farpost" })
}

/// What was asked for, once the engine has taken it.
struct Taken {
    following: Following,
    hosted: Arc<Hosted>,
    asked: Asked,
}

/// One request for text, as a whole or as events.
async fn answer(State(app): Shared, Extension(visit): Visitor, request: Request, style: &'static Style) -> Response {
    let body = match body::read(&app, request).await {
        Ok(body) => body,
        Err(problem) => return refuse(&problem),
    };
    // Reading JSON, rendering a template and making tokens of text.
    let readers = Arc::clone(&app.readers);
    let taken = aside(readers, move |turn| take(&app, &visit, &body, style, turn)).await;
    let told = match taken {
        Ok(Taken { following, hosted, asked }) if asked.is_stream => {
            let chunks = narrate::Chunks::new(style, &hosted, asked, following.n_choices());
            return sse::response(following, chunks);
        }
        Ok(Taken { following, hosted, asked }) => answer::whole(following, style, &hosted, &asked).await,
        Err(problem) => Err(problem),
    };
    match told {
        Ok(json) => json_response(StatusCode::OK, &json),
        Err(problem) => refuse(&problem),
    }
}

/// One request for embeddings.
async fn embed(State(app): Shared, Extension(visit): Visitor, request: Request) -> Response {
    let taken = match body::read(&app, request).await {
        Ok(body) => aside(Arc::clone(&app.readers), move |turn| embeddings::take(&app, &visit, &body, turn)).await,
        Err(problem) => Err(problem),
    };
    let told = match taken {
        Ok(taken) => embeddings::whole(taken).await,
        Err(problem) => Err(problem),
    };
    match told {
        Ok(body) => json_text(StatusCode::OK, body),
        Err(problem) => refuse(&problem),
    }
}

/// The model that a request names. Where it must be loaded first, the turn is over: others need not wait for that.
fn named(app: &App, visit: &Visit, fields: &mut Fields, turn: &mut Turn) -> Result<Arc<Hosted>, Problem> {
    let name = fields.string("model")?;
    let name = name.ok_or_else(|| Invalid::of("model", "is missing, expected the name of a model".to_owned()))?;
    if app.entry(&name, visit)?.hosted().is_none() {
        *turn = None;
    }
    app.model(&name, visit, fields.is_true("stream"))
}

/// What a request that needs no engine is told.
type Told = fn(Fields, &Hosted) -> Result<String, Problem>;

/// One request that needs no engine.
async fn tell(State(app): Shared, Extension(visit): Visitor, request: Request, answer: Told) -> Response {
    let told = match body::read(&app, request).await {
        Ok(body) => {
            let readers = Arc::clone(&app.readers);
            let work = move |turn: &mut Turn| {
                let mut fields = Fields::new(crate::server::json::object(&body)?);
                let hosted = named(&app, &visit, &mut fields, turn)?;
                answer(fields, &hosted)
            };
            aside(readers, work).await
        }
        Err(problem) => Err(problem),
    };
    match told {
        Ok(json) => json_text(StatusCode::OK, json),
        Err(problem) => refuse(&problem),
    }
}

/// The right to read a request now; who has it goes on until it is dropped.
type Turn = Option<OwnedSemaphorePermit>;

/// Does what can take long on a thread of its own: a connection must not wait for another's. No more do so at once than
/// there are cores: more threads would bring nothing but their memory.
async fn aside<T: Send + 'static>(
    readers: Arc<Semaphore>,
    work: impl FnOnce(&mut Turn) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    // It is never closed.
    let mut turn = readers.acquire_owned().await.ok();
    let done = crate::server::aside(move || work(&mut turn))
        .map_err(|error| Problem::Internal(error.to_string().into()))?
        .await;
    done.unwrap_or_else(|panic| Err(Problem::Internal(format!("a panic: {panic}").into())))
}

/// Reads a request and hands it to the engine. All that can be wrong with it shows here.
fn take(app: &Arc<App>, visit: &Visit, body: &Bytes, style: &Style, turn: &mut Turn) -> Result<Taken, Problem> {
    let mut fields = Fields::new(crate::server::json::object(body)?);
    let hosted = named(app, visit, &mut fields, turn)?;
    if hosted.engine.model().pooling().is_some() {
        let message = format!("{:?} makes embeddings and writes no text", hosted.name);
        return Err(Invalid { code: Some("unsupported_model"), ..Invalid::of("model", message) }.into());
    }
    let (asked, prompts) = read(fields, &hosted, style)?;
    asked.check_lengths(&prompts, &hosted, style)?;
    let following = Following::submit(app, visit, &hosted, asked.request(visit), prompts, 0);
    let following = following.map_err(|problem| asked.blame(problem))?;
    Ok(Taken { following, hosted, asked })
}

/// What a request asks for, and its prompts.
fn read(mut fields: Fields, hosted: &Hosted, style: &Style) -> Result<(Asked, Vec<Vec<u32>>), Problem> {
    let mut asked = Asked::read(&mut fields, hosted)?;
    asked.options.sampling.logprobs = (style.logprobs)(&mut fields)?;
    let prompts = (style.prompts)(&mut fields, hosted, &mut asked)?;
    fields.finish()?;
    Ok((asked, prompts))
}

/// Reads a body as a route does, and asks nothing.
#[cfg(feature = "fuzzing")]
pub(in crate::server) fn read_only(
    route: crate::server::fuzzing::Route,
    body: &[u8],
    hosted: &Hosted,
) -> Result<(), Problem> {
    use crate::server::fuzzing::Route;
    let mut fields = Fields::new(crate::server::json::object(body)?);
    fields.string("model")?;
    match route {
        Route::Chat => read(fields, hosted, &chat::STYLE).map(drop),
        Route::Completions => read(fields, hosted, &completions::STYLE).map(drop),
        Route::Embeddings => embeddings::read(fields, hosted).map(drop),
        Route::Tokenize => tokens::tokenize(fields, hosted).map(drop),
        Route::Detokenize => tokens::detokenize(fields, hosted).map(drop),
    }
}
