//! Embeddings by session and engine: the numbers of independent software, whatever the steps that bring them.

mod embedder;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use embedder::{apart, file, golden};
use farpost::engine::{
    Engine, EngineError, EngineOptions, GenerateOptions, Refusal, Request, Session, SessionOptions, Stream, StreamEvent,
};
use farpost::{Model, ModelOptions};
use farpost_firmware_tests::model;
use farpost_kernels::backend::KvType;
use farpost_kernels::cpu::Cpu;
use farpost_models::gguf::File;
use farpost_models::tokenizer::Special;

/// Ways of pooling by the numbers of files, and as the golden numbers call them.
const POOLINGS: [(u32, &str); 3] = [(1, "mean"), (2, "cls"), (3, "last")];
/// Numbers of a vector of length 1; sums differ in their order only.
const BOUND: f32 = 1e-5;

fn open(pooling: u32) -> Arc<Model> {
    let file = File::from_bytes("embedder.gguf", file(pooling).into()).unwrap();
    Arc::new(Model::from_file(file, &ModelOptions::default()).unwrap())
}

fn engine(model: &Arc<Model>, options: &EngineOptions) -> Engine {
    let options = EngineOptions { kv_type: KvType::F32, ..options.clone() };
    Engine::open(Arc::clone(model), Arc::new(Cpu::detect()), &options).unwrap()
}

#[test]
fn a_session_gives_the_numbers_of_llama_cpp() {
    let (text, texts) = golden();
    for (pooling, name) in POOLINGS {
        let model = open(pooling);
        assert_eq!(model.pooling().unwrap().name(), name);
        // The file asks for an end token.
        assert_eq!(model.tokenizer().encode_prompt(&text, Special::AsText), texts[0].ids);
        for batch_rows in [3, 512] {
            let options = SessionOptions { kv_type: KvType::F32, batch_rows, ..SessionOptions::default() };
            let mut session = Session::open(Arc::clone(&model), &Cpu::detect(), &options).unwrap();
            for text in &texts {
                let found = session.embed(&text.ids, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
                let apart = apart(&found, &text.by(name));
                assert!(apart < BOUND, "{name}, {batch_rows} rows: {apart}");
            }
            assert_eq!(session.embed(&texts[0].ids, &mut |_| ControlFlow::Break(())).unwrap(), None);
        }
    }
}

#[test]
fn an_engine_gives_them_in_any_company() {
    let (_, texts) = golden();
    for (pooling, name) in POOLINGS {
        let model = open(pooling);
        // Steps of few rows, so that texts come in parts, and fewer places than texts.
        let engine = engine(&model, &EngineOptions { max_running: 3, batch_rows: 5, ..EngineOptions::default() });
        let written = engine.submit(&Request::new(vec![5, 6, 7], GenerateOptions::default())).unwrap();
        let streams: Vec<_> = (0..12)
            .map(|number| {
                let request = Request {
                    reproducible: number % 4 == 3,
                    ..Request::embedding(texts[number % texts.len()].ids.clone())
                };
                engine.submit(&request).unwrap()
            })
            .collect();
        for (number, stream) in streams.into_iter().enumerate() {
            let found = stream.embedding().unwrap().unwrap();
            let apart = apart(&found, &texts[number % texts.len()].by(name));
            assert!(apart < BOUND, "{name}, {number}: {apart}");
        }
        drop(written);
        assert!(engine.drain(Duration::from_secs(60)));
        assert_eq!(engine.holdings().requests, 0);
    }
}

#[test]
fn only_what_the_last_token_has_seen_is_shared() {
    let long: Vec<u32> = (0..200).map(|place| place * 7 % 500).collect();
    for (pooling, name) in POOLINGS {
        let engine = engine(&open(pooling), &EngineOptions::default());
        let first = engine.submit(&Request::embedding(long.clone())).unwrap().embedding().unwrap().unwrap();
        let stream = engine.submit(&Request::embedding(long.clone())).unwrap();
        let (mut again, mut cached) = (Vec::new(), 0);
        for event in stream {
            match event {
                StreamEvent::Embedding(numbers) => again = numbers,
                StreamEvent::Done { timings, .. } => {
                    assert_eq!((timings.prompt_tokens, timings.generated_tokens), (200, 0));
                    cached = timings.cached_tokens;
                }
                _ => {}
            }
        }
        assert!(apart(&again, &first) < BOUND, "{name}");
        assert_eq!(cached > 0, name == "last", "{name}: {cached}");
    }
}

#[test]
fn what_makes_no_embeddings_says_so() {
    let model = Arc::new(Model::open(&model("tiny-qwen3.gguf"), &ModelOptions::default()).unwrap());
    let submit = |engine: &Engine, ids: Vec<u32>| engine.submit(&Request::embedding(ids)).err().unwrap();
    let error = submit(&engine(&model, &EngineOptions::default()), vec![1]);
    assert!(matches!(error, Refusal::Invalid(EngineError::NoEmbeddings { .. })), "{error}");
    assert!(error.to_string().ends_with("makes no embeddings, expected a model whose file names a pooling_type"));
    let mut session = Session::open(Arc::clone(&model), &Cpu::detect(), &SessionOptions::default()).unwrap();
    let error = session.embed(&[1], &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, EngineError::NoEmbeddings { .. }), "{error}");
    let engine = engine(&open(3), &EngineOptions::default());
    let several = engine.submit(&Request { n: 2, ..Request::embedding(vec![1]) }).err().unwrap();
    assert_eq!(several.to_string(), "n is 2, expected 1 for an embedding");
    assert!(matches!(submit(&engine, vec![512]), Refusal::Invalid(EngineError::NoSuchToken { .. })));
    assert!(matches!(submit(&engine, vec![1; 513]), Refusal::Invalid(EngineError::PromptTooLong { .. })));
    let late = Request { deadline: Some(Duration::ZERO), ..Request::embedding(vec![1; 500]) };
    // Refused, or ended before it was made.
    assert!(!matches!(engine.submit(&late).map(Stream::embedding), Ok(Ok(Some(_)))));
}
