//! What requests hold of memory, and that it is given back however they end.

use super::tests::{Bench, greedy, only, options, prompt};
use super::*;
use crate::engine::fake::expected;
use crate::engine::options::EngineOptions;
use crate::engine::request::{Refusal, Request};
use crate::engine::sampling::Sampling;

/// Under a cap that leaves so much for requests.
fn bench(room: u64) -> Bench {
    let open = Bench::new(&options()).engine.holdings();
    Bench::new(&EngineOptions { memory_cap: Some(open.kv + open.scratch + room), ..options() })
}

#[test]
fn what_a_request_holds_is_free_again_when_it_and_its_stream_are_gone() {
    let mut bench = bench(1 << 20);
    let prompt = prompt(&bench.model, 1, 40);
    let requests = |bench: &Bench| bench.engine.holdings().requests;
    let stream = bench.submit(&greedy(&prompt, 5));
    let held = requests(&bench);
    assert!(held > 40 * 8 && held < 1 << 20, "{held}");
    bench.settle();
    assert_eq!(requests(&bench), held, "its events were not read yet");
    assert_eq!(only(stream).ids, expected(&bench.model, &prompt, 5));
    assert_eq!(requests(&bench), 0);
    // More is held of more: choices, what they are chosen from, and log-probabilities nobody reads.
    let mut holds = |request: &Request| {
        let stream = bench.submit(request);
        let held = requests(&bench);
        drop(stream);
        bench.settle();
        assert_eq!(requests(&bench), 0, "whoever leaves gives all back");
        held
    };
    let plain = greedy(&prompt, 100);
    let of_all = |sampling| {
        let mut request = plain.clone();
        request.options.sampling = sampling;
        request
    };
    let n_vocab = Model::pocket().unwrap().graph().n_vocab() as u64;
    assert!(holds(&plain) > held && holds(&Request { n: 3, ..plain.clone() }) > 2 * holds(&plain));
    let all_logits = Sampling { presence_penalty: 0.5, ..Sampling::greedy() };
    assert!(holds(&of_all(all_logits)) > holds(&plain) + 24 * n_vocab);
    let told = Sampling { logprobs: Some(20), ..Sampling::greedy() };
    assert!(holds(&of_all(told)) > holds(&plain) + 100 * 20 * 8);
}

#[test]
fn what_does_not_fit_is_refused_with_the_bytes_and_whether_to_wait() {
    let open = Bench::new(&options()).engine.holdings();
    let mut bench = bench(200_000);
    let text = prompt(&bench.model, 1, 40);
    let large = Request { n: 3, ..greedy(&text, 150) };
    let stream = bench.submit(&large);
    let Err(Refusal::Memory { what, tokens, needed_bytes, allowed_bytes, retry_after }) = bench.engine.submit(&large)
    else {
        panic!("there is no room for two")
    };
    assert_eq!((what, tokens), ("the text and its choosing", 40));
    let holdings = bench.engine.holdings();
    assert!(needed_bytes == holdings.requests && needed_bytes > allowed_bytes && retry_after.is_some());
    assert_eq!(holdings.cap, Some(holdings.kv + holdings.scratch + holdings.requests + allowed_bytes));
    assert_eq!((holdings.kv, holdings.scratch), (open.kv, open.scratch));
    let too_large = Request { n: 64, ..greedy(&text, 150) };
    let refused = bench.engine.submit(&too_large);
    assert!(matches!(refused, Err(Refusal::Memory { retry_after: None, .. })), "it never fits");
    bench.settle();
    let choices = stream.finish().unwrap();
    assert!(choices.iter().all(|choice| choice.ids == expected(&bench.model, &text, 150)));
    assert_eq!(bench.engine.metrics().refused, 2);
    assert!(bench.engine.submit(&large).is_ok(), "now there is room");
}

#[test]
fn what_is_promised_and_cached_is_told() {
    let mut bench = Bench::new(&options());
    let text = prompt(&bench.model, 1, 40);
    let stream = bench.submit(&greedy(&text, 20));
    bench.turns(3);
    assert_eq!(bench.engine.metrics().kv_promised_tokens, 60);
    bench.settle();
    drop(stream);
    let metrics = bench.engine.metrics();
    assert_eq!((metrics.kv_promised_tokens, metrics.cached_prefixes), (0, 1));
    assert_eq!(metrics.kv_tokens - metrics.kv_free_tokens, 64, "two pages are cached");
}
