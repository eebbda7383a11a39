//! `farpost chat`: a conversation, on a terminal or through a pipe.
//!
//! Every answer is given by the whole conversation; the session runs only what it has not run yet.

mod command;
mod conversation;
mod input;
mod kept;

use std::path::{Path, PathBuf};

use farpost::engine::{Finish, GenerateOptions, Generated, Session};
use serde_json::json;

use super::console::Console;
use super::exit::{Exit, Failure};
use super::generation::GenerationArgs;
use super::interrupt::Interrupt;
use super::pack::PackArgs;
use super::prompt::{ChatArgs, Template};
use super::reply::Reply;
use super::sampling::SamplingArgs;
use super::{amount, answer, device, model};
use command::Command;
use conversation::{Conversation, Fit};
use input::{Input, Source};
use kept::Kept;

/// Talk with a model
///
/// Type a message; /help lists the commands. Ctrl-C stops an answer, not the program; at the prompt, twice leaves. Reads
/// one message a line where standard input is no terminal, and ends with code 1 if any was refused.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    #[command(flatten)]
    packed: PackArgs,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    /// Keep no history of messages in a file, and read none
    #[arg(long)]
    no_history: bool,
    /// Go on with the conversation in this file, and keep it there after every answer; it is made if it is not there
    #[arg(long, value_name = "FILE")]
    session: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Talks until the user leaves.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let options = args.generation.options(&args.sampling, args.model.is_built_in())?;
    let model = args.model.load(args.generation.memory.context, args.packed, console)?;
    model::expect_writer(&model)?;
    let interrupt = Interrupt::listen_for_answers()?;
    let mut session = device::open(model, &args.generation.memory, console)?;
    let model = std::sync::Arc::clone(session.model());
    let template = Template::of(&model, &args.chat, "--template takes one from a file")?;
    let source = Source::open(!args.no_history)?;
    let system = args.chat.system.clone();
    let (kept, conversation) = match &args.session {
        Some(path) => {
            let (kept, conversation) = Kept::open(path, &mut session, system, console)?;
            (Some(kept), conversation)
        }
        None => (None, Conversation::new(system)),
    };
    let mut chat =
        Chat { console, options, template, interrupt, session, conversation, kept, last: None, has_refused: false };
    if source.is_terminal() {
        let (name, context) = (model.name(), amount::grouped(chat.session.context() as u64));
        console.note(&format!("{name}, context of {context} tokens; /help lists the commands"));
    }
    let is_watched = source.is_terminal();
    let talked = chat.talk(source);
    chat.keep();
    talked?;
    // Nobody watches a pipe: what was refused has been told, and the exit code tells of it too.
    if chat.has_refused && !is_watched { Err(Failure::new(Exit::Failed, "")) } else { Ok(()) }
}

struct Chat<'a> {
    console: &'a Console,
    options: GenerateOptions,
    template: Template<'a>,
    interrupt: Interrupt,
    session: Session,
    conversation: Conversation,
    kept: Option<Kept>,
    last: Option<Generated>,
    /// Whether anything was not done that was asked for.
    has_refused: bool,
}

impl Chat<'_> {
    fn talk(&mut self, mut source: Source) -> Result<(), Failure> {
        let prompt = if source.is_terminal() { "> " } else { "" };
        let mut was_interrupted = false;
        loop {
            // The editor takes Ctrl-C as a key.
            let input =
                if source.is_terminal() { source.next(prompt) } else { self.interrupt.at_pipe(|| source.next(prompt)) };
            let text = match input? {
                Input::End => return Ok(()),
                Input::Interrupted { was_typing: true } => {
                    was_interrupted = false;
                    continue;
                }
                Input::Interrupted { .. } if was_interrupted => return Err(Failure::interrupted()),
                Input::Interrupted { .. } => {
                    was_interrupted = true;
                    self.console.note("Ctrl-C again, Ctrl-D or /quit leaves");
                    continue;
                }
                Input::NotText(why) => {
                    was_interrupted = false;
                    self.refuse(&Failure::new(Exit::Failed, why))?;
                    continue;
                }
                Input::Text(text) => text,
            };
            was_interrupted = false;
            match command::parse(&text) {
                Err(why) => self.refuse(&Failure::usage(why))?,
                Ok(Some(Command::Quit)) => return Ok(()),
                Ok(Some(command)) => self.obey(&command)?,
                Ok(None) if text.trim().is_empty() => {}
                Ok(None) => self.answer(command::message(&text).to_owned())?,
            }
        }
    }

    /// Tells what is not done, in the place of an answer where programs read them, and goes on.
    fn refuse(&mut self, failure: &Failure) -> Result<(), Failure> {
        self.has_refused = true;
        self.console.complain_of(failure);
        if self.console.is_json() { self.console.print_json(&json!({ "error": failure.words().0 })) } else { Ok(()) }
    }

    fn obey(&mut self, command: &Command<'_>) -> Result<(), Failure> {
        match command {
            Command::Help => self.console.say(command::HELP),
            Command::Reset => {
                self.conversation.reset();
                self.session.clear();
                self.change();
                self.keep();
                self.console.say("the conversation is forgotten");
            }
            Command::System(None) => {
                let text = self.conversation.system.as_deref().unwrap_or("there is no system message");
                self.console.say(&super::plain::lines(text));
            }
            Command::System(Some(text)) => {
                self.conversation.system = Some((*text).to_owned());
                self.change();
                self.console.say("the system message is set, from the next answer on");
            }
            Command::Save(path) => match self.save(Path::new(path)) {
                Ok(()) => self.console.say(&format!("{path}: saved")),
                // What can't be saved is no reason to lose the conversation.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    let failure = Failure::usage(format_args!("{path}: it exists already, and is not replaced"));
                    self.refuse(&failure.hint("/save another name, or move that file away first"))?;
                }
                Err(error) => self.refuse(&Failure::file(Path::new(path), "save", &error))?,
            },
            Command::Stats => self.console.say(&self.stats()),
            Command::Quit => {}
        }
        Ok(())
    }

    /// Writes the conversation to a file that is not there yet.
    fn save(&self, path: &Path) -> std::io::Result<()> {
        let report = kept::report(self.session.model().name(), &self.conversation);
        let mut file = std::fs::File::create_new(path)?;
        std::io::Write::write_all(&mut file, format!("{report:#}\n").as_bytes())
    }

    fn change(&mut self) {
        self.kept.iter_mut().for_each(Kept::change);
    }

    /// Brings the session file up to date. That it can't be written is no reason to lose the conversation.
    fn keep(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        if let Err(error) = kept.save(&mut self.session, &self.conversation) {
            self.has_refused = true;
            self.console.complain_of(&Failure::from(error));
        }
    }

    fn stats(&self) -> String {
        let (used, context) = (self.session.cached().len() as u64, self.session.context() as u64);
        let context = format!("context {} of {} tokens used", amount::grouped(used), amount::grouped(context));
        match &self.last {
            None => context,
            Some(last) => format!("{}\n{context}", answer::figures(last, &self.session.memory())),
        }
    }

    /// Answers a message, or says why not; only a broken device or output ends the program.
    fn answer(&mut self, message: String) -> Result<(), Failure> {
        self.conversation.ask(message);
        // Room for an answer: as much as was asked for, but a quarter of the context is always enough.
        let quarter = (self.session.context() / 4).max(1);
        let reserved = self.options.max_tokens.unwrap_or(quarter).clamp(1, quarter);
        let room = self.session.context().saturating_sub(reserved);
        let model = std::sync::Arc::clone(self.session.model());
        let template = &self.template;
        let fit = match self.conversation.fit(room, |conversation| template.ids(conversation.messages(), &model)) {
            Ok(fit) => fit,
            Err(failure) => {
                self.conversation.take_back();
                return self.refuse(&failure);
            }
        };
        let (ids, n_dropped) = match fit {
            Fit::Fits { ids, n_dropped } => (ids, n_dropped),
            Fit::TooLong { n_tokens } => {
                let (found, room) = (amount::count(n_tokens as u64, "token"), amount::grouped(room as u64));
                let message = format!("this message alone makes {found}, there is room for {room}; it was not sent");
                return self.refuse(&Failure::usage(message));
            }
        };
        if n_dropped > 0 {
            let what = amount::count(n_dropped as u64, "exchange");
            self.console.note(&format!("the context is full: the oldest {what} of the conversation was forgotten"));
        }
        self.generate(&ids)
    }

    fn generate(&mut self, ids: &[u32]) -> Result<(), Failure> {
        self.interrupt.forget();
        let reply = Reply {
            console: self.console,
            interrupt: &self.interrupt,
            options: &self.options,
            reading: "reading",
            full: "(the context is full; /reset begins anew)",
            tells_figures: false,
        };
        let generated = reply.give(&mut self.session, ids, json!({ "prompt_ids": ids }))?;
        if generated.finish == Finish::Cancelled {
            self.console.note("(stopped)");
        }
        if generated.finish == Finish::Cancelled && generated.text.is_empty() {
            // As if it had not been asked.
            self.conversation.take_back();
        } else {
            self.conversation.answer(generated.text.clone());
        }
        self.last = Some(generated);
        self.change();
        self.keep();
        Ok(())
    }
}
