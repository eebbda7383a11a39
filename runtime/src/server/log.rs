//! Log lines on standard error: one a request, when its answer has ended, never with its prompt, its answer or its key.

use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Method, StatusCode};
use farpost_models::template::CivilTime;
use hyper::body::{Frame, SizeHint};
use serde_json::json;

use super::app::{App, unix_seconds};
use super::error::Problem;
use super::guard::About;

/// Longest path that is written out.
const MOST_PATH: usize = 100;
/// What logs call the end of a request whose client went away. No client ever sees it.
const GONE: u16 = 499;

/// Now in UTC as log lines begin with it, with milliseconds (RFC 3339).
pub fn log_time() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = CivilTime::from_unix(i64::try_from(since.as_secs()).unwrap_or(0));
    format!("{}.{:03}Z", time.format("%Y-%m-%dT%H:%M:%S"), since.subsec_millis())
}

/// A request from its head to the end of its answer. Dropped, it writes its line: so each has one, whoever ends it.
pub(super) struct Record {
    app: Arc<App>,
    id: Arc<str>,
    method: Method,
    path: String,
    start: Instant,
    about: Arc<About>,
    /// Who asks, once that is known.
    pub(super) key: String,
    /// As it was answered; `None` before the head of the answer is there.
    pub(super) status: Option<StatusCode>,
    /// Why it was refused.
    pub(super) problem: Option<Problem>,
    /// Nothing of the answer is left to be sent.
    is_whole: bool,
}

impl Record {
    pub(super) fn new(app: &Arc<App>, id: &Arc<str>, method: &Method, path: &str, about: &Arc<About>) -> Self {
        Self {
            app: Arc::clone(app),
            id: Arc::clone(id),
            method: method.clone(),
            path: path.chars().take(MOST_PATH).collect(),
            start: Instant::now(),
            about: Arc::clone(about),
            key: String::new(),
            status: None,
            problem: None,
            is_whole: false,
        }
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// The status, and how far a request was whose client went away.
    fn end(&self) -> (u16, Option<&'static str>) {
        match self.status {
            Some(status) if self.is_whole => (status.as_u16(), None),
            // A handler that panics takes its connection with it.
            None if std::thread::panicking() => (500, None),
            _ => (GONE, self.about.phase()),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let problem = self.problem.as_ref().or(self.about.broken());
        let cause = match problem {
            Some(Problem::Internal(cause) | Problem::ModelFailed { cause, .. }) => Some(&**cause),
            _ => None,
        };
        if self.app.options.is_quiet && cause.is_none() {
            return;
        }
        let (status, phase) = self.end();
        let (Self { id, method, path, key, .. }, ms) = (&*self, self.start.elapsed().as_millis() as u64);
        let reason = problem.map(Problem::reason);
        write(&match self.app.options.logs_json {
            true => json!({
                "time": unix_seconds(), "request": **id, "method": method.as_str(), "path": path, "status": status,
                "ms": ms, "key": key, "phase": phase, "reason": reason, "cause": cause,
            })
            .to_string(),
            false => {
                let part = |name: &str, text: &str| match text {
                    "" => String::new(),
                    text => format!(" {name}={text}"),
                };
                let more = [("key", &**key), ("phase", phase.unwrap_or("")), ("reason", reason.unwrap_or(""))];
                let more: String = more.into_iter().map(|(name, text)| part(name, text)).collect();
                let cause = cause.map(|cause| format!(" cause={cause:?}")).unwrap_or_default();
                format!("{} {method} {path:?} {status} {ms} ms {id}{more}{cause}", log_time())
            }
        });
    }
}

/// The body of an answer with the record of its request, which ends with it.
pub(super) struct Recorded {
    body: Body,
    record: Record,
}

impl Recorded {
    pub(super) fn new(body: Body, record: Record) -> Self {
        Self { body, record }
    }
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.record.is_whole |= matches!(polled, Poll::Ready(None)) || self.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // One without a body is never polled, nor is one whose head was all that was asked for.
        self.record.is_whole |= self.body.is_end_stream() || self.record.method == Method::HEAD;
    }
}

/// Something happened to the server that its operator should know.
pub(super) fn note(app: &App, message: &str) {
    if !app.options.is_quiet {
        warn(app, message);
    }
}

/// Something is wrong with the server, though it goes on.
pub(super) fn warn(app: &App, message: &str) {
    write(&match app.options.logs_json {
        true => json!({ "time": unix_seconds(), "message": message }).to_string(),
        false => format!("{} {message}", log_time()),
    });
}

fn write(line: &str) {
    // Where standard error is closed, nobody reads logs.
    let _ = writeln!(std::io::stderr(), "{line}");
}
