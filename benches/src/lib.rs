//! What the benches share: weights of any type with random codes and sane scales.

pub mod of_roof;

use farpost_kernels::tensor::{Bytes, DType, Weight};

/// A small generator of pseudo-random numbers.
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number from -1 to 1.
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A weight of random bits. Speed does not depend on values, but for what is not finite or subnormal: the exponents of
/// all 16-bit words are kept in the middle of their range.
pub fn random_weight(dtype: DType, rows: usize, cols: usize) -> Weight {
    let mut random = Random::new(7);
    let n_bytes = rows * dtype.row_bytes(cols).expect("benches use whole blocks");
    let mut bytes = Vec::with_capacity(n_bytes + 8);
    while bytes.len() < n_bytes {
        bytes.extend_from_slice(&(random.bits() & 0xBFFF_BFFF_BFFF_BFFF | 0x2020_2020_2020_2020).to_le_bytes());
    }
    bytes.truncate(n_bytes);
    Weight::new("bench", dtype, rows, cols, Bytes::from(bytes)).expect("the size was computed for the shape")
}
