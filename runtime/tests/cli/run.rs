//! `farpost run`: the answer, its JSON form, sampling, where it ends, and what is refused.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use serde_json::Value;

use crate::program::{Folder, command, farpost, farpost_with, finish, golden, interrupt, model};

const COMMAND: &str = "turn on the porch light at nine";

#[test]
fn the_built_in_model_turns_a_command_into_one_tool_call() {
    let ran = farpost(&["run", COMMAND]);
    let call: Value = serde_json::from_str(ran.done()).unwrap_or_else(|error| panic!("{error}: {}", ran.text()));
    assert!(call["tool"].is_string() && ran.text().contains("porch"), "{call}");
    assert!(ran.text().ends_with("}\n"), "{:?}", ran.text());
    assert_eq!(ran.err, "");
}

#[test]
fn json_tells_ids_text_reason_and_timings() {
    let report = farpost(&["run", "--json", COMMAND]).json();
    let plain = farpost(&["run", COMMAND]);
    assert_eq!(report["text"].as_str().unwrap(), plain.done().trim_end());
    assert_eq!(report["finish_reason"], "stop");
    let ids = report["ids"].as_array().unwrap();
    let back = farpost_with(&["tokenize", "--decode"], report["ids"].to_string().as_bytes());
    assert_eq!(back.done(), report["text"].as_str().unwrap());
    let timings = &report["timings"];
    for name in ["load_ms", "prefill_ms", "decode_ms"] {
        assert!(timings[name].as_f64().is_some_and(|ms| ms > 0.0), "{name}: {timings}");
    }
    assert_eq!(timings["prompt_tokens"].as_u64(), report["prompt_ids"].as_array().map(|ids| ids.len() as u64));
    // The token that ended the answer is counted and not told.
    assert_eq!(timings["generated_tokens"].as_u64(), Some(ids.len() as u64 + 1));
    assert!(timings["decode_tokens_per_second"].as_f64() > Some(0.0));
    assert!(report.get("logprobs").is_none());
}

#[test]
fn a_prompt_comes_from_argument_file_or_standard_input() {
    let folder = Folder::new("prompt");
    let file = folder.with("prompt.txt", format!("{COMMAND}\n").as_bytes());
    let expected = farpost(&["run", COMMAND]).done().to_owned();
    assert_eq!(farpost(&["run", "--file", &file]).done(), expected);
    assert_eq!(farpost_with(&["run", "-"], format!("{COMMAND}\r\n").as_bytes()).done(), expected);
    assert_eq!(farpost_with(&["run"], COMMAND.as_bytes()).done(), expected);
}

#[test]
fn raw_takes_the_prompt_as_it_is() {
    let report = farpost_with(&["run", "--raw", "--max-tokens", "1", "--json", "-"], b"<|USER|>turn\n").json();
    let ids = farpost_with(&["tokenize", "--json"], b"<|USER|>turn\n").json();
    assert_eq!(report["prompt_ids"], ids);
    let chat = farpost(&["run", "--max-tokens", "1", "--json", "<|USER|>turn"]).json();
    let control = &ids[0];
    let n_control = chat["prompt_ids"].as_array().unwrap().iter().filter(|id| *id == control).count();
    assert_eq!(n_control, 1, "what a user writes is no control token");
}

#[test]
fn a_real_model_goes_on_as_other_software_does() {
    let path = model("gemma-3-270m-q4_k_m.gguf");
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(golden("models/gemma3-270m.json")).unwrap()).unwrap();
    for case in golden["greedy"].as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let args = ["run", "--model", &path, "--raw", "--temperature", "0", "--max-tokens", "8", "--json", prompt];
        let report = farpost(&args).json();
        assert_eq!(report["prompt_ids"], case["prompt_ids"]);
        assert_eq!(report["finish_reason"], "length");
        // Both round differently, so the texts part at a near-tie; the first words must not.
        let first = |ids: &Value| ids.as_array().unwrap()[..3].to_vec();
        assert_eq!(first(&report["ids"]), first(&case["greedy"]), "{prompt}");
    }
}

#[test]
fn the_same_seed_gives_the_same_text_on_any_number_of_threads() {
    let path = model("tiny-qwen3.gguf");
    let text = |seed: &str, threads: &str| {
        let args = ["run", "-m", &path, "--raw", "-t", "1", "-n", "24", "--seed", seed, "--threads", threads, "the"];
        farpost(&args).done().to_owned()
    };
    let first = text("1", "1");
    assert_eq!(first, text("1", "1"));
    assert_eq!(first, text("1", "2"));
    assert_ne!(first, text("2", "1"));
    let drawn = farpost(&["run", "-m", &path, "--raw", "-n", "8", "--json", "the"]).json();
    let seed = drawn["seed"].to_string();
    let again = farpost(&["run", "-m", &path, "--raw", "-n", "8", "--seed", &seed, "--json", "the"]).json();
    assert_eq!(drawn["ids"], again["ids"], "the seed that was drawn gives the text again");
}

#[test]
fn every_instruction_set_gives_the_built_in_answer() {
    let expected = farpost(&["run", COMMAND]).done().to_owned();
    let report = farpost(&["doctor", "--quick", "--json"]).json();
    for set in report["processor"]["kernels_available"].as_array().unwrap() {
        let ran = finish(command(&["run", COMMAND]).env("FARPOST_CPU", set.as_str().unwrap()), b"");
        assert_eq!(ran.done(), expected, "{set}");
    }
    let ran = finish(command(&["run", COMMAND]).env("FARPOST_CPU", "mmx"), b"");
    assert!(ran.error(2).starts_with("FARPOST_CPU: instruction set 'mmx' is not available"));
}

#[test]
fn keys_and_values_in_eight_bits_give_the_built_in_answer_too() {
    let expected = farpost(&["run", COMMAND]).done().to_owned();
    for kv_type in ["f16", "q8_0", "f32"] {
        assert_eq!(farpost(&["run", "--kv-type", kv_type, COMMAND]).done(), expected, "{kv_type}");
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn a_graphics_processor_writes_what_the_processor_writes() {
    let report = farpost(&["doctor", "--quick", "--json"]).json();
    let backends = report["backends"].as_array().unwrap();
    let graphics = backends.iter().find(|backend| backend["name"] == "wgpu").unwrap();
    if graphics["usable"] == false {
        println!("skipped: {}; install a Vulkan driver", graphics["detail"]);
        return;
    }
    for name in ["tiny-llama.gguf", "tiny-gemma2.gguf", "tiny-qwen3moe.gguf"] {
        let path = model(name);
        let ids = |backend: &str| {
            let args = ["run", "--json", "-m", &path, "--raw", "-n", "12", "--ignore-eos", "--temperature", "0"];
            let args = [&args[..], &["--backend", backend, "where the river"]].concat();
            farpost(&args).json()["ids"].clone()
        };
        assert_eq!(ids("wgpu"), ids("cpu"), "{name}");
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn layers_on_two_devices_write_what_one_writes() {
    let path = model("tiny-gemma3.gguf");
    let run = |more: &[&str]| {
        let args = ["run", "-m", &path, "--raw", "-n", "12", "--ignore-eos", "--temperature", "0", "where the river"];
        farpost(&[&args[..], more].concat())
    };
    let alone = run(&["--backend", "cpu"]);
    let expected = alone.done();
    for n_layers in ["0", "1", "2", "auto"] {
        let ran = run(&["--verbose", "--backend", "wgpu", "--gpu-layers", n_layers]);
        if ran.code == Some(5) {
            println!("skipped: {}; install a Vulkan driver", ran.err);
            return;
        }
        assert!(!ran.err.contains("XDG_RUNTIME_DIR"), "{}", ran.err);
        let of = format!("{n_layers} of ");
        let is_told = ran.err.contains("dispatches a token") && (n_layers == "auto" || ran.err.contains(&of));
        assert_eq!(is_told, n_layers != "0", "{n_layers}: {}", ran.err);
        assert_eq!(ran.done(), expected, "{n_layers}");
    }
    let refused = farpost(&["run", "--gpu-layers", "-1", COMMAND]);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
}

#[cfg(not(feature = "wgpu"))]
#[test]
fn a_graphics_processor_that_is_not_built_in_is_told_as_such() {
    let ran = farpost(&["run", "--backend", "wgpu", COMMAND]);
    assert_eq!(ran.error(5), "--backend wgpu: not built into this program");
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_that_cannot_be_had_says_why() {
    let report = farpost(&["doctor", "--quick", "--json"]).json();
    let cuda = report["backends"].as_array().unwrap().iter().find(|backend| backend["name"] == "cuda").unwrap();
    if cuda["usable"] == true {
        return println!("skipped: there is {}", cuda["detail"]);
    }
    let ran = farpost(&["run", "--backend", "cuda", COMMAND]);
    assert_eq!(ran.error(5), format!("--backend cuda: {}", cuda["detail"].as_str().unwrap()));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn cuda_that_is_not_built_in_is_told_as_such() {
    let ran = farpost(&["run", "--backend", "cuda", COMMAND]);
    assert_eq!(ran.error(5), "--backend cuda: not built into this program");
}

#[test]
fn an_answer_ends_before_a_stop_text_and_after_so_many_tokens() {
    let whole = farpost(&["run", "--json", COMMAND]).json();
    let text = whole["text"].as_str().unwrap();
    let stopped = farpost(&["run", "--json", "--stop", "never there", "--stop", "\"arguments\"", COMMAND]).json();
    assert_eq!(stopped["text"].as_str(), text.split("\"arguments\"").next());
    assert_eq!(stopped["finish_reason"], "stop");
    let short = farpost(&["run", "--json", "--max-tokens", "2", COMMAND]).json();
    assert_eq!(short["ids"], Value::from(&whole["ids"].as_array().unwrap()[..2]));
    assert_eq!(short["finish_reason"], "length");
    let on = farpost(&["run", "--json", "--ignore-eos", "--max-tokens", "40", COMMAND]).json();
    assert_eq!(on["ids"].as_array().map(Vec::len), Some(40));
    let full = farpost(&["run", "--json", "--ignore-eos", "--context", "64", COMMAND]).json();
    assert_eq!(full["finish_reason"], "length");
    let told = farpost(&["run", "--ignore-eos", "--context", "64", COMMAND]);
    assert!(told.code == Some(0) && told.err.ends_with("(the context is full)\n"), "{}", told.err);
}

#[test]
fn log_probabilities_are_told_for_every_token() {
    let report = farpost(&["run", "--json", "--logprobs", "3", COMMAND]).json();
    let (ids, told) = (report["ids"].as_array().unwrap(), report["logprobs"].as_array().unwrap());
    assert_eq!(ids.len(), told.len());
    for (id, token) in ids.iter().zip(told) {
        assert_eq!(&token["id"], id);
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!((&top[0]["id"], &top[0]["logprob"]), (id, &token["logprob"]), "the likeliest was taken");
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), token["token"].as_str().unwrap());
        assert!(token["logprob"].as_f64().is_some_and(|logprob| logprob <= 0.0) && token["token"].is_string());
    }
}

#[test]
fn a_bias_can_forbid_a_token() {
    let free = farpost(&["run", "--json", COMMAND]).json();
    let first = &free["ids"][0];
    let forbidden = farpost(&["run", "--json", "--logit-bias", &format!("{first}=-inf"), "-n", "20", COMMAND]).json();
    assert!(!forbidden["ids"].as_array().unwrap().contains(first));
}

#[test]
fn what_makes_no_sense_is_refused_before_any_work() {
    let tiny = model("tiny-llama.gguf");
    let cases: [(&[&str], i32, &str); 15] = [
        (&["run", "--temperature", "-1", "x"], 2, "--temperature is -1, expected 0 to 10"),
        (&["run", "--top-p", "nan", "x"], 2, "--top-p is NaN, expected above 0, up to 1"),
        (&["run", "--json", "--logprobs", "1000", "x"], 2, "--logprobs is 1000, expected 0 to 100"),
        (&["run", "--logit-bias", "99999=1", "x"], 2, "--logit-bias names token 99999, the model has 1024"),
        (&["run", "--context", "5", COMMAND], 2, "tokens, the context holds 5"),
        (&["run", "--file", "/nonexistent", "--raw"], 1, "/nonexistent: cannot read it: No such file"),
        (&["run", "-m", &tiny, "x"], 3, "there is no chat template"),
        (&["run", "-m", "no-such-model", "x"], 3, "no-such-model: there is no such file"),
        (&["run", "--raw", ""], 2, "the prompt is empty, expected at least one token"),
        (&["run", "--template", "/nonexistent", "x"], 1, "/nonexistent: cannot read it"),
        (&["run", "-m", &golden("vocab/gpt-2.gguf"), "--raw", "x"], 3, "gpt-2.gguf"),
        (&["run", " "], 2, "the prompt is empty"),
        (&["run", "--context", "4294967295", "x"], 2, "a context of 4294967295 tokens was asked for"),
        (&["run", "--memory-cap", "100K", "x"], 4, "out of memory: "),
        (&["run", "--mirostat-tau", "1000", "x"], 2, "--mirostat-tau is 1000, expected above 0, up to 100"),
    ];
    for (args, code, expected) in cases {
        let ran = farpost(args);
        let line = ran.error(code);
        assert!(line.contains(expected), "{args:?}: {line}");
    }
    assert!(farpost(&["run", "-m", &tiny, "x"]).err.contains("hint: --raw completes the prompt as it is"));
    assert_eq!(farpost(&["run", "--stop", "", "x"]).code, Some(2));
    for (option, value) in [("--top-k", "-3"), ("-n", "-1"), ("--logprobs", "-1"), ("--dry-allowed-length", "1.5")] {
        let ran = farpost(&["run", "--json", option, value, "x"]);
        assert!(ran.err.contains("expected a whole number, 0 or more"), "{option}: {}", ran.err);
        assert_eq!(ran.code, Some(2));
    }
    assert_eq!(farpost(&["run", "--logprobs", "3", "x"]).code, Some(2), "log-probabilities need --json");
}

#[test]
fn a_context_larger_than_any_memory_is_refused_and_kills_nothing() {
    let path = model("gemma-3-270m-q4_k_m.gguf");
    let ran = farpost(&["run", "-m", &path, "--raw", "--context", "16777216", "--kv-type", "f32", "x"]);
    assert!(ran.error(4).starts_with("out of memory: "), "{}", ran.err);
    assert!(ran.err.contains("hint: a smaller --context"), "{}", ran.err);
}

#[test]
fn a_template_of_ones_own_takes_the_place_of_the_models() {
    let folder = Folder::new("template");
    let file = folder.with("chat.jinja", b"{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}");
    let tiny = model("tiny-llama.gguf");
    let args = ["run", "-m", &tiny, "--template", &file, "--system", "s", "--json", "-n", "1", "u"];
    let ids = farpost_with(&["tokenize", "-m", &tiny, "--json"], b"[system] s\n[user] u\n").json();
    assert_eq!(farpost(&args).json()["prompt_ids"], ids);
    let broken = folder.with("broken.jinja", b"{% for %}");
    let line = farpost(&["run", "-m", &tiny, "--template", &broken, "u"]).error(2).to_owned();
    assert!(line.contains("broken.jinja: chat template: line 1"), "{line}");
}

#[test]
fn speed_is_told_on_standard_error_when_asked_for() {
    let ran = farpost(&["run", "--stats", COMMAND]);
    assert!(ran.done().ends_with("}\n"));
    for part in ["load    ", "prompt  10 tokens in ", "tokens/s", " of weights"] {
        assert!(ran.err.contains(part), "{part} is missing in {}", ran.err);
    }
}

#[test]
fn text_comes_as_it_is_written_and_ctrl_c_ends_it_with_130() {
    let path = model("gemma-3-270m-q4_k_m.gguf");
    let args = ["run", "-m", &path, "--raw", "--temperature", "0", "--ignore-eos", "The capital of France is"];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(130), b"".as_slice()));
    assert!(output.stdout.ends_with(b"\n"), "the line is ended");
}

#[test]
fn ctrl_c_leaves_a_whole_json_object_of_what_there_was() {
    let path = model("gemma-3-270m-q4_k_m.gguf");
    // It would write to the end of its context, which takes much longer than the signal.
    let args = ["run", "-m", &path, "--raw", "--ignore-eos", "--json", "--verbose", "The capital of France is"];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // This note comes once signals are listened to; the reader stays, so that what is said later has somebody to read it.
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(notes.any(|note| note.unwrap().contains("answering a prompt")));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["finish_reason"], "cancelled");
    assert!(report["timings"]["prompt_tokens"].as_u64() > Some(0), "{report}");
}

#[test]
fn a_reader_that_leaves_ends_the_answer_quietly() {
    let path = model("gemma-3-270m-q4_k_m.gguf");
    let args = ["run", "-m", &path, "--raw", "--ignore-eos", "--seed", "1", "The capital of France is"];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn a_draft_model_changes_no_text_and_must_have_the_same_vocabulary() {
    let (path, draft) = (model("tiny-llama.gguf"), model("tiny-llama-moe.gguf"));
    let args = ["run", "-m", &path, "--raw", "--seed", "7", "-n", "12", "--ignore-eos", "--json", "once upon a time"];
    let plain = farpost(&args).json();
    let drafted = farpost(&[&args[..], &["--draft", &draft]].concat()).json();
    assert_eq!((&drafted["ids"], &drafted["text"]), (&plain["ids"], &plain["text"]));
    assert_eq!(drafted["ids"].as_array().map(Vec::len), Some(12));
    let ran = farpost(&["run", "--draft", &path, "turn on the porch light"]);
    let line = ran.error(2);
    assert!(line.starts_with("the draft model does not belong to the model: its vocabulary has 512 tokens"), "{line}");
    let both = farpost(&["run", "--draft", &path, "--speculate", "lookup", "turn on the porch light"]);
    assert_eq!(both.code, Some(2), "{}", both.err);
}
