//! The session on a device whose every answer depends on all tokens it was given: a row too many, too few or out of
//! place changes the text.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::super::sampler::Logprobs;
use super::super::sampling::{Dry, Sampling};
use super::*;

use crate::engine::fake::{Fake, expected, fake, logits, text_ids};

pub(in crate::engine) fn model() -> Arc<Model> {
    Arc::new(Model::pocket().unwrap())
}

pub(in crate::engine) fn open(model: &Arc<Model>, fake: &Fake, context: usize, batch_rows: usize) -> Session {
    let options = SessionOptions { context: Some(context), batch_rows, ..SessionOptions::default() };
    Session::open(Arc::clone(model), fake, &options).unwrap()
}

pub(in crate::engine) fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { sampling: Sampling::greedy(), max_tokens: Some(max_tokens), ..GenerateOptions::default() }
}

pub(in crate::engine) fn generate(session: &mut Session, prompt: &[u32], options: &GenerateOptions) -> Generated {
    let mut told = String::new();
    let mut ids = Vec::new();
    let generated = session
        .generate(prompt, options, &mut |event| {
            match event {
                Event::Text(text) => told.push_str(text),
                Event::Token { id, .. } => ids.push(id),
                Event::Prefill { .. } => {}
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((&told, &ids), (&generated.text, &generated.ids), "what was told is what is returned");
    generated
}

#[test]
fn a_session_generates_what_the_function_of_all_tokens_says() {
    let model = model();
    let prompt: Vec<u32> = text_ids(&model)[..23].to_vec();
    for batch_rows in [1, 4, 23, 100] {
        let fake = fake(&model);
        let mut session = open(&model, &fake, 200, batch_rows);
        let generated = generate(&mut session, &prompt, &greedy(12));
        assert_eq!(generated.ids, expected(&model, &prompt, 12));
        let text = model.tokenizer().decode(&generated.ids, false);
        assert_eq!(generated.text.trim_ascii_start().as_bytes(), text.trim_ascii_start());
        assert_eq!((generated.finish, generated.finish.reason()), (Finish::Length, "length"));
        let steps = fake.steps.lock().unwrap();
        assert_eq!(steps.len(), prompt.len().div_ceil(batch_rows) + 11);
        assert!(steps.iter().all(|batch| batch.want.len() <= 1), "only what is needed is asked for");
        assert_eq!(steps.iter().map(|batch| batch.want.len()).sum::<usize>(), 12);
    }
}

#[test]
fn what_two_prompts_share_is_run_once() {
    let model = model();
    let fake = fake(&model);
    let mut session = open(&model, &fake, 200, 64);
    let prompt: Vec<u32> = text_ids(&model)[..20].to_vec();
    let first = generate(&mut session, &prompt, &greedy(6));
    assert_eq!(first.timings.cached_tokens, 0);
    let n_rows = || fake.steps.lock().unwrap().iter().map(|batch| batch.rows.len()).sum::<usize>();

    // The conversation goes on: all but the last generated token, which was never run, is there.
    let next: Vec<u32> = [&prompt[..], &first.ids, &[3, 4]].concat();
    let before = n_rows();
    let second = generate(&mut session, &next, &greedy(5));
    assert_eq!(second.timings.cached_tokens, 25);
    assert_eq!(n_rows() - before, 3 + 4);
    assert_eq!(second.ids, expected(&model, &next, 5));

    // Another turn in the middle: the cache goes back to where they part.
    let mut other = prompt.clone();
    other[9] = prompt[0];
    let third = generate(&mut session, &other, &greedy(5));
    assert_eq!(third.timings.cached_tokens, 9);
    assert_eq!(third.ids, expected(&model, &other, 5));

    // The same again: the last token is run again for its answer.
    let fourth = generate(&mut session, &other, &greedy(5));
    assert_eq!(fourth.timings.cached_tokens, 19);
    assert_eq!((&fourth.ids, &fourth.text), (&third.ids, &third.text));

    // A prompt that is a beginning of what is there.
    let fifth = generate(&mut session, &other[..5], &greedy(5));
    assert_eq!(fifth.timings.cached_tokens, 4);
    assert_eq!(fifth.ids, expected(&model, &other[..5], 5));
}

#[test]
fn generation_ends_when_the_context_is_full() {
    let model = model();
    let fake = fake(&model);
    let mut session = open(&model, &fake, 16, 8);
    let prompt: Vec<u32> = text_ids(&model)[..16].to_vec();
    let without_limit = GenerateOptions { max_tokens: None, ..greedy(0) };
    // The last token need not be run, so there is one more than the context holds.
    let generated = generate(&mut session, &prompt[..10], &without_limit);
    assert_eq!((generated.ids.len(), generated.finish), (7, Finish::Length));
    assert_eq!(generated.ids, expected(&model, &prompt[..10], 7));
    assert_eq!(session.cached().len(), 16);
    let generated = generate(&mut session, &prompt, &without_limit);
    assert_eq!((generated.ids.len(), generated.finish), (1, Finish::Length));
}

#[test]
fn requests_that_cannot_be_served_are_refused_before_any_work() {
    let model = model();
    let fake = fake(&model);
    let mut session = open(&model, &fake, 16, 8);
    let mut message = |prompt: &[u32], options: &GenerateOptions| {
        session.generate(prompt, options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    let n_vocab = model.graph().n_vocab();
    assert_eq!(message(&[1; 17], &greedy(1)), "the prompt has 17 tokens, the context holds 16");
    assert_eq!(message(&[], &greedy(1)), "the prompt is empty, expected at least one token");
    let expected = format!("token 1 of the prompt is {n_vocab}, the model has {n_vocab}");
    assert_eq!(message(&[1, n_vocab as u32], &greedy(1)), expected);
    let empty_stop = GenerateOptions { stop: vec!["a".to_owned(), String::new()], ..greedy(1) };
    assert_eq!(message(&[1], &empty_stop), "stop[1] is empty, expected at least one character");
    let hot = GenerateOptions { sampling: Sampling { temperature: 11.0, ..Sampling::default() }, ..greedy(1) };
    assert_eq!(message(&[1], &hot), "temperature is 11, expected 0 to 10");
    assert!(fake.steps.lock().unwrap().is_empty());
}

#[test]
fn options_out_of_range_are_refused() {
    let model = model();
    let fake = fake(&model);
    let most = model.graph().max_context();
    let message = |options: SessionOptions| {
        Session::open(Arc::clone(&model), &fake, &options).err().expect("options are refused").to_string()
    };
    for context in [0, most + 1] {
        let expected = format!("context is {context}, expected 1 to {most}, the context the model was opened for");
        assert_eq!(message(SessionOptions { context: Some(context), ..SessionOptions::default() }), expected);
    }
    assert_eq!(
        message(SessionOptions { batch_rows: 0, ..SessionOptions::default() }),
        "batch_rows is 0, expected 1 or more"
    );
}

#[test]
fn stop_strings_end_the_text_before_them_wherever_tokens_begin() {
    let model = model();
    let prompt = [text_ids(&model)[40]];
    let fake = fake(&model);
    let mut session = open(&model, &fake, 200, 8);
    let text = generate(&mut session, &prompt, &greedy(20)).text;
    let mut n_across = 0;
    for start in 0..text.len() - 6 {
        let stop = &text[start..start + 6];
        let options = GenerateOptions { stop: vec!["never".to_owned(), stop.to_owned()], ..greedy(20) };
        let generated = generate(&mut session, &prompt, &options);
        assert_eq!(generated.text, text[..text.find(stop).unwrap()], "{stop:?}");
        assert_eq!((generated.finish, generated.finish.reason()), (Finish::StopString(1), "stop"));
        let last = model.tokenizer().token_text(*generated.ids.last().unwrap());
        n_across += usize::from(!last.contains(stop));
    }
    assert!(n_across > 5, "stop strings across tokens were tried");
}

#[test]
fn what_might_have_become_a_stop_string_is_told_at_the_end() {
    let model = model();
    let prompt = [text_ids(&model)[41]];
    let fake = fake(&model);
    let mut session = open(&model, &fake, 200, 8);
    let text = generate(&mut session, &prompt, &greedy(6)).text;
    let stop = format!("{}#", &text[text.len() - 4..]);
    let generated = generate(&mut session, &prompt, &GenerateOptions { stop: vec![stop], ..greedy(6) });
    assert_eq!((generated.text, generated.finish), (text, Finish::Length));
}

#[test]
fn a_token_that_ends_a_text_ends_it_unless_it_is_ignored() {
    let model = model();
    let eos = model.tokenizer().eos().unwrap();
    let (ids, n_vocab) = (text_ids(&model), model.graph().n_vocab());
    let fake = Fake::new(move |tokens| {
        let mut logits = logits(&ids, n_vocab, tokens);
        logits[eos as usize] += if tokens.len() == 5 { 50.0 } else { 0.0 };
        logits
    });
    let mut session = open(&model, &fake, 200, 8);
    let prompt = &text_ids(&model)[..2];
    let generated = generate(&mut session, prompt, &greedy(8));
    assert_eq!((generated.ids.len(), generated.finish), (3, Finish::EndToken(eos)));
    assert_eq!(generated.timings.generated_tokens, 4);
    let generated = generate(&mut session, prompt, &GenerateOptions { ignore_eos: true, ..greedy(8) });
    assert_eq!((generated.ids.len(), generated.ids[3], generated.finish), (8, eos, Finish::Length));
    let name = model.tokenizer().token_text(eos);
    assert!(!generated.text.contains(&name));
    let shown = GenerateOptions { ignore_eos: true, render_special: true, ..greedy(8) };
    assert!(generate(&mut session, prompt, &shown).text.contains(&name));
}

#[test]
fn the_receiver_can_end_it_at_every_event_and_the_session_goes_on_well() {
    let model = model();
    let prompt: Vec<u32> = text_ids(&model)[..10].to_vec();
    let mut n_events = 0;
    let fake = fake(&model);
    let mut session = open(&model, &fake, 200, 4);
    session
        .generate(&prompt, &greedy(5), &mut |_| {
            n_events += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    for last in 1..=n_events {
        session.clear();
        let (mut n_seen, mut n_tokens) = (0, 0);
        let generated = session
            .generate(&prompt, &greedy(5), &mut |event| {
                n_seen += 1;
                n_tokens += usize::from(matches!(event, Event::Token { .. }));
                if n_seen == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        assert_eq!((n_seen, generated.ids.len()), (last, n_tokens), "nothing is told after the end");
        assert_eq!((generated.finish, generated.finish.reason()), (Finish::Cancelled, "cancelled"));
        assert_eq!(generate(&mut session, &prompt, &greedy(5)).ids, expected(&model, &prompt, 5));
    }
}

#[test]
fn progress_of_the_prompt_is_told_step_by_step() {
    let model = model();
    let fake = fake(&model);
    let mut session = open(&model, &fake, 200, 4);
    let prompt: Vec<u32> = text_ids(&model)[..10].to_vec();
    let mut progress = Vec::new();
    let mut receive = |event: Event<'_>| {
        if let Event::Prefill { done_tokens, total_tokens } = event {
            progress.push((done_tokens, total_tokens));
        }
        ControlFlow::Continue(())
    };
    session.generate(&prompt, &greedy(0), &mut receive).unwrap();
    assert_eq!(progress, [(4, 10), (8, 10), (10, 10)]);
}

#[test]
fn a_failed_step_leaves_a_session_that_can_go_on() {
    let model = model();
    let prompt: Vec<u32> = text_ids(&model)[..10].to_vec();
    for failing in 0..7 {
        let fake = Fake { failing: vec![failing], ..fake(&model) };
        let mut session = open(&model, &fake, 200, 4);
        let result = session.generate(&prompt, &greedy(5), &mut |_| ControlFlow::Continue(()));
        assert!(matches!(result, Err(EngineError::Device(DeviceError::Lost(_)))));
        assert_eq!(generate(&mut session, &prompt, &greedy(5)).ids, expected(&model, &prompt, 5));
    }
}

#[test]
fn a_seed_decides_the_text_whatever_is_cached() {
    let model = model();
    let prompt: Vec<u32> = text_ids(&model)[..10].to_vec();
    let options = |seed| GenerateOptions {
        sampling: Sampling { temperature: 2.0, top_k: 30, seed, ..Sampling::default() },
        ..greedy(12)
    };
    let device = fake(&model);
    let mut session = open(&model, &device, 200, 4);
    let first = generate(&mut session, &prompt, &options(5));
    assert_ne!(first.ids, generate(&mut session, &prompt, &options(6)).ids);
    assert_eq!(first.ids, generate(&mut session, &prompt, &options(5)).ids);
    let device = fake(&model);
    assert_eq!(first.ids, generate(&mut open(&model, &device, 100, 64), &prompt, &options(5)).ids);
}

#[test]
fn penalties_and_dry_see_the_tokens_of_the_session() {
    let model = model();
    let favourite = text_ids(&model)[7];
    let n_vocab = model.graph().n_vocab();
    let always = Fake::new(move |_| {
        let mut logits = vec![0.0; n_vocab];
        logits[favourite as usize] = 3.0;
        logits
    });
    let mut session = open(&model, &always, 200, 4);
    assert_eq!(generate(&mut session, &[1], &greedy(6)).ids, [favourite; 6]);
    let sampling = Sampling { frequency_penalty: 1.0, ..Sampling::greedy() };
    let ids = generate(&mut session, &[1], &GenerateOptions { sampling, ignore_eos: true, ..greedy(6) }).ids;
    assert_eq!(ids.iter().filter(|id| **id == favourite).count(), 3);
    let dry = Dry { multiplier: 4.0, allowed_length: 2, sequence_breakers: vec![], ..Dry::default() };
    let sampling = Sampling { dry, ..Sampling::greedy() };
    let ids = generate(&mut session, &[1], &GenerateOptions { sampling, ignore_eos: true, ..greedy(6) }).ids;
    assert_eq!(ids[..3], [favourite; 3]);
    assert_ne!(ids[3], favourite);
    // A token that breaks sequences may come as often as it likes.
    let sequence_breakers = vec![model.tokenizer().token_text(favourite)];
    let dry = Dry { multiplier: 4.0, allowed_length: 2, sequence_breakers, ..Dry::default() };
    let sampling = Sampling { dry, ..Sampling::greedy() };
    assert_eq!(generate(&mut session, &[1], &GenerateOptions { sampling, ..greedy(6) }).ids, [favourite; 6]);
}

#[test]
fn log_probabilities_come_with_their_tokens() {
    let model = model();
    let fake = fake(&model);
    let prompt = [text_ids(&model)[3]];
    let mut session = open(&model, &fake, 200, 4);
    let options = GenerateOptions { sampling: Sampling { logprobs: Some(2), ..Sampling::greedy() }, ..greedy(4) };
    let mut told: Vec<(u32, Logprobs)> = Vec::new();
    let mut receive = |event: Event<'_>| {
        if let Event::Token { id, logprobs } = event {
            told.push((id, logprobs.unwrap().clone()));
        }
        ControlFlow::Continue(())
    };
    let generated = session.generate(&prompt, &options, &mut receive).unwrap();
    let scores = session.score(&[&prompt[..], &generated.ids].concat()).unwrap();
    assert_eq!((told.len(), scores.len()), (4, 4));
    for ((id, logprobs), score) in told.iter().zip(scores) {
        assert_eq!(logprobs.top[0], (*id, logprobs.chosen));
        assert!((f64::from(logprobs.chosen) - score).abs() < 1e-5);
    }
}

#[test]
fn scores_are_the_log_probabilities_of_each_next_token() {
    let model = model();
    let fake = fake(&model);
    let ids: Vec<u32> = text_ids(&model)[..30].to_vec();
    let mut session = open(&model, &fake, 30, 7);
    generate(&mut session, &ids[..9], &greedy(3));
    let scores = session.score(&ids).unwrap();
    assert_eq!(scores.len(), 29);
    for (place, score) in scores.iter().enumerate() {
        let logits = (fake.next)(&ids[..=place]);
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        assert!((score - (f64::from(logits[ids[place + 1] as usize]) - total.ln())).abs() < 1e-9);
    }
    let mut steps = Vec::new();
    let after = session.score_after(&ids, 20, &mut |done| {
        steps.push(done);
        ControlFlow::Continue(())
    });
    assert_eq!(after.unwrap().unwrap(), scores[19..]);
    assert_eq!(steps.last(), Some(&(ids.len() - 1)));
    assert_eq!(session.score_after(&ids, 20, &mut |_| ControlFlow::Break(())).unwrap(), None);
    assert_eq!(session.cached().len(), steps[0], "it ends after the first step");
    assert_eq!(session.score(&ids[..1]).unwrap(), Vec::<f64>::new());
    assert_eq!(generate(&mut session, &ids[..9], &greedy(3)).ids, expected(&model, &ids[..9], 3));
}

#[test]
fn timings_count_tokens() {
    let model = model();
    let fake = fake(&model);
    let mut session = open(&model, &fake, 200, 4);
    let prompt: Vec<u32> = text_ids(&model)[..10].to_vec();
    generate(&mut session, &prompt[..6], &greedy(1));
    let timings = generate(&mut session, &prompt, &greedy(5)).timings;
    assert_eq!((timings.prompt_tokens, timings.cached_tokens, timings.generated_tokens), (10, 6, 5));
    assert!(timings.load_ms > 0.0 && timings.prefill_ms > 0.0 && timings.decode_ms > 0.0);
    let rate = timings.prefill_tokens_per_second().unwrap();
    assert!((rate - 4.0 * 1e3 / timings.prefill_ms).abs() < 1e-6);
    assert!(timings.decode_tokens_per_second().unwrap() > 0.0);
}
