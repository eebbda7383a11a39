//! A hostile file of keys: refused with a message, or read.

#![no_main]

use farpost::server::Keys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(error) = Keys::parse(text)
    {
        assert!(!error.to_string().is_empty());
    }
});
