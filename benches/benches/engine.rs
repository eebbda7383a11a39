//! The engine beside a session: `cargo bench -p farpost-benches --bench engine -- MODEL.gguf [ROUNDS] [PART...]`
//!
//! - `together`: tokens a second of 1 to 16 answers at once in times of a session's one, and what the engine itself takes
//!   for a token, beside the plan;
//! - `pace`: the time between tokens of an answer while a long prompt is read, in times of that without;
//! - `lanes`: first token and time between tokens of an interactive request while eight batch requests run, in times of
//!   those of an idle engine;
//! - `form`: time of a token that is held to a JSON schema, in times of a free one.
//!
//! All of them where none is named.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use farpost::engine::{
    Engine, EngineOptions, GenerateOptions, Grammar, Priority, Request, Sampling, Session, SessionOptions, Stream,
    StreamEvent,
};
use farpost::kernels::cpu::Cpu;
use farpost::{Model, ModelOptions};

const PROMPT_TOKENS: usize = 64;
const ANSWER_TOKENS: usize = 64;
const LONG_TOKENS: usize = 400;
const AT_ONCE: [usize; 5] = [1, 2, 4, 8, 16];
const PARTS: [&str; 4] = ["together", "pace", "lanes", "form"];
/// A list of objects that does not end soon: names, numbers and strings.
const SCHEMA: &str = r#"{"type": "array", "minItems": 200, "items": {"type": "object", "properties": {
    "name": {"type": "string"}, "count": {"type": "integer"}, "kind": {"enum": ["lamp", "valve", "door"]},
    "notes": {"type": "array", "items": {"type": "string"}}
}, "required": ["name", "count", "kind", "notes"], "additionalProperties": false}}"#;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let path =
        args.next().ok_or("expected a model file: cargo bench -p farpost-benches --bench engine -- MODEL.gguf")?;
    let n_rounds = args.next().map_or(Ok(3), |n| n.parse::<usize>())?.max(1);
    let named: Vec<String> = args.collect();
    if let Some(other) = named.iter().find(|name| !PARTS.contains(&name.as_str())) {
        return Err(format!("there is no part '{other}', there are {}", PARTS.join(", ")).into());
    }
    let is_wanted = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    let model = Arc::new(Model::open(Path::new(&path), &ModelOptions::default())?);
    if is_wanted("together") {
        together(&model, n_rounds)?;
    }
    if is_wanted("pace") {
        println!(
            "\n| time between tokens while {LONG_TOKENS} tokens are read, times that without | median | 95 % |\n|---|---|---|"
        );
        for percent in [150, 300] {
            let (median, most) = pace(&model, percent)?;
            println!("| inter_token_percent {percent} | {median:.2} | {most:.2} |");
        }
    }
    if is_wanted("lanes") {
        println!(
            "\n| beside eight batch requests, times idle | first token | between tokens | batch, tokens/s |\n|---|---|---|---|"
        );
        lanes(&model, n_rounds)?;
    }
    if is_wanted("form") {
        let mut shares = Vec::new();
        for _ in 0..n_rounds {
            shares.push(form(&model)?);
        }
        let shown: Vec<String> = shares.iter().map(|share| format!("{share:.3}")).collect();
        println!(
            "\ntime of a token held to a schema, times a free one: {} ({})",
            median(&mut shares),
            shown.join(", ")
        );
    }
    Ok(())
}

fn together(model: &Arc<Model>, n_rounds: usize) -> Result<(), Failure> {
    let mut alone = Vec::new();
    let mut together = AT_ONCE.map(|_| (Vec::new(), Vec::new()));
    for _ in 0..n_rounds {
        alone.push(session_rate(model)?);
        for ((rates, overheads), n) in together.iter_mut().zip(AT_ONCE) {
            let (rate, overhead_us) = engine_rate(model, n)?;
            rates.push(rate);
            overheads.push(overhead_us);
        }
    }
    let alone = median(&mut alone);
    println!(
        "| answers at once | tokens/s, times a session's {alone:.1} | engine beside the plan, us a token |\n|---|---|---|"
    );
    for ((rates, overheads), n) in together.iter_mut().zip(AT_ONCE) {
        println!("| {n} | {:.2} | {:.1} |", median(rates) / alone, median(overheads));
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn prompt(model: &Model, salt: usize, n: usize) -> Vec<u32> {
    let n_vocab = model.graph().n_vocab();
    (0..n).map(|place| ((salt * 8191 + place * 7919) % n_vocab) as u32).collect()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

fn session_rate(model: &Arc<Model>) -> Result<f64, Failure> {
    let options = SessionOptions { context: Some(512), ..SessionOptions::default() };
    let mut session = Session::open(Arc::clone(model), &Cpu::detect(), &options)?;
    let prompt = prompt(model, 1, PROMPT_TOKENS);
    let generated = session.generate(&prompt, &greedy(ANSWER_TOKENS), &mut |_| ControlFlow::Continue(()))?;
    Ok(generated.timings.decode_tokens_per_second().unwrap_or(f64::NAN))
}

fn open(model: &Arc<Model>, max_running: usize, percent: usize) -> Result<Engine, Failure> {
    let options = EngineOptions {
        context: Some(512),
        kv_tokens: Some(512 * max_running.max(2)),
        max_running,
        inter_token_percent: percent,
        ..EngineOptions::default()
    };
    Ok(Engine::open(Arc::clone(model), Arc::new(Cpu::detect()), &options)?)
}

/// Tokens a second from the first token of the last to begin to the end of the first to end, and microseconds of the
/// engine a token.
fn engine_rate(model: &Arc<Model>, n: usize) -> Result<(f64, f64), Failure> {
    let engine = open(model, n, 100_000)?;
    let submit = |salt| engine.submit(&Request::new(prompt(model, salt, PROMPT_TOKENS), greedy(ANSWER_TOKENS)));
    let streams = (0..n).map(submit).collect::<Result<Vec<Stream>, _>>()?;
    let threads: Vec<_> = streams.into_iter().map(|stream| std::thread::spawn(move || times(stream))).collect();
    let times: Vec<Vec<Instant>> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
    let begin = times.iter().filter_map(|times| times.first()).max().ok_or("no tokens")?;
    let end = times.iter().filter_map(|times| times.last()).min().ok_or("no tokens")?;
    let n_tokens = times.iter().flatten().filter(|time| *time > begin && *time <= end).count();
    let metrics = engine.metrics();
    let overhead_us = metrics.overhead_ms * 1e3 / metrics.generated_tokens as f64;
    Ok((n_tokens as f64 / (*end - *begin).as_secs_f64(), overhead_us))
}

fn times(stream: Stream) -> Vec<Instant> {
    let is_token = |event: &StreamEvent| matches!(event, StreamEvent::Token { .. });
    stream.filter(is_token).map(|_| Instant::now()).collect()
}

/// Time between tokens while a prompt is read, in times of that before: median and 95th of a hundred.
fn pace(model: &Arc<Model>, percent: usize) -> Result<(f64, f64), Failure> {
    let engine = open(model, 2, percent)?;
    let writing = engine.submit(&Request::new(prompt(model, 1, 16), greedy(480)))?;
    let wish = engine.clone();
    let thread = std::thread::spawn(move || {
        let mut times = Vec::new();
        for event in writing {
            if matches!(event, StreamEvent::Token { .. }) {
                times.push(Instant::now());
            }
        }
        drop(wish);
        times
    });
    while engine.metrics().generated_tokens < 48 {
        std::thread::yield_now();
    }
    let begin = Instant::now();
    let reading = engine.submit(&Request::new(prompt(model, 2, LONG_TOKENS), greedy(1)))?;
    let choices = reading.finish().map_err(|error| error.to_string())?;
    let end = begin + std::time::Duration::from_secs_f64(choices[0].timings.prefill_ms / 1e3);
    engine.drain(std::time::Duration::ZERO);
    let times = thread.join().map_err(|_| "the reader panicked")?;
    let gaps = |is_within: &dyn Fn(Instant) -> bool| -> Vec<f64> {
        let pairs = times.windows(2).filter(|pair| is_within(pair[1]));
        let mut gaps: Vec<f64> = pairs.map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    };
    let mut before = gaps(&|time| time < begin);
    let during = gaps(&|time| time > begin && time < end);
    let unit = median(&mut before);
    let at = |share: f64| during.get((during.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN) / unit;
    Ok((at(0.5), at(0.95)))
}

/// An interactive request of 128 tokens with 48 of answer: before, and while eight batch requests are answered.
fn lanes(model: &Arc<Model>, n_rounds: usize) -> Result<(), Failure> {
    let options = EngineOptions {
        context: Some(1024),
        kv_tokens: Some(10 * 1024),
        max_running: 9,
        max_cached: 0,
        ..EngineOptions::default()
    };
    let engine = Engine::open(Arc::clone(model), Arc::new(Cpu::detect()), &options)?;
    // First token and median time between tokens, in milliseconds.
    let interactive = |salt: usize| -> Result<(f64, f64), Failure> {
        let start = Instant::now();
        let request = Request { priority: Priority::High, ..Request::new(prompt(model, salt, 128), greedy(48)) };
        let times = times(engine.submit(&request)?);
        let first = times.first().ok_or("no token")?.duration_since(start).as_secs_f64() * 1e3;
        let mut gaps: Vec<f64> =
            times.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64() * 1e3).collect();
        Ok((first, median(&mut gaps)))
    };
    // The first one finds the file and the caches cold.
    interactive(1)?;
    let mut idle = Vec::new();
    for salt in 2..2 + n_rounds {
        idle.push(interactive(salt)?);
    }
    let low = |salt: usize| Request { priority: Priority::Low, ..Request::new(prompt(model, salt, 128), greedy(800)) };
    let before = engine.metrics().generated_tokens;
    let streams = (100..108).map(|salt| engine.submit(&low(salt))).collect::<Result<Vec<Stream>, _>>()?;
    while engine.metrics().generated_tokens < before + 8 * 8 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut beside = Vec::new();
    let mut n_batch = 0.0;
    let start = Instant::now();
    let written = engine.metrics().generated_tokens;
    for salt in 20..20 + n_rounds {
        beside.push(interactive(salt)?);
        n_batch -= 48.0;
    }
    n_batch += (engine.metrics().generated_tokens - written) as f64;
    let rate = n_batch / start.elapsed().as_secs_f64();
    drop(streams);
    engine.drain(std::time::Duration::ZERO);
    let of =
        |runs: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| median(&mut runs.iter().map(which).collect::<Vec<_>>());
    let (first, between) = (of(&idle, |run| run.0), of(&idle, |run| run.1));
    println!(
        "| idle {first:.0} and {between:.1} ms | {:.2} | {:.2} | {rate:.1} |",
        of(&beside, |run| run.0) / first,
        of(&beside, |run| run.1) / between
    );
    Ok(())
}

/// Time of a token held to a schema in times of a free one, of one session, in turn.
fn form(model: &Arc<Model>) -> Result<f64, Failure> {
    let options = SessionOptions { context: Some(512), ..SessionOptions::default() };
    let mut session = Session::open(Arc::clone(model), &Cpu::detect(), &options)?;
    let prompt = prompt(model, 1, PROMPT_TOKENS);
    let mut ms = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        for (grammar, ms) in [None, Some(Grammar::JsonSchema(SCHEMA.to_owned()))].into_iter().zip(&mut ms) {
            let options = GenerateOptions { ignore_eos: grammar.is_none(), grammar, ..greedy(2 * ANSWER_TOKENS) };
            let generated = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()))?;
            ms.push(generated.timings.decode_ms / generated.timings.generated_tokens.max(2) as f64);
        }
    }
    let [free, held] = &mut ms;
    Ok(median(held) / median(free))
}
