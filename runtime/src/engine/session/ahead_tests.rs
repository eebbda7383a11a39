//! With tokens guessed ahead and without, everything that a caller sees is the same, but for the steps it took.
//!
//! The device's answers depend on all tokens before them and mostly go on as the text went on before, so that drafts
//! are often right and often wrong.

use std::ops::ControlFlow;

use proptest::prelude::*;

use super::super::lookup::Speculate;
use super::super::sampling::{Dry, Mirostat, Sampling, Xtc};
use super::tests::{generate, greedy, model, open};
use super::*;
use crate::engine::fake::{Fake, N_COPIED, copying, text_ids};

const HOW: Speculate = Speculate::lookup();

pub(super) fn prompt(model: &Model) -> Vec<u32> {
    let ids = &text_ids(model)[..N_COPIED];
    [ids, &ids[..7], &ids[2..9], &ids[..4]].concat()
}

fn lookup(options: &GenerateOptions) -> GenerateOptions {
    GenerateOptions { speculate: HOW, ..options.clone() }
}

/// All that is told.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    Prefill(usize),
    Token(u32, Option<super::super::sampler::Logprobs>),
    Text(String),
}

/// Generates, with the receiver's `Break` at the event `last`; what was told, the result without times, the cache.
pub(super) fn whole(
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    last: usize,
) -> (Vec<Told>, Generated, Vec<u32>) {
    let mut told = Vec::new();
    let generated = session.generate(prompt, options, &mut |event| {
        told.push(match event {
            Event::Prefill { done_tokens, .. } => Told::Prefill(done_tokens),
            Event::Token { id, logprobs } => Told::Token(id, logprobs.cloned()),
            Event::Text(text) => Told::Text(text.to_owned()),
        });
        if told.len() == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let mut generated = generated.unwrap();
    let timings = &mut generated.timings;
    assert!(timings.accepted_tokens <= timings.drafted_tokens);
    *timings = Timings { generated_tokens: timings.generated_tokens, ..Timings::default() };
    (told, generated, session.cached().to_vec())
}

/// Compares both ways; returns how many drafts were right, and wrong.
fn assert_same(
    fake: impl Fn() -> Fake,
    context: usize,
    batch_rows: usize,
    prompt: &[u32],
    options: &GenerateOptions,
    how: Speculate,
) -> (usize, usize) {
    let guess = GenerateOptions { speculate: how, ..options.clone() };
    let model = model();
    let (plain, ahead) = (fake(), fake());
    let [mut plainly, mut guessing] = [&plain, &ahead].map(|fake| open(&model, fake, context, batch_rows));
    let expected = whole(&mut plainly, prompt, options, 0);
    assert_eq!(whole(&mut guessing, prompt, &guess, 0), expected);
    // The state is the same, too: the conversation goes on.
    let next = [prompt, &expected.1.ids, &prompt[..2]].concat();
    if next.len() <= context {
        let expected = whole(&mut plainly, &next, options, 0);
        assert_eq!(whole(&mut guessing, &next, &guess, 0), expected);
    }
    let counts = |fake: &Fake| {
        let steps = fake.steps.lock().unwrap();
        assert!(steps.iter().all(|batch| batch.rows.len() <= batch_rows));
        (steps.len(), steps.iter().map(|batch| batch.rows.len()).sum::<usize>())
    };
    let ((n_steps, n_rows), (n_fewer_steps, n_more_rows)) = (counts(&plain), counts(&ahead));
    (n_steps - n_fewer_steps, n_more_rows - n_rows)
}

pub(super) fn samplings() -> Vec<(&'static str, Sampling)> {
    let off = || Sampling { seed: 11, ..Sampling::default() };
    let dry = Dry { multiplier: 0.8, sequence_breakers: vec![], ..Dry::default() };
    vec![
        ("greedy", Sampling::greedy()),
        ("greedy with logprobs", Sampling { logprobs: Some(3), ..Sampling::greedy() }),
        ("temperature", Sampling { temperature: 0.7, ..off() }),
        ("top-k, top-p, min-p", Sampling { temperature: 0.9, top_k: 20, top_p: 0.95, min_p: 0.02, ..off() }),
        ("top-k with logprobs", Sampling { temperature: 0.9, top_k: 5, logprobs: Some(8), ..off() }),
        ("typical", Sampling { typical_p: 0.9, ..off() }),
        ("xtc", Sampling { xtc: Xtc { probability: 0.3, threshold: 0.1 }, ..off() }),
        ("mirostat", Sampling { mirostat: Some(Mirostat { tau: 1.5, eta: 0.2 }), ..off() }),
        ("repetition", Sampling { repetition_penalty: 1.1, temperature: 0.6, ..off() }),
        ("frequency and presence", Sampling { frequency_penalty: 0.05, presence_penalty: 0.1, ..Sampling::greedy() }),
        ("dry", Sampling { dry, temperature: 0.5, ..off() }),
        ("bias", Sampling { logit_bias: [(3, f32::NEG_INFINITY), (5, 1.0)].into(), temperature: 0.5, ..off() }),
    ]
}

#[test]
fn every_sampler_chooses_the_same_with_guesses_and_without() {
    let model = model();
    let (mut n_right, mut n_wrong) = (0, 0);
    for (name, sampling) in samplings() {
        for surprise in [3, 20] {
            let options = GenerateOptions { sampling: sampling.clone(), ..greedy(70) };
            let (right, wrong) = assert_same(|| copying(&model, surprise), 250, 64, &prompt(&model), &options, HOW);
            println!("{name}, surprise {surprise}: {right} right, {wrong} wrong");
            (n_right, n_wrong) = (n_right + right, n_wrong + wrong);
        }
    }
    assert!(n_right > 500 && n_wrong > 100, "{n_right} right, {n_wrong} wrong: both were tried");
}

#[test]
fn a_text_that_repeats_itself_takes_a_fraction_of_the_steps() {
    let model = model();
    let fake = copying(&model, u64::MAX);
    let mut session = open(&model, &fake, 250, 64);
    let generated = generate(&mut session, &prompt(&model), &lookup(&greedy(200)));
    let Timings { generated_tokens, drafted_tokens, accepted_tokens, .. } = generated.timings;
    assert_eq!(generated_tokens, 200);
    assert_eq!(fake.steps.lock().unwrap().len(), 200 - accepted_tokens);
    assert!(accepted_tokens > 160 && drafted_tokens - accepted_tokens < 20, "{accepted_tokens} of {drafted_tokens}");
}

#[test]
fn the_end_of_context_and_of_tokens_is_met_exactly() {
    let model = model();
    let prompt = prompt(&model);
    let mut n_right = 0;
    for room in 0..24 {
        let fake = || copying(&model, 50);
        let full = GenerateOptions { max_tokens: None, ..greedy(0) };
        n_right += assert_same(fake, prompt.len() + room, 64, &prompt, &full, HOW).0;
        n_right += assert_same(fake, 200, 64, &prompt, &greedy(room), HOW).0;
        // Steps of few rows: drafts are no longer than fits.
        n_right += assert_same(fake, 200, 1 + room % 3, &prompt, &greedy(room), HOW).0;
    }
    assert!(n_right > 100, "{n_right} right");
}

#[test]
fn a_token_that_ends_the_text_ends_it_inside_a_draft() {
    let model = model();
    let eos = model.tokenizer().eos().unwrap();
    let (ids, n_vocab) = (text_ids(&model), model.graph().n_vocab());
    // Turns of a conversation, each with the token that ends it: what the prompt holds is gone through again.
    let turn = [&ids[..9], &[eos], &ids[20..26]].concat();
    let prompt = [&turn[..], &turn, &turn[..4]].concat();
    let period = turn.len();
    for ignore_eos in [false, true] {
        let going_round = || {
            Fake::new({
                let turn = turn.clone();
                move |tokens: &[u32]| {
                    let mut logits = vec![0.0; n_vocab];
                    logits[turn[tokens.len() % period] as usize] = 9.0;
                    logits
                }
            })
        };
        let options = GenerateOptions { ignore_eos, ..greedy(40) };
        let (n_right, _) = assert_same(going_round, 200, 64, &prompt, &options, HOW);
        assert!(n_right >= 5, "{n_right}");
        let fake = going_round();
        let generated = generate(&mut open(&model, &fake, 200, 64), &prompt, &lookup(&options));
        let expected = if ignore_eos { (40, Finish::Length) } else { (5, Finish::EndToken(eos)) };
        assert_eq!((generated.ids.len(), generated.finish), expected);
        let was_drafted = fake
            .steps
            .lock()
            .unwrap()
            .iter()
            .any(|batch| batch.want.len() > 1 && batch.rows.iter().any(|row| row.token == eos));
        assert!(was_drafted, "the token was run as a draft");
    }
}

#[test]
fn stop_strings_end_the_text_inside_a_draft() {
    let model = model();
    let prompt = prompt(&model);
    let fake = || copying(&model, 50);
    let text = generate(&mut open(&model, &fake(), 250, 64), &prompt, &greedy(60)).text;
    let starts: Vec<usize> = text.char_indices().map(|(start, _)| start).filter(|start| start % 5 == 0).collect();
    assert!(starts.len() > 5);
    for start in starts {
        let stop: String = text[start..].chars().take(7).collect();
        let options = GenerateOptions { stop: vec!["never".to_owned(), stop], ..greedy(60) };
        assert_same(fake, 250, 64, &prompt, &options, HOW);
    }
}

#[test]
fn the_receiver_can_end_it_at_every_token_of_a_draft() {
    let model = model();
    let prompt = prompt(&model);
    let [plain, ahead] = [(); 2].map(|()| copying(&model, 50));
    let [mut plainly, mut guessing] = [&plain, &ahead].map(|fake| open(&model, fake, 250, 8));
    for last in 1..60 {
        plainly.clear();
        guessing.clear();
        let expected = whole(&mut plainly, &prompt, &greedy(30), last);
        assert_eq!(whole(&mut guessing, &prompt, &lookup(&greedy(30)), last), expected);
    }
}

#[test]
fn a_draft_that_the_device_cannot_compute_is_left_out() {
    let model = model();
    let prompt = prompt(&model);
    let [plain, mut ahead] = [(); 2].map(|()| copying(&model, 50));
    ahead.most_answers = Some(1);
    let mut session = open(&model, &ahead, 200, 8);
    let expected = generate(&mut open(&model, &plain, 200, 8), &prompt, &greedy(40));
    let generated = generate(&mut session, &prompt, &lookup(&greedy(40)));
    assert_eq!((generated.ids, generated.text), (expected.ids, expected.text));
    assert_eq!(generated.timings.drafted_tokens, 0);
}

#[test]
fn a_failed_step_with_drafts_leaves_a_session_that_can_go_on() {
    let model = model();
    let prompt = prompt(&model);
    let expected = generate(&mut open(&model, &copying(&model, 3), 200, 64), &prompt, &greedy(30)).ids;
    for failing in 0..8 {
        let fake = Fake { failing: vec![failing], ..copying(&model, 3) };
        let mut session = open(&model, &fake, 200, 64);
        let result = session.generate(&prompt, &lookup(&greedy(30)), &mut |_| ControlFlow::Continue(()));
        assert!(matches!(result, Err(EngineError::Device(DeviceError::Lost(_)))), "step {failing}");
        assert_eq!(generate(&mut session, &prompt, &lookup(&greedy(30))).ids, expected);
    }
}

#[test]
fn lengths_of_drafts_out_of_range_are_refused() {
    let model = model();
    let fake = copying(&model, 50);
    let mut session = open(&model, &fake, 200, 64);
    for max_draft in [0, 65] {
        let options = GenerateOptions { speculate: Speculate::Lookup { max_draft }, ..greedy(1) };
        let error = session.generate(&[1], &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert_eq!(error.to_string(), format!("max_draft is {max_draft}, expected 1 to 64"));
    }
    assert!(fake.steps.lock().unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_prompt_any_surprise_any_seed(
        places in prop::collection::vec(0..N_COPIED, 3..60),
        surprise in 2_u64..40,
        seed in any::<u64>(),
        number in 0..12_usize,
        max_draft in 1..20_usize,
    ) {
        let model = model();
        let prompt: Vec<u32> = places.iter().map(|&place| text_ids(&model)[place]).collect();
        let sampling = Sampling { seed, ..samplings().swap_remove(number).1 };
        let options = GenerateOptions { sampling, ..greedy(30) };
        let how = Speculate::Lookup { max_draft };
        assert_same(|| copying(&model, surprise), 200, 16, &prompt, &options, how);
    }
}
