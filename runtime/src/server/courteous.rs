//! What hyper answers by itself, given the shape of other errors. A request whose head is malformed or too large never
//! comes to a handler: hyper writes a status without a body. All answers of this server have a request id, so an answer
//! without one is hyper's, and its bytes are replaced on their way out.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

/// Makes the whole answer for a status.
type Answer = dyn Fn(u16) -> Vec<u8> + Send;

pub(super) struct Courteous<T> {
    inner: T,
    answer: Box<Answer>,
    /// What is written in place of something else.
    own: Vec<u8>,
    n_written: usize,
}

impl<T: Write + Unpin> Courteous<T> {
    pub(super) fn new(inner: T, answer: impl Fn(u16) -> Vec<u8> + Send + 'static) -> Self {
        Self { inner, answer: Box::new(answer), own: Vec::new(), n_written: 0 }
    }

    /// Writes an answer of our own in place of `bytes`, if that is what they are.
    fn poll_own(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Option<io::Result<usize>>> {
        if self.own.is_empty() {
            let Some(status) = bare_status(bytes) else { return Poll::Ready(None) };
            (self.own, self.n_written) = ((self.answer)(status), 0);
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
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, to)
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
