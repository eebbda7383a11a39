//! A session in a file and back.

use std::path::Path;

use super::Session;
use crate::engine::session_file::{Origin, Reader, Restored, SessionFileError, Writer, pieces};

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
        let (image, n_tokens) = (self.plan.kv().image(), self.ids.len());
        let mut writer = Writer::create(path, &origin, &image, &self.ids, note)?;
        let mut piece = Vec::new();
        for positions in pieces(&image, n_tokens) {
            piece.resize(image.bytes(n_tokens, positions.clone()) as usize, 0);
            if !self.plan.kv().read(self.sequence, n_tokens, positions, &mut piece) {
                return Err(SessionFileError::GaveWay);
            }
            writer.append(&piece)?;
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
        let image = self.plan.kv().image();
        let mut reader = Reader::open(path, &origin, &image, self.context, self.model.graph().n_vocab())?;
        let tokens = reader.restored().tokens.len();
        let Self { plan, sequence, .. } = self;
        if !plan.kv().reserve(*sequence, tokens) {
            return Err(SessionFileError::NoRoom { tokens });
        }
        self.clear();
        let Self { plan, sequence, .. } = self;
        let has_room = plan.kv().reserve(*sequence, tokens);
        let read = reader.read(&mut |n_positions, piece| match has_room
            && plan.kv().append(*sequence, tokens, n_positions, piece)
        {
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

    fn origin(&self) -> Result<Origin, SessionFileError> {
        Origin::of(&self.model, self.kv_type, self.activations)
    }
}
