//! One file's head, checked: header, metadata, tensor descriptions, data section.
//!
//! After [`parse`] every range is inside the file, names are unique, no two tensors share a byte and every tensor is
//! whole blocks. Before that no number from the file sizes an allocation: counts are held against the bytes left (a
//! key takes at least 14 of them, a tensor at least 25) and against fixed limits, string arrays are walked once.
//! Format: GGUF 2 and 3, which are the same for little-endian files.

use farpost_kernels::tensor::{Bytes, DType, Weight};

use super::Tensor;
use super::cursor::{Cursor, Field};
use super::error::{GgufError, Problem};
use super::metadata::{Entry, Metadata, Twins};
use super::value::{StringIndex, ValueType};

/// Longest metadata key, as the format says.
pub(super) const MAX_KEY_BYTES: u64 = 65_535;
/// Longest tensor name, as the format says.
pub(super) const MAX_NAME_BYTES: u64 = 64;
/// Most dimensions of a tensor.
pub(super) const MAX_DIMS: usize = 4;
/// Alignment of files that do not say.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// Largest alignment accepted: padding must not blow up a small file.
pub(super) const MAX_ALIGNMENT: u64 = 1 << 20;
/// Most metadata keys.
pub(super) const MAX_KEYS: u64 = 1 << 16;
/// Most tensors in one file.
pub(super) const MAX_TENSORS: u64 = 1 << 17;
/// Smallest key on disk: length, one byte of name, type, one byte of value.
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Smallest tensor description: length, one byte of name, number of dimensions, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// A checked file.
pub(super) struct Parsed {
    pub(super) version: u32,
    pub(super) alignment: u64,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<Tensor>,
}

/// Checks everything and gives views of `bytes`; `part` is the number of this file in a split model.
pub(super) fn parse(file: &str, bytes: &Bytes, part: usize) -> Result<Parsed, GgufError> {
    let content = bytes.as_slice();
    let mut cursor = Cursor::new(file, content);
    let version = header(&mut cursor)?;
    let n_tensors = cursor.count(MIN_TENSOR_BYTES, MAX_TENSORS, Field::Header("tensor count"))?;
    let n_keys = cursor.count(MIN_KEY_BYTES, MAX_KEYS, Field::Header("metadata count"))?;

    let mut entries = Vec::with_capacity(n_keys as usize);
    let mut key_places = Vec::with_capacity(n_keys as usize);
    for number in 0..n_keys {
        key_places.push(cursor.at());
        entries.push(entry(&mut cursor, number)?);
    }
    let keys = Metadata::new(file.into(), bytes.clone(), entries);
    let metadata = keys.map_err(|Twins { key, first, second }| {
        let problem = Problem::Duplicate { first: key_places[first] as u64 };
        cursor.defect(Field::Key(&key), key_places[second], problem)
    })?;
    let alignment = alignment(&metadata)?;

    let mut drafts = Vec::with_capacity(n_tensors as usize);
    for number in 0..n_tensors {
        drafts.push(Draft::read(&mut cursor, number)?);
    }
    refuse_twins(&cursor, &drafts)?;
    // A file without tensors may end before the padding does.
    let data_start = (cursor.at() as u64).next_multiple_of(alignment);
    let section = (content.len() as u64).saturating_sub(data_start);
    for draft in &drafts {
        draft.check_place(&cursor, alignment, section)?;
    }
    refuse_overlaps(&cursor, &drafts)?;
    let tensors = drafts.iter().map(|draft| draft.finish(bytes, data_start, part)).collect();
    Ok(Parsed { version, alignment, metadata, tensors })
}

/// Magic and version.
fn header(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let magic = cursor.take(4, Field::Header("magic"))?;
    if magic != b"GGUF" {
        let hint = match magic {
            b"FUGG" => " (a GGUF file with its bytes swapped)",
            b"tjgg" | b"fmgg" | b"lmgg" | b"algg" => " (a GGML file from before GGUF; convert it anew)",
            b"PK\x03\x04" => " (a zip or PyTorch file)",
            b"vers" => " (perhaps a Git LFS pointer: the text that stands for the model, not the model)",
            b"<!DO" | b"<htm" | b"<HTM" => " (a web page, not the model)",
            _ => "",
        };
        let problem = Problem::NotGguf { found: format!("'{}'{hint}", magic.escape_ascii()) };
        return Err(cursor.defect(Field::Header("magic"), 0, problem));
    }
    let version = cursor.u32(Field::Header("version"))?;
    let problem = match version {
        2 | 3 => return Ok(version),
        // Swapped, a small number has its low half empty.
        _ if version != 0 && version & 0xFFFF == 0 => Problem::BigEndian,
        _ => Problem::Version { found: version },
    };
    Err(cursor.defect(Field::Header("version"), 4, problem))
}

/// One key and its value.
fn entry(cursor: &mut Cursor<'_>, number: u64) -> Result<Entry, GgufError> {
    let key = cursor.name(MAX_KEY_BYTES, Field::KeyName(number))?;
    let field = Field::Key(key);
    let kind = value_type(cursor, field)?;
    let (kind, array) = if kind == ValueType::Array {
        let place = cursor.at();
        let element = value_type(cursor, field)?;
        if element == ValueType::Array {
            return Err(cursor.defect(field, place, Problem::NestedArray));
        }
        let each = element.size().unwrap_or(8) as u64;
        (element, Some(cursor.count(each, u64::MAX, field)?))
    } else {
        (kind, None)
    };
    let mut start = cursor.at();
    match (kind.size(), array) {
        (Some(size), _) => {
            // `count` made sure that this product is no more than what is left.
            let values = cursor.take(size as u64 * array.unwrap_or(1), field)?;
            let odd = values.iter().position(|&byte| byte > 1).filter(|_| kind == ValueType::Bool);
            if let Some(at) = odd {
                return Err(cursor.defect(field, start + at, Problem::Bool { found: values[at] }));
            }
        }
        (None, Some(count)) => {
            for _ in 0..count {
                cursor.string(field)?;
            }
        }
        (None, None) => {
            let text = cursor.string(field)?;
            start = cursor.at() - text.len();
        }
    }
    let index = StringIndex::new();
    Ok(Entry { key: key.into(), kind, array: array.map(|n| n as usize), start, end: cursor.at(), index })
}

fn value_type(cursor: &mut Cursor<'_>, field: Field<'_>) -> Result<ValueType, GgufError> {
    let place = cursor.at();
    let id = cursor.u32(field)?;
    ValueType::from_id(id).ok_or_else(|| cursor.defect(field, place, Problem::UnknownValueType { id }))
}

/// `general.alignment`, which must be a u32: readers disagree about anything else.
fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    let found = match metadata.get(KEY) {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(super::Value::U32(found)) => u64::from(found),
        Some(other) => {
            let problem = Problem::WrongType { found: other.describe(), expected: "a u32" };
            return Err(metadata.defect(KEY, problem));
        }
    };
    if found.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&found) {
        return Ok(found);
    }
    Err(metadata.defect(KEY, Problem::Alignment { found }))
}

/// A tensor description whose place in the data section is not checked yet.
struct Draft<'a> {
    name: &'a str,
    dtype: DType,
    dims: [usize; MAX_DIMS],
    n_dims: usize,
    rows: usize,
    bytes: u64,
    offset: u64,
    /// Where its name and its offset field stand in the file.
    at: usize,
    offset_at: usize,
}

impl<'a> Draft<'a> {
    fn read(cursor: &mut Cursor<'a>, number: u64) -> Result<Self, GgufError> {
        let at = cursor.at();
        let name = cursor.name(MAX_NAME_BYTES, Field::TensorName(number))?;

        let shape_at = cursor.at();
        let field = Field::Tensor(name, "dimensions");
        let n_dims = cursor.u32(field)?;
        if n_dims as usize > MAX_DIMS {
            return Err(cursor.defect(field, shape_at, Problem::DimensionCount { found: n_dims }));
        }
        let n_dims = n_dims as usize;
        let mut stored = [1_u64; MAX_DIMS];
        for dim in &mut stored[..n_dims] {
            *dim = cursor.u64(field)?;
        }

        let type_at = cursor.at();
        let id = cursor.u32(Field::Tensor(name, "type"))?;
        let dtype =
            DType::from_id(id).ok_or_else(|| cursor.defect(Field::Tensor(name, "type"), type_at, unusable_type(id)))?;
        if !stored[0].is_multiple_of(dtype.block_len() as u64) {
            let problem = Problem::PartialBlock { cols: stored[0], dtype };
            return Err(cursor.defect(field, shape_at, problem));
        }
        let Some((dims, rows, bytes)) = sizes(stored, dtype) else {
            let dims = stored[..n_dims].iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
            return Err(cursor.defect(field, shape_at, Problem::ShapeOverflow { dims }));
        };

        let offset_at = cursor.at();
        let offset = cursor.u64(Field::Tensor(name, "offset"))?;
        Ok(Self { name, dtype, dims, n_dims, rows, bytes, offset, at, offset_at })
    }

    fn check_place(&self, cursor: &Cursor<'_>, alignment: u64, section: u64) -> Result<(), GgufError> {
        let (found, bytes) = (self.offset, self.bytes);
        let problem = if !found.is_multiple_of(alignment) {
            Problem::Misaligned { found, alignment }
        } else if found.checked_add(bytes).is_none_or(|end| end > section) {
            Problem::OutsideData { found, bytes, section }
        } else {
            return Ok(());
        };
        Err(cursor.defect(Field::Tensor(self.name, "offset"), self.offset_at, problem))
    }

    fn finish(&self, bytes: &Bytes, data_start: u64, part: usize) -> Tensor {
        // An empty tensor may be said to lie where the file has ended: clamp, so that its empty range is inside.
        let start = ((data_start + self.offset) as usize).min(bytes.len());
        let view = bytes.slice(start..start + self.bytes as usize).expect("`check_place` kept it inside the file");
        let weight = Weight::new(self.name, self.dtype, self.rows, self.dims[0], view)
            .expect("`sizes` computed the bytes from the same shape");
        Tensor {
            weight,
            dims: self.dims,
            n_dims: self.n_dims,
            offset: data_start + self.offset,
            part,
            described_at: self.at as u64,
        }
    }
}

/// Dimensions, rows and bytes of a shape as this machine counts them; `None` on overflow.
///
/// The product of the dimensions after the first must fit even if another dimension is zero.
pub(super) fn sizes(stored: [u64; MAX_DIMS], dtype: DType) -> Option<([usize; MAX_DIMS], usize, u64)> {
    let mut dims = [1_usize; MAX_DIMS];
    for (dim, stored) in dims.iter_mut().zip(stored) {
        *dim = usize::try_from(stored).ok()?;
    }
    let rows = dims[1..].iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim.max(1)))?;
    rows.checked_mul(dims[0].max(1))?;
    let rows = if dims[1..].contains(&0) { 0 } else { rows };
    let bytes = dtype.row_bytes(dims[0])?.checked_mul(rows)?;
    // A slice cannot be longer than isize::MAX bytes.
    isize::try_from(bytes).ok()?;
    Some((dims, rows, bytes as u64))
}

/// Ids that are taken but name no type of weights, and those that were given up.
fn unusable_type(id: u32) -> Problem {
    const REMOVED: &str = "it was removed from the format; quantize the model anew";
    const PACKED: &str = "repacked types were removed from the format; use the plain type, it is packed at load";
    const SCRATCH: &str = "it is for intermediate results, not for files";
    const INTEGER: &str = "weights are floats or quantized blocks";
    let (name, why) = match id {
        4 => ("q4_2", REMOVED),
        5 => ("q4_3", REMOVED),
        9 => ("q8_1", SCRATCH),
        15 => ("q8_k", SCRATCH),
        24 => ("i8", INTEGER),
        25 => ("i16", INTEGER),
        26 => ("i32", INTEGER),
        27 => ("i64", INTEGER),
        28 => ("f64", "weights of 64-bit floats are not used; convert them to f32"),
        31 => ("q4_0_4_4", PACKED),
        32 => ("q4_0_4_8", PACKED),
        33 => ("q4_0_8_8", PACKED),
        36 => ("iq4_nl_4_4", PACKED),
        37 => ("iq4_nl_4_8", PACKED),
        38 => ("iq4_nl_8_8", PACKED),
        41 => ("q1_0", "no kernel reads it yet"),
        _ => return Problem::UnknownTensorType { id },
    };
    Problem::UnsupportedTensorType { id, name, why }
}

fn refuse_twins(cursor: &Cursor<'_>, drafts: &[Draft<'_>]) -> Result<(), GgufError> {
    let mut by_name: Vec<&Draft<'_>> = drafts.iter().collect();
    by_name.sort_by_key(|draft| (draft.name, draft.at));
    for pair in by_name.windows(2) {
        if pair[0].name == pair[1].name {
            let problem = Problem::Duplicate { first: pair[0].at as u64 };
            return Err(cursor.defect(Field::Tensor(pair[1].name, "name"), pair[1].at, problem));
        }
    }
    Ok(())
}

fn refuse_overlaps(cursor: &Cursor<'_>, drafts: &[Draft<'_>]) -> Result<(), GgufError> {
    let mut by_place: Vec<&Draft<'_>> = drafts.iter().filter(|draft| draft.bytes > 0).collect();
    by_place.sort_by_key(|draft| (draft.offset, draft.at));
    for pair in by_place.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let problem = Problem::Overlap { found: pair[1].offset, other: pair[0].name.to_owned() };
            return Err(cursor.defect(Field::Tensor(pair[1].name, "offset"), pair[1].offset_at, problem));
        }
    }
    Ok(())
}

/// Names of `tensors` in order: their numbers, sorted by name.
pub(super) fn sorted_by_name(tensors: &[Tensor]) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..tensors.len() as u32).collect();
    numbers.sort_by_key(|&number| tensors[number as usize].name());
    numbers
}
