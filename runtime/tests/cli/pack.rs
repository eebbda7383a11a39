//! `pack`: what is written beside a model, when it is used, and what is refused without leaving anything behind.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use farpost_kernels::cpu::isa::Isa;

use crate::program::{Folder, Ran, command, farpost, finish, model};

/// A small model of a type with an order of its own.
fn quantized(folder: &Folder) -> String {
    let path = folder.file("small.gguf");
    farpost(&["quantize", &model("tiny-llama.gguf"), &path, "--type", "q4_0"]).done();
    path
}

/// Packs it for the one class there is.
fn pack(args: &[&str]) -> Ran {
    farpost(&[&["pack", "--for", "avx512"], args].concat())
}

/// The same answer by the kernels of that class, with what is said about the packed file.
fn run(path: &str, options: &[&str]) -> Ran {
    let args = ["run", "-m", path, "--raw", "--max-tokens", "8", "--seed", "1", "--json", "hello"];
    finish(command(&[&args[..], options].concat()).env("FARPOST_CPU", "avx512"), b"")
}

#[test]
fn a_packed_model_gives_the_same_answer_and_says_where_it_reads() {
    let folder = Folder::new("pack");
    let path = quantized(&folder);
    let told = pack(&[&path, "--json"]).json();
    let packed = folder.file("small.gguf.avx512.pack");
    assert_eq!((told["output"].as_str(), told["class"].as_str()), (Some(packed.as_str()), Some("avx512")));
    assert_eq!(told["output_bytes"].as_u64(), fs::metadata(&packed).ok().map(|facts| facts.len()));
    assert!(told["side_by_side"].as_u64() > Some(0) && told["side_by_side"].as_u64() < told["tensors"].as_u64());
    assert_eq!(folder.names(), ["small.gguf", "small.gguf.avx512.pack"]);

    let checked = pack(&[&path, "--check", "--json"]).json();
    assert_eq!((&checked["whole"], &checked["sha256"]), (&true.into(), &told["sha256"]));
    let shown = pack(&[&path, "--check"]);
    assert!(shown.done().contains("small.gguf.avx512.pack: whole, and of this model"), "{}", shown.text());
    // One that was packed before is replaced, and people are told so much.
    let again = pack(&[&path]);
    assert!(again.done().contains(" for avx512, ") && again.text().contains("side by side"), "{}", again.text());

    if Isa::Avx512.is_available() {
        let (own, with) = (run(&path, &["--unpacked"]), run(&path, &["--verbose"]));
        assert_eq!(with.json()["ids"], own.json()["ids"]);
        assert!(with.err.contains(&format!("packed file: used: {packed}")), "{}", with.err);
        let bench = ["bench", "-m", &path, "--tg", "1", "-r", "1", "--warmup", "0"];
        for (options, is_used) in [(&[][..], true), (&["--unpacked"], false)] {
            let ran = finish(command(&[&bench[..], options].concat()).env("FARPOST_CPU", "avx512"), b"");
            let says = ran.done().contains(&format!("\nweights read from the packed file {packed}\n"));
            assert_eq!(says, is_used, "{}", ran.text());
        }
        fs::remove_file(&packed).unwrap();
        let absent = run(&path, &["--verbose"]);
        assert_eq!(absent.json()["ids"], own.json()["ids"]);
        assert!(absent.err.contains(&format!("packed file: none at {packed}")), "{}", absent.err);
    }
    // Others have none, and say nothing of it.
    let args = ["run", "-m", &path, "--raw", "--max-tokens", "1", "--verbose", "hello"];
    let other = finish(command(&args).env("FARPOST_CPU", "scalar"), b"");
    assert_eq!(other.code, Some(0), "{}", other.err);
    assert!(!other.err.contains("packed file"), "{}", other.err);
}

#[test]
fn what_is_no_packed_file_is_replaced_only_by_force_and_the_model_never() {
    let folder = Folder::new("pack-replace");
    let path = quantized(&folder);
    let output = folder.with("other", b"precious");
    assert!(pack(&[&path, "--output", &output]).error(2).ends_with("other: the file exists already"));
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    pack(&[&path, "--output", &output, "--force"]).done();
    assert!(fs::read(&output).unwrap().starts_with(b"GGUF"));
    let before = fs::read(&path).unwrap();
    for force in [&["--force"][..], &[]] {
        let onto = pack(&[&[&path, "--output", &path], force].concat());
        assert!(onto.error(2).contains("the output would replace the model"), "{}", onto.err);
    }
    assert!(fs::read(&path).unwrap() == before);
    let unwritable = pack(&[&path, "--output", "/nonexistent/out"]);
    assert!(unwritable.error(1).contains("/nonexistent/"), "{}", unwritable.err);
}

#[test]
fn classes_and_models_without_another_order_are_refused() {
    let folder = Folder::new("pack-refused");
    let path = quantized(&folder);
    let class = farpost(&["pack", &path, "--for", "avx2"]);
    assert_eq!(class.code, Some(2));
    assert!(class.err.contains("invalid value 'avx2'") && class.err.contains("avx512"), "{}", class.err);
    let own = finish(command(&["pack", &path]).env("FARPOST_CPU", "scalar"), b"");
    assert!(own.error(2).starts_with("no packed files for processor class 'scalar': "), "{}", own.err);
    // All of it plain numbers.
    let plain = folder.file("plain.gguf");
    fs::copy(model("tiny-llama.gguf"), &plain).unwrap();
    let line = pack(&[&plain]).error(1).to_owned();
    assert!(line.ends_with("plain.gguf: no weights that class 'avx512' reads faster in another order"), "{line}");
    assert_eq!(folder.names(), ["plain.gguf", "small.gguf"]);
}

#[test]
fn a_stale_packed_file_is_left_aside_with_the_reason() {
    let folder = Folder::new("pack-stale");
    let path = quantized(&folder);
    pack(&[&path]).done();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
    let stale = "small.gguf.avx512.pack: the packed file is stale: the time of last writing (ns) of the model is ";
    let checked = pack(&[&path, "--check"]);
    assert!(checked.error(1).contains(stale), "{}", checked.err);
    assert!(checked.err.contains("hint: 'farpost pack' makes it anew"), "{}", checked.err);
    if Isa::Avx512.is_available() {
        let (own, with) = (run(&path, &["--unpacked"]), run(&path, &[]));
        assert_eq!(with.json()["ids"], own.json()["ids"]);
        assert!(with.err.contains(stale) && with.err.contains("reading the model's own file"), "{}", with.err);
    }
    // It is a packed file all the same: no force is needed.
    pack(&[&path]).done();
    pack(&[&path, "--check"]).done();
}

#[test]
fn a_damaged_packed_file_fails_the_check() {
    let folder = Folder::new("pack-damaged");
    let path = quantized(&folder);
    pack(&[&path]).done();
    let packed = folder.file("small.gguf.avx512.pack");
    let whole = fs::read(&packed).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (content, expected) in [
        (&flipped[..], "the file is damaged: the SHA-256 of its weights is "),
        (&whole[..whole.len() - 4096], "small.gguf.avx512.pack: "),
    ] {
        fs::write(&packed, content).unwrap();
        let ran = pack(&[&path, "--check"]);
        assert!(matches!(ran.code, Some(1 | 3)) && ran.err.contains(expected), "{:?}: {}", ran.code, ran.err);
        assert_eq!(ran.text(), "");
    }
    fs::remove_file(&packed).unwrap();
    let absent = pack(&[&path, "--check"]);
    assert!(absent.error(3).contains("small.gguf.avx512.pack: cannot open it: "), "{}", absent.err);
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_told_and_leaves_nothing_behind() {
    let folder = Folder::new("pack-full");
    let path = quantized(&folder);
    let (program, args) = (command(&[]), ["pack", &path, "--for", "avx512"]);
    // No file may be longer than 256 blocks, less than the weights: writing fails as on a full disk.
    let script = "trap '' XFSZ; ulimit -f 256; exec \"$0\" \"$@\"";
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", script]).arg(program.get_program()).args(args).stdin(std::process::Stdio::null());
    let ran = finish(&mut limited, b"");
    let line = ran.error(1);
    assert!(line.contains("small.gguf.avx512.pack: cannot write: "), "{line}");
    assert_eq!(folder.names(), ["small.gguf"]);
    assert!(fs::metadata(Path::new(&path)).unwrap().len() > 256 * 1024);
}
