//! `farpost chat` through a pipe and on a terminal.

use crate::program::{Folder, farpost_with, finish, model};
use crate::terminal::{exit_code, on_terminal};

#[test]
fn a_pipe_gives_one_message_a_line_and_gets_one_answer_each() {
    let ran = farpost_with(&["chat"], b"turn on the porch light\n\nopen the north gate\n/quit\nnever read\n");
    let answers: Vec<serde_json::Value> =
        ran.done().lines().map(|line| serde_json::from_str(line).expect("one answer a line")).collect();
    assert_eq!(answers.len(), 2, "{}", ran.text());
    assert_eq!(ran.err, "");
    let json = farpost_with(&["chat", "--json"], b"turn on the porch light\nopen the north gate");
    let texts =
        json.done().lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].clone());
    assert_eq!(texts.collect::<Vec<_>>(), ran.text().lines().collect::<Vec<_>>());
}

#[test]
fn commands_are_obeyed_and_never_sent() {
    let folder = Folder::new("save");
    let saved = folder.file("talk.json");
    let input = format!(
        "/system be brief\nturn on the porch light\n/save {saved}\n/save {saved}\n/reset\n/stats\n/dance\n/help\n"
    );
    let ran = farpost_with(&["chat"], input.as_bytes());
    assert_eq!((ran.code, ran.text().lines().count()), (Some(1), 1), "{}", ran.text());
    for part in [
        "the system message is set",
        "talk.json: saved",
        "talk.json: it exists already, and is not replaced\nhint: /save another name",
        "the conversation is forgotten",
        "context 0 of 256 tokens used",
        "there is no command /dance; /help lists them",
        "/save FILE",
    ] {
        assert!(ran.err.contains(part), "{part} is missing in {}", ran.err);
    }
    let talk: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    let roles: Vec<_> = talk["messages"].as_array().unwrap().iter().map(|message| message["role"].clone()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(talk["messages"][2]["content"].as_str(), Some(ran.text().trim_end()));
}

/// A template that keeps the whole conversation, for a model that has none.
const TEMPLATE: &[u8] = b"{% for m in messages %}{{ m.content }}\n{% endfor %}";

#[test]
fn a_conversation_outgrows_the_context_and_the_oldest_is_forgotten() {
    let folder = Folder::new("outgrow");
    let template = folder.with("chat.jinja", TEMPLATE);
    let path = model("tiny-llama.gguf");
    let args = ["chat", "-m", &path, "--template", &template, "--context", "64", "-n", "4", "--ignore-eos", "-t", "0"];
    let ran = farpost_with(&args, "the first of many messages\n".repeat(6).as_bytes());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("the context is full: the oldest 1 exchange of the conversation was forgotten"),
        "{}",
        ran.err
    );
    let ran = farpost_with(&args, format!("{}\nshort\n", "long ".repeat(200)).as_bytes());
    assert!(
        ran.err.starts_with("error: this message alone makes ") && ran.err.contains("it was not sent"),
        "{}",
        ran.err
    );
    assert_eq!((ran.code, ran.text().lines().count() > 0), (Some(1), true));
    let args = ["chat", "-m", &path, "--template", &template, "--context", "64", "--ignore-eos", "-t", "0"];
    let ran = farpost_with(&args, b"go on\n");
    assert!(ran.err.contains("(the context is full; /reset begins anew)"), "{}", ran.err);
}

#[test]
fn every_message_gets_a_line_and_what_was_refused_is_told_at_the_end() {
    let too_long = "very ".repeat(300);
    let input = [b"turn on the porch light\ncaf\xe9\n", too_long.as_bytes(), b"\n/dance\nclose valve 3\n"].concat();
    let ran = farpost_with(&["chat", "--json"], &input);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let lines: Vec<serde_json::Value> = ran.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let errors: Vec<_> = lines.iter().map(|line| line["error"].as_str().unwrap_or("")).collect();
    assert_eq!([errors[0], errors[1]], ["", "line 2 is not UTF-8; it was not sent"]);
    assert!(errors[2].starts_with("this message alone makes "), "{errors:?}");
    assert_eq!(errors[3..], ["there is no command /dance; /help lists them", ""]);
    assert!(lines[4]["text"].as_str().unwrap().contains("valve_3"));
    assert_eq!(ran.err.lines().count(), 3, "{}", ran.err);
    let plain = farpost_with(&["chat"], b"\xff\nclose valve 3\n");
    assert_eq!((plain.code, plain.text().lines().count()), (Some(1), 1), "{}", plain.err);
}

#[test]
fn quiet_leaves_out_notes_but_not_what_was_asked_for() {
    let ran = farpost_with(&["chat", "--quiet"], b"/stats\n/reset\n/dance\n");
    let lines: Vec<&str> = ran.err.lines().collect();
    let expected = [
        "context 0 of 256 tokens used",
        "the conversation is forgotten",
        "error: there is no command /dance; /help lists them",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn what_was_said_before_is_not_run_again() {
    let folder = Folder::new("cached");
    let template = folder.with("chat.jinja", TEMPLATE);
    let path = model("tiny-llama.gguf");
    let args = ["chat", "-m", &path, "--template", &template, "--json", "-n", "4", "--ignore-eos", "-t", "0"];
    let ran = farpost_with(&args, b"one two three\nfour\n");
    let second: serde_json::Value = serde_json::from_str(ran.done().lines().nth(1).unwrap()).unwrap();
    let prompt_ids = second["prompt_ids"].as_array().unwrap();
    assert_eq!(second["timings"]["prompt_tokens"].as_u64(), Some(prompt_ids.len() as u64));
    assert!(second["timings"]["cached_tokens"].as_u64() > Some(3), "{second}");
}

#[test]
fn a_terminal_has_a_prompt_commands_and_two_ways_out() {
    let mut session = on_terminal(&["chat", "--no-history"], &[]);
    session.exp_string("/help lists the commands").unwrap();
    session.exp_string("> ").unwrap();
    session.send_line("turn on the porch light").unwrap();
    session.exp_regex(r#"\{"tool".*\}"#).unwrap();
    session.exp_string("> ").unwrap();
    session.send_line("/reset").unwrap();
    session.exp_string("the conversation is forgotten").unwrap();
    session.exp_string("> ").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("Ctrl-C again, Ctrl-D or /quit leaves").unwrap();
    session.exp_string("> ").unwrap();
    // Something else in between, and the first Ctrl-C is forgotten.
    session.send_line("/stats").unwrap();
    session.exp_string("context 0 of 256").unwrap();
    session.exp_string("> ").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("leaves").unwrap();
    session.exp_string("> ").unwrap();
    // What was typed is cleared, and the first Ctrl-C is forgotten again.
    session.send("half a message").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("> ").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("leaves").unwrap();
    session.exp_string("> ").unwrap();
    session.send_control('c').unwrap();
    session.exp_eof().unwrap();
    assert_eq!(exit_code(&session), 130);

    let mut session = on_terminal(&["chat", "--no-history"], &[]);
    session.exp_string("> ").unwrap();
    session.send_control('d').unwrap();
    session.exp_eof().unwrap();
    assert_eq!(exit_code(&session), 0);
}

#[test]
fn a_byte_that_is_no_text_ends_no_conversation() {
    use std::io::Write;
    let mut session = on_terminal(&["chat", "--no-history"], &[]);
    session.exp_string("> ").unwrap();
    session.send("/sta").unwrap();
    session.flush().unwrap();
    session.exp_string("/sta").unwrap();
    // Past the session, which sends text only.
    session.process().get_file_handle().unwrap().write_all(b"\xff").unwrap();
    session.exp_string("the line is not UTF-8").unwrap();
    session.exp_string("/sta").unwrap();
    session.send_line("ts").unwrap();
    session.exp_string("context 0 of 256").unwrap();
    session.exp_string("> ").unwrap();
    session.send_control('d').unwrap();
    session.exp_eof().unwrap();
    assert_eq!(exit_code(&session), 0);
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_program() {
    let folder = Folder::new("stop");
    let template = folder.with("chat.jinja", b"{{ messages[-1].content }}");
    let path = model("gemma-3-270m-q4_k_m.gguf");
    let args = ["chat", "-m", &path, "--template", &template, "--ignore-eos", "-t", "0", "--no-history"];
    let mut session = on_terminal(&args, &[]);
    session.exp_string("> ").unwrap();
    session.send_line("The capital of France is").unwrap();
    // The editor has ended; what comes now is the answer.
    session.exp_string("\x1b[?2004l").unwrap();
    session.exp_regex("[a-z]").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("(stopped)").unwrap();
    session.exp_string("> ").unwrap();
    session.send_line("/stats").unwrap();
    session.exp_string("answer  ").unwrap();
    session.exp_string("> ").unwrap();
    session.send_line("/quit").unwrap();
    session.exp_eof().unwrap();
    assert_eq!(exit_code(&session), 0);
}

#[test]
fn messages_are_remembered_from_one_chat_to_the_next() {
    let home = Folder::new("history");
    let environment = [("HOME", home.path().to_str().unwrap())];
    let mut session = on_terminal(&["chat"], &environment);
    session.exp_string("> ").unwrap();
    session.send_line("turn on the porch light").unwrap();
    session.exp_string("}").unwrap();
    session.exp_string("> ").unwrap();
    session.send_line("/quit").unwrap();
    session.exp_eof().unwrap();

    let mut session = on_terminal(&["chat"], &environment);
    session.exp_string("> ").unwrap();
    // Twice up: past /quit.
    session.send("\x1b[A\x1b[A\r").unwrap();
    session.flush().unwrap();
    session.exp_regex(r#"\{"tool".*\}"#).unwrap();
    session.exp_string("> ").unwrap();
    session.send_control('d').unwrap();
    session.exp_eof().unwrap();
    assert_eq!(exit_code(&session), 0);
}

#[test]
fn a_model_without_a_template_can_not_chat() {
    let mut command = crate::program::command(&["chat", "-m", &model("tiny-llama.gguf")]);
    let ran = finish(&mut command, b"hello\n");
    assert!(ran.error(3).contains("there is no chat template"), "{}", ran.err);
    assert!(ran.err.contains("hint: --template takes one from a file"), "{}", ran.err);
}

#[test]
fn what_is_typed_ahead_is_not_lost() {
    let mut session = on_terminal(&["chat", "--no-history"], &[]);
    session.exp_string("> ").unwrap();
    // All at once, as a paste into a terminal without bracketed paste.
    session.send("/stats\r/system be brief\r/system\r/quit\r").unwrap();
    session.flush().unwrap();
    for answer in ["context 0 of 256", "the system message is set", "be brief"] {
        session.exp_string(answer).unwrap();
    }
    session.exp_eof().unwrap();
    assert_eq!(exit_code(&session), 0);
}

#[test]
fn a_conversation_in_a_session_file_goes_on_where_it_ended() {
    let folder = Folder::new("session");
    let template = folder.with("chat.jinja", TEMPLATE);
    let (kept, path) = (folder.file("talk.session"), model("tiny-llama.gguf"));
    let plain = ["chat", "-m", &path, "--template", &template, "--json", "-n", "4", "--ignore-eos", "-t", "0"];
    let args = [&plain[..], &["--session", &kept]].concat();
    let whole = farpost_with(&plain, b"one two three\nfour\nfive\n");
    let expected: Vec<serde_json::Value> =
        whole.done().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The same in three runs of the program.
    for (number, message) in ["one two three", "four", "five"].iter().enumerate() {
        let ran = farpost_with(&args, message.as_bytes());
        let answer: serde_json::Value = serde_json::from_str(ran.done().trim_end()).unwrap();
        for field in ["prompt_ids", "ids", "text"] {
            assert_eq!(answer[field], expected[number][field], "{field} of answer {number}");
        }
        let cached = |answer: &serde_json::Value| answer["timings"]["cached_tokens"].clone();
        assert_eq!(cached(&answer), cached(&expected[number]), "what was said is not run again");
        let told = format!("going on after {} messages, ", 2 * number);
        assert_eq!((ran.err.contains(&told), ran.err.lines().count()), (number > 0, number.min(1)), "{}", ran.err);
    }
    // What is forgotten is forgotten in the file, too; and a new system message is the conversation's.
    let ran = farpost_with(&[&args[..], &["--system", "be brief"]].concat(), b"/reset\n/system be long\n");
    assert_eq!((ran.code, ran.text()), (Some(0), ""), "{}", ran.err);
    let ran = farpost_with(&args, b"/system\n/stats\n");
    for part in ["going on after 0 messages, 0 tokens of them ready", "be long", "context 0 of "] {
        assert!(ran.err.contains(part), "{part} is missing in {}", ran.err);
    }
    assert_eq!(std::fs::read_dir(folder.file(".")).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn a_session_file_that_cannot_be_used_ends_the_program_and_stays_as_it_is() {
    let folder = Folder::new("unusable");
    let kept = folder.file("talk.session");
    let args = ["chat", "--session", &kept];
    farpost_with(&args, b"turn on the porch light").done();
    let whole = std::fs::read(&kept).unwrap();
    let (path, template) = (model("tiny-llama.gguf"), folder.with("chat.jinja", TEMPLATE));
    let ran = farpost_with(&["chat", "-m", &path, "--template", &template, "--session", &kept], b"hello");
    assert!(ran.error(2).contains("the hash of the model it was made with is "), "{}", ran.err);
    let ran = farpost_with(&["chat", "--kv-type", "f32", "--session", &kept], b"hello");
    assert!(ran.error(2).ends_with("the storage of keys and values is f16, expected f32"), "{}", ran.err);
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let broken = folder.with("broken", &damaged);
    let ran = farpost_with(&["chat", "--session", &broken], b"hello");
    assert!(ran.error(1).ends_with("the checksum of the keys and values is wrong: the file is damaged"), "{}", ran.err);
    assert_eq!((std::fs::read(&kept).unwrap(), std::fs::read(&broken).unwrap()), (whole, damaged));
    // Where none can be made, the answer is given all the same.
    let ran = farpost_with(&["chat", "--session", &folder.file("nowhere/talk")], b"turn on the porch light");
    assert_eq!((ran.code, ran.text().lines().count()), (Some(1), 1), "{}", ran.err);
    assert!(ran.err.contains("nowhere/talk: cannot create it: "), "{}", ran.err);
}
