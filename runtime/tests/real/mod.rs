//! A real model, Gemma 3 270M in mixed block types, against what independent software makes of the same file.
//!
//! That software rounds activations its own way, so logits are compared as distributions, and continuations up to the
//! first near tie.

use farpost_kernels::backend::{Activations, KvType};
use farpost_models::gguf::File;
use serde_json::Value;

use crate::device::Device;
use crate::golden::{divergence, greedy};
use crate::reference::Reference;

/// Enough for every prompt and its continuation.
const CONTEXT: usize = 512;

/// Logits closer than this may come out in another order where activations are rounded otherwise.
const NEAR_TIE: f32 = 0.3;

/// Divergence among the golden twenty, in nats.
///
/// The golden logits carry the rounding of activations of the software they come from. Measured against the same weights
/// decoded and computed in f64 (the plain backend), position by position: they are 1.9e-4 to 1.24e-2 apart from that, the
/// most at position 5, ours 2.2e-5 to 8.9e-4, the most at position 7. Ours are 2.6e-4 to 1.25e-2 apart from the golden ones,
/// nowhere more than 1.9e-3 further than the exact ones are.
const MOST_GOLDEN_DIVERGENCE: f64 = 0.015;

fn file() -> File {
    File::open(&farpost_firmware_tests::model("gemma-3-270m-q4_k_m.gguf")).unwrap()
}

fn expected() -> Value {
    let text = std::fs::read(farpost_firmware_tests::golden("models/gemma3-270m.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn the_likeliest_tokens_of_every_position_are_the_golden_ones() {
    let expected = &expected()["top20"];
    let logits = Device::open(&file(), CONTEXT, KvType::default()).go_on(&ids(&expected["prompt_ids"]));
    let positions = expected["positions"].as_array().unwrap();
    assert!(logits.len() == positions.len() && !logits.is_empty());
    for (position, (found, golden)) in logits.iter().zip(positions).enumerate() {
        let ids = ids(&golden["id"]);
        let golden: Vec<f32> =
            golden["logit"].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap() as f32).collect();
        let same: Vec<f32> = ids.iter().map(|id| found[*id as usize]).collect();
        let (best, apart) = (greedy(found), divergence(&golden, &same));
        println!("position {position}: best {best}, golden {}, divergence {apart:.1e}", ids[0]);
        let is_tied = golden.iter().zip(&ids).any(|(logit, id)| *id == best && golden[0] - logit < NEAR_TIE);
        assert!(best == ids[0] || is_tied, "position {position}: {best}, golden {}", ids[0]);
        assert!(apart < MOST_GOLDEN_DIVERGENCE, "position {position}: divergence {apart} among the golden twenty");
    }
}

#[test]
fn continuations_are_the_golden_ones_up_to_a_near_tie() {
    let mut device = Device::open(&file(), CONTEXT, KvType::default());
    let (mut n_equal, mut n_golden) = (0, 0);
    for case in expected()["greedy"].as_array().unwrap() {
        device.restart();
        let mut last = device.go_on(&ids(&case["prompt_ids"])).pop().unwrap();
        let golden = ids(&case["greedy"]);
        n_golden += golden.len();
        for (step, id) in golden.iter().enumerate() {
            let best = greedy(&last);
            if best != *id {
                let gap = last[best as usize] - last[*id as usize];
                println!("{}: step {step} of {}, gap {gap:.3}", case["prompt"], golden.len());
                assert!(gap < NEAR_TIE, "{}: step {step}: {best}, golden {id}, gap {gap}", case["prompt"]);
                break;
            }
            n_equal += 1;
            last = device.go_on(&[*id]).remove(0);
        }
    }
    println!("{n_equal} of {n_golden} tokens before the first near tie");
    assert!(n_equal * 2 > n_golden, "only {n_equal} of {n_golden} tokens are as expected");
}

/// Divergence from the same weights in f32, in nats.
const MOST_DIVERGENCE: f64 = 1e-3;

#[test]
fn greedy_choices_are_those_of_the_same_weights_in_f32() {
    let file = file();
    let reference = Reference::open(&file, CONTEXT).unwrap();
    let mut device = Device::open_with(&file, CONTEXT, KvType::default(), Activations::Int8);
    let (mut n, mut n_equal, mut n_equal_or_tied, mut apart) = (0, 0, 0, 0.0);
    for case in expected()["greedy"].as_array().unwrap() {
        let agreement = crate::greedy_agreement(&mut device, &reference, &ids(&case["prompt_ids"]), 35);
        println!("{}: {agreement}", case["prompt"]);
        n += agreement.n;
        n_equal += agreement.n_equal;
        n_equal_or_tied += agreement.n_equal_or_tied;
        apart += agreement.mean() * agreement.n as f64;
    }
    let apart = apart / n as f64;
    println!("{n_equal} of {n} equal, {n_equal_or_tied} with ties, divergence {apart:.1e}");
    assert!(n >= 200 && n_equal * 100 >= n * 99, "{n_equal} of {n} tokens agree");
    assert!(n_equal_or_tied * 100 >= n * 99, "{n_equal_or_tied} of {n} tokens agree or tie");
    assert!(apart < MOST_DIVERGENCE, "divergence {apart}");
}
