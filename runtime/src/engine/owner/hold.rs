//! A text that is copied out of the cache or into it, a piece at a time between steps, for a file.
//!
//! Texts in files are those of the prefix scope without a name. Its sequence is no choice's and no cached prefix's meanwhile. It gives way last of what is cached, before anything
//! that runs.

use std::ops::Range;

use farpost_kernels::backend::Sequence;

use super::Owner;
use super::prefixes::BLOCK;
use crate::engine::session_file::SessionFileError;

/// What is to be done with the text that is copied.
#[derive(Debug)]
pub(in crate::engine) enum Copy {
    /// Begin to copy out the longest beginning of these tokens that is cached or runs.
    Out(Vec<u32>),
    /// Begin to copy in so many tokens.
    In(usize),
    /// Fill this with positions of the text of so many tokens.
    Read { n_tokens: usize, positions: Range<usize>, piece: Vec<u8> },
    /// Append so many positions of a text of so many tokens.
    Append { n_tokens: usize, n_positions: usize, piece: Vec<u8> },
    /// Keep it as a cached prefix of these tokens.
    Keep(Vec<u32>),
    /// Forget it.
    Forget,
}

/// What came of it.
#[derive(Debug)]
pub(in crate::engine) enum Copied {
    /// So many tokens can be copied.
    Begun {
        n_tokens: usize,
    },
    /// The piece, to be used again.
    Piece(Vec<u8>),
    Done,
}

impl Owner {
    /// Does one part of a copy.
    pub(super) fn copy(&mut self, part: Copy) -> Result<Copied, SessionFileError> {
        match part {
            Copy::Out(tokens) => self.begin_copy_out(&tokens),
            Copy::In(n_tokens) => self.begin_copy_in(n_tokens),
            Copy::Read { n_tokens, positions, mut piece } => {
                let read = |held| self.plan.kv().read(held, n_tokens, positions, &mut piece);
                let is_read = self.held.is_some_and(read);
                if is_read { Ok(Copied::Piece(piece)) } else { Err(SessionFileError::GaveWay) }
            }
            Copy::Append { n_tokens, n_positions, piece } => {
                // What it takes for windows is not reserved: cached prefixes give way, and the last that does is itself.
                while let Some(held) = self.held {
                    if self.plan.kv().append(held, n_tokens, n_positions, &piece) {
                        return Ok(Copied::Piece(piece));
                    }
                    self.evict(None);
                }
                Err(SessionFileError::GaveWay)
            }
            Copy::Keep(tokens) => {
                let held = self.held.take().ok_or(SessionFileError::GaveWay)?;
                self.metrics.evicted += self.prefixes.keep(held, tokens, self.hashing.scope(""), self.plan.kv());
                Ok(Copied::Done)
            }
            Copy::Forget => {
                self.forget_held();
                Ok(Copied::Done)
            }
        }
    }

    fn begin_copy_out(&mut self, tokens: &[u32]) -> Result<Copied, SessionFileError> {
        self.forget_held();
        let none = SessionFileError::NotCached { least: BLOCK };
        let hashes = self.hashing.of(tokens, self.hashing.scope(""));
        let Some(found) = self.longest(&hashes, tokens, tokens.len()) else { return Err(none) };
        // A file keeps whole windows, of which the last position is only looked at by a token that is run again.
        let kv = self.plan.kv();
        let mut n_tokens = found.shared;
        while n_tokens > 0 && kv.resumable(found.sequence, n_tokens - 1) + 1 < n_tokens {
            n_tokens = kv.resumable(found.sequence, n_tokens - 1);
        }
        if n_tokens < BLOCK {
            return Err(none);
        }
        self.prefixes.touch(found.sequence);
        let Some(fork) = self.plan.kv().fork(found.sequence, n_tokens) else {
            return Err(SessionFileError::GaveWay);
        };
        self.held = Some(fork);
        Ok(Copied::Begun { n_tokens })
    }

    fn begin_copy_in(&mut self, n_tokens: usize) -> Result<Copied, SessionFileError> {
        self.forget_held();
        if !self.prefixes.keeps(n_tokens) {
            return Err(SessionFileError::NotKept { tokens: n_tokens, least: BLOCK });
        }
        let no_room = SessionFileError::NoRoom { tokens: n_tokens };
        let Some(sequence) = self.open() else { return Err(no_room) };
        while !self.plan.kv().reserve(sequence, n_tokens) {
            if !self.evict(None) {
                self.plan.kv().close(sequence);
                return Err(no_room);
            }
        }
        self.held = Some(sequence);
        Ok(Copied::Begun { n_tokens })
    }

    /// Frees the text that is copied; false if there is none.
    pub(super) fn forget_held(&mut self) -> bool {
        let held: Option<Sequence> = self.held.take();
        held.map(|held| self.plan.kv().close(held)).is_some()
    }
}
