//! A conversation that is kept in a session file, from one run of the program to the next: what was said is the note of
//! the file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use farpost::engine::{Session, SessionFileError};
use serde_json::{Value as Json, json};

use super::conversation::Conversation;
use crate::amount;
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::progress::{Progress, Unit};

/// The file, and whether it holds what was said last.
pub struct Kept {
    path: PathBuf,
    is_saved: bool,
}

impl Kept {
    /// Goes on with the conversation in the file, if it is there; `system` takes the place of its system message.
    pub fn open(
        path: &Path,
        session: &mut Session,
        system: Option<String>,
        console: &Console,
    ) -> Result<(Self, Conversation), Failure> {
        let mut kept = Self { path: path.to_owned(), is_saved: true };
        // Once for all of the run, and not while somebody waits for an answer's end.
        let mut progress: Option<Progress> = None;
        session.model().content_hash_with(&mut |done, total| {
            let progress = progress
                .get_or_insert_with(|| Progress::new(console, "reading the model for its hash", total, Unit::Bytes));
            progress.at(done, "");
            ControlFlow::Continue(())
        })?;
        drop(progress);
        if matches!(std::fs::metadata(path), Err(error) if error.kind() == std::io::ErrorKind::NotFound) {
            return Ok((kept, Conversation::new(system)));
        }
        let elsewhere = "name another file with --session, or move this one away";
        let restored = session.restore(path).map_err(|error| match error {
            SessionFileError::Io { .. } | SessionFileError::Model(_) | SessionFileError::OutOfMemory { .. } => {
                Failure::from(error)
            }
            _ => Failure::from(error).hint(elsewhere),
        })?;
        let conversation = serde_json::from_slice(&restored.note).ok().as_ref().and_then(Conversation::from_report);
        let Some(mut conversation) = conversation else {
            let message = format_args!("{}: a session file without a conversation", path.display());
            return Err(Failure::new(Exit::Failed, message).hint(elsewhere));
        };
        if system.is_some() && conversation.system != system {
            (conversation.system, kept.is_saved) = (system, false);
        }
        let messages = amount::count(conversation.len() as u64, "message");
        let tokens = amount::count(restored.tokens.len() as u64, "token");
        console.note(&format!("{}: going on after {messages}, {tokens} of them ready", path.display()));
        Ok((kept, conversation))
    }

    /// Something was said, or forgotten.
    pub fn change(&mut self) {
        self.is_saved = false;
    }

    /// Writes the file, if it does not hold what was said last.
    pub fn save(&mut self, session: &mut Session, conversation: &Conversation) -> Result<(), SessionFileError> {
        if !self.is_saved {
            session.save(&self.path, report(session.model().name(), conversation).to_string().as_bytes())?;
            self.is_saved = true;
        }
        Ok(())
    }
}

/// A conversation as it is written to files.
pub fn report(model: &str, conversation: &Conversation) -> Json {
    json!({ "model": model, "messages": conversation.messages() })
}
