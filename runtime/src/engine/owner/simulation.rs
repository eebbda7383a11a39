//! Many requests at random, with cancellations, deadlines, lost devices, wrong steps and too few pages: each gets what
//! it would get alone, or a reason; nothing is lost, nothing leaks, and it ends.

use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::failover_tests::unreliable;
use super::tests::{Bench, options, prompt};
use super::*;
use crate::engine::failover::Backends;
use crate::engine::fake::{Fake, N_COPIED, continued, copying, fake, text_ids};
use crate::engine::generate::GenerateOptions;
use crate::engine::lookup::Speculate;
use crate::engine::options::EngineOptions;
use crate::engine::request::{Priority, Refusal, Request};
use crate::engine::sampling::Sampling;
use crate::engine::stream::{Stream, StreamEvent};

/// What happens between turns.
#[derive(Clone, Debug)]
enum Act {
    Submit(Box<Wanted>),
    /// Turns of the owner.
    Turns(usize),
    /// Drops one of the streams.
    GoAway(usize),
    /// Reads what is there of all streams.
    Read,
}

#[derive(Clone, Debug)]
struct Wanted {
    /// Prompts of one salt begin alike.
    salt: usize,
    prompt_tokens: usize,
    tail: usize,
    max_tokens: Option<usize>,
    n: usize,
    priority: usize,
    deadline_ms: Option<u64>,
    caller: usize,
    supersede: Option<usize>,
    reproducible: bool,
    speculate: bool,
    stop: bool,
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let place = (0_usize..3, 1_usize..90, 0_usize..20, prop::option::of(0_usize..40), 1_usize..4);
    let terms =
        (0_usize..3, prop::option::weighted(0.2, 1_u64..400), 0_usize..3, prop::option::weighted(0.2, 0_usize..2));
    (place, terms, prop::bool::weighted(0.2), any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(
            (salt, prompt_tokens, tail, max_tokens, n),
            (priority, deadline_ms, caller, supersede),
            repro,
            ahead,
            stop,
        )| {
            Wanted {
                salt,
                prompt_tokens,
                tail,
                max_tokens,
                n,
                priority,
                deadline_ms,
                caller,
                supersede,
                reproducible: repro,
                speculate: ahead,
                stop,
            }
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => wanted().prop_map(|wanted| Act::Submit(Box::new(wanted))),
        4 => (1_usize..12).prop_map(Act::Turns),
        1 => (0_usize..30).prop_map(Act::GoAway),
        1 => Just(Act::Read),
    ]
}

/// A request as its reader sees it.
struct Reader {
    stream: Option<Stream>,
    request: Request,
    ids: Vec<Vec<u32>>,
    texts: Vec<String>,
    ends: Vec<Option<Finish>>,
    error: Option<String>,
}

impl Reader {
    fn read(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        while let Some(event) = stream.try_next() {
            match event {
                StreamEvent::Token { choice, id, .. } => {
                    assert_eq!(self.ends[choice], None, "nothing is told after the end");
                    self.ids[choice].push(id);
                }
                StreamEvent::Text { choice, text } => {
                    assert!(!text.is_empty());
                    self.texts[choice].push_str(&text);
                }
                StreamEvent::Done { choice, finish, timings } => {
                    assert_eq!(self.ends[choice].replace(finish), None, "it ends once");
                    let n = self.ids[choice].len() + usize::from(matches!(finish, Finish::EndToken(_)));
                    assert_eq!(timings.generated_tokens, n);
                }
                StreamEvent::Failed(error) => self.error = Some(error.to_string()),
                StreamEvent::Queued { .. } | StreamEvent::Prefill { .. } => {}
                StreamEvent::Embedding(_) => panic!("nobody has asked for one"),
            }
        }
    }

    /// All is right with what came.
    fn check(&self, device: &Fake, context: usize) {
        if self.stream.is_none() {
            return;
        }
        let most = (context + 1 - self.request.prompt.len()).min(self.request.options.max_tokens.unwrap_or(usize::MAX));
        let expected = continued(device, &self.request.prompt, most);
        for (choice, ids) in self.ids.iter().enumerate() {
            assert!(expected.starts_with(ids), "a token too many, too few or out of place");
            let Some(finish) = self.ends[choice] else {
                assert!(self.error.is_some(), "it ends somehow");
                continue;
            };
            match finish {
                Finish::Length => assert_eq!(ids.len(), most),
                Finish::StopString(0) => assert!(!self.texts[choice].contains(&self.request.options.stop[0])),
                Finish::Superseded => assert!(self.request.supersede.is_some()),
                Finish::Deadline => assert!(self.request.deadline.is_some()),
                other => panic!("nobody asked for {other:?}"),
            }
        }
    }
}

fn request(model: &Model, wanted: &Wanted, copies: bool) -> Request {
    let mut tokens = prompt(model, wanted.salt, wanted.prompt_tokens);
    tokens.extend(prompt(model, 50 + wanted.tail, wanted.tail));
    if copies {
        // Texts of few tokens repeat themselves.
        let ids = text_ids(model);
        tokens.iter_mut().enumerate().for_each(|(place, id)| *id = ids[(wanted.salt + place * place) % N_COPIED]);
    }
    let options = GenerateOptions {
        sampling: Sampling::greedy(),
        max_tokens: wanted.max_tokens,
        stop: if wanted.stop { vec!["e".to_owned()] } else { vec![] },
        speculate: if wanted.speculate { Speculate::lookup() } else { Speculate::Off },
        ..GenerateOptions::default()
    };
    Request {
        n: wanted.n,
        priority: Priority::ALL[wanted.priority],
        deadline: wanted.deadline_ms.map(Duration::from_millis),
        caller: format!("caller {}", wanted.caller),
        supersede: wanted.supersede.map(|key| format!("key {key}")),
        reproducible: wanted.reproducible,
        ..Request::new(tokens, options)
    }
}

fn simulate(acts: &[Act], options: &EngineOptions, copies: bool, failing: Vec<usize>, wrong: Vec<usize>) {
    let has_faults = !wrong.is_empty() || !failing.is_empty();
    simulate_on(acts, options, copies, has_faults, |base| Backends::from(Arc::new(Fake { failing, wrong, ..base })));
}

/// On devices made of one; requests may fail where `may_fail` says so.
fn simulate_on(
    acts: &[Act],
    options: &EngineOptions,
    copies: bool,
    may_fail: bool,
    devices: impl FnOnce(Fake) -> Backends,
) {
    let device = |model: &Model| if copies { copying(model, 5) } else { fake(model) };
    let mut bench = Bench::on(options, |base, model| devices(Fake { next: device(model).next, ..base }));
    let device = device(&bench.model);
    let context = bench.engine.context();
    let mut readers: Vec<Reader> = Vec::new();
    let mut n_refused = 0;
    for act in acts {
        match act {
            Act::Submit(wanted) => {
                let request = request(&bench.model, wanted, copies);
                match bench.engine.submit(&request) {
                    Ok(stream) => readers.push(Reader {
                        stream: Some(stream),
                        ids: vec![Vec::new(); request.n],
                        texts: vec![String::new(); request.n],
                        ends: vec![None; request.n],
                        error: None,
                        request,
                    }),
                    Err(Refusal::QueueFull { waiting, .. }) => {
                        assert!(waiting >= options.max_waiting);
                        n_refused += 1;
                    }
                    Err(Refusal::Deadline { deadline, estimate, .. }) => {
                        assert!(estimate > deadline);
                        n_refused += 1;
                    }
                    Err(Refusal::Invalid(_)) => {
                        assert!(request.prompt.len() > context);
                        n_refused += 1;
                    }
                    Err(other) => panic!("refused: {other}"),
                }
            }
            Act::Turns(n) => bench.turns(*n),
            Act::GoAway(which) => {
                if let Some(reader) = readers.get_mut(*which) {
                    reader.stream = None;
                }
            }
            Act::Read => readers.iter_mut().for_each(Reader::read),
        }
    }
    bench.settle();
    readers.iter_mut().for_each(Reader::read);
    readers.iter().for_each(|reader| reader.check(&device, context));
    assert!(may_fail || readers.iter().all(|reader| reader.error.is_none()));
    let metrics = bench.engine.metrics();
    assert_eq!((metrics.accepted, metrics.refused), (readers.len() as u64, n_refused));
    let n_choices: u64 = readers.iter().map(|reader| reader.request.n as u64).sum();
    let n_ended = metrics.finished
        + metrics.cancelled
        + metrics.superseded
        + metrics.missed_deadlines
        + metrics.failed
        + metrics.closed;
    assert_eq!(n_ended, n_choices, "every choice is counted once: {metrics:?}");
    bench.assert_at_rest();
}

/// Devices fail in all ways, come back and fail again.
#[test]
fn a_thousand_faults_lose_nothing() {
    let n_faults = Arc::new(AtomicUsize::new(0));
    let cases = (prop::collection::vec(act(), 10..40), 2_usize..6, 8_usize..40, any::<bool>(), any::<u32>());
    let mut runner = TestRunner::new(ProptestConfig { cases: 200, ..ProptestConfig::default() });
    let done = runner.run(&cases, |(acts, max_running, batch_rows, copies, seed)| {
        let options = EngineOptions { context: Some(120), max_running, batch_rows, max_waiting: 12, ..options() };
        simulate_on(&acts, &options, copies, false, |device| unreliable(&device, seed as usize, &n_faults));
        Ok(())
    });
    done.unwrap();
    let n_faults = n_faults.load(Ordering::SeqCst);
    assert!(n_faults >= 1000, "{n_faults} faults");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_leaks(
        acts in prop::collection::vec(act(), 1..40),
        (max_running, max_cached, max_waiting) in (1_usize..6, 0_usize..6, 1_usize..12),
        (batch_rows, kv_pages) in (1_usize..40, 0_usize..6),
        failing in prop::collection::vec(0_usize..200, 0..3),
        wrong in prop::collection::vec(0_usize..200, 0..3),
        (has_faults, copies) in any::<(bool, bool)>(),
    ) {
        let options = EngineOptions {
            context: Some(120),
            kv_tokens: Some(120 + 32 * kv_pages),
            max_running,
            max_cached,
            max_waiting,
            batch_rows,
            ..options()
        };
        let (failing, wrong) = if has_faults { (failing, wrong) } else { (vec![], vec![]) };
        simulate(&acts, &options, copies, failing, wrong);
    }
}
