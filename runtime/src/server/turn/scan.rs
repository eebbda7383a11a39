//! Finds the parts of a call while it is still being written: one JSON object, maybe in an array, with the places of its
//! name and its arguments. Whether all of it is valid JSON is asked when it is complete.

use std::ops::Range;

use serde_json::Value as Json;

use super::Calls;
use super::format::CallFormat;

/// Where a scan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the bracket of an array.
    List,
    /// Before the brace of an object.
    Object,
    /// Before a key, or the end if there may be one.
    Key,
    InKey,
    Colon,
    /// Before a value.
    Value,
    /// In a string, an array or object, a number or word.
    InString,
    InNested,
    InScalar,
    /// After a value.
    After,
    Done,
    Broken,
}

/// One call, as far as it is written.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    phase: Phase,
    /// The next byte to look at.
    at: usize,
    /// Where the current key or value begins.
    start: usize,
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
    key: Key,
    /// The text of the name, without its quotes.
    pub(super) name: Option<Range<usize>>,
    /// Where the arguments begin.
    pub(super) arguments: Option<usize>,
    pub(super) arguments_end: Option<usize>,
}

/// What a key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// More is to come.
    Open,
    /// It ends here.
    End(usize),
    /// It is no call.
    Broken,
}

impl Scan {
    /// Begins at byte `at`; `is_first` if the bracket of an array is still to come where there is one.
    pub(super) fn new(at: usize, format: &CallFormat, is_first: bool) -> Self {
        Self {
            phase: if format.is_list && is_first { Phase::List } else { Phase::Object },
            at,
            start: at,
            depth: 0,
            is_in_string: false,
            is_escaped: false,
            key: Key::Other,
            name: None,
            arguments: None,
            arguments_end: None,
        }
    }

    /// Goes on with `text`, of which only the end is new since the last time.
    pub(super) fn run(&mut self, text: &str, format: &CallFormat) -> Reached {
        let bytes = text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            match self.phase {
                Phase::Done | Phase::Broken => break,
                _ => self.step(byte, text, format),
            }
        }
        match self.phase {
            Phase::Done => Reached::End(self.at),
            Phase::Broken => Reached::Broken,
            _ => Reached::Open,
        }
    }

    /// Bytes that were looked at.
    pub(super) fn reached(&self) -> usize {
        self.at
    }

    /// The part of the arguments that is known and lies at or after `told`.
    pub(super) fn fresh_arguments<'t>(&self, text: &'t str, told: usize) -> &'t str {
        let Some(start) = self.arguments else { return "" };
        let end = self.arguments_end.unwrap_or(self.at);
        text.get(start.max(told)..end).unwrap_or("")
    }

    /// Name and arguments of a call that ends at byte `end`, if it is valid and of a known tool.
    pub(super) fn whole_call(&self, text: &str, end: usize, calls: &Calls) -> Option<(String, String)> {
        let open = text.find('{')?;
        let object: Json = serde_json::from_str(text.get(open..end)?).ok()?;
        let name = object.get(calls.format.name)?.as_str()?;
        calls.tools.iter().find(|tool| tool.name == name)?;
        let arguments = match (self.arguments, self.arguments_end) {
            (Some(start), Some(end)) => text.get(start..end)?,
            _ => "{}",
        };
        let arguments = match serde_json::from_str(arguments).ok()? {
            Json::Object(_) => arguments.to_owned(),
            // Some models write the text of the object.
            Json::String(inner) => {
                serde_json::from_str::<serde_json::Map<String, Json>>(&inner).ok()?;
                inner
            }
            _ => return None,
        };
        Some((name.to_owned(), arguments))
    }

    fn step(&mut self, byte: u8, text: &str, format: &CallFormat) {
        let is_space = byte.is_ascii_whitespace();
        self.phase = match (self.phase, byte) {
            (Phase::List, b'[') => Phase::Object,
            (Phase::Object, b'{') | (Phase::After, b',') => Phase::Key,
            (Phase::Key, b'}') if self.name.is_none() && self.arguments.is_none() => Phase::Done,
            (Phase::After, b'}') => Phase::Done,
            (Phase::Key, b'"') => {
                self.start = self.at + 1;
                Phase::InKey
            }
            (Phase::Colon, b':') => Phase::Value,
            (Phase::List | Phase::Object | Phase::Key | Phase::Colon | Phase::Value | Phase::After, _) if is_space => {
                self.phase
            }
            (Phase::InKey, _) => self.in_key(byte, text, format),
            (Phase::Value, b',' | b'}' | b']' | b':') => Phase::Broken,
            (Phase::Value, _) => self.begin_value(byte),
            (Phase::InString, _) => {
                if self.ends_string(byte) {
                    self.end_value(self.at + 1);
                    Phase::After
                } else {
                    Phase::InString
                }
            }
            (Phase::InNested, _) => self.in_nested(byte),
            // What ends a number is looked at again.
            (Phase::InScalar, b',' | b'}') => {
                self.end_value(self.at);
                self.phase = Phase::After;
                return;
            }
            (Phase::InScalar, _) if is_space => {
                self.end_value(self.at);
                Phase::After
            }
            (Phase::InScalar, _) => Phase::InScalar,
            _ => Phase::Broken,
        };
        self.at += 1;
    }

    /// Whether a byte of a string is the quote at its end.
    fn ends_string(&mut self, byte: u8) -> bool {
        let is_end = byte == b'"' && !self.is_escaped;
        self.is_escaped = byte == b'\\' && !self.is_escaped;
        is_end
    }

    fn in_key(&mut self, byte: u8, text: &str, format: &CallFormat) -> Phase {
        if !self.ends_string(byte) {
            return Phase::InKey;
        }
        let key = text.get(self.start..self.at).unwrap_or("");
        self.key = match key {
            _ if key == format.name => Key::Name,
            // Models that were told of one of the two write the other at times.
            "arguments" | "parameters" => Key::Arguments,
            _ => Key::Other,
        };
        Phase::Colon
    }

    fn begin_value(&mut self, byte: u8) -> Phase {
        self.start = self.at;
        if self.key == Key::Arguments {
            self.arguments = Some(self.at);
            self.arguments_end = None;
        }
        match byte {
            b'"' => Phase::InString,
            b'{' | b'[' => {
                self.depth = 1;
                Phase::InNested
            }
            _ => Phase::InScalar,
        }
    }

    fn in_nested(&mut self, byte: u8) -> Phase {
        if self.is_in_string {
            self.is_in_string = !self.ends_string(byte);
            return Phase::InNested;
        }
        match byte {
            b'"' => self.is_in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        if self.depth > 0 {
            return Phase::InNested;
        }
        self.end_value(self.at + 1);
        Phase::After
    }

    fn end_value(&mut self, end: usize) {
        match self.key {
            // Between its quotes; what is no string has none and is no name of a tool.
            Key::Name => self.name = Some(self.start + 1..end.saturating_sub(1).max(self.start + 1)),
            Key::Arguments => self.arguments_end = Some(end),
            Key::Other => {}
        }
    }
}
