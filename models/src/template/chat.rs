//! A chat template: compiled once, rendered for a conversation, encoded.

use std::collections::HashSet;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::{Map, Value as Json};

use super::error::{Raised, TemplateError};
use super::guard;
use super::python::{self, MARKER, NOT_ITERABLE, NoneValue};
use super::time::CivilTime;
use crate::gguf::Metadata;
use crate::tokenizer::Tokenizer;

/// Longest prompt a template may write.
pub(super) const MOST_OUTPUT_BYTES: usize = 16 << 20;

/// Steps of a template with no input; one more for each byte of input. A step is an instruction, or 64 bytes made.
const FUEL: u64 = 1_000_000;

/// How deep macros and blocks may nest.
const DEEPEST: usize = 64;

/// Most characters of a message that comes from a template, and most names of templates in one.
const MOST_MESSAGE: usize = 1000;
const MOST_NAMES: usize = 20;

const KEY: &str = "tokenizer.chat_template";
const NAME: &str = "chat";

/// What a template is given.
#[derive(Clone, Debug)]
pub struct RenderInput {
    /// The conversation: an array of objects with `role` and `content`, and whatever else the template knows.
    pub messages: Json,
    /// Functions the model may call, an array of their JSON descriptions; null for none.
    pub tools: Json,
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`; they come before all others.
    pub extra: Map<String, Json>,
    /// What `strftime_now` writes.
    pub now: CivilTime,
}

impl RenderInput {
    /// The conversation alone, to be answered now.
    pub fn new(messages: Json) -> Self {
        Self { messages, tools: Json::Null, add_generation_prompt: true, extra: Map::new(), now: CivilTime::now_utc() }
    }
}

/// A rendered conversation, with the places where no control token may lie because the text there came from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The whole text.
    pub text: String,
    /// Byte positions inside the text, in order: a control token must lie wholly between two of them.
    pub breaks: Vec<usize>,
}

impl Prompt {
    /// Its ids. Nothing is added.
    pub fn encode(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let starts = std::iter::once(0).chain(self.breaks.iter().copied());
        let ends = self.breaks.iter().copied().chain(std::iter::once(self.text.len()));
        let ranges: Vec<_> = starts.zip(ends).map(|(start, end)| start..end).collect();
        tokenizer.encode_trusting(&self.text, &ranges)
    }

    /// Its ids, with BOS there once if the model wants it, whether the template writes it or not.
    pub fn encode_with_bos(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids = self.encode(tokenizer);
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        if let Some(bos) = bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        ids
    }
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    writes_bos: bool,
    /// Names it reads and does not define itself.
    variables: HashSet<String>,
}

impl ChatTemplate {
    /// Compiles `source`. `bos` and `eos` are the texts of the model's tokens, empty if it has none.
    ///
    /// # Errors
    /// If it is no Jinja template; the message says on which line.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax { message: error.to_string() })?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(DEEPEST);
        environment.add_function("raise_exception", raise_exception);
        python::install(&mut environment);
        let syntax_error = |error: &minijinja::Error| TemplateError::Syntax { message: describe(error) };
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|error| syntax_error(&error))?;
        let variables: HashSet<String> =
            environment.get_template(NAME).map_err(|error| syntax_error(&error))?.undeclared_variables(false);
        let writes_bos = variables.contains("bos_token") || (!bos.is_empty() && source.contains(bos));
        let (source, bos, eos) = (source.to_owned(), bos.to_owned(), eos.to_owned());
        Ok(Self { environment, source, bos, eos, writes_bos, variables })
    }

    /// The template a file brings.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] if it brings none: then only raw text can be completed, or a template be given.
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let source = metadata.string(KEY)?;
        let missing = || TemplateError::Missing { file: metadata.file_name().to_owned() };
        Self::of_file(metadata, KEY, source.ok_or_else(missing)?, tokenizer)
    }

    /// The template `source` that stands under `key`.
    fn of_file(metadata: &Metadata, key: &str, source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        Self::for_tokenizer(source, tokenizer).map_err(|error| match error {
            TemplateError::Syntax { message } => TemplateError::Unusable { place: metadata.place(key), message },
            other => other,
        })
    }

    /// One of several templates of a file, such as `tool_use`.
    ///
    /// # Errors
    /// [`TemplateError::NoSuchTemplate`] with the names there are.
    pub fn named(metadata: &Metadata, name: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let key = format!("{KEY}.{name}");
        let Some(source) = metadata.string(&key)? else {
            let prefix = format!("{KEY}.");
            let names = metadata.iter().filter_map(|(key, _)| key.strip_prefix(&prefix));
            let names: Vec<&str> = names.take(MOST_NAMES).collect();
            return Err(TemplateError::NoSuchTemplate {
                file: metadata.file_name().to_owned(),
                wanted: name.to_owned(),
                available: if names.is_empty() {
                    "none with a name".to_owned()
                } else {
                    for_message(&names.join(", "))
                },
            });
        };
        Self::of_file(metadata, &key, source, tokenizer)
    }

    /// Compiles `source` for a model's BOS and EOS.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let text = |id: Option<u32>| id.map(|id| tokenizer.token_text(id)).unwrap_or_default();
        Self::new(source, &text(tokenizer.bos()), &text(tokenizer.eos()))
    }

    /// The template as the file has it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// True if the template writes BOS itself.
    pub fn writes_bos(&self) -> bool {
        self.writes_bos
    }

    /// True if the template reads a variable of this name, such as `tools` or `enable_thinking`.
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// The prompt as text.
    ///
    /// # Errors
    /// If the template refuses the conversation, fails on it, or goes beyond its bounds of work or size.
    pub fn render(&self, input: &RenderInput) -> Result<String, TemplateError> {
        self.run(input, &input.messages, &input.tools, None)
    }

    /// The prompt, with the places marked where text from the conversation must not be read as a control token.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn prompt(&self, tokenizer: &Tokenizer, input: &RenderInput) -> Result<Prompt, TemplateError> {
        let extra = Json::Object(input.extra.clone());
        let marker = guard::marker(&[&input.messages, &input.tools, &extra], &self.source)?;
        let mark = |value: &Json| guard::mark(value, tokenizer, marker);
        let marked = RenderInput {
            extra: match mark(&extra) {
                Json::Object(extra) => extra,
                _ => Map::new(),
            },
            messages: Json::Null,
            tools: Json::Null,
            ..*input
        };
        let text = self.run(&marked, &mark(&input.messages), &mark(&input.tools), Some(marker))?;
        let (text, breaks) = guard::unmark(&text, marker);
        Ok(Prompt { text, breaks })
    }

    /// Ids of the prompt: control tokens are found in the template's own text only, and BOS is there once if the model
    /// wants it, whether the template writes it or not.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn encode(&self, tokenizer: &Tokenizer, input: &RenderInput) -> Result<Vec<u32>, TemplateError> {
        Ok(self.prompt(tokenizer, input)?.encode_with_bos(tokenizer))
    }

    fn run(
        &self,
        input: &RenderInput,
        messages: &Json,
        tools: &Json,
        marker: Option<char>,
    ) -> Result<String, TemplateError> {
        let input_bytes = guard::size(&[messages, tools]) + self.source.len();
        let fuel = FUEL.saturating_add(input_bytes as u64);
        let mut variables: Vec<(String, Value)> = vec![
            ("messages".to_owned(), value_of(messages)),
            ("tools".to_owned(), or_none(tools)),
            ("documents".to_owned(), Value::from_object(NoneValue)),
            ("add_generation_prompt".to_owned(), Value::from(input.add_generation_prompt)),
            ("bos_token".to_owned(), Value::from(self.bos.as_str())),
            ("eos_token".to_owned(), Value::from(self.eos.as_str())),
        ];
        let now = input.now;
        let strftime = move |pattern: &str| now.format(pattern);
        variables.push(("strftime_now".to_owned(), Value::from_function(strftime)));
        variables.extend(input.extra.iter().map(|(name, value)| (name.clone(), or_none(value))));
        variables.extend(marker.map(|marker| (MARKER.to_owned(), Value::from(marker.to_string()))));

        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let failed = |error: &minijinja::Error| explain(error, fuel, input_bytes);
        let template = environment.get_template(NAME).map_err(|error| failed(&error))?;
        let mut sink = Sink { text: Vec::new(), is_full: false };
        let result = template.render_captured_to(Value::from_pairs(variables), &mut sink).map(drop);
        if sink.is_full {
            return Err(TemplateError::TooLong { most: MOST_OUTPUT_BYTES });
        }
        result.map_err(|error| failed(&error))?;
        String::from_utf8(sink.text).map_err(|_| TemplateError::Failed { message: "output is not UTF-8".to_owned() })
    }
}

/// A value, with Python's `None` for null.
fn or_none(value: &Json) -> Value {
    if value.is_null() { Value::from_object(NoneValue) } else { value_of(value) }
}

/// A JSON value as the engine's.
fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(fact) => Value::from(*fact),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value_of).collect::<Vec<_>>()),
        Json::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(key, value)| (Value::from(key.as_str()), value_of(value))))
        }
    }
}

/// Takes output up to the bound.
struct Sink {
    text: Vec<u8>,
    is_full: bool,
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > MOST_OUTPUT_BYTES {
            self.is_full = true;
            return Err(io::Error::other("output is full"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: &str) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned());
    Err(error.with_source(Raised(message.to_owned())))
}

/// The error and all it came from.
fn chain<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// What went wrong innermost, and on which line.
fn describe(error: &minijinja::Error) -> String {
    let innermost = chain(error).filter_map(|error| error.downcast_ref::<minijinja::Error>()).last().unwrap_or(error);
    let detail = innermost.detail().unwrap_or_default().replace(NOT_ITERABLE.0, NOT_ITERABLE.1);
    let line = innermost.line().or(error.line()).map(|line| format!("line {line}: ")).unwrap_or_default();
    let kind = innermost.kind();
    for_message(&if detail.is_empty() { format!("{line}{kind}") } else { format!("{line}{kind}: {detail}") })
}

fn explain(error: &minijinja::Error, fuel: u64, input_bytes: usize) -> TemplateError {
    if let Some(raised) = chain(error).find_map(|error| error.downcast_ref::<Raised>()) {
        return TemplateError::Refused { message: for_message(&raised.0) };
    }
    let kinds = chain(error).filter_map(|error| error.downcast_ref::<minijinja::Error>());
    if kinds.map(minijinja::Error::kind).any(|kind| kind == ErrorKind::OutOfFuel) {
        return TemplateError::TooMuchWork { fuel, input_bytes };
    }
    TemplateError::Failed { message: describe(error) }
}

/// A template's words, fit for people: of bounded length, and without characters that steer a terminal.
fn for_message(text: &str) -> String {
    let is_harmless = |c: char| !c.is_control() || c == '\n';
    let mut rest = text.chars();
    let mut message = String::new();
    for character in rest.by_ref().take(MOST_MESSAGE) {
        if is_harmless(character) {
            message.push(character);
        } else {
            message.extend(character.escape_default());
        }
    }
    if rest.next().is_some() {
        message.push_str("...");
    }
    message
}

/// `{% generation %}` marks what a model said, for training; here it changes nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        // The end's '%' is not the beginning's: "{%}" ends nothing.
        let Some((inner, _)) = tag.get(2..).and_then(|inner| inner.split_once("%}")) else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(inner.len() + 4);
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
