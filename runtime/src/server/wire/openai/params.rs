//! Fields that chat completions and completions share, with their ranges, and requests made of them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;

use super::answer::Style;
use super::hints::Hints;
use super::sampling;
use crate::engine::{GenerateOptions, Grammar, MOST_CHOICES, Priority, Request, Speculate};
use crate::server::catalogue::Hosted;
use crate::server::error::{Invalid, Problem};
use crate::server::guard::Visit;
use crate::server::json::{Fields, kind};
use crate::server::turn::Turn;

use super::tools::name_of;

/// Stop strings that a request may have.
const MOST_STOPS: usize = 16;
/// Bytes that one of them may have.
const LONGEST_STOP: usize = 1024;
/// Bytes of a grammar.
const LONGEST_GRAMMAR: usize = 64 << 10;

/// What a request asks for, but for its prompt.
pub(super) struct Asked {
    pub(super) is_stream: bool,
    pub(super) stream: StreamOptions,
    pub(super) n: usize,
    pub(super) options: GenerateOptions,
    /// What the answers may hold.
    pub(super) turn: Arc<Turn>,
    /// Stop strings of the answer beside calls. Without calls they are the engine's.
    pub(super) stops_of_answer: Vec<String>,
    /// What is to blame if the grammar of the turn, which was put together here, can't be enforced.
    composed: Option<&'static str>,
    pub(super) terms: Terms,
    pub(super) hints: Hints,
    /// What the client called the number of tokens.
    max_tokens_param: &'static str,
}

/// What a stream tells beside the answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StreamOptions {
    /// Counts of tokens at the end.
    pub(super) has_usage: bool,
    /// Random text with each part, so that its size tells nothing of what it says.
    pub(super) is_obfuscated: bool,
}

/// How a request is served among others, whatever it asks for: fields beside the protocol.
pub(super) struct Terms {
    priority: Priority,
    deadline: Option<Duration>,
    supersede: Option<String>,
    pub(super) reproducible: bool,
    /// Neither uses what is cached nor leaves anything there for others.
    is_uncached: bool,
}

impl Terms {
    pub(super) fn read(fields: &mut Fields) -> Result<Self, Problem> {
        let priority = match fields.string("priority")? {
            None => Priority::default(),
            Some(name) => Priority::ALL.into_iter().find(|lane| lane.name() == name).ok_or_else(|| {
                Invalid::of("priority", format!("is {name:?}, expected \"low\", \"normal\" or \"high\""))
            })?,
        };
        let deadline = fields.whole("deadline_ms", 1, i64::MAX)?;
        let supersede = fields.string("supersede_key")?;
        if supersede.as_ref().is_some_and(String::is_empty) {
            return Err(Invalid::of("supersede_key", "is empty, expected a character or more").into());
        }
        let reproducible = fields.flag("reproducible")?.unwrap_or(false);
        let is_uncached = !fields.flag("cache_prompt")?.unwrap_or(true);
        let deadline = deadline.map(|ms| Duration::from_millis(ms.unsigned_abs()));
        Ok(Self { priority, deadline, supersede, reproducible, is_uncached })
    }

    /// `request` on these terms.
    pub(super) fn on(&self, request: Request, visit: &Visit) -> Request {
        Request {
            priority: self.priority,
            deadline: self.deadline,
            caller: visit.caller.id().to_owned(),
            // Alone: a scope that no other request has.
            prefix_scope: if self.is_uncached { format!("{} alone", visit.id) } else { visit.prefix_scope.to_string() },
            supersede: self.supersede.clone(),
            reproducible: self.reproducible,
            ..request
        }
    }
}

impl Asked {
    pub(super) fn read(fields: &mut Fields, hosted: &Hosted) -> Result<Self, Problem> {
        let is_stream = fields.flag("stream")?.unwrap_or(false);
        let stream = stream_options(fields, is_stream)?;
        let n = fields.count("n", 1, MOST_CHOICES as i64)?.unwrap_or(1);
        let max_tokens_param = ["max_completion_tokens", "max_tokens"].into_iter().find(|name| fields.is_given(name));
        let wanted_guesses = speculate(fields, hosted)?;
        let options = GenerateOptions {
            sampling: sampling::read(fields, &hosted.sampling)?,
            max_tokens: max_tokens(fields)?,
            stop: stops(fields)?,
            grammar: form(fields)?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            speculate: wanted_guesses.unwrap_or(hosted.speculate),
            ..GenerateOptions::default()
        };
        if options.ignore_eos && options.grammar.is_some() {
            return Err(Invalid::of("ignore_eos", "is true, but a text with a form has to end").into());
        }
        let terms = Terms::read(fields)?;
        if terms.reproducible && wanted_guesses.is_some_and(|wanted| wanted != Speculate::Off) {
            let message = "asks for guesses ahead, which a reproducible request makes none of, expected \"off\"";
            return Err(Invalid::of("speculate", message).into());
        }
        let hints = Hints::read(fields)?;
        let (turn, stops_of_answer) = (Arc::default(), Vec::new());
        let max_tokens_param = max_tokens_param.unwrap_or("max_completion_tokens");
        let composed = None;
        Ok(Self { is_stream, stream, n, options, turn, stops_of_answer, composed, terms, hints, max_tokens_param })
    }

    /// The answers are turns of this kind: marked where they have parts, and held to it where they must be.
    pub(super) fn expect(&mut self, mut turn: Turn, hosted: &Hosted) -> Result<(), Problem> {
        let tokenizer = hosted.engine.model().tokenizer();
        if let (Some(calls), Some(form)) = (&mut turn.calls, &self.options.grammar) {
            if calls.is_required {
                let message = "is the form of an answer, but tool_choice leaves room for calls only";
                return Err(Invalid::of(field(form), message).into());
            }
            // Where the answer has a form a call must be told from it.
            calls.is_enforced = true;
        }
        if self.options.ignore_eos && turn.calls.as_ref().is_some_and(|calls| calls.is_enforced) {
            return Err(Invalid::of("ignore_eos", "is true, but calls that are held to a form have to end").into());
        }
        if turn.calls.is_some() {
            // They end the answer, and never a call: what reads the turn looks for them.
            self.stops_of_answer = std::mem::take(&mut self.options.stop);
        }
        let form = self.options.grammar.take();
        let of_form = form.as_ref().map(field);
        let grammar = turn.grammar(form.clone(), tokenizer).map_err(|error| Problem::of_engine(&error))?;
        self.composed =
            (grammar != form).then(|| if turn.calls.is_some() { "tools" } else { of_form.unwrap_or("tools") });
        self.options.grammar = grammar;
        self.options.render_special = turn.has_control_marks(tokenizer);
        self.turn = Arc::new(turn);
        Ok(())
    }

    /// A problem with a grammar that was put together here is one with what it was put together of.
    pub(super) fn blame(&self, problem: Problem) -> Problem {
        match problem {
            Problem::Invalid(invalid) if self.composed.is_some() && invalid.param.as_deref() == Some("grammar") => {
                let param = self.composed.unwrap_or("tools").to_owned();
                Invalid::schema(
                    param,
                    "it can't be enforced with the rest of the model's turn, or is too large with it",
                )
                .into()
            }
            other => other,
        }
    }

    /// Whether tokens are told with their log-probabilities.
    pub(super) fn tells_tokens(&self) -> bool {
        self.options.sampling.logprobs.is_some()
    }

    /// What the engine is asked for with each prompt.
    pub(super) fn request(&self, visit: &Visit) -> Request {
        self.terms.on(Request { n: self.n, ..Request::new(Vec::new(), self.options.clone()) }, visit)
    }

    /// Refuses prompts that the context does not hold, with what is to come of them.
    pub(super) fn check_lengths(&self, prompts: &[Vec<u32>], hosted: &Hosted, style: &Style) -> Result<(), Problem> {
        let (context_tokens, max_tokens) = (hosted.engine.context(), self.options.max_tokens);
        for prompt_tokens in prompts.iter().map(Vec::len) {
            if prompt_tokens.saturating_add(max_tokens.unwrap_or(0)) > context_tokens {
                let is_alone = prompt_tokens > context_tokens || max_tokens.is_none();
                let param = if is_alone { style.prompt_param } else { self.max_tokens_param };
                let is_least = false;
                return Err(Problem::ContextLength { param, prompt_tokens, is_least, max_tokens, context_tokens });
            }
        }
        Ok(())
    }
}

/// Refuses a text that has too many bytes for the context whatever its tokens are: to find them takes time.
pub(super) fn check_length(param: &'static str, n_bytes: usize, hosted: &Hosted) -> Result<(), Problem> {
    let (prompt_tokens, context_tokens) = (hosted.least_tokens(n_bytes), hosted.engine.context());
    if prompt_tokens <= context_tokens {
        return Ok(());
    }
    Err(Problem::ContextLength { param, prompt_tokens, is_least: true, max_tokens: None, context_tokens })
}

fn stream_options(fields: &mut Fields, is_stream: bool) -> Result<StreamOptions, Problem> {
    let Some(options) = fields.take("stream_options") else { return Ok(StreamOptions::default()) };
    let mut options = Fields::of("stream_options".to_owned(), options)?;
    let has_usage = options.flag("include_usage")?.unwrap_or(false);
    let is_obfuscated = options.flag("include_obfuscation")?.unwrap_or(false);
    options.finish()?;
    if !is_stream {
        return Err(Invalid::of("stream_options", "is only allowed with \"stream\": true".to_owned()).into());
    }
    Ok(StreamOptions { has_usage, is_obfuscated })
}

/// The field that asks for a form.
fn field(form: &Grammar) -> &'static str {
    match form {
        Grammar::JsonSchema(_) | Grammar::JsonObject => "response_format",
        Grammar::Regex(_) => "regex",
        Grammar::Lark(_) => "grammar",
    }
}

/// The form that the text must have: `response_format`, or `regex` or `grammar`, which are not of the protocol.
fn form(fields: &mut Fields) -> Result<Option<Grammar>, Problem> {
    let format = match fields.take("response_format") {
        None => None,
        Some(format) => response_format(Fields::of("response_format".to_owned(), format)?)?,
    };
    let regex = fields.string("regex")?.map(Grammar::Regex);
    let lark = fields.string("grammar")?;
    if let Some(lark) = lark.as_ref().filter(|lark| lark.len() > LONGEST_GRAMMAR) {
        let message = format!("it has {} bytes, expected at most {LONGEST_GRAMMAR}", lark.len());
        return Err(Invalid::schema("grammar".to_owned(), message).into());
    }
    let lark = lark.map(Grammar::Lark);
    let mut forms = [format, regex, lark].into_iter().flatten();
    match (forms.next(), forms.next()) {
        (_, Some(second)) => {
            let message = "is one form more than a text can have, expected one of response_format, regex, grammar";
            Err(Invalid::of(second.name(), message.to_owned()).into())
        }
        (first, None) => Ok(first),
    }
}

fn response_format(mut format: Fields) -> Result<Option<Grammar>, Problem> {
    let grammar = match format.string("type")?.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(Grammar::JsonObject),
        Some("json_schema") => {
            let name = format.name("json_schema");
            let missing = || Invalid::of(&name, "is missing, expected an object with a schema".to_owned());
            let mut wrapped = Fields::of(name.clone(), format.take("json_schema").ok_or_else(missing)?)?;
            // A schema is enforced whether or not it is asked to be strict; what can't be is refused.
            wrapped.flag("strict")?;
            name_of(&mut wrapped)?;
            wrapped.string("description")?;
            let name = wrapped.name("schema");
            let schema = wrapped.take("schema");
            wrapped.finish()?;
            let missing = || Invalid::of(&name, "is missing, expected a JSON schema".to_owned());
            Some(Grammar::JsonSchema(schema.ok_or_else(missing)?.to_string()))
        }
        found => {
            let found = found.map_or("missing".to_owned(), |found| format!("{found:?}"));
            let message = format!("is {found}, expected \"text\", \"json_object\" or \"json_schema\"");
            return Err(Invalid::of(&format.name("type"), message).into());
        }
    };
    format.finish()?;
    Ok(grammar)
}

fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, Problem> {
    let new = fields.count("max_completion_tokens", 1, i64::MAX)?;
    let old = fields.count("max_tokens", 1, i64::MAX)?;
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            Err(Invalid::of("max_tokens", format!("is {old}, max_completion_tokens is {new}, expected the same"))
                .into())
        }
        _ => Ok(new.or(old)),
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Problem> {
    let refuse = |param: &str, message: String| Err(Invalid::of(param, message).into());
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Json::String(stop)) => vec![Json::String(stop)],
        Some(Json::Array(list)) if list.len() <= MOST_STOPS => list,
        Some(Json::Array(list)) => {
            return refuse("stop", format!("has {} entries, expected at most {MOST_STOPS}", list.len()));
        }
        Some(other) => return refuse("stop", format!("is {}, expected a string or an array of them", kind(&other))),
    };
    let mut stops = Vec::with_capacity(list.len());
    for (place, stop) in list.into_iter().enumerate() {
        match stop {
            Json::String(stop) if stop.len() > LONGEST_STOP => {
                let found = stop.len();
                return refuse("stop", format!("has {found} bytes in entry {place}, expected at most {LONGEST_STOP}"));
            }
            Json::String(stop) if !stop.is_empty() => stops.push(stop),
            Json::String(_) => {
                return refuse("stop", format!("has an empty entry {place}, expected a character or more"));
            }
            other => return refuse("stop", format!("has {} as entry {place}, expected a string", kind(&other))),
        }
    }
    Ok(stops)
}

/// How tokens are guessed ahead.
fn speculate(fields: &mut Fields, hosted: &Hosted) -> Result<Option<Speculate>, Problem> {
    let has_draft_model = hosted.engine.has_draft_model();
    Ok(match fields.string("speculate")?.as_deref() {
        None => None,
        Some("off") => Some(Speculate::Off),
        Some("lookup") => Some(Speculate::lookup()),
        Some("draft") if has_draft_model => Some(Speculate::draft()),
        Some(other) => {
            let (why, draft) = match (other, has_draft_model) {
                ("draft", _) => (", but the model has no draft model", ""),
                (_, true) => ("", ", \"draft\""),
                (_, false) => ("", ""),
            };
            let message = format!("is {other:?}{why}, expected \"off\", \"lookup\"{draft}");
            return Err(Invalid::of("speculate", message).into());
        }
    })
}
