//! Sessions on the processor with real models: the built-in one answers, a published one has its published perplexity,
//! and a model file that is cut while it runs gives an error.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farpost::engine::{
    EngineError, Event, Finish, GenerateOptions, Generated, Sampling, Session, SessionOptions, perplexity,
};
use farpost::{Model, ModelOptions};
use farpost_firmware_tests::{golden, model};
use farpost_kernels::backend::KvType;
use farpost_kernels::cpu::Cpu;
use farpost_kernels::reference::Reference;
use farpost_models::gguf::install_sigbus_guard;
use farpost_models::template::RenderInput;
use farpost_models::tokenizer::Special;
use serde_json::json;

fn open(model: Model, options: &SessionOptions) -> Session {
    Session::open(Arc::new(model), &Cpu::detect(), options).unwrap()
}

fn generate(session: &mut Session, prompt: &[u32], options: &GenerateOptions) -> Generated {
    session.generate(prompt, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { sampling: Sampling::greedy(), max_tokens: Some(max_tokens), ..GenerateOptions::default() }
}

#[test]
fn the_pocket_model_turns_a_command_into_a_call_whatever_was_said_before() {
    let model = Model::pocket().unwrap();
    let prompt = |command: &str| {
        let input = RenderInput::new(json!([{"role": "user", "content": command}]));
        model.template().unwrap().encode(model.tokenizer(), &input).unwrap()
    };
    let porch = prompt("turn on the porch light at nine");
    let valve = prompt("close the gas valve");
    let mut session = open(Model::pocket().unwrap(), &SessionOptions::default());
    let first = generate(&mut session, &porch, &greedy(64));
    let call: serde_json::Value = serde_json::from_str(&first.text).expect("the answer is JSON");
    assert_eq!(call["tool"], "set_light", "{call}");
    assert!(matches!(first.finish, Finish::EndToken(_)));
    let other = generate(&mut session, &valve, &greedy(64));
    assert!(other.timings.cached_tokens > 0 && other.text != first.text);
    let again = generate(&mut session, &porch, &greedy(64));
    assert_eq!((again.ids, again.text), (first.ids, first.text));
}

/// Exact match of the built-in model on phrasings that it was not trained on, as its card counts it.
#[test]
fn the_pocket_model_is_right_nine_times_in_ten_on_phrasings_it_never_saw() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/pocket/data");
    let mut session = open(Model::pocket().unwrap(), &SessionOptions::default());
    for set in ["held-out.jsonl", "hand-written.jsonl"] {
        let examples = std::fs::read_to_string(folder.join(set)).unwrap();
        let (mut n, mut n_right) = (0, 0);
        for line in examples.lines() {
            let example: serde_json::Value = serde_json::from_str(line).unwrap();
            let input = RenderInput::new(json!([{"role": "user", "content": example["text"]}]));
            let model = Arc::clone(session.model());
            let prompt = model.template().unwrap().encode(model.tokenizer(), &input).unwrap();
            let answer = generate(&mut session, &prompt, &greedy(96)).text;
            n += 1;
            n_right += usize::from(example["answer"] == answer);
        }
        println!("{set}: {n_right} of {n} right");
        assert!(n >= 100 && n_right * 10 >= n * 9, "{set}: {n_right} of {n} right");
    }
}

#[test]
fn a_seed_gives_the_same_text_on_any_number_of_threads() {
    let mut texts = Vec::new();
    for threads in [1, 2, 3] {
        let options = SessionOptions { threads, ..SessionOptions::default() };
        let mut session = open(Model::pocket().unwrap(), &options);
        let prompt = session.model().tokenizer().encode_prompt("turn on the light", Special::AsText);
        let sampling = Sampling { temperature: 1.5, top_p: 0.99, seed: 99, ..Sampling::default() };
        let options = GenerateOptions { sampling, ignore_eos: true, ..greedy(40) };
        texts.push(generate(&mut session, &prompt, &options).ids);
    }
    assert_eq!(texts[0].len(), 40);
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[0], texts[2]);
}

#[test]
fn gemma_has_its_published_perplexity() {
    let facts = std::fs::read_to_string(golden("models/gemma3-270m.json")).unwrap();
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    let published = facts["perplexity"]["value"].as_f64().unwrap();
    let text = std::fs::read_to_string(golden("text/eval.txt")).unwrap();
    let gemma = Model::open(&model("gemma-3-270m-q4_k_m.gguf"), &ModelOptions::default()).unwrap();
    let ids = gemma.tokenizer().encode_prompt(&text, Special::AsText);
    let mut session = open(gemma, &SessionOptions { context: Some(512), ..SessionOptions::default() });
    let measured = perplexity(&mut session, &ids, 512, &mut |_, _| ControlFlow::Continue(())).unwrap().unwrap();
    assert_eq!((measured.n_windows, measured.n_tokens), (ids.len() / 512, 255 * (ids.len() / 512)));
    // Both round activations, each in its own way.
    assert!((measured.value / published - 1.0).abs() < 0.01, "{} instead of {published}", measured.value);
}

/// How far apart two logits may be for the reference, which rounds activations, to see them in another order.
const NEAR_TIE: f32 = 0.25;

#[test]
fn gemma_writes_what_the_reference_writes_until_a_near_tie() {
    let facts = std::fs::read_to_string(golden("models/gemma3-270m.json")).unwrap();
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
    };
    let gemma = Model::open(&model("gemma-3-270m-q4_k_m.gguf"), &ModelOptions::default()).unwrap();
    let mut session = open(gemma, &SessionOptions { context: Some(128), ..SessionOptions::default() });
    let mut n_whole = 0;
    for case in facts["greedy"].as_array().unwrap() {
        let (prompt, expected) = (ids(&case["prompt_ids"]), ids(&case["greedy"]));
        let encoded = session.model().tokenizer().encode_prompt(case["prompt"].as_str().unwrap(), Special::AsText);
        assert_eq!(encoded, prompt);
        let sampling = Sampling { logprobs: Some(3), ..Sampling::greedy() };
        let options = GenerateOptions { sampling, ignore_eos: true, ..greedy(expected.len()) };
        let mut found = Vec::new();
        let mut receive = |event: Event<'_>| {
            if let Event::Token { id, logprobs } = event {
                found.push((id, logprobs.unwrap().clone()));
            }
            ControlFlow::Continue(())
        };
        session.generate(&prompt, &options, &mut receive).unwrap();
        assert_eq!(found.len(), expected.len());
        match found.iter().zip(&expected).position(|((id, _), expected)| id != expected) {
            None => n_whole += 1,
            Some(place) => {
                let (id, logprobs) = &found[place];
                let theirs = logprobs.top.iter().find(|(other, _)| *other == expected[place]);
                let gap = theirs.map(|(_, logprob)| logprobs.chosen - logprob);
                let prompt = &case["prompt"];
                assert!(gap.is_some_and(|gap| gap < NEAR_TIE), "{prompt} {place}: {id} is no near-tie: {gap:?}");
            }
        }
    }
    assert!(n_whole >= 3, "only {n_whole} continuations agree as a whole");
}

/// A file that is gone when the test is over.
struct Copy(PathBuf);

impl Copy {
    fn of(name: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("farpost-session-{process}-{number}-{name}"));
        std::fs::copy(model(name), &path).unwrap();
        Self(path)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_is_cut_while_the_model_runs_gives_an_error_and_no_token() {
    assert!(install_sigbus_guard().unwrap());
    let copy = Copy::of("tiny-llama.gguf");
    let mut session = open(
        Model::open(&copy.0, &ModelOptions::default()).unwrap(),
        &SessionOptions { context: Some(64), ..SessionOptions::default() },
    );
    generate(&mut session, &[1, 2, 3], &greedy(2));
    std::fs::OpenOptions::new().write(true).open(&copy.0).unwrap().set_len(4096).unwrap();
    let mut n_events = 0;
    let mut count = |_: Event<'_>| {
        n_events += 1;
        ControlFlow::Continue(())
    };
    let error = session.generate(&[1, 2, 3, 4, 5], &greedy(2), &mut count).unwrap_err();
    assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
    assert_eq!((n_events, session.cached().len()), (0, 0));
}

#[cfg(unix)]
#[test]
fn a_file_that_is_written_over_while_the_model_runs_is_blamed_for_wrong_results() {
    let copy = Copy::of("tiny-llama.gguf");
    let model = Model::open(&copy.0, &ModelOptions::default()).unwrap();
    let start = model.file().tensors().iter().map(farpost_models::gguf::Tensor::offset).min().unwrap() as usize;
    let mut session = open(model, &SessionOptions { context: Some(64), ..SessionOptions::default() });
    generate(&mut session, &[1, 2, 3], &greedy(2));
    // All weights become NaN, in the file that is mapped: writing it anew would leave the old one in the map.
    let mut bytes = std::fs::read(&copy.0).unwrap();
    bytes[start..].fill(0xFF);
    let mut file = std::fs::OpenOptions::new().write(true).open(&copy.0).unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    let error = session.generate(&[1, 2, 3, 4, 5], &greedy(2), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, EngineError::Changed(_)), "{error}");
    assert!(error.to_string().contains("the file changed after it was opened: it was written to"), "{error}");
    assert_eq!(session.cached(), [0; 0]);
}

#[test]
fn a_session_restored_from_a_file_writes_what_the_saved_one_writes() {
    let path = std::env::temp_dir().join(format!("farpost-saved-session-{}", std::process::id()));
    let names = ["llama", "qwen3moe", "gemma2", "gemma3", "phi3"];
    let mut n_compared = 0;
    for (name, kv_type) in names.into_iter().flat_map(|name| [(name, KvType::F16), (name, KvType::Q8_0)]) {
        let open_model = || Model::open(&model(&format!("tiny-{name}.gguf")), &ModelOptions::default()).unwrap();
        let n_vocab = open_model().graph().n_vocab() as u32;
        let tokens = |salt: u32, n: u32| -> Vec<u32> { (0..n).map(|i| (salt * 37 + i * i * 11) % n_vocab).collect() };
        let options = SessionOptions { context: Some(160), kv_type, threads: 2, ..SessionOptions::default() };
        let Ok(mut saved) = Session::open(Arc::new(open_model()), &Cpu::detect(), &options) else {
            // Heads that are no whole blocks.
            assert_eq!(kv_type, KvType::Q8_0, "{name}");
            continue;
        };
        let sampling = Sampling { temperature: 1.2, seed: 5, ..Sampling::default() };
        let drawn = GenerateOptions { sampling, ignore_eos: true, ..greedy(12) };
        let first = tokens(1, 40);
        let next = [&first[..], &generate(&mut saved, &first, &drawn).ids, &tokens(2, 9)].concat();
        saved.save(&path, name.as_bytes()).unwrap();

        let mut restored = open(open_model(), &options);
        let told = restored.restore(&path).unwrap();
        assert_eq!((told.tokens.as_slice(), told.note.as_slice()), (saved.cached(), name.as_bytes()));
        for options in [&drawn, &GenerateOptions { ignore_eos: true, ..greedy(12) }] {
            let [expected, found] = [&mut saved, &mut restored].map(|session| generate(session, &next, options));
            assert_eq!((&found.ids, &found.text), (&expected.ids, &expected.text), "{name} {}", kv_type.name());
            assert_eq!(found.timings.cached_tokens, expected.timings.cached_tokens);
            assert!(found.timings.cached_tokens >= 51, "{name}: {}", found.timings.cached_tokens);
        }
        n_compared += 1;
    }
    // Another model takes nothing of it.
    let other = Model::open(&model("tiny-qwen2.gguf"), &ModelOptions::default()).unwrap();
    let error = open(other, &SessionOptions::default()).restore(&path).unwrap_err().to_string();
    assert!(error.contains("the hash of the model it was made with is "), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert!(n_compared > names.len(), "{n_compared} were compared");
}

#[test]
fn a_plain_device_saves_and_restores_as_well() {
    let path = std::env::temp_dir().join(format!("farpost-saved-plainly-{}", std::process::id()));
    let model = Arc::new(Model::open(&model("tiny-llama.gguf"), &ModelOptions::default()).unwrap());
    let options = SessionOptions { context: Some(32), ..SessionOptions::default() };
    let open = || Session::open(Arc::clone(&model), &Reference, &options).unwrap();
    let (mut saved, mut restored) = (open(), open());
    let short = GenerateOptions { ignore_eos: true, ..greedy(3) };
    let next = [&[5, 6, 7][..], &generate(&mut saved, &[5, 6, 7], &short).ids, &[9]].concat();
    saved.save(&path, b"").unwrap();
    restored.restore(&path).unwrap();
    let [expected, found] = [&mut saved, &mut restored].map(|session| generate(session, &next, &short));
    assert_eq!((&found.ids, found.timings.cached_tokens), (&expected.ids, 5));
    // What the processor keeps is not what this device keeps.
    let error = Session::open(Arc::clone(&model), &Cpu::detect(), &options).unwrap().restore(&path).unwrap_err();
    assert!(error.to_string().contains("the number of bytes of keys and values is "), "{error}");
    std::fs::remove_file(&path).unwrap();
}
