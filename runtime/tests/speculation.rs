//! Tokens guessed ahead on real devices: rows of a step get the same logits to the bit as in steps of their own, so texts
//! are the same to the token.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use farpost::engine::{
    Event, GenerateOptions, Generated, Logprobs, Mirostat, Sampling, Session, SessionOptions, Speculate,
};
use farpost::{Model, ModelOptions};
use farpost_firmware_tests::model;
use farpost_kernels::backend::{Answer, Backend, Batch, Limits, Output, Row, Want, WantKind};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::reference::Reference;
use farpost_models::tokenizer::Special;

fn open(name: &str) -> Arc<Model> {
    Arc::new(Model::open(&model(name), &ModelOptions::default()).unwrap())
}

/// A text that repeats itself with changes, longer than the window of the model that has one.
fn ids(model: &Model, n: usize) -> Vec<u32> {
    let n_vocab = model.graph().n_vocab();
    (0..n).map(|place| ((place % 23 * 7 + place / 60) % n_vocab.min(400) + 5) as u32).collect()
}

/// Logits of the 16 tokens after the first `start`, run `width` at a time.
fn logits(
    device: &dyn Backend,
    model: &Model,
    ids: &[u32],
    start: usize,
    width: usize,
    threads: usize,
) -> Vec<Vec<f32>> {
    let end = start + 16;
    let limits = Limits { kv_tokens: end + 16, threads, ..Limits::default() };
    let mut plan = device.compile(model.graph(), &limits).unwrap();
    let sequence = plan.kv().open().unwrap();
    assert!(plan.kv().reserve(sequence, end));
    let row = |position: usize| Row { token: ids[position], position, sequence };
    let (mut output, mut logits) = (Output::default(), Vec::new());
    for first in (0..start).step_by(limits.max_rows) {
        let rows = (first..start.min(first + limits.max_rows)).map(row).collect();
        plan.step(&Batch { rows, ..Batch::default() }, &mut output).unwrap();
    }
    for first in (start..end).step_by(width) {
        let rows: Vec<Row> = (first..end.min(first + width)).map(row).collect();
        let want = (0..rows.len()).map(|row| Want { row, kind: WantKind::Logits }).collect();
        plan.step(&Batch { rows, want, interrupt: None }, &mut output).unwrap();
        for answer in output.results.drain(..) {
            let Answer::Logits(row) = answer else { panic!("logits were asked for, not {answer:?}") };
            logits.push(row);
        }
    }
    logits
}

/// Holds rows of steps of `widths` to those of single steps with one thread.
fn assert_equal_rows(device: &dyn Backend, model: &Model, ids: &[u32], start: usize, widths: &[usize], what: &str) {
    let single = logits(device, model, ids, start, 1, 1);
    for (&width, threads) in widths.iter().zip([2, 1].into_iter().cycle()) {
        let wide = logits(device, model, ids, start, width, threads);
        for (row, (single, wide)) in single.iter().zip(&wide).enumerate() {
            let apart = single.iter().zip(wide).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(single == wide, "{what}, row {row} after {start}, steps of {width}, {threads} threads: {apart}");
        }
    }
}

fn generate(session: &mut Session, prompt: &[u32], options: &GenerateOptions) -> (Generated, Vec<Logprobs>) {
    let mut told = Vec::new();
    session.clear();
    let generated = session.generate(prompt, options, &mut |event| {
        if let Event::Token { logprobs, .. } = event {
            told.extend(logprobs.cloned());
        }
        ControlFlow::Continue(())
    });
    (generated.unwrap(), told)
}

#[test]
fn plain_devices_write_the_same_text_and_see_the_same_logits() {
    let scalar = Cpu::new(Isa::Scalar);
    let cases: [(&str, &str, &dyn Backend); 3] = [
        ("tiny-llama.gguf", "reference", &Reference),
        ("tiny-gemma3.gguf", "scalar", &scalar),
        ("tiny-qwen3moe.gguf", "scalar", &scalar),
    ];
    let mut n_right = 0;
    for (name, device_name, device) in cases {
        let model = open(name);
        let prompt = ids(&model, 56);
        assert_equal_rows(device, &model, &prompt, 40, &[5, 16], &format!("{name}, {device_name}"));
        let options = SessionOptions { context: Some(96), threads: 1, ..SessionOptions::default() };
        let mut session = Session::open(Arc::clone(&model), device, &options).unwrap();
        let off = || Sampling { seed: 3, ..Sampling::default() };
        let samplings = [
            Sampling { logprobs: Some(2), ..Sampling::greedy() },
            Sampling { temperature: 0.3, top_k: 8, logprobs: Some(2), ..off() },
            Sampling { temperature: 0.3, frequency_penalty: 0.1, logprobs: Some(2), ..off() },
            Sampling { mirostat: Some(Mirostat { tau: 2.0, eta: 0.1 }), logprobs: Some(2), ..off() },
        ];
        for sampling in samplings {
            let plain =
                GenerateOptions { sampling, max_tokens: Some(24), ignore_eos: true, ..GenerateOptions::default() };
            let ahead = GenerateOptions { speculate: Speculate::lookup(), ..plain.clone() };
            let ((expected, logprobs), (found, same)) =
                (generate(&mut session, &prompt, &plain), generate(&mut session, &prompt, &ahead));
            assert_eq!((found.ids, found.text, same), (expected.ids, expected.text, logprobs), "{name}, {device_name}");
            n_right += found.timings.accepted_tokens;
        }
    }
    println!("{n_right} guesses were right");
    assert!(n_right > 0, "no guess was right, so none was tried");
}

/// Sets whose rows do not depend on their number, with the most rows of a step that this is true for.
fn equal_sets() -> Vec<(Isa, usize)> {
    let most = |isa| match isa {
        Isa::Avx512 | Isa::Amx => 16,
        Isa::Avx2 => 4,
        _ => 1,
    };
    Isa::available().into_iter().map(|isa| (isa, most(isa))).filter(|(_, most)| *most > 1).collect()
}

#[test]
fn rows_of_all_families_are_the_same_to_the_bit_however_many_a_step_has() {
    let names = ["gemma2", "gemma3", "llama", "llama-freqs", "llama-moe", "phi3", "qwen2", "qwen3", "qwen3moe"];
    for name in names {
        let model = open(&format!("tiny-{name}.gguf"));
        let start = 300.min(model.graph().max_context() - 16);
        let ids = ids(&model, start + 16);
        for (isa, most) in equal_sets() {
            let widths: Vec<usize> = (2..=most).collect();
            assert_equal_rows(&Cpu::new(isa), &model, &ids, start, &widths, &format!("{name}, {isa}"));
        }
    }
}

#[test]
fn a_real_model_gets_the_same_logits_and_writes_the_same_text() {
    let model = open("gemma-3-270m-q4_k_m.gguf");
    let encode = |text: &str| model.tokenizer().encode_prompt(text, Special::AsText);
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/texts");
    let read = |name: &str| encode(&std::fs::read_to_string(texts.join(format!("{name}.txt"))).unwrap());
    let context = read("quote").repeat(4);
    for (isa, most) in equal_sets() {
        let widths: Vec<usize> = [2, 3, 4, 5, 8, 16].into_iter().filter(|width| *width <= most).collect();
        // Where the second part of a context begins, and beyond the window.
        for start in [248, 505] {
            assert_equal_rows(&Cpu::new(isa), &model, &context, start, &widths, &format!("{isa}"));
        }
    }
    if !equal_sets().iter().any(|(isa, most)| *isa == Isa::detect() && *most == 16) {
        println!("this processor's rows depend on their number: texts are not compared");
        return;
    }
    let options = SessionOptions { context: Some(768), threads: 2, ..SessionOptions::default() };
    let mut session = Session::open(Arc::clone(&model), &Cpu::detect(), &options).unwrap();
    for name in ["edit", "quote", "json"] {
        let prompt = read(name);
        let sampling = Sampling { logprobs: Some(3), ..Sampling::greedy() };
        let plain = GenerateOptions { sampling, max_tokens: Some(80), ..GenerateOptions::default() };
        let ahead = GenerateOptions { speculate: Speculate::lookup(), ..plain.clone() };
        let ((expected, logprobs), (found, same)) =
            (generate(&mut session, &prompt, &plain), generate(&mut session, &prompt, &ahead));
        let timings = found.timings;
        println!("{name}: {} of {} guesses were right", timings.accepted_tokens, timings.drafted_tokens);
        assert!(timings.accepted_tokens * 4 > found.ids.len(), "{name}: hardly any guess was right");
        assert_eq!((found.ids, found.text, same), (expected.ids, expected.text, logprobs), "{name}");
    }
}
