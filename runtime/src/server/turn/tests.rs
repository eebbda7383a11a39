//! Turns of all families, read whole and in pieces, and held to their grammars.

use std::sync::Arc;

use super::{CallFormat, Calls, Marks, Piece, Tool, Turn, format};

/// Pieces put together: reasoning, answer, calls.
fn told(pieces: Vec<Piece>) -> (String, String, Vec<(String, String)>) {
    let (mut thought, mut text, mut calls) = (String::new(), String::new(), Vec::<(String, String)>::new());
    for piece in pieces {
        match piece {
            Piece::Thought(part) => thought += &part,
            Piece::Text(part) => text += &part,
            Piece::Call { place, name } => {
                assert_eq!(place, calls.len());
                calls.push((name, String::new()));
            }
            Piece::Arguments { place, text } => {
                assert_eq!(place + 1, calls.len());
                assert!(!text.is_empty());
                calls[place].1 += &text;
            }
        }
    }
    (thought, text, calls)
}

fn turn(format: Option<&'static CallFormat>, is_enforced: bool) -> Turn {
    let tool = |name: &str| Tool { name: name.to_owned(), schema: None };
    let calls = format.map(|format| Calls {
        format,
        tools: vec![tool("light"), tool("light_2"), tool("read")],
        is_required: false,
        is_parallel: true,
        is_enforced,
    });
    Turn { calls, ..Turn::default() }
}

/// Reads a turn whole, with every split in two and one character at a time: always the same.
#[track_caller]
fn read(turn: Turn, text: &str) -> (String, String, Vec<(String, String)>) {
    let turn = Arc::new(turn);
    let read = |parts: &[&str]| {
        let mut reader = turn.reader();
        let mut pieces = Vec::new();
        parts.iter().for_each(|part| reader.push(part, &mut pieces));
        reader.finish(&mut pieces);
        let told = told(pieces);
        assert_eq!(reader.n_calls(), told.2.len());
        told
    };
    let whole = read(&[text]);
    for (at, _) in text.char_indices() {
        let (first, second) = text.split_at(at);
        assert_eq!(read(&[first, second]), whole, "split at {at}");
    }
    let single: Vec<&str> = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]).collect();
    assert_eq!(read(&single), whole);
    whole
}

fn calls(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect()
}

#[test]
fn calls_of_all_families_are_read() {
    let one = calls(&[("light", r#"{"room": "h}a\"ll", "on": [1, {}]}"#)]);
    let two = calls(&[("light", "{}"), ("read", r#"{"a": "</tool_call>"}"#)]);
    for is_enforced in [false, true] {
        let read = |format, text: &str| read(turn(Some(format), is_enforced), text);
        let text = "<tool_call>\n{\"name\": \"light\", \"arguments\": {\"room\": \"h}a\\\"ll\", \"on\": [1, {}]}}\n</tool_call>";
        assert_eq!(read(&format::TAGGED, text), (String::new(), String::new(), one.clone()));
        let text = "Sure: é\n\n<tool_call>{\"name\": \"light\", \"arguments\": {}}</tool_call>\n<tool_call>\n{\"name\": \
                    \"read\", \"arguments\": {\"a\": \"</tool_call>\"}}\n</tool_call>\n";
        assert_eq!(read(&format::TAGGED, text), (String::new(), "Sure: é".to_owned(), two.clone()));
        let text = "[TOOL_CALLS][{\"name\": \"light\", \"arguments\": {}}, {\"name\": \"read\", \"arguments\": {\"a\": \
                    \"</tool_call>\"}}]";
        assert_eq!(read(&format::MISTRAL, text), (String::new(), String::new(), two.clone()));
        let text = "<|tool_call|>[{\"name\":\"light\",\"arguments\":{}}]<|/tool_call|>";
        assert_eq!(read(&format::PHI, text).2, calls(&[("light", "{}")]));
        let text = " {\"name\": \"light\", \"parameters\": {}}; {\"name\": \"read\", \"parameters\": {\"a\": \
                    \"</tool_call>\"}}";
        assert_eq!(read(&format::LLAMA, text), (String::new(), String::new(), two.clone()));
        let text = "{\"tool\":\"light\",\"arguments\":{\"room\": \"h}a\\\"ll\", \"on\": [1, {}]}}";
        assert_eq!(read(&format::TRAINED, text), (String::new(), String::new(), one.clone()));
    }
}

#[test]
fn what_is_no_call_is_the_answer_unchanged() {
    for text in [
        "a < b <tool> <tool_ca",
        "  spaces stay \n ",
        "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"light\", \"arguments\": [1]}\n</tool_call>",
        "<tool_call>{\"name\": \"light\", \"arguments\": {\"a\": }}</tool_call>",
        "<tool_call>{\"name\": \"light\", \"arguments\": {\"a\": 1",
        "<tool_call>[1]",
        "<tool_call>",
    ] {
        assert_eq!(read(turn(Some(&format::TAGGED), false), text), (String::new(), text.to_owned(), Vec::new()));
    }
    for text in [
        "{\"tool\":\"none\",\"arguments\":{\"reason\":\"out_of_scope\"}}",
        "{\"tool\": \"ligh",
        "{ {\"a\": 1} {\"tool\"",
        "{\"tool\":\"light\",\"arguments\":{",
        "{\"tool\":\"light\",\"arguments\":3}",
    ] {
        assert_eq!(read(turn(Some(&format::TRAINED), false), text), (String::new(), text.to_owned(), Vec::new()));
    }
    assert_eq!(read(turn(None, false), " <tool_call>{} "), (String::new(), " <tool_call>{} ".to_owned(), Vec::new()));
}

#[test]
fn calls_without_arguments_or_with_their_text_are_calls() {
    let read = |text: &str| read(turn(Some(&format::TAGGED), false), text).2;
    assert_eq!(read("<tool_call>{\"name\": \"read\"}"), calls(&[("read", "{}")]));
    assert_eq!(
        read("<tool_call>{\"arguments\": \"{\\\"a\\\": 1}\", \"name\": \"read\"}</tool_call>"),
        calls(&[("read", "{\"a\": 1}")])
    );
    assert_eq!(read("<tool_call>{\"name\": \"read\", \"parameters\": {\"b\": 2}}"), calls(&[("read", "{\"b\": 2}")]));
}

#[test]
fn what_is_cut_off_under_a_grammar_is_told_as_far_as_it_came() {
    let mut required = turn(Some(&format::TRAINED), true);
    if let Some(calls) = &mut required.calls {
        calls.is_required = true;
    }
    assert_eq!(read(required.clone(), "{\"tool\":\"li"), (String::new(), String::new(), Vec::new()));
    assert_eq!(
        read(required, "{\"tool\":\"light\",\"arguments\":{\"a\":"),
        (String::new(), String::new(), calls(&[("light", "{\"a\":")]))
    );
}

#[test]
fn arguments_are_told_while_they_are_written_if_they_are_sure_to_be_whole() {
    let turn = Arc::new(turn(Some(&format::TAGGED), true));
    let mut reader = turn.reader();
    let mut pieces = Vec::new();
    reader.push("<tool_call>\n{\"name\": \"light\", \"arguments\": {\"room\": ", &mut pieces);
    assert_eq!(
        pieces,
        [
            Piece::Call { place: 0, name: "light".to_owned() },
            Piece::Arguments { place: 0, text: "{\"room\": ".to_owned() }
        ]
    );
}

#[test]
fn reasoning_is_told_apart() {
    let with = |is_thinking, format| Turn { thinking: Some(Marks::MOST), is_thinking, ..turn(format, false) };
    let answer = |thought: &str, text: &str| (thought.to_owned(), text.to_owned(), Vec::new());
    let tools = Some(&format::TAGGED);
    assert_eq!(read(with(false, None), "<think>\nso <b>\n\nyes\n</think>\n\nHi\n"), answer("so <b>\n\nyes", "Hi\n"));
    assert_eq!(read(with(true, None), "so\n</think>\n\nHi"), answer("so", "Hi"));
    assert_eq!(read(with(false, None), "Hi </thin"), answer("", "Hi </thin"));
    assert_eq!(read(with(true, None), "cut off </th"), answer("cut off </th", ""));
    assert_eq!(read(with(false, None), "<think>\n\n</think>\n\nHi"), answer("", "Hi"));
    assert_eq!(read(with(false, None), "a</think>b<think>c"), answer("c", "ab"));
    let text = "<think>call <tool_call>{\"name\": \"read\"}</think>\n<tool_call>{\"name\": \"read\"}</tool_call>";
    let thought = "call <tool_call>{\"name\": \"read\"}".to_owned();
    assert_eq!(read(with(false, tools), text), (thought, String::new(), calls(&[("read", "{}")])));
}

/// What turns are made of, whole and broken.
const PARTS: [&str; 24] = [
    "<think>",
    "</think>",
    "</th",
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|tool_call|>",
    "<|/tool_call|>",
    "[",
    "]",
    ",",
    ";",
    " ",
    "\n",
    "{\"name\": \"light\", \"arguments\": {",
    "{\"tool\":\"read\",\"arguments\":{}}",
    "{\"name\": \"read\", \"parameters\": {}}",
    "\"arguments\": ",
    "\"",
    "}",
    "{",
    "\\",
    "a",
    "é",
];

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_is_written_is_read_the_same_in_all_pieces(
        parts in proptest::collection::vec(proptest::sample::select(&PARTS[..]), 1..10),
        family in 0_usize..6,
        is_enforced in proptest::bool::ANY,
        thinking in 0_u8..3,
    ) {
        let families =
            [&format::TAGGED, &format::MISTRAL, &format::GRANITE, &format::PHI, &format::LLAMA, &format::TRAINED];
        let turn = Turn {
            thinking: (thinking > 0).then_some(Marks::MOST),
            is_thinking: thinking == 2,
            ..turn(Some(families[family]), is_enforced)
        };
        let (_, _, calls) = read(turn, &parts.concat());
        for (_, arguments) in calls.iter().filter(|_| !is_enforced) {
            assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(arguments).is_ok(), "{arguments}");
        }
    }
}

/// Turns held to their grammars, with the tokens of the built-in model.
#[cfg(all(feature = "pocket", feature = "grammar"))]
mod held {
    use farpost_models::tokenizer::Special;

    use super::*;
    use crate::Model;
    use crate::engine::{Grammar, grammar};

    const SCHEMA: &str = r#"{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
        "additionalProperties": false}"#;
    /// Marks that are control tokens there.
    static CONTROL: CallFormat = CallFormat { open: "<|USER|>", ..format::MISTRAL };
    static CONTROL_MARKS: Marks = Marks { open: "<|USER|>", close: "<|ASSISTANT|>" };

    fn held(format: &'static CallFormat, is_required: bool) -> Turn {
        let mut turn = turn(Some(format), true);
        if let Some(calls) = &mut turn.calls {
            calls.is_required = is_required;
            calls.tools[0].schema = Some(SCHEMA.to_owned());
        }
        turn
    }

    /// Whether a model may write this and end there.
    fn may_write(turn: &Turn, form: Option<Grammar>, text: &str) -> bool {
        let model = Model::pocket().unwrap();
        let tokenizer = model.tokenizer();
        let grammar = turn.grammar(form, tokenizer).unwrap().expect("it is held to something");
        let mut constraint = grammar::compile(&model, &grammar).unwrap();
        let end = tokenizer.eos().unwrap();
        for id in tokenizer.encode(text, Special::Parse).into_iter().chain([end]) {
            constraint.advance().unwrap();
            let mut is_allowed = false;
            is_allowed |= constraint.mask()[id as usize / 32] >> (id % 32) & 1 == 1;
            if !is_allowed {
                return false;
            }
            constraint.push(id).unwrap();
        }
        true
    }

    #[test]
    fn text_and_calls_may_come_and_nothing_half() {
        let tagged = held(&format::TAGGED, false);
        let call = "<tool_call>\n{\"name\": \"light\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        let other = "<tool_call>\n{\"name\": \"read\", \"arguments\": {\"b\": [\"</tool_call>\"]}}\n</tool_call>";
        for text in ["hi < there", "", call, &format!("so:\n{call}\n{other}")] {
            assert!(may_write(&tagged, None, text), "{text}");
        }
        for text in ["<tool_call>", "<tool_call>\n{\"name\": \"unknown\"", &call.replace("\"a\"", "\"b\""), &call[..40]]
        {
            assert!(!may_write(&tagged, None, text), "{text}");
        }
        let bare = held(&format::TRAINED, false);
        for text in ["{\"tool\":\"none\"}", "x", "{\"tool\":\"light\",\"arguments\":{\"a\": 1}}"] {
            assert!(may_write(&bare, None, text), "{text}");
        }
        for text in ["{\"tool\":\"light\",\"arguments\":{}}", "{ \"tool\" : \"light\"", "{\"tool\":\"light\"}"] {
            assert!(!may_write(&bare, None, text), "{text}");
        }
        let control = held(&CONTROL, false);
        let list = "[{\"name\": \"light\", \"arguments\": {\"a\": 1}}, {\"name\": \"read\", \"arguments\": {}}]";
        assert!(may_write(&control, None, &format!("so <|USER|>{list}")));
        assert!(may_write(&control, None, "so") && !may_write(&control, None, "so <|USER|>"));
    }

    #[test]
    fn calls_must_come_where_they_are_required() {
        let call = "{\"name\": \"light\", \"parameters\": {\"a\": 1}}";
        let bare = held(&format::LLAMA, true);
        assert!(may_write(&bare, None, call));
        assert!(!may_write(&bare, None, "") && !may_write(&bare, None, "x") && !may_write(&bare, None, "{}"));
        // After the reasoning, if there is one.
        let thinking = Turn { thinking: Some(Marks::MOST), ..bare };
        for text in
            [call.to_owned(), format!("<think>\nhm {call}\n</think>\n\n{call}"), format!("<think></think>{call}")]
        {
            assert!(may_write(&thinking, None, &text), "{text}");
        }
        assert!(!may_write(&thinking, None, "<think>hm</think>so"));
        let over = Turn { has_thought: true, ..thinking.clone() };
        assert!(may_write(&over, None, call) && !may_write(&over, None, &format!("<think>hm</think>{call}")));
        let begun = Turn { is_thinking: true, ..thinking };
        assert!(may_write(&begun, None, &format!("hm</think>{call}")) && !may_write(&begun, None, call));
        let control = Turn { thinking: Some(&CONTROL_MARKS), ..held(&format::LLAMA, true) };
        assert!(may_write(&control, None, &format!("<|USER|>hm<|ASSISTANT|>\n{call}")));
        assert!(may_write(&control, None, call) && !may_write(&control, None, "<|USER|>hm"));
    }

    #[test]
    fn an_answer_has_its_form_or_is_a_call() {
        let form = || Some(Grammar::JsonSchema(SCHEMA.to_owned()));
        let turn = held(&format::LLAMA, false);
        for text in ["{\"a\": 1}", "{\"name\": \"light\", \"parameters\": {\"a\": 1}}"] {
            assert!(may_write(&turn, form(), text), "{text}");
        }
        assert!(!may_write(&turn, form(), "so") && !may_write(&turn, form(), "{\"b\": 1}"));
        let thinking = Turn { thinking: Some(Marks::MOST), ..Turn::default() };
        for form in [Grammar::Regex("a/b|c".to_owned()), Grammar::Lark("start: \"a/\" x | \"c\"\nx: \"b\"".to_owned())]
        {
            assert!(may_write(&thinking, Some(form.clone()), "<think>c</think>\n\na/b"));
            assert!(may_write(&thinking, Some(form.clone()), "c") && !may_write(&thinking, Some(form), "b"));
        }
        assert!(thinking.grammar(None, Model::pocket().unwrap().tokenizer()).unwrap().is_none());
    }
}
