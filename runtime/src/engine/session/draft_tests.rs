//! With a draft model and without, everything that a caller sees is the same, but for the steps it took.

use super::super::lookup::Speculate;
use super::ahead_tests::{prompt, samplings, whole};
use super::tests::{generate, greedy, model, open};
use super::*;
use crate::engine::fake::{Fake, copying};

/// A session on `target` whose draft model is `draft`, of so much context.
fn with_draft(model: &Arc<Model>, target: &Fake, draft: &Fake, context: usize) -> Session {
    let mut session = open(model, target, 250, 64);
    let limits = Limits { max_rows: 16, kv_tokens: context, ..Limits::default() };
    let guesser = Guesser::open(model, Arc::clone(model), draft, &limits, context).unwrap();
    session.guesser = Some(guesser.bold());
    session
}

fn drafted(options: &GenerateOptions) -> GenerateOptions {
    GenerateOptions { speculate: Speculate::draft(), ..options.clone() }
}

#[test]
fn every_sampler_chooses_the_same_with_a_draft_model_and_without() {
    let model = model();
    let prompt = prompt(&model);
    let (mut n_right, mut n_wrong) = (0, 0);
    for (name, sampling) in samplings() {
        // Drafts that are mostly right, and mostly wrong.
        for surprise in [40, 2] {
            let (target, draft) = (copying(&model, 40), copying(&model, surprise));
            let mut plainly = open(&model, &target, 250, 64);
            let mut guessing = with_draft(&model, &target, &draft, 250);
            let options = GenerateOptions { sampling: sampling.clone(), ..greedy(60) };
            let expected = whole(&mut plainly, &prompt, &options, 0);
            assert_eq!(whole(&mut guessing, &prompt, &drafted(&options), 0), expected, "{name}");
            // The conversation goes on, and in the middle of it another begins.
            for next in [[&prompt[..], &expected.1.ids, &prompt[..2]].concat(), prompt[3..].to_vec()] {
                let expected = generate(&mut plainly, &next, &options);
                let found = generate(&mut guessing, &next, &drafted(&options));
                assert_eq!((&found.ids, &found.text), (&expected.ids, &expected.text), "{name}");
                n_right += found.timings.accepted_tokens;
                n_wrong += found.timings.drafted_tokens - found.timings.accepted_tokens;
            }
        }
    }
    assert!(n_right > 300 && n_wrong > 300, "{n_right} right, {n_wrong} wrong: both were tried");
}

#[test]
fn a_draft_model_that_fails_or_is_full_guesses_no_more() {
    let model = model();
    let prompt = prompt(&model);
    let target = copying(&model, 40);
    let expected = generate(&mut open(&model, &target, 250, 64), &prompt, &greedy(80));
    let mut n_drafted = Vec::new();
    for (failing, wrong, context) in
        [(vec![], vec![], 250), (vec![9], vec![], 250), (vec![], vec![0], 250), (vec![], vec![], 60)]
    {
        let draft = Fake { failing, wrong, ..copying(&model, 40) };
        let mut session = with_draft(&model, &target, &draft, context);
        let found = generate(&mut session, &prompt, &drafted(&greedy(80)));
        assert_eq!((&found.ids, &found.text), (&expected.ids, &expected.text));
        n_drafted.push(found.timings.drafted_tokens);
    }
    assert!(n_drafted[0] > n_drafted[1] && n_drafted[1] > 0 && n_drafted[2] == 0, "{n_drafted:?}");
    assert!(n_drafted[3] > 0 && n_drafted[3] < n_drafted[0], "{n_drafted:?}");
}

#[test]
fn what_is_not_likely_is_not_run() {
    let model = model();
    let prompt = prompt(&model);
    let target = copying(&model, 40);
    let mut session = with_draft(&model, &target, &copying(&model, 40), 250);
    // As large as the model: only what is all but sure would pay, and nothing is here.
    let limits = Limits { max_rows: 16, kv_tokens: 250, ..Limits::default() };
    session.guesser = Some(Guesser::open(&model, Arc::clone(&model), &copying(&model, 40), &limits, 250).unwrap());
    assert_eq!(generate(&mut session, &prompt, &drafted(&greedy(40))).timings.drafted_tokens, 0);
}

#[test]
fn a_draft_model_must_be_there_and_have_the_same_vocabulary() {
    let model = model();
    let target = copying(&model, 40);
    let mut session = open(&model, &target, 250, 64);
    let error = session.generate(&[1], &drafted(&greedy(1)), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, EngineError::NoDraftModel));
    let other = farpost_firmware_tests::model("tiny-llama.gguf");
    let other = Arc::new(Model::open(&other, &crate::model::ModelOptions::default()).unwrap());
    let opened = Session::open_with_draft(model, other, &target, &SessionOptions::default());
    let error = opened.err().expect("it is refused").to_string();
    assert!(error.starts_with("the draft model does not belong to the model: its vocabulary has "), "{error}");
}
