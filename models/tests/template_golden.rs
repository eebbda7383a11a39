//! Every chat template of the fixtures with every conversation, against what Jinja2 made of it.

use farpost_firmware_tests::golden;
use farpost_models::template::{ChatTemplate, CivilTime, RenderInput};
use serde_json::Value;

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(golden(&format!("templates/{name}"))).expect("golden data");
    serde_json::from_str(&text).expect("JSON")
}

fn input(case: &Value) -> RenderInput {
    RenderInput {
        tools: case["tools"].clone(),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(true),
        now: CivilTime { year: 2026, month: 1, day: 2, hour: 3, minute: 4, second: 5 },
        ..RenderInput::new(case["messages"].clone())
    }
}

#[test]
fn every_template_renders_every_conversation_as_jinja2_does() {
    let cases = json("cases.json");
    let mut names: Vec<String> = std::fs::read_dir(golden("templates"))
        .expect("a folder")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.strip_suffix(".jinja").map(str::to_owned))
        .collect();
    names.sort();
    assert_eq!(names.len(), 16);
    let mut wrong = Vec::new();
    for name in &names {
        let source = std::fs::read_to_string(golden(&format!("templates/{name}.jinja"))).expect("golden data");
        let template = ChatTemplate::new(&source, "<BOS>", "<EOS>").expect("a real template compiles");
        let expected = json(&format!("{name}.expected.json"));
        assert_eq!(expected.as_object().map(serde_json::Map::len), Some(6));
        for (case, expected) in expected.as_object().expect("an object") {
            let found = template.render(&input(&cases[case]));
            let right = match (&found, expected["text"].as_str(), expected["error"].as_str()) {
                (Ok(found), Some(text), _) => found == text,
                (Err(error), None, Some(expected)) => {
                    error.to_string().contains(expected.strip_prefix("TypeError: ").unwrap_or(expected))
                }
                _ => false,
            };
            if !right {
                wrong.push(format!("{name}, {case}:\nfound    {found:?}\nexpected {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
