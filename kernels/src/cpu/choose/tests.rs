//! Choosers against sorting and summing everything at once.

use proptest::prelude::*;

use super::*;

fn reduced(isa: Isa, k: usize, first_id: u32, logits: &[f32]) -> Chooser {
    let mut chooser = Chooser::new(4);
    chooser.begin(k, true);
    // SAFETY: tests pass sets from `Isa::available`.
    unsafe { chooser.take(isa, first_id, logits) };
    chooser
}

fn best(chooser: &Chooser) -> Vec<(u32, f32)> {
    let mut out = vec![(9, 9.0)];
    chooser.best_into(&mut out);
    out
}

fn sorted(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    all.truncate(k);
    all
}

/// Two rounds, the second relative to the first's result: errors of the largest term are gone.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let mut terms: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).collect();
    terms.sort_by(f64::total_cmp);
    largest + terms.iter().sum::<f64>().ln()
}

proptest! {
    #[test]
    fn any_division_on_any_set_gives_the_same_bits(
        values in prop::collection::vec((-40_i32..40, prop::bool::weighted(0.5)), 1..700),
        scale in prop_oneof![Just(1.0_f32), Just(0.37), Just(25.0)],
        cuts in prop::collection::vec(0_usize..700, 0..6),
        k in 0_usize..90,
        order in any::<u64>(),
    ) {
        // Whole numbers give many ties.
        let logits: Vec<f32> =
            values.iter().map(|(value, is_off)| *value as f32 * scale + if *is_off { 0.01 } else { 0.0 }).collect();
        let expected = sorted(&logits, k);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(logits.len())).chain([0, logits.len()]).collect();
        cuts.sort_unstable();
        let whole = reduced(Isa::Scalar, k, 0, &logits);
        for isa in Isa::available() {
            let mut parts: Vec<Chooser> =
                cuts.windows(2).map(|cut| reduced(isa, k, cut[0] as u32, &logits[cut[0]..cut[1]])).collect();
            let n_parts = parts.len();
            parts.rotate_left(order as usize % n_parts);
            let mut merged = parts.swap_remove((order >> 32) as usize % n_parts);
            parts.iter().for_each(|part| merged.merge(part));
            prop_assert_eq!(best(&merged), expected.clone(), "{}", isa);
            prop_assert_eq!(merged.arg_max(), expected.first().map(|entry| entry.0));
            prop_assert_eq!(merged.first_not_finite(), None);
            prop_assert_eq!(merged.log_sum_exp().to_bits(), whole.log_sum_exp().to_bits(), "{}", isa);
        }
        let (found, expected) = (whole.log_sum_exp(), log_sum_exp(&logits));
        prop_assert!((found - expected).abs() <= 1e-10 * expected.abs().max(1.0), "{found}, not {expected}");
    }
}

#[test]
fn a_large_vocabulary_keeps_its_precision() {
    let mut bits = 5_u64;
    let mut value = || {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (bits >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    let random: Vec<f32> = (0..262_144).map(|_| 6.0 * value() + value()).collect();
    let equal = vec![-3.75; 262_144];
    for logits in [random, equal] {
        let expected = log_sum_exp(&logits);
        for isa in Isa::available() {
            let chooser = reduced(isa, 1000, 0, &logits);
            let found = chooser.log_sum_exp();
            assert!((found - expected).abs() <= 1e-11 * expected.abs(), "{isa}: {found}, not {expected}");
            assert_eq!(best(&chooser), sorted(&logits, 1000));
        }
    }
}

#[test]
fn zeros_of_either_sign_tie() {
    let chooser = reduced(Isa::Scalar, 3, 10, &[-0.0, 0.0, -0.0, -1.0]);
    assert_eq!(chooser.arg_max(), Some(10));
}

#[test]
fn what_is_not_finite_is_named_by_its_lowest_id_and_chosen_by_nobody() {
    for isa in Isa::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [3, 70, 130] {
                let mut logits = vec![1.0; 140];
                logits[139] = 2.0;
                (logits[at], logits[at + 2]) = (bad, bad);
                let chooser = reduced(isa, 140, 1000, &logits);
                assert_eq!(chooser.first_not_finite(), Some(1000 + at as u32));
                assert!(chooser.log_sum_exp().is_nan());
                assert_eq!(chooser.arg_max(), Some(1139));
                assert_eq!(best(&chooser).len(), 138);
                let mut first = reduced(isa, 140, 0, &[0.0; 5]);
                first.merge(&chooser);
                assert_eq!(first.first_not_finite(), Some(1000 + at as u32));
            }
        }
    }
}

#[test]
fn absurd_logits_and_none_at_all_have_a_log_sum() {
    for isa in Isa::available() {
        assert_eq!(reduced(isa, 1, 0, &[]).log_sum_exp(), f64::NEG_INFINITY);
        assert_eq!(reduced(isa, 1, 0, &[]).arg_max(), None);
        for largest in [f32::MAX, -1e30, 0.0, 1e5, -1e5] {
            let found = reduced(isa, 1, 0, &[f32::MIN, largest, -2e30]).log_sum_exp();
            assert!((found - f64::from(largest)).abs() <= 1e-10 * f64::from(largest).abs().max(1.0), "{isa}: {found}");
        }
    }
}
