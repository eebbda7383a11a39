//! Runs candle's own quantized models on one file and answers requests, one JSON object a line.
//!
//! A request names a test, `{"test": "pp", "n": 512, "depth": 0}` or `{"test": "tg", "n": 64, "batch": 4}`; the answer
//! has `tokens_per_second` and `seconds`. Threads are rayon's: `RAYON_NUM_THREADS`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Error, Result, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2};
use serde_json::{Value, json};

/// Tokens of one step, as the other peers have it.
const STEP: usize = 512;

enum Model {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
}

impl Model {
    /// The model and the size of its vocabulary.
    fn load(path: &str) -> Result<(Self, u64)> {
        let mut file = BufReader::new(File::open(path)?);
        let content = Content::read(&mut file).map_err(|error| error.with_path(path))?;
        let architecture = content.metadata.get("general.architecture").map(|name| name.to_string());
        let architecture = architecture.transpose()?.cloned().unwrap_or_default();
        let n_vocab = match content.tensor_infos.get("token_embd.weight") {
            Some(embedding) => embedding.shape.dims()[0] as u64,
            None => candle_core::bail!("{path} has no embedding"),
        };
        let device = Device::Cpu;
        let model = match architecture.as_str() {
            "llama" => Self::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &device)?),
            "qwen2" => Self::Qwen2(quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &device)?),
            other => candle_core::bail!("architecture {other} is not run here, expected llama or qwen2"),
        };
        Ok((model, n_vocab))
    }

    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        match self {
            Self::Llama(model) => model.forward(tokens, position),
            Self::Qwen2(model) => model.forward(tokens, position),
        }
    }

    fn forget(&mut self) {
        match self {
            Self::Llama(model) => model.clear_kv_cache(),
            Self::Qwen2(model) => model.clear_kv_cache(),
        }
    }
}

struct Worker {
    model: Model,
    n_vocab: u64,
}

impl Worker {
    /// Any token of the vocabulary, the same in every run, another in every sequence.
    fn token(&self, position: usize, sequence: usize) -> u32 {
        let mixed =
            (position as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (sequence as u64).wrapping_mul(0xD1B5_4A32);
        ((mixed >> 20) % self.n_vocab) as u32
    }

    /// Runs `n` tokens of each of `batch` sequences from `position` on, in one step.
    fn step(&mut self, position: usize, n: usize, batch: usize) -> Result<()> {
        let tokens = (0..batch).flat_map(|sequence| (position..position + n).map(move |at| (at, sequence)));
        let tokens: Vec<u32> = tokens.map(|(at, sequence)| self.token(at, sequence)).collect();
        let tokens = Tensor::from_vec(tokens, (batch, n), &Device::Cpu)?;
        self.model.forward(&tokens, position).map(drop)
    }

    fn prefill(&mut self, start: usize, n: usize) -> Result<()> {
        let end = start + n;
        (start..end).step_by(STEP).try_for_each(|first| self.step(first, STEP.min(end - first), 1))
    }

    fn run(&mut self, request: &Value) -> Result<Value> {
        let number = |name: &str, default: u64| request[name].as_u64().unwrap_or(default) as usize;
        let (n, depth, batch) = (number("n", 64), number("depth", 0), number("batch", 1).max(1));
        if depth > 0 && batch > 1 {
            candle_core::bail!("several sequences are measured at depth 0 only");
        }
        self.model.forget();
        self.prefill(0, depth)?;
        let start = Instant::now();
        match request["test"].as_str() {
            Some("pp") => self.prefill(depth, n)?,
            Some("tg") => (depth..depth + n).try_for_each(|position| self.step(position, 1, batch))?,
            _ => candle_core::bail!("no such test"),
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(json!({ "tokens_per_second": (n * batch) as f64 / seconds, "seconds": seconds }))
    }
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).ok_or_else(|| Error::msg("give a model file"))?;
    let (model, n_vocab) = Model::load(&path)?;
    let mut worker = Worker { model, n_vocab };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!({ "ready": true }))?;
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?).map_err(Error::wrap)?;
        let answer = worker.run(&request).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(out, "{answer}")?;
    }
    Ok(())
}
