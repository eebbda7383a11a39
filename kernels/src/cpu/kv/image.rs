//! Keys and values as bytes outside of pages, position after position: what is saved to files and taken from them.

use std::ops::Range;

use super::{KvCache, Layer, Plane, Q8_LEN};
use crate::backend::{ImageShape, KvStore, KvType, Sequence};

/// Bytes of a position in each layer.
pub(super) fn shape(cache: &KvCache) -> ImageShape {
    let of = |plane: &Plane| plane.n_heads * cache.kv_type.vector_bytes(plane.dim);
    let of_layer =
        |(number, layer): (usize, &Layer)| (cache.paging.window(number), of(&layer.keys) + of(&layer.values));
    ImageShape::new(cache.layers.iter().enumerate().map(of_layer))
}

/// Calls `visit` with address and length of each piece of a position of a text of `n_tokens`, in the order of the image.
///
/// The position is in the tables of `sequence`, for every layer that keeps it.
fn for_each_piece(
    cache: &KvCache,
    sequence: Sequence,
    n_tokens: usize,
    position: usize,
    visit: &mut impl FnMut(*mut u8, usize),
) {
    let page_tokens = cache.page_tokens();
    let (place, token) = (position / page_tokens, position % page_tokens);
    let kept = cache.layers.iter().enumerate();
    let kept = kept.filter(|(number, _)| position >= cache.paging.first_kept(*number, n_tokens));
    for (number, plane) in kept.flat_map(|(number, layer)| [(number, &layer.keys), (number, &layer.values)]) {
        let page = cache.pages(sequence, number)[place] as usize;
        for head in 0..plane.n_heads {
            let block = page * plane.page_bytes() + head * plane.block_bytes;
            let mut piece = |start: usize, len: usize| visit(plane.bytes.at(block + start), len);
            match cache.kv_type {
                KvType::Q8_0 => {
                    let scales = plane.dim / Q8_LEN * 2;
                    piece(token * plane.dim, plane.dim);
                    piece(page_tokens * plane.dim + token * scales, scales);
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
pub(super) fn read(
    cache: &KvCache,
    sequence: Sequence,
    n_tokens: usize,
    positions: Range<usize>,
    out: &mut [u8],
) -> bool {
    let is_readable = cache.paging.is_readable(sequence, n_tokens, &positions);
    if !is_readable || shape(cache).bytes(n_tokens, positions.clone()) != out.len() as u64 {
        return false;
    }
    let mut rest = out;
    for position in positions {
        for_each_piece(cache, sequence, n_tokens, position, &mut |start, len| {
            let (piece, behind) = std::mem::take(&mut rest).split_at_mut(len);
            // SAFETY: the pieces of a token lie inside its page; no step runs while the cache is borrowed.
            piece.copy_from_slice(unsafe { std::slice::from_raw_parts(start.cast_const(), len) });
            rest = behind;
        });
    }
    true
}

/// See [`KvStore::append`].
pub(super) fn append(
    cache: &mut KvCache,
    sequence: Sequence,
    n_tokens: usize,
    n_positions: usize,
    bytes: &[u8],
) -> bool {
    let from = cache.len(sequence);
    let end = from.saturating_add(n_positions);
    let is_text = cache.is_open(sequence) && end <= n_tokens;
    if !is_text || shape(cache).bytes(n_tokens, from..end) != bytes.len() as u64 {
        return false;
    }
    if !cache.paging.begin_append(sequence, n_tokens, n_positions, &mut cache.layers) {
        return false;
    }
    let mut rest = bytes;
    for position in from..end {
        for_each_piece(cache, sequence, n_tokens, position, &mut |start, len| {
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
    use crate::backend::Limits;
    use crate::cpu::attention::store;
    use crate::cpu::isa::Isa;
    use crate::graph::KvLayer;

    const DIM: usize = 64;

    /// Sixteen pages of 4 tokens; the second layer with a window.
    fn cache(kv_type: KvType, window: Option<usize>) -> KvCache {
        let layer = |value_dim, window| KvLayer { n_kv_heads: 2, key_dim: DIM, value_dim, window };
        let sizes = Limits { kv_tokens: 64, page_tokens: 4, max_rows: 8, max_sequences: 3, ..Limits::default() };
        let limits = Limits { kv_type, max_windows: 3, ..sizes };
        KvCache::try_new(&[layer(DIM, None), layer(DIM / 2, window)], &limits).unwrap()
    }

    /// Stands for a step: every vector is filled by its place and `salt`.
    fn write(cache: &mut KvCache, sequence: Sequence, to: usize, salt: usize) {
        let from = cache.len(sequence);
        assert!(cache.reserve(sequence, to) && cache.make_writable(sequence, from, to));
        for position in from..to {
            let planes = cache.layers.iter().enumerate();
            let planes = planes.flat_map(|(layer, of)| [(layer, &of.keys), (layer, &of.values)]).enumerate();
            for (number, (layer, plane)) in planes {
                let page = cache.pages(sequence, layer)[position / 4] as usize;
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
        let n_tokens = cache.len(sequence);
        let mut bytes = vec![0xAA; cache.image().bytes(n_tokens, from..to) as usize];
        assert!(cache.read(sequence, n_tokens, from..to, &mut bytes));
        bytes
    }

    #[test]
    fn what_is_appended_is_what_was_read_wherever_its_pages_lie() {
        for kv_type in [KvType::F16, KvType::Q8_0, KvType::F32] {
            let mut cache = cache(kv_type, None);
            let token_bytes = 2 * (3 * kv_type.vector_bytes(DIM) + kv_type.vector_bytes(DIM / 2));
            assert_eq!(cache.image().bytes(11, 0..11), 11 * token_bytes as u64);
            let first = cache.open().unwrap();
            write(&mut cache, first, 11, 0);
            let whole = image(&cache, first, 0, 11);
            assert_eq!(whole[5 * token_bytes..][..2 * token_bytes], image(&cache, first, 5, 7));
            let second = cache.open().unwrap();
            assert!(cache.reserve(second, 11));
            for part in whole.chunks(3 * token_bytes) {
                assert!(cache.append(second, 11, part.len() / token_bytes, part));
            }
            assert_eq!((cache.len(second), image(&cache, second, 0, 11)), (11, whole.clone()));
            // What goes on from it is another's as much as its own.
            write(&mut cache, second, 13, 5);
            let mut begun = vec![0; whole.len()];
            assert!(cache.read(second, 11, 0..11, &mut begun));
            assert_eq!((begun, image(&cache, first, 0, 11)), (whole.clone(), whole));
        }
    }

    #[test]
    fn a_text_with_a_window_is_its_last_positions_there() {
        for n_tokens in [3, 6, 7, 11, 20] {
            let mut cache = cache(KvType::F16, Some(6));
            let [whole_bytes, windowed_bytes] = [2 * 2 * 2 * DIM, 2 * 2 * (DIM + DIM / 2)];
            let first = cache.open().unwrap();
            write(&mut cache, first, n_tokens, 0);
            let bytes = image(&cache, first, 0, n_tokens);
            assert_eq!(bytes.len(), n_tokens * whole_bytes + n_tokens.min(6) * windowed_bytes);
            let second = cache.open().unwrap();
            assert!(cache.reserve(second, n_tokens));
            let mut rest = &bytes[..];
            for from in (0..n_tokens).step_by(3) {
                let n_positions = 3.min(n_tokens - from);
                let (piece, behind) = rest.split_at(cache.image().bytes(n_tokens, from..from + n_positions) as usize);
                assert!(cache.append(second, n_tokens, n_positions, piece));
                rest = behind;
            }
            assert_eq!((cache.len(second), image(&cache, second, 0, n_tokens)), (n_tokens, bytes));
            // The next row has all it looks at, and the last one can be run again; before that nothing is known.
            assert_eq!(cache.resumable(second, n_tokens), n_tokens);
            assert_eq!(cache.resumable(second, n_tokens - 1), n_tokens - 1);
            let earlier = n_tokens - 2;
            assert_eq!(cache.resumable(second, earlier), if n_tokens <= 6 { earlier } else { 0 });
            write(&mut cache, second, n_tokens + 2, 3);
            cache.close(second);
            cache.close(first);
            assert_eq!(cache.free_tokens(), 64);
        }
    }

    #[test]
    fn a_shared_page_is_copied_before_it_is_appended_to() {
        let mut cache = cache(KvType::F16, None);
        let first = cache.open().unwrap();
        write(&mut cache, first, 8, 0);
        let whole = image(&cache, first, 0, 8);
        let fork = cache.fork(first, 6).unwrap();
        let tail = image(&cache, first, 0, 2);
        assert!(cache.reserve(fork, 8) && cache.append(fork, 8, 2, &tail));
        assert_eq!(image(&cache, first, 0, 8), whole);
        assert_eq!(image(&cache, fork, 6, 8), tail);
    }

    #[test]
    fn what_is_no_whole_number_or_not_there_is_refused_and_changes_nothing() {
        let mut cache = cache(KvType::Q8_0, None);
        let first = cache.open().unwrap();
        let token_bytes = cache.image().bytes(1, 0..1) as usize;
        write(&mut cache, first, 3, 0);
        let before = image(&cache, first, 0, 3);
        let mut out = vec![0; 2 * token_bytes];
        assert!(!cache.read(first, 3, 2..4, &mut out) && !cache.read(first, 4, 2..4, &mut out));
        #[allow(clippy::reversed_empty_ranges)] // A caller's mistake.
        let is_read = cache.read(first, 3, 3..1, &mut out);
        assert!(!is_read && !cache.read(first, 3, 0..2, &mut out[1..]));
        assert!(out.iter().all(|byte| *byte == 0));
        assert!(!cache.append(first, 6, 3, &before[1..]), "no whole number");
        assert!(!cache.append(first, 6, 3, &before), "reserved are four");
        assert!(!cache.append(first, 3, 1, &before[..token_bytes]), "longer than the text");
        assert!(cache.append(first, 4, 1, &before[..token_bytes]));
        assert_eq!((cache.len(first), image(&cache, first, 0, 3)), (4, before.clone()));
        assert!(!cache.append(Sequence(7), 3, 3, &before) && !cache.read(Sequence(7), 0, 0..0, &mut []));
    }
}
