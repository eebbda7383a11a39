//! Exponentials and sums over rows of logits, quick and the same on every platform.
//!
//! The exponential is our own polynomial in plain multiplications and additions: system libraries differ in the last
//! bit, and a fixed seed must give the same text everywhere. Loops are written so that they become vector code.

/// Logits a loop takes at once.
const LANES: usize = 16;

/// Smallest exponent that is told from smaller ones; e^-87 is as good as nothing beside 1.
const LEAST: f32 = -87.0;

/// e^x for x <= 0, relative error below 3e-7; below -87 it stays e^-87.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding and subtracting it leaves the nearest whole number; its low bits are then that number.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with few bits: products with small whole numbers are exact.
    const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = x.max(LEAST);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let r = (x - whole * LN2.0) - whole * LN2.1;
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let value = series.iter().fold(1.0_f32 / 5040.0, |sum, term| sum * r + term);
    // `whole` is -126 to 0, so the exponent below is 1 to 127.
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    value * power
}

/// Logits must lie between minus this and this, so that no sum or difference of them overflows.
pub(super) const MOST_LOGIT: f32 = 1e30;

/// True for what is no number or out of all reason.
pub(super) fn is_unusable(logit: f32) -> bool {
    logit.is_nan() || logit.abs() > MOST_LOGIT
}

/// Place of the first logit that cannot be used.
pub(super) fn first_unusable(row: &[f32]) -> Option<usize> {
    for (chunk, logits) in row.chunks(1024).enumerate() {
        if logits.iter().fold(false, |bad, &logit| bad | is_unusable(logit)) {
            return logits.iter().position(|&logit| is_unusable(logit)).map(|place| chunk * 1024 + place);
        }
    }
    None
}

/// The sum of `weights` in double precision, in an order of its own that does not depend on the processor.
pub(super) fn sum(weights: &[f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &weight) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(weight);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().copied().map(f64::from).sum::<f64>()
}

/// The largest of `logits`; negative infinity if there are none.
pub(super) fn largest(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut most = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (most, &logit) in most.iter_mut().zip(chunk) {
            *most = larger(*most, logit);
        }
    }
    most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// Place of the largest of `logits`, of equals the first; 0 if there are none.
pub(super) fn first_of_largest(logits: &[f32]) -> usize {
    let most = largest(logits);
    for (chunk, logits) in logits.chunks(1024).enumerate() {
        if logits.iter().fold(false, |found, &logit| found | (logit == most)) {
            return logits.iter().position(|&logit| logit == most).map_or(0, |place| chunk * 1024 + place);
        }
    }
    0
}

/// Natural log of the sum of the exponentials of `row`, which is finite and not empty.
pub(super) fn log_sum_exp(row: &[f32]) -> f64 {
    let most = largest(row);
    let mut weights = [0.0; 1024];
    let mut total = 0.0;
    for logits in row.chunks(weights.len()) {
        for (weight, &logit) in weights.iter_mut().zip(logits) {
            *weight = exp(logit - most);
        }
        total += sum(&weights[..logits.len()]);
    }
    f64::from(most) + total.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exponentials_are_right_to_the_last_bits() {
        for step in 0..=870_000 {
            let x = -(step as f32) * 1e-4;
            let (ours, true_value) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / true_value - 1.0).abs() < 3e-7, "e^{x}: {ours} instead of {true_value}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), exp(LEAST));
        assert!(exp(-1e30) < 1e-37);
    }

    proptest! {
        #[test]
        fn the_log_of_the_sum_is_that_of_the_plain_sum(row in prop::collection::vec(-60.0_f32..60.0, 1..100)) {
            let plain = row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
            prop_assert!((log_sum_exp(&row) - plain).abs() < 1e-6);
        }
    }

    #[test]
    fn the_first_of_the_largest_is_found_wherever_it_is() {
        for place in [0, 15, 1023, 1024, 2999] {
            let mut row = vec![-3.0; 3000];
            row[place..].fill(2.0);
            assert_eq!(first_of_largest(&row), place);
        }
        assert_eq!(first_of_largest(&[]), 0);
    }

    #[test]
    fn the_first_bad_logit_is_found_wherever_it_is() {
        let mut row = vec![1.0; 3000];
        assert_eq!(first_unusable(&row), None);
        for (place, bad) in [(2999, f32::NAN), (1024, f32::INFINITY), (5, f32::NEG_INFINITY), (4, -2e30)] {
            row[place] = bad;
            assert_eq!(first_unusable(&row), Some(place));
        }
    }
}
