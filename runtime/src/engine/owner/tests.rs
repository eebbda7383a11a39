//! The owner turn by turn on a device whose every answer depends on all tokens of its sequence, with a clock that only
//! steps move: what is told is what one request alone would have got, whatever else happens.

use std::sync::Mutex;

use super::*;
use crate::engine::failover::Backends;
use crate::engine::fake::{Fake, expected, fake, text_ids};
use crate::engine::generate::{GenerateOptions, Generated};
use crate::engine::handle::Engine;
use crate::engine::options::EngineOptions;
use crate::engine::request::{Priority, Refusal, Request};
use crate::engine::sampling::Sampling;
use crate::engine::stream::{Stream, StreamEvent};

/// An engine whose owner takes a turn when it is told to.
pub(super) struct Bench {
    pub(super) model: Arc<Model>,
    pub(super) engine: Engine,
    pub(super) owner: Owner,
    pub(super) steps: Arc<Mutex<Vec<Batch>>>,
}

/// What a step takes: a millisecond, and a tenth for each row.
fn step_time(batch: &Batch) -> Duration {
    Duration::from_micros(1000 + 100 * batch.rows.len() as u64)
}

impl Bench {
    pub(super) fn new(options: &EngineOptions) -> Self {
        Self::with(options, |fake, _| fake)
    }

    pub(super) fn with(options: &EngineOptions, change: impl FnOnce(Fake, &Model) -> Fake) -> Self {
        Self::make(options, false, |device, model| Backends::from(Arc::new(change(device, model))))
    }

    /// With devices made of one.
    pub(super) fn on(options: &EngineOptions, devices: impl FnOnce(Fake, &Model) -> Backends) -> Self {
        Self::make(options, false, devices)
    }

    /// With a draft model on the same device.
    pub(super) fn with_draft(options: &EngineOptions) -> Self {
        Self::make(options, true, |fake, _| Backends::from(Arc::new(fake)))
    }

    fn make(options: &EngineOptions, has_draft: bool, devices: impl FnOnce(Fake, &Model) -> Backends) -> Self {
        let model = Arc::new(Model::pocket().unwrap());
        let now = Arc::new(Mutex::new(Instant::now()));
        let mut device = fake(&model);
        let clock = Arc::clone(&now);
        device.on_step = Arc::new(move |batch| *clock.lock().unwrap() += step_time(batch));
        let steps = Arc::clone(&device.steps);
        let devices = devices(device, &model);
        let clock: Clock = Arc::new(move || *now.lock().unwrap());
        let draft = has_draft.then(|| Arc::clone(&model));
        let (engine, owner) = Engine::parts(Arc::clone(&model), draft, &devices, options, None, clock).unwrap();
        Self { model, engine, owner, steps }
    }

    pub(super) fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.owner.turn();
        }
    }

    /// Until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.owner.turn() != Next::Work {
                return;
            }
        }
        panic!("the owner goes on forever");
    }

    pub(super) fn submit(&self, request: &Request) -> Stream {
        self.engine.submit(request).unwrap()
    }

    pub(super) fn n_rows(&self) -> usize {
        self.steps.lock().unwrap().iter().map(|batch| batch.rows.len()).sum()
    }

    pub(super) fn n_steps(&self) -> usize {
        self.steps.lock().unwrap().len()
    }

    /// Nothing is held but cached prefixes, and without these nothing at all.
    pub(super) fn assert_at_rest(&mut self) {
        assert!(self.owner.waiting.is_empty() && self.owner.running.is_empty());
        assert!(self.owner.shares.is_empty());
        while self.owner.evict(None) {}
        assert!(self.owner.prefixes.is_empty(), "no holder is left");
        let kv = self.owner.plan.kv();
        assert_eq!(kv.free_tokens(), self.owner.metrics.kv_tokens, "no page is lost");
        let opened: Vec<_> = std::iter::from_fn(|| kv.open()).collect();
        assert_eq!(opened.len(), self.owner.sizes.limits.max_sequences, "no sequence is lost");
        opened.into_iter().for_each(|sequence| kv.close(sequence));
    }
}

pub(super) fn options() -> EngineOptions {
    EngineOptions { context: Some(200), batch_rows: 32, max_running: 4, max_cached: 4, ..EngineOptions::default() }
}

pub(super) fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    let options =
        GenerateOptions { sampling: Sampling::greedy(), max_tokens: Some(max_tokens), ..GenerateOptions::default() };
    Request::new(prompt.to_vec(), options)
}

/// A prompt of `n` tokens of its own.
pub(super) fn prompt(model: &Model, salt: usize, n: usize) -> Vec<u32> {
    let ids = text_ids(model);
    (0..n).map(|place| ids[(salt * 31 + place * 7 + place * place) % ids.len()]).collect()
}

pub(super) fn only(stream: Stream) -> Generated {
    let mut choices = stream.finish().unwrap();
    assert_eq!(choices.len(), 1);
    choices.remove(0)
}

#[test]
fn many_requests_share_steps_and_each_gets_what_it_would_get_alone() {
    let mut bench = Bench::new(&options());
    let prompts: Vec<Vec<u32>> = (0..9).map(|salt| prompt(&bench.model, salt, 5 + 11 * salt)).collect();
    let streams: Vec<Stream> = prompts.iter().map(|prompt| bench.submit(&greedy(prompt, 12))).collect();
    bench.settle();
    for (prompt, stream) in prompts.iter().zip(streams) {
        let generated = only(stream);
        assert_eq!((generated.finish, &generated.ids), (Finish::Length, &expected(&bench.model, prompt, 12)));
        assert_eq!(generated.text.as_bytes(), bench.model.tokenizer().decode(&generated.ids, false));
    }
    let steps = bench.steps.lock().unwrap();
    assert!(steps.iter().any(|batch| batch.want.len() == 4), "four run at once");
    let is_mixed = |batch: &Batch| {
        let n_first = batch.rows.iter().filter(|row| row.sequence == batch.rows[0].sequence).count();
        n_first == 1 && batch.rows.len() > 4
    };
    assert!(steps.iter().any(is_mixed), "prompts are read while answers are written");
    drop(steps);
    let metrics = bench.engine.metrics();
    assert_eq!((metrics.accepted, metrics.finished, metrics.generated_tokens), (9, 9, 9 * 12));
    bench.assert_at_rest();
}

#[test]
fn events_tell_what_happens_in_order() {
    let mut bench = Bench::new(&EngineOptions { max_running: 1, ..options() });
    let (first, second) = (prompt(&bench.model, 1, 40), prompt(&bench.model, 2, 3));
    let _first = bench.submit(&greedy(&first, 2));
    let stream = bench.submit(&greedy(&second, 2));
    bench.settle();
    let told: Vec<String> = stream
        .map(|event| match event {
            StreamEvent::Queued { ahead } => format!("queued {ahead}"),
            StreamEvent::Prefill { done_tokens, total_tokens } => format!("prefill {done_tokens}/{total_tokens}"),
            StreamEvent::Token { .. } => "token".to_owned(),
            StreamEvent::Text { .. } => "text".to_owned(),
            StreamEvent::Done { finish, timings, .. } => {
                assert_eq!((timings.prompt_tokens, timings.generated_tokens), (3, 2));
                assert!(timings.queue_ms > 0.0 && timings.prefill_ms > 0.0 && timings.decode_ms > 0.0);
                format!("done {}", finish.reason())
            }
            StreamEvent::Failed(error) => panic!("{error}"),
            StreamEvent::Embedding(_) => panic!("nobody has asked for one"),
        })
        .collect();
    assert_eq!(told, ["queued 0", "prefill 0/3", "prefill 3/3", "token", "text", "token", "text", "done length"]);
}

#[test]
fn who_goes_away_is_gone_within_a_step_in_the_queue_the_prompt_and_the_answer() {
    for n_turns in 0..8 {
        let mut bench = Bench::new(&EngineOptions { max_running: 1, batch_rows: 16, ..options() });
        let long = prompt(&bench.model, 1, 60);
        let stream = bench.submit(&greedy(&long, 50));
        let other = prompt(&bench.model, 2, 4);
        let waits = bench.submit(&greedy(&other, 50));
        let stays = bench.submit(&greedy(&other, 3));
        bench.turns(n_turns);
        let before = bench.n_steps();
        drop((stream, waits));
        bench.settle();
        assert_eq!(only(stays).ids, expected(&bench.model, &other, 3));
        assert_eq!(bench.n_steps() - before, 3, "after {n_turns} turns");
        assert_eq!(bench.engine.metrics().cancelled, 2);
        bench.assert_at_rest();
    }
}

#[test]
fn who_goes_away_while_its_prompt_runs_stops_the_step_and_loses_others_nothing() {
    let leaving = Arc::new(Mutex::new(None::<Stream>));
    let gone = Arc::clone(&leaving);
    let mut bench = Bench::with(&options(), move |mut device, _| {
        let timed = Arc::clone(&device.on_step);
        device.on_step = Arc::new(move |batch| {
            timed(batch);
            if batch.rows.len() > 20 {
                drop(gone.lock().unwrap().take());
            }
        });
        device
    });
    let (short, long) = (prompt(&bench.model, 2, 4), prompt(&bench.model, 1, 60));
    let stays = bench.submit(&greedy(&short, 9));
    bench.turns(2);
    // A lane above: its prompt does not wait for the other's pace.
    let long = Request { priority: Priority::High, ..greedy(&long, 50) };
    *leaving.lock().unwrap() = Some(bench.submit(&long));
    bench.settle();
    assert_eq!(only(stays).ids, expected(&bench.model, &short, 9));
    let metrics = bench.engine.metrics();
    assert_eq!((metrics.cancelled, metrics.failed_steps, metrics.prefill_tokens), (1, 0, 4));
    bench.assert_at_rest();
}

#[test]
fn stop_strings_end_an_answer_for_the_reader_and_the_owner() {
    let mut bench = Bench::new(&options());
    let prompt = prompt(&bench.model, 3, 4);
    let stream = bench.submit(&greedy(&prompt, 30));
    bench.settle();
    let whole = only(stream).text;
    let stop = whole[whole.len() / 4..][..4].to_owned();
    let mut request = greedy(&prompt, 30);
    request.options.stop = vec!["never".to_owned(), stop.clone()];
    let mut stream = bench.submit(&request);
    let (mut text, mut n_turns, mut end) = (String::new(), 0, None);
    while end.is_none() {
        bench.turns(1);
        n_turns += 1;
        while let Some(event) = stream.try_next() {
            match event {
                StreamEvent::Text { text: new, .. } => text.push_str(&new),
                StreamEvent::Done { finish, timings, .. } => end = Some((finish, timings.generated_tokens)),
                _ => {}
            }
        }
    }
    assert_eq!(text, whole[..whole.find(&stop).unwrap()]);
    let (finish, n_tokens) = end.unwrap();
    assert_eq!(finish, Finish::StopString(1));
    assert!(n_tokens < 30 && n_turns <= n_tokens + 2, "{n_turns} turns for {n_tokens} tokens");
    assert!(stream.is_done() && stream.next().is_none());
    bench.settle();
    bench.assert_at_rest();
}

#[test]
fn what_is_wrong_is_refused_before_any_work() {
    let bench = Bench::new(&options());
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = greedy(&[1, 2], 3);
        change(&mut request);
        bench.engine.submit(&request).err().expect("it is refused").to_string()
    };
    assert_eq!(refused(&|request| request.prompt.clear()), "the prompt is empty, expected at least one token");
    assert_eq!(refused(&|request| request.prompt = vec![1; 201]), "the prompt has 201 tokens, the context holds 200");
    assert_eq!(refused(&|request| request.n = 0), "n is 0, expected 1 to 64");
    assert_eq!(
        refused(&|request| request.options.stop = vec![String::new()]),
        "stop[0] is empty, expected at least one character"
    );
    assert_eq!(refused(&|request| request.options.sampling.temperature = 11.0), "temperature is 11, expected 0 to 10");
    assert_eq!((bench.n_steps(), bench.engine.metrics().refused), (0, 5));
}

#[test]
fn the_queue_has_a_bound() {
    let mut bench = Bench::new(&EngineOptions { max_running: 1, max_waiting: 2, ..options() });
    let prompt = prompt(&bench.model, 1, 4);
    let mut streams = vec![bench.submit(&greedy(&prompt, 5))];
    bench.turns(1);
    streams.extend((0..2).map(|_| bench.submit(&greedy(&prompt, 5))));
    let full = || bench.engine.submit(&greedy(&prompt, 5)).err();
    assert!(matches!(full(), Some(Refusal::QueueFull { waiting: 2, .. })));
    bench.turns(1);
    assert!(matches!(bench.engine.submit(&greedy(&prompt, 5)), Err(Refusal::QueueFull { waiting: 2, .. })));
    bench.settle();
    assert!(streams.into_iter().all(|stream| only(stream).ids == expected(&bench.model, &prompt, 5)));
    let stream = bench.submit(&greedy(&prompt, 5));
    bench.settle();
    assert_eq!(only(stream).ids.len(), 5);
}

#[test]
fn a_real_thread_serves_and_closes() {
    let model = Arc::new(Model::pocket().unwrap());
    let engine = Engine::open(Arc::clone(&model), Arc::new(fake(&model)), &options()).unwrap();
    let (a, b) = (prompt(&model, 1, 30), prompt(&model, 2, 20));
    let streams = [engine.submit(&greedy(&a, 9)).unwrap(), engine.clone().submit(&greedy(&b, 9)).unwrap()];
    assert!(engine.drain(Duration::from_secs(60)));
    assert!(matches!(engine.submit(&greedy(&a, 9)), Err(Refusal::Closed)));
    let [first, second] = streams.map(only);
    assert_eq!((first.ids, second.ids), (expected(&model, &a, 9), expected(&model, &b, 9)));
    // Without a drain what runs ends at once.
    let engine = Engine::open(Arc::clone(&model), Arc::new(fake(&model)), &options()).unwrap();
    let stream = engine.submit(&Request { options: GenerateOptions::default(), ..greedy(&a, 9) }).unwrap();
    drop(engine);
    assert!(matches!(only(stream).finish, Finish::Closed | Finish::Length | Finish::EndToken(_)));
}

#[test]
fn an_async_task_is_woken_for_each_event() {
    use std::task::{Context, Poll, Wake, Waker};
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut bench = Bench::new(&options());
    let mut stream = bench.submit(&greedy(&prompt(&bench.model, 1, 4), 3));
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    assert!(stream.poll_next(&mut context).is_pending());
    bench.turns(1);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    let mut n_events = 0;
    loop {
        match stream.poll_next(&mut context) {
            Poll::Ready(Some(_)) => n_events += 1,
            Poll::Ready(None) => break,
            Poll::Pending => bench.turns(1),
        }
    }
    assert!(n_events >= 7 && count.0.load(Ordering::Relaxed) >= 3);
}

#[test]
fn a_failed_step_ends_only_the_request_that_fails_alone() {
    // The second step fails for all, and again for the part that is run first alone.
    let mut bench = Bench::with(&options(), |device, _| Fake { wrong: vec![2, 3], ..device });
    let prompts: Vec<Vec<u32>> = (0..3).map(|salt| prompt(&bench.model, salt, 5)).collect();
    let streams: Vec<Stream> = prompts.iter().map(|prompt| bench.submit(&greedy(prompt, 6))).collect();
    bench.settle();
    let results: Vec<_> = streams.into_iter().map(Stream::finish).collect();
    assert!(results[0].as_ref().err().unwrap().to_string().starts_with("wrong result"));
    for (prompt, result) in prompts.iter().zip(results).skip(1) {
        assert_eq!(result.unwrap()[0].ids, expected(&bench.model, prompt, 6));
    }
    assert_eq!((bench.engine.metrics().failed, bench.engine.metrics().finished), (1, 2));
    bench.assert_at_rest();
}

#[test]
fn further_choices_of_a_request_that_has_begun_take_no_place_in_the_queue() {
    let mut bench = Bench::new(&EngineOptions { max_running: 1, max_waiting: 2, ..options() });
    let prompt = prompt(&bench.model, 1, 10);
    let many = bench.submit(&Request { n: 20, ..greedy(&prompt, 5) });
    bench.turns(3);
    assert!(bench.engine.metrics().waiting >= 19);
    let others = [0, 1].map(|_| bench.submit(&greedy(&prompt, 5)));
    assert!(matches!(bench.engine.submit(&greedy(&prompt, 5)), Err(Refusal::QueueFull { waiting: 2, .. })));
    bench.settle();
    assert_eq!(many.finish().unwrap().len(), 20);
    assert!(others.into_iter().all(|other| only(other).ids == expected(&bench.model, &prompt, 5)));
    bench.assert_at_rest();
}

#[test]
fn a_lost_device_is_a_pause() {
    for failing in 0..7 {
        let mut bench = Bench::with(&options(), |device, _| Fake { failing: vec![failing], ..device });
        let prompts: Vec<Vec<u32>> = (0..3).map(|salt| prompt(&bench.model, salt, 5 + 20 * salt)).collect();
        let streams: Vec<Stream> = prompts.iter().map(|prompt| bench.submit(&greedy(prompt, 6))).collect();
        bench.settle();
        for (prompt, stream) in prompts.iter().zip(streams) {
            assert_eq!(only(stream).ids, expected(&bench.model, prompt, 6));
        }
        assert_eq!(bench.engine.metrics().recovered, 1);
        bench.assert_at_rest();
    }
    let mut bench = Bench::with(&options(), |device, _| Fake { failing: vec![1, 2, 3], ..device });
    let prompt = prompt(&bench.model, 1, 5);
    let lost = bench.submit(&greedy(&prompt, 6));
    bench.settle();
    assert!(lost.finish().unwrap_err().to_string().starts_with("device lost"));
    let next = bench.submit(&greedy(&prompt, 6));
    bench.settle();
    assert_eq!(only(next).ids, expected(&bench.model, &prompt, 6));
    bench.assert_at_rest();
}

#[test]
fn high_lanes_come_first_and_take_places_from_lower_ones() {
    let mut bench = Bench::new(&EngineOptions { max_running: 1, ..options() });
    let (a, b) = (prompt(&bench.model, 1, 20), prompt(&bench.model, 2, 20));
    let low = bench.submit(&Request { priority: Priority::Low, ..greedy(&a, 20) });
    bench.turns(6);
    let high = bench.submit(&Request { priority: Priority::High, ..greedy(&b, 4) });
    bench.turns(4);
    assert_eq!(bench.engine.metrics().preempted, 1);
    assert!(high.finish().is_ok_and(|choices| choices[0].ids == expected(&bench.model, &b, 4)));
    bench.settle();
    assert_eq!(only(low).ids, expected(&bench.model, &a, 20));
    // Its keys and values were still there.
    assert_eq!(bench.n_rows(), 20 + 19 + 20 + 3);
    bench.assert_at_rest();
}
