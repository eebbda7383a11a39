//! JSON as requests must be written: an object with each key once, not too deep; and a reader of its fields that leaves
//! none unread, so that no field is accepted and ignored.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value as Json};

use super::error::{Invalid, Problem};
pub(super) use crate::kind::kind;

/// Arrays and objects within one another.
const DEEPEST: usize = 64;

/// The object that a request's body is.
///
/// # Errors
/// What is wrong with the text, with line and column.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Json>, Problem> {
    object_of("the body", body)
}

/// The object that a file is.
///
/// # Errors
/// As [`object`].
pub(super) fn object_of_file(bytes: &[u8]) -> Result<Map<String, Json>, Problem> {
    object_of("the file", bytes)
}

fn object_of(what: &str, body: &[u8]) -> Result<Map<String, Json>, Problem> {
    // Some clients write a byte order mark.
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    let wrong = |error: serde_json::Error| Invalid::body(format!("{what} is not valid JSON: {error}"));
    let mut reader = serde_json::Deserializer::from_slice(body);
    let json = Strict { depth: 0 }.deserialize(&mut reader).map_err(wrong)?;
    reader.end().map_err(wrong)?;
    match json {
        Json::Object(fields) => Ok(fields),
        other => Err(Invalid::body(format!("{what} is {}, expected a JSON object", kind(&other))).into()),
    }
}

/// Any JSON value, but no key twice and no deeper than [`DEEPEST`].
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.depth < DEEPEST {
            true => Ok(Self { depth: self.depth + 1 }),
            false => Err(E::custom(format_args!("arrays and objects nest deeper than {DEEPEST}"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let item = self.deeper()?;
        let mut array = Vec::new();
        while let Some(value) = items.next_element_seed(item)? {
            array.push(value);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let item = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("key {key:?} is there twice")));
            }
            let value = entries.next_value_seed(item)?;
            object.insert(key, value);
        }
        Ok(Json::Object(object))
    }
}

/// The fields of an object. Each is taken once; what is left at the end is refused. Null is the same as not given.
#[derive(Debug)]
pub(super) struct Fields {
    /// Of the object in the request, such as `messages[2]`; empty for the request itself.
    path: String,
    fields: Map<String, Json>,
    /// All that were asked for, to suggest one where a name is wrong.
    known: Vec<&'static str>,
}

impl Fields {
    /// Those of the request itself.
    pub(super) fn new(fields: Map<String, Json>) -> Self {
        Self::at(String::new(), fields)
    }

    /// Those of an object in it.
    pub(super) fn at(path: String, fields: Map<String, Json>) -> Self {
        Self { path, fields, known: Vec::new() }
    }

    /// Those of `json`, which must be an object.
    pub(super) fn of(path: String, json: Json) -> Result<Self, Problem> {
        match json {
            Json::Object(fields) => Ok(Self::at(path, fields)),
            other => Err(Invalid::of(&path, format!("is {}, expected an object", kind(&other))).into()),
        }
    }

    /// The whole name of a field.
    pub(super) fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// A field, whatever it is.
    pub(super) fn take(&mut self, field: &'static str) -> Option<Json> {
        self.known.push(field);
        self.fields.shift_remove(field).filter(|value| !value.is_null())
    }

    /// Whether a field is there, without taking it.
    pub(super) fn is_given(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(|value| !value.is_null())
    }

    /// Whether a field is there and true, without taking it.
    pub(super) fn is_true(&self, field: &str) -> bool {
        self.fields.get(field) == Some(&Json::Bool(true))
    }

    fn refuse<T>(&self, field: &str, message: String) -> Result<T, Problem> {
        Err(Invalid::of(&self.name(field), message).into())
    }

    pub(super) fn string(&mut self, field: &'static str) -> Result<Option<String>, Problem> {
        match self.take(field) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(other) => self.refuse(field, format!("is {}, expected a string", kind(&other))),
        }
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Result<Option<bool>, Problem> {
        match self.take(field) {
            None => Ok(None),
            Some(Json::Bool(fact)) => Ok(Some(fact)),
            Some(other) => self.refuse(field, format!("is {}, expected true or false", kind(&other))),
        }
    }

    /// A whole number of a range. `expected` says which.
    pub(super) fn whole(&mut self, field: &'static str, least: i64, most: i64) -> Result<Option<i64>, Problem> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_i64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                // Where there is no other bound, that of 64 bits is told to who comes to it.
                let is_huge = value.as_f64().is_some_and(|number| number >= i64::MAX as f64);
                let range = match (least, most) {
                    (least, i64::MAX) if !is_huge && least > i64::MIN => format!("{least} or more"),
                    (least, most) => format!("{least} to {most}"),
                };
                let found = if value.is_number() { value.to_string() } else { kind(&value).to_owned() };
                self.refuse(field, format!("is {found}, expected a whole number, {range}"))
            }
        }
    }

    /// A whole number of a range, as a count.
    pub(super) fn count(&mut self, field: &'static str, least: i64, most: i64) -> Result<Option<usize>, Problem> {
        Ok(self.whole(field, least, most)?.and_then(|number| usize::try_from(number).ok()))
    }

    /// A number within a range, as its bounds say.
    pub(super) fn number(&mut self, field: &'static str, range: Range) -> Result<Option<f32>, Problem> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_f64().filter(|number| range.holds(*number)) {
            Some(number) => Ok(Some(number as f32)),
            None => {
                let found = if value.is_number() { value.to_string() } else { kind(&value).to_owned() };
                self.refuse(field, format!("is {found}, expected a number, {range}"))
            }
        }
    }

    /// Fields that are part of the protocol and that nothing here does, with what to say of them.
    pub(super) fn refuse_unsupported(&mut self, fields: &[(&'static str, &str)]) -> Result<(), Problem> {
        match fields.iter().find(|(field, _)| self.take(field).is_some()) {
            None => Ok(()),
            Some((field, message)) => Err(Invalid::unsupported(&self.name(field), (*message).to_owned()).into()),
        }
    }

    /// Refuses what was not taken.
    pub(super) fn finish(self) -> Result<(), Problem> {
        // Null is the same as not given, even where nobody knows the name.
        let Some((field, _)) = self.fields.iter().find(|(_, value)| !value.is_null()) else { return Ok(()) };
        let distance = |known: &&&'static str| edits(field, known);
        // Most of the name must be there: any letter is one edit from any other.
        let most = (1 + field.len() / 4).min(field.len() / 2);
        let nearest = self.known.iter().min_by_key(distance).filter(|known| edits(field, known) <= most);
        let hint = nearest.map(|known| format!(", did you mean {known}?")).unwrap_or_default();
        Err(Invalid::unknown(&self.name(field), format!("is no field that is known here{hint}")).into())
    }
}

/// What a number must be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Range {
    /// Both bounds belong to it.
    Within(f64, f64),
    /// The lower bound does not belong to it.
    Above(f64, f64),
}

impl Range {
    fn holds(self, number: f64) -> bool {
        match self {
            Self::Within(least, most) => (least..=most).contains(&number),
            Self::Above(least, most) => number > least && number <= most,
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Within(least, most) => write!(f, "{least} to {most}"),
            Self::Above(least, most) => write!(f, "above {least}, up to {most}"),
        }
    }
}

/// Insertions, deletions and replacements between two names (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // Names are short; whoever sends a long one need not be understood.
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()] + a.chars().count().saturating_sub(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> String {
        object(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn objects_are_read_as_they_are() {
        let fields = object(b"\xEF\xBB\xBF {\"a\": [1, -2, 2.5, \"x\", null, true], \"b\": {}}\n").unwrap();
        assert_eq!(Json::Object(fields).to_string(), r#"{"a":[1,-2,2.5,"x",null,true],"b":{}}"#);
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_place() {
        assert_eq!(message("[]"), "the body is an array, expected a JSON object");
        assert!(message("{\"a\": 1,\n \"a\": 2}").contains("key \"a\" is there twice at line 2 column 4"));
        assert!(message("{\"a\": 1e999}").contains("number out of range at line 1"));
        assert!(message("{} x").contains("trailing characters at line 1 column 4"));
        assert!(message("{\"a\": \"\u{1}\"}").contains("line 1"));
        assert!(object(b"{\"a\": \"\xFF\"}").is_err());
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(63).as_bytes()).is_ok());
        assert!(message(&nested(64)).contains("nest deeper than 64"));
    }

    fn fields(body: &str) -> Fields {
        Fields::new(object(body.as_bytes()).unwrap())
    }

    #[test]
    fn fields_are_of_a_type_and_a_range() {
        let mut read = fields(r#"{"a": 1, "b": "x", "c": true, "d": 0.5, "e": null}"#);
        assert_eq!(read.whole("a", 0, 2).unwrap(), Some(1));
        assert_eq!(read.string("b").unwrap().as_deref(), Some("x"));
        assert_eq!(read.flag("c").unwrap(), Some(true));
        assert_eq!(read.number("d", Range::Above(0.0, 1.0)).unwrap(), Some(0.5));
        assert_eq!(read.string("e").unwrap(), None);
        read.finish().unwrap();
        let refused = |body: &str| fields(body).whole("a", 1, 4).unwrap_err().to_string();
        assert_eq!(refused(r#"{"a": 5}"#), "a is 5, expected a whole number, 1 to 4");
        let refused_up = |n: &str, least: i64| {
            fields(&format!("{{\"a\": {n}}}")).whole("a", least, i64::MAX).unwrap_err().to_string()
        };
        let all = "expected a whole number, -9223372036854775808 to 9223372036854775807";
        assert_eq!(refused_up("9223372036854775808", i64::MIN), format!("a is 9223372036854775808, {all}"));
        assert_eq!(refused_up("1.5", i64::MIN), format!("a is 1.5, {all}"));
        assert_eq!(refused_up("0", 1), "a is 0, expected a whole number, 1 or more");
        let huge = refused_up("1180591620717411303424", 1);
        assert!(huge.ends_with(", expected a whole number, 1 to 9223372036854775807"), "{huge}");
        assert_eq!(refused(r#"{"a": 1.5}"#), "a is 1.5, expected a whole number, 1 to 4");
        assert_eq!(refused(r#"{"a": "1"}"#), "a is a string, expected a whole number, 1 to 4");
        let refused = fields(r#"{"p": 0}"#).number("p", Range::Above(0.0, 1.0)).unwrap_err().to_string();
        assert_eq!(refused, "p is 0, expected a number, above 0, up to 1");
    }

    #[test]
    fn what_nobody_knows_is_refused_with_the_nearest_name() {
        let mut read = fields(r#"{"temprature": 1}"#);
        read.number("temperature", Range::Within(0.0, 2.0)).unwrap();
        read.string("user").unwrap();
        let refused = read.finish().unwrap_err().to_string();
        assert_eq!(refused, "temprature is no field that is known here, did you mean temperature?");
        // No letter is near another.
        let mut read = fields(r#"{"x": 1}"#);
        read.count("n", 1, 64).unwrap();
        assert_eq!(read.finish().unwrap_err().to_string(), "x is no field that is known here");
        let mut read = fields(r#"{"sed": 1}"#);
        read.count("seed", 1, 64).unwrap();
        assert!(read.finish().unwrap_err().to_string().ends_with("did you mean seed?"));
        let read = Fields::of("messages[1]".to_owned(), serde_json::json!({ "zzz": 1 })).unwrap();
        assert_eq!(read.finish().unwrap_err().to_string(), "messages[1].zzz is no field that is known here");
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!([edits("stop", "stop"), edits("stp", "stop"), edits("", "abc")], [0, 1, 3]);
        assert_eq!(edits("max_token", "max_tokens"), 1);
    }
}
