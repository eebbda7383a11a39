//! Whether a value may satisfy two schemas at once: where none can, `oneOf` is `anyOf`.

use std::cell::Cell;

use serde_json::{Map, Value as Json};

use super::{TYPES, pointer};

/// Schemas within one another that are looked into.
const DEEPEST: usize = 16;
/// Comparisons that are made for one schema.
const MOST_STEPS: u32 = 1_000_000;

/// Compares schemas of one document.
pub(super) struct Comparison<'j> {
    root: &'j Json,
    /// Comparisons that may still be made. Without any, all may share a value.
    n_left: Cell<u32>,
}

impl<'j> Comparison<'j> {
    pub(super) fn new(root: &'j Json) -> Self {
        Self { root, n_left: Cell::new(MOST_STEPS) }
    }

    /// False only if it is certain that no value satisfies both.
    pub(super) fn may_share(&self, one: &Json, other: &Json) -> bool {
        self.share(one, other, 0)
    }

    /// Whether so many comparisons more are too many.
    fn is_spent(&self, n: usize, depth: usize) -> bool {
        self.n_left.set(self.n_left.get().saturating_sub(n as u32));
        self.n_left.get() == 0 || depth > DEEPEST
    }

    fn share(&self, one: &Json, other: &Json, depth: usize) -> bool {
        if one == &Json::Bool(false) || other == &Json::Bool(false) {
            return false;
        }
        let (Some(first), Some(second)) = (one.as_object(), other.as_object()) else { return true };
        if self.is_spent(1, depth) {
            return true;
        }
        for (this, that) in [(first, other), (second, one)] {
            if let Some(values) = values(this)
                && !values.iter().any(|value| self.may_hold(value, that, depth + 1))
            {
                return false;
            }
            if let Some(target) = self.target(this)
                && !self.share(target, that, depth + 1)
            {
                return false;
            }
            let all = |key: &str| this.get(key).and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
            if all("allOf").iter().any(|part| !self.share(part, that, depth + 1)) {
                return false;
            }
            for key in ["anyOf", "oneOf"] {
                let choices = all(key);
                if !choices.is_empty() && !choices.iter().any(|part| self.share(part, that, depth + 1)) {
                    return false;
                }
            }
        }
        TYPES.iter().filter(|kind| allows(first, kind) && allows(second, kind)).any(|kind| match *kind {
            "integer" | "number" => ranges_meet(first, second),
            "object" => self.objects_share(first, second, depth),
            _ => true,
        })
    }

    /// A property that both need, with values that they do not share, tells them apart.
    fn objects_share(&self, first: &Map<String, Json>, second: &Map<String, Json>, depth: usize) -> bool {
        let required = |fields: &Map<String, Json>| -> Vec<String> {
            let names = fields.get("required").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
            names.iter().filter_map(Json::as_str).map(str::to_owned).collect()
        };
        let mut names = required(first);
        names.extend(required(second));
        names.iter().all(|name| self.share(property(first, name), property(second, name), depth + 1))
    }

    /// False only if it is certain that the value does not satisfy the schema.
    fn may_hold(&self, value: &Json, schema: &Json, depth: usize) -> bool {
        let Some(fields) = schema.as_object() else { return schema != &Json::Bool(false) };
        if self.is_spent(1 + values(fields).map_or(0, <[Json]>::len), depth) {
            return true;
        }
        let kind = match value {
            Json::Null => "null",
            Json::Bool(_) => "boolean",
            Json::Number(_) if value.as_f64().is_some_and(|number| number.fract() == 0.0) => "integer",
            Json::Number(_) => "number",
            Json::String(_) => "string",
            Json::Array(_) => "array",
            Json::Object(_) => "object",
        };
        if !allows(fields, kind)
            || values(fields).is_some_and(|values| !values.iter().any(|other| is_equal(other, value)))
        {
            return false;
        }
        let parts = |key: &str| fields.get(key).and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
        let holds = |part: &Json| self.may_hold(value, part, depth + 1);
        if !self.target(fields).is_none_or(holds) || !parts("allOf").iter().all(holds) {
            return false;
        }
        if ["anyOf", "oneOf"].iter().any(|key| !parts(key).is_empty() && !parts(key).iter().any(holds)) {
            return false;
        }
        match value {
            Json::Number(number) => number.as_f64().is_none_or(|number| {
                let (low, high) = range(fields);
                (low..=high).contains(&number)
            }),
            Json::Object(object) => {
                let has_all = parts("required").iter().filter_map(Json::as_str).all(|name| object.contains_key(name));
                has_all && object.iter().all(|(name, value)| self.may_hold(value, property(fields, name), depth + 1))
            }
            _ => true,
        }
    }

    fn target(&self, fields: &Map<String, Json>) -> Option<&'j Json> {
        let target = pointer::target(fields.get("$ref")?.as_str()?)?;
        pointer::find(self.root, &target)
    }
}

/// The values that a schema allows, if it lists them.
fn values(fields: &Map<String, Json>) -> Option<&[Json]> {
    match fields.get("const") {
        Some(value) => Some(std::slice::from_ref(value)),
        None => fields.get("enum").and_then(Json::as_array).map(Vec::as_slice),
    }
}

/// What a property must satisfy.
fn property<'j>(fields: &'j Map<String, Json>, name: &str) -> &'j Json {
    let named = fields.get("properties").and_then(|properties| properties.get(name));
    named.or_else(|| fields.get("additionalProperties")).unwrap_or(&Json::Bool(true))
}

/// Whether `type` allows values of this kind. Whole numbers are both.
fn allows(fields: &Map<String, Json>, kind: &str) -> bool {
    let is_kind = |name: &Json| name == kind || (kind == "integer" && name == "number");
    match fields.get("type") {
        None => true,
        Some(Json::Array(types)) => types.iter().any(is_kind),
        Some(one) => is_kind(one),
    }
}

/// What numbers may be, without telling whether a bound is one of them.
fn range(fields: &Map<String, Json>) -> (f64, f64) {
    let number = |key: &str| fields.get(key).and_then(Json::as_f64);
    let low = number("minimum").into_iter().chain(number("exclusiveMinimum")).fold(f64::NEG_INFINITY, f64::max);
    let high = number("maximum").into_iter().chain(number("exclusiveMaximum")).fold(f64::INFINITY, f64::min);
    (low, high)
}

fn ranges_meet(first: &Map<String, Json>, second: &Map<String, Json>) -> bool {
    let ((low, high), (other_low, other_high)) = (range(first), range(second));
    let excludes = |fields: &Map<String, Json>, bound: f64| {
        ["exclusiveMinimum", "exclusiveMaximum"]
            .iter()
            .any(|key| fields.get(*key).and_then(Json::as_f64) == Some(bound))
    };
    let touches = |bound: f64| !excludes(first, bound) && !excludes(second, bound);
    let meet = |low: f64, high: f64| low < high || (low == high && touches(low));
    meet(low.max(other_low), high.min(other_high))
}

/// As JSON Schema compares: 1 is 1.0.
fn is_equal(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Number(one), Json::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_equal(one, other))
        }
        (Json::Object(one), Json::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|other| is_equal(value, other)))
        }
        _ => one == other,
    }
}
