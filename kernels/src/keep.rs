//! What is worth keeping from one run of the program to the next: compiled shaders, what came of self-tests, timings.
//!
//! This crate knows no file: whoever opens a device says where such things are kept. Nothing hangs on them: what is not
//! there, of another version or broken is made anew.

/// Keeps bytes by name.
pub trait Keep: Send + Sync {
    /// What was kept under a name, if there is anything that can be read.
    fn load(&self, name: &str) -> Option<Vec<u8>>;
    /// Keeps bytes under a name, whole or not at all. Nobody is told where that fails.
    fn save(&self, name: &str, bytes: &[u8]);
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Keep for Nowhere {
    fn load(&self, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn save(&self, _: &str, _: &[u8]) {}
}

/// What sealed bytes begin with: a mark and a version.
const MARK: [u8; 8] = *b"FARPKPT1";

/// FNV-1a of 64 bits (draft-eastlake-fnv): tells what was changed by accident, not by malice.
pub(crate) fn hash<'b>(parts: impl IntoIterator<Item = &'b [u8]>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    // A byte that UTF-8 has not between parts, so that they do not run into each other.
    let bytes = parts.into_iter().flat_map(|part| part.iter().copied().chain([0xFF]));
    bytes.fold(0xCBF2_9CE4_8422_2325, step)
}

/// The name of something that hangs on all of `parts`.
pub(crate) fn name<'b>(kind: &str, parts: impl IntoIterator<Item = &'b [u8]>) -> String {
    format!("{kind}-{:016x}", hash(parts))
}

/// Bytes with what tells later whether they are still what they were.
pub(crate) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(MARK.len() + 8 + bytes.len());
    sealed.extend_from_slice(&MARK);
    sealed.extend_from_slice(&hash([bytes]).to_le_bytes());
    sealed.extend_from_slice(bytes);
    sealed
}

/// The bytes that were sealed, if they are still what they were.
pub(crate) fn opened(sealed: &[u8]) -> Option<&[u8]> {
    let (hashed, bytes) = sealed.strip_prefix(&MARK)?.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*hashed) == hash([bytes])).then_some(bytes)
}

/// Keeps in memory, for tests.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct InMemory(pub(crate) std::sync::Mutex<std::collections::HashMap<String, Vec<u8>>>);

#[cfg(test)]
impl Keep for InMemory {
    fn load(&self, name: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(name).cloned()
    }

    fn save(&self, name: &str, bytes: &[u8]) {
        self.0.lock().unwrap().insert(name.to_owned(), bytes.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_unless_a_bit_of_it_changed() {
        for bytes in [&b""[..], b"x", b"some bytes"] {
            let whole = sealed(bytes);
            assert_eq!(opened(&whole), Some(bytes));
            for bit in 0..8 * whole.len() {
                let mut broken = whole.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(opened(&broken), None, "bit {bit}");
            }
            for len in 0..whole.len() {
                assert_eq!(opened(&whole[..len]), None, "{len} bytes");
            }
        }
    }

    #[test]
    fn names_hang_on_where_parts_end() {
        let of = |parts: &[&'static str]| name("kind", parts.iter().map(|part| part.as_bytes()));
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_eq!(of(&[]), "kind-cbf29ce484222325");
    }
}
