//! Server-sent events, read piece by piece (WHATWG HTML, 9.2.6): pieces may end anywhere.

/// A longer line or event is no answer of a model.
const MOST_BYTES: usize = 1 << 20;

/// A line or an event that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// What was read of the event that has begun.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    has_begun: bool,
    /// The last byte was a carriage return: a line feed after it ends no other line.
    is_after_cr: bool,
}

impl Events {
    /// Takes a piece, and adds the data of each event that ends in it. Other fields and comments say nothing here.
    ///
    /// # Errors
    /// A line or an event of more than 1 MiB.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<String>) -> Result<(), TooLong> {
        for &byte in piece {
            let is_after_cr = std::mem::replace(&mut self.is_after_cr, byte == b'\r');
            match byte {
                b'\n' if is_after_cr => {}
                b'\n' | b'\r' => self.end_line(out),
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > MOST_BYTES {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    fn end_line(&mut self, out: &mut Vec<String>) {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.has_begun, true) && line.starts_with(b"\xEF\xBB\xBF") {
            line.drain(..3);
        }
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) {
                out.push(String::from_utf8_lossy(&data).into_owned());
            }
            return;
        }
        let (field, value) = match line.iter().position(|&byte| byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (&line[..], &[][..]),
        };
        if field == b"data" {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut events, mut out) = (Events::default(), Vec::new());
        pieces.iter().for_each(|piece| events.push(piece, &mut out).unwrap());
        out
    }

    const STREAM: &str = "\u{FEFF}data: {\"a\":\"grün\"}\n\n: ping\n\nevent: x\r\nid: 1\r\ndata:two\r\ndata: lines\r\n\r\n\
                          data\rdatum: no\r\rdata:  kept\n\ndata: never ended\n";
    const EVENTS: [&str; 4] = ["{\"a\":\"grün\"}", "two\nlines", "", " kept"];

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let bytes = STREAM.as_bytes();
        assert_eq!(events(&[bytes]), EVENTS);
        assert_eq!(events(&bytes.chunks(1).collect::<Vec<_>>()), EVENTS);
        for cut in 0..bytes.len() {
            let (before, after) = bytes.split_at(cut);
            assert_eq!(events(&[before, after]), EVENTS, "cut at {cut}");
        }
    }

    #[test]
    fn what_never_ends_is_refused_and_bytes_that_are_no_text_are_replaced() {
        let mut out = Vec::new();
        assert_eq!(Events::default().push(&vec![b'x'; MOST_BYTES + 1], &mut out), Err(TooLong));
        assert_eq!(Events::default().push(&b"data: yyyy\n".repeat(MOST_BYTES / 4), &mut out), Err(TooLong));
        assert_eq!(events(&[b"data: \xFF\n\n"]), ["\u{FFFD}"]);
    }
}
