//! Whole models: logits against golden data of independent software and against a second opinion in candle.

mod golden;
mod reference;

use farpost_models::gguf::File;
use golden::{Golden, TINY, largest_error};
use reference::{Memory, Reference};

/// Context that the golden logits were made with: beyond the original one of phi3, which so takes its long factors.
const CONTEXT: usize = 1024;

/// Largest difference of a logit, as a share of the row's largest.
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
            let id = golden::greedy(&last);
            assert_eq!(id, *expected, "{name}, step {step}");
            last = reference.go_on(&mut memory, &[id]).unwrap().remove(0);
        }
    }
}
