//! A session in a file and back.

use std::path::Path;

use super::Session;
use crate::engine::session_file::{Origin, Reader, Restored, SessionFileError, Writer, piece_tokens};

impl Session {
    /// Writes the tokens in the cache with their keys and values to a file, and `note` (at most
    /// [`super::super::MOST_NOTE_BYTES`]) with them. The first time, the model's file is read for its hash.
    ///
    /// The file replaces a plain file of that name once it is whole and on the disk; only its owner may read it.
    ///
    /// # Errors
    /// What the system refuses, a model file that changed, a note too long. The session is as it was, and so is the file.
    pub fn save(&mut self, path: &Path, note: &[u8]) -> Result<(), SessionFileError> {
        let origin = self.origin()?;
        let mut writer = Writer::create(path, &origin, &self.ids, note)?;
        let token_bytes = self.plan.kv().token_bytes();
        let mut piece = vec![0; piece_tokens(token_bytes).min(self.ids.len()) * token_bytes];
        let mut from = 0;
        while from < self.ids.len() {
            let n_tokens = piece_tokens(token_bytes).min(self.ids.len() - from);
            let piece = &mut piece[..n_tokens * token_bytes];
            if !self.plan.kv().read(self.sequence, from, piece) {
                return Err(SessionFileError::GaveWay);
            }
            writer.append(piece)?;
            from += n_tokens;
        }
        writer.finish()
    }

    /// Puts what [`Session::save`] wrote in the place of what is in the cache: a prompt that begins with those tokens goes
    /// on from there, with the same results as in the session that was saved.
    ///
    /// # Errors
    /// A file that is damaged, cut, no session file, of another model, of other settings, or longer than the context; what
    /// the system refuses. The session is then as it was; only if the file changes while it is read is it empty.
    pub fn restore(&mut self, path: &Path) -> Result<Restored, SessionFileError> {
        let origin = self.origin()?;
        let mut reader = Reader::open(path, &origin, self.context, self.model.graph().n_vocab())?;
        let tokens = reader.restored().tokens.len();
        let Self { plan, sequence, .. } = self;
        if !plan.kv().reserve(*sequence, tokens) {
            return Err(SessionFileError::NoRoom { tokens });
        }
        self.clear();
        let Self { plan, sequence, .. } = self;
        let has_room = plan.kv().reserve(*sequence, tokens);
        let read = reader.read(&mut |piece| match has_room && plan.kv().append(*sequence, piece) {
            true => Ok(()),
            false => Err(SessionFileError::NoRoom { tokens }),
        });
        if let Err(error) = read {
            self.clear();
            return Err(error);
        }
        self.ids.extend_from_slice(&reader.restored().tokens);
        Ok(reader.into_restored())
    }

    fn origin(&mut self) -> Result<Origin, SessionFileError> {
        let token_bytes = self.plan.kv().token_bytes();
        Origin::of(&self.model, self.kv_type, self.activations, token_bytes)
    }
}
