//! A hostile body for one of the routes that take one: refused with a message of bounded length, or read. Its prompt is
//! rendered and made into tokens, and its schemas are compiled; nothing is run.

#![no_main]

use std::sync::{Arc, LazyLock};

use farpost::Model;
use farpost::engine::{Engine, EngineOptions};
use farpost::kernels::cpu::Cpu;
use farpost::server::fuzzing::{Bodies, Route};
use libfuzzer_sys::fuzz_target;

static BODIES: LazyLock<Bodies> = LazyLock::new(|| {
    let model = Arc::new(Model::pocket().expect("the built-in model opens"));
    let engine = Engine::open(model, Arc::new(Cpu::detect()), &EngineOptions::default()).expect("there is memory");
    Bodies::new(engine)
});

fuzz_target!(|bytes: &[u8]| {
    let Some((route, body)) = bytes.split_first() else { return };
    let routes = [Route::Chat, Route::Completions, Route::Tokenize, Route::Detokenize, Route::Embeddings];
    let route = routes[usize::from(*route) % routes.len()];
    if let Err(message) = BODIES.read(route, body) {
        // Names of fields and values are told as they came.
        assert!(message.len() < 10_000 + 4 * body.len(), "{message}");
    }
});
