//! Tokens guessed ahead on real devices: the same text to the token where a step's rows do not depend on their number,
//! and up to a near-tie where they do.

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

/// Logits of the 16 tokens after a context of 40, run `width` at a time.
fn logits(device: &dyn Backend, model: &Model, ids: &[u32], width: usize) -> Vec<Vec<f32>> {
    let limits = Limits { kv_tokens: 64, threads: 1, ..Limits::default() };
    let mut plan = device.compile(model.graph(), &limits).unwrap();
    let sequence = plan.kv().open().unwrap();
    assert!(plan.kv().reserve(sequence, 56));
    let row = |position: usize| Row { token: ids[position], position, sequence };
    let (mut output, mut logits) = (Output::default(), Vec::new());
    plan.step(&Batch { rows: (0..40).map(row).collect(), want: vec![] }, &mut output).unwrap();
    for start in (40..56).step_by(width) {
        let rows: Vec<Row> = (start..56.min(start + width)).map(row).collect();
        let want = (0..rows.len()).map(|row| Want { row, kind: WantKind::Logits }).collect();
        plan.step(&Batch { rows, want }, &mut output).unwrap();
        for answer in output.results.drain(..) {
            let Answer::Logits(row) = answer else { panic!("logits were asked for, not {answer:?}") };
            logits.push(row);
        }
    }
    logits
}

/// How many of 16 rows are the same to the bit, and the largest difference of a logit.
fn same_rows(device: &dyn Backend, model: &Model, ids: &[u32], width: usize) -> (usize, f32) {
    let (single, wide) = (logits(device, model, ids, 1), logits(device, model, ids, width));
    let n_same = single.iter().zip(&wide).filter(|(a, b)| a == b).count();
    let pairs = single.iter().flatten().zip(wide.iter().flatten());
    (n_same, pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
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
        for width in [5, 16] {
            let (n_same, apart) = same_rows(device, &model, &prompt, width);
            assert_eq!(n_same, 16, "{name}, {device_name}, steps of {width}: {apart}");
        }
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

/// How far apart two log-probabilities may be for other last bits, rounded on by every layer, to turn the choice.
const NEAR_TIE: f32 = 0.25;

#[test]
fn a_real_model_writes_the_same_text_until_a_near_tie() {
    let model = open("gemma-3-270m-q4_k_m.gguf");
    let encode = |text: &str| model.tokenizer().encode_prompt(text, Special::AsText);
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/texts");
    let context = encode(&std::fs::read_to_string(texts.join("quote.txt")).unwrap());
    for width in [2, 4, 5, 8, 16] {
        let (n_same, apart) = same_rows(&Cpu::detect(), &model, &context, width);
        println!("steps of {width}: {n_same} of 16 rows the same to the bit, logits differ by up to {apart}");
    }
    let options = SessionOptions { context: Some(768), threads: 1, ..SessionOptions::default() };
    let mut session = Session::open(Arc::clone(&model), &Cpu::detect(), &options).unwrap();
    let mut n_whole = 0;
    for name in ["edit", "quote", "json"] {
        let prompt = encode(&std::fs::read_to_string(texts.join(format!("{name}.txt"))).unwrap());
        let sampling = Sampling { logprobs: Some(3), ..Sampling::greedy() };
        let plain = GenerateOptions { sampling, max_tokens: Some(80), ..GenerateOptions::default() };
        let ahead = GenerateOptions { speculate: Speculate::lookup(), ..plain.clone() };
        let ((expected, logprobs), (found, _)) =
            (generate(&mut session, &prompt, &plain), generate(&mut session, &prompt, &ahead));
        let timings = found.timings;
        println!("{name}: {} of {} guesses were right", timings.accepted_tokens, timings.drafted_tokens);
        assert!(timings.accepted_tokens * 4 > found.ids.len(), "{name}: hardly any guess was right");
        match expected.ids.iter().zip(&found.ids).position(|(a, b)| a != b) {
            None => {
                assert_eq!(found.text, expected.text, "{name}");
                n_whole += 1;
            }
            Some(place) => {
                let other = logprobs[place].top.iter().find(|(id, _)| *id == found.ids[place]);
                let gap = other.map(|(_, logprob)| logprobs[place].chosen - logprob);
                println!("{name}: parts at token {place}, {gap:?} nats apart");
                assert!(gap.is_some_and(|gap| gap < NEAR_TIE), "{name}, token {place}: no near-tie: {gap:?}");
            }
        }
    }
    println!("{n_whole} of 3 texts are the same as a whole");
}
