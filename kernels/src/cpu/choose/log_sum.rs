//! Log-sum-exp that does not depend on the order of its terms.
//!
//! e^x is m * 2^n with m near 1; m becomes an integer of 51 bits after the point (exact but for that rounding) and is
//! added to the integer of its n. Integers add up to the same in any order. Only the highest 64 exponents are kept:
//! what lies below adds less than 1 in 2^63 per term.

use super::BLOCK;

/// Exponents kept.
const BINS: usize = 64;

/// Bits after the point of a mantissa.
const POINT: i32 = 51;

/// Beyond it a logit is its own log-sum-exp as far as f64 can tell by 1e-10, and exponents would leave i64.
const LARGEST: f32 = 1.0e12;

/// Adding and subtracting 1.5 * 2^52 rounds to the nearest even whole number.
const MAGIC: f64 = 6_755_399_441_055_744.0;

/// 2^f for |f| <= 1/2 within 1e-12, the highest power first; fitted to minimise the largest relative error.
const TERMS: [f64; 9] = [
    1.3175873880424066e-06,
    1.5309737278461707e-05,
    0.00015403851669354323,
    0.0013333452062831849,
    0.009618128542989287,
    0.05550410939341119,
    0.240226506988797,
    0.6931471805465143,
    0.9999999999997624,
];

#[derive(Clone, Debug)]
pub(super) struct LogSum {
    /// Highest exponent so far; bins hold those down to `top - BINS + 1`, each at its value modulo [`BINS`].
    top: i64,
    bins: [u128; BINS],
    /// Largest logit.
    largest: f32,
}

/// Exponent and mantissa of e^x, for finite x.
#[inline(always)]
fn split(x: f32) -> (i64, u64) {
    let power = f64::from(x.clamp(-LARGEST, LARGEST)) * std::f64::consts::LOG2_E;
    let shifted = power + MAGIC;
    let rest = power - (shifted - MAGIC);
    let mut mantissa = TERMS[0];
    for term in &TERMS[1..] {
        mantissa = mantissa * rest + term;
    }
    // A number from 2 to 4 has 51 bits after the point; those of `mantissa + 2` are what it exceeds 2 by.
    let exponent = shifted.to_bits() as i64 - MAGIC.to_bits() as i64;
    (exponent, (mantissa + 2.0).to_bits() & ((1 << 52) - 1))
}

impl LogSum {
    pub(super) fn new() -> Self {
        Self { top: i64::MIN, bins: [0; BINS], largest: f32::NEG_INFINITY }
    }

    #[inline(always)]
    pub(super) fn take(&mut self, logit: f32) {
        let (exponent, mantissa) = split(logit);
        self.largest = self.largest.max(logit);
        self.add(exponent, u128::from(mantissa));
    }

    #[inline(always)]
    pub(super) fn take_block(&mut self, logits: &[f32; BLOCK]) {
        let (mut exponents, mut mantissas) = ([0; BLOCK], [0; BLOCK]);
        for ((logit, exponent), mantissa) in logits.iter().zip(&mut exponents).zip(&mut mantissas) {
            (*exponent, *mantissa) = split(*logit);
        }
        for ((logit, exponent), mantissa) in logits.iter().zip(exponents).zip(mantissas) {
            self.largest = self.largest.max(*logit);
            self.add(exponent, u128::from(mantissa));
        }
    }

    #[inline(always)]
    fn add(&mut self, exponent: i64, amount: u128) {
        if exponent > self.top {
            self.raise(exponent);
        }
        // Exponents are within 2^41, the lowest `top` is not reached any more.
        if self.top - exponent < BINS as i64 {
            self.bins[exponent as usize % BINS] += amount;
        }
    }

    /// Makes room for a higher exponent: bins of what falls out at the low end start again.
    #[cold]
    fn raise(&mut self, top: i64) {
        let first = self.top.max(top - BINS as i64) + 1;
        for exponent in first..=top {
            self.bins[exponent as usize % BINS] = 0;
        }
        self.top = top;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if other.top == i64::MIN {
            return;
        }
        self.largest = self.largest.max(other.largest);
        for exponent in other.top - BINS as i64 + 1..=other.top {
            let amount = other.bins[exponent as usize % BINS];
            if amount > 0 {
                self.add(exponent, amount);
            }
        }
    }

    pub(super) fn value(&self) -> f64 {
        if self.top == i64::MIN || self.largest.abs() >= LARGEST {
            return f64::from(self.largest);
        }
        let mut total = 0.0;
        for exponent in self.top - BINS as i64 + 1..=self.top {
            total +=
                self.bins[exponent as usize % BINS] as f64 * f64::from((exponent - self.top) as i32 - POINT).exp2();
        }
        total.ln() + self.top as f64 * std::f64::consts::LN_2
    }
}
