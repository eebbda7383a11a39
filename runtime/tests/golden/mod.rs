//! Golden logits of the tiny models, and measures of how far others are from them.

mod agreement;

use std::path::PathBuf;

pub use agreement::{Agreement, divergence};

/// The tiny models: one a family and variant, all F32.
pub const TINY: [&str; 9] =
    ["llama", "llama-freqs", "llama-moe", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3"];

/// What independent software computed for a tiny model.
pub struct Golden {
    name: &'static str,
    /// Token ids.
    pub prompt: Vec<u32>,
    /// One row of logits a position of the prompt.
    pub logits: Vec<Vec<f32>>,
    /// How the prompt goes on.
    pub greedy: Vec<u32>,
}

impl Golden {
    pub fn read(name: &'static str) -> Self {
        let text = std::fs::read(farpost_firmware_tests::golden(&format!("models/tiny-{name}.json"))).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let ids = |key: &str| -> Vec<u32> {
            json[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let logits = farpost_firmware_tests::golden_f32(&format!("models/tiny-{name}.logits.f32"));
        let n_vocab = json["shape"][1].as_u64().unwrap() as usize;
        let golden = Self {
            name,
            prompt: ids("prompt"),
            logits: logits.chunks_exact(n_vocab).map(<[f32]>::to_vec).collect(),
            greedy: ids("greedy"),
        };
        assert_eq!((golden.prompt.len(), golden.logits.len(), golden.greedy.len()), (80, 80, 32));
        golden
    }

    /// The model's file.
    pub fn path(&self) -> PathBuf {
        farpost_firmware_tests::model(&format!("tiny-{}.gguf", self.name))
    }
}

/// The largest difference of a logit over all rows, as a share of the largest expected logit of its row.
pub fn largest_error(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let row_error = |(found, expected): (&Vec<f32>, &Vec<f32>)| {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().all(|logit| logit.is_finite()), "a logit is not finite");
        let largest = expected.iter().fold(0_f32, |largest, logit| largest.max(logit.abs()));
        let apart = found.iter().zip(expected).fold(0_f32, |most, (a, b)| most.max((a - b).abs()));
        f64::from(apart / largest)
    };
    found.iter().zip(expected).map(row_error).fold(0.0, f64::max)
}

/// Id of the largest logit, the lowest of equals.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}
