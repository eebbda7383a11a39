//! What hyper would do to clients by itself, done with a word. A request whose head is malformed or too large never comes
//! to a handler: hyper writes a status without a body. All answers of this server have a request id, so an answer without
//! one is hyper's, and its bytes are replaced on their way out. Heads that hyper would take and should not
//! ([`Framing`]), and those that do not come in time, are replaced on their way in by one that it refuses.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep};

use super::framing::{Framing, Refused};

/// No request.
const MALFORMED: &[u8] = b"\0\r\n\r\n";

/// Makes the whole answer for a status.
type Answer = dyn Fn(u16) -> Vec<u8> + Send;

pub(super) struct Courteous<T> {
    inner: T,
    answer: Box<Answer>,
    framing: Framing,
    /// What hyper may read, and how much of it has been.
    passed: Vec<u8>,
    n_read: usize,
    /// Within this time a head must be there, from its first byte or from the beginning of the connection.
    head_timeout: Duration,
    head_limit: Pin<Box<Sleep>>,
    is_limited: bool,
    /// Why a head was refused that hyper would have taken.
    refused: Option<u16>,
    is_over: bool,
    /// What is written in place of something else.
    own: Vec<u8>,
    n_written: usize,
}

impl<T> Courteous<T> {
    pub(super) fn new(inner: T, head_timeout: Duration, answer: impl Fn(u16) -> Vec<u8> + Send + 'static) -> Self {
        Self {
            inner,
            answer: Box::new(answer),
            framing: Framing::new(),
            passed: Vec::new(),
            n_read: 0,
            head_timeout,
            head_limit: Box::pin(tokio::time::sleep(head_timeout)),
            is_limited: true,
            refused: None,
            is_over: false,
            own: Vec::new(),
            n_written: 0,
        }
    }

    /// Has hyper end the connection with this status.
    fn refuse(&mut self, status: u16) {
        self.refused = Some(status);
        self.is_over = true;
        self.passed.extend_from_slice(MALFORMED);
    }
}

impl<T: Read + Unpin> Courteous<T> {
    /// Reads what comes next, until there is something to pass on or there is nothing more.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.n_read == self.passed.len() && !self.is_over {
            self.passed.clear();
            self.n_read = 0;
            let mut room = [MaybeUninit::uninit(); 8 << 10];
            let mut buffer = ReadBuf::uninit(&mut room);
            match Pin::new(&mut self.inner).poll_read(context, buffer.unfilled()) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    self.is_over = true;
                    // Hyper knows what to make of half a head.
                    self.passed = self.framing.take_held();
                }
                Poll::Ready(Ok(())) => {
                    if let Err(Refused(status)) = self.framing.push(buffer.filled(), &mut self.passed) {
                        self.refuse(status);
                    } else if !self.framing.is_in_head() {
                        self.is_limited = false;
                    } else if !self.is_limited || !self.passed.is_empty() {
                        self.is_limited = true;
                        self.head_limit.as_mut().reset(Instant::now() + self.head_timeout);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if self.is_limited && self.head_limit.as_mut().poll(context).is_ready() => {
                    // Whoever has said nothing is told nothing.
                    if self.framing.is_in_head() { self.refuse(408) } else { self.is_over = true }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Courteous<T> {
    /// Writes an answer of our own in place of `bytes`, if that is what they are.
    fn poll_own(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Option<io::Result<usize>>> {
        if self.own.is_empty() {
            let Some(status) = bare_status(bytes) else { return Poll::Ready(None) };
            (self.own, self.n_written) = ((self.answer)(self.refused.unwrap_or(status)), 0);
        }
        while let Some(rest) = self.own.get(self.n_written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.inner).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(n)) => self.n_written += n,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.own.clear();
        Poll::Ready(Some(Ok(bytes.len())))
    }
}

/// The status of an answer that hyper made: an error without a body and a request id.
fn bare_status(bytes: &[u8]) -> Option<u16> {
    let head = bytes.strip_prefix(b"HTTP/1.1 4")?;
    let text = std::str::from_utf8(head.strip_suffix(b"\r\n\r\n")?).ok()?;
    let status = text.get(..2).and_then(|digits| digits.parse::<u16>().ok())?;
    let has = |name: &str| text.lines().any(|line| line.to_ascii_lowercase().starts_with(name));
    (has("content-length: 0") && !has("x-request-id:")).then_some(400 + status)
}

impl<T: Read + Unpin> Read for Courteous<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut to: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.poll_more(context);
        if let Poll::Ready(Ok(())) = read {
            let left = &self.passed[self.n_read..];
            let n = left.len().min(to.remaining());
            to.put_slice(&left[..n]);
            self.n_read += n;
        }
        read
    }
}
impl<T: Write + Unpin> Write for Courteous<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.poll_own(context, bytes) {
            Poll::Ready(None) => Pin::new(&mut self.inner).poll_write(context, bytes),
            Poll::Ready(Some(written)) => Poll::Ready(written),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bytes.iter().find(|bytes| !bytes.is_empty()).map_or(&[][..], |bytes| bytes);
        match self.poll_own(context, first) {
            Poll::Ready(None) => Pin::new(&mut self.inner).poll_write_vectored(context, bytes),
            Poll::Ready(Some(written)) => Poll::Ready(written),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_answers_are_replaced() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(bare_status(bare.as_bytes()), Some(431));
        let ours = bare.replace("connection", "x-request-id: a\r\nconnection");
        let full = bare.replace("content-length: 0", "content-length: 2") + "{}";
        for other in
            [&*ours, &full, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 4", "", "data: HTTP/1.1 400"]
        {
            assert_eq!(bare_status(other.as_bytes()), None, "{other}");
        }
    }
}
