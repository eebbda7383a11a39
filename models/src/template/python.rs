//! What chat templates expect of Python: methods of strings, lists and dictionaries, `None` that can't be iterated,
//! `tojson`, and the tests whose meaning differs.

use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};

use super::json::{self, Style};

/// Python's `None`. The engine's own can be iterated.
#[derive(Debug)]
pub(super) struct NoneValue;

impl Object for NoneValue {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }

    fn is_true(self: &Arc<Self>) -> bool {
        false
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("None")
    }
}

/// What the engine says when [`NoneValue`] is iterated, and what Python says.
pub(super) const NOT_ITERABLE: (&str, &str) = ("plain object is not iterable", "'NoneType' object is not iterable");

/// Name of the variable that holds the marker; no template can spell it.
pub(super) const MARKER: &str = "\0marker";

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Makes `environment` behave like Python's.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, _, value| {
        out.write_str(&json::to_text(value)?).map_err(|_| Error::new(ErrorKind::WriteFailure, "output is full"))
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| json::to_text(value));
    environment.add_test("none", |value: &Value| json::is_none(value));
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_iterable);
}

/// Strings and dictionaries too, as in Python.
fn is_iterable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

#[expect(clippy::needless_pass_by_value, reason = "the engine passes options by value")]
fn tojson(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorts_keys: Option<bool> = options.get("sort_keys")?;
    let escapes_non_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let indent = indent.filter(|indent| !json::is_none(indent));
    let indent = match indent {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width @ 0..=64)) => " ".repeat(width as usize),
            _ => return Err(wrong("tojson: indent is neither a text nor a number from 0 to 64")),
        }),
    };
    let default = || (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    let (item_separator, key_separator) = match separators.as_deref() {
        None => default(),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(wrong("tojson: separators are not two texts")),
    };
    let style = Style {
        indent,
        item_separator,
        key_separator,
        sorts_keys: sorts_keys.unwrap_or(false),
        escapes_non_ascii: escapes_non_ascii.unwrap_or(false),
        marker: state.lookup(MARKER).and_then(|marker| marker.as_str()?.chars().next()),
    };
    json::dumps(value, &style)
}

fn method(_: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => of_string(value.as_str().unwrap_or_default(), name, args),
        ValueKind::Map => of_map(value, name, args),
        ValueKind::Seq | ValueKind::Iterable => of_list(value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// One text, or one of several.
fn any_of(options: &Value, matches: impl Fn(&str) -> bool) -> Result<bool, Error> {
    if let Some(text) = options.as_str() {
        return Ok(matches(text));
    }
    if !matches!(options.kind(), ValueKind::Seq) {
        return Err(wrong("a text or several were expected"));
    }
    Ok(options.try_iter()?.any(|option| option.as_str().is_some_and(&matches)))
}

/// Python's `isspace`.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1C'..='\x1F')
}

fn strip(text: &str, args: &[Value], left: bool, right: bool) -> Result<Value, Error> {
    let (set,): (Option<Value>,) = from_args(args)?;
    let set = set.filter(|set| !json::is_none(set));
    let set = set.as_ref().map(|set| set.as_str().ok_or_else(|| wrong("strip: a text was expected"))).transpose()?;
    let drops = |c: char| set.map_or(is_space(c), |set| set.contains(c));
    let mut rest = text;
    if left {
        rest = rest.trim_start_matches(drops);
    }
    if right {
        rest = rest.trim_end_matches(drops);
    }
    Ok(Value::from(rest))
}

fn texts(parts: &[&str]) -> Value {
    Value::from(parts.iter().map(|&part| Value::from(part)).collect::<Vec<_>>())
}

fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, options): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(options.get("sep")?).filter(|separator| !json::is_none(separator));
    let most = most.or(options.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    options.assert_all_used()?;
    let parts = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let Some(separator) = separator else {
        let mut words = Vec::new();
        // Space at the far end belongs to the last word if the words were counted out.
        let mut rest = if from_right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
        while !rest.is_empty() {
            let at = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
            let Some(at) = at.filter(|_| words.len() + 1 < parts) else {
                words.push(rest);
                break;
            };
            if from_right {
                words.push(rest[at..].trim_start_matches(is_space));
                rest = rest[..at].trim_end_matches(is_space);
            } else {
                words.push(&rest[..at]);
                rest = rest[at..].trim_start_matches(is_space);
            }
        }
        if from_right {
            words.reverse();
        }
        return Ok(texts(&words));
    };
    let separator = separator.as_str().ok_or_else(|| wrong("split: the separator is not a text"))?;
    if separator.is_empty() {
        return Err(wrong("split: empty separator"));
    }
    let pieces: Vec<&str> = if from_right {
        let mut pieces: Vec<&str> = text.rsplitn(parts, separator).collect();
        pieces.reverse();
        pieces
    } else {
        text.splitn(parts, separator).collect()
    };
    Ok(texts(&pieces))
}

/// A character index, as Python counts, of a byte position.
fn char_index(text: &str, byte: Option<usize>) -> Value {
    byte.map_or(Value::from(-1), |byte| Value::from(text.get(..byte).map_or(0, |before| before.chars().count())))
}

fn of_string(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let none = || from_args::<()>(args);
    Ok(match name {
        "strip" => strip(text, args, true, true)?,
        "lstrip" => strip(text, args, true, false)?,
        "rstrip" => strip(text, args, false, true)?,
        "split" => split(text, args, false)?,
        "rsplit" => split(text, args, true)?,
        "splitlines" => {
            none()?;
            let lines = text.replace("\r\n", "\n").replace('\r', "\n");
            texts(&lines.lines().collect::<Vec<_>>())
        }
        "startswith" => {
            let (options,): (Value,) = from_args(args)?;
            Value::from(any_of(&options, |option| text.starts_with(option))?)
        }
        "endswith" => {
            let (options,): (Value,) = from_args(args)?;
            Value::from(any_of(&options, |option| text.ends_with(option))?)
        }
        "replace" => {
            let (from, to, most): (&str, &str, Option<i64>) = from_args(args)?;
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            let places = if from.is_empty() { text.len() + 1 } else { text.len() / from.len() };
            if places.min(most).saturating_mul(to.len()) > super::chat::MOST_OUTPUT_BYTES {
                return Err(wrong("replace: the result is too long"));
            }
            Value::from(text.replacen(from, to, most))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "upper" => none().map(|()| Value::from(text.to_uppercase()))?,
        "lower" => none().map(|()| Value::from(text.to_lowercase()))?,
        "casefold" => none().map(|()| Value::from(text.to_lowercase()))?,
        "capitalize" => {
            none()?;
            let mut rest = text.chars();
            let first = rest.next().map(|c| c.to_uppercase().collect::<String>()).unwrap_or_default();
            Value::from(first + &rest.as_str().to_lowercase())
        }
        "title" => {
            none()?;
            let mut after_letter = false;
            let mut out = String::with_capacity(text.len());
            for c in text.chars() {
                if std::mem::replace(&mut after_letter, c.is_alphabetic()) {
                    out.extend(c.to_lowercase());
                } else {
                    out.extend(c.to_uppercase());
                }
            }
            Value::from(out)
        }
        "find" => {
            let (needle,): (&str,) = from_args(args)?;
            char_index(text, text.find(needle))
        }
        "rfind" => {
            let (needle,): (&str,) = from_args(args)?;
            char_index(text, text.rfind(needle))
        }
        "index" => {
            let (needle,): (&str,) = from_args(args)?;
            char_index(text, Some(text.find(needle).ok_or_else(|| wrong("substring not found"))?))
        }
        "count" => {
            let (needle,): (&str,) = from_args(args)?;
            Value::from(if needle.is_empty() { text.chars().count() + 1 } else { text.matches(needle).count() })
        }
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            let mut out = String::new();
            for (at, item) in items.try_iter()?.enumerate() {
                if at > 0 {
                    out.push_str(text);
                }
                out.push_str(item.as_str().ok_or_else(|| wrong("join: an item is not a text"))?);
                if out.len() > super::chat::MOST_OUTPUT_BYTES {
                    return Err(wrong("join: the result is too long"));
                }
            }
            Value::from(out)
        }
        "isdigit" | "isdecimal" | "isnumeric" => {
            none().map(|()| Value::from(!text.is_empty() && text.chars().all(char::is_numeric)))?
        }
        "isalpha" => none().map(|()| Value::from(!text.is_empty() && text.chars().all(char::is_alphabetic)))?,
        "isalnum" => none().map(|()| Value::from(!text.is_empty() && text.chars().all(char::is_alphanumeric)))?,
        "isspace" => none().map(|()| Value::from(!text.is_empty() && text.chars().all(is_space)))?,
        "isupper" => none().map(|()| Value::from(text != text.to_lowercase() && text == text.to_uppercase()))?,
        "islower" => none().map(|()| Value::from(text != text.to_uppercase() && text == text.to_lowercase()))?,
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn of_map(map: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let pairs = || -> Result<Vec<(Value, Value)>, Error> {
        map.try_iter()?.map(|key| map.get_item(&key).map(|value| (key, value))).collect()
    };
    Ok(match name {
        "items" => {
            from_args::<()>(args)?;
            Value::from(pairs()?.into_iter().map(|(key, value)| Value::from(vec![key, value])).collect::<Vec<_>>())
        }
        "keys" => {
            from_args::<()>(args)?;
            Value::from(map.try_iter()?.collect::<Vec<_>>())
        }
        "values" => {
            from_args::<()>(args)?;
            Value::from(pairs()?.into_iter().map(|(_, value)| value).collect::<Vec<_>>())
        }
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = map.get_item(&key)?;
            if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found }
        }
        "copy" => from_args::<()>(args).map(|()| map.clone())?,
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn of_list(list: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match name {
        "count" => {
            let (wanted,): (Value,) = from_args(args)?;
            Value::from(list.try_iter()?.filter(|item| *item == wanted).count())
        }
        "index" => {
            let (wanted,): (Value,) = from_args(args)?;
            let at = list.try_iter()?.position(|item| item == wanted);
            Value::from(at.ok_or_else(|| wrong("the value is not in the list"))?)
        }
        "copy" => from_args::<()>(args).map(|()| list.clone())?,
        "append" | "extend" | "insert" | "pop" => {
            let _: Rest<Value> = from_args::<(Rest<Value>,)>(args)?.0;
            return Err(wrong(format!("lists can't be changed, so there is no '{name}'")));
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}
