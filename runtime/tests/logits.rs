//! Whole models: logits against golden data of independent software and against a second opinion in candle.

mod device;
#[cfg(feature = "cuda")]
#[path = "../../kernels/tests/emulator/mod.rs"]
mod emulator;
mod golden;
mod real;
mod reference;

use std::ops::ControlFlow;

use device::Device;
use farpost_kernels::backend::{Activations, KvType};
use farpost_models::gguf::File;
use farpost_models::quantize::{self, Mixture, quantize_file};
use golden::{Agreement, Golden, TINY, greedy, largest_error};
use reference::{Memory, Reference};

/// Context that the golden logits were made with: beyond the original one of phi3, which so takes its long factors.
const CONTEXT: usize = 1024;

/// Largest difference of a logit, as a share of the row's largest. Without Gemma a hundredth of it would do: the golden
/// logits of Gemma come from a table of GELU in halves.
const MOST_ERROR: f64 = 1e-3;

#[test]
fn the_reference_gives_the_golden_logits_and_continuations_of_every_tiny_model() {
    for name in TINY {
        let golden = Golden::read(name);
        let file = File::open(&golden.path()).unwrap();
        let reference = Reference::open(&file, CONTEXT).unwrap();
        let logits = reference.logits(&golden.prompt).unwrap();
        let error = largest_error(&logits, &golden.logits);
        println!("{name}: largest error of the reference {error:.1e}");
        assert!(error < MOST_ERROR, "{name}: {error}");

        let mut memory = Memory::default();
        let mut last = reference.go_on(&mut memory, &golden.prompt).unwrap().pop().unwrap();
        for (step, expected) in golden.greedy.iter().enumerate() {
            let id = greedy(&last);
            assert_eq!(id, *expected, "{name}, step {step}");
            last = reference.go_on(&mut memory, &[id]).unwrap().remove(0);
        }
    }
}

#[test]
fn the_processor_gives_the_golden_logits_and_continuations_of_every_tiny_model() {
    for name in TINY {
        let golden = Golden::read(name);
        let file = File::open(&golden.path()).unwrap();
        let mut device = Device::open(&file, CONTEXT, KvType::F32);
        let logits = device.go_on(&golden.prompt);
        let reference = Reference::open(&file, CONTEXT).unwrap().logits(&golden.prompt).unwrap();
        let (of_golden, of_reference) = (largest_error(&logits, &golden.logits), largest_error(&logits, &reference));
        println!("{name}: largest error {of_golden:.1e} against golden data, {of_reference:.1e} against the reference");
        assert!(of_golden < MOST_ERROR && of_reference < MOST_ERROR, "{name}: {of_golden}, {of_reference}");

        let mut last = logits.into_iter().next_back().unwrap();
        for (step, expected) in golden.greedy.iter().enumerate() {
            let id = greedy(&last);
            assert_eq!(id, *expected, "{name}, step {step}");
            last = device.go_on(&[id]).remove(0);
        }
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn a_graphics_processor_gives_the_golden_logits_and_continuations_of_every_tiny_model() {
    use farpost_kernels::wgpu::{Adapters, Wgpu};
    match Wgpu::open(Adapters::Any) {
        Ok(graphics) => gives_the_golden_logits(&graphics),
        Err(error) => println!("skipped: {error}; install a Vulkan driver"),
    }
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_gives_the_golden_logits_and_continuations_of_every_tiny_model() {
    if let Some(cuda) = emulator::open(90) {
        gives_the_golden_logits(&cuda);
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn gives_the_golden_logits(backend: &dyn farpost_kernels::backend::Backend) {
    for name in TINY {
        let golden = Golden::read(name);
        let file = File::open(&golden.path()).unwrap();
        let mut device = Device::open_on(backend, &file, CONTEXT, KvType::F32, Activations::Auto);
        let logits = device.go_on(&golden.prompt);
        let processor = Device::open(&file, CONTEXT, KvType::F32).go_on(&golden.prompt);
        let (of_golden, of_processor) = (largest_error(&logits, &golden.logits), largest_error(&logits, &processor));
        println!("{name}: largest error {of_golden:.1e} against golden data, {of_processor:.1e} against the processor");
        assert!(of_golden < MOST_ERROR && of_processor < MOST_ERROR, "{name}: {of_golden}, {of_processor}");

        let mut last = logits.into_iter().next_back().unwrap();
        for (step, expected) in golden.greedy.iter().enumerate() {
            let id = greedy(&last);
            assert_eq!(id, *expected, "{name}, step {step}");
            last = device.go_on(&[id]).remove(0);
        }
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn a_token_takes_as_many_dispatches_as_the_page_says() {
    use farpost_kernels::backend::{Backend, Limits};
    use farpost_kernels::wgpu::{Adapters, Wgpu};
    use farpost_models::families::{self, Options};
    let graphics = match Wgpu::open(Adapters::Any) {
        Ok(graphics) => graphics,
        Err(error) => return println!("skipped: {error}; install a Vulkan driver"),
    };
    for name in TINY {
        let file = File::open(&Golden::read(name).path()).unwrap();
        let graph = families::build(&file, &Options { context: Some(64) }).unwrap().graph;
        let limits = Limits { max_rows: 4, kv_tokens: 64, ..Limits::default() };
        let found = graphics.compile(&graph, &limits).unwrap().n_dispatches();
        let of_layer = match name {
            "llama" | "llama-freqs" | "qwen2" | "qwen3" | "phi3" => 6,
            _ => 8,
        };
        assert_eq!(found, Some(of_layer * graph.kv_layers().len() + 4), "{name}");
    }
}

#[test]
fn half_and_eight_bit_caches_change_logits_little() {
    for name in TINY {
        let golden = Golden::read(name);
        let file = File::open(&golden.path()).unwrap();
        for (kv_type, most) in [(KvType::F16, 1e-5), (KvType::Q8_0, 1e-3)] {
            let logits = Device::open(&file, CONTEXT, kv_type).go_on(&golden.prompt);
            let agreement = Agreement::of(&golden.logits, &logits);
            println!("{name}, keys and values as {kv_type:?}: {agreement}");
            // Not the mean: among random experts the least rounding can switch one at some position.
            assert!(agreement.median() < most, "{name}, {kv_type:?}: {agreement}");
        }
    }
}

/// Runs `device` on from `prompt`, always choosing the likeliest token, and compares each choice with what `reference`
/// says after the same tokens.
fn greedy_agreement(device: &mut Device, reference: &Reference, prompt: &[u32], n_tokens: usize) -> Agreement {
    device.restart();
    let mut found = vec![device.go_on(prompt).pop().unwrap()];
    let mut ids = prompt.to_vec();
    while found.len() < n_tokens {
        let id = greedy(&found[found.len() - 1]);
        ids.push(id);
        found.append(&mut device.go_on(&[id]));
    }
    let expected = reference.logits(&ids).unwrap();
    Agreement::of(&expected[prompt.len() - 1..], &found)
}

/// Mixtures that tiny models are quantized to: every kind of block type among them.
const MIXTURES: [&str; 6] = ["q4_0", "q8_0", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs"];

/// Calls `check` with every tiny model in every mixture: its name and how well a run of 200 greedy tokens agrees with the
/// same weights in f32.
fn for_quantized_models(activations: Activations, mut check: impl FnMut(&str, &Agreement)) {
    let folder = std::env::temp_dir().join(format!("farpost-logits-{}-{}", activations.name(), std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in TINY {
        let golden = Golden::read(name);
        let file = File::open(&golden.path()).unwrap();
        for mixture in MIXTURES {
            let path = folder.join(format!("{name}-{mixture}.gguf"));
            let options = quantize::Options { mixture: Mixture::from_name(mixture).unwrap(), threads: 0 };
            quantize_file(&file, &path, &options, &mut |_| ControlFlow::Continue(())).unwrap();
            let quantized = File::open(&path).unwrap();
            std::fs::remove_file(&path).unwrap();

            let reference = Reference::open(&quantized, CONTEXT).unwrap();
            // What halves of keys and values change is measured by itself: they too can switch an expert.
            let mut device = Device::open_with(&quantized, CONTEXT, KvType::F32, activations);
            let agreement = greedy_agreement(&mut device, &reference, &golden.prompt, N_TOKENS);
            let name = format!("{name} {mixture} {}", activations.name());
            println!("{name}: {agreement}");
            check(&name, &agreement);
        }
    }
    std::fs::remove_dir(&folder).unwrap();
}

/// Tokens that quantized models write.
const N_TOKENS: usize = 200;

#[test]
fn quantized_models_agree_with_their_own_weights_in_f32() {
    for_quantized_models(Activations::Auto, |name, agreement| {
        assert!(agreement.n_equal * 100 >= N_TOKENS * 99, "{name}: {agreement}");
        assert!(agreement.mean() < 1e-3, "{name}: {agreement}");
    });
}

#[test]
fn coarsely_rounded_activations_change_little_even_in_models_with_random_weights() {
    for_quantized_models(Activations::Int8, |name, agreement| {
        if name.contains("moe") {
            // Random routers hardly prefer one expert to the next: rounded inputs switch experts at some positions, and
            // those after them see it.
            assert!(agreement.n_equal_or_tied * 100 >= N_TOKENS * 90, "{name}: {agreement}");
            assert!(agreement.median() < 5e-3, "{name}: {agreement}");
        } else {
            // Random weights give flat logits: rounding alone decides between the best two at some positions.
            assert!(agreement.n_equal_or_tied * 100 >= N_TOKENS * 99, "{name}: {agreement}");
            assert!(agreement.mean() < 1e-3, "{name}: {agreement}");
        }
    });
}
