//! Rotary tables against values computed by hand, and how files choose between them.

use farpost_kernels::graph::RopeStyle;

use super::*;

fn settings(scaling: RopeScaling) -> RopeSettings {
    RopeSettings {
        dims: 8,
        base: 10_000.0,
        windowed_base: None,
        scaling,
        attention_factor: None,
        original_context: 4096,
    }
}

fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} is not {expected}");
    }
}

#[test]
fn plain_frequencies_fall_by_powers_of_the_base() {
    let rope = settings(RopeScaling::None).table(RopeStyle::HalfSplit, None);
    near(&rope.frequencies, &[1.0, 0.1, 0.01, 0.001]);
    assert_eq!((rope.magnitude, rope.style), (1.0, RopeStyle::HalfSplit));
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let rope = settings(RopeScaling::Linear { factor: 8.0 }).table(RopeStyle::Normal, None);
    near(&rope.frequencies, &[0.125, 0.0125, 0.00125, 0.000_125]);
    assert_eq!(rope.magnitude, 1.0);
}

#[test]
fn divisors_of_the_file_divide_their_own_frequency() {
    let rope = settings(RopeScaling::None).table(RopeStyle::Normal, Some(&[1.0, 2.0, 4.0, 32.0]));
    near(&rope.frequencies, &[1.0, 0.05, 0.0025, 0.000_031_25]);
}

#[test]
fn yarn_keeps_fast_pairs_divides_slow_ones_and_blends_between() {
    let yarn = RopeScaling::Yarn { factor: 4.0, mix: 1.0, beta_fast: 32.0, beta_slow: 1.0 };
    let rope = settings(yarn).table(RopeStyle::HalfSplit, None);
    // Over 4096 positions pair 1.309 turns 32 times and pair 2.814 once, so the blend runs from pair 1 to pair 3:
    // pair 2 is half of 0.01 and half of 0.0025.
    near(&rope.frequencies, &[1.0, 0.1, 0.00625, 0.000_25]);
    assert!((rope.magnitude - 1.138_629_4).abs() < 1e-6, "1 + 0.1 ln 4 is not {}", rope.magnitude);
    let given = RopeSettings { attention_factor: Some(1.5), ..settings(yarn) };
    assert_eq!(given.table(RopeStyle::HalfSplit, None).magnitude, 1.5);
}

#[test]
fn yarn_without_a_mix_is_linear() {
    let yarn = RopeScaling::Yarn { factor: 8.0, mix: 0.0, beta_fast: 32.0, beta_slow: 1.0 };
    let linear = settings(RopeScaling::Linear { factor: 8.0 }).table(RopeStyle::Normal, None);
    assert_eq!(settings(yarn).table(RopeStyle::Normal, None), linear);
}

#[test]
fn extreme_settings_give_finite_frequencies() {
    for base in [1.000_000_1, 1e38] {
        for original_context in [1, 1 << 24] {
            for (beta_fast, beta_slow) in [(1e-38, 1e38), (1e38, 1e-38)] {
                let scaling = RopeScaling::Yarn { factor: 1e-38, mix: 1.0, beta_fast, beta_slow };
                let rope = RopeSettings { base, original_context, ..settings(scaling) }.table(RopeStyle::Normal, None);
                assert!(rope.frequencies.iter().all(|frequency| frequency.is_finite()), "{:?}", rope.frequencies);
            }
        }
    }
}
