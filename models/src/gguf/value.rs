//! Metadata values as they lie in the file: thirteen types, strings and arrays borrowed from the map.
//!
//! [`super::read`] checked sizes once. The accessors here stay inside their slices anyway, because somebody may write
//! to a mapped file afterwards: then values change, but nothing traps.

use std::fmt;
use std::sync::OnceLock;

/// Type of a metadata value. Ids are those of the format.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this id in files.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(id as usize).copied()
    }

    /// The id in files.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of one value; `None` for strings and arrays, whose size differs.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        })
    }
}

/// A metadata value; strings and arrays borrow the file.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Usually UTF-8, but the format's writers did not always care.
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value of scalar type `kind` in the first bytes of `bytes`; `None` if they are too few or it is no scalar.
    pub(super) fn scalar(kind: ValueType, bytes: &'a [u8]) -> Option<Self> {
        Some(match kind {
            ValueType::U8 => Self::U8(*bytes.first()?),
            ValueType::I8 => Self::I8(i8::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::Bool => Self::Bool(*bytes.first()? != 0),
            ValueType::U64 => Self::U64(u64::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// Its type.
    pub fn kind(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The number, if it is an integer of any width.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(n) => n.into(),
            Self::I8(n) => n.into(),
            Self::U16(n) => n.into(),
            Self::I16(n) => n.into(),
            Self::U32(n) => n.into(),
            Self::I32(n) => n.into(),
            Self::U64(n) => n.into(),
            Self::I64(n) => n.into(),
            _ => return None,
        })
    }

    /// The number, if it is a float of either width.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Self::F32(x) => Some(x.into()),
            Self::F64(x) => Some(x),
            _ => None,
        }
    }

    /// What it is, for messages: "a u32 of 7", "a string", "an array of 4 f32".
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::String(_) => "a string".to_owned(),
            Self::Array(array) => format!("an array of {} {}", array.len(), array.element()),
            Self::Bool(fact) => format!("a bool of {fact}"),
            _ => match (self.as_integer(), self.as_float()) {
                (Some(n), _) => format!("{} of {n}", with_article(self.kind())),
                (_, Some(x)) => format!("{} of {x}", with_article(self.kind())),
                _ => with_article(self.kind()),
            },
        }
    }
}

fn with_article(kind: ValueType) -> String {
    let article = match kind {
        ValueType::I8 | ValueType::I16 | ValueType::I32 | ValueType::I64 | ValueType::F32 | ValueType::F64 => "an",
        _ => "a",
    };
    format!("{article} {kind}")
}

/// Where every sixteenth entry of a string array starts; made when somebody first asks for one entry.
pub(super) type StringIndex = OnceLock<Box<[usize]>>;

/// Entries between two points of a [`StringIndex`].
const STRIDE: usize = 16;

/// A metadata array as it lies in the file.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a> {
    element: ValueType,
    len: usize,
    bytes: &'a [u8],
    index: &'a StringIndex,
}

impl<'a> Array<'a> {
    pub(super) fn new(element: ValueType, len: usize, bytes: &'a [u8], index: &'a StringIndex) -> Self {
        Self { element, len, bytes, index }
    }

    /// Type of its entries; never [`ValueType::Array`].
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries as stored.
    pub fn raw(&self) -> &'a [u8] {
        self.bytes
    }

    /// The entries as strings, if that is what they are.
    pub fn strings(&self) -> Option<StringArray<'a>> {
        (self.element == ValueType::String).then_some(StringArray {
            len: self.len,
            bytes: self.bytes,
            index: self.index,
        })
    }

    /// The entries as values, in order. For strings this is slower than [`Array::strings`].
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (element, size) = (self.element, self.element.size());
        let numbers = size.map(|size| self.bytes.chunks_exact(size).filter_map(move |b| Value::scalar(element, b)));
        let strings = self.strings().map(|strings| strings.iter().map(Value::String));
        numbers.into_iter().flatten().chain(strings.into_iter().flatten()).take(self.len)
    }
}

/// An array of strings, read in place: nothing is allocated per entry.
#[derive(Clone, Copy, Debug)]
pub struct StringArray<'a> {
    len: usize,
    bytes: &'a [u8],
    index: &'a StringIndex,
}

impl<'a> StringArray<'a> {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All strings in order, straight from the file.
    pub fn iter(&self) -> StringIter<'a> {
        StringIter { rest: self.bytes, left: self.len }
    }

    /// One string. The first call walks the array once to index it; later calls are quick.
    pub fn get(&self, at: usize) -> Option<&'a [u8]> {
        if at >= self.len {
            return None;
        }
        let index = self.index.get_or_init(|| {
            let mut walk = self.iter();
            let mut starts = Vec::with_capacity(self.len.div_ceil(STRIDE));
            for entry in 0..self.len {
                if entry.is_multiple_of(STRIDE) {
                    starts.push(self.bytes.len() - walk.rest.len());
                }
                walk.next();
            }
            starts.into()
        });
        let rest = self.bytes.get(*index.get(at / STRIDE)?..)?;
        StringIter { rest, left: at % STRIDE + 1 }.last()
    }
}

impl<'a> IntoIterator for StringArray<'a> {
    type Item = &'a [u8];
    type IntoIter = StringIter<'a>;

    fn into_iter(self) -> StringIter<'a> {
        self.iter()
    }
}

/// Walks a [`StringArray`].
#[derive(Clone, Debug)]
pub struct StringIter<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for StringIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        // The lengths were checked when the file was opened; if it was overwritten since, entries become empty.
        let entry = self
            .rest
            .split_first_chunk::<8>()
            .and_then(|(length, after)| after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?));
        let (entry, rest) = entry.unwrap_or((&[], &[]));
        self.rest = rest;
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for StringIter<'_> {}
