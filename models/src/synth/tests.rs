//! Written models open, have the named shape, and depend on the seed alone.

use std::path::PathBuf;

use super::*;
use crate::gguf::File;

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("farpost-synth-{}-{name}.gguf", std::process::id()))
}

/// A shape with the parts of `name` and few weights.
fn small(name: &str) -> Shape {
    let mut shape = find(name).unwrap().clone();
    (shape.layers, shape.width, shape.ffn, shape.vocabulary) = (2, 256, 512, 600);
    (shape.heads, shape.kv_heads, shape.head_dim) = (4, 2, 64);
    shape.experts = shape.experts.map(|_| Experts { count: 4, used: 2, ffn: 256 });
    if matches!(shape.rope_factors, RopeFactors::LongShort { .. }) {
        shape.head_dim = 96;
    }
    shape
}

fn written(shape: &Shape, options: &Options<'_>, name: &str) -> Vec<u8> {
    let path = path(name);
    let mut last = (0, 0);
    let size = write(shape, options, &path, &mut |done, total| {
        last = (done, total);
        ControlFlow::Continue(())
    });
    let size = size.unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(size, bytes.len() as u64);
    assert!(last.0 == last.1 && last.1 > 0, "progress ended at {last:?}");
    bytes
}

#[test]
fn names_are_unique_and_found_in_any_case() {
    let names: std::collections::HashSet<&str> = shapes().iter().map(|shape| shape.name).collect();
    assert_eq!(names.len(), shapes().len());
    assert_eq!(find("QWEN2.5-0.5B").unwrap().width, 896);
    assert!(find("gpt-5").is_none());
}

#[test]
fn shapes_have_the_published_numbers_of_weights() {
    // Published counts, embeddings counted once where they are tied; in millions.
    let published = [
        ("llama-3.2-1b", 1235.8),
        ("llama-3.2-3b", 3212.7),
        ("llama-3.1-8b", 8030.3),
        ("qwen2.5-0.5b", 494.0),
        ("qwen2.5-1.5b", 1543.7),
        ("qwen3-0.6b", 596.0),
        ("qwen3-1.7b", 1720.6),
        ("gemma-2-2b", 2614.3),
        ("gemma-3-270m", 268.1),
        ("gemma-3-1b", 999.9),
        ("phi-3.5-mini", 3821.1),
        ("smollm2-135m", 134.5),
        ("tinyllama-1.1b", 1100.0),
        ("mistral-7b", 7248.0),
    ];
    for (name, millions) in published {
        let tensors = layout::tensors(find(name).unwrap());
        let of_model = tensors.iter().filter(|tensor| !matches!(tensor.fill, Fill::Given(_)));
        let weights: usize = of_model.map(|tensor| tensor.dims.iter().product::<usize>()).sum();
        let found = weights as f64 / 1e6;
        assert!((found - millions).abs() < 0.1, "{name}: {found} million, published {millions}");
    }
}

#[test]
fn every_shape_can_be_written_small_and_opens_with_its_metadata() {
    for shape in shapes() {
        let small = small(shape.name);
        let bytes = written(&small, &Options { types: Types::Pure(DType::Q8_0), ..Options::default() }, shape.name);
        let file = File::from_bytes(shape.name, bytes.into()).unwrap();
        let metadata = file.metadata();
        assert_eq!(metadata.required_string("general.architecture").unwrap(), shape.architecture);
        let key = |name: &str| format!("{}.{name}", shape.architecture);
        assert_eq!(metadata.required_u32(&key("context_length")).unwrap(), shape.context);
        assert_eq!(metadata.required_f32(&key("rope.freq_base")).unwrap(), shape.rope_base);
        assert_eq!(metadata.required_strings("tokenizer.ggml.tokens").unwrap().len(), 600);
        assert_eq!(file.find("token_embd.weight").unwrap().dims(), [256, 600]);
        assert_eq!(file.tensor("output.weight").is_none(), shape.is_tied, "{}", shape.name);
        assert_eq!(file.tensor("blk.0.attn_norm.weight").unwrap().dtype(), DType::F32);
        assert_eq!(file.tensor("blk.1.attn_output.weight").unwrap().dtype(), DType::Q8_0);
    }
}

#[test]
fn every_shape_builds_at_full_size() {
    use std::io::{Seek, SeekFrom, Write};

    for shape in shapes() {
        // Head and rotary divisors are written; the weights are a hole in the file that nobody looks into.
        let mut writer = Writer::new();
        for (key, value) in layout::metadata(shape, Types::Pure(DType::Q4_0)) {
            writer.set(&key, value);
        }
        let tensors = layout::tensors(shape);
        let size: u64 = tensors
            .iter()
            .map(|tensor| {
                let dtype = if tensor.is_matrix() { substitute(DType::Q4_0, tensor.dims[0]) } else { DType::F32 };
                writer.tensor(&tensor.name, dtype, &tensor.dims).unwrap().next_multiple_of(32)
            })
            .sum();
        let path = path(&format!("{}-whole", shape.name));
        let mut file = std::fs::File::create(&path).unwrap();
        let head = writer.start(shape.name, &mut file).unwrap().written_bytes();
        file.set_len(head + size).unwrap();
        for tensor in &tensors {
            if let Fill::Given(divisors) = &tensor.fill {
                let offset = File::open(&path).unwrap().find(&tensor.name).unwrap().offset();
                file.seek(SeekFrom::Start(offset)).unwrap();
                file.write_all(&divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect::<Vec<u8>>())
                    .unwrap();
            }
        }
        let built = crate::families::build(&File::open(&path).unwrap(), &crate::families::Options::default());
        std::fs::remove_file(&path).unwrap();
        let graph = built.unwrap().graph;
        assert_eq!((graph.kv_layers().len(), graph.n_vocab()), (shape.layers, shape.vocabulary), "{}", shape.name);
        assert_eq!(graph.max_context(), shape.context as usize);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let shape = small("qwen2.5-0.5b");
    let options = Options { types: Types::Pure(DType::Q4_K), seed: 7, ..Options::default() };
    let first = written(&shape, &options, "first");
    assert!(first == written(&shape, &options, "second"));
    assert!(first != written(&shape, &Options { seed: 8, ..options }, "third"));
}

#[test]
fn a_borrowed_vocabulary_comes_whole_and_sets_the_number_of_tokens() {
    let vocabulary = File::open(&farpost_firmware_tests::golden("vocab/phi-3.gguf")).unwrap();
    let options = Options { vocabulary: Vocabulary::Of(&vocabulary), layers: Some(1), ..Options::default() };
    let file = File::from_bytes("m", written(&small("gemma-3-270m"), &options, "borrowed").into()).unwrap();
    assert_eq!(file.find("token_embd.weight").unwrap().dims(), [256, 32_064]);
    let keys = |file: &File| {
        let own = file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
        own.map(|(key, value)| (key.to_owned(), crate::gguf::OwnedValue::from(value))).collect::<Vec<_>>()
    };
    assert_eq!(keys(&file), keys(&vocabulary));
    assert!(file.tensor("blk.1.attn_norm.weight").is_none());
}

#[test]
fn a_mixture_gives_each_matrix_the_type_that_files_of_that_name_have() {
    assert_eq!(Types::from_name("Q4_K"), Some(Types::Pure(DType::Q4_K)));
    assert_eq!(Types::from_name("q9_9"), None);
    assert!(Types::names().all(|name| Types::from_name(name).is_some_and(|types| types.name() == name)));
    let options = Options { types: Types::from_name("Q4_K_M").unwrap(), ..Options::default() };
    let mut shape = small("qwen3-0.6b");
    (shape.width, shape.ffn) = (256, 512);
    let file = File::from_bytes("m", written(&shape, &options, "mixture").into()).unwrap();
    let dtype = |name: &str| file.find(name).unwrap().dtype();
    assert_eq!(dtype("token_embd.weight"), DType::Q6_K);
    assert_eq!((dtype("blk.0.attn_q.weight"), dtype("blk.0.attn_norm.weight")), (DType::Q4_K, DType::F32));
    assert_eq!(file.metadata().u32("general.file_type").unwrap(), Some(15));
}

#[test]
fn rows_that_are_no_whole_blocks_get_the_usual_substitute() {
    for (asked, cols, expected) in [
        (DType::Q4_K, 896, DType::Q5_0),
        (DType::Q6_K, 640, DType::Q8_0),
        (DType::Q5_K, 576, DType::Q5_1),
        (DType::IQ2_S, 896, DType::IQ4_NL),
        (DType::Q4_K, 1024, DType::Q4_K),
        (DType::Q4_0, 48, DType::F16),
    ] {
        assert_eq!(substitute(asked, cols), expected, "{asked} {cols}");
    }
}

#[test]
fn float_weights_have_the_deviation_their_matrix_asks_for() {
    let options = Options { types: Types::Pure(DType::F32), ..Options::default() };
    let file = File::from_bytes("m", written(&small("tinyllama-1.1b"), &options, "floats").into()).unwrap();
    let weight = file.tensor("blk.0.ffn_down.weight").unwrap();
    let values = weight.view().bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
    let n = values.len() as f64;
    let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    let expected = 1.0 / 512_f64.sqrt();
    assert!(((squares / n).sqrt() / expected - 1.0).abs() < 0.01 && (sum / n).abs() < expected * 0.01);
}

#[test]
fn llama_3_factors_keep_short_wavelengths_and_stretch_long_ones() {
    let tensors = layout::tensors(find("llama-3.2-1b").unwrap());
    let Some(Fill::Given(factors)) = tensors.iter().find(|t| t.name == "rope_freqs.weight").map(|t| &t.fill) else {
        panic!("llama 3.2 has factors");
    };
    assert_eq!((factors.len(), factors[0], factors[31]), (32, 1.0, 32.0));
    assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]));
}
