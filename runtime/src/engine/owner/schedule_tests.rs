//! Who is served when: deadlines, lanes, shares, keys, pace.

use super::tests::{Bench, greedy, only, options, prompt};
use super::*;
use crate::engine::fake::expected;
use crate::engine::options::EngineOptions;
use crate::engine::request::{Priority, Refusal, Request};
use crate::engine::stream::Stream;

fn refused(bench: &Bench, request: &Request) -> Option<(Duration, Duration)> {
    match bench.engine.submit(request) {
        Err(Refusal::Deadline { deadline, estimate, .. }) => Some((deadline, estimate)),
        Ok(_) => None,
        Err(other) => panic!("refused: {other}"),
    }
}

fn within(ms: u64, request: Request) -> Request {
    Request { deadline: Some(Duration::from_millis(ms)), ..request }
}

#[test]
fn a_request_that_cannot_make_its_deadline_is_refused_at_once_with_how_long_it_would_take() {
    let mut bench = Bench::new(&EngineOptions { max_running: 1, ..options() });
    let prompt = prompt(&bench.model, 1, 30);
    let impossible = within(1, greedy(&prompt, 100));
    // Nothing was measured yet.
    let stream = bench.submit(&impossible);
    bench.settle();
    assert_eq!(only(stream).finish, Finish::Deadline);
    let warm = bench.submit(&greedy(&prompt, 10));
    bench.settle();
    drop(warm);
    // Steps take 1.1 ms for a row, 4.2 ms for 32.
    let (deadline, estimate) = refused(&bench, &impossible).expect("it is refused");
    assert_eq!(deadline.as_millis(), 1);
    assert!((100..140).contains(&estimate.as_millis()), "{estimate:?}");
    // What is told is true: with that time it is taken, and done in time.
    let stream = bench.submit(&Request { deadline: Some(estimate), ..impossible.clone() });
    bench.settle();
    let generated = only(stream);
    assert_eq!((generated.finish, generated.ids.len()), (Finish::Length, 100));
    // Others wait and run before it; a higher lane passes them.
    let _running = bench.submit(&greedy(&prompt, 100));
    bench.turns(5);
    let (_, behind) = refused(&bench, &impossible).expect("it is refused");
    assert!(behind > estimate + Duration::from_millis(5), "{behind:?}");
    // Coming again helps where others are the cause, not where it would take too long alone.
    let retry = |deadline: Duration| {
        let request = Request { deadline: Some(deadline), ..impossible.clone() };
        match bench.engine.submit(&request).map(drop) {
            Err(Refusal::Deadline { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(retry(Duration::from_millis(1)), None);
    let possible = estimate + Duration::from_millis(1);
    assert_eq!(retry(possible), Some(behind - possible));
    let high = Request { priority: Priority::High, ..within(150, greedy(&prompt, 100)) };
    let stream = bench.submit(&high);
    bench.settle();
    assert_eq!(only(stream).finish, Finish::Length);
    assert_eq!(bench.engine.metrics().missed_deadlines, 1);
    bench.assert_at_rest();
}

#[test]
fn a_deadline_that_passes_ends_an_answer_with_what_it_has() {
    let mut bench = Bench::new(&options());
    let prompt = prompt(&bench.model, 1, 10);
    let stream = bench.submit(&within(20, greedy(&prompt, 100)));
    bench.settle();
    let generated = only(stream);
    assert_eq!(generated.finish, Finish::Deadline);
    assert!((10..20).contains(&generated.ids.len()), "{}", generated.ids.len());
    assert_eq!(generated.ids, expected(&bench.model, &prompt, generated.ids.len()));
    bench.assert_at_rest();
}

#[test]
fn a_newer_request_with_the_same_key_ends_the_older_one_of_its_caller_queued_or_running() {
    let mut bench = Bench::new(&EngineOptions { max_running: 1, ..options() });
    let prompt = prompt(&bench.model, 1, 10);
    let keyed = |caller: &str, max_tokens| Request {
        caller: caller.to_owned(),
        supersede: Some("draft".to_owned()),
        ..greedy(&prompt, max_tokens)
    };
    let running = bench.submit(&keyed("a", 50));
    bench.turns(4);
    let queued = bench.submit(&keyed("a", 50));
    bench.turns(1);
    let others = bench.submit(&keyed("b", 5));
    let last = bench.submit(&keyed("a", 5));
    bench.settle();
    let ended = [running, queued, others, last].map(only);
    let ends = ended.each_ref().map(|generated| (generated.finish, generated.ids.len()));
    assert_eq!(ends[0].0, Finish::Superseded);
    assert!(ends[0].1 > 0);
    assert_eq!(ends[1..2], [(Finish::Superseded, ends[1].1)]);
    assert_eq!(ends[2..], [(Finish::Length, 5), (Finish::Length, 5)]);
    assert_eq!(bench.engine.metrics().superseded, 2);
    bench.assert_at_rest();
}

#[test]
fn a_caller_with_many_requests_does_not_keep_another_waiting() {
    let mut bench = Bench::new(&EngineOptions { max_running: 1, ..options() });
    let of = |caller: &str, salt| Request { caller: caller.to_owned(), ..greedy(&prompt(&bench.model, salt, 10), 10) };
    let many: Vec<Request> = (0..8).map(|salt| of("many", salt)).collect();
    let few = [of("few", 20), of("few", 21)];
    let mut streams: Vec<Stream> = many.iter().map(|request| bench.submit(request)).collect();
    bench.turns(2);
    streams.extend(few.iter().map(|request| bench.submit(request)));
    bench.settle();
    let waited: Vec<f64> = streams.into_iter().map(|stream| only(stream).timings.queue_ms).collect();
    let n_before = |which: usize| waited[..8].iter().filter(|ms| **ms < waited[which]).count();
    // One of many runs when few come; then they take turns.
    assert_eq!((n_before(8), n_before(9)), (1, 2), "{waited:?}");
    bench.assert_at_rest();
}

#[test]
fn prompts_are_read_in_parts_that_keep_the_pace_of_answers() {
    let model = Model::pocket().unwrap();
    for (percent, n_prompts, most_rows) in [(150, 1, 6), (300, 1, 23), (150, 2, 22), (150, 3, 50)] {
        let options = EngineOptions { inter_token_percent: percent, batch_rows: 64, ..options() };
        let mut bench = Bench::new(&options);
        let writing = bench.submit(&greedy(&prompt(&model, 1, 20), 150));
        bench.turns(20);
        let before = bench.n_steps();
        let reading: Vec<Stream> =
            (0..n_prompts).map(|number| bench.submit(&greedy(&prompt(&model, 2 + number, 150), 5))).collect();
        bench.settle();
        let steps = bench.steps.lock().unwrap();
        // A row alone takes 1.1 ms; one more takes 0.1 ms. Several prompts may each take as much more, and as they outnumber
        // the answer, that many times.
        let n_rows: Vec<usize> = steps[before..before + 2].iter().map(|batch| batch.rows.len()).collect();
        assert!(n_rows.iter().all(|n| n.abs_diff(most_rows) <= 2), "{n_rows:?}");
        drop(steps);
        assert_eq!(only(writing).ids.len(), 150);
        assert!(reading.into_iter().all(|reading| only(reading).ids.len() == 5));
    }
}
