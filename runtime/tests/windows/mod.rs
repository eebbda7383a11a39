//! Layers that keep only their window answer as layers that keep everything, whatever is shared, taken back, saved and
//! made again.
//!
//! In steps of up to 16 rows results do not depend on what else is in a step, to the bit: so texts of one model are held
//! against each other token by token.

use std::ops::ControlFlow;
use std::sync::Arc;

use farpost::engine::{Engine, EngineOptions, Generated, Request, Sampling, Session, SessionOptions, Speculate};
use farpost::engine::{GenerateOptions, Priority};
use farpost::{Model, ModelOptions};
use farpost_firmware_tests::model;
use farpost_kernels::backend::{Answer, Backend, Batch, Limits, Output, Plan, Row, Sequence, Want, WantKind};
use farpost_kernels::cpu::Cpu;
use proptest::prelude::*;

/// Both have windows of 32 tokens.
const NAMES: [&str; 2] = ["tiny-gemma2.gguf", "tiny-gemma3.gguf"];

fn opened(name: &str) -> Arc<Model> {
    Arc::new(Model::open(&model(name), &ModelOptions::default()).unwrap())
}

fn tokens(model: &Model, salt: u32, n: usize) -> Vec<u32> {
    let n_vocab = model.graph().n_vocab() as u32;
    (0..n as u32).map(|at| (salt * 101 + at * at * 13 + at * 7) % n_vocab).collect()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

/// Two plans, of which the second keeps everything.
struct Both {
    plans: [Box<dyn Plan>; 2],
    outputs: [Output; 2],
    open: Vec<(Sequence, usize)>,
}

impl Both {
    fn new(model: &Model) -> Self {
        let limits = Limits { max_rows: 40, max_sequences: 3, max_windows: 3, kv_tokens: 640, ..Limits::default() };
        let limits = Limits { page_tokens: 8, threads: 1, ..limits };
        // Room for so many rows of a step is room for all.
        let whole = Limits { max_rows: 640, ..limits.clone() };
        let plans = [limits, whole].map(|limits| Cpu::detect().compile(model.graph(), &limits).unwrap());
        assert!(plans[0].memory().kv < plans[1].memory().kv);
        Self { plans, outputs: [Output::default(), Output::default()], open: Vec::new() }
    }

    /// Runs more rows of some sequences in one step, whose results are the same, to the bit; returns how many rows of
    /// the last one.
    fn step(&mut self, n_rows: &[usize], salt: usize) -> usize {
        let mut batch = Batch::default();
        let mut n_last = 0;
        for ((sequence, len), &n_rows) in self.open.iter_mut().zip(n_rows) {
            n_last = 0;
            if *len + n_rows > 500 || !self.plans.iter_mut().all(|plan| plan.kv().reserve(*sequence, *len + n_rows)) {
                continue;
            }
            n_last = n_rows;
            for position in *len..*len + n_rows {
                batch.want.push(Want { row: batch.rows.len(), kind: WantKind::TopK(3) });
                let token = ((position * 7 + salt * 31) % 200) as u32;
                batch.rows.push(Row { token, position, sequence: *sequence });
            }
            *len += n_rows;
        }
        for (plan, out) in self.plans.iter_mut().zip(&mut self.outputs) {
            plan.step(&batch, out).unwrap();
        }
        let [windowed, whole] = &self.outputs;
        assert!(windowed.results.iter().all(|answer| matches!(answer, Answer::TopK { .. })));
        assert_eq!(windowed.results, whole.results);
        n_last
    }

    fn both<T: PartialEq + std::fmt::Debug>(&mut self, act: impl Fn(&mut dyn Plan) -> T) -> T {
        let [windowed, whole] = self.plans.each_mut().map(|plan| act(&mut **plan));
        assert_eq!(windowed, whole);
        windowed
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn plans_with_windows_answer_as_plans_that_keep_everything(
        name in prop::sample::select(&NAMES[..]),
        actions in prop::collection::vec((0_u8..9, 0_usize..3, 0_usize..14, 0_usize..14, 0_usize..14), 4..40),
    ) {
        let model = opened(name);
        let mut both = Both::new(&model);
        for (salt, (action, slot, a, b, c)) in actions.into_iter().enumerate() {
            let known = both.open.get(slot).copied();
            match (action, known) {
                (0..=4, Some(_)) => {
                    // Guesses of the last one are wrong.
                    let n_last = both.step(&[a, b, c], salt);
                    let last = both.open.len() - 1;
                    let (sequence, len) = both.open[last];
                    let kept = len - n_last / 2;
                    let left = both.both(|plan| plan.kv().truncate(sequence, kept));
                    prop_assert_eq!(left, kept);
                    both.open[last].1 = kept;
                }
                (5 | 6, Some((sequence, len))) if both.open.len() < 3 => {
                    let at = both.plans[0].kv().resumable(sequence, len.saturating_sub(b * 8));
                    let fork = both.both(|plan| plan.kv().fork(sequence, at));
                    both.open.push((fork.unwrap(), at));
                }
                (7, Some((sequence, len))) => {
                    let at = both.plans[0].kv().resumable(sequence, len.saturating_sub(a * 4));
                    both.both(|plan| plan.kv().truncate(sequence, at));
                    both.open[slot].1 = at;
                }
                (8, Some((sequence, _))) => {
                    both.both(|plan| plan.kv().close(sequence));
                    both.open.remove(slot);
                }
                _ if both.open.len() < 3 => {
                    let sequence = both.both(|plan| plan.kv().open()).unwrap();
                    both.open.push((sequence, 0));
                }
                _ => {}
            }
        }
    }
}

/// Answers of an engine that keeps everything and has one request at a time and nothing cached.
fn alone(model: &Arc<Model>, requests: &[Request]) -> Vec<Vec<Vec<u32>>> {
    let options = EngineOptions {
        context: Some(400),
        kv_tokens: Some(400),
        max_running: 16,
        max_cached: 0,
        batch_rows: 16,
        threads: 1,
        ..EngineOptions::default()
    };
    let engine = Engine::open(Arc::clone(model), Arc::new(Cpu::detect()), &options).unwrap();
    requests.iter().map(|request| ids(&engine.submit(request).unwrap().finish().unwrap())).collect()
}

fn ids(choices: &[Generated]) -> Vec<Vec<u32>> {
    choices.iter().map(|choice| choice.ids.clone()).collect()
}

#[test]
fn an_engine_with_windows_answers_as_one_that_keeps_everything() {
    for name in NAMES {
        let model = opened(name);
        let system = tokens(&model, 1, 150);
        let prompt = |salt: u32, n: usize| [&system[..], &tokens(&model, salt, n)].concat();
        let request = |prompt: Vec<u32>, n: usize, priority: Priority| Request {
            n,
            priority,
            ..Request::new(prompt, GenerateOptions { speculate: Speculate::lookup(), ..greedy(40) })
        };
        let mut requests: Vec<Request> = (2..12)
            .map(|salt| {
                let priority = Priority::ALL[salt as usize % 3];
                request(prompt(salt, 10 * salt as usize), 1 + salt as usize % 3, priority)
            })
            .collect();
        // Again, from the middle of one, and with an answer in it.
        requests.push(requests[3].clone());
        requests.push(request(requests[8].prompt[..200].to_vec(), 2, Priority::Normal));
        let expected = alone(&model, &requests);
        requests.push(request([&requests[5].prompt[..], &expected[5][0], &[5, 6, 7]].concat(), 1, Priority::Normal));
        let expected = [expected, alone(&model, &requests[12..])].concat();

        let options = EngineOptions {
            context: Some(400),
            kv_tokens: Some(1200),
            max_running: 3,
            max_cached: 3,
            batch_rows: 16,
            threads: 1,
            ..EngineOptions::default()
        };
        let engine = Engine::open(Arc::clone(&model), Arc::new(Cpu::detect()), &options).unwrap();
        let whole = EngineOptions { max_running: 16, max_cached: 16, ..options };
        let whole = Engine::open(Arc::clone(&model), Arc::new(Cpu::detect()), &whole).unwrap();
        assert!(engine.memory().kv < whole.memory().kv * 4 / 5, "windows take less");
        for _ in 0..2 {
            let streams: Vec<_> = requests.iter().map(|request| engine.submit(request).unwrap()).collect();
            for (stream, expected) in streams.into_iter().zip(&expected) {
                assert_eq!(&ids(&stream.finish().unwrap()), expected, "{name}");
            }
        }
        let metrics = engine.metrics();
        assert!(metrics.cached_tokens > 0 && metrics.failed == 0, "{metrics:?}");

        // A text in a file has its windows only, and goes on.
        let path = std::env::temp_dir().join(format!("farpost-windows-{}-{name}", std::process::id()));
        let text = [&requests[5].prompt[..], &expected[5][0]].concat();
        assert_eq!(ids(&engine.submit(&requests[5]).unwrap().finish().unwrap()), expected[5]);
        let n_saved = engine.save(&text, &path, b"").unwrap();
        assert_eq!(n_saved, text.len() - 1);
        let fresh = Engine::open(Arc::clone(&model), Arc::new(Cpu::detect()), &options).unwrap();
        fresh.restore(&path).unwrap();
        let file_bytes = std::fs::metadata(&path).unwrap().len();
        std::fs::remove_file(&path).unwrap();
        let whole_bytes = fresh.memory().kv / 1200 * n_saved as u64;
        assert!(file_bytes < whole_bytes, "{file_bytes} bytes of {whole_bytes}");
        let again = fresh.submit(&requests[12]).unwrap().finish().unwrap();
        assert_eq!(ids(&again), expected[12]);
        assert_eq!(again[0].timings.cached_tokens, n_saved);
    }
}

fn generate(session: &mut Session, prompt: &[u32], options: &GenerateOptions) -> Generated {
    session.generate(prompt, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn session(model: &Arc<Model>, context: usize, batch_rows: usize) -> Session {
    let options = SessionOptions { context: Some(context), batch_rows, threads: 1, ..SessionOptions::default() };
    Session::open(Arc::clone(model), &Cpu::detect(), &options).unwrap()
}

#[test]
fn a_session_with_windows_goes_on_goes_back_and_is_restored() {
    for name in NAMES {
        let model = opened(name);
        let prompt = tokens(&model, 3, 200);
        let expected = |prompt: &[u32]| {
            let request = Request::new(prompt.to_vec(), greedy(50));
            alone(&model, &[request]).remove(0).remove(0)
        };
        let mut session = session(&model, 400, 16);
        let answer = generate(&mut session, &prompt, &greedy(50)).ids;
        assert_eq!(answer, expected(&prompt), "{name}");
        // The same again, as far back as its room reaches; and from the beginning where it does not.
        let again = generate(&mut session, &prompt[..198], &greedy(50));
        assert_eq!(again.ids, expected(&prompt[..198]));
        let longer = [&prompt[..198], &again.ids, &tokens(&model, 4, 9)].concat();
        let goes_on = generate(&mut session, &longer, &greedy(50));
        assert_eq!((goes_on.timings.cached_tokens, goes_on.ids), (247, expected(&longer)));
        let early = generate(&mut session, &prompt[..60], &greedy(50));
        assert_eq!((early.timings.cached_tokens, early.ids), (0, expected(&prompt[..60])));

        let path = std::env::temp_dir().join(format!("farpost-window-{}-{name}", std::process::id()));
        generate(&mut session, &longer, &greedy(50));
        session.save(&path, b"").unwrap();
        let text = session.cached().to_vec();
        let mut other = self::session(&model, 400, 16);
        other.restore(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let again = generate(&mut other, &text, &greedy(50));
        assert_eq!((again.timings.cached_tokens, again.ids), (text.len() - 1, expected(&text)));
    }
}

#[test]
fn a_long_prompt_of_a_real_model_is_the_same_in_less_room() {
    let model = opened("gemma-3-270m-q4_k_m.gguf");
    let text = "The keeper of the light wrote down the wind, the tide and every ship that passed. ".repeat(120);
    let prompt = model.tokenizer().encode_prompt(&text, farpost_models::tokenizer::Special::AsText);
    let prompt = &prompt[..2000];
    // Rows of a step are the same, so answers are to the bit; room for more rows is room for all.
    let limits = Limits { max_rows: 256, kv_tokens: 4096, ..Limits::default() };
    let whole = Limits { max_rows: 4096, ..limits.clone() };
    let mut results = Vec::new();
    for limits in [&limits, &whole] {
        let mut plan = Cpu::detect().compile(model.graph(), limits).unwrap();
        let (sequence, mut out) = (plan.kv().open().unwrap(), Output::default());
        let mut answers = Vec::new();
        let mut step = |ids: &[u32], from: usize| {
            assert!(plan.kv().reserve(sequence, from + ids.len()));
            let rows = (from..).zip(ids).map(|(position, &token)| Row { token, position, sequence }).collect();
            let want = vec![Want { row: ids.len() - 1, kind: WantKind::TopK(5) }];
            plan.step(&Batch { rows, want, interrupt: None }, &mut out).unwrap();
            let Answer::TopK { best, .. } = &out.results[0] else { panic!("{:?}", out.results) };
            answers.push(best.clone());
            best[0].0
        };
        let mut next = 0;
        for (number, chunk) in prompt.chunks(256).enumerate() {
            next = step(chunk, number * 256);
        }
        for number in 0..24 {
            next = step(&[next], 2000 + number);
        }
        results.push((answers, plan.memory().kv));
    }
    assert_eq!(results[0].0, results[1].0);
    // 15 of 18 layers keep 512 positions, those of a step and what pages take, of 4,096.
    assert!(results[0].1 * 5 < results[1].1 * 2, "{} bytes of {}", results[0].1, results[1].1);
}
