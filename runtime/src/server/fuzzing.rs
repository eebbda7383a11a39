//! What the server reads from strangers and from models, for fuzzers: read as it is when it comes over the network, but
//! nothing is run.

use std::sync::Arc;

use super::catalogue::{Hosted, Served};
use super::turn::{self, Calls, Marks, Piece, Tool, Turn};
use crate::engine::{Engine, Sampling};

/// Bodies that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/tokenize`.
    Tokenize,
    /// `/detokenize`.
    Detokenize,
}

/// Reads bodies of requests to one model.
pub struct Bodies {
    hosted: Hosted,
}

impl Bodies {
    /// Requests to this model.
    pub fn new(engine: Engine) -> Self {
        Self { hosted: Hosted::new(&Served::new("pocket".to_owned(), Sampling::default()), engine) }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// Why it is refused, as clients are told.
    pub fn read(&self, route: Route, body: &[u8]) -> Result<(), String> {
        super::wire::read_only(route, body, &self.hosted).map_err(|problem| problem.to_string())
    }
}

/// Reads a file of keys.
///
/// # Errors
/// What is wrong with it.
pub fn keys(text: &str) -> Result<(), String> {
    super::keys::Keys::parse(text).map(drop).map_err(|error| error.to_string())
}

/// JSON as the server takes it, as text.
///
/// # Errors
/// What is wrong with it.
pub fn json(body: &[u8]) -> Result<String, String> {
    let object = super::json::object(body).map_err(|problem| problem.to_string())?;
    Ok(serde_json::Value::Object(object).to_string())
}

/// Reasoning, answer, and calls with name and arguments.
pub type Told = (String, String, Vec<(String, String)>);

/// Reads what a model of one of the families wrote, in parts that end at these bytes. What comes out is the same for all
/// parts.
pub fn turn(family: usize, is_enforced: bool, is_thinking: bool, text: &str, ends: &[usize]) -> Told {
    let format = turn::ALL[family % turn::ALL.len()];
    let tool = |name: &str| Tool { name: name.to_owned(), schema: None };
    let tools = vec![tool("f"), tool("f_2")];
    let calls = Calls { format, tools, is_required: false, is_parallel: true, is_enforced };
    let turn = Turn { thinking: Some(Marks::MOST), is_thinking, has_thought: false, calls: Some(calls) };
    let mut reader = Arc::new(turn).reader();
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in ends.iter().copied().chain(std::iter::once(text.len())) {
        if let Some(part) = text.get(start..end).filter(|part| !part.is_empty()) {
            reader.push(part, &mut pieces);
            start = end;
        }
    }
    reader.finish(&mut pieces);
    let (mut thought, mut answer, mut calls) = (String::new(), String::new(), Vec::<(String, String)>::new());
    for piece in pieces {
        match piece {
            Piece::Thought(text) => thought += &text,
            Piece::Text(text) => answer += &text,
            Piece::Call { name, .. } => calls.push((name, String::new())),
            Piece::Arguments { place, text } => calls[place].1 += &text,
        }
    }
    (thought, answer, calls)
}
