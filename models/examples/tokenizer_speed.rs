//! Prints how fast tokenizers are: `cargo run --release -p farpost-models --example tokenizer_speed -- TEXT MODEL...`
//!
//! For each model: time until the tokenizer is ready (best of several, the file in the page cache), megabytes of text
//! encoded and decoded a second, on one thread. The text is repeated to some megabytes.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use farpost_models::gguf;
use farpost_models::tokenizer::{Special, Tokenizer};

const ROUNDS: usize = 7;
const TEXT_BYTES: usize = 4 << 20;

fn best<T>(mut work: impl FnMut() -> T) -> (Duration, T) {
    let mut best: Option<(Duration, T)> = None;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let result = black_box(work());
        let took = start.elapsed();
        if best.as_ref().is_none_or(|(least, _)| took < *least) {
            best = Some((took, result));
        }
    }
    best.expect("there is more than one round")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((text, models)) = arguments.split_first() else {
        return Err("usage: tokenizer_speed TEXT MODEL...".into());
    };
    let text = std::fs::read_to_string(text)?;
    let text = text.repeat(TEXT_BYTES.div_ceil(text.len().max(1)));
    println!("{:32} {:>8} {:>9} {:>13} {:>13}", "file", "tokens", "ready ms", "encode MB/s", "decode MB/s");
    for path in models {
        let file = gguf::File::open(Path::new(path))?;
        let (ready, tokenizer) = best(|| Tokenizer::from_metadata(file.metadata()));
        let tokenizer = tokenizer?;
        let (encoding, ids) = best(|| tokenizer.encode(&text, Special::Parse));
        let (decoding, bytes) = best(|| tokenizer.decode(&ids, true));
        let speed = |took: Duration, bytes: usize| bytes as f64 / 1e6 / took.as_secs_f64();
        println!(
            "{:32} {:8} {:9.1} {:13.1} {:13.1}",
            file.name(),
            tokenizer.n_vocab(),
            ready.as_secs_f64() * 1e3,
            speed(encoding, text.len()),
            speed(decoding, bytes.len()),
        );
    }
    Ok(())
}
