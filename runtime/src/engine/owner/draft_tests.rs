//! Many requests whose tokens a draft model guesses: each gets what it would get alone.

use super::tests::{Bench, greedy, only, options, prompt};
use super::*;
use crate::engine::fake::{Fake, expected, fake};
use crate::engine::lookup::Speculate;
use crate::engine::options::EngineOptions;
use crate::engine::request::{Refusal, Request};

/// A bench with a draft model that says what the model says, until a step of it fails.
fn bench(options: &EngineOptions, failing: Vec<usize>) -> Bench {
    let mut bench = Bench::with_draft(options);
    let device = Fake { failing, ..fake(&bench.model) };
    let limits = &bench.owner.sizes.limits;
    let guesser = Guesser::open(&bench.model, Arc::clone(&bench.model), &device, limits, 200).unwrap();
    bench.owner.guesser = Some(guesser.bold());
    bench
}

/// As submitted to an engine that was opened with one.
fn drafted(prompt: &[u32], max_tokens: usize) -> Request {
    let mut request = greedy(prompt, max_tokens);
    request.options.speculate = Speculate::draft();
    request
}

#[test]
fn many_answers_are_guessed_at_once_and_are_what_they_would_be() {
    for failing in [vec![], vec![20]] {
        let mut bench = bench(&EngineOptions { inter_token_percent: 1000, ..options() }, failing.clone());
        let prompts: Vec<Vec<u32>> = (0..6).map(|salt| prompt(&bench.model, salt, 30 + salt)).collect();
        let streams: Vec<_> = prompts.iter().map(|prompt| bench.submit(&drafted(prompt, 25))).collect();
        bench.settle();
        for (prompt, stream) in prompts.iter().zip(streams) {
            assert_eq!(only(stream).ids, expected(&bench.model, prompt, 25));
        }
        let metrics = bench.engine.metrics();
        assert!(metrics.accepted_tokens > 0, "{metrics:?}");
        assert_eq!(metrics.failed, 0);
        if failing.is_empty() {
            assert_eq!(metrics.accepted_tokens, metrics.drafted_tokens, "it says what the model says");
            assert!(bench.n_steps() < 6 * 25 / 4, "{} steps", bench.n_steps());
        }
        bench.assert_at_rest();
    }
    let without = Bench::new(&options()).engine.submit(&drafted(&[1], 1));
    assert!(matches!(without, Err(Refusal::Invalid(EngineError::NoDraftModel))));
}
