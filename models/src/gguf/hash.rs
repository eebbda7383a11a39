//! The content hash of a model: SHA-256, so that it can be held against what publishers state and `sha256sum` prints.
//!
//! Computed only on demand: it reads the whole file. Of a split model it is the hash of its parts one after the other.

use std::fmt;
use std::ops::ControlFlow;

use farpost_kernels::tensor::Bytes;
use sha2::{Digest, Sha256};

use super::error::GgufError;
use super::file::File;

/// SHA-256 of a model's bytes; shown as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bytes hashed between two calls of the progress callback.
const STEP: usize = 8 << 20;

impl File {
    /// Hashes all bytes of the model. Refused if the file changed since it was opened.
    pub fn content_hash(&self) -> Result<ContentHash, GgufError> {
        let hash = self.content_hash_with(&mut |_, _| ControlFlow::Continue(()))?;
        Ok(hash.expect("nobody breaks off"))
    }

    /// [`File::content_hash`] with a callback that gets the bytes done and the bytes in all; `None` if it breaks off.
    pub fn content_hash_with(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Option<ContentHash>, GgufError> {
        let (mut hasher, mut done, total) = (Sha256::new(), 0, self.size_bytes());
        for piece in self.pieces() {
            hasher.update(piece);
            done += piece.len() as u64;
            if progress(done, total).is_break() {
                return Ok(None);
            }
        }
        self.check_unchanged()?;
        Ok(Some(ContentHash(hasher.finalize().into())))
    }

    /// All bytes of the model in the order in which they are hashed.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.parts().map(Bytes::as_slice).flat_map(|bytes| bytes.chunks(STEP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Writer;

    #[test]
    fn the_hash_is_plain_sha_256_of_the_bytes() {
        assert_eq!(
            ContentHash(Sha256::digest(b"abc").into()).to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let bytes = Writer::new().start("m", Vec::new()).unwrap().finish().unwrap();
        let file = File::from_bytes("m", bytes.clone().into()).unwrap();
        let mut seen = Vec::new();
        let mut progress = |done, total| {
            seen.push((done, total));
            ControlFlow::Continue(())
        };
        let hash = file.content_hash_with(&mut progress).unwrap().unwrap();
        assert_eq!(hash.0, <[u8; 32]>::from(Sha256::digest(&bytes)));
        assert_eq!(file.content_hash_with(&mut |_, _| ControlFlow::Break(())).unwrap(), None);
        assert_eq!(seen, [(bytes.len() as u64, bytes.len() as u64)]);
    }
}
