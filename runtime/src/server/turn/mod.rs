//! An assistant's turn, taken apart: models write their reasoning, their answer and their calls of tools as one text, and
//! each family marks them in its own way. Knows no protocol and no connection.

mod find;
mod format;
mod grammar;
mod instruct;
mod reader;
mod scan;
#[cfg(test)]
mod tests;
mod thinking;

use std::sync::Arc;

use farpost_models::tokenizer::Tokenizer;

#[cfg(feature = "fuzzing")]
pub(super) use format::ALL;
pub(super) use format::{CallFormat, Teller};
pub(super) use instruct::rewritten;
pub(super) use reader::{Piece, Reader};
pub(super) use thinking::Marks;

/// A tool that may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tool {
    /// Letters, digits, `_` and `-` only.
    pub(super) name: String,
    /// A JSON schema that its arguments are held to; without one they are any object.
    pub(super) schema: Option<String>,
}

/// The calls that a turn may hold.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    pub(super) format: &'static CallFormat,
    pub(super) tools: Vec<Tool>,
    /// There must be a call, and nothing else.
    pub(super) is_required: bool,
    /// More than one may come.
    pub(super) is_parallel: bool,
    /// A grammar sees to it that what begins as a call is one. Otherwise a call is told when it is complete.
    pub(super) is_enforced: bool,
}

/// What a turn may hold beside its answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    /// Around the reasoning, in families that reason.
    pub(super) thinking: Option<&'static Marks>,
    /// The prompt ends within the reasoning.
    pub(super) is_thinking: bool,
    /// The prompt has ended the reasoning, or left it out.
    pub(super) has_thought: bool,
    pub(super) calls: Option<Calls>,
}

impl Turn {
    /// Reads what a model writes.
    pub(super) fn reader(self: &Arc<Self>) -> Reader {
        Reader::new(Arc::clone(self))
    }

    /// All texts that mark something.
    fn marks(&self) -> impl Iterator<Item = &'static str> {
        let thinking = self.thinking.iter().flat_map(|marks| [marks.open, marks.close]);
        let calls = self.calls.iter().flat_map(|calls| [calls.format.open, calls.format.close]);
        thinking.chain(calls).filter(|mark| !mark.is_empty())
    }

    /// Whether some of the marks are control tokens, which are no text unless they are asked for.
    pub(super) fn has_control_marks(&self, tokenizer: &Tokenizer) -> bool {
        self.marks().any(|mark| control(mark, tokenizer).is_some())
    }
}

/// The control token that a text is, if it is one.
fn control(text: &str, tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.special_id(text).filter(|id| tokenizer.kind(*id).is_special())
}
