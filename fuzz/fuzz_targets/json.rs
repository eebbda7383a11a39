//! A hostile body as JSON: refused, or an object that comes back the same when it is written and read again.

#![no_main]

use farpost::server::fuzzing::json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = json(bytes) {
        assert_eq!(json(text.as_bytes()).as_ref(), Ok(&text));
    }
});
