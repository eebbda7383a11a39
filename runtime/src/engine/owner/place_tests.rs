//! When a place in a full queue is free: what is foretold is compared with what comes, under several kinds of load.

use super::tests::{Bench, greedy, options, prompt};
use super::*;
use crate::engine::fake::mixed;
use crate::engine::options::EngineOptions;
use crate::engine::request::{Refusal, Request};
use crate::engine::stream::Stream;

/// A load: the requests, by their numbers.
type Wanted = fn(&Model, usize) -> Request;

/// A number below `most` that nothing foretells.
fn scattered(number: usize, most: usize) -> usize {
    (mixed(&[number as u32, 7]) % most as u64) as usize
}

fn even(model: &Model, number: usize) -> Request {
    greedy(&prompt(model, number, 6), 30)
}

fn uneven(model: &Model, number: usize) -> Request {
    greedy(&prompt(model, number, 1 + scattered(number, 40)), 1 + scattered(number + 1, 60))
}

fn prompts(model: &Model, number: usize) -> Request {
    greedy(&prompt(model, number, 100 + scattered(number, 60)), 3)
}

fn unlimited(model: &Model, number: usize) -> Request {
    greedy(&prompt(model, number, 8), 180)
}

fn several(model: &Model, number: usize) -> Request {
    Request { n: 1 + scattered(number, 6), ..uneven(model, number) }
}

/// Keeps the queue full and asks for a place after every few turns. Returns the mean of what was foretold and of what came,
/// in milliseconds.
fn foretold(wanted: Wanted, has_ends: bool) -> (f64, f64) {
    let options = EngineOptions { max_waiting: 5, max_cached: 0, ..options() };
    let mut bench = Bench::with(&options, |mut device, model| {
        let ends = (0..model.tokenizer().n_vocab() as u32).find(|id| model.tokenizer().is_stop(*id)).unwrap();
        let next = Arc::clone(&device.next);
        if has_ends {
            device.next = Arc::new(move |tokens| {
                let mut logits = next(tokens);
                if mixed(tokens).is_multiple_of(24) {
                    logits[ends as usize] = 1e4;
                }
                logits
            });
        }
        device
    });
    let mut streams: Vec<Stream> = Vec::new();
    let mut asked: Vec<(Duration, Instant)> = Vec::new();
    let (mut n_requests, mut sums, mut n) = (0, (0.0, 0.0), 0);
    for turn in 0..6000_usize {
        let now = bench.owner.now();
        // Until it is full again.
        let retry_after = loop {
            match bench.engine.submit(&wanted(&bench.model, n_requests)) {
                Ok(stream) => {
                    // What was asked for before could have it.
                    for (time, at) in asked.drain(..) {
                        sums = (sums.0 + ms(time), sums.1 + ms(now - at));
                        n += 1;
                    }
                    streams.push(stream);
                    n_requests += 1;
                }
                Err(Refusal::QueueFull { retry_after, .. }) => break retry_after,
                Err(other) => panic!("{other}"),
            }
        };
        // Nothing is known at first.
        if turn > 500 && turn.is_multiple_of(7) {
            asked.push((retry_after, now));
        }
        for stream in &mut streams {
            while stream.try_next().is_some() {}
        }
        streams.retain(|stream| !stream.is_done());
        bench.turns(1);
    }
    assert!(n > 200, "{n}");
    (sums.0 / f64::from(n), sums.1 / f64::from(n))
}

#[test]
fn a_full_queue_tells_the_time_until_a_place_is_free() {
    let loads: [(&str, Wanted, bool); 5] = [
        ("even", even, false),
        ("uneven", uneven, false),
        ("prompts", prompts, false),
        ("unlimited", unlimited, true),
        ("several", several, false),
    ];
    for (name, wanted, has_ends) in loads {
        let (foretold, came) = foretold(wanted, has_ends);
        println!("{name}: {foretold:.1} ms foretold, {came:.1} ms");
        assert!((0.5..2.0).contains(&(foretold / came)), "{name}: {foretold} ms foretold, {came} ms");
    }
}
