//! API keys: who may ask, for what and of which models. Only their hashes are kept.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::json::Fields;
use super::live::{read, wrong};
use super::options::ServerError;
use super::quota::Quota;

/// What a key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Ask models.
    Infer,
    /// Run the server.
    Admin,
    /// Read `/metrics`.
    Metrics,
}

impl Scope {
    const ALL: [Self; 3] = [Self::Infer, Self::Admin, Self::Metrics];

    /// "infer", "admin" or "metrics".
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }
}

/// One key, as the server knows it.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// What logs and metrics call it.
    pub(super) id: Arc<str>,
    hash: [u8; 32],
    scopes: Vec<Scope>,
    /// Models it may ask; `None` for all.
    models: Option<Vec<String>>,
    /// Seconds since 1970 from which on it opens nothing.
    expires: Option<u64>,
    pub(super) quota: Quota,
}

impl Key {
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    pub(super) fn has_expired(&self, unix_seconds: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= unix_seconds)
    }

    pub(super) fn may_ask(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|name| name == model))
    }
}

/// All keys of a server.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    keys: Vec<Key>,
}

/// What is wrong with a list of keys.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct KeysError(String);

impl Keys {
    /// Reads the file `path`.
    pub(super) fn of_file(path: &Path) -> Result<Self, ServerError> {
        let bytes = read(path, "a JSON file of keys")?;
        let text = std::str::from_utf8(&bytes).map_err(|error| wrong(path, format!("{error}, expected text")))?;
        Self::parse(text).map_err(|error| wrong(path, error.to_string()))
    }

    /// Reads a list of keys: `{"keys": [{"id": "kitchen", "sha256": "...", "scopes": ["infer"], "models": ["pocket"]}]}`.
    /// `scopes` is `["infer"]` and `models` all where they are not given; a hash is that of the key's bytes, in
    /// hexadecimal. `docs/server.md` has the other fields.
    ///
    /// # Errors
    /// What is wrong, with the field.
    pub(super) fn parse(text: &str) -> Result<Self, KeysError> {
        let wrong = |problem: super::error::Problem| KeysError(problem.to_string());
        let mut fields = Fields::new(super::json::object_of_file(text.as_bytes()).map_err(wrong)?);
        let list = fields.take("keys");
        fields.finish().map_err(wrong)?;
        let Some(Json::Array(list)) = list else {
            return Err(KeysError("keys is missing or no array".to_owned()));
        };
        if list.is_empty() {
            return Err(KeysError("keys is empty, expected a key or more: without one nobody is served".to_owned()));
        }
        let mut keys: Vec<Key> = Vec::new();
        for (place, entry) in list.into_iter().enumerate() {
            let key = Self::key(place, entry)?;
            if keys.iter().any(|other| other.id == key.id || other.hash == key.hash) {
                return Err(KeysError(format!("keys[{place}] has the id or the hash of another one")));
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }

    fn key(place: usize, entry: Json) -> Result<Key, KeysError> {
        let wrong = |problem: super::error::Problem| KeysError(problem.to_string());
        let path = format!("keys[{place}]");
        let refuse = |field: &str, expected: &str| Err(KeysError(format!("{path}.{field}: expected {expected}")));
        let mut fields = Fields::of(path.clone(), entry).map_err(wrong)?;
        let id = fields.string("id").map_err(wrong)?.unwrap_or_default();
        let hash = fields.string("sha256").map_err(wrong)?.unwrap_or_default();
        let (scopes, models) = (fields.take("scopes"), fields.take("models"));
        let mut amount = |field| Ok(fields.whole(field, 1, i64::MAX).map_err(wrong)?.map(i64::unsigned_abs));
        let expires = amount("expires")?;
        let quota = Quota {
            requests_per_minute: amount("requests_per_minute")?,
            tokens_per_minute: amount("tokens_per_minute")?,
            tokens_per_day: amount("tokens_per_day")?,
            concurrent_requests: amount("concurrent_requests")?,
        };
        fields.finish().map_err(wrong)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if id.is_empty() || id.len() > 64 || !id.chars().all(is_plain) {
            return refuse("id", "1 to 64 letters, digits, '-', '_' or '.'");
        }
        let Some(hash) = unhex(&hash) else { return refuse("sha256", "64 hexadecimal digits") };
        let scopes = match scopes {
            None => vec![Scope::Infer],
            Some(scopes) => {
                let named = |name: &String| Scope::ALL.into_iter().find(|scope| scope.name() == name);
                match texts(&scopes).and_then(|names| names.iter().map(named).collect::<Option<Vec<_>>>()) {
                    Some(scopes) => scopes,
                    None => return refuse("scopes", "an array of \"infer\", \"admin\" and \"metrics\""),
                }
            }
        };
        let models = match models {
            None => None,
            Some(models) => match texts(&models) {
                Some(models) => Some(models),
                None => return refuse("models", "an array of model names"),
            },
        };
        Ok(Key { id: id.into(), hash, scopes, models, expires, quota })
    }

    /// Names of models in the list that are none of `known`, with where they stand.
    pub(super) fn unknown_models(&self, known: &[String]) -> Vec<String> {
        let names = self.keys.iter().flat_map(|key| {
            let names = key.models.iter().flatten().filter(|name| !known.contains(name));
            names.map(|name| format!("the key {:?} may ask {name:?}", key.id))
        });
        names.collect()
    }

    /// The entry of a key, if it is one. Takes the same time for every text of its length.
    pub(super) fn find(&self, key: &str) -> Option<&Key> {
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let mut found = None;
        for entry in &self.keys {
            let difference = entry.hash.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b));
            if difference == 0 {
                found = Some(entry);
            }
        }
        found
    }
}

fn texts(json: &Json) -> Option<Vec<String>> {
    json.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    Some(std::array::from_fn(|byte| digits[2 * byte] << 4 | digits[2 * byte + 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn keys_are_found_by_their_hash() {
        let list = format!(r#"{{"keys": [{{"id": "a", "sha256": "{ABC}", "models": ["pocket"]}}]}}"#);
        let keys = Keys::parse(&list).unwrap();
        let key = keys.find("abc").unwrap();
        assert_eq!(&*key.id, "a");
        assert!(key.may(Scope::Infer) && !key.may(Scope::Metrics) && !key.may(Scope::Admin));
        assert!(key.may_ask("pocket") && !key.may_ask("other"));
        assert!(keys.find("abd").is_none() && keys.find("").is_none());
    }

    #[test]
    fn keys_have_limits_and_an_end() {
        let more = r#""expires": 1000, "requests_per_minute": 3, "tokens_per_day": 5"#;
        let keys = Keys::parse(&format!(r#"{{"keys": [{{"id": "a", "sha256": "{ABC}", {more}}}]}}"#)).unwrap();
        let key = keys.find("abc").unwrap();
        assert!(!key.has_expired(999) && key.has_expired(1000));
        let expected = Quota { requests_per_minute: Some(3), tokens_per_day: Some(5), ..Quota::default() };
        assert_eq!(key.quota, expected);
    }

    #[test]
    fn what_is_wrong_with_a_list_is_told_with_its_field() {
        let message = |text: &str| Keys::parse(text).unwrap_err().to_string();
        assert_eq!(message("{}"), "keys is missing or no array");
        assert_eq!(message(r#"{"keys": [{"id": "a"}]}"#), "keys[0].sha256: expected 64 hexadecimal digits");
        assert!(message(r#"{"keys": [{"id": "a b"}]}"#).starts_with("keys[0].id: expected 1 to 64 letters"));
        let with = |more: &str| format!(r#"{{"keys": [{{"id": "a", "sha256": "{ABC}"{more}}}]}}"#);
        assert!(message(&with(r#", "scopes": ["dance"]"#)).starts_with("keys[0].scopes: expected"));
        let quota = message(&with(r#", "tokens_per_day": 0"#));
        assert_eq!(quota, "keys[0].tokens_per_day is 0, expected a whole number, 1 or more");
        assert!(message(&with(r#", "key": "x""#)).starts_with("keys[0].key is no field"));
        let twice = with("").replace("]}", &format!(r#", {{"id": "a", "sha256": "{}"}}]}}"#, "0".repeat(64)));
        assert_eq!(message(&twice), "keys[1] has the id or the hash of another one");
    }
}
