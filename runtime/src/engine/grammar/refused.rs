//! Builds without the feature `grammar`.

use farpost_models::tokenizer::Tokenizer;

use super::{EngineError, Fault, Grammar};

/// There are no parsers.
pub(crate) const MOST_BYTES: usize = 0;
/// Nor rows.
pub(crate) const TOKEN_BYTES: usize = 0;

/// Nothing is known of tokens.
pub(crate) struct Vocabulary;

impl Vocabulary {
    pub(crate) fn new(_: &Tokenizer) -> Option<Self> {
        Some(Self)
    }
}

/// There is none.
#[derive(Clone, Debug)]
pub(crate) enum Constraint {}

impl Constraint {
    pub(crate) fn new(_: &Vocabulary, grammar: &Grammar) -> Result<Self, EngineError> {
        Err(grammar.refuse(Fault::whole("this build has no feature 'grammar'")))
    }

    pub(crate) fn advance(&mut self) -> Result<(), &'static str> {
        match *self {}
    }

    pub(crate) fn allows(&mut self, _: u32) -> Result<bool, &'static str> {
        match *self {}
    }

    pub(crate) fn mask(&self) -> &[u32] {
        match *self {}
    }

    pub(crate) fn push(&mut self, _: u32) -> Result<(), &'static str> {
        match *self {}
    }
}
