//! JSON schemas as requests write them: each keyword is enforced, is an annotation, or is refused with the place where it
//! stands. What comes out is a schema of keywords that the parser holds, with each reference by its own name.
//!
//! Keywords: JSON Schema 2020-12, Core and Validation.

mod disjoint;
mod pointer;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json, json};

use super::{Fault, pattern};
use crate::kind::kind;
use disjoint::Comparison;

/// Subschemas that a schema may have.
const MOST_SCHEMAS: usize = 5_000;
/// Values in all its `enum`s.
const MOST_VALUES: usize = 5_000;
/// Its `pattern`s, and their bytes.
const MOST_PATTERNS: usize = 200;
const MOST_PATTERN_BYTES: usize = 32 << 10;
/// Alternatives of a `oneOf`: each is compared with all others.
const MOST_OF_ONE: usize = 128;
/// Parts that a number can be a multiple of: the parser counts remainders.
const MOST_PARTS: f64 = 1e6;

/// What may stand between the parts of a JSON text: without a bound a small model may go on with spaces for good.
const WHITESPACE: &str = r"\x0A\x20{0,12}|\x20{1,2}";
/// Settings of the parser, in the schema itself.
const SETTINGS: &str = "x-guidance";
/// Escapes in texts, if names could be written in two ways otherwise.
const PLAIN_ESCAPES: &str = "nrbtf\\\"";

/// What a schema says of itself to people and programs, and which changes nothing of what it allows.
const ANNOTATIONS: [&str; 8] =
    ["title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"];
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
const FORMATS: [&str; 9] = ["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "uri"];
/// Versions whose keywords mean what they mean here, without their scheme.
const VERSIONS: [&str; 5] = [
    "json-schema.org/draft/2020-12/schema",
    "json-schema.org/draft/2019-09/schema",
    "json-schema.org/draft-07/schema",
    "json-schema.org/draft-06/schema",
    "json-schema.org/draft-04/schema",
];

/// A schema of which every keyword is enforced. A schema that came out of here comes out unchanged.
///
/// # Errors
/// What can't be enforced, and where.
pub(super) fn checked(root: &Json) -> Result<Json, Fault> {
    let mut walk = Walk::new(root);
    let mut whole = match walk.schema("#", root, true)? {
        Json::Object(whole) => whole,
        Json::Bool(true) => Map::new(),
        _ => return Err(Fault { pointer: "#".to_owned(), reason: "it is false, which no value satisfies".to_owned() }),
    };
    let mut definitions = Map::new();
    while let Some(target) = walk.pending.pop() {
        let Some(schema) = pointer::find(root, &target) else { continue };
        walk.current.clone_from(&target);
        let checked = walk.schema(&target, schema, true)?;
        definitions.insert(walk.name(&target), checked);
    }
    walk.check_circles()?;
    if !definitions.is_empty() {
        whole.insert("$defs".to_owned(), definitions.into());
    }
    let mut settings = json!({ "whitespace_pattern": WHITESPACE });
    if walk.has_open_names {
        settings["json_allowed_escapes"] = PLAIN_ESCAPES.into();
    }
    whole.insert(SETTINGS.to_owned(), settings);
    Ok(whole.into())
}

struct Walk<'s> {
    root: &'s Json,
    /// Targets of references and their numbers.
    targets: BTreeMap<String, usize>,
    /// Those that were not walked yet.
    pending: Vec<String>,
    /// The one that is walked now.
    current: String,
    /// References that hold for the same value as what they stand in: from, to, and where.
    circles: Vec<(String, String, String)>,
    n_schemas: usize,
    n_values: usize,
    n_patterns: usize,
    n_pattern_bytes: usize,
    /// Some object has names of its own beside others that are free.
    has_open_names: bool,
    comparison: Comparison<'s>,
}

impl<'s> Walk<'s> {
    fn new(root: &'s Json) -> Self {
        Self {
            root,
            targets: BTreeMap::new(),
            pending: Vec::new(),
            current: "#".to_owned(),
            circles: Vec::new(),
            n_schemas: 0,
            n_values: 0,
            n_patterns: 0,
            n_pattern_bytes: 0,
            has_open_names: false,
            comparison: Comparison::new(root),
        }
    }

    /// One schema. `is_same` if it holds for the same value as the target that is walked.
    fn schema(&mut self, at: &str, schema: &Json, is_same: bool) -> Result<Json, Fault> {
        self.n_schemas += 1;
        if self.n_schemas > MOST_SCHEMAS {
            return Err(wrong(at, format!("the schema has more than {MOST_SCHEMAS} subschemas")));
        }
        let fields = match schema {
            Json::Bool(_) => return Ok(schema.clone()),
            Json::Object(fields) => fields,
            other => return Err(wrong(at, format!("is {}, expected a JSON schema", kind(other)))),
        };
        let mut out = Map::new();
        for (key, value) in fields {
            let place = format!("{at}/{}", pointer::escaped(key));
            self.keyword(&mut out, at, key, &place, value, is_same)?;
        }
        check_bounds(at, fields)?;
        self.check_counts(at, &mut out)?;
        Ok(out.into())
    }

    fn keyword(
        &mut self,
        out: &mut Map<String, Json>,
        at: &str,
        key: &str,
        place: &str,
        value: &Json,
        is_same: bool,
    ) -> Result<(), Fault> {
        let checked = match key {
            _ if ANNOTATIONS.contains(&key) => return Ok(()),
            "$defs" | "definitions" => return object(place, value).map(drop),
            "$schema" | "$id" if at == "#" => return check_head(key, place, value),
            SETTINGS if at == "#" && is_ours(value) => return Ok(()),
            "type" => types(place, value)?,
            "enum" => {
                let values = list(place, value)?;
                self.n_values += values.len();
                if self.n_values > MOST_VALUES {
                    return Err(wrong(place, format!("the schema has more than {MOST_VALUES} values in enums")));
                }
                value.clone()
            }
            "const" => value.clone(),
            "properties" => {
                let schemas = object(place, value)?.iter().map(|(name, schema)| {
                    let place = format!("{place}/{}", pointer::escaped(name));
                    Ok((name.clone(), self.schema(&place, schema, false)?))
                });
                schemas.collect::<Result<Map<_, _>, Fault>>()?.into()
            }
            "required" => {
                let names = value.as_array().ok_or_else(|| wrong(place, expected(value, "an array of names")))?;
                if let Some(other) = names.iter().find(|name| !name.is_string()) {
                    return Err(wrong(place, format!("has {}, expected names", kind(other))));
                }
                value.clone()
            }
            "items" if value.is_array() => {
                let reason = "is an array, expected a schema for all items; those by place are prefixItems";
                return Err(wrong(place, reason.to_owned()));
            }
            "additionalProperties" | "items" => self.schema(place, value, false)?,
            "prefixItems" => self.schemas(place, value, false)?,
            "anyOf" | "allOf" => self.schemas(place, value, is_same)?,
            "oneOf" => {
                let checked = self.schemas(place, value, is_same)?;
                self.check_one_of(place, value)?;
                return self.add(out, at, "anyOf", checked);
            }
            "$ref" => {
                let name = self.reference(place, value, is_same)?;
                return self.add(out, at, "$ref", format!("#/$defs/{name}").into());
            }
            "pattern" => self.pattern(place, value)?,
            "format" => match value.as_str() {
                Some(format) if FORMATS.contains(&format) => value.clone(),
                _ => {
                    let reason =
                        format!("is {}, which can't be enforced, expected one of {}", short(value), FORMATS.join(", "));
                    return Err(wrong(place, reason));
                }
            },
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                let number =
                    value.as_u64().or_else(|| whole(value)).filter(|number| *number <= u64::from(u32::MAX >> 1));
                number.ok_or_else(|| wrong(place, expected(value, "a whole number, 0 to 2147483647")))?.into()
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                value.as_f64().ok_or_else(|| wrong(place, expected(value, "a number")))?;
                value.clone()
            }
            "multipleOf" => {
                let number = value.as_f64().filter(|number| is_countable(*number));
                number.ok_or_else(|| wrong(place, expected(value, "a number above 0 with at most 6 digits")))?;
                value.clone()
            }
            _ => return Err(wrong(place, format!("the keyword '{key}' can't be enforced"))),
        };
        self.add(out, at, key, checked)
    }

    /// Adds a keyword, which may be there twice now that `oneOf` is `anyOf`.
    fn add(&mut self, out: &mut Map<String, Json>, at: &str, key: &str, value: Json) -> Result<(), Fault> {
        if out.contains_key(key) {
            return Err(wrong(at, "oneOf and anyOf can't be enforced together".to_owned()));
        }
        out.insert(key.to_owned(), value);
        Ok(())
    }

    fn schemas(&mut self, place: &str, value: &Json, is_same: bool) -> Result<Json, Fault> {
        let schemas = list(place, value)?.iter().enumerate();
        schemas.map(|(number, schema)| self.schema(&format!("{place}/{number}"), schema, is_same)).collect()
    }

    fn check_one_of(&self, place: &str, value: &Json) -> Result<(), Fault> {
        let schemas = list(place, value)?;
        if schemas.len() > MOST_OF_ONE {
            return Err(wrong(place, format!("has {} schemas, expected at most {MOST_OF_ONE}", schemas.len())));
        }
        for (first, one) in schemas.iter().enumerate() {
            for (second, other) in schemas.iter().enumerate().skip(first + 1) {
                if self.comparison.may_share(one, other) {
                    let reason = format!(
                        "can be enforced only if no value satisfies two of its schemas, which is not certain of {first} \
                         and {second}"
                    );
                    return Err(wrong(place, reason));
                }
            }
        }
        Ok(())
    }

    /// The name that the target of a reference has from now on.
    fn reference(&mut self, place: &str, value: &Json, is_same: bool) -> Result<String, Fault> {
        let text = value.as_str().ok_or_else(|| wrong(place, expected(value, "a string")))?;
        let target = pointer::target(text).filter(|target| pointer::find(self.root, target).is_some());
        let local = "the place of a schema in this one, such as \"#/$defs/name\"";
        let target = target.ok_or_else(|| wrong(place, format!("is {}, expected {local}", short(value))))?;
        if is_same {
            self.circles.push((self.current.clone(), target.clone(), place.to_owned()));
        }
        if !self.targets.contains_key(&target) {
            self.targets.insert(target.clone(), self.targets.len());
            self.pending.push(target.clone());
        }
        Ok(self.name(&target))
    }

    fn name(&self, target: &str) -> String {
        format!("r{}", self.targets.get(target).copied().unwrap_or(0))
    }

    /// A schema that holds if itself holds says nothing, and no parser ends.
    fn check_circles(&self) -> Result<(), Fault> {
        let mut n_out: BTreeMap<&str, usize> = BTreeMap::new();
        let mut into: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (from, to, _) in &self.circles {
            *n_out.entry(from).or_default() += 1;
            into.entry(to).or_default().push(from);
        }
        // What leads to an end leads into no circle.
        let mut ends: Vec<&str> = into.keys().copied().filter(|to| !n_out.contains_key(to)).collect();
        while let Some(end) = ends.pop() {
            for from in into.get(end).into_iter().flatten() {
                let left = n_out.entry(from).or_default();
                *left = left.saturating_sub(1);
                if *left == 0 {
                    ends.push(from);
                }
            }
        }
        let is_left = |at: &str| n_out.get(at).is_some_and(|left| *left > 0);
        let Some(mut at) = self.circles.iter().map(|(from, ..)| from).find(|from| is_left(from)) else { return Ok(()) };
        // From all that is left one gets on, and so once to where one was.
        let mut seen = BTreeSet::from([at]);
        while let Some((_, to, place)) = self.circles.iter().find(|(from, to, _)| from == at && is_left(to)) {
            if !seen.insert(to) {
                return Err(wrong(place, "refers to itself without anything between".to_owned()));
            }
            at = to;
        }
        Ok(())
    }

    fn pattern(&mut self, place: &str, value: &Json) -> Result<Json, Fault> {
        let text = value.as_str().ok_or_else(|| wrong(place, expected(value, "a string")))?;
        self.n_patterns += 1;
        if self.n_patterns > MOST_PATTERNS {
            return Err(wrong(place, format!("the schema has more than {MOST_PATTERNS} patterns")));
        }
        self.n_pattern_bytes += text.len();
        if self.n_pattern_bytes > MOST_PATTERN_BYTES {
            return Err(wrong(place, format!("the schema has more than {MOST_PATTERN_BYTES} bytes of patterns")));
        }
        let ascii = pattern::ascii(text);
        #[cfg(feature = "grammar")]
        super::spread::check_regex(&ascii, true).map_err(|fault| wrong(place, fault.reason))?;
        Ok(ascii.into())
    }

    /// How many properties an object may have can be enforced where all are known, and free names can't be told from one
    /// another: a text may have one twice.
    fn check_counts(&mut self, at: &str, out: &mut Map<String, Json>) -> Result<(), Fault> {
        let properties = out.get("properties").and_then(Json::as_object);
        let required = out.get("required").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
        let is_required = |name: &String| required.iter().any(|other| other == name);
        let n_optional = properties.map_or(0, |properties| properties.keys().filter(|name| !is_required(name)).count());
        let n_named = n_optional + required.len();
        let is_open = out.get("additionalProperties") != Some(&Json::Bool(false));
        if is_open && n_named > 0 {
            self.has_open_names = true;
        }
        let count = |key: &str| out.get(key).and_then(Json::as_u64).map(|count| count as usize);
        let least = count("minProperties").filter(|least| *least > required.len());
        let most = count("maxProperties").filter(|most| is_open || *most < n_named);
        let n_more = least.map_or(0, |least| least - required.len());
        if n_more > 1 && (is_open || n_optional > 0) {
            let reason = "can be enforced only up to one more than the required properties";
            return Err(wrong(&format!("{at}/minProperties"), reason.to_owned()));
        }
        if n_optional > 0 && (n_more > 0 || most.is_some()) {
            let n_most = most.map_or(1, |most| most.saturating_sub(required.len()));
            if is_open || n_most != 1 {
                let key = if n_more > 0 { "minProperties" } else { "maxProperties" };
                let reason = "can't be enforced together with optional properties, unless it asks for one of them and \
                              additionalProperties is false";
                return Err(wrong(&format!("{at}/{key}"), reason.to_owned()));
            }
        }
        if least.is_none() {
            out.shift_remove("minProperties");
        }
        if most.is_none() {
            out.shift_remove("maxProperties");
        }
        Ok(())
    }
}

/// Bounds of which one excludes the other.
fn check_bounds(at: &str, fields: &Map<String, Json>) -> Result<(), Fault> {
    let pairs = [
        ("minLength", "maxLength", false),
        ("minItems", "maxItems", false),
        ("minProperties", "maxProperties", false),
        ("minimum", "maximum", false),
        ("minimum", "exclusiveMaximum", true),
        ("exclusiveMinimum", "maximum", true),
        ("exclusiveMinimum", "exclusiveMaximum", true),
    ];
    for (low, high, is_strict) in pairs {
        let number = |key: &str| fields.get(key).and_then(Json::as_f64);
        if let (Some(least), Some(most)) = (number(low), number(high))
            && (least > most || (is_strict && least == most))
        {
            let reason = format!("is {}, which no value satisfies together with {high} {}", fields[low], fields[high]);
            return Err(wrong(&format!("{at}/{low}"), reason));
        }
    }
    Ok(())
}

fn wrong(place: &str, reason: String) -> Fault {
    Fault { pointer: place.to_owned(), reason }
}

fn expected(found: &Json, expected: &str) -> String {
    format!("is {}, expected {expected}", short(found))
}

fn list<'j>(place: &str, value: &'j Json) -> Result<&'j Vec<Json>, Fault> {
    let found = value.as_array().filter(|list| !list.is_empty());
    found.ok_or_else(|| wrong(place, expected(value, "an array with an entry or more")))
}

fn object<'j>(place: &str, value: &'j Json) -> Result<&'j Map<String, Json>, Fault> {
    value.as_object().ok_or_else(|| wrong(place, expected(value, "an object")))
}

fn types(place: &str, value: &Json) -> Result<Json, Fault> {
    let is_type = |value: &Json| value.as_str().is_some_and(|name| TYPES.contains(&name));
    let is_good = match value {
        Json::Array(types) => !types.is_empty() && types.iter().all(is_type),
        one => is_type(one),
    };
    match is_good {
        true => Ok(value.clone()),
        false => Err(wrong(place, expected(value, &format!("one or some of {}", TYPES.join(", "))))),
    }
}

/// `$schema` of a known version, `$id` of any text.
fn check_head(key: &str, place: &str, value: &Json) -> Result<(), Fault> {
    let text = value.as_str().ok_or_else(|| wrong(place, expected(value, "a string")))?;
    let version = text.trim_end_matches('#').trim_start_matches("https://").trim_start_matches("http://");
    if key == "$schema" && !VERSIONS.contains(&version) {
        return Err(wrong(place, format!("is {}, which is not known", short(value))));
    }
    Ok(())
}

/// Whether settings are those that [`checked`] adds.
fn is_ours(settings: &Json) -> bool {
    let plain = json!({ "whitespace_pattern": WHITESPACE });
    let escapes = json!({ "whitespace_pattern": WHITESPACE, "json_allowed_escapes": PLAIN_ESCAPES });
    *settings == plain || *settings == escapes
}

/// A whole number that was written with a point.
fn whole(value: &Json) -> Option<u64> {
    value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..1e15).contains(number)).map(|number| number as u64)
}

/// A divisor with few digits.
fn is_countable(number: f64) -> bool {
    let scaled =
        (0..=6).map(|digits| number * 10f64.powi(digits)).find(|scaled| (scaled - scaled.round()).abs() < 1e-9);
    scaled.is_some_and(|scaled| (1.0..=MOST_PARTS).contains(&scaled))
}

/// A value, or what it is if that is long.
fn short(json: &Json) -> String {
    let text = json.to_string();
    if text.len() <= 60 { text } else { kind(json).to_owned() }
}

#[cfg(test)]
mod tests;
