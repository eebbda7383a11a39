//! What is run once, what is kept, and what gives way when room is short.

use super::tests::{Bench, greedy, only, options, prompt};
use super::*;
use crate::engine::fake::expected;
use crate::engine::options::EngineOptions;
use crate::engine::request::{Priority, Request};
use crate::engine::stream::Stream;

#[test]
fn equal_beginnings_are_run_once_even_when_they_come_together() {
    let mut bench = Bench::new(&options());
    let system = prompt(&bench.model, 1, 100);
    let prompts: Vec<Vec<u32>> =
        (0..4).map(|salt| [&system[..], &prompt(&bench.model, 9 + salt, 6)].concat()).collect();
    let streams: Vec<Stream> = prompts.iter().map(|prompt| bench.submit(&greedy(prompt, 3))).collect();
    bench.settle();
    for (prompt, stream) in prompts.iter().zip(streams) {
        assert_eq!(only(stream).ids, expected(&bench.model, prompt, 3));
    }
    // The first runs all; each other at most the page it waited no longer for.
    let n_own = 4 * (6 + 2);
    assert!(bench.n_rows() <= 100 + n_own + 3 * 32, "{} rows", bench.n_rows());
    assert!(bench.engine.metrics().cached_tokens >= 3 * 68);
    bench.assert_at_rest();
}

#[test]
fn a_reproducible_answer_that_loses_its_place_goes_on_where_it_was() {
    let options = EngineOptions { max_running: 1, ..options() };
    let mut bench = Bench::new(&options);
    let prompt = prompt(&bench.model, 1, 80);
    let low = Request { priority: Priority::Low, reproducible: true, ..greedy(&prompt, 20) };
    let low = bench.submit(&low);
    // Once amid its prompt, and twice amid its answer.
    for (number, n_turns) in [(2, 2), (3, 8), (4, 5)] {
        bench.turns(n_turns);
        let high = bench.submit(&Request { priority: Priority::High, ..greedy(&[number; 4], 1) });
        bench.turns(3);
        assert_eq!(only(high).ids.len(), 1);
    }
    bench.settle();
    assert_eq!(only(low).ids, expected(&bench.model, &prompt, 20));
    assert_eq!(bench.engine.metrics().preempted, 3);
    // The last token is not run.
    assert_eq!(bench.n_rows(), 80 + 19 + 3 * 4, "nothing is run twice");
    bench.assert_at_rest();
}

#[test]
fn scopes_share_nothing() {
    let mut bench = Bench::new(&options());
    let prompt = prompt(&bench.model, 1, 40);
    let scoped = |scope: &str| Request { prefix_scope: scope.to_owned(), ..greedy(&prompt, 3) };
    let mut cached = |scope: &str| {
        let stream = bench.submit(&scoped(scope));
        bench.settle();
        let generated = only(stream);
        assert_eq!(generated.ids, expected(&bench.model, &prompt, 3));
        generated.timings.cached_tokens
    };
    assert_eq!([cached("a"), cached("b"), cached("")], [0, 0, 0]);
    assert_eq!([cached("a"), cached("b"), cached("")], [39, 39, 39]);
    assert_eq!(bench.engine.metrics().cached_prefixes, 3);
    // Nor while they run.
    let streams = ["c", "d"].map(|scope| bench.submit(&scoped(scope)));
    bench.settle();
    assert_eq!(streams.map(|stream| only(stream).timings.cached_tokens), [0, 0]);
    bench.assert_at_rest();
}

#[test]
fn choices_of_one_prompt_run_it_once() {
    let mut bench = Bench::new(&EngineOptions { max_running: 3, ..options() });
    let prompt = prompt(&bench.model, 1, 50);
    let stream = bench.submit(&Request { n: 5, ..greedy(&prompt, 4) });
    bench.settle();
    let choices = stream.finish().unwrap();
    assert_eq!(choices.len(), 5);
    assert!(choices.iter().all(|choice| choice.ids == expected(&bench.model, &prompt, 4)));
    // Two have no place at first; they run the last token of the prompt again for its answer.
    assert_eq!(bench.n_rows(), 50 + 5 * 3 + 2);
    bench.assert_at_rest();
}

#[test]
fn a_conversation_goes_on_from_what_is_kept() {
    let mut bench = Bench::new(&options());
    let mut history = prompt(&bench.model, 1, 20);
    for turn in 0..4 {
        let before = bench.n_rows();
        let stream = bench.submit(&greedy(&history, 10));
        bench.settle();
        let generated = only(stream);
        assert_eq!(generated.ids, expected(&bench.model, &history, 10));
        // The last token of an answer was never run.
        assert_eq!(bench.n_rows() - before, if turn == 0 { 20 + 9 } else { 1 + 3 + 9 });
        history.extend(generated.ids);
        history.extend(prompt(&bench.model, 30 + turn, 3));
    }
    assert_eq!(bench.engine.metrics().cached_prefixes, 1, "beginnings of it are not kept beside it");
    bench.assert_at_rest();
}

#[test]
fn what_was_not_used_for_longest_is_dropped_first() {
    let mut bench = Bench::new(&EngineOptions { max_cached: 2, ..options() });
    let prompts: Vec<Vec<u32>> = (0..3).map(|salt| prompt(&bench.model, salt, 40)).collect();
    let mut rows_of = |which: usize| {
        let before = bench.n_rows();
        let stream = bench.submit(&greedy(&prompts[which], 1));
        bench.settle();
        drop(stream);
        bench.n_rows() - before
    };
    assert_eq!([0, 1, 0, 2, 0, 1].map(&mut rows_of), [40, 40, 1, 40, 1, 40]);
    assert_eq!(bench.engine.metrics().evicted, 2);
}

#[test]
fn when_pages_run_out_the_latest_of_the_lowest_lane_gives_way_and_nothing_is_told_twice() {
    // Seven pages: three answers fit until they grow.
    let mut bench = Bench::new(&EngineOptions { context: Some(200), kv_tokens: Some(224), max_cached: 0, ..options() });
    let prompts: Vec<Vec<u32>> = (0..3).map(|salt| prompt(&bench.model, salt, 20)).collect();
    let lanes = [Priority::Low, Priority::Normal, Priority::Normal];
    let requests: Vec<Request> =
        prompts.iter().zip(lanes).map(|(prompt, priority)| Request { priority, ..greedy(prompt, 90) }).collect();
    let streams: Vec<Stream> = requests.iter().map(|request| bench.submit(request)).collect();
    bench.settle();
    for (prompt, stream) in prompts.iter().zip(streams) {
        let generated = only(stream);
        assert_eq!((generated.ids, generated.finish), (expected(&bench.model, prompt, 90), Finish::Length));
    }
    bench.assert_at_rest();
}

#[test]
fn a_short_promise_lets_more_begin_and_room_that_is_short_later_is_made() {
    let mut bench = Bench::new(&EngineOptions { context: Some(256), kv_tokens: Some(416), ..options() });
    let prompts: Vec<Vec<u32>> = (0..2).map(|salt| prompt(&bench.model, salt, 20)).collect();
    let streams: Vec<Stream> = prompts.iter().map(|prompt| bench.submit(&greedy(prompt, 225))).collect();
    bench.turns(4);
    assert_eq!(bench.engine.metrics().running, 2, "promised in full they would not fit together");
    bench.settle();
    assert!(bench.engine.metrics().preempted > 0);
    for (prompt, stream) in prompts.iter().zip(streams) {
        assert_eq!(only(stream).ids, expected(&bench.model, prompt, 225));
    }
    bench.assert_at_rest();
}
