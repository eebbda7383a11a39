//! `inspect`, `quantize` and `synth`: files in, files out, nothing half-written left behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use farpost_models::gguf::{File, Writer};

use crate::program::{Folder, command, farpost, golden, interrupt, model};

#[test]
fn inspect_tells_metadata_tensors_types_and_memory() {
    let report = farpost(&["inspect", "--json", "-m", &model("tiny-gemma3.gguf")]).json();
    assert_eq!(report["metadata"]["general.architecture"], "gemma3");
    assert_eq!(report["version"], 3);
    let tokens = &report["metadata"]["tokenizer.ggml.tokens"];
    assert_eq!((tokens["length"].as_u64(), tokens["first"].as_array().map(Vec::len)), (Some(512), Some(4)));
    let tensors = report["tensors"].as_array().unwrap();
    let bytes: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(report["memory"]["weights_bytes"].as_u64(), Some(bytes));
    let types: u64 = report["types"].as_array().unwrap().iter().map(|entry| entry["bytes"].as_u64().unwrap()).sum();
    assert_eq!(types, bytes);
    let contexts = report["memory"]["contexts"].as_array().unwrap();
    let last = contexts.last().unwrap();
    assert_eq!(last["tokens"], report["memory"]["trained_context"]);
    assert!(last["kv_f16_windows_dropped_bytes"].as_u64() < last["kv_f16_bytes"].as_u64());

    assert_eq!((&report["runnable"], &report["reason"]), (&true.into(), &serde_json::Value::Null));

    let whole = farpost(&["inspect", "--json", "--full", "-m", &model("tiny-gemma3.gguf")]).json();
    assert_eq!(whole["metadata"]["tokenizer.ggml.tokens"].as_array().map(Vec::len), Some(512));
}

#[test]
fn inspect_for_people_is_as_recorded() {
    let path = model("tiny-llama.gguf");
    let report = farpost(&["inspect", &path]);
    insta::assert_snapshot!("inspect", report.done().replace(&path, "tiny-llama.gguf"));
}

#[test]
fn inspect_says_whether_a_file_can_be_run_and_why_not() {
    let folder = Folder::new("runs");
    let file = File::open(Path::new(&model("tiny-llama.gguf"))).unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut Writer), leave_out: &str| {
        let mut writer = Writer::with_metadata_of(file.metadata());
        change(&mut writer);
        let kept = || file.tensors().iter().filter(|tensor| tensor.name() != leave_out);
        for tensor in kept() {
            writer.tensor(tensor.name(), tensor.dtype(), tensor.dims()).unwrap();
        }
        let mut data = writer.start(name, Vec::new()).unwrap();
        for tensor in kept() {
            data.append(tensor.name(), tensor.weight().bytes().as_slice()).unwrap();
        }
        folder.with(name, &data.finish().unwrap())
    };
    let cases = [
        (
            changed(
                "architecture.gguf",
                &|w| {
                    w.set("general.architecture", "martian");
                },
                "",
            ),
            "martian",
        ),
        (changed("tensor.gguf", &|_| {}, "blk.2.ffn_up.weight"), "blk.2.ffn_up.weight"),
        (
            changed(
                "heads.gguf",
                &|w| {
                    w.set("llama.attention.head_count", 0_u32);
                },
                "",
            ),
            "head_count",
        ),
        (
            changed(
                "epsilon.gguf",
                &|w| {
                    w.set("llama.attention.layer_norm_rms_epsilon", f32::NAN);
                },
                "",
            ),
            "layer_norm_rms_epsilon",
        ),
        (golden("vocab/gpt-2.gguf"), "gpt-2.gguf"),
    ];
    for (path, expected) in cases {
        let report = farpost(&["inspect", "--json", &path]).json();
        let reason = report["reason"].as_str().unwrap();
        assert!(report["runnable"] == false && reason.contains(expected), "{path}: {reason}");
        let shown = farpost(&["inspect", &path]);
        let line = shown.done().lines().last().unwrap();
        assert!(line.starts_with("runs  no: ") && line.contains(expected), "{line}");
        assert_eq!(farpost(&["run", "-m", &path, "--raw", "x"]).error(3), reason);
    }
    assert!(farpost(&["inspect"]).done().ends_with("\nruns  yes\n"));
}

#[test]
fn one_key_is_printed_whole() {
    let path = golden("vocab/qwen2.gguf");
    assert_eq!(farpost(&["inspect", &path, "--key", "tokenizer.ggml.pre"]).done(), "qwen2\n");
    let tokens = farpost(&["inspect", &path, "--key", "tokenizer.ggml.tokens"]);
    assert_eq!(tokens.done().lines().count(), 151_936);
    let line = farpost(&["inspect", &path, "--key", "tokenizer.ggml.prey"]).error(1).to_owned();
    assert!(line.ends_with("qwen2.gguf: there is no metadata key 'tokenizer.ggml.prey'"), "{line}");
}

#[test]
fn a_model_is_found_by_path_folder_and_name() {
    let folder = Folder::new("library");
    let models = folder.file("models");
    std::fs::create_dir_all(format!("{models}/single")).unwrap();
    std::fs::copy(model("tiny-llama.gguf"), format!("{models}/small.gguf")).unwrap();
    std::fs::copy(model("tiny-qwen2.gguf"), format!("{models}/single/any.gguf")).unwrap();
    let architecture = |name: &str| {
        let args = ["inspect", "--key", "general.architecture", "--model", name];
        let ran = crate::program::finish(command(&args).env("FARPOST_MODELS", &models), b"");
        ran.done().trim().to_owned()
    };
    assert_eq!(architecture("small"), "llama");
    assert_eq!(architecture("small.gguf"), "llama");
    assert_eq!(architecture("single"), "qwen2");
    assert_eq!(architecture(&format!("{models}/single")), "qwen2");
    assert_eq!(architecture(&format!("{models}/small.gguf")), "llama");
}

#[test]
fn a_quantized_model_is_smaller_and_keeps_its_metadata() {
    let folder = Folder::new("quantize");
    let (input, output) = (model("tiny-llama.gguf"), folder.file("out.gguf"));
    let told = farpost(&["quantize", &input, &output, "--type", "Q4_K_M", "--json", "--threads", "2"]).json();
    assert_eq!((told["type"].as_str(), told["output"].as_str()), (Some("q4_k_m"), Some(output.as_str())));
    assert_eq!(told["output_bytes"].as_u64(), std::fs::metadata(&output).ok().map(|facts| facts.len()));
    assert!(told["output_bytes"].as_u64() < told["input_bytes"].as_u64());
    let (before, after) =
        (farpost(&["inspect", "--json", &input]).json(), farpost(&["inspect", "--json", &output]).json());
    assert_eq!(after["metadata"]["general.file_type"], 15);
    for key in ["general.architecture", "llama.block_count", "tokenizer.ggml.tokens"] {
        assert_eq!(after["metadata"][key], before["metadata"][key], "{key}");
    }
    let names = |report: &serde_json::Value| {
        let tensors = report["tensors"].as_array().unwrap().iter();
        tensors.map(|tensor| tensor["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&after), names(&before));
}

#[test]
fn existing_files_are_replaced_only_by_force_and_the_input_never() {
    let folder = Folder::new("replace");
    let input = folder.file("in.gguf");
    std::fs::copy(model("tiny-llama.gguf"), &input).unwrap();
    let output = folder.with("out.gguf", b"precious");
    let args = ["quantize", &input, &output, "--type", "q8_0"];
    assert!(farpost(&args).error(2).ends_with("out.gguf: the file exists already"));
    assert_eq!(std::fs::read(&output).unwrap(), b"precious");
    farpost(&[&args[..], &["--force"]].concat()).done();
    assert!(std::fs::read(&output).unwrap().starts_with(b"GGUF"));
    let before = std::fs::read(&input).unwrap();
    for force in [&["--force"][..], &[]] {
        let onto = farpost(&[&["quantize", &input, &input, "--type", "q8_0"], force].concat());
        assert!(onto.error(2).contains("the output would replace the input"), "{}", onto.err);
    }
    assert_eq!(std::fs::read(&input).unwrap(), before);

    let unwritable = farpost(&["quantize", &input, "/nonexistent/out.gguf", "--type", "q8_0"]);
    assert!(unwritable.error(1).contains("/nonexistent/"), "{}", unwritable.err);
}

#[cfg(unix)]
#[test]
fn an_output_that_is_no_plain_file_is_refused_even_by_force() {
    use std::os::unix::fs::FileTypeExt;
    let folder = Folder::new("not-plain");
    // A pipe stands for devices too, which a test must never touch.
    let (pipe, input) = (folder.file("pipe"), model("tiny-llama.gguf"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let quantize = ["quantize", &input, &pipe, "--type", "q8_0"];
    let synth = ["synth", "--shape", "smollm2-135m", "--layers", "1", "--out", &pipe];
    for (args, force) in [(&quantize[..], &["--force"][..]), (&quantize, &[]), (&synth, &["--force"]), (&synth, &[])] {
        let line = farpost(&[args, force].concat()).error(1).to_owned();
        assert!(line.ends_with("pipe: cannot create it: it is not a plain file"), "{line}");
    }
    assert!(std::fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(folder.names(), ["pipe"]);
}

#[test]
fn ctrl_c_during_quantization_ends_with_130_and_leaves_nothing_behind() {
    let folder = Folder::new("interrupt");
    let input = model("gemma-3-270m-q4_k_m.gguf");
    let args = ["quantize", &input, &folder.file("out.gguf"), "--type", "iq4_xs", "--verbose", "--threads", "1"];
    let mut child = command(&args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // The note comes once signals are listened to.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("quantizing"));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn synthetic_models_are_reproducible_and_inspect_as_what_they_are() {
    let folder = Folder::new("synth");
    let write = |name: &str, seed: &str| {
        let path = folder.file(name);
        let args =
            ["synth", "--shape", "smollm2-135m", "--type", "q4_0", "--layers", "1", "--seed", seed, "--out", &path];
        farpost(&args).done();
        std::fs::read(&path).unwrap()
    };
    let first = write("a.gguf", "7");
    assert!(first == write("b.gguf", "7"), "the same seed gives the same bytes");
    assert!(first != write("c.gguf", "8"), "another seed gives others");
    let report = farpost(&["inspect", "--json", &folder.file("a.gguf")]).json();
    assert_eq!(report["metadata"]["llama.block_count"], 1);
    assert_eq!(report["metadata"]["llama.embedding_length"], 576);
    assert!(report["types"].as_array().unwrap().iter().any(|entry| entry["type"] == "q4_0"));

    let path = folder.file("d.gguf");
    let vocabulary = golden("vocab/gpt-2.gguf");
    let args =
        ["synth", "--shape", "smollm2-135m", "--layers", "1", "--vocabulary", &vocabulary, "--out", &path, "--json"];
    let told = farpost(&args).json();
    assert_eq!(told["size_bytes"].as_u64(), std::fs::metadata(&path).ok().map(|facts| facts.len()));
    let ids = farpost(&["tokenize", "-m", &path, "--json", "hello world"]).json();
    assert_eq!(ids, serde_json::json!([31373, 995]), "the real vocabulary is in the file");
    assert!(farpost(&args).error(2).ends_with("d.gguf: the file exists already"));
}

#[test]
fn shapes_are_listed_for_people_and_programs() {
    let list = farpost(&["synth", "--list"]);
    let shapes = farpost(&["synth", "--list", "--json"]).json();
    for shape in shapes.as_array().unwrap() {
        assert!(list.done().contains(shape["name"].as_str().unwrap()));
    }
    assert!(list.text().contains("qwen2.5-0.5b") && list.text().contains("llama-3.2-1b"));
}
