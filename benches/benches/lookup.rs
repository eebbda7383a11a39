//! Guessing tokens ahead against plain decoding: `cargo bench -p farpost-benches --bench lookup -- MODEL.gguf [ROUNDS]`
//!
//! Two tables. What a step of several rows of one sequence costs, in steps of one row: the constants of
//! `runtime/src/engine/lookup/odds.rs` come from there. Then tokens a second of texts that a base model goes on with:
//! an edit of code, a quote, JSON (greedy) and talk (seeded), with and without guesses in turn, the median of each.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use farpost::engine::{GenerateOptions, Generated, Sampling, Session, SessionOptions, Speculate};
use farpost::kernels::backend::{Backend, Batch, Limits, Output, Row, Want, WantKind};
use farpost::kernels::cpu::Cpu;
use farpost::models::tokenizer::Special;
use farpost::{Model, ModelOptions};

const TEXTS: [(&str, &str, f32, usize); 4] = [
    ("edit", include_str!("../texts/edit.txt"), 0.0, 128),
    ("quote", include_str!("../texts/quote.txt"), 0.0, 96),
    ("json", include_str!("../texts/json.txt"), 0.0, 128),
    ("chat", include_str!("../texts/chat.txt"), 1.0, 96),
];
const WIDTHS: [usize; 9] = [1, 2, 3, 4, 5, 6, 8, 12, 16];
const DEPTH: usize = 256;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let path =
        args.next().ok_or("expected a model file: cargo bench -p farpost-benches --bench lookup -- MODEL.gguf")?;
    let n_rounds = args.next().map_or(Ok(5), |n| n.parse::<usize>())?.max(1);
    let model = Arc::new(Model::open(Path::new(&path), &ModelOptions::default())?);
    costs(&model, n_rounds)?;
    texts(&model, n_rounds)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What steps of several rows cost.
fn costs(model: &Model, n_rounds: usize) -> Result<(), Failure> {
    let limits = Limits { kv_tokens: DEPTH + 64, ..Limits::default() };
    let mut plan = Cpu::detect().compile(model.graph(), &limits)?;
    let sequence = plan.kv().open().ok_or("a plan opens a sequence")?;
    let n_vocab = model.graph().n_vocab();
    let row = |position: usize| Row { token: (position * 7919 % n_vocab) as u32, position, sequence };
    let mut output = Output::default();
    plan.kv().reserve(sequence, DEPTH + 16);
    plan.step(&Batch { rows: (0..DEPTH).map(row).collect(), ..Batch::default() }, &mut output)?;
    let mut times = WIDTHS.map(|_| Vec::new());
    for _ in 0..n_rounds * 3 {
        for (times, n_rows) in times.iter_mut().zip(WIDTHS) {
            plan.kv().truncate(sequence, DEPTH);
            plan.kv().reserve(sequence, DEPTH + n_rows);
            let batch = Batch {
                rows: (DEPTH..DEPTH + n_rows).map(row).collect(),
                want: (0..n_rows).map(|row| Want { row, kind: WantKind::Greedy }).collect(),
                interrupt: None,
            };
            let start = Instant::now();
            plan.step(&batch, &mut output)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let medians = times.map(|mut times| median(&mut times));
    println!("{:>8} {:>10} {:>22}", "rows", "ms", "in steps of one row");
    for (n_rows, ms) in WIDTHS.iter().zip(medians) {
        println!("{n_rows:8} {ms:10.2} {:22.2}", ms / medians[0]);
    }
    Ok(())
}

/// Speed of each text, with and without.
fn texts(model: &Arc<Model>, n_rounds: usize) -> Result<(), Failure> {
    let options = SessionOptions { context: Some(1024), ..SessionOptions::default() };
    let mut session = Session::open(Arc::clone(model), &Cpu::detect(), &options)?;
    println!(
        "\n{:8} {:>10} {:>10} {:>8} {:>8} {:>8}  same text",
        "text", "plain t/s", "ahead t/s", "ratio", "drafted", "right"
    );
    for (name, text, temperature, n_tokens) in TEXTS {
        let prompt = model.tokenizer().encode_prompt(text, Special::AsText);
        let mut generate = |speculate| -> Result<Generated, Failure> {
            let sampling = Sampling { temperature, seed: 5, ..Sampling::default() };
            let options = GenerateOptions {
                sampling,
                max_tokens: Some(n_tokens),
                ignore_eos: true,
                speculate,
                ..GenerateOptions::default()
            };
            session.clear();
            Ok(session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()))?)
        };
        let rate = |generated: &Generated| generated.timings.decode_tokens_per_second().unwrap_or(f64::NAN);
        let [mut plain_rates, mut ahead_rates, mut ratios] = [const { Vec::new() }; 3];
        let mut last = None;
        for _ in 0..n_rounds {
            let (plain, ahead) = (generate(Speculate::Off)?, generate(Speculate::lookup())?);
            plain_rates.push(rate(&plain));
            ahead_rates.push(rate(&ahead));
            ratios.push(rate(&ahead) / rate(&plain));
            last = Some((plain, ahead));
        }
        let Some((plain, ahead)) = last else { continue };
        let n_same = plain.ids.iter().zip(&ahead.ids).take_while(|(a, b)| a == b).count();
        let same = if plain.ids == ahead.ids { "yes".to_owned() } else { format!("first {n_same} of {n_tokens}") };
        let [plain_rate, ahead_rate, ratio] =
            [&mut plain_rates, &mut ahead_rates, &mut ratios].map(|rates| median(rates));
        let (drafted, right) = (ahead.timings.drafted_tokens, ahead.timings.accepted_tokens);
        println!("{name:8} {plain_rate:10.1} {ahead_rate:10.1} {ratio:8.2} {drafted:8} {right:8}  {same}");
    }
    Ok(())
}
