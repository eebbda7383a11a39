//! Metadata values that own their bytes, as a writer needs them: already in the file's encoding.

use super::value::{Value, ValueType};

/// A value to be written; made with `from` out of numbers, texts, slices of them, or a [`Value`] read elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedValue {
    pub(super) kind: ValueType,
    /// Type and number of entries, for an array.
    pub(super) entries: Option<(ValueType, u64)>,
    /// The encoded value; of an array, the encoded entries; of a string, its text without the length.
    pub(super) bytes: Vec<u8>,
}

impl OwnedValue {
    /// A string of any bytes.
    pub fn text(bytes: &[u8]) -> Self {
        Self { kind: ValueType::String, entries: None, bytes: bytes.to_vec() }
    }

    /// An array of strings of any bytes.
    pub fn texts<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> Self {
        let (mut count, mut bytes) = (0, Vec::new());
        for text in texts {
            count += 1;
            bytes.extend_from_slice(&(text.as_ref().len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_ref());
        }
        Self { kind: ValueType::Array, entries: Some((ValueType::String, count)), bytes }
    }

    /// Its type.
    pub fn kind(&self) -> ValueType {
        self.kind
    }

    /// Appends type and value as they stand in a file.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.kind.id().to_le_bytes());
        if let Some((element, count)) = self.entries {
            out.extend_from_slice(&element.id().to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        } else if self.kind == ValueType::String {
            out.extend_from_slice(&(self.bytes.len() as u64).to_le_bytes());
        }
        out.extend_from_slice(&self.bytes);
    }
}

/// A number and its type's name in the format, alone and in arrays.
macro_rules! numbers {
    ($($number:ty => $kind:ident),*) => { $(
        impl From<$number> for OwnedValue {
            fn from(number: $number) -> Self {
                Self { kind: ValueType::$kind, entries: None, bytes: number.to_le_bytes().to_vec() }
            }
        }

        impl From<&[$number]> for OwnedValue {
            fn from(numbers: &[$number]) -> Self {
                let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                Self { kind: ValueType::Array, entries: Some((ValueType::$kind, numbers.len() as u64)), bytes }
            }
        }
    )* };
}

numbers!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32,
    f64 => F64);

impl From<bool> for OwnedValue {
    fn from(fact: bool) -> Self {
        Self { kind: ValueType::Bool, entries: None, bytes: vec![fact.into()] }
    }
}

impl From<&[bool]> for OwnedValue {
    fn from(facts: &[bool]) -> Self {
        let bytes = facts.iter().map(|&fact| fact.into()).collect();
        Self { kind: ValueType::Array, entries: Some((ValueType::Bool, facts.len() as u64)), bytes }
    }
}

impl From<&str> for OwnedValue {
    fn from(text: &str) -> Self {
        Self::text(text.as_bytes())
    }
}

impl From<String> for OwnedValue {
    fn from(text: String) -> Self {
        Self { kind: ValueType::String, entries: None, bytes: text.into_bytes() }
    }
}

impl From<&[&str]> for OwnedValue {
    fn from(texts: &[&str]) -> Self {
        Self::texts(texts)
    }
}

impl From<&[String]> for OwnedValue {
    fn from(texts: &[String]) -> Self {
        Self::texts(texts)
    }
}

impl From<Value<'_>> for OwnedValue {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::U8(n) => n.into(),
            Value::I8(n) => n.into(),
            Value::U16(n) => n.into(),
            Value::I16(n) => n.into(),
            Value::U32(n) => n.into(),
            Value::I32(n) => n.into(),
            Value::U64(n) => n.into(),
            Value::I64(n) => n.into(),
            Value::F32(x) => x.into(),
            Value::F64(x) => x.into(),
            Value::Bool(fact) => fact.into(),
            Value::String(text) => Self::text(text),
            // Re-encoded and not copied raw, so that the result is whole even if the file was overwritten meanwhile.
            Value::Array(array) => match array.strings() {
                Some(strings) => Self::texts(strings),
                None => Self {
                    kind: ValueType::Array,
                    entries: Some((array.element(), array.len() as u64)),
                    bytes: array.raw().to_vec(),
                },
            },
        }
    }
}
