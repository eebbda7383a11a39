//! Small valid files: what the fuzz targets start from.

use farpost_kernels::tensor::DType;
use farpost_models::gguf::{OwnedValue, TensorData, Writer};

/// A token: its text, its type, its score.
type Token = (String, i32, f32);

/// Chat templates that use much of what templates can do.
pub const TEMPLATES: [&str; 3] = [
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message['content'] | trim }}\
     <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{%- macro call(c) -%}{{ c.function.name }}({{ c.function.arguments | tojson(indent=2) }}){%- endmacro -%}\
     {% set ns = namespace(n=0) %}{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}\
     {% if m.tool_calls is defined %}{{ m.tool_calls | map('string') | join(', ') }}{{ call(m.tool_calls[0]) }}\
     {% elif m.content is string %}{{ m.content.strip().split('\\n')[-1].replace('a', 'b') }}{% endif %}\
     {% endfor %}{{ ns.n }}{{ tools | tojson if tools is not none else '' }}",
    "{{ strftime_now('%d %B %Y') }}{% for i in range(7) %}{% if loop.index0 is odd %}{% continue %}{% endif %}\
     {{ '%s' | upper }}{{ messages[0].content[:3] }}{% endfor %}{% generation %}x{% endgeneration %}\
     {% if messages | length > 9 %}{{ raise_exception('too many') }}{% endif %}",
];

/// Bodies of requests, each with the number of its route as the target `request` takes it.
pub const BODIES: [(u8, &str); 11] = [
    (0, r#"{"model":"pocket","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true},"n":2,"seed":-1,"stop":["a"],"logit_bias":{"5":-1.5},"logprobs":true,"top_logprobs":2}"#),
    (0, r#"{"model":"pocket","messages":[{"role":"system","content":[{"type":"text","text":"x"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"c","content":"ok"}],"tools":[{"type":"function","function":{"name":"f","description":"d","strict":true,"parameters":{"type":"object","properties":{"a":{"type":"integer","minimum":0}},"required":["a"]}}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}},"parallel_tool_calls":false}"#),
    (0, r#"{"model":"pocket","messages":[{"role":"user","content":"hi"}],"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"}}},"reasoning_effort":"none","chat_template_kwargs":{},"deadline_ms":5,"priority":"low"}"#),
    (1, r#"{"model":"pocket","prompt":"hi","max_tokens":3,"logprobs":1,"temperature":0.5,"top_p":0.9,"regex":"a|b"}"#),
    (1, r#"{"model":"pocket","prompt":["a",[1,2,3]],"echo":false,"mirostat_tau":5,"mirostat_eta":0.1}"#),
    (1, r#"{"model":"pocket","prompt":[1,2],"grammar":"start: \"a\"","metadata":{"a":"b"},"store":false}"#),
    (2, r#"{"model":"pocket","prompt":"hi","add_special_tokens":false,"return_token_strs":true}"#),
    (2, r#"{"model":"pocket","messages":[{"role":"developer","content":"hi","name":"n"}]}"#),
    (3, r#"{"model":"pocket","tokens":[1,2,1023]}"#),
    (4, r#"{"model":"pocket","input":["hi",[1,2,3]],"encoding_format":"base64","dimensions":8,"user":"u"}"#),
    (4, r#"{"model":"pocket","input":[5,6],"priority":"high","deadline_ms":9,"supersede_key":"k"}"#),
];

/// A file of keys.
pub const KEYS: &str = r#"{"keys":[{"id":"a","sha256":"0000000000000000000000000000000000000000000000000000000000000000","scopes":["infer","metrics"],"models":["pocket"]}]}"#;

/// What models of several families write.
pub const TURNS: [&str; 6] = [
    "<think>\nso\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\"}}\n</tool_call>",
    "ok [TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"f_2\", \"arguments\": {}}]",
    "<|tool_call|>[{\"arguments\": \"{}\", \"name\": \"f\"}]",
    "<|tool_call|>[{\"name\": \"f\"}]<|/tool_call|>",
    "{\"name\": \"f\", \"parameters\": {\"a\": [1, {}]}}; {\"name\": \"f_2\", \"parameters\": {}}",
    "{\"tool\":\"f\",\"arguments\":{\"b\":\"\\\"\"}} {\"tool\":\"none\"}",
];

fn finished(writer: Writer) -> Vec<u8> {
    let mut data = writer.start("seed.gguf", Vec::new()).expect("a good head");
    while let Some((name, bytes)) = data.next_tensor().map(|(name, bytes)| (name.to_owned(), bytes as usize)) {
        data.append(&name, &vec![0x5A; bytes]).expect("as many bytes as were asked for");
    }
    TensorData::finish(data).expect("all tensors are whole")
}

/// A file with a value of every kind and a tensor of every type.
pub fn every_kind() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").set("general.alignment", 8_u32);
    writer.set("llama.block_count", 2_u32).set("llama.embedding_length", 64_u64).set("llama.context_length", 128_u16);
    writer.set("llama.attention.head_count", &[4_u32, 2][..]).set("llama.attention.key_length", 16_i32);
    writer.set("f", 1.5_f32).set("d", -0.25_f64).set("b", true).set("i8", -1_i8).set("u8", 1_u8).set("i64", i64::MIN);
    writer.set("flags", &[true, false][..]).set("words", &["", "one"][..]).set("x", &[0.5_f32][..]);
    for dtype in DType::all() {
        writer.tensor(dtype.name(), dtype, &[dtype.block_len()]).expect("a good tensor");
    }
    finished(writer)
}

fn vocabulary(model: &str, pre: Option<&str>, tokens: &[Token], merges: &[&str]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.set("general.name", "Phi-3 seed").set("tokenizer.ggml.model", model);
    if let Some(pre) = pre {
        writer.set("tokenizer.ggml.pre", pre);
    }
    writer.set("tokenizer.ggml.tokens", OwnedValue::texts(tokens.iter().map(|token| &token.0)));
    writer.set("tokenizer.ggml.token_type", &tokens.iter().map(|token| token.1).collect::<Vec<_>>()[..]);
    writer.set("tokenizer.ggml.scores", &tokens.iter().map(|token| token.2).collect::<Vec<_>>()[..]);
    writer.set("tokenizer.ggml.merges", merges);
    writer.set("tokenizer.ggml.bos_token_id", 1_u32).set("tokenizer.ggml.eos_token_id", 2_u32);
    writer.set("tokenizer.ggml.unknown_token_id", 0_u32);
    finished(writer)
}

fn with_specials(more: Vec<Token>) -> Vec<Token> {
    let special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<think>", 4)];
    let special = special.iter().map(|&(text, kind)| (text.to_owned(), kind, 0.0));
    special.chain(more).collect()
}

/// A byte-level vocabulary.
pub fn byte_level() -> Vec<u8> {
    let codes = (0x21..0x7F).chain(0xA1..0xAD).chain(0xAE..0x144);
    let mut bytes: Vec<Token> = codes.filter_map(char::from_u32).map(|c| (c.to_string(), 1, 0.0)).collect();
    bytes.extend(["ab", "Ġa", "Ġab", "ll", "llo"].map(|text| (text.to_owned(), 1, 0.0)));
    vocabulary("gpt2", Some("gpt-2"), &with_specials(bytes), &["a b", "Ġ a", "Ġa b", "l l", "ll o"])
}

/// A SentencePiece vocabulary.
pub fn sentence_pieces() -> Vec<u8> {
    let mut pieces: Vec<Token> = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), 6, 0.0)).collect();
    let words = ["▁", "a", "b", "ab", "▁ab", "l", "ll", "o", "llo", "▁H", "d"];
    pieces.extend(words.iter().enumerate().map(|(at, text)| ((*text).to_owned(), 1, -(at as f32))));
    vocabulary("llama", None, &with_specials(pieces), &[])
}

/// A WordPiece vocabulary.
pub fn word_pieces() -> Vec<u8> {
    let words = ["▁h", "é", "▁ab", "llo", "▁,", "▁12", "345", "▁漢", "a", "b", "[CLS]", "[SEP]"];
    vocabulary("bert", None, &with_specials(words.map(|text| (text.to_owned(), 1, 0.0)).to_vec()), &[])
}
