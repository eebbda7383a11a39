//! Random numbers for sampling and for made-up loads: PCG XSL-RR 128/64 (O'Neill 2014), the same on every platform and forever.
//!
//! A stream is decided by its seed alone, so a seed in a request decides the text. Not for secrets.

use std::hash::{BuildHasher, RandomState};

const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

/// A stream of random bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Random {
    state: u128,
    increment: u128,
}

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self::with_stream(u128::from(seed), 0)
    }

    fn with_stream(seed: u128, stream: u128) -> Self {
        let mut random = Self { state: 0, increment: (stream << 1) | 1 };
        random.step();
        random.state = random.state.wrapping_add(seed);
        random.step();
        random
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    /// 64 random bits.
    fn bits(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// A number in [0, 1), one of 2^53.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A seed that nobody chose, for requests that name none. Other on every call.
pub fn fresh_seed() -> u64 {
    RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_the_published_generator() {
        let mut random = Random::with_stream(42, 54);
        let published = [
            0x86B1_DA1D_7206_2B68,
            0x1304_AA46_C985_3D39,
            0xA367_0E9E_0DD5_0358,
            0xF909_0E52_9A7D_AE00,
            0xC85B_9FD8_3799_6F2C,
            0x6061_21F8_E391_9196,
        ];
        assert_eq!(published.map(|_| random.bits()), published);
    }

    #[test]
    fn units_are_even_and_below_one() {
        let mut random = Random::new(7);
        let mut bins = [0_u32; 16];
        for _ in 0..160_000 {
            let unit = random.unit();
            assert!((0.0..1.0).contains(&unit));
            bins[(unit * 16.0) as usize] += 1;
        }
        assert!(bins.iter().all(|&n| n.abs_diff(10_000) < 500), "{bins:?}");
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
