//! Cached texts of an engine in files and back.
//!
//! The caller's thread reads and writes the file; the owner copies a piece between two steps, so answers go on meanwhile.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::{Engine, Inner};
use crate::engine::owner::Order;
use crate::engine::owner::hold::{Copied, Copy};
use crate::engine::session_file::{Origin, Reader, Restored, SessionFileError, Writer, pieces};

impl Engine {
    /// Writes keys and values of the longest beginning of `tokens` that is cached or being answered to a file, and `note`
    /// (at most [`super::super::MOST_NOTE_BYTES`]) with them; gives how many tokens that is. Waits until it is done; the
    /// engine serves others meanwhile. The first time, the model's file is read for its hash.
    ///
    /// Of an ended answer all is cached but its last token. The file replaces a plain file of that name once it is whole
    /// and on the disk; only its owner may read it.
    ///
    /// # Errors
    /// Nothing cached, another copy under way, a copy that gave way to what runs; what the system refuses. A file that was
    /// there is as it was.
    pub fn save(&self, tokens: &[u32], path: &Path, note: &[u8]) -> Result<usize, SessionFileError> {
        let copy = Copying::begin(&self.inner)?;
        let origin = self.inner.origin()?;
        let n_tokens = copy.begun(Copy::Out(tokens.to_vec()))?;
        let image = &self.inner.image;
        let mut writer = Writer::create(path, &origin, image, &tokens[..n_tokens.min(tokens.len())], note)?;
        let mut piece = Vec::new();
        for positions in pieces(image, n_tokens) {
            piece.resize(image.bytes(n_tokens, positions.clone()) as usize, 0);
            piece = copy.piece(Copy::Read { n_tokens, positions, piece })?;
            writer.append(&piece)?;
        }
        writer.finish()?;
        Ok(n_tokens)
    }

    /// Reads what [`Engine::save`] or [`super::super::Session::save`] wrote into the cache: a request whose prompt begins
    /// with those tokens goes on from there, for as long as they are cached. Waits until it is done; the engine serves
    /// others meanwhile.
    ///
    /// # Errors
    /// A file that is damaged, cut, no session file, of another model, of other settings, or longer than the context; an
    /// engine that keeps nothing, no room, another copy under way; what the system refuses. Nothing of it is cached then.
    pub fn restore(&self, path: &Path) -> Result<Restored, SessionFileError> {
        let copy = Copying::begin(&self.inner)?;
        let inner = &self.inner;
        let n_vocab = inner.model.graph().n_vocab();
        let mut reader = Reader::open(path, &inner.origin()?, &inner.image, inner.sizes.context, n_vocab)?;
        let tokens = reader.restored().tokens.clone();
        let n_tokens = tokens.len();
        copy.begun(Copy::In(n_tokens))?;
        reader.read(&mut |n_positions, piece| {
            copy.piece(Copy::Append { n_tokens, n_positions, piece: piece.to_vec() }).map(|_| ())
        })?;
        copy.order(Copy::Keep(tokens))?;
        Ok(reader.into_restored())
    }
}

impl Inner {
    fn origin(&self) -> Result<Origin, SessionFileError> {
        let limits = &self.sizes.limits;
        Origin::of(&self.model, limits.kv_type, limits.activations)
    }
}

/// The one copy that is under way; dropping it forgets what the owner holds for it.
struct Copying<'e>(&'e Inner);

impl<'e> Copying<'e> {
    fn begin(inner: &'e Inner) -> Result<Self, SessionFileError> {
        if inner.board.is_closed.load(Ordering::Relaxed) {
            return Err(SessionFileError::Closed);
        }
        match inner.is_copying.swap(true, Ordering::AcqRel) {
            true => Err(SessionFileError::Busy),
            false => Ok(Self(inner)),
        }
    }

    /// Lets the owner do a part.
    fn order(&self, part: Copy) -> Result<Copied, SessionFileError> {
        let (teller, told) = crossbeam_channel::bounded(1);
        let sent = self.0.orders.send(Order::Copy(part, teller));
        sent.map_err(|_| SessionFileError::Closed)?;
        told.recv().map_err(|_| SessionFileError::Closed)?
    }

    fn begun(&self, part: Copy) -> Result<usize, SessionFileError> {
        match self.order(part)? {
            Copied::Begun { n_tokens } => Ok(n_tokens),
            _ => Err(SessionFileError::GaveWay),
        }
    }

    fn piece(&self, part: Copy) -> Result<Vec<u8>, SessionFileError> {
        match self.order(part)? {
            Copied::Piece(piece) => Ok(piece),
            _ => Err(SessionFileError::GaveWay),
        }
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        // Nobody waits for it. An owner that is gone holds nothing.
        let (teller, _) = crossbeam_channel::bounded(1);
        let _ = self.0.orders.send(Order::Copy(Copy::Forget, teller));
        self.0.is_copying.store(false, Ordering::Release);
    }
}
