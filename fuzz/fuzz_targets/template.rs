//! A hostile template, and after a NUL byte a hostile message: rendered within the bounds of work and size, and encoded
//! so that every id is in the vocabulary.

#![no_main]

use std::sync::LazyLock;

use farpost_models::gguf::File;
use farpost_models::template::{ChatTemplate, CivilTime, RenderInput};
use farpost_models::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// What the bound of output comes to, with the input's own size on top.
const MOST_BYTES: usize = 17 << 20;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let file = File::from_bytes("vocabulary.gguf", farpost_fuzz::byte_level().into()).expect("a good file");
    Tokenizer::from_metadata(file.metadata()).expect("a good vocabulary")
});

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let (source, message) = text.split_once('\0').unwrap_or((&text, "a message"));
    let Ok(template) = ChatTemplate::for_tokenizer(source, &TOKENIZER) else { return };
    let messages = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": message},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": message, "arguments": {"x": 1.5}}}]},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "set_light", "parameters": {"on": [true, null]}}}]);
    let input = RenderInput { tools, now: CivilTime::from_unix(0), ..RenderInput::new(messages) };
    match template.render(&input) {
        Ok(rendered) => assert!(rendered.len() <= MOST_BYTES),
        Err(error) => assert!(error.to_string().len() < 20_000, "{error}"),
    }
    if let Ok(prompt) = template.prompt(&TOKENIZER, &input) {
        // Encoding is another target's business: a megabyte is enough here.
        if prompt.text.len() < 1 << 20 {
            let n_vocab = TOKENIZER.n_vocab() as u32;
            assert!(prompt.encode(&TOKENIZER).iter().all(|&id| id < n_vocab));
        }
    }
});
