//! Keys and values as bytes outside of pages, position after position: what is saved to files and taken from them.

use super::{KvCache, Plane, Q8_LEN};
use crate::backend::{KvStore, KvType, Sequence};

/// Bytes of one position in all layers.
pub(super) fn token_bytes(cache: &KvCache) -> usize {
    let of = |plane: &Plane| plane.n_heads * cache.kv_type.vector_bytes(plane.dim);
    cache.layers.iter().map(|(keys, values)| of(keys) + of(values)).sum()
}

/// The positions that `n_bytes` are, from `from` on; `None` if that is no whole number.
fn end_of(cache: &KvCache, from: usize, n_bytes: usize) -> Option<usize> {
    let token_bytes = token_bytes(cache).max(1);
    n_bytes.is_multiple_of(token_bytes).then(|| from.checked_add(n_bytes / token_bytes))?
}

/// Calls `visit` with address and length of each piece of a position, in the order of the image.
fn for_each_piece(cache: &KvCache, page: u32, token: usize, visit: &mut impl FnMut(*mut u8, usize)) {
    for plane in cache.layers.iter().flat_map(|(keys, values)| [keys, values]) {
        for head in 0..plane.n_heads {
            let block = page as usize * plane.page_bytes() + head * plane.block_bytes;
            let mut piece = |start: usize, len: usize| visit(plane.bytes.at(block + start), len);
            match cache.kv_type {
                KvType::Q8_0 => {
                    let scales = plane.dim / Q8_LEN * 2;
                    piece(token * plane.dim, plane.dim);
                    piece(cache.page_tokens * plane.dim + token * scales, scales);
                }
                KvType::F16 | KvType::F32 => {
                    let len = cache.kv_type.vector_bytes(plane.dim);
                    piece(token * len, len);
                }
            }
        }
    }
}

/// See [`KvStore::read`].
pub(super) fn read(cache: &KvCache, sequence: Sequence, from: usize, out: &mut [u8]) -> bool {
    let Some(end) = end_of(cache, from, out.len()).filter(|&end| end <= cache.len(sequence)) else { return false };
    let pages = cache.pages(sequence);
    let mut rest = out;
    for position in from..end {
        let (page, token) = (pages[position / cache.page_tokens], position % cache.page_tokens);
        for_each_piece(cache, page, token, &mut |start, len| {
            let (piece, behind) = std::mem::take(&mut rest).split_at_mut(len);
            // SAFETY: the pieces of a token lie inside its page; no step runs while the cache is borrowed.
            piece.copy_from_slice(unsafe { std::slice::from_raw_parts(start.cast_const(), len) });
            rest = behind;
        });
    }
    true
}

/// See [`KvStore::append`].
pub(super) fn append(cache: &mut KvCache, sequence: Sequence, bytes: &[u8]) -> bool {
    let from = cache.len(sequence);
    let Some(end) = end_of(cache, from, bytes.len()).filter(|_| cache.is_open(sequence)) else { return false };
    if !cache.make_writable(sequence, from, end) {
        return false;
    }
    let pages = cache.pages(sequence);
    let mut rest = bytes;
    for position in from..end {
        let (page, token) = (pages[position / cache.page_tokens], position % cache.page_tokens);
        for_each_piece(cache, page, token, &mut |start, len| {
            let (piece, behind) = rest.split_at(len);
            // SAFETY: the pieces of a token lie inside its page, which is the sequence's own; the borrow is exclusive.
            unsafe { start.copy_from_nonoverlapping(piece.as_ptr(), len) };
            rest = behind;
        });
    }
    cache.set_len(sequence, end);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::attention::store;
    use crate::cpu::isa::Isa;
    use crate::graph::KvLayer;

    const DIM: usize = 64;

    fn cache(kv_type: KvType) -> KvCache {
        let layer = |value_dim| KvLayer { n_kv_heads: 2, key_dim: DIM, value_dim, window: None };
        KvCache::try_new(&[layer(DIM), layer(DIM / 2)], kv_type, 8, 4, 3).unwrap()
    }

    /// Stands for a step: every vector is filled by its place and `salt`.
    fn write(cache: &mut KvCache, sequence: Sequence, to: usize, salt: usize) {
        let from = cache.len(sequence);
        assert!(cache.reserve(sequence, to) && cache.make_writable(sequence, from, to));
        for position in from..to {
            let page = cache.pages(sequence)[position / 4] as usize;
            for (number, plane) in cache.layers.iter().flat_map(|(keys, values)| [keys, values]).enumerate() {
                for head in 0..plane.n_heads {
                    let value = |at: usize| ((salt + position * 31 + number * 7 + head * 3 + at) % 97) as f32 - 40.0;
                    let values: Vec<f32> = (0..plane.dim).map(value).collect();
                    let place = plane.head(head);
                    // SAFETY: an available set; a block of the page.
                    unsafe {
                        let block = place.start.add(page * place.page_stride);
                        store(Isa::Scalar, cache.kv_type, &values, block, 4, position % 4);
                    }
                }
            }
        }
        cache.set_len(sequence, to);
    }

    fn image(cache: &KvCache, sequence: Sequence, from: usize, to: usize) -> Vec<u8> {
        let mut bytes = vec![0xAA; (to - from) * cache.token_bytes()];
        assert!(cache.read(sequence, from, &mut bytes));
        bytes
    }

    #[test]
    fn what_is_appended_is_what_was_read_wherever_its_pages_lie() {
        for kv_type in [KvType::F16, KvType::Q8_0, KvType::F32] {
            let mut cache = cache(kv_type);
            assert_eq!(cache.token_bytes(), 2 * (3 * kv_type.vector_bytes(DIM) + kv_type.vector_bytes(DIM / 2)));
            let first = cache.open().unwrap();
            write(&mut cache, first, 11, 0);
            let whole = image(&cache, first, 0, 11);
            assert_eq!(whole[5 * cache.token_bytes()..][..2 * cache.token_bytes()], image(&cache, first, 5, 7));
            let second = cache.open().unwrap();
            assert!(cache.reserve(second, 11));
            for part in whole.chunks(3 * cache.token_bytes()) {
                assert!(cache.append(second, part));
            }
            assert_eq!((cache.len(second), image(&cache, second, 0, 11)), (11, whole.clone()));
            // What goes on from it is another's as much as its own.
            write(&mut cache, second, 13, 5);
            assert_eq!(image(&cache, first, 0, 11), whole);
            assert_eq!(image(&cache, second, 0, 11), whole);
        }
    }

    #[test]
    fn a_shared_page_is_copied_before_it_is_appended_to() {
        let mut cache = cache(KvType::F16);
        let first = cache.open().unwrap();
        write(&mut cache, first, 8, 0);
        let whole = image(&cache, first, 0, 8);
        let fork = cache.fork(first, 6).unwrap();
        let tail = image(&cache, first, 0, 2);
        assert!(cache.reserve(fork, 8) && cache.append(fork, &tail));
        assert_eq!(image(&cache, first, 0, 8), whole);
        assert_eq!(image(&cache, fork, 6, 8), tail);
    }

    #[test]
    fn what_is_no_whole_number_or_not_there_is_refused_and_changes_nothing() {
        let mut cache = cache(KvType::Q8_0);
        let (first, token_bytes) = (cache.open().unwrap(), cache.token_bytes());
        write(&mut cache, first, 3, 0);
        let before = image(&cache, first, 0, 3);
        let mut out = vec![0; 2 * token_bytes];
        assert!(!cache.read(first, 2, &mut out) && !cache.read(first, usize::MAX, &mut out));
        assert!(!cache.read(first, 0, &mut out[1..]) && out.iter().all(|byte| *byte == 0));
        assert!(!cache.append(first, &before[1..]), "no whole number");
        assert!(!cache.append(first, &before), "reserved are four");
        assert!(cache.append(first, &before[..token_bytes]));
        assert_eq!((cache.len(first), image(&cache, first, 0, 3)), (4, before.clone()));
        assert!(!cache.append(Sequence(7), &before) && !cache.read(Sequence(7), 0, &mut out));
    }
}
