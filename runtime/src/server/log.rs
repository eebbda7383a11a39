//! Log lines on standard error: one a request, never with its prompt, its answer or its key.

use std::io::Write;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::app::{App, unix_seconds};
use super::error::Problem;

/// Longest path that is written out.
const MOST_PATH: usize = 100;

/// A request was answered, or its answer begun.
pub(super) fn request(
    app: &App,
    id: &str,
    method: &Method,
    path: &str,
    key: &str,
    status: StatusCode,
    time: Duration,
    problem: Option<&Problem>,
) {
    let cause = match problem {
        Some(Problem::Internal(cause) | Problem::ModelFailed { cause, .. }) => Some(&**cause),
        _ => None,
    };
    if app.options.is_quiet && cause.is_none() {
        return;
    }
    let path: String = path.chars().take(MOST_PATH).collect();
    let (status, ms) = (status.as_u16(), time.as_millis() as u64);
    let reason = problem.map(Problem::reason);
    let line = match app.options.logs_json {
        true => json!({
            "time": unix_seconds(), "request": id, "method": method.as_str(), "path": path, "status": status,
            "ms": ms, "key": key, "reason": reason, "cause": cause,
        })
        .to_string(),
        false => {
            let part = |name: &str, text: &str| if text.is_empty() { String::new() } else { format!(" {name}={text}") };
            let key = part("key", key);
            let reason = part("reason", reason.unwrap_or_default());
            let cause = cause.map(|cause| format!(" cause={cause:?}")).unwrap_or_default();
            format!("{method} {path:?} {status} {ms} ms {id}{key}{reason}{cause}")
        }
    };
    write(&line);
}

/// A request that had been answered 200 failed after that.
pub(super) fn broken(app: &App, id: &str, problem: &Problem) {
    let cause = match problem {
        Problem::Internal(cause) => cause.to_string(),
        other => other.to_string(),
    };
    let reason = problem.reason();
    write(&match app.options.logs_json {
        true => json!({ "time": unix_seconds(), "request": id, "reason": reason, "cause": cause }).to_string(),
        false => format!("{id} broke off: reason={reason} cause={cause:?}"),
    });
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
        false => message.to_owned(),
    });
}

fn write(line: &str) {
    // Where standard error is closed, nobody reads logs.
    let _ = writeln!(std::io::stderr(), "{line}");
}
