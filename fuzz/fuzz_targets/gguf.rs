//! Any bytes as a GGUF file: refused, or every value and every byte of every tensor can be read.

#![no_main]

use farpost_models::gguf::File;
use libfuzzer_sys::fuzz_target;

#[path = "../../models/tests/gguf_hostile/touch.rs"]
mod touch;

fuzz_target!(|bytes: &[u8]| {
    match File::from_bytes("fuzz.gguf", bytes.to_vec().into()) {
        Ok(file) => assert!(touch::touch(&file) <= bytes.len() as u64),
        // A message is for people: it names the file and does not grow with it.
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("fuzz.gguf: ") && error.len() < 2000, "{error}");
        }
    }
});
