//! Forms by `llguidance`, within bounds of time and memory.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use farpost_kernels::backend::DeviceError;
use farpost_models::tokenizer::Tokenizer;
use llguidance::api::{GrammarInit, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, TokenParser};

use super::{EngineError, Fault, Grammar, LONGEST_FORM, LONGEST_REGEX, OBJECT, depth, lark, pattern, spread};

/// Bytes that a form's parser may come to, with its first step and while a text is written.
pub(crate) const MOST_BYTES: usize = 4 << 20;
/// Bytes that it may come to beside these for each token of the text: it keeps what the text may be at each place.
pub(crate) const TOKEN_BYTES: usize = 1 << 10;
/// Bytes of an item of a row, in a vector that may be half empty.
const ITEM_BYTES: usize = 24;
/// Bytes that are kept of each byte of the text: where it stands, and what the lexer is at.
const TEXT_BYTES: usize = 96;
/// Time that making a form ready may take.
const LONGEST: Duration = Duration::from_secs(1);

/// What bounds the parser of a form. Its work is counted in expressions that are made: a few dozen nanoseconds and as many
/// bytes each.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    initial_lexer_fuel: 400_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 20_000,
    max_grammar_size: 60_000,
    precompute_large_lexemes: true,
    // They would hold the text.
    verbose_errors: false,
};

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
        *factory.limits_mut() = LIMITS;
        Some(Self { factory, stops, n_vocab })
    }
}

/// A form, and how much of it was written.
pub(crate) struct Constraint {
    parser: TokenParser,
    stops: Arc<[u32]>,
    n_vocab: u32,
    mask: SimpleVob,
    /// The mask is that of what comes next.
    is_ready: bool,
    /// Tokens of the text, and items of the rows that these made.
    n_tokens: usize,
    n_items: usize,
}

impl Constraint {
    /// # Errors
    /// A form that cannot be enforced, with what in it; one that no text can begin to have.
    pub(crate) fn new(vocabulary: &Vocabulary, grammar: &Grammar) -> Result<Self, EngineError> {
        let read = || {
            let made = catch_unwind(AssertUnwindSafe(|| Self::read(vocabulary, grammar)));
            made.unwrap_or_else(|_| Err(grammar.refuse(Fault::whole("the parser gave up on it"))))
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("farpost-form".to_owned()).stack_size(depth::STACK_BYTES);
            let thread = thread.spawn_scoped(scope, read);
            let thread = thread.map_err(|error| DeviceError::NoThreads { threads: 1, reason: error.to_string() })?;
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn read(vocabulary: &Vocabulary, grammar: &Grammar) -> Result<Self, EngineError> {
        let start = Instant::now();
        let top = match grammar {
            Grammar::JsonSchema(schema) => {
                let schema = grammar.schema(schema)?;
                depth::check_schema(&schema).map_err(|fault| grammar.refuse(fault))?;
                TopLevelGrammar::from_json_schema(schema)
            }
            Grammar::JsonObject => TopLevelGrammar::from_json_schema(grammar.schema(OBJECT)?),
            Grammar::Regex(regex) => {
                grammar.check_length(regex, LONGEST_REGEX)?;
                let regex = pattern::ascii(regex);
                spread::check_regex(&regex, false).map_err(|fault| grammar.refuse(fault))?;
                TopLevelGrammar::from_regex(&regex)
            }
            Grammar::Lark(lark) => {
                grammar.check_length(lark, LONGEST_FORM)?;
                let lark = lark::checked(lark).map_err(|fault| grammar.refuse(fault))?;
                depth::check_lark(&lark).map_err(|fault| grammar.refuse(fault))?;
                TopLevelGrammar::from_lark(lark)
            }
        };
        Self::made(vocabulary, top, grammar, start).map_err(|fault| grammar.refuse(fault))
    }

    fn made(vocabulary: &Vocabulary, top: TopLevelGrammar, grammar: &Grammar, start: Instant) -> Result<Self, Fault> {
        let tokens = Some(vocabulary.factory.tok_env().clone());
        let read = GrammarInit::Serialized(top).to_internal(tokens, LIMITS);
        let (rules, lexemes) = read.map_err(|error| fault(grammar, &error.to_string()))?;
        // What is warned of would not be enforced as it was asked for.
        if let Some(warning) = lexemes.render_warnings().first() {
            return Err(fault(grammar, warning));
        }
        spread::check(lexemes.regex_builder.exprset())?;
        check_time(start)?;
        let made = vocabulary.factory.create_parser_from_init_default(GrammarInit::Internal(rules, lexemes));
        let mut parser = made.map_err(|error| fault(grammar, &error.to_string()))?;
        parser.start_without_prompt();
        check_time(start)?;
        let (stops, mask) = (Arc::clone(&vocabulary.stops), SimpleVob::new());
        let (n_vocab, is_ready, n_tokens, n_items) = (vocabulary.n_vocab, false, 0, 0);
        let mut constraint = Self { parser, stops, n_vocab, mask, is_ready, n_tokens, n_items };
        constraint.work_out().map_err(|reason| match reason {
            DEAD_END => Fault::whole("no text has it"),
            _ => spread::too_large(),
        })?;
        constraint.is_ready = true;
        constraint.try_one()?;
        check_time(start)?;
        Ok(constraint)
    }

    /// Takes one step aside: much of what is too ambiguous shows only there.
    fn try_one(&self) -> Result<(), Fault> {
        let Some(first) = self.mask.iter().find(|id| !self.stops.contains(id)) else { return Ok(()) };
        let mut aside = self.clone();
        match aside.push(first).and_then(|()| aside.work_out()) {
            Err(TOO_LARGE) => Err(spread::too_large()),
            _ => Ok(()),
        }
    }

    /// Works out what may come next; see [`Constraint::mask`].
    ///
    /// # Errors
    /// What kind of failure it is: the bounds of the parser were met, or nothing may come. Says nothing of the text.
    pub(crate) fn advance(&mut self) -> Result<(), &'static str> {
        if std::mem::replace(&mut self.is_ready, false) {
            return Ok(());
        }
        catch_unwind(AssertUnwindSafe(|| self.work_out())).unwrap_or(Err(PANIC))
    }

    fn work_out(&mut self) -> Result<(), &'static str> {
        self.mask = if self.parser.stop_reason() == StopReason::NotStopped {
            self.parser.compute_mask().map_err(|_| self.why())?
        } else if self.parser.stop_reason().is_ok() {
            self.parser.token_env.tok_trie().eos_token_set()
        } else {
            return Err(self.why());
        };
        if self.stops.first().is_some_and(|stop| self.mask.is_allowed(*stop)) {
            self.stops.iter().for_each(|stop| self.mask.allow_token(*stop));
        }
        self.check_bytes()
    }

    fn check_bytes(&self) -> Result<(), &'static str> {
        if self.n_bytes() > MOST_BYTES + self.n_tokens * TOKEN_BYTES { Err(TOO_LARGE) } else { Ok(()) }
    }

    /// What the parser has come to: its lexer, and its rows, which are as many as the text is long.
    fn n_bytes(&self) -> usize {
        let parser = &self.parser.parser;
        parser.lexer_stats().num_bytes + self.n_items * ITEM_BYTES + parser.get_bytes().len() * TEXT_BYTES
    }

    /// Why the parser stopped.
    fn why(&self) -> &'static str {
        match self.parser.stop_reason() {
            StopReason::NoExtension | StopReason::NoExtensionBias => DEAD_END,
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => TOO_LARGE,
            _ => "the parser failed",
        }
    }

    /// Whether a token may come next, found without working out all that may. False for one that ends the text: only
    /// [`Constraint::advance`] tells of those.
    ///
    /// # Errors
    /// As [`Constraint::advance`].
    pub(crate) fn allows(&mut self, id: u32) -> Result<bool, &'static str> {
        if id >= self.n_vocab || self.stops.contains(&id) {
            return Ok(false);
        }
        let parser = &mut self.parser;
        match catch_unwind(AssertUnwindSafe(|| parser.validate_tokens_raw(&[id]))) {
            Ok(Ok(n_valid)) => Ok(n_valid == 1),
            Ok(Err(_)) => Err(self.why()),
            Err(_) => Err(PANIC),
        }
    }

    /// Tokens that may come next, a bit for each, 32 to a word.
    pub(crate) fn mask(&self) -> &[u32] {
        self.mask.as_slice()
    }

    /// The text goes on with a token that may come.
    ///
    /// # Errors
    /// As [`Constraint::advance`].
    pub(crate) fn push(&mut self, id: u32) -> Result<(), &'static str> {
        self.is_ready = false;
        if self.stops.contains(&id) {
            return Ok(());
        }
        let n_before = self.parser.parser.stats().all_items;
        let parser = &mut self.parser;
        let took = catch_unwind(AssertUnwindSafe(|| {
            let backtracked = parser.consume_token(id).ok()?;
            parser.check_stop().ok()?;
            (backtracked == 0).then_some(())
        }));
        self.n_tokens += 1;
        self.n_items += self.parser.parser.stats().all_items.saturating_sub(n_before);
        match took {
            Ok(Some(())) => self.check_bytes(),
            Ok(None) => Err(self.why()),
            Err(_) => Err(PANIC),
        }
    }
}

const DEAD_END: &str = "nothing may come next and it is not complete";
const TOO_LARGE: &str = "its parser has met its bounds";
const PANIC: &str = "its parser panicked";

fn check_time(start: Instant) -> Result<(), Fault> {
    if start.elapsed() <= LONGEST {
        return Ok(());
    }
    Err(Fault::whole(format!("it took more than {} s to be made ready", LONGEST.as_secs())))
}

/// What the library refuses. Its words are kept for grammars, which are written in its language; schemas were checked, so
/// what is left concerns one as a whole.
fn fault(grammar: &Grammar, error: &str) -> Fault {
    let bounds =
        ["too big", "too large", "fuel", "too many", "Too many", "precomputation", "too complex", "stack level"];
    if bounds.iter().any(|bound| error.contains(bound)) {
        return spread::too_large();
    }
    match grammar {
        Grammar::Lark(_) | Grammar::Regex(_) => Fault::whole(error.trim_end()),
        Grammar::JsonSchema(_) | Grammar::JsonObject
            if error.contains("nsatisfiable") || error.contains("is empty") =>
        {
            Fault::whole("no value satisfies it")
        }
        _ => Fault::whole("its keywords can't be enforced together"),
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        let (parser, stops, mask) = (self.parser.deep_clone(), Arc::clone(&self.stops), self.mask.clone());
        let Self { n_vocab, is_ready, n_tokens, n_items, .. } = *self;
        Self { parser, stops, n_vocab, mask, is_ready, n_tokens, n_items }
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

#[cfg(all(test, feature = "pocket"))]
mod tests {
    use super::*;
    use crate::model::{Model, ModelOptions};

    /// Writes what the parser allows first, again and again, and tells the bytes of its tables, and of its rows a token.
    fn bytes(model: &Model, grammar: &Grammar) -> (usize, usize) {
        let mut constraint = super::super::compile(model, grammar).unwrap();
        for step in 0..60 {
            constraint.advance().unwrap();
            let allowed: Vec<u32> = constraint.mask.iter().collect();
            let id = allowed[step * 7919 % allowed.len()];
            if constraint.stops.contains(&id) {
                break;
            }
            constraint.push(id).unwrap();
        }
        let of_lexer = constraint.parser.parser.lexer_stats().num_bytes;
        (of_lexer, (constraint.n_bytes() - of_lexer) / constraint.n_tokens.max(1))
    }

    /// A grammar of which each byte of a text may be many things at once.
    #[test]
    fn rows_of_a_text_that_may_be_many_things_are_bounded() {
        let model = Model::pocket().unwrap();
        let rules: String = (0..60).map(|n| format!("r{n}: \"a\" r{}? | \"a\" s\n", (n + 1) % 60)).collect();
        let starts: Vec<String> = (0..60).map(|n| format!("r{n}")).collect();
        let lark = format!("start: ({})+\ns: \"a\"*\n{rules}", starts.join(" | "));
        let mut constraint = super::super::compile(&model, &Grammar::Lark(lark)).unwrap();
        let mut n_bytes = 0;
        let ended = (0..20_000).find_map(|_| {
            constraint.advance().err().or_else(|| {
                let id = constraint.mask.iter().find(|id| !constraint.stops.contains(id))?;
                let pushed = constraint.push(id).err();
                if pushed.is_none() {
                    n_bytes = constraint.n_bytes();
                }
                pushed
            })
        });
        assert_eq!(ended, Some(TOO_LARGE));
        assert!(n_bytes <= MOST_BYTES + constraint.n_tokens * TOKEN_BYTES, "{n_bytes} of {}", constraint.n_tokens);
    }

    #[test]
    fn parsers_of_usual_forms_are_far_from_their_bound() {
        // One of a large vocabulary, too.
        let gemma = farpost_firmware_tests::model("gemma-3-270m-q4_k_m.gguf");
        let models = [Model::pocket().unwrap(), Model::open(&gemma, &ModelOptions::default()).unwrap()];
        let properties: Vec<String> = (0..100)
            .map(|n| format!(r#""property_{n}": {{"type": ["string", "null"], "format": "date-time"}}"#))
            .collect();
        let names: Vec<String> = (0..1000).map(|n| format!("\"value number {n} of the list\"")).collect();
        for grammar in [
            Grammar::JsonObject,
            Grammar::Regex("[a-z]{1,40}(, [a-z]{1,40}){0,20}".to_owned()),
            Grammar::JsonSchema(format!(r#"{{"properties": {{{}}}}}"#, properties.join(","))),
            Grammar::JsonSchema(format!(r#"{{"enum": [{}]}}"#, names.join(","))),
            Grammar::JsonSchema(r#"{"type": "string", "format": "email", "maxLength": 200}"#.to_owned()),
            Grammar::JsonSchema(r#"{"type": "string", "format": "uri"}"#.to_owned()),
            Grammar::JsonSchema(r#"{"type": "string", "maxLength": 20000}"#.to_owned()),
        ] {
            for model in &models {
                let (bytes, of_token) = bytes(model, &grammar);
                println!("{bytes:>9} {of_token:>5} {}", format!("{grammar:?}").chars().take(60).collect::<String>());
                assert!(bytes < MOST_BYTES / 2 && of_token < TOKEN_BYTES, "{bytes}, {of_token}: {grammar:?}");
            }
        }
    }
}
