//! Whole models through the quantizer: types, values, metadata, threads, memory, and what must be refused.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use farpost_firmware_tests::model;
use farpost_kernels::quant::decode;
use farpost_kernels::tensor::DType;
use farpost_models::gguf::{File, OwnedValue, Writer};
use farpost_models::quantize::{Mixture, ModelShape, Options, Progress, QuantizeError, Summary, quantize_file};

/// A folder of its own for one test.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn quantize(input: &Path, output: &Path, mixture: &str, threads: usize) -> Result<Summary, QuantizeError> {
    let options = Options { mixture: Mixture::from_name(mixture)?, threads };
    quantize_file(&File::open(input)?, output, &options, &mut |_| ControlFlow::Continue(()))
}

fn values(file: &File, name: &str) -> Vec<f32> {
    let weight = file.tensor(name).unwrap().view();
    let mut values = vec![0.0; weight.rows * weight.cols];
    decode(weight.dtype, weight.bytes, &mut values).unwrap();
    values
}

fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (difference / square(&mut a.iter().map(|a| f64::from(*a)))).sqrt()
}

#[test]
fn every_mixture_writes_a_valid_file_with_its_types_and_the_same_metadata() {
    let folder = folder("mixtures");
    let input = File::open(&model("tiny-llama.gguf")).unwrap();
    let shape = ModelShape::of(&input).unwrap();
    for mixture in Mixture::all() {
        let path = folder.join(format!("{}.gguf", mixture.name()));
        let summary = quantize(&model("tiny-llama.gguf"), &path, mixture.name(), 2).unwrap();
        let output = File::open(&path).unwrap();
        assert_eq!(summary.output_bytes, output.size_bytes());
        assert_eq!(output.tensors().len(), input.tensors().len());
        for (before, after) in input.tensors().iter().zip(output.tensors()) {
            assert_eq!((before.name(), before.dims()), (after.name(), after.dims()));
            assert_eq!(after.dtype(), mixture.assign(&shape, before.name(), before.dims()).dtype);
            let (before, after) = (values(&input, before.name()), values(&output, before.name()));
            let allowed = if mixture.base().block_bytes() * 8 / mixture.base().block_len() < 3 { 0.55 } else { 0.2 };
            assert!(relative_error(&before, &after) < allowed, "{}", mixture.name());
        }
        for (key, value) in input.metadata().iter() {
            let now = output.metadata().get(key).unwrap();
            match key {
                "general.file_type" | "general.quantization_version" => {}
                _ => assert_eq!(format!("{value:?}"), format!("{now:?}"), "{key}"),
            }
        }
        assert_eq!(output.metadata().u32("general.file_type").unwrap(), Some(mixture.file_type()));
        assert_eq!(output.metadata().u32("general.quantization_version").unwrap(), Some(2));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let folder = folder("threads");
    let mut first = None;
    for threads in [1, 2, 3, 7, 0] {
        let path = folder.join(format!("{threads}.gguf"));
        quantize(&model("tiny-qwen3moe.gguf"), &path, "q3_k_m", threads).unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{threads} threads");
    }
}

#[test]
fn a_quantized_model_can_be_quantized_again_and_equal_types_are_copied() {
    let folder = folder("again");
    let path = |name: &str| folder.join(format!("{name}.gguf"));
    quantize(&model("tiny-llama.gguf"), &path("q8"), "q8_0", 2).unwrap();
    quantize(&path("q8"), &path("q4"), "q4_k_m", 2).unwrap();
    quantize(&path("q4"), &path("q4-again"), "q4_k_m", 2).unwrap();
    assert!(std::fs::read(path("q4")).unwrap() == std::fs::read(path("q4-again")).unwrap());
    let (original, twice) = (File::open(&model("tiny-llama.gguf")).unwrap(), File::open(&path("q4")).unwrap());
    for tensor in original.tensors() {
        let error = relative_error(&values(&original, tensor.name()), &values(&twice, tensor.name()));
        assert!(error < 0.12, "{}: {error}", tensor.name());
    }
    // And back to plain floats: exactly the decoded values.
    quantize(&path("q4"), &path("f32"), "f32", 2).unwrap();
    let plain = File::open(&path("f32")).unwrap();
    for tensor in twice.tensors() {
        assert_eq!(plain.find(tensor.name()).unwrap().dtype(), DType::F32);
        assert_eq!(values(&plain, tensor.name()), values(&twice, tensor.name()));
    }
}

/// Writes a file with one F32 matrix `w.weight` of 64 columns, and a vector.
fn write_small(path: &Path, matrix: &[f32]) {
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama");
    writer.tensor("w.weight", DType::F32, &[64, matrix.len() / 64]).unwrap();
    writer.tensor("w.bias", DType::F32, &[64]).unwrap();
    let mut file = writer.create(path).unwrap();
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    file.append("w.weight", &bytes(matrix)).unwrap();
    file.append("w.bias", &bytes(&[1.0; 64])).unwrap();
    file.finish().unwrap();
}

#[test]
fn weights_that_are_not_finite_are_refused_by_tensor_and_number_and_leave_no_file() {
    let folder = folder("nan");
    let input = folder.join("in.gguf");
    let mut matrix = vec![0.25; 64 * 1000];
    matrix[50_123] = f32::INFINITY;
    matrix[60_000] = f32::NAN;
    write_small(&input, &matrix);
    for threads in [1, 3] {
        let error = quantize(&input, &folder.join("out.gguf"), "q4_0", threads).unwrap_err().to_string();
        let expected = "in.gguf: tensor 'w.weight': q4_0: weight 50123 is inf, only finite values can be encoded";
        assert!(error.ends_with(expected), "{error}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "only the input is there");
    }
}

#[test]
fn rows_that_are_not_whole_blocks_are_reported() {
    let folder = folder("substituted");
    write_small(&folder.join("in.gguf"), &[0.5; 640]);
    let summary = quantize(&folder.join("in.gguf"), &folder.join("out.gguf"), "q4_k_m", 1).unwrap();
    assert_eq!(summary.substituted, [("w.weight".to_owned(), DType::Q4_K)]);
    assert_eq!((summary.n_tensors, summary.n_weights, summary.input_bytes), (2, 704, 4 * 704));
    let output = File::open(&folder.join("out.gguf")).unwrap();
    assert_eq!(output.tensor("w.weight").unwrap().dtype(), DType::Q5_0);
    assert!(values(&output, "w.weight").iter().all(|weight| *weight == 0.5));
}

#[test]
fn tensors_without_weights_pass_and_metadata_of_the_wrong_type_is_refused_by_key() {
    let folder = folder("odd");
    let (input, output) = (folder.join("in.gguf"), folder.join("out.gguf"));
    let write = |layers: OwnedValue| {
        let mut writer = Writer::new();
        writer.set("general.architecture", "odd").set("odd.block_count", layers);
        writer.set("odd.attention.head_count_kv", [4_u32, 0, 2].as_slice());
        writer.tensor("blk.0.empty.weight", DType::F32, &[256, 0]).unwrap();
        writer.tensor("blk.18446744073709551616.attn_v.weight", DType::F32, &[256, 2]).unwrap();
        let mut file = writer.create(&input).unwrap();
        file.append("blk.18446744073709551616.attn_v.weight", &[0; 2048]).unwrap();
        file.finish().unwrap();
    };
    write(u32::MAX.into());
    let summary = quantize(&input, &output, "q4_k_m", 2).unwrap();
    assert_eq!((summary.n_tensors, summary.n_weights), (2, 512));
    assert_eq!(File::open(&output).unwrap().find("blk.0.empty.weight").unwrap().dims(), [256, 0]);
    write("many".into());
    let error = quantize(&input, &output, "q4_k_m", 2).unwrap_err().to_string();
    assert!(error.contains("odd.block_count"), "{error}");
}

#[test]
fn the_input_is_never_replaced() {
    let folder = folder("onto");
    let (input, link) = (folder.join("in.gguf"), folder.join("link.gguf"));
    write_small(&input, &[0.5; 640]);
    std::fs::hard_link(&input, &link).unwrap();
    for output in [&input, &link] {
        let error = quantize(&input, output, "q8_0", 1).unwrap_err().to_string();
        assert!(error.ends_with("the output would replace the input, choose another path"), "{error}");
    }
}

#[test]
fn progress_counts_to_the_end_and_can_stop_the_work() {
    let folder = folder("progress");
    let input = File::open(&model("tiny-llama.gguf")).unwrap();
    let options = Options { mixture: Mixture::from_name("q8_0").unwrap(), threads: 2 };
    let mut last = (0, 0);
    let mut names = Vec::new();
    let mut watch = |progress: Progress<'_>| {
        assert!(progress.done_bytes > last.0 && progress.done_bytes <= progress.total_bytes);
        last = (progress.done_bytes, progress.total_bytes);
        names.push(progress.tensor.to_owned());
        ControlFlow::Continue(())
    };
    quantize_file(&input, &folder.join("out.gguf"), &options, &mut watch).unwrap();
    names.dedup();
    assert_eq!(names, input.tensors().iter().map(|tensor| tensor.name().to_owned()).collect::<Vec<_>>());
    assert_eq!(last.0, last.1);
    let mut left = 3;
    let mut stop = |_: Progress<'_>| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = quantize_file(&input, &folder.join("stopped.gguf"), &options, &mut stop).unwrap_err();
    assert!(matches!(error, QuantizeError::Stopped { .. }), "{error}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "only the first output is there");
}

/// The most memory this process ever had resident, in bytes.
#[cfg(target_os = "linux")]
fn peak_resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_file() {
    const ROWS: usize = 40_000;
    let folder = folder("memory");
    let input = folder.join("in.gguf");
    let mut writer = Writer::new();
    writer.tensor("w.weight", DType::F32, &[1024, ROWS]).unwrap();
    let mut file = writer.create(&input).unwrap();
    let row: Vec<u8> = (0..1024).flat_map(|col| (col as f32 * 0.37).sin().to_le_bytes()).collect();
    for _ in 0..ROWS {
        file.append("w.weight", &row).unwrap();
    }
    let size = file.finish().unwrap() as usize;
    let before = peak_resident_bytes();
    quantize(&input, &folder.join("out.gguf"), "q8_0", 2).unwrap();
    let grown = peak_resident_bytes() - before;
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(grown < 32 << 20 && size > 150 << 20, "{grown} bytes more for a file of {size}");
}
