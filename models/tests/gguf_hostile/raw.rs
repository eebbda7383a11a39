//! A GGUF file put together field by field, so that any field can be made wrong and its place be known.

/// A metadata key as it stands in the file.
#[derive(Clone)]
pub struct Key {
    pub name: Vec<u8>,
    /// Written as the name's length in place of the true one.
    pub name_length: Option<u64>,
    pub kind: u32,
    pub value: Vec<u8>,
}

/// A tensor description as it stands in the file.
#[derive(Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    /// Written as the name's length in place of the true one.
    pub name_length: Option<u64>,
    /// Written as the number of dimensions in place of the true one.
    pub n_dims: Option<u32>,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

/// A field of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Magic,
    Version,
    TensorCount,
    KeyCount,
    KeyName(usize),
    KeyType(usize),
    KeyValue(usize),
    TensorName(usize),
    TensorDims(usize),
    TensorType(usize),
    TensorOffset(usize),
    Data,
}

/// A whole file, right or wrong.
#[derive(Clone)]
pub struct Raw {
    pub magic: [u8; 4],
    pub version: u32,
    /// Written in place of the true count.
    pub n_tensors: Option<u64>,
    /// Written in place of the true count.
    pub n_keys: Option<u64>,
    pub keys: Vec<Key>,
    pub tensors: Vec<Tensor>,
    /// Where the data section is aligned.
    pub alignment: usize,
    pub data: Vec<u8>,
}

/// A text with its length before it.
pub fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

/// An array value: type and number of its entries, then what follows.
pub fn array(element: u32, count: u64, entries: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &count.to_le_bytes(), entries].concat()
}

impl Raw {
    /// A valid file with values of several kinds and three tensors that leave no byte of the data section unused but
    /// for padding: key 0 is a string, 1 a u32, 2 an array of bools, 3 one of strings, 4 a f32.
    pub fn valid() -> Self {
        let words = [text(b"one"), text(b""), text(b"three")].concat();
        let mut raw = Self {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_keys: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: (0..144).collect(),
        };
        raw.key("general.architecture", 8, &text(b"toy"));
        raw.key("toy.block_count", 4, &2_u32.to_le_bytes());
        raw.key("toy.flags", 9, &array(7, 3, &[0, 1, 1]));
        raw.key("toy.words", 9, &array(8, 3, &words));
        raw.key("toy.scale", 6, &1.5_f32.to_le_bytes());
        raw.tensor("a", 0, &[4, 2], 0);
        raw.tensor("b", 8, &[32, 2], 32);
        raw.tensor("c", 0, &[4], 128);
        raw
    }

    /// Adds a key at the end.
    pub fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        self.keys.push(Key { name: name.into(), name_length: None, kind, value: value.to_vec() });
    }

    /// Adds a tensor at the end.
    pub fn tensor(&mut self, name: &str, kind: u32, dims: &[u64], offset: u64) {
        let (name, dims) = (name.into(), dims.to_vec());
        self.tensors.push(Tensor { name, name_length: None, n_dims: None, dims, kind, offset });
    }

    /// The file, and where each field begins.
    pub fn build(&self) -> (Vec<u8>, Vec<(Place, usize)>) {
        let (mut out, mut places) = (Vec::new(), Vec::new());
        let mut put = |place: Option<Place>, bytes: &[u8]| {
            places.extend(place.map(|place| (place, out.len())));
            out.extend_from_slice(bytes);
            out.len()
        };
        put(Some(Place::Magic), &self.magic);
        put(Some(Place::Version), &self.version.to_le_bytes());
        put(Some(Place::TensorCount), &self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        put(Some(Place::KeyCount), &self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (number, key) in self.keys.iter().enumerate() {
            let length = key.name_length.unwrap_or(key.name.len() as u64);
            put(Some(Place::KeyName(number)), &length.to_le_bytes());
            put(None, &key.name);
            put(Some(Place::KeyType(number)), &key.kind.to_le_bytes());
            put(Some(Place::KeyValue(number)), &key.value);
        }
        for (number, tensor) in self.tensors.iter().enumerate() {
            let length = tensor.name_length.unwrap_or(tensor.name.len() as u64);
            put(Some(Place::TensorName(number)), &length.to_le_bytes());
            put(None, &tensor.name);
            let n_dims = tensor.n_dims.unwrap_or(tensor.dims.len() as u32);
            put(Some(Place::TensorDims(number)), &n_dims.to_le_bytes());
            tensor.dims.iter().for_each(|dim| {
                put(None, &dim.to_le_bytes());
            });
            put(Some(Place::TensorType(number)), &tensor.kind.to_le_bytes());
            put(Some(Place::TensorOffset(number)), &tensor.offset.to_le_bytes());
        }
        let end = put(None, &[]);
        put(None, &vec![0; end.next_multiple_of(self.alignment) - end]);
        put(Some(Place::Data), &self.data);
        (out, places)
    }

    /// The file alone.
    pub fn bytes(&self) -> Vec<u8> {
        self.build().0
    }
}
