//! API keys: who may ask, for what and of which models. Only their hashes are kept.

use std::sync::Arc;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::json::Fields;

/// What a key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
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
    pub fn name(self) -> &'static str {
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
}

impl Key {
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    pub(super) fn may_ask(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|name| name == model))
    }
}

/// All keys of a server.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    keys: Vec<Key>,
}

/// What is wrong with a list of keys.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeysError(String);

impl Keys {
    /// Reads a list of keys: `{"keys": [{"id": "kitchen", "sha256": "...", "scopes": ["infer"], "models": ["pocket"]}]}`.
    /// `scopes` is `["infer"]` and `models` all where they are not given; a hash is that of the key's bytes, in
    /// hexadecimal.
    ///
    /// # Errors
    /// What is wrong, with the field.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let wrong = |problem: super::error::Problem| KeysError(problem.to_string());
        let mut fields = Fields::new(super::json::object(text.as_bytes()).map_err(wrong)?);
        let list = fields.take("keys");
        fields.finish().map_err(wrong)?;
        let Some(Json::Array(list)) = list else {
            return Err(KeysError("keys is missing or no array".to_owned()));
        };
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
        Ok(Key { id: id.into(), hash, scopes, models })
    }

    /// Ids of all keys, in order.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| &*key.id)
    }

    /// The place and the entry of a key, if it is one. Takes the same time for every text of its length.
    pub(super) fn find(&self, key: &str) -> Option<(usize, &Key)> {
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let mut found = None;
        for (place, entry) in self.keys.iter().enumerate() {
            let difference = entry.hash.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b));
            if difference == 0 {
                found = Some((place, entry));
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
        let (place, key) = keys.find("abc").unwrap();
        assert_eq!((place, &*key.id), (0, "a"));
        assert!(key.may(Scope::Infer) && !key.may(Scope::Metrics) && !key.may(Scope::Admin));
        assert!(key.may_ask("pocket") && !key.may_ask("other"));
        assert!(keys.find("abd").is_none() && keys.find("").is_none());
    }

    #[test]
    fn what_is_wrong_with_a_list_is_told_with_its_field() {
        let message = |text: &str| Keys::parse(text).unwrap_err().to_string();
        assert_eq!(message("{}"), "keys is missing or no array");
        assert_eq!(message(r#"{"keys": [{"id": "a"}]}"#), "keys[0].sha256: expected 64 hexadecimal digits");
        assert!(message(r#"{"keys": [{"id": "a b"}]}"#).starts_with("keys[0].id: expected 1 to 64 letters"));
        let with = |more: &str| format!(r#"{{"keys": [{{"id": "a", "sha256": "{ABC}"{more}}}]}}"#);
        assert!(message(&with(r#", "scopes": ["dance"]"#)).starts_with("keys[0].scopes: expected"));
        assert!(message(&with(r#", "key": "x""#)).starts_with("keys[0].key is no field"));
        let twice = with("").replace("]}", &format!(r#", {{"id": "a", "sha256": "{}"}}]}}"#, "0".repeat(64)));
        assert_eq!(message(&twice), "keys[1] has the id or the hash of another one");
    }
}
