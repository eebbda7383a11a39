//! Tells reasoning, answer and calls apart while they are written. What comes out depends on the text alone, not on how
//! it fell into pieces: nothing is told before it is certain what it is.

use std::sync::Arc;

use super::find::{find, find_bare};
use super::format::CallFormat;
use super::scan::{Reached, Scan};
use super::{Calls, Turn};

/// A part of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) enum Piece {
    /// The reasoning goes on.
    Thought(String),
    /// The answer goes on.
    Text(String),
    /// A call begins. Its arguments follow.
    Call {
        /// Counted from 0.
        place: usize,
        /// Of the tool.
        name: String,
    },
    /// The arguments of the call go on; all of them together are JSON.
    Arguments {
        /// Of the call.
        place: usize,
        /// The next part.
        text: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    Thought,
    /// In a call; `held` begins with its mark.
    Call,
    /// After a call, in or behind the list.
    Between,
}

/// What may stand in an answer and is no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Open,
    Close,
    /// Before a call, this long.
    Call(usize),
}

/// Reads one turn.
#[derive(Clone, Debug)]
pub(in crate::server) struct Reader {
    turn: Arc<Turn>,
    state: State,
    /// Not told yet.
    held: String,
    /// White space that comes next belongs to a mark.
    drops_space: bool,
    scan: Option<Scan>,
    /// Bytes of `held` up to which arguments were told.
    told: usize,
    /// The current call was told by its name.
    is_announced: bool,
    n_calls: usize,
}

impl Reader {
    pub(super) fn new(turn: Arc<Turn>) -> Self {
        let state = if turn.is_thinking { State::Thought } else { State::Text };
        Self {
            turn,
            state,
            held: String::new(),
            drops_space: state == State::Thought,
            scan: None,
            told: 0,
            is_announced: false,
            n_calls: 0,
        }
    }

    /// Whether the reasoning goes on.
    pub(in crate::server) fn is_in_thought(&self) -> bool {
        self.state == State::Thought
    }

    /// Bytes at the end of what came of which nothing was told yet.
    pub(in crate::server) fn n_held(&self) -> usize {
        let n_told = if self.state == State::Call && self.is_announced { self.told } else { 0 };
        self.held.len().saturating_sub(n_told)
    }

    /// Calls that were told.
    pub(in crate::server) fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// The text goes on.
    pub(in crate::server) fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        if self.turn.thinking.is_none() && self.turn.calls.is_none() {
            out.push(Piece::Text(text.to_owned()));
            return;
        }
        self.held.push_str(text);
        while self.step(false, out) {}
    }

    /// The text is over.
    pub(in crate::server) fn finish(&mut self, out: &mut Vec<Piece>) {
        while self.step(true, out) {}
    }

    /// Does what can be done next; false if there is nothing.
    fn step(&mut self, is_end: bool, out: &mut Vec<Piece>) -> bool {
        if self.drops_space && self.state != State::Call {
            let n_spaces = self.held.len() - self.held.trim_start().len();
            self.held.drain(..n_spaces);
            self.drops_space = self.held.is_empty();
        }
        if self.held.is_empty() {
            return false;
        }
        match self.state {
            State::Text => self.text(is_end, out),
            State::Thought => self.thought(is_end, out),
            State::Call => self.call(is_end, out),
            State::Between => self.between(is_end),
        }
    }

    /// Takes the first `end` bytes of what is held.
    fn take(&mut self, end: usize) -> String {
        self.held.drain(..end).collect()
    }

    /// Tells a part of the answer. Where there must be calls there is none, even if the first one was cut off.
    fn tell(&self, text: String, out: &mut Vec<Piece>) {
        let is_required = self.turn.calls.as_ref().is_some_and(|calls| calls.is_required);
        if !text.is_empty() && !is_required {
            out.push(Piece::Text(text));
        }
    }

    fn text(&mut self, is_end: bool, out: &mut Vec<Piece>) -> bool {
        let found = self.first_mark(is_end);
        let end = match found {
            Some((at, _)) => self.held.get(..at).map_or(0, |text| text.trim_end().len()),
            // At the end of a turn without calls white space is told as it is.
            None if is_end && self.n_calls == 0 => self.held.len(),
            None => self.held.trim_end().len(),
        };
        let told = self.take(end);
        self.tell(told, out);
        let Some((at, mark)) = found else {
            if is_end {
                self.held.clear();
            }
            return false;
        };
        let Some(mark) = mark else {
            // What may become a mark waits.
            return false;
        };
        self.take(at - end);
        match mark {
            Mark::Open | Mark::Close => {
                if let Some(marks) = self.turn.thinking {
                    self.take(if mark == Mark::Open { marks.open.len() } else { marks.close.len() });
                }
                self.drops_space = true;
                self.state = if mark == Mark::Open { State::Thought } else { State::Text };
            }
            Mark::Call(len) => self.begin(len, true),
        }
        true
    }

    /// The first mark in what is held, or the first place that may become one.
    fn first_mark(&self, is_end: bool) -> Option<(usize, Option<Mark>)> {
        let mut first: Option<(usize, Option<Mark>)> = None;
        let mut note = |found: Option<(usize, Option<Mark>)>| {
            if let Some(found) = found.filter(|found| first.is_none_or(|first| found.0 < first.0)) {
                first = Some(found);
            }
        };
        if let Some(marks) = self.turn.thinking {
            note(find(&self.held, marks.open, is_end).map(|(at, is)| (at, is.then_some(Mark::Open))));
            note(find(&self.held, marks.close, is_end).map(|(at, is)| (at, is.then_some(Mark::Close))));
        }
        if let Some(calls) = &self.turn.calls {
            let open = calls.format.open;
            if open.is_empty() {
                note(find_bare(&self.held, calls, is_end).map(|(at, is)| (at, is.then_some(Mark::Call(0)))));
            } else {
                note(find(&self.held, open, is_end).map(|(at, is)| (at, is.then_some(Mark::Call(open.len())))));
            }
        }
        first
    }

    fn thought(&mut self, is_end: bool, out: &mut Vec<Piece>) -> bool {
        let Some(marks) = self.turn.thinking else {
            self.state = State::Text;
            return true;
        };
        let found = find(&self.held, marks.close, is_end);
        let before = found.map_or(self.held.len(), |(at, _)| at);
        let end = self.held.get(..before).map_or(0, |text| text.trim_end().len());
        let thought = self.take(end);
        if !thought.is_empty() {
            out.push(Piece::Thought(thought));
        }
        match found {
            Some((at, true)) => {
                self.take(at - end + marks.close.len());
                self.state = State::Text;
                self.drops_space = true;
                true
            }
            _ => {
                if is_end {
                    self.held.clear();
                }
                false
            }
        }
    }

    /// A call begins, behind a mark of `len` bytes.
    fn begin(&mut self, len: usize, is_first: bool) {
        self.scan = self.turn.calls.as_ref().map(|calls| Scan::new(len, calls.format, is_first));
        self.told = 0;
        self.is_announced = false;
        self.state = State::Call;
    }

    fn call(&mut self, is_end: bool, out: &mut Vec<Piece>) -> bool {
        let turn = Arc::clone(&self.turn);
        let (Some(calls), Some(mut scan)) = (&turn.calls, self.scan.take()) else {
            self.state = State::Text;
            return true;
        };
        let reached = scan.run(&self.held, calls.format);
        if calls.is_enforced {
            self.tell_enforced(&scan, out);
        }
        match reached {
            Reached::End(end) => {
                let is_call =
                    if calls.is_enforced { self.is_announced } else { self.tell_whole(&scan, end, calls, out) };
                if !is_call {
                    self.give_up(calls, out);
                    return true;
                }
                self.n_calls += 1;
                self.take(end);
                self.state = State::Between;
                true
            }
            Reached::Broken if self.is_announced => {
                // No grammar lets this happen. What was told stays a call.
                self.n_calls += 1;
                let len = self.held.len();
                let end = (scan.reached()..len).find(|at| self.held.is_char_boundary(*at)).unwrap_or(len);
                self.take(end);
                self.state = State::Text;
                true
            }
            Reached::Broken => {
                self.give_up(calls, out);
                true
            }
            Reached::Open if is_end => {
                // Cut off. What of it was told stays told, and what is half a name is nothing.
                if calls.is_enforced {
                    self.n_calls += usize::from(self.is_announced);
                    self.held.clear();
                    return false;
                }
                self.give_up(calls, out);
                true
            }
            Reached::Open => {
                self.scan = Some(scan);
                false
            }
        }
    }

    /// What begins like a call and is none is a part of the answer, its mark first.
    fn give_up(&mut self, calls: &Calls, out: &mut Vec<Piece>) {
        let first = self.held.chars().next().map_or(0, char::len_utf8);
        let open = calls.format.open;
        let len = if !open.is_empty() && self.held.starts_with(open) { open.len() } else { first };
        let text = self.take(len);
        self.tell(text, out);
        self.state = State::Text;
    }

    /// Tells what is certain of a call that a grammar sees to.
    fn tell_enforced(&mut self, scan: &Scan, out: &mut Vec<Piece>) {
        let place = self.n_calls;
        if !self.is_announced
            && let Some(name) = scan.name.clone().and_then(|name| self.held.get(name))
        {
            out.push(Piece::Call { place, name: name.to_owned() });
            self.is_announced = true;
        }
        let fresh = scan.fresh_arguments(&self.held, self.told);
        if self.is_announced && !fresh.is_empty() {
            self.told = self.told.max(scan.arguments.unwrap_or(0)) + fresh.len();
            out.push(Piece::Arguments { place, text: fresh.to_owned() });
        }
    }

    /// Tells a call that is complete, if it is one.
    fn tell_whole(&self, scan: &Scan, end: usize, calls: &Calls, out: &mut Vec<Piece>) -> bool {
        let Some((name, text)) = scan.whole_call(&self.held, end, calls) else { return false };
        let place = self.n_calls;
        out.push(Piece::Call { place, name });
        out.push(Piece::Arguments { place, text });
        true
    }

    /// After a call: the next one of the list, or what closes it.
    fn between(&mut self, is_end: bool) -> bool {
        let turn = Arc::clone(&self.turn);
        let Some(calls) = &turn.calls else {
            self.state = State::Text;
            return true;
        };
        let CallFormat { open, close, is_list, .. } = *calls.format;
        let n_spaces = self.held.len() - self.held.trim_start().len();
        self.take(n_spaces);
        let rest = self.held.as_str();
        if rest.is_empty() {
            return false;
        }
        if is_list && rest.starts_with(',') {
            self.take(1);
            self.begin(0, false);
            return true;
        }
        let separator = if is_list {
            "]"
        } else if open.is_empty() {
            ";"
        } else {
            ""
        };
        if !separator.is_empty() && rest.starts_with(separator) {
            self.take(1);
            return true;
        }
        if !close.is_empty() && rest.starts_with(close) {
            self.take(close.len());
        } else if !is_end && !close.is_empty() && close.starts_with(rest) {
            return false;
        }
        self.state = State::Text;
        self.drops_space = true;
        true
    }
}
