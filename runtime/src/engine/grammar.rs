//! Texts that must have a form: a JSON schema, a regular expression or a grammar, enforced token by token.
//!
//! What may come next is worked out by `llguidance` (an Earley parser over a lexer of regular expressions, on a trie of
//! the vocabulary); the sampler chooses among that. Guesses ahead are chosen one by one as ever, so nothing is taken back
//! here. What a request asks for is checked here first, so that what cannot be enforced is refused in this crate's words
//! and what would take too much is never begun. Without the feature `grammar` a request for a form is refused.

#[cfg(feature = "grammar")]
mod depth;
#[cfg(feature = "grammar")]
mod enforced;
#[cfg(any(feature = "grammar", feature = "server"))]
mod lark;
#[cfg(any(feature = "grammar", feature = "server"))]
mod pattern;
#[cfg(not(feature = "grammar"))]
mod refused;
#[cfg(any(feature = "grammar", feature = "server"))]
mod schema;
#[cfg(feature = "grammar")]
mod spread;

use super::error::EngineError;

#[cfg(feature = "grammar")]
pub(crate) use enforced::{Constraint, MOST_BYTES, TOKEN_BYTES, Vocabulary};
#[cfg(not(feature = "grammar"))]
pub(crate) use refused::{Constraint, MOST_BYTES, TOKEN_BYTES, Vocabulary};

/// The form that a text must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// JSON that a schema allows; the schema is JSON itself.
    JsonSchema(String),
    /// A JSON object.
    JsonObject,
    /// The whole text matches a regular expression, in which `\d`, `\w` and `\s` are of ASCII.
    Regex(String),
    /// A grammar in the Lark syntax of `llguidance`.
    Lark(String),
}

/// Bytes that a regular expression may have.
#[cfg(feature = "grammar")]
const LONGEST_REGEX: usize = 16 << 10;
/// Bytes that a schema or a grammar may have.
#[cfg(any(feature = "grammar", feature = "server"))]
const LONGEST_FORM: usize = 1 << 20;
/// The schema of any object.
#[cfg(any(feature = "grammar", feature = "server"))]
const OBJECT: &str = r#"{"type": "object"}"#;

/// What is wrong with a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where in the schema, as a fragment: `#/properties/a/not`. Empty if it is the form as a whole.
    pub(crate) pointer: String,
    pub(crate) reason: String,
}

impl Fault {
    /// One of the form as a whole.
    fn whole(reason: impl Into<String>) -> Self {
        Self { pointer: String::new(), reason: reason.into() }
    }
}

impl Grammar {
    /// "json_schema", "json_object", "regex" or "grammar".
    pub fn name(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "json_schema",
            Self::JsonObject => "json_object",
            Self::Regex(_) => "regex",
            Self::Lark(_) => "grammar",
        }
    }

    /// The same form as a part of a rule of a Lark grammar.
    ///
    /// # Errors
    /// A form that cannot be enforced. What is no matter of a schema shows only when the whole grammar is compiled.
    #[cfg(feature = "server")]
    pub(crate) fn as_part(&self) -> Result<String, EngineError> {
        Ok(match self {
            Self::JsonSchema(schema) => format!("%json {}", self.schema(schema)?),
            Self::JsonObject => format!("%json {}", self.schema(OBJECT)?),
            Self::Regex(regex) => format!("/{}/", pattern::between_slashes(&pattern::ascii(regex))),
            Self::Lark(lark) => format!("%lark {{\n{}\n}}", lark::checked(lark).map_err(|fault| self.refuse(fault))?),
        })
    }

    /// A schema as it is enforced.
    #[cfg(any(feature = "grammar", feature = "server"))]
    fn schema(&self, text: &str) -> Result<serde_json::Value, EngineError> {
        self.check_length(text, LONGEST_FORM)?;
        let read = serde_json::from_str(text).map_err(|error| Fault::whole(format!("it is no JSON: {error}")));
        read.and_then(|read| schema::checked(&read)).map_err(|fault| self.refuse(fault))
    }

    #[cfg(any(feature = "grammar", feature = "server"))]
    fn check_length(&self, text: &str, most: usize) -> Result<(), EngineError> {
        if text.len() <= most {
            return Ok(());
        }
        Err(self.refuse(Fault::whole(format!("it has {} bytes, expected at most {most}", text.len()))))
    }

    fn refuse(&self, fault: Fault) -> EngineError {
        EngineError::Grammar { form: self.name(), pointer: fault.pointer, reason: fault.reason }
    }
}

/// The constraint of a request to a model, if it asks for a form.
pub(super) fn constraint(
    model: &crate::model::Model,
    options: &super::generate::GenerateOptions,
) -> Result<Option<Constraint>, EngineError> {
    let Some(grammar) = &options.grammar else { return Ok(None) };
    if options.ignore_eos {
        return Err(grammar.refuse(Fault::whole("with ignore_eos the text would have to go on after its end")));
    }
    compile(model, grammar).map(Some)
}

/// A form, arranged for a model.
///
/// # Errors
/// A form that cannot be enforced, with what in it.
pub(crate) fn compile(model: &crate::model::Model, grammar: &Grammar) -> Result<Constraint, EngineError> {
    let no_end = || grammar.refuse(Fault::whole("the model has no token that ends a text"));
    Constraint::new(model.vocabulary().ok_or_else(no_end)?, grammar)
}
