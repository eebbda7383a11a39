//! The sampler as a whole: distributions, seeds, exactness of shortened answers, speed of a large vocabulary.

use super::*;
use crate::engine::sampling::{Dry, Mirostat, Xtc};
use proptest::prelude::*;

const ROW: [f32; 8] = [0.0, 1.0, 2.0, -1.0, 0.5, 3.0, -2.0, 2.5];

fn sampler(sampling: Sampling, n_vocab: usize) -> Sampler {
    Sampler::new(sampling, n_vocab, Breakers::default()).unwrap()
}

fn choose(sampling: &Sampling, row: &[f32], prompt: &[u32], generated: &[u32]) -> Result<Chosen, SampleError> {
    sampler(sampling.clone(), row.len()).choose(&Answer::Logits(row.to_vec()), prompt, generated)
}

/// Ids of `n` draws, each seeing those before it.
fn text(sampling: &Sampling, row: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = sampler(sampling.clone(), row.len());
    let answer = Answer::Logits(row.to_vec());
    let mut ids = Vec::new();
    for _ in 0..n {
        ids.push(sampler.choose(&answer, &[], &ids).unwrap().id);
    }
    ids
}

/// What a device would answer.
fn shortened(row: &[f32], kind: WantKind) -> Answer {
    let mut ranked: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let log_sum_exp = row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    match kind {
        WantKind::Greedy => Answer::Greedy(ranked[0].0),
        WantKind::TopK(k) => Answer::TopK { best: ranked[..k].to_vec(), log_sum_exp },
        _ => Answer::Logits(row.to_vec()),
    }
}

/// Checks that the draws are distributed as `expected`: Pearson's statistic, with a bound that chance alone passes once
/// in many millions of seeds. The seed is fixed: it never does here.
fn follows(ids: &[u32], expected: &[f64]) {
    let mut statistic = 0.0;
    let mut freedom = -1.0;
    for (id, probability) in (0..).zip(expected) {
        let found = ids.iter().filter(|other| **other == id).count() as f64;
        if *probability == 0.0 {
            assert_eq!(found, 0.0, "token {id} was left out");
            continue;
        }
        let mean = probability * ids.len() as f64;
        statistic += (found - mean) * (found - mean) / mean;
        freedom += 1.0;
    }
    assert!(statistic < freedom + 8.0 * (2.0_f64 * freedom).sqrt() + 10.0, "statistic {statistic}, freedom {freedom}");
}

/// The distribution of logits over a temperature, with only `kept` left.
fn distribution(row: &[f32], temperature: f64, kept: impl Fn(u32) -> bool) -> Vec<f64> {
    let weights: Vec<f64> = (0..)
        .zip(row)
        .map(|(id, &logit)| if kept(id) { (f64::from(logit) / temperature).exp() } else { 0.0 })
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

#[test]
fn draws_follow_the_distribution_at_every_temperature() {
    for temperature in [0.3, 1.0, 2.5, 10.0] {
        let sampling = Sampling { temperature, seed: 11, ..Sampling::default() };
        follows(&text(&sampling, &ROW, 40_000), &distribution(&ROW, f64::from(temperature), |_| true));
    }
}

#[test]
fn filters_come_before_temperature() {
    // Of the distribution at temperature 1, 5 and 7 have 0.73; at temperature 10 they would have 0.3.
    let sampling = Sampling { temperature: 10.0, top_p: 0.7, seed: 3, ..Sampling::default() };
    follows(&text(&sampling, &ROW, 20_000), &distribution(&ROW, 10.0, |id| [5, 7].contains(&id)));
    let sampling = Sampling { temperature: 2.0, top_k: 3, seed: 3, ..Sampling::default() };
    follows(&text(&sampling, &ROW, 20_000), &distribution(&ROW, 2.0, |id| [2, 5, 7].contains(&id)));
}

#[test]
fn xtc_leaves_out_the_best_as_often_as_asked() {
    let sampling = Sampling { xtc: Xtc { probability: 0.25, threshold: 0.2 }, seed: 9, ..Sampling::default() };
    let all = distribution(&ROW, 1.0, |_| true);
    // Top choices are 5 (0.43) and 7 (0.26); 7 is the least of them.
    let without = distribution(&ROW, 1.0, |id| id != 5);
    let mixed: Vec<f64> = all.iter().zip(&without).map(|(all, without)| 0.75 * all + 0.25 * without).collect();
    follows(&text(&sampling, &ROW, 40_000), &mixed);
}

#[test]
fn temperature_zero_takes_the_best_and_of_equals_the_lowest_id() {
    let row = [1.0, 7.0, 3.0, 7.0];
    assert_eq!(choose(&Sampling::greedy(), &row, &[], &[]).unwrap().id, 1);
    let filters = Sampling {
        xtc: Xtc { probability: 1.0, threshold: 0.0 },
        mirostat: Some(Mirostat::default()),
        typical_p: 0.1,
        ..Sampling::greedy()
    };
    assert_eq!(choose(&filters, &row, &[], &[]).unwrap().id, 1, "filters have no say");
    let penalised = Sampling { presence_penalty: 5.0, ..Sampling::greedy() };
    assert_eq!(choose(&penalised, &row, &[1], &[]).unwrap().id, 3, "penalties have");
    let biased = Sampling { logit_bias: [(2, 4.0)].into(), ..Sampling::greedy() };
    assert_eq!(choose(&biased, &row, &[], &[]).unwrap().id, 1);
}

#[test]
fn a_fixed_seed_gives_the_same_ids_today_and_tomorrow() {
    let row: Vec<f32> = (0..1000).map(|id| ((id * 7919) % 1000) as f32 * 0.01).collect();
    let sampling = Sampling { temperature: 0.9, top_k: 50, top_p: 0.95, min_p: 0.05, seed: 42, ..Sampling::default() };
    let ids = text(&sampling, &row, 8);
    assert_eq!(ids, text(&sampling, &row, 8));
    assert_ne!(ids, text(&Sampling { seed: 43, ..sampling.clone() }, &row, 8));
    // These ids are part of what the program promises: the same text for the same seed in every version.
    assert_eq!(ids, [247, 420, 136, 531, 309, 778, 704, 457]);
}

#[test]
fn penalties_see_what_the_request_says() {
    let row = [2.0, 2.0, 1.0];
    let sampling = Sampling { presence_penalty: 3.0, ..Sampling::greedy() };
    assert_eq!(choose(&sampling, &row, &[0], &[1]).unwrap().id, 2);
    let generated_only = Sampling { penalise_prompt: false, ..sampling.clone() };
    assert_eq!(choose(&generated_only, &row, &[0], &[1]).unwrap().id, 0);
    let last_only = Sampling { penalty_last_n: Some(1), ..sampling };
    assert_eq!(choose(&last_only, &row, &[1, 0], &[]).unwrap().id, 1, "the window spans prompt and generated text");
    assert_eq!(choose(&last_only, &row, &[0], &[1]).unwrap().id, 0);
}

#[test]
fn dry_stops_a_loop() {
    let mut row = [0.0; 6];
    row[3] = 1.0;
    let prompt = [1, 2, 3, 4, 1, 2];
    let dry = Dry { multiplier: 2.0, base: 2.0, allowed_length: 2, ..Dry::default() };
    let sampling = Sampling { dry, ..Sampling::greedy() };
    assert_eq!(choose(&sampling, &row, &prompt, &[]).unwrap().id, 0);
    assert_eq!(choose(&Sampling::greedy(), &row, &prompt, &[]).unwrap().id, 3);
    assert_eq!(choose(&sampling, &row, &prompt[..4], &prompt[4..]).unwrap().id, 0, "wherever the prompt ends");
}

#[test]
fn forbidden_tokens_never_come_and_if_all_are_it_is_an_error() {
    let bias = |ids: std::ops::Range<u32>| ids.map(|id| (id, f32::NEG_INFINITY)).collect();
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature, logit_bias: bias(1..8), ..Sampling::default() };
        assert_eq!(choose(&sampling, &ROW, &[], &[]).unwrap().id, 0);
        let sampling = Sampling { temperature, logit_bias: bias(0..8), ..Sampling::default() };
        assert_eq!(choose(&sampling, &ROW, &[], &[]), Err(SampleError::NothingLeft));
    }
}

#[test]
fn what_is_no_number_is_an_error_that_names_the_token() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let mut row = ROW;
        row[6] = bad;
        for sampling in [Sampling::default(), Sampling::greedy(), Sampling { top_k: 1, ..Sampling::default() }] {
            let error = choose(&sampling, &row, &[], &[]).unwrap_err();
            assert!(error.to_string().starts_with("the logit of token 6 is "), "{error}");
        }
    }
    let sampling = Sampling { top_k: 2, ..Sampling::default() };
    let answer = Answer::TopK { best: vec![(3, f32::NAN), (1, 0.0)], log_sum_exp: 0.0 };
    assert!(matches!(sampler(sampling, 8).choose(&answer, &[], &[]), Err(SampleError::Unusable { id: 3, .. })));
}

#[test]
fn logprobs_are_those_of_the_model_before_anything_changes_them() {
    let truth = distribution(&ROW, 1.0, |_| true);
    let sampling = Sampling {
        temperature: 0.2,
        top_k: 2,
        logprobs: Some(3),
        logit_bias: [(0, 900.0)].into(),
        ..Sampling::default()
    };
    let chosen = choose(&sampling, &ROW, &[], &[]).unwrap();
    let logprobs = chosen.logprobs.unwrap();
    assert_eq!(chosen.id, 0);
    assert!((f64::from(logprobs.chosen) - truth[0].ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5, 7, 2]);
    for (id, logprob) in logprobs.top {
        assert!((f64::from(logprob) - truth[id as usize].ln()).abs() < 1e-6);
    }
    let none_beside = Sampling { logprobs: Some(0), ..Sampling::greedy() };
    let logprobs = choose(&none_beside, &ROW, &[], &[]).unwrap().logprobs.unwrap();
    assert!(logprobs.top.is_empty() && (f64::from(logprobs.chosen) - truth[5].ln()).abs() < 1e-6);
}

#[test]
fn a_sampler_asks_for_no_more_than_it_needs() {
    let wants = |sampling: Sampling| sampler(sampling, 1000).wants();
    assert_eq!(wants(Sampling::greedy()), WantKind::Greedy);
    assert_eq!(wants(Sampling { logprobs: Some(0), ..Sampling::greedy() }), WantKind::TopK(1));
    assert_eq!(wants(Sampling { logprobs: Some(5), ..Sampling::greedy() }), WantKind::TopK(5));
    assert_eq!(wants(Sampling { presence_penalty: 0.1, ..Sampling::greedy() }), WantKind::Logits);
    assert_eq!(wants(Sampling { logit_bias: [(1, 1.0)].into(), ..Sampling::greedy() }), WantKind::Logits);
    assert_eq!(wants(Sampling::default()), WantKind::Logits);
    let top_k = Sampling { top_k: 40, top_p: 0.9, ..Sampling::default() };
    assert_eq!(wants(top_k.clone()), WantKind::TopK(40));
    assert_eq!(wants(Sampling { logprobs: Some(50), ..top_k.clone() }), WantKind::TopK(50));
    assert_eq!(wants(Sampling { top_k: 5000, ..top_k.clone() }), WantKind::Logits);
    assert_eq!(wants(Sampling { mirostat: Some(Mirostat::default()), ..top_k.clone() }), WantKind::Logits);
    assert_eq!(wants(Sampling { dry: Dry { multiplier: 0.8, ..Dry::default() }, ..top_k }), WantKind::Logits);
}

#[test]
fn answers_that_do_not_suffice_are_refused() {
    let mut sampler = sampler(Sampling { top_k: 3, ..Sampling::default() }, 8);
    let error = sampler.choose(&shortened(&ROW, WantKind::TopK(2)), &[], &[]).unwrap_err();
    assert_eq!(error.to_string(), "the step answered TopK(2), expected TopK(3)");
    let error = sampler.choose(&Answer::Greedy(1), &[], &[]).unwrap_err();
    assert_eq!(error.to_string(), "the step answered Greedy, expected TopK(3)");
    let error = sampler.choose(&Answer::Logits(vec![0.0; 7]), &[], &[]).unwrap_err();
    assert_eq!(error.to_string(), "the step answered 7 logits, expected TopK(3)");
}

#[test]
fn biases_of_tokens_outside_the_vocabulary_are_refused() {
    let sampling = Sampling { logit_bias: [(8, 1.0)].into(), ..Sampling::default() };
    let error = Sampler::new(sampling, 8, Breakers::default()).unwrap_err();
    assert_eq!(error.to_string(), "logit_bias names token 8, the model has 8");
}

proptest! {
    #[test]
    fn shortened_answers_give_the_same_token_and_logprobs_as_all_logits(
        row in prop::collection::vec((-30_i32..30).prop_map(|step| step as f32 * 0.25), 30..80),
        top_k in 0_usize..20,
        temperature in prop_oneof![Just(0.0_f32), 0.1_f32..3.0],
        top_p in 0.1_f32..=1.0,
        min_p in 0.0_f32..0.3,
        typical_p in 0.1_f32..=1.0,
        xtc in 0.0_f32..0.5,
        logprobs in prop::option::of(0_usize..20),
        seed in any::<u64>(),
    ) {
        let xtc = Xtc { probability: 0.5, threshold: xtc };
        let sampling =
            Sampling { top_k, temperature, top_p, min_p, typical_p, xtc, logprobs, seed, ..Sampling::default() };
        let (mut whole, mut short) = (sampler(sampling.clone(), row.len()), sampler(sampling, row.len()));
        let (all, answer) = (Answer::Logits(row.clone()), shortened(&row, short.wants()));
        for _ in 0..4 {
            let (whole, short) = (whole.choose(&all, &[], &[]).unwrap(), short.choose(&answer, &[], &[]).unwrap());
            prop_assert_eq!(whole.id, short.id);
            prop_assert_eq!(whole.logprobs.is_some(), short.logprobs.is_some());
            for (whole, short) in whole.logprobs.iter().zip(&short.logprobs) {
                prop_assert!((whole.chosen - short.chosen).abs() < 1e-5);
                prop_assert_eq!(whole.top.len(), short.top.len());
            }
        }
    }

    #[test]
    fn any_allowed_request_gets_a_token_it_allows(
        row in prop::collection::vec(prop_oneof![-20.0_f32..20.0, Just(1e30), Just(-1e30), Just(0.0)], 2..60),
        temperature in prop_oneof![Just(0.0_f32), Just(f32::MIN_POSITIVE), 0.0_f32..=10.0],
        (top_k, top_p, min_p, typical_p) in (0_usize..9, 1e-6_f32..=1.0, 0.0_f32..=1.0, 1e-6_f32..=1.0),
        penalties in (0.01_f32..10.0, -10.0_f32..10.0, -10.0_f32..10.0),
        tau in prop::option::of(0.01_f32..20.0),
        multiplier in 0.0_f32..100.0,
        history in prop::collection::vec(0_u32..70, 0..40),
        seed in any::<u64>(),
    ) {
        let mirostat = tau.map(|tau| Mirostat { tau, eta: 0.3 });
        let sampling = Sampling {
            temperature, top_k, top_p, min_p, typical_p, mirostat, seed,
            repetition_penalty: penalties.0,
            presence_penalty: penalties.1,
            frequency_penalty: penalties.2,
            dry: Dry { multiplier, ..Dry::default() },
            logit_bias: [(0, f32::NEG_INFINITY)].into(),
            logprobs: Some(3),
            ..Sampling::default()
        };
        let chosen = choose(&sampling, &row, &history, &[]).unwrap();
        prop_assert!(chosen.id > 0 && (chosen.id as usize) < row.len());
    }
}

/// The best of all is taken where it is allowed; that is what all that is allowed has as its best.
#[cfg(all(feature = "grammar", feature = "pocket"))]
#[test]
fn the_best_token_of_a_form_is_the_best_of_all_it_allows() {
    use crate::engine::grammar::{Grammar, compile};
    let model = crate::Model::pocket().unwrap();
    let schema = r#"{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array", "items":
        {"type": "integer"}}}, "required": ["a", "b"], "additionalProperties": false}"#;
    let forms = [
        Grammar::JsonSchema(schema.to_owned()),
        Grammar::JsonObject,
        Grammar::Regex("[a-z ]{3,9}(\\.[0-9]+)*".to_owned()),
        Grammar::Lark("start: (\"on\" | \"off\")+ /[^x]*/".to_owned()),
    ];
    let n_vocab = model.graph().n_vocab();
    let (mut n_taken, mut n_refused) = (0, 0);
    for (number, form) in forms.iter().cycle().take(24).enumerate() {
        let mut sampler = Sampler::new(Sampling::greedy(), n_vocab, Breakers::default())
            .unwrap()
            .with_constraint(Some(compile(&model, form).unwrap()));
        let mut constraint = compile(&model, form).unwrap();
        let mut written = Vec::new();
        let mut random = Random::new(number as u64);
        for _ in 0..40 {
            let row: Vec<f32> = (0..n_vocab).map(|_| (random.unit() * 64.0).round() as f32).collect();
            constraint.advance().unwrap();
            let is_allowed = |id: usize| constraint.mask()[id / 32] >> (id % 32) & 1 == 1;
            let all = row.iter().copied().enumerate();
            let better = |best: (usize, f32), next: (usize, f32)| if next.1 > best.1 { next } else { best };
            let expected = all.clone().filter(|(id, _)| is_allowed(*id)).reduce(better).unwrap().0;
            let is_best = all.reduce(better).unwrap().0 == expected;
            (n_taken, n_refused) = (n_taken + usize::from(is_best), n_refused + usize::from(!is_best));
            let chosen = sampler.choose(&Answer::Logits(row), &[], &written).unwrap().id;
            assert_eq!(chosen as usize, expected, "{form:?} after {written:?}");
            if model.tokenizer().is_stop(chosen) {
                break;
            }
            constraint.push(chosen).unwrap();
            written.push(chosen);
        }
    }
    assert!(n_taken > 20 && n_refused > 20, "{n_taken} taken, {n_refused} refused");
}
