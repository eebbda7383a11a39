//! A file's metadata: keys with typed values, read in place.
//!
//! Getters give `None` for an absent key and an error for a value of the wrong type, naming key and byte offset; the
//! `required_` forms also refuse absence. Integer getters take any integer type whose value fits.

use std::sync::Arc;

use farpost_kernels::tensor::Bytes;

use super::error::{GgufError, Problem, Shortened};
use super::place::{Place, room};
use super::value::{Array, StringArray, StringIndex, Value, ValueType};

/// One key and where its value lies.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Box<str>,
    /// Type of the value, or of the entries of an array.
    pub(super) kind: ValueType,
    /// Number of entries if the value is an array.
    pub(super) array: Option<usize>,
    /// First byte of the value, and one past its last. A string's length field lies before it.
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) index: StringIndex,
}

/// Two entries with the same key.
pub(super) struct Twins {
    pub(super) key: Box<str>,
    pub(super) first: usize,
    pub(super) second: usize,
}

/// Everything a file says about itself, in file order.
#[derive(Debug)]
pub struct Metadata {
    file: Arc<str>,
    bytes: Bytes,
    entries: Vec<Entry>,
    /// Entry numbers, sorted by key.
    by_key: Vec<u32>,
}

impl Metadata {
    /// Orders the keys and refuses one that is there twice.
    pub(super) fn new(file: Arc<str>, bytes: Bytes, entries: Vec<Entry>) -> Result<Self, Twins> {
        let mut by_key: Vec<u32> = (0..entries.len() as u32).collect();
        by_key.sort_by(|&a, &b| entries[a as usize].key.cmp(&entries[b as usize].key));
        for pair in by_key.windows(2) {
            let (first, second) = (pair[0] as usize, pair[1] as usize);
            if entries[first].key == entries[second].key {
                return Err(Twins { key: entries[first].key.clone(), first, second });
            }
        }
        Ok(Self { file, bytes, entries, by_key })
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Name of the file, for messages.
    pub fn file_name(&self) -> &str {
        &self.file
    }

    /// All keys and values in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, Value<'_>)> {
        self.entries.iter().map(|entry| (&*entry.key, self.value(entry)))
    }

    /// The value of `key`, of whatever type.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.entry(key).map(|entry| self.value(entry))
    }

    /// True if the file has `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        let found = self.by_key.binary_search_by(|&number| (*self.entries[number as usize].key).cmp(key)).ok()?;
        Some(&self.entries[self.by_key[found] as usize])
    }

    fn value<'a>(&'a self, entry: &'a Entry) -> Value<'a> {
        let bytes = self.bytes.as_slice().get(entry.start..entry.end).unwrap_or(&[]);
        match (entry.array, entry.kind) {
            (Some(len), element) => Value::Array(Array::new(element, len, bytes, &entry.index)),
            (None, ValueType::String) => Value::String(bytes),
            (None, kind) => Value::scalar(kind, bytes).expect("the reader kept as many bytes as the type has"),
        }
    }

    /// The error that the value of `key` has `problem`; for checks that only the caller can make.
    pub fn defect(&self, key: &str, problem: Problem) -> GgufError {
        let Place { file, field, offset } = self.place(key);
        GgufError::Defect { file, field, offset, problem }
    }

    /// Where the value of `key` begins, for messages.
    pub fn place(&self, key: &str) -> Place {
        Place {
            file: self.file.to_string(),
            field: format!("metadata key '{}'", Shortened(key)),
            offset: self.entry(key).map_or(0, |entry| entry.start as u64),
        }
    }

    /// Where entry `number` (from 0) of the array under `key` begins; of a string, its text.
    pub fn place_of_entry(&self, key: &str, number: usize) -> Place {
        let place = self.place(key);
        let before = match self.get(key) {
            Some(Value::Array(array)) => match (array.element().size(), array.strings()) {
                (Some(size), _) => size * number.min(array.len()),
                // Each text has eight bytes of length before it.
                (None, Some(texts)) => texts.iter().take(number).map(|text| 8 + text.len()).sum::<usize>() + 8,
                (None, None) => 0,
            },
            _ => 0,
        };
        Place { field: format!("{} entry {number}", place.field), offset: place.offset + before as u64, ..place }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let problem = || Problem::WrongType { found: value.describe(), expected };
        convert(value).map(Some).ok_or_else(|| self.defect(key, problem()))
    }

    fn required<T>(&self, key: &str, expected: &'static str, found: Option<T>) -> Result<T, GgufError> {
        found.ok_or_else(|| GgufError::MissingKey { file: self.file.to_string(), key: key.to_owned(), expected })
    }

    /// A text, refused if it is not UTF-8.
    pub fn string(&self, key: &str) -> Result<Option<&str>, GgufError> {
        let bytes = self.typed(key, "a string", |value| match value {
            Value::String(bytes) => Some(bytes),
            _ => None,
        })?;
        let Some(bytes) = bytes else { return Ok(None) };
        let text = std::str::from_utf8(bytes);
        text.map(Some).map_err(|error| self.defect(key, Problem::NotUtf8 { at: error.valid_up_to() as u64 }))
    }

    /// An integer of any stored type that fits in u32.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an integer from 0 to 4294967295", |value| u32::try_from(value.as_integer()?).ok())
    }

    /// An integer of any stored type that fits in i32.
    pub fn i32(&self, key: &str) -> Result<Option<i32>, GgufError> {
        self.typed(key, "a 32-bit integer", |value| i32::try_from(value.as_integer()?).ok())
    }

    /// An integer of any stored type that is not negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an integer of at least 0", |value| u64::try_from(value.as_integer()?).ok())
    }

    /// An integer of any stored type that fits in i64.
    pub fn i64(&self, key: &str) -> Result<Option<i64>, GgufError> {
        self.typed(key, "a 64-bit integer", |value| i64::try_from(value.as_integer()?).ok())
    }

    /// A float of either width, rounded to f32.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "a float", |value| Some(value.as_float()? as f32))
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a bool", |value| match value {
            Value::Bool(fact) => Some(fact),
            _ => None,
        })
    }

    /// Texts, in place.
    pub fn strings(&self, key: &str) -> Result<Option<StringArray<'_>>, GgufError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(array) => array.strings(),
            _ => None,
        })
    }

    fn numbers<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(Value<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let array = self.typed(key, expected, |value| match value {
            Value::Array(array) if array.element() != ValueType::String => Some(array),
            _ => None,
        })?;
        let Some(array) = array else { return Ok(None) };
        // The reader proved that the entries are in the file, so their number bounds this allocation.
        let mut numbers = room(&self.file, "an array of its metadata", array.len())?;
        for value in array.values() {
            let Some(number) = convert(value) else {
                return Err(self.defect(key, Problem::WrongType { found: Value::Array(array).describe(), expected }));
            };
            numbers.push(number);
        }
        Ok(Some(numbers))
    }

    /// Floats of either width, rounded to f32.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.numbers(key, "an array of floats", |value| Some(value.as_float()? as f32))
    }

    /// Integers of any stored type that fit in i32.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.numbers(key, "an array of 32-bit integers", |value| i32::try_from(value.as_integer()?).ok())
    }

    /// Integers of any stored type that fit in u32.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, GgufError> {
        let expected = "an array of integers from 0 to 4294967295";
        self.numbers(key, expected, |value| u32::try_from(value.as_integer()?).ok())
    }

    /// Truth values.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, GgufError> {
        self.numbers(key, "an array of bools", |value| match value {
            Value::Bool(fact) => Some(fact),
            _ => None,
        })
    }

    /// [`Metadata::string`], refusing absence.
    pub fn required_string(&self, key: &str) -> Result<&str, GgufError> {
        self.required(key, "a string", self.string(key)?)
    }

    /// [`Metadata::u32`], refusing absence.
    pub fn required_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.required(key, "an unsigned integer", self.u32(key)?)
    }

    /// [`Metadata::u64`], refusing absence.
    pub fn required_u64(&self, key: &str) -> Result<u64, GgufError> {
        self.required(key, "an unsigned integer", self.u64(key)?)
    }

    /// [`Metadata::i64`], refusing absence.
    pub fn required_i64(&self, key: &str) -> Result<i64, GgufError> {
        self.required(key, "an integer", self.i64(key)?)
    }

    /// [`Metadata::f32`], refusing absence.
    pub fn required_f32(&self, key: &str) -> Result<f32, GgufError> {
        self.required(key, "a float", self.f32(key)?)
    }

    /// [`Metadata::bool`], refusing absence.
    pub fn required_bool(&self, key: &str) -> Result<bool, GgufError> {
        self.required(key, "a bool", self.bool(key)?)
    }

    /// [`Metadata::strings`], refusing absence.
    pub fn required_strings(&self, key: &str) -> Result<StringArray<'_>, GgufError> {
        self.required(key, "an array of strings", self.strings(key)?)
    }
}
