//! Server-sent events: a request's answer as a body that is read as it is written.
//!
//! Nothing runs on its own: the connection asks for more when the client has taken what there was, and when the client
//! goes away the body is dropped, which cancels the request.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderValue;
use axum::http::header;
use axum::response::Response;
use hyper::body::Frame;
use tokio::time::{Instant, Sleep};

use super::following::{Following, Said, Usage};

/// How a protocol tells an answer as events.
pub(super) trait Narrator: Send + Unpin + 'static {
    /// Adds the events for what was said. Tells the choice of which no more is wanted, if there is one now.
    fn tell(&mut self, said: Said, out: &mut String) -> Option<usize>;

    /// Adds the events at the end of an answer that did not break.
    fn end(&mut self, usage: Usage, out: &mut String);
}

/// One event.
pub(super) fn data(out: &mut String, data: &str) {
    out.push_str("data: ");
    out.push_str(data);
    out.push_str("\n\n");
}

/// The answer as events.
pub(super) fn response(following: Following, narrator: impl Narrator) -> Response {
    let interval = following.context().0.options.ping_interval;
    let ping = Box::pin(tokio::time::sleep(interval));
    let body = Events { following, narrator, interval, ping, state: State::Open };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Broken,
    Closed,
}

struct Events<N> {
    following: Following,
    narrator: N,
    interval: Duration,
    ping: Pin<Box<Sleep>>,
    state: State,
}

impl<N: Narrator> Events<N> {
    /// Everything there is to tell by now; empty if there is nothing yet.
    fn gather(&mut self, context: &mut Context<'_>) -> String {
        let mut out = String::new();
        while self.state == State::Open {
            match self.following.poll_next(context) {
                Poll::Ready(Some(said)) => {
                    if let Said::Broken(problem) = &said {
                        let (app, visit) = self.following.context();
                        visit.about.set_broken(problem);
                        let key = visit.caller.metrics_id();
                        app.metrics.count_refusal(problem.reason(), visit.about.name(), key);
                        self.state = State::Broken;
                    }
                    if let Some(choice) = self.narrator.tell(said, &mut out) {
                        self.following.enough(choice);
                    }
                }
                Poll::Ready(None) => {
                    self.narrator.end(self.following.usage(), &mut out);
                    self.state = State::Closed;
                }
                Poll::Pending => break,
            }
        }
        out
    }
}

impl<N: Narrator> HttpBody for Events<N> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let events = &mut *self;
        let is_open = events.state == State::Open;
        let mut out = events.gather(context);
        if out.is_empty() && events.state == State::Open {
            // Whoever waits for a token, and all proxies in between, see that the connection lives.
            if events.ping.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            out.push_str(": ping\n\n");
        }
        if out.is_empty() || !is_open {
            return Poll::Ready(None);
        }
        let next = Instant::now() + events.interval;
        events.ping.as_mut().reset(next);
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.state != State::Open
    }
}
