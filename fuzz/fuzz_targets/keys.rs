//! A hostile file of keys: refused with a message, or read.

#![no_main]

use farpost::server::fuzzing::keys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(message) = keys(text)
    {
        assert!(!message.is_empty());
    }
});
