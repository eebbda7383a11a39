//! The tiny qwen3 model as one that makes embeddings, and what llama.cpp makes with it (see `make.py`).

use serde_json::Value as Json;

/// The bytes of its file, with this pooling type and an end token added to texts. What is added to the metadata is a
/// multiple of 32 bytes, so that tensors stay aligned.
pub fn file(pooling: u32) -> Vec<u8> {
    const UINT32: u32 = 4;
    const BOOL: u32 = 7;
    const STRING: u32 = 8;
    let plain = std::fs::read(farpost_firmware_tests::model("tiny-qwen3.gguf")).expect("the model can be read");
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let entry = |key: &str, kind: u32, value: &[u8]| [&*string(key), &kind.to_le_bytes(), value].concat();
    let mut added = entry("qwen3.pooling_type", UINT32, &pooling.to_le_bytes());
    added.extend(entry("tokenizer.ggml.add_eos_token", BOOL, &[1]));
    let n_missing = (added.len() + entry("filler", STRING, &string("")).len()).wrapping_neg() % 32;
    added.extend(entry("filler", STRING, &string(&"x".repeat(n_missing))));
    let n_keys = u64::from_le_bytes(plain[16..24].try_into().expect("eight bytes")) + 3;
    [&plain[..16], &n_keys.to_le_bytes(), &added, &plain[24..]].concat()
}

/// A text and its embeddings.
pub struct Golden {
    /// With the end token.
    pub ids: Vec<u32>,
    json: Json,
}

impl Golden {
    /// The embedding by a way of pooling.
    pub fn by(&self, pooling: &str) -> Vec<f32> {
        floats(&self.json[pooling])
    }
}

/// The text of the first of them, and all of them.
pub fn golden() -> (String, Vec<Golden>) {
    let json: Json = serde_json::from_str(include_str!("golden.json")).expect("it is JSON");
    let ids = |json: &Json| json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let texts = json["texts"].as_array().unwrap().iter();
    let texts = texts.map(|text| Golden { ids: ids(&text["ids"]), json: text.clone() });
    (json["text"].as_str().unwrap().to_owned(), texts.collect())
}

/// Numbers of an array.
pub fn floats(json: &Json) -> Vec<f32> {
    json.as_array().expect("an array").iter().map(|number| number.as_f64().expect("a number") as f32).collect()
}

/// The largest difference of a number.
#[track_caller]
pub fn apart(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}
