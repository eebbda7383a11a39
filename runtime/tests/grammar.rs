//! Texts of a given form: whatever the model would like to write, what comes is of that form.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farpost::engine::{
    Engine, EngineOptions, Finish, GenerateOptions, Generated, Grammar, Refusal, Request, Sampling, Session,
    SessionOptions, Speculate,
};
use farpost::{Model, ModelOptions};
use farpost_firmware_tests::model;
use farpost_kernels::cpu::Cpu;
use farpost_models::tokenizer::Special;
use serde_json::{Value, json};

const SCHEMA: &str = r#"{
    "type": "object",
    "properties": {
        "tool": {"enum": ["light", "valve"]},
        "level": {"type": "integer", "minimum": 0, "maximum": 100},
        "rooms": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2}
    },
    "required": ["tool", "level", "rooms"],
    "additionalProperties": false
}"#;

fn options(grammar: Grammar, seed: u64) -> GenerateOptions {
    GenerateOptions {
        sampling: Sampling { seed, temperature: 1.3, ..Sampling::default() },
        max_tokens: Some(250),
        grammar: Some(grammar),
        ..GenerateOptions::default()
    }
}

fn run(engine: &Engine, requests: &[Request]) -> Vec<Generated> {
    let streams: Vec<_> = requests.iter().map(|request| engine.submit(request).unwrap()).collect();
    streams.into_iter().map(|stream| stream.finish().unwrap().remove(0)).collect()
}

fn pocket() -> (Arc<Model>, Engine) {
    let model = Arc::new(Model::pocket().unwrap());
    let engine = Engine::open(Arc::clone(&model), Arc::new(Cpu::detect()), &EngineOptions::default()).unwrap();
    (model, engine)
}

#[test]
fn whatever_is_drawn_is_what_the_schema_allows() {
    for name in ["tiny-llama.gguf", "tiny-qwen2.gguf", "tiny-gemma3.gguf"] {
        let model = Arc::new(Model::open(&model(name), &ModelOptions::default()).unwrap());
        let engine = Engine::open(Arc::clone(&model), Arc::new(Cpu::detect()), &EngineOptions::default()).unwrap();
        let prompt = model.tokenizer().encode_prompt("call:", Special::AsText);
        let requests: Vec<Request> = (0..6)
            .map(|seed| Request::new(prompt.clone(), options(Grammar::JsonSchema(SCHEMA.to_owned()), seed)))
            .collect();
        let mut n_complete = 0;
        for generated in run(&engine, &requests) {
            if let Finish::EndToken(_) = generated.finish {
                let value: Value = serde_json::from_str(&generated.text).expect("it is JSON");
                let tool = value["tool"].as_str().unwrap();
                assert!(["light", "valve"].contains(&tool) && (0..=100).contains(&value["level"].as_i64().unwrap()));
                assert!(value["rooms"].as_array().unwrap().len() <= 2 && value.as_object().unwrap().len() == 3);
                n_complete += 1;
            }
        }
        println!("{name}: {n_complete} of 6 complete");
        assert!(n_complete > 0, "{name}");
    }
}

#[test]
fn regular_expressions_and_grammars_are_followed_with_and_without_guesses_in_engine_and_session() {
    let (model, engine) = pocket();
    let mut session = Session::open(Arc::clone(&model), &Cpu::detect(), &SessionOptions::default()).unwrap();
    let prompt = model.tokenizer().encode_prompt("12:34 12:34 12:34 12:34", Special::AsText);
    let forms = [
        (Grammar::Regex(r"([0-9][0-9]:[0-9][0-9] ){3}end".to_owned()), 21),
        (Grammar::Lark("start: \"a\" item \"z\"\nitem: /[0-9]{4}/\n".to_owned()), 6),
    ];
    for (grammar, n_bytes) in forms {
        for seed in 0..4 {
            let plain = options(grammar.clone(), seed);
            let ahead = GenerateOptions { speculate: Speculate::lookup(), ..plain.clone() };
            let requests = [plain.clone(), ahead].map(|options| Request::new(prompt.clone(), options));
            let told = run(&engine, &requests);
            let alone = session.generate(&prompt, &plain, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(alone.text.len(), n_bytes, "{:?}", alone.text);
            for generated in &told {
                assert_eq!((&generated.text, generated.finish), (&alone.text, alone.finish));
            }
        }
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let (model, engine) = pocket();
    let prompt = model.tokenizer().encode_prompt("x", Special::AsText);
    let refused = |grammar: Grammar| match engine.submit(&Request::new(prompt.clone(), options(grammar, 0))) {
        Err(Refusal::Invalid(error)) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is taken"),
    };
    let message = refused(Grammar::JsonSchema(r#"{"type": "array", "uniqueItems": true}"#.to_owned()));
    assert!(message.starts_with("json_schema#/uniqueItems: ") && message.contains("'uniqueItems'"), "{message}");
    let message = refused(Grammar::JsonSchema("{".to_owned()));
    assert!(message.starts_with("json_schema: it is no JSON: "), "{message}");
    let message = refused(Grammar::Regex("(".to_owned()));
    assert!(message.starts_with("regex: "), "{message}");
    let message = refused(Grammar::Lark("start: missing".to_owned()));
    assert!(message.starts_with("grammar: ") && message.contains("missing"), "{message}");
    assert_eq!(refused(Grammar::Lark("start: start".to_owned())), "grammar: no text has it");
    let message = refused(Grammar::JsonSchema(r#"{"allOf": [{"type": "integer"}, {"type": "string"}]}"#.to_owned()));
    assert_eq!(message, "json_schema: no value satisfies it");
    let forever = GenerateOptions { ignore_eos: true, ..options(Grammar::JsonObject, 0) };
    assert!(matches!(engine.submit(&Request::new(prompt, forever)), Err(Refusal::Invalid(_))));
}

#[test]
fn digits_words_and_spaces_of_a_regular_expression_are_of_ascii() {
    let model = Arc::new(Model::open(&model("tiny-qwen2.gguf"), &ModelOptions::default()).unwrap());
    let engine = Engine::open(Arc::clone(&model), Arc::new(Cpu::detect()), &EngineOptions::default()).unwrap();
    let prompt = model.tokenizer().encode_prompt("x", Special::AsText);
    let requests: Vec<Request> = (0..8)
        .map(|seed| Request::new(prompt.clone(), options(Grammar::Regex(r"[0-9]{3}-\d{6}\w{6}\s".to_owned()), seed)))
        .collect();
    for generated in run(&engine, &requests) {
        assert!(generated.text.is_ascii() && generated.text.len() == 17, "{:?}", generated.text);
    }
}

#[test]
fn a_hostile_form_costs_bounded_time_and_memory() {
    let (model, engine) = pocket();
    let prompt = model.tokenizer().encode_prompt("x", Special::AsText);
    let nested = format!("{}{{}}{}", r#"{"type":"array","items":"#.repeat(60), "}".repeat(60));
    let rules = (0..20).map(|n| format!("T{n}: T{m} T{m} T{m} T{m}\n", m = n + 1)).collect::<String>();
    let values: Vec<usize> = (0..200_000).collect();
    let properties: Vec<String> =
        (0..1_500).map(|n| format!(r#""p{n}": {{"type": "string", "pattern": "^[a-z]{{2,9}}-{n}$"}}"#)).collect();
    let forms = [
        Grammar::Regex("(a{0,1000}){0,1000}b".to_owned()),
        Grammar::Regex("(x+x+)+y".to_owned()),
        Grammar::Regex("(a|b)*".repeat(10_000)),
        Grammar::Regex("(a|b)*".repeat(100_000)),
        Grammar::Regex("a?b?c?d?e?".repeat(10_000)),
        Grammar::Regex("(a|b)*a(a|b){4000}".to_owned()),
        Grammar::JsonSchema(nested),
        Grammar::JsonSchema(r##"{"$ref": "#"}"##.to_owned()),
        Grammar::JsonSchema(format!(r#"{{"enum": {values:?}}}"#)),
        Grammar::JsonSchema(format!(r#"{{"properties": {{{}}}}}"#, properties.join(","))),
        Grammar::JsonSchema(format!(r#"{{"pattern": "{}"}}"#, "(a|b)*".repeat(5_000))),
        Grammar::Lark(format!("start: T0\n{rules}T20: \"a\"?")),
        Grammar::Lark("start: start start | \"a\"".to_owned()),
    ];
    for grammar in forms {
        let start = Instant::now();
        let options = GenerateOptions { max_tokens: Some(8), ..options(grammar.clone(), 1) };
        let submitted = engine.submit(&Request::new(prompt.clone(), options));
        let (seconds, told) = (start.elapsed().as_secs_f64(), submitted.as_ref().err().map(ToString::to_string));
        println!("{} of {} bytes: {seconds:.3} s: {told:?}", grammar.name(), format!("{grammar:?}").len());
        if let Ok(stream) = submitted {
            let _ = stream.finish();
        }
        assert!(start.elapsed() < Duration::from_secs(30));
    }
    assert!(engine.drain(Duration::from_secs(60)));
    println!("{} MiB at most", peak_bytes() >> 20);
    assert!(peak_bytes() < 600 << 20, "{} bytes", peak_bytes());
}

/// The most memory this process has had, where the system tells.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

/// Forms that lead from one thing to the next, `n` times, in every way there is.
fn chains(n: usize) -> Vec<(&'static str, Grammar)> {
    let defs = |of: &dyn Fn(String) -> Value| {
        let last = [(format!("a{n}"), json!({ "type": "null" }))];
        let defs: serde_json::Map<String, Value> =
            (0..n).map(|i| (format!("a{i}"), of(format!("#/$defs/a{}", i + 1)))).chain(last).collect();
        Grammar::JsonSchema(json!({ "$ref": "#/$defs/a0", "$defs": defs }).to_string())
    };
    let rules = |rule: &dyn Fn(usize) -> String| {
        let rules: Vec<String> = (0..n).map(rule).collect();
        rules.join("\n")
    };
    let (open, close) = ("(".repeat(28), ")".repeat(28));
    vec![
        ("properties", defs(&|next| json!({ "type": "object", "properties": { "x": { "$ref": next } } }))),
        ("items", defs(&|next| json!({ "type": "array", "items": { "$ref": next } }))),
        ("allOf", defs(&|next| json!({ "allOf": [{ "$ref": next }] }))),
        ("anyOf", defs(&|next| json!({ "anyOf": [{ "$ref": next }, { "type": "null" }] }))),
        ("$ref", defs(&|next| json!({ "$ref": next }))),
        ("rules", Grammar::Lark(format!("start: r0\n{}\nr{n}: \"a\"", rules(&|i| format!("r{i}: r{}", i + 1))))),
        (
            "terminals",
            Grammar::Lark(format!("start: T0\n{}\nT{n}: \"a\"", rules(&|i| format!("T{i}: \"b\" T{}", i + 1)))),
        ),
        (
            "groups",
            Grammar::Lark(format!(
                "start: r0\n{}\nr{n}: \"a\"",
                rules(&|i| format!("r{i}: {open}\"b\" r{}{close}", i + 1))
            )),
        ),
    ]
}

/// Each is enforced or refused; a stack that is too small would end the process.
#[test]
fn forms_that_lead_far_are_enforced_or_refused() {
    let (_, engine) = pocket();
    for n in [100, 130, 280, 650, 990, 1300, 1900, 3900, 20_000] {
        for (name, grammar) in chains(n) {
            let request = Request::new(vec![5], GenerateOptions { max_tokens: Some(3), ..options(grammar, 1) });
            match engine.submit(&request) {
                Ok(stream) => {
                    let done = stream.finish();
                    println!("{name} {n}: {:?}", done.map(|done| done[0].text.clone()));
                }
                Err(Refusal::Invalid(error)) => println!("{name} {n}: {error}"),
                Err(other) => panic!("{name} {n}: {other}"),
            }
        }
    }
}
