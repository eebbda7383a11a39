//! Several models under one cap: loaded on demand, pinned, unloaded, and refused when nothing more can give way.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use farpost::engine::{
    Engine, EngineOptions, GenerateOptions, LoadError, Models, ModelsOptions, Opened, Refusal, Request, Sampling,
};
use farpost::{Model, ModelOptions};
use farpost_firmware_tests::model;
use farpost_kernels::cpu::Cpu;

fn path(name: &str) -> PathBuf {
    if name == "none" { PathBuf::from("no such model.gguf") } else { model(&format!("tiny-{name}.gguf")) }
}

fn models(memory_cap: Option<u64>, idle: Option<Duration>) -> Models {
    let engine = EngineOptions { context: Some(128), threads: 1, batch_rows: 16, ..EngineOptions::default() };
    let open = move |name: &str| Ok(Opened::new(Model::open(&path(name), &ModelOptions::default())?, engine.clone()));
    Models::new(Box::new(open), Arc::new(Cpu::detect()), ModelsOptions { memory_cap, idle })
}

fn bytes(models: &Models) -> u64 {
    models.loaded().iter().map(|loaded| loaded.memory.kv + loaded.memory.scratch).sum()
}

fn names(models: &Models) -> Vec<String> {
    let mut names: Vec<String> = models.loaded().into_iter().map(|loaded| loaded.name).collect();
    names.sort();
    names
}

fn request(max_tokens: usize) -> Request {
    let options = GenerateOptions {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    Request::new(vec![5, 6, 7], options)
}

fn answers(engine: &Engine) -> bool {
    engine.submit(&request(3)).unwrap().finish().unwrap()[0].ids.len() == 3
}

#[test]
fn the_least_recently_used_gives_way_and_what_is_pinned_or_works_does_not() {
    let all = models(None, None);
    assert!(["llama", "qwen2", "qwen3"].iter().all(|name| answers(&all.get(name).unwrap())));
    let whole = bytes(&all);
    // Any two fit, three do not.
    let most_two = all.loaded().iter().map(|of| whole - of.memory.kv - of.memory.scratch).max().unwrap();
    let models = models(Some((most_two + whole) / 2), None);
    assert!(answers(&models.get("llama").unwrap()) && answers(&models.get("qwen2").unwrap()));
    assert!(answers(&models.get("llama").unwrap()));
    assert!(answers(&models.get("qwen3").unwrap()));
    assert_eq!(names(&models), ["llama", "qwen3"]);
    assert!(models.pin("llama", true) && !models.pin("qwen2", true));
    let unloaded = models.get("qwen3").unwrap();
    assert!(answers(&models.get("qwen2").unwrap()));
    assert_eq!(names(&models), ["llama", "qwen2"]);
    assert!(matches!(unloaded.submit(&request(1)), Err(Refusal::Closed)));
    // The other one works: the new one gets what is left, if that is one context.
    let stream = models.get("qwen2").unwrap().submit(&request(120)).unwrap();
    let third = models.get("qwen3");
    assert_eq!(stream.finish().unwrap()[0].ids.len(), 120);
    match third {
        Ok(engine) => assert!(answers(&engine)),
        Err(error) => assert!(matches!(error, LoadError::Memory { .. }), "{error}"),
    }
    assert!(models.unload("llama", Duration::from_secs(9)) && !models.unload("llama", Duration::ZERO));
}

#[test]
fn a_model_that_does_not_fit_alone_is_refused_with_the_bytes_it_needs() {
    let models = models(Some(10_000), None);
    let error = models.get("llama").err().expect("it is refused").to_string();
    assert!(
        error.starts_with("model 'llama' needs ") && error.ends_with("10000 of the cap of 10000 can be had"),
        "{error}"
    );
    assert!(models.loaded().is_empty());
    assert!(matches!(models.get("none"), Err(LoadError::Model(_))));
}

#[test]
fn a_model_that_can_never_fit_makes_no_other_give_way() {
    let all = models(None, None);
    all.get("llama").unwrap();
    all.get("qwen2").unwrap();
    let options = EngineOptions { context: Some(1 << 17), threads: 1, ..EngineOptions::default() };
    let open = move |name: &str| match name {
        "large" => Ok(Opened::new(
            Model::open(&path("llama"), &ModelOptions { context: Some(1 << 17), ..ModelOptions::default() })?,
            options.clone(),
        )),
        name => {
            let engine = EngineOptions { context: Some(128), threads: 1, batch_rows: 16, ..EngineOptions::default() };
            Ok(Opened::new(Model::open(&path(name), &ModelOptions::default())?, engine))
        }
    };
    let cap = bytes(&all) + (1 << 20);
    let models =
        Models::new(Box::new(open), Arc::new(Cpu::detect()), ModelsOptions { memory_cap: Some(cap), idle: None });
    assert!(answers(&models.get("llama").unwrap()) && answers(&models.get("qwen2").unwrap()));
    match models.get("large").err() {
        Some(LoadError::Memory { needed_bytes, free_bytes, cap_bytes, .. }) => {
            assert!(needed_bytes > free_bytes && free_bytes <= cap_bytes && cap_bytes == cap);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(names(&models), ["llama", "qwen2"]);
}

#[test]
fn what_idles_is_unloaded_but_for_what_is_pinned_and_comes_back_when_asked_for() {
    let models = models(None, Some(Duration::ZERO));
    assert!(answers(&models.get("llama").unwrap()) && answers(&models.get("qwen2").unwrap()));
    models.pin("qwen2", true);
    assert_eq!(models.unload_idle(), ["llama"]);
    assert_eq!(names(&models), ["qwen2"]);
    assert!(answers(&models.get("llama").unwrap()));
}

#[test]
fn many_who_ask_at_once_get_one_engine() {
    let models = models(None, None);
    std::thread::scope(|scope| {
        for name in ["llama", "qwen2", "llama", "qwen2", "llama"] {
            scope.spawn(|| assert!(answers(&models.get(name).unwrap())));
        }
    });
    assert_eq!(names(&models), ["llama", "qwen2"]);
}

#[test]
fn a_model_that_is_unloaded_holds_its_slot_until_its_memory_is_free() {
    let all = models(None, None);
    assert!(answers(&all.get("llama").unwrap()));
    let cap = bytes(&all) * 3 / 2;
    // Who wants the same model, and who wants another one: there is room for one of them.
    for wanted in ["llama", "qwen2"] {
        let models = models(Some(cap), None);
        let engine = models.get("llama").unwrap();
        let mut stream = engine.submit(&request(120)).unwrap();
        assert!(stream.next().is_some());
        std::thread::scope(|scope| {
            let unloading = scope.spawn(|| models.unload("llama", Duration::from_secs(60)));
            while engine.submit(&request(1)).is_ok() {
                std::thread::yield_now();
            }
            // It takes no more, and is there as long as it works.
            assert_eq!(names(&models), ["llama"]);
            assert!(!models.unload("llama", Duration::ZERO) && !models.pin("llama", true) && !models.touch("llama"));
            let waiting = scope.spawn(|| answers(&models.get(wanted).unwrap()));
            assert_eq!(stream.finish().unwrap()[0].ids.len(), 120);
            assert!(unloading.join().unwrap() && waiting.join().unwrap());
        });
        assert_eq!(names(&models), [wanted]);
    }
}
