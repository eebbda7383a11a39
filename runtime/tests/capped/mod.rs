//! A process that may hardly take more memory than the engine's cap: many requests of all kinds are answered or refused
//! with a reason, and nothing fails.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farpost::engine::{
    Engine, EngineOptions, GenerateOptions, Holdings, Refusal, Request, Sampling, Speculate, StreamEvent,
};
use farpost::{Model, ModelOptions};
use farpost_firmware_tests::model;
use farpost_kernels::cpu::Cpu;

const TEST: &str = "capped::many_requests_in_little_memory_are_answered_or_refused";
/// Set in the process that does the work.
const PART: &str = "FARPOST_TEST_PART";
const MIB: u64 = 1 << 20;
/// Bytes of the cap beside what the engine takes for as long as it is open.
const ROOM: u64 = 48 * MIB;
/// What the allocator and the test itself may take beside the cap.
const SLACK: u64 = 12 * MIB;

/// A large vocabulary makes requests large: a choice among all tokens takes eleven MiB.
fn engine() -> (Arc<Model>, Engine) {
    let model = Model::open(&model("gemma-3-270m-q4_k_m.gguf"), &ModelOptions::default()).unwrap();
    let model = Arc::new(model);
    let options = EngineOptions {
        context: Some(128),
        max_running: 4,
        max_waiting: 64,
        threads: 2,
        batch_rows: 16,
        ..EngineOptions::default()
    };
    let open = |memory_cap| {
        Engine::open(Arc::clone(&model), Arc::new(Cpu::detect()), &EngineOptions { memory_cap, ..options.clone() })
    };
    let Holdings { kv, scratch, .. } = open(None).unwrap().holdings();
    let engine = open(Some(kv + scratch + ROOM)).unwrap();
    (model, engine)
}

/// Bytes of private memory that this process may write to: what `RLIMIT_DATA` bounds.
fn data_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn request(number: u32) -> Request {
    let all_logits = Sampling { presence_penalty: 0.3, seed: u64::from(number), ..Sampling::default() };
    let sampling = match number % 3 {
        0 => Sampling { logprobs: Some(20), ..Sampling::default() },
        1 => all_logits,
        _ => Sampling::greedy(),
    };
    let speculate = if number % 4 == 1 { Speculate::Lookup { max_draft: 3 } } else { Speculate::Off };
    let max_tokens = Some(1 + number as usize % 2);
    let options = GenerateOptions { sampling, max_tokens, ignore_eos: true, speculate, ..GenerateOptions::default() };
    let n = [1, 3, 1, 2, 16][number as usize % 5];
    Request { n, ..Request::new((0..4 + number % 7).map(|i| 1000 + number * 13 + i * i).collect(), options) }
}

/// Several threads ask for more than there is room for, read late, or go away.
fn drive(engine: &Engine) {
    let [n_done, n_refused, n_never] = [(); 3].map(|()| AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (n_done, n_refused, n_never) = (&n_done, &n_refused, &n_never);
            let thread_of = std::thread::Builder::new().stack_size(256 << 10);
            let asking = move || {
                let mut unread = Vec::new();
                for number in (thread..32).step_by(4) {
                    match engine.submit(&request(number)) {
                        Ok(stream) => unread.push(stream),
                        Err(Refusal::Memory { needed_bytes, allowed_bytes, retry_after, .. }) => {
                            assert!(needed_bytes > allowed_bytes);
                            if retry_after.is_none() { n_never } else { n_refused }.fetch_add(1, Ordering::Relaxed);
                            // Somebody goes away, and the others are read.
                            drop(unread.pop());
                            for stream in unread.drain(..) {
                                n_done.fetch_add(stream.finish().unwrap().len(), Ordering::Relaxed);
                            }
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
                for stream in unread {
                    for event in stream {
                        assert!(!matches!(event, StreamEvent::Failed(_)), "{event:?}");
                        n_done.fetch_add(usize::from(matches!(event, StreamEvent::Done { .. })), Ordering::Relaxed);
                    }
                }
            };
            thread_of.spawn_scoped(scope, asking).unwrap();
        }
    });
    let counts = [n_done, n_refused, n_never].map(AtomicUsize::into_inner);
    println!("answered, refused for now and for good: {counts:?}");
    assert!(counts.iter().all(|n| *n > 0), "{counts:?}");
    assert_eq!(engine.metrics().failed, 0);
    let after = engine.submit(&request(1)).unwrap().finish().unwrap();
    assert_eq!(after[0].ids.len(), 2);
}

#[test]
fn many_requests_in_little_memory_are_answered_or_refused() {
    if let Ok(part) = std::env::var(PART) {
        let (_model, engine) = engine();
        engine.submit(&request(1)).unwrap().finish().unwrap();
        println!("data {}", data_bytes());
        if part == "drive" {
            let whole = (ROOM + SLACK + 8 * MIB) as usize;
            assert!(Vec::<u8>::new().try_reserve_exact(whole).is_err(), "the limit is one");
            drive(&engine);
        }
        return;
    }
    let ran = |limit: &str, part: &str| {
        let program = std::env::current_exe().unwrap();
        let script = format!("ulimit -d {limit} && exec \"$0\" --exact {TEST} --nocapture");
        // What is free shall be the system's at once, not kept for later.
        let mut command = Command::new("sh");
        command.env("MALLOC_MMAP_THRESHOLD_", "131072").env("MALLOC_ARENA_MAX", "2").env(PART, part);
        let output = command.arg("-c").arg(script).arg(program).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{part} within {limit}: {:?}\n{out}\n{err}", output.status);
        out
    };
    let out = ran("unlimited", "rest");
    let at_rest: u64 = out.lines().find_map(|line| line.strip_prefix("data ")).unwrap().parse().unwrap();
    let out = ran(&((at_rest + ROOM + SLACK) / 1024).to_string(), "drive");
    assert!(out.contains("answered, refused for now and for good"), "{out}");
}
