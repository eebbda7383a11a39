//! What a model writes: reasoning, answer and calls are told apart the same, however the text falls into pieces, and the
//! arguments of every call that no grammar saw to are a JSON object.

#![no_main]

use farpost::server::fuzzing::turn;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [family, at, text @ ..] = bytes else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (is_enforced, is_thinking) = (at & 0x80 != 0, at & 0x40 != 0);
    let read = |ends: &[usize]| turn(usize::from(*family), is_enforced, is_thinking, text, ends);
    let whole = read(&[]);
    let single: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    assert_eq!(read(&single), whole);
    assert_eq!(read(&[usize::from(at & 0x3F)]), whole);
    for (_, arguments) in whole.2.iter().filter(|_| !is_enforced) {
        assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(arguments).is_ok(), "{arguments}");
    }
});
