//! A file that shrinks, changes or goes away under its map: the process lives and knows.

#![cfg(unix)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use farpost_kernels::tensor::DType;
use farpost_models::gguf::{Access, File, Identity, Writer, install_sigbus_guard};

const TENSOR_BYTES: usize = 4 << 20;
/// Says to a child process which part it plays.
const PART: &str = "FARPOST_TEST_SHRINKING_PART";
const SIGBUS: i32 = if cfg!(target_os = "linux") { 7 } else { 10 };

fn written(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.gguf", std::process::id()));
    let mut writer = Writer::new();
    writer.set("general.name", name);
    writer.tensor("w", DType::Q8_0, &[32, TENSOR_BYTES / 34]).unwrap();
    let mut file = writer.create(&path).unwrap();
    file.append("w", &vec![0xA5; TENSOR_BYTES / 34 * 34]).unwrap();
    file.finish().unwrap();
    path
}

fn cut(path: &Path, bytes: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// How many bytes of the tensor still are what was written.
fn intact(file: &File) -> usize {
    file.tensor("w").unwrap().view().bytes.iter().filter(|&&byte| byte == 0xA5).count()
}

#[test]
fn a_cut_file_reads_as_zeros_and_is_marked_damaged() {
    assert!(install_sigbus_guard().unwrap());
    let (path, other_path) = (written("cut"), written("beside"));
    let (file, other) = (File::open(&path).unwrap(), File::open(&other_path).unwrap());
    cut(&path, 1 << 20);
    assert!(!file.is_damaged());
    let left = intact(&file);
    assert!(left > 1_000_000 && left <= 1 << 20, "{left}");
    assert!(file.is_damaged());
    let error = file.check_unchanged().unwrap_err().to_string();
    assert!(error.contains("the file changed after it was opened: its size went from 4,194,"), "{error}");
    // Again, from several threads: nothing faults any more, and nothing changes back.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(intact(&file), left));
        }
    });
    assert_eq!((intact(&other), other.is_damaged()), (TENSOR_BYTES / 34 * 34, false));
    other.check_unchanged().unwrap();
    drop(file);
    assert!(File::open(&path).unwrap_err().to_string().contains("reach past the data section of 1,04"));
    fs::remove_file(path).unwrap();
    fs::remove_file(other_path).unwrap();
}

#[test]
fn threads_that_meet_the_cut_together_all_go_on() {
    install_sigbus_guard().unwrap();
    let path = written("together");
    let file = File::open(&path).unwrap();
    cut(&path, 8192);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(intact(&file) < 8192));
        }
    });
    assert!(file.is_damaged());
    fs::remove_file(path).unwrap();
}

#[test]
fn maps_that_come_and_go_beside_a_cut_one_are_not_marked() {
    install_sigbus_guard().unwrap();
    let (path, steady) = (written("coming"), written("steady"));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let file = File::open(&steady).unwrap();
                    assert!(!file.is_damaged());
                }
            });
        }
        for _ in 0..20 {
            let file = File::open(&path).unwrap();
            cut(&path, 4096);
            intact(&file);
            assert!(file.is_damaged());
            drop(file);
            fs::rename(written("coming-again"), &path).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    fs::remove_file(path).unwrap();
    fs::remove_file(steady).unwrap();
}

#[test]
fn a_copy_does_not_care_what_becomes_of_the_file() {
    let path = written("copied");
    let file = File::open_with(&path, Access::Copy).unwrap();
    cut(&path, 0);
    fs::remove_file(&path).unwrap();
    assert_eq!(intact(&file), TENSOR_BYTES / 34 * 34);
    assert!(!file.is_damaged());
    file.check_unchanged().unwrap();
}

#[test]
fn a_file_overwritten_in_place_is_noticed_and_one_replaced_is_not_our_file() {
    let path = written("overwritten");
    let file = File::open(&path).unwrap();
    let before = Identity::at(&path).unwrap();
    let earlier = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&path).unwrap().set_modified(earlier).unwrap();
    let error = file.check_unchanged().unwrap_err().to_string();
    assert!(error.ends_with("it was written to (its modification time is another)"), "{error}");

    let file = File::open(&path).unwrap();
    fs::rename(written("replacement"), &path).unwrap();
    file.check_unchanged().unwrap();
    assert_ne!(Identity::at(&path).unwrap().inode, before.inode);
    fs::remove_file(path).unwrap();
}

/// Runs this binary again with one part to play.
fn child(part: &str) -> ExitStatus {
    let me = std::env::current_exe().unwrap();
    let mut command = Command::new(me);
    command.args(["--exact", "part_of_a_child_process", "--ignored"]).env(PART, part);
    command.output().unwrap().status
}

#[test]
fn without_the_guard_a_cut_kills_the_process_and_with_it_it_does_not() {
    assert_eq!(child("cut without guard").signal(), Some(SIGBUS));
    assert_eq!(child("cut with guard").code(), Some(0));
}

#[test]
fn a_signal_that_is_not_about_a_map_still_kills_with_the_guard() {
    assert_eq!(child("signal from outside").signal(), Some(SIGBUS));
}

#[test]
#[ignore = "plays a part in other tests, which start it as a process of its own"]
fn part_of_a_child_process() {
    let part = std::env::var(PART).unwrap();
    if part != "cut without guard" {
        install_sigbus_guard().unwrap();
        install_sigbus_guard().unwrap();
    }
    if part == "signal from outside" {
        // Rust's own handler, which was there before, takes the first one for a fault and waits for it to recur.
        for _ in 0..50 {
            Command::new("sh").args(["-c", "kill -BUS $PPID"]).status().unwrap();
        }
        panic!("still here after fifty signals");
    }
    let path = written("child");
    let file = File::open(&path).unwrap();
    cut(&path, 4096);
    fs::remove_file(&path).unwrap();
    assert!(intact(&file) < 4096);
    assert!(file.is_damaged());
}
