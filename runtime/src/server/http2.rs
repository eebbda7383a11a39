//! HTTP/2: how it is told from HTTP/1.1, what a connection of it may take, and when it ends.
//!
//! Requests of one connection are streams that begin and end on their own. What bounds connections of HTTP/1.1 bounds
//! streams here: so many at once in all, and none may be begun and cancelled over and over. Hyper tells a handler that
//! its stream was reset by dropping it, which cancels its request and no other. It does not tell that a client leaves no
//! room for an answer: an answer that is not asked for any further for too long is given up here.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::rt::{Read, Write};
use hyper::server::conn::http2;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::framing::MOST_HEAD;
use super::listen::unless;
use super::options::ServerOptions;

/// What a client that speaks it begins with (RFC 9113, section 3.4). No request of HTTP/1.1 does.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams of a connection at once: more than clients have requests, few enough that one connection can't take all there
/// may be.
const MOST_STREAMS: u32 = 64;
/// Bytes of a body, and of all bodies of a connection, that may be on their way unread.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of an answer that wait to be sent.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that were reset before anybody has seen them; and those that failed by a fault of the client.
const MOST_UNSEEN_RESETS: usize = 20;
const MOST_FAULTS: usize = 64;
/// A connection on which so many more requests were cancelled than answered does nothing else (CVE-2023-44487).
const MOST_CANCELLED: usize = 100;

/// Reads the first bytes of a connection, as few as tell whether it speaks HTTP/2.
pub(super) async fn begins(stream: &TcpStream) -> std::io::Result<(bool, Vec<u8>)> {
    let (mut bytes, mut n) = ([0; PREFACE.len()], 0);
    while n < bytes.len() {
        stream.readable().await?;
        match stream.try_read(&mut bytes[n..]) {
            Ok(0) => break,
            Ok(new) => n += new,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        if !PREFACE.starts_with(&bytes[..n]) {
            break;
        }
    }
    Ok((bytes[..n] == PREFACE[..], bytes[..n].to_vec()))
}

/// Serves a connection until it ends, idles or is no use; `stop` ends it when its requests are done. Each request waits for
/// one of `places`.
pub(super) async fn serve<F>(
    io: impl Read + Write + Unpin + Send + 'static,
    options: &ServerOptions,
    places: Arc<Semaphore>,
    stop: impl Future,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let streams = Arc::new(Streams::default());
    let mine = Arc::clone(&streams);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (open, places, answer) = (Open::new(&mine), Arc::clone(&places), answer.clone());
        async move {
            // It is never closed.
            let place = places.acquire_owned().await.ok();
            let response = answer(request).await?;
            Ok::<_, Infallible>(response.map(|body| Held::new(body, open, place)))
        }
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(MOST_HEAD as u32)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MOST_UNSEEN_RESETS)
        .max_local_error_reset_streams(MOST_FAULTS)
        // A peer that is gone without a word is noticed though nothing is to be sent.
        .keep_alive_interval(options.write_timeout)
        .keep_alive_timeout(options.head_timeout);
    let mut connection = pin!(http.serve_connection(io, service));
    let most = options.head_timeout;
    let work = async {
        if unless(unless(stop, streams.idle(most)), connection.as_mut()).await.is_none() {
            connection.as_mut().graceful_shutdown();
            // A client that does not take note of that is not waited for.
            let last = async {
                tokio::time::sleep(most).await;
                streams.idle(most).await;
            };
            let _ = unless(last, connection.as_mut()).await;
        }
    };
    let over = async {
        unless(streams.excess.notified(), streams.give_up(options.write_timeout)).await;
    };
    // What goes wrong on a connection is its client's to see.
    let _ = unless(over, work).await;
}

/// Streams of a connection.
#[derive(Debug)]
struct Streams {
    tally: Mutex<Tally>,
    /// Told when too many were cancelled.
    excess: Notify,
    /// Answers that are on their way.
    answers: Mutex<Vec<Weak<Mutex<Answer>>>>,
}

#[derive(Debug)]
struct Tally {
    n_open: usize,
    n_answered: usize,
    n_cancelled: usize,
    /// When the number of open ones changed.
    since: Instant,
}

impl Default for Streams {
    fn default() -> Self {
        let tally = Tally { n_open: 0, n_answered: 0, n_cancelled: 0, since: Instant::now() };
        Self { tally: Mutex::new(tally), excess: Notify::new(), answers: Mutex::default() }
    }
}

impl Streams {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives answers up whose clients have left no room for them for so long. Never ends.
    async fn give_up(&self, most: Duration) {
        loop {
            tokio::time::sleep(most / 4).await;
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.retain(|answer| {
                let Some(answer) = answer.upgrade() else { return false };
                let given_up = lock(&answer).give_up(most);
                // It cancels its request, which may take a lock of its own.
                let is_kept = given_up.is_none();
                drop(given_up);
                is_kept
            });
        }
    }

    /// Ends when there was no stream for so long.
    async fn idle(&self, most: Duration) {
        loop {
            let left = {
                let tally = self.tally();
                if tally.n_open > 0 { most } else { most.saturating_sub(tally.since.elapsed()) }
            };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// A stream from its first byte until its answer is complete or nobody wants it any more.
struct Open {
    streams: Arc<Streams>,
    is_answered: bool,
}

impl Open {
    fn new(streams: &Arc<Streams>) -> Self {
        let mut tally = streams.tally();
        tally.n_open += 1;
        tally.since = Instant::now();
        Self { streams: Arc::clone(streams), is_answered: false }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut tally = self.streams.tally();
        tally.n_open -= 1;
        tally.since = Instant::now();
        let count = if self.is_answered { &mut tally.n_answered } else { &mut tally.n_cancelled };
        *count += 1;
        if tally.n_cancelled > tally.n_answered + MOST_CANCELLED {
            self.streams.excess.notify_one();
        }
    }
}

/// An answer and what its stream holds; nothing once it was given up.
struct Answer {
    all: Option<(Body, Open, Option<OwnedSemaphorePermit>)>,
    /// Since when a part of it was not asked for, though there may be one.
    waits: Option<Instant>,
}

impl Answer {
    fn give_up(&mut self, most: Duration) -> Option<(Body, Open, Option<OwnedSemaphorePermit>)> {
        self.all.take_if(|_| self.waits.is_some_and(|since| since.elapsed() > most))
    }
}

fn lock(answer: &Mutex<Answer>) -> MutexGuard<'_, Answer> {
    answer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of an answer.
struct Held(Arc<Mutex<Answer>>);

impl Held {
    fn new(body: Body, open: Open, place: Option<OwnedSemaphorePermit>) -> Self {
        let streams = Arc::clone(&open.streams);
        let answer = Arc::new(Mutex::new(Answer { all: Some((body, open, place)), waits: Some(Instant::now()) }));
        let mut answers = streams.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= 2 * MOST_STREAMS as usize {
            // Most are gone: no more streams are open at once.
            answers.retain(|answer| answer.strong_count() > 0);
        }
        answers.push(Arc::downgrade(&answer));
        drop(answers);
        Self(answer)
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut answer = lock(&self.0);
        let Answer { all, waits } = &mut *answer;
        let Some((body, open, _)) = all else {
            return Poll::Ready(Some(Err(axum::Error::new(std::io::Error::from(std::io::ErrorKind::TimedOut)))));
        };
        let polled = Pin::new(&mut *body).poll_frame(context);
        open.is_answered |= matches!(polled, Poll::Ready(None)) || body.is_end_stream();
        // The next part is asked for as soon as there is room for it.
        *waits = matches!(polled, Poll::Ready(Some(_))).then(Instant::now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).all.as_ref().is_some_and(|(body, ..)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0).all.as_ref().map_or_else(SizeHint::default, |(body, ..)| body.size_hint())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // One without a body is never polled.
        if let Some((body, open, _)) = &mut lock(&self.0).all {
            open.is_answered |= body.is_end_stream();
        }
    }
}
