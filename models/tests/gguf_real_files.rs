//! Files made by independent software open, and say what that software wrote.

use std::path::PathBuf;

use farpost_firmware_tests::{golden, model};
use farpost_kernels::tensor::DType;
use farpost_models::gguf::{File, Value};

const VOCABULARIES: [(&str, usize, &str); 7] = [
    ("bert-bge", 30_522, "[PAD]"),
    ("deepseek-coder", 32_256, "!"),
    ("gpt-2", 50_257, "!"),
    ("llama-bpe", 128_256, "!"),
    ("llama-spm", 32_000, "<unk>"),
    ("phi-3", 32_064, "<unk>"),
    ("qwen2", 151_936, "!"),
];

#[test]
fn every_fixture_vocabulary_opens_with_all_its_tokens() {
    for (name, n_tokens, first) in VOCABULARIES {
        let file = File::open(&golden(&format!("vocab/{name}.gguf"))).unwrap();
        let tokens = file.metadata().required_strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!((tokens.len(), tokens.iter().count()), (n_tokens, n_tokens), "{name}");
        assert_eq!(tokens.get(0), Some(first.as_bytes()), "{name}");
        assert_eq!(tokens.get(n_tokens), None, "{name}");
        for (at, token) in tokens.iter().enumerate().step_by(997) {
            assert_eq!(tokens.get(at), Some(token), "{name} {at}");
        }
        let kinds = file.metadata().i32s("tokenizer.ggml.token_type").unwrap().unwrap();
        assert_eq!(kinds.len(), n_tokens, "{name}");
    }
}

#[test]
fn every_small_model_opens_with_tensors_that_are_views_of_the_file() {
    let names = ["gemma2", "gemma3", "llama-freqs", "llama-moe", "llama", "phi3", "qwen2", "qwen3", "qwen3moe"];
    for name in names {
        let path: PathBuf = model(&format!("tiny-{name}.gguf"));
        let content = std::fs::read(&path).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!((file.version(), file.alignment(), file.n_parts()), (3, 32, 1));
        let embedding = file.find("token_embd.weight").unwrap();
        assert_eq!(embedding.dims(), [256, 512], "{name}");
        assert_eq!((embedding.weight().rows(), embedding.weight().cols()), (512, 256), "{name}");
        for tensor in file.tensors() {
            let bytes = tensor.weight().view().bytes;
            let start = tensor.offset() as usize;
            assert_eq!(bytes, &content[start..start + bytes.len()], "{name} {}", tensor.name());
        }
    }
}

#[test]
fn a_three_dimensional_tensor_is_one_matrix_with_all_experts_rows() {
    let file = File::open(&model("tiny-qwen3moe.gguf")).unwrap();
    let experts = file.find("blk.0.ffn_gate_exps.weight").unwrap();
    assert_eq!(experts.dims(), [256, 256, 8]);
    assert_eq!((experts.weight().rows(), experts.weight().cols()), (2048, 256));
}

#[test]
fn the_real_model_opens_with_its_mixture_of_types() {
    let file = File::open(&model("gemma-3-270m-q4_k_m.gguf")).unwrap();
    assert_eq!((file.tensors().len(), file.metadata().len()), (236, 33));
    let dtype = |name: &str| file.tensor(name).unwrap().dtype();
    assert_eq!(dtype("token_embd.weight"), DType::Q8_0);
    assert_eq!(dtype("blk.0.attn_k.weight"), DType::Q5_0);
    assert_eq!(dtype("blk.0.attn_output.weight"), DType::Q4_K);
    assert_eq!(dtype("blk.0.ffn_down.weight"), DType::Q6_K);
    assert!(matches!(file.metadata().get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true))));
    assert_eq!(file.metadata().required_u32("gemma3.attention.sliding_window").unwrap(), 512);
    assert_eq!(file.metadata().required_strings("tokenizer.ggml.tokens").unwrap().len(), 262_144);
}
