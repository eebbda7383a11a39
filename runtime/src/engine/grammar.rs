//! Texts that must have a form: a JSON schema, a regular expression or a grammar, enforced token by token.
//!
//! What may come next is worked out by `llguidance` (an Earley parser over a lexer of regular expressions, on a trie of
//! the vocabulary); the sampler chooses among that. Guesses ahead are chosen one by one as ever, so nothing is taken back
//! here. Without the feature `grammar` a request for a form is refused.

use super::error::EngineError;

/// The form that a text must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// JSON that a schema allows; the schema is JSON itself.
    JsonSchema(String),
    /// A JSON object.
    JsonObject,
    /// The whole text matches a regular expression.
    Regex(String),
    /// A grammar in the Lark syntax of `llguidance`.
    Lark(String),
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
    /// A schema that is no JSON.
    #[cfg(feature = "server")]
    pub(crate) fn as_part(&self) -> Result<String, EngineError> {
        Ok(match self {
            Self::JsonSchema(schema) => format!("%json {}", self.schema(schema)?),
            Self::JsonObject => format!("%json {}", self.schema(OBJECT)?),
            // As a regular expression stands between slashes, one in it is escaped; pairs of characters that begin with
            // a backslash stay as they are.
            Self::Regex(regex) => {
                let mut part = "/".to_owned();
                let mut is_escaped = false;
                for character in regex.chars() {
                    match character {
                        '/' if !is_escaped => part.push_str("\\/"),
                        '\n' if !is_escaped => part.push_str("\\n"),
                        '\r' if !is_escaped => part.push_str("\\r"),
                        other => part.push(other),
                    }
                    is_escaped = character == '\\' && !is_escaped;
                }
                part + "/"
            }
            Self::Lark(lark) => format!("%lark {{\n{lark}\n}}"),
        })
    }

    /// A schema with what may stand between the parts of a text.
    #[cfg(any(feature = "grammar", feature = "server"))]
    fn schema(&self, text: &str) -> Result<serde_json::Value, EngineError> {
        let mut schema: serde_json::Value =
            serde_json::from_str(text).map_err(|error| self.refuse(format!("it is no JSON: {error}")))?;
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("x-guidance".to_owned(), serde_json::json!({ "whitespace_pattern": WHITESPACE }));
        }
        Ok(schema)
    }

    fn refuse(&self, reason: impl Into<String>) -> EngineError {
        EngineError::Grammar { form: self.name(), reason: reason.into() }
    }
}

/// The schema of any object.
#[cfg(any(feature = "grammar", feature = "server"))]
const OBJECT: &str = r#"{"type": "object"}"#;

/// What may stand between the parts of a JSON text: without a bound a small model may go on with spaces for good.
#[cfg(any(feature = "grammar", feature = "server"))]
const WHITESPACE: &str = r"\x0A\x20{0,12}|\x20{1,2}";

#[cfg(feature = "grammar")]
pub(crate) use enforced::{Constraint, Vocabulary};
#[cfg(not(feature = "grammar"))]
pub(crate) use refused::{Constraint, Vocabulary};

#[cfg(feature = "grammar")]
mod enforced {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use farpost_models::tokenizer::Tokenizer;
    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
    use llguidance::{Matcher, ParserFactory};

    use super::{EngineError, Grammar, OBJECT};

    /// The tokens of a model, arranged for parsing. Made once a model, shared by its requests.
    pub(crate) struct Vocabulary {
        factory: ParserFactory,
        stops: Arc<[u32]>,
        n_vocab: u32,
    }

    impl Vocabulary {
        /// `None` if no token ends a text: then no form could ever be complete.
        pub(crate) fn new(tokenizer: &Tokenizer) -> Option<Self> {
            let n_vocab = tokenizer.n_vocab() as u32;
            let stops: Arc<[u32]> = (0..n_vocab).filter(|id| tokenizer.is_stop(*id)).collect();
            let words: Vec<Vec<u8>> = (0..n_vocab)
                .map(|id| {
                    let bytes = tokenizer.token_bytes(id);
                    // No text is written with control tokens.
                    let is_special = tokenizer.kind(id).is_special() || tokenizer.is_stop(id);
                    if is_special { [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat() } else { bytes.to_vec() }
                })
                .collect();
            let info = TokRxInfo::new(n_vocab, *stops.first()?);
            let environment: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
            let mut factory = ParserFactory::new_simple(&environment).ok()?;
            factory.quiet();
            Some(Self { factory, stops, n_vocab })
        }
    }

    /// A form, and how much of it was written.
    pub(crate) struct Constraint {
        matcher: Matcher,
        stops: Arc<[u32]>,
        n_vocab: u32,
        mask: SimpleVob,
    }

    impl Constraint {
        /// # Errors
        /// A form that cannot be enforced, with what in it.
        pub(crate) fn new(vocabulary: &Vocabulary, grammar: &Grammar) -> Result<Self, EngineError> {
            let top = match grammar {
                Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(grammar.schema(schema)?),
                Grammar::JsonObject => TopLevelGrammar::from_json_schema(grammar.schema(OBJECT)?),
                Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
                Grammar::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
            };
            let parser = catch_unwind(AssertUnwindSafe(|| vocabulary.factory.create_parser(top)))
                .map_err(|_| grammar.refuse("the parser gave up on it"))?
                .map_err(|error| grammar.refuse(error.to_string()))?;
            let mut matcher = Matcher::new(Ok(parser));
            // What is warned of would not be enforced as it was asked for.
            let warnings = matcher.grammar_warnings();
            match matcher.get_error().or_else(|| warnings.into_iter().next()) {
                Some(error) => Err(grammar.refuse(error)),
                None => {
                    let (stops, n_vocab) = (Arc::clone(&vocabulary.stops), vocabulary.n_vocab);
                    Ok(Self { matcher, stops, n_vocab, mask: SimpleVob::new() })
                }
            }
        }

        /// Whether a token may come next, found without working out all that may. False for one that ends the text:
        /// only [`Constraint::advance`] tells of those.
        ///
        /// # Errors
        /// The bounds of the parser were met.
        pub(crate) fn allows(&mut self, id: u32) -> Result<bool, String> {
            if id >= self.n_vocab || self.stops.contains(&id) {
                return Ok(false);
            }
            let n_valid = self.matcher.validate_tokens(&[id]).map_err(|error| error.to_string())?;
            Ok(n_valid == 1)
        }

        /// Works out what may come next; see [`Constraint::mask`].
        ///
        /// # Errors
        /// The bounds of the parser were met.
        pub(crate) fn advance(&mut self) -> Result<(), String> {
            self.mask = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
            if self.stops.first().is_some_and(|stop| self.mask.is_allowed(*stop)) {
                self.stops.iter().for_each(|stop| self.mask.allow_token(*stop));
            }
            Ok(())
        }

        /// Tokens that may come next, a bit for each, 32 to a word.
        pub(crate) fn mask(&self) -> &[u32] {
            self.mask.as_slice()
        }

        /// The text goes on with a token that may come.
        pub(crate) fn push(&mut self, id: u32) -> Result<(), String> {
            if self.stops.contains(&id) {
                return Ok(());
            }
            self.matcher.consume_token(id).map_err(|error| error.to_string())
        }
    }

    impl Clone for Constraint {
        fn clone(&self) -> Self {
            let (stops, mask) = (Arc::clone(&self.stops), self.mask.clone());
            Self { matcher: self.matcher.deep_clone(), stops, n_vocab: self.n_vocab, mask }
        }
    }

    impl std::fmt::Debug for Constraint {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Constraint")
        }
    }
}

#[cfg(not(feature = "grammar"))]
mod refused {
    use farpost_models::tokenizer::Tokenizer;

    use super::{EngineError, Grammar};

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
            Err(grammar.refuse("this build has no feature 'grammar'"))
        }

        pub(crate) fn allows(&mut self, _: u32) -> Result<bool, String> {
            match *self {}
        }

        pub(crate) fn advance(&mut self) -> Result<(), String> {
            match *self {}
        }

        pub(crate) fn mask(&self) -> &[u32] {
            match *self {}
        }

        pub(crate) fn push(&mut self, _: u32) -> Result<(), String> {
            match *self {}
        }
    }
}

/// The constraint of a request to a model, if it asks for a form.
pub(super) fn constraint(
    model: &crate::model::Model,
    options: &super::generate::GenerateOptions,
) -> Result<Option<Constraint>, EngineError> {
    let Some(grammar) = &options.grammar else { return Ok(None) };
    if options.ignore_eos {
        return Err(grammar.refuse("with ignore_eos the text would have to go on after its end"));
    }
    compile(model, grammar).map(Some)
}

/// A form, arranged for a model.
///
/// # Errors
/// A form that cannot be enforced, with what in it.
pub(crate) fn compile(model: &crate::model::Model, grammar: &Grammar) -> Result<Constraint, EngineError> {
    let vocabulary = model.vocabulary().ok_or_else(|| grammar.refuse("the model has no token that ends a text"))?;
    Constraint::new(vocabulary, grammar)
}
