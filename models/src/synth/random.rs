//! Random numbers that depend on a seed and a tensor's name alone (splitmix64, by its public specification).

/// A stream of random bits.
pub(super) struct Random {
    state: u64,
}

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Random {
    /// The stream of `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self { state: mix(seed ^ STEP) }
    }

    /// The stream of one tensor of a model.
    pub(super) fn for_tensor(seed: u64, name: &str) -> Self {
        let hashed = name.bytes().fold(seed, |hash, byte| mix(hash.wrapping_add(STEP) ^ u64::from(byte)));
        Self::new(hashed)
    }

    /// 64 random bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// A number in [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `bound`, which is not zero; fair enough for bounds far below 2^64.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// Fills `out` with random bytes.
    pub(super) fn fill(&mut self, out: &mut [u8]) {
        let mut words = out.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.bits().to_le_bytes());
        }
        let rest = words.into_remainder();
        let bits = self.bits().to_le_bytes();
        rest.copy_from_slice(&bits[..rest.len()]);
    }
}
