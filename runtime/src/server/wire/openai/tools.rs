//! Tools of a request: which there are, which may be called, and whether one must be.

use std::time::{Duration, Instant};

use serde_json::{Map, Value as Json, json};

use crate::engine::{EngineError, Grammar, grammar};
use crate::model::Model;
use crate::server::error::{Invalid, Problem};
use crate::server::json::{Fields, kind};
use crate::server::turn::{CallFormat, Calls, Tool};

/// Tools that a request may have.
const MOST_TOOLS: usize = 128;
/// Time that making their schemas ready may take.
const LONGEST: Duration = Duration::from_secs(1);
/// Bytes of a name.
const LONGEST_NAME: usize = 64;

/// What a request says of tools.
pub(super) struct Tools {
    /// As templates know them.
    pub(super) described: Vec<Json>,
    /// By place; true if calls are to be held to the schema.
    read: Vec<(String, Json, bool)>,
    choice: Choice,
    is_parallel: Option<bool>,
}

/// Which calls may come.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Choice {
    is_required: bool,
    /// One call, whatever else may come in parallel.
    is_named: bool,
    /// All, if there is no list; none, if it is empty.
    allowed: Option<Vec<String>>,
}

impl Tools {
    pub(super) fn read(fields: &mut Fields) -> Result<Self, Problem> {
        let list = match fields.take("tools") {
            None => Vec::new(),
            Some(Json::Array(list)) if list.is_empty() => {
                return Err(Invalid::of("tools", "is empty, expected a tool or more".to_owned()).into());
            }
            Some(Json::Array(list)) if list.len() <= MOST_TOOLS => list,
            Some(Json::Array(list)) => {
                let message = format!("has {} entries, expected at most {MOST_TOOLS}", list.len());
                return Err(Invalid::of("tools", message).into());
            }
            Some(other) => {
                return Err(Invalid::of("tools", format!("is {}, expected an array", kind(&other))).into());
            }
        };
        let mut tools = Self {
            described: Vec::with_capacity(list.len()),
            read: Vec::with_capacity(list.len()),
            choice: Choice { is_required: false, is_named: false, allowed: None },
            is_parallel: None,
        };
        for (place, tool) in list.into_iter().enumerate() {
            tools.push(Fields::of(format!("tools[{place}]"), tool)?)?;
        }
        // Without tools none is called whatever is said.
        let choice = fields.take("tool_choice").filter(|choice| choice != "none" || !tools.read.is_empty());
        tools.is_parallel = fields.flag("parallel_tool_calls")?;
        if tools.read.is_empty() {
            let given = [("tool_choice", choice.is_some()), ("parallel_tool_calls", tools.is_parallel.is_some())];
            return match given.into_iter().find(|(_, is_given)| *is_given) {
                Some((field, _)) => Err(Invalid::of(field, "needs tools".to_owned()).into()),
                None => Ok(tools),
            };
        }
        if let Some(choice) = choice {
            tools.choice = Choice::read(choice)?;
            tools.check_names()?;
        }
        Ok(tools)
    }

    fn push(&mut self, mut tool: Fields) -> Result<(), Problem> {
        expect_function(&mut tool, "type")?;
        let name = tool.name("function");
        let missing = || Invalid::of(&name, "is missing, expected an object with a name".to_owned());
        let mut function = Fields::of(name.clone(), tool.take("function").ok_or_else(missing)?)?;
        tool.finish()?;
        let name = name_of(&mut function)?;
        if self.read.iter().any(|(other, ..)| *other == name) {
            return Err(Invalid::of(&function.name("name"), format!("is {name:?}, as that of another tool")).into());
        }
        let description = function.string("description")?.unwrap_or_default();
        let is_strict = function.flag("strict")?.unwrap_or(false);
        let parameters = parameters(&mut function)?;
        function.finish()?;
        // Many templates fail on a tool without one of these.
        let described = json!({ "name": name, "description": description, "parameters": parameters });
        self.described.push(json!({ "type": "function", "function": described }));
        self.read.push((name, parameters, is_strict));
        Ok(())
    }

    /// A choice names tools that there are.
    fn check_names(&self) -> Result<(), Problem> {
        let known = |name: &String| self.read.iter().any(|(known, ..)| known == name);
        match self.choice.allowed.iter().flatten().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(Invalid::of("tool_choice", format!("names {name:?}, which is none of the tools")).into()),
        }
    }

    /// Whether some may be called.
    pub(super) fn may_be_called(&self) -> bool {
        !self.read.is_empty() && self.choice.allowed.as_ref().is_none_or(|allowed| !allowed.is_empty())
    }

    /// The calls that may come of a model that writes them in `format`.
    ///
    /// # Errors
    /// A schema that has to be enforced and can't be.
    pub(super) fn calls(&self, model: &Model, format: &'static CallFormat) -> Result<Option<Calls>, Problem> {
        if !self.may_be_called() {
            return Ok(None);
        }
        let is_required = self.choice.is_required;
        let is_allowed = |name: &String| self.choice.allowed.as_ref().is_none_or(|allowed| allowed.contains(name));
        let mut tools = Vec::new();
        let start = Instant::now();
        for (place, (name, parameters, is_strict)) in self.read.iter().enumerate() {
            if !is_allowed(name) {
                continue;
            }
            let schema = (is_required || *is_strict).then(|| parameters.to_string());
            if let Some(schema) = &schema {
                grammar::compile(model, &Grammar::JsonSchema(schema.clone()))
                    .map_err(|error| unsupported(place, error))?;
                if start.elapsed() > LONGEST {
                    let reason = format!("their schemas took more than {} s to be made ready", LONGEST.as_secs());
                    return Err(Invalid::schema("tools".to_owned(), reason).into());
                }
            }
            tools.push(Tool { name: name.clone(), schema });
        }
        let is_parallel = self.is_parallel.unwrap_or(true) && !self.choice.is_named;
        let is_strict = tools.iter().any(|tool| tool.schema.is_some());
        let is_enforced = is_required || is_strict || !is_parallel;
        Ok(Some(Calls { format, tools, is_required, is_parallel, is_enforced }))
    }
}

impl Choice {
    fn read(choice: Json) -> Result<Self, Problem> {
        let all = |is_required| Ok(Self { is_required, is_named: false, allowed: None });
        let expected = "expected \"none\", \"auto\", \"required\" or an object that names a function";
        let mut choice = match choice {
            Json::String(word) => {
                return match word.as_str() {
                    "none" => Ok(Self { is_required: false, is_named: false, allowed: Some(Vec::new()) }),
                    "auto" => all(false),
                    "required" => all(true),
                    _ => Err(Invalid::of("tool_choice", format!("is {word:?}, {expected}")).into()),
                };
            }
            Json::Object(fields) => Fields::at("tool_choice".to_owned(), fields),
            other => return Err(Invalid::of("tool_choice", format!("is {}, {expected}", kind(&other))).into()),
        };
        let read = match choice.string("type")?.as_deref() {
            Some("function") => Self { is_required: true, is_named: true, allowed: Some(vec![named(&mut choice)?]) },
            Some("allowed_tools") => allowed(&mut choice)?,
            found => {
                let found = found.map_or("missing".to_owned(), |found| format!("{found:?}"));
                let message = format!("is {found}, expected \"function\" or \"allowed_tools\"");
                return Err(Invalid::of(&choice.name("type"), message).into());
            }
        };
        choice.finish()?;
        Ok(read)
    }
}

/// A tool's schema can't be enforced.
fn unsupported(place: usize, error: EngineError) -> Problem {
    match error {
        EngineError::Grammar { pointer, reason, .. } => {
            Invalid::schema(format!("tools[{place}].function.parameters{pointer}"), reason).into()
        }
        other => Problem::of_engine(&other),
    }
}

/// `{"mode": "auto", "tools": [...]}`: which of the tools may be called.
fn allowed(choice: &mut Fields) -> Result<Choice, Problem> {
    let name = choice.name("allowed_tools");
    let missing = || Invalid::of(&name, "is missing, expected an object with a mode and tools".to_owned());
    let mut allowed = Fields::of(name.clone(), choice.take("allowed_tools").ok_or_else(missing)?)?;
    let is_required = match allowed.string("mode")?.as_deref() {
        Some("auto") => false,
        Some("required") => true,
        found => {
            let found = found.map_or("missing".to_owned(), |found| format!("{found:?}"));
            let message = format!("is {found}, expected \"auto\" or \"required\"");
            return Err(Invalid::of(&allowed.name("mode"), message).into());
        }
    };
    let name = allowed.name("tools");
    let list = match allowed.take("tools") {
        Some(Json::Array(list)) if !list.is_empty() => list,
        found => {
            let found = found.as_ref().map_or("missing", kind);
            return Err(Invalid::of(&name, format!("is {found}, expected an array of a tool or more")).into());
        }
    };
    let mut names = Vec::with_capacity(list.len());
    for (place, tool) in list.into_iter().enumerate() {
        let mut tool = Fields::of(format!("{name}[{place}]"), tool)?;
        expect_function(&mut tool, "type")?;
        names.push(named(&mut tool)?);
        tool.finish()?;
    }
    allowed.finish()?;
    Ok(Choice { is_required, is_named: false, allowed: Some(names) })
}

/// The name in `{"function": {"name": ...}}`.
fn named(fields: &mut Fields) -> Result<String, Problem> {
    let name = fields.name("function");
    let missing = || Invalid::of(&name, "is missing, expected an object with a name".to_owned());
    let mut function = Fields::of(name.clone(), fields.take("function").ok_or_else(missing)?)?;
    let name = name_of(&mut function)?;
    function.finish()?;
    Ok(name)
}

/// Other kinds of tools are run by OpenAI's servers, or write no JSON.
pub(super) fn expect_function(fields: &mut Fields, field: &'static str) -> Result<(), Problem> {
    match fields.string(field)?.as_deref() {
        Some("function") => Ok(()),
        Some(other) => {
            let message = format!("is {other:?}, which is not supported, expected \"function\"");
            Err(Invalid::unsupported(&fields.name(field), message).into())
        }
        None => Err(Invalid::of(&fields.name(field), "is missing, expected \"function\"".to_owned()).into()),
    }
}

/// A name, of a function or a schema, that can stand in a call as it is.
pub(super) fn name_of(function: &mut Fields) -> Result<String, Problem> {
    let found = function.string("name")?;
    let is_name = |name: &String| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_plain)
    };
    let found_as = found.as_ref().map_or("missing".to_owned(), |name| format!("{name:?}"));
    let expected = format!("expected 1 to {LONGEST_NAME} letters, digits, _ or -");
    let refused = || Invalid::of(&function.name("name"), format!("is {found_as}, {expected}"));
    found.clone().filter(is_name).ok_or_else(|| refused().into())
}

/// The schema of the arguments, which are an object.
fn parameters(function: &mut Fields) -> Result<Json, Problem> {
    let name = function.name("parameters");
    let mut schema = match function.take("parameters") {
        None => Map::new(),
        Some(Json::Object(schema)) => schema,
        Some(other) => return Err(Invalid::of(&name, format!("is {}, expected a JSON schema", kind(&other))).into()),
    };
    match schema.get("type") {
        None => {
            schema.insert("type".to_owned(), "object".into());
        }
        Some(Json::String(kind)) if kind == "object" => {}
        Some(other) => {
            return Err(Invalid::of(&format!("{name}.type"), format!("is {other}, expected \"object\"")).into());
        }
    }
    schema.entry("properties").or_insert_with(|| json!({}));
    Ok(schema.into())
}
