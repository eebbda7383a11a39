//! Where requests begin and end on a connection, seen before hyper sees them. A head is passed on when it is complete and
//! says in one way only how long its body is; hyper takes a length beside chunks away without a word, and two that read
//! one request in different ways are how requests are smuggled. A body is passed on as it comes.
//!
//! Framing: RFC 9112, sections 2.1, 6 and 7.1.

/// Bytes of a request's head, at most.
pub(super) const MOST_HEAD: usize = 16 << 10;
/// What connections in HTTP/2 begin with.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n";

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Head,
    /// So many bytes more of a body.
    Body(u64),
    /// The line with the size of a chunk: its value so far, and whether its digits are over.
    Size(u64, bool),
    /// So many bytes more of a chunk, with its line break.
    Chunk(u64),
    /// What follows the last chunk: whether the line has something in it.
    Trailer(bool),
    /// Nothing that is looked at.
    Rest,
}

/// A head that is refused, with the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) u16);

/// Follows the bytes of one connection.
#[derive(Debug)]
pub(super) struct Framing {
    part: Part,
    /// A head that is not complete.
    head: Vec<u8>,
    /// Of it, where its last line begins.
    line: usize,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self { part: Part::Head, head: Vec::new(), line: 0 }
    }

    /// Whether a head has begun and is not complete.
    pub(super) fn is_in_head(&self) -> bool {
        !self.head.is_empty()
    }

    /// What was held back.
    pub(super) fn take_held(&mut self) -> Vec<u8> {
        self.line = 0;
        std::mem::take(&mut self.head)
    }

    /// Takes bytes as they come, and passes on to `out` what may be.
    ///
    /// # Errors
    /// A head that is refused. It is not passed on, nor is anything behind it.
    pub(super) fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Refused> {
        while let Some(&byte) = bytes.first() {
            let n = match self.part {
                Part::Head => {
                    self.head_byte(byte, out)?;
                    bytes = &bytes[1..];
                    continue;
                }
                Part::Rest => bytes.len(),
                Part::Body(left) | Part::Chunk(left) => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let left = left - n as u64;
                    self.part = match self.part {
                        Part::Body(_) if left == 0 => Part::Head,
                        Part::Body(_) => Part::Body(left),
                        _ if left == 0 => Part::Size(0, false),
                        _ => Part::Chunk(left),
                    };
                    n
                }
                Part::Size(size, is_over) => {
                    self.part = next_of_size(byte, size, is_over);
                    1
                }
                Part::Trailer(has_text) => {
                    self.part = match byte {
                        b'\n' if !has_text => Part::Head,
                        b'\n' => Part::Trailer(false),
                        b'\r' => Part::Trailer(has_text),
                        _ => Part::Trailer(true),
                    };
                    1
                }
            };
            let (passed, rest) = bytes.split_at(n);
            out.extend_from_slice(passed);
            bytes = rest;
        }
        Ok(())
    }

    fn head_byte(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), Refused> {
        // Line breaks before a request count for nothing.
        if self.head.is_empty() && matches!(byte, b'\r' | b'\n') {
            return Ok(());
        }
        // Most of all TLS, of which no head may ever come: hyper refuses it at once.
        if self.head.is_empty() && !(byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)) {
            self.part = Part::Rest;
            out.push(byte);
            return Ok(());
        }
        self.head.push(byte);
        if self.head.len() > MOST_HEAD {
            return Err(Refused(if self.head.contains(&b'\n') { 431 } else { 414 }));
        }
        if byte != b'\n' {
            return Ok(());
        }
        if self.head == HTTP2 {
            self.part = Part::Rest;
        } else if matches!(self.head[self.line..], [b'\n'] | [b'\r', b'\n']) {
            self.part = body(&self.head)?;
        } else {
            self.line = self.head.len();
            return Ok(());
        }
        out.extend(self.take_held());
        Ok(())
    }
}

fn next_of_size(byte: u8, size: u64, is_over: bool) -> Part {
    match (byte, char::from(byte).to_digit(16)) {
        (b'\n', _) if size == 0 => Part::Trailer(false),
        (b'\n', _) => Part::Chunk(size.saturating_add(2)),
        (_, Some(digit)) if !is_over => match size.checked_mul(16) {
            Some(size) => Part::Size(size + u64::from(digit), false),
            // Hyper refuses it, and ends the connection.
            None => Part::Rest,
        },
        _ => Part::Size(size, true),
    }
}

/// What follows a head. One that hyper refuses may lead anywhere: nothing comes after it.
fn body(head: &[u8]) -> Result<Part, Refused> {
    let (mut length, mut is_chunked) = (None, false);
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // Even twice the same: others on the way may have taken one of them away, and not the other.
            if length.is_some() {
                return Err(Refused(400));
            }
            length = Some(std::str::from_utf8(value).ok().and_then(|value| value.parse::<u64>().ok()));
        }
    }
    match (length, is_chunked) {
        (Some(_), true) => Err(Refused(400)),
        (None, true) => Ok(Part::Size(0, false)),
        (None | Some(Some(0)), false) => Ok(Part::Head),
        (Some(Some(length)), false) => Ok(Part::Body(length)),
        (Some(None), false) => Ok(Part::Rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is passed on, and what is left, with all bytes at once and one by one.
    fn pass(bytes: &str) -> Result<(String, bool), Refused> {
        let by = |size: usize| {
            let (mut framing, mut out) = (Framing::new(), Vec::new());
            bytes.as_bytes().chunks(size).try_for_each(|bytes| framing.push(bytes, &mut out))?;
            Ok((String::from_utf8(out).unwrap(), framing.is_in_head()))
        };
        let whole = by(bytes.len());
        assert_eq!(whole, by(1));
        whole
    }

    #[test]
    fn requests_are_passed_on_as_they_are_one_after_the_other() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let post = "POST / HTTP/1.1\r\ncontent-LENGTH: 4\r\n\r\n\r\n\r\n";
        let chunked = "POST / HTTP/1.1\nTransfer-Encoding: chunked\n\n1a;x=\"\r\n0123456789\r\n0123456789abcd\r\n0\r\nA: b\r\n\r\n";
        let all = [get, post, chunked, get, chunked, post, get].concat();
        assert_eq!(pass(&all), Ok((all.clone(), false)));
        assert_eq!(pass(&format!("{get}\r\n\r\n{get}GET / HT")), Ok(([get, get].concat(), true)));
        let tls = "\x16\x03\x01";
        assert_eq!(pass(tls), Ok((tls.to_owned(), false)));
        let http2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0";
        assert_eq!(pass(http2), Ok((http2.to_owned(), false)));
    }

    #[test]
    fn two_lengths_are_refused_wherever_they_come() {
        let both = "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        let turned = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        let first = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        let twice = "POST / HTTP/1.1\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n";
        for bad in [both, turned, twice, &[first, both].concat(), &[first, turned].concat(), &[first, twice].concat()] {
            assert_eq!(pass(bad), Err(Refused(400)), "{bad}");
        }
        // In a body they are text.
        let body = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{both}", both.len());
        assert_eq!(pass(&body), Ok((body.clone(), false)));
    }

    #[test]
    fn heads_have_a_bound() {
        let long = "x".repeat(MOST_HEAD);
        assert_eq!(pass(&format!("GET /{long}")), Err(Refused(414)));
        assert_eq!(pass(&format!("GET / HTTP/1.1\r\nA: {long}")), Err(Refused(431)));
    }
}
