//! Prints how long one token takes to choose: `cargo run --release -p farpost --example sampling_speed`
//!
//! Over 262,144 logits, on one thread, best of several, for a peaked row as models give them and for a nearly flat one.

use std::hint::black_box;
use std::time::{Duration, Instant};

use farpost::engine::{Breakers, Dry, Mirostat, Sampler, Sampling};
use farpost_kernels::backend::Answer;

const N_VOCAB: usize = 262_144;
const ROUNDS: usize = 30;

/// Logits in which the token of rank `r` has a share like `1 / r^exponent`, in a mixed order.
fn row(exponent: f32) -> Answer {
    let rank = |id: usize| id.wrapping_mul(2_654_435_761) % N_VOCAB + 1;
    Answer::Logits((0..N_VOCAB).map(|id| -exponent * (rank(id) as f32).ln()).collect())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let off = Sampling::default;
    let requests = [
        ("greedy", Sampling::greedy()),
        ("temperature", off()),
        ("top-k 40", Sampling { top_k: 40, ..off() }),
        ("top-k 40, top-p 0.95, min-p 0.05", Sampling { top_k: 40, top_p: 0.95, min_p: 0.05, ..off() }),
        ("top-p 0.95", Sampling { top_p: 0.95, ..off() }),
        ("min-p 0.05", Sampling { min_p: 0.05, ..off() }),
        ("typical 0.95", Sampling { typical_p: 0.95, ..off() }),
        ("mirostat", Sampling { mirostat: Some(Mirostat::default()), ..off() }),
        (
            "penalties and DRY, top-k 40",
            Sampling { repetition_penalty: 1.1, dry: Dry { multiplier: 0.8, ..Dry::default() }, top_k: 40, ..off() },
        ),
        ("greedy, 20 logprobs", Sampling { logprobs: Some(20), ..Sampling::greedy() }),
    ];
    let history: Vec<u32> = (0..4096).map(|n| n * 7919 % 5000).collect();
    println!("{:34} {:>14} {:>14}", "ms a token of 262,144", "peaked", "nearly flat");
    for (name, sampling) in requests {
        print!("{name:34}");
        for exponent in [2.0, 0.05] {
            let answer = row(exponent);
            let mut sampler = Sampler::new(sampling.clone(), N_VOCAB, Breakers::default())?;
            let mut best = Duration::MAX;
            for _ in 0..ROUNDS {
                let start = Instant::now();
                black_box(sampler.choose(black_box(&answer), &history, &[])?);
                best = best.min(start.elapsed());
            }
            print!(" {:14.3}", best.as_secs_f64() * 1e3);
        }
        println!();
    }
    Ok(())
}
