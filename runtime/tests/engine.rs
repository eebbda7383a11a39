//! The engine on the processor with real models: what many get at once is what one gets alone.

#[cfg(target_os = "linux")]
mod capped;
mod windows;

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "wgpu")]
use farpost::engine::DeviceState;
use farpost::engine::{
    Backends, Engine, EngineOptions, Finish, GenerateOptions, Generated, Request, Sampling, Session, SessionOptions,
    Speculate,
};
use farpost::{Model, ModelOptions};
use farpost_firmware_tests::model;
use farpost_kernels::backend::Batch;
#[cfg(feature = "wgpu")]
use farpost_kernels::backend::{Backend, DeviceError};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::fault::{Fault, Faulty};
use farpost_models::template::RenderInput;
use serde_json::json;

fn open(model: &Arc<Model>, options: &EngineOptions) -> Engine {
    Engine::open(Arc::clone(model), Arc::new(Cpu::detect()), options).unwrap()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { sampling: Sampling::greedy(), max_tokens: Some(max_tokens), ..GenerateOptions::default() }
}

fn command(model: &Model, text: &str) -> Vec<u32> {
    let input = RenderInput::new(json!([{"role": "user", "content": text}]));
    model.template().unwrap().encode(model.tokenizer(), &input).unwrap()
}

fn answers(engine: &Engine, requests: &[Request]) -> Vec<Vec<Generated>> {
    let streams: Vec<_> = requests.iter().map(|request| engine.submit(request).unwrap()).collect();
    streams.into_iter().map(|stream| stream.finish().unwrap()).collect()
}

const COMMANDS: [&str; 6] = [
    "turn on the porch light at nine",
    "close the gas valve",
    "set the heating in the bedroom to 19 degrees",
    "turn off all lights",
    "open the garage door",
    "what is the temperature in the kitchen",
];

#[test]
fn the_pocket_model_answers_many_at_once_as_it_answers_one() {
    let model = Arc::new(Model::pocket().unwrap());
    let mut session = Session::open(Arc::clone(&model), &Cpu::detect(), &SessionOptions::default()).unwrap();
    let mut alone =
        |prompt: &[u32]| session.generate(prompt, &greedy(64), &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let engine = open(&model, &EngineOptions { max_running: 4, ..EngineOptions::default() });
    let prompts: Vec<Vec<u32>> = COMMANDS.iter().map(|text| command(&model, text)).collect();
    let requests: Vec<Request> =
        prompts.iter().cycle().take(18).map(|prompt| Request::new(prompt.clone(), greedy(64))).collect();
    for (request, choices) in requests.iter().zip(answers(&engine, &requests)) {
        let expected = alone(&request.prompt);
        assert_eq!((&choices[0].text, choices[0].finish), (&expected.text, expected.finish));
    }
    assert!(engine.metrics().cached_tokens > 0, "prompts begin alike");
    assert!(engine.drain(Duration::from_secs(60)));
    let metrics = engine.metrics();
    assert_eq!((metrics.finished, metrics.failed, metrics.running, metrics.waiting), (18, 0, 0, 0));
    assert_eq!(metrics.kv_free_tokens, metrics.kv_tokens);
}

#[test]
fn eight_answers_outlive_their_device() {
    let model = Arc::new(Model::pocket().unwrap());
    let prompts: Vec<Vec<u32>> = COMMANDS.iter().cycle().take(8).map(|text| command(&model, text)).collect();
    let requests: Vec<Request> = prompts.into_iter().map(|prompt| Request::new(prompt, greedy(64))).collect();
    let texts = |engine: &Engine| -> Vec<String> {
        answers(engine, &requests).into_iter().map(|choices| choices[0].text.clone()).collect()
    };
    let undisturbed = texts(&open(&model, &EngineOptions::default()));
    for fault in Fault::all() {
        let what = format!("{fault:?}");
        // All are being written then.
        let cue = move |_: usize, batch: &Batch| (batch.want.len() == 8).then(|| fault.clone());
        let device = Faulty::new(Arc::new(Cpu::detect()), cue);
        let backends = Backends::from(Arc::new(device.clone())).or(Arc::new(Cpu::detect()));
        let engine = Engine::open(Arc::clone(&model), backends, &EngineOptions::default()).unwrap();
        assert_eq!(texts(&engine), undisturbed, "{what}");
        assert_eq!((device.n_faults(), engine.metrics().recovered), (1, 1), "{what}");
        let states = engine.devices();
        assert!(states[1].is_used && states[0].failure.is_some(), "{what}: {states:?}");
    }
}

/// The same with a graphics processor that is pulled out.
#[cfg(feature = "wgpu")]
#[test]
fn eight_answers_outlive_a_graphics_processor() {
    use farpost_kernels::wgpu::{Adapters, Wgpu};
    let graphics: Arc<dyn Backend> = match Wgpu::open(Adapters::Any) {
        Ok(graphics) => Arc::new(graphics),
        Err(error) => return println!("skipped: {error}; install a Vulkan driver"),
    };
    let model = Arc::new(Model::pocket().unwrap());
    let prompts: Vec<Vec<u32>> = COMMANDS.iter().cycle().take(8).map(|text| command(&model, text)).collect();
    let requests: Vec<Request> = prompts.into_iter().map(|prompt| Request::new(prompt, greedy(64))).collect();
    let texts = |backends: Backends| -> (Vec<String>, Vec<DeviceState>) {
        let engine = Engine::open(Arc::clone(&model), backends, &EngineOptions::default()).unwrap();
        let texts = answers(&engine, &requests).into_iter().map(|choices| choices[0].text.clone()).collect();
        (texts, engine.devices())
    };
    let (undisturbed, _) = texts(Backends::one(Arc::clone(&graphics)));
    let lost = |_: usize, batch: &Batch| {
        (batch.want.len() == 8).then(|| Fault::Midway(DeviceError::Lost("it was pulled out".to_owned())))
    };
    let device = Faulty::new(graphics, lost);
    let (disturbed, states) = texts(Backends::from(Arc::new(device.clone())).or(Arc::new(Cpu::detect())));
    assert_eq!(disturbed, undisturbed);
    assert_eq!((device.n_faults(), states[0].info.backend, states[1].is_used), (1, "wgpu", true), "{states:?}");
}

#[test]
fn a_seed_gives_the_same_text_whatever_else_runs_if_that_is_asked_for() {
    for name in ["tiny-llama.gguf", "tiny-gemma3.gguf", "tiny-qwen3moe.gguf"] {
        let model = Arc::new(Model::open(&model(name), &ModelOptions::default()).unwrap());
        let n_vocab = model.graph().n_vocab() as u32;
        let prompt = |salt: u32, n: u32| -> Vec<u32> { (0..n).map(|i| (salt * 37 + i * i * 11) % n_vocab).collect() };
        let request = |salt: u32, reproducible: bool| Request {
            reproducible,
            n: 2,
            ..Request::new(
                prompt(salt, 40 + salt),
                GenerateOptions {
                    sampling: Sampling { temperature: 1.5, seed: 9, ..Sampling::default() },
                    max_tokens: Some(12),
                    ignore_eos: true,
                    speculate: Speculate::lookup(),
                    ..GenerateOptions::default()
                },
            )
        };
        let ids = |choices: &[Generated]| choices.iter().map(|choice| choice.ids.clone()).collect::<Vec<_>>();
        let options = EngineOptions { context: Some(64), max_running: 5, batch_rows: 24, ..EngineOptions::default() };
        let alone = ids(&answers(&open(&model, &options), &[request(1, true)])[0]);
        assert_ne!(alone[0], alone[1], "choices differ");
        let engine = open(&model, &options);
        for _ in 0..2 {
            let crowd: Vec<Request> = [(2, false), (1, true), (3, false), (1, true), (1, false), (4, true)]
                .map(|(s, r)| request(s, r))
                .to_vec();
            let told = answers(&engine, &crowd);
            assert!(told.iter().flatten().all(|choice| choice.finish == Finish::Length && choice.ids.len() == 12));
            assert_eq!((ids(&told[1]), ids(&told[3])), (alone.clone(), alone.clone()), "{name}");
        }
    }
}
