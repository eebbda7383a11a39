use proptest::prelude::*;

use super::*;

fn layer(window: Option<usize>) -> KvLayer {
    KvLayer { n_kv_heads: 2, key_dim: 32, value_dim: 32, window }
}

/// Of steps of up to 8 rows, with room for the windows of two sequences.
fn limits(n_pages: usize) -> Limits {
    let sizes = Limits { page_tokens: 4, max_rows: 8, max_sequences: 3, max_windows: 2, ..Limits::default() };
    Limits { kv_tokens: 4 * n_pages, ..sizes }
}

/// Two layers, the first with a window.
fn windowed(n_pages: usize, window: Option<usize>) -> KvCache {
    KvCache::try_new(&[layer(window), layer(None)], &limits(n_pages)).unwrap()
}

fn cache(n_pages: usize) -> KvCache {
    windowed(n_pages, None)
}

/// Where the first byte of a key of the second head lies; tokens of 64 bytes.
fn key(cache: &KvCache, sequence: Sequence, layer: usize, position: usize) -> *mut u8 {
    let (place, page) = (cache.keys(layer, 1), cache.pages(sequence, layer)[position / 4] as usize);
    assert!(page < 1 << 20, "layer {layer} has position {position}");
    place.start.wrapping_add(page * place.page_stride + position % 4 * 64)
}

/// Stands for a step: marks the positions in the first byte of each token's key.
fn write(cache: &mut KvCache, sequence: Sequence, from: usize, to: usize, mark: u8) -> bool {
    if !cache.make_writable(sequence, from, to) {
        return false;
    }
    for position in from..to {
        for layer in [0, 1] {
            // SAFETY: inside the page.
            unsafe { *key(cache, sequence, layer, position) = mark };
        }
    }
    cache.set_len(sequence, to);
    true
}

/// The marks of a layer at some positions.
fn marks_at(cache: &KvCache, sequence: Sequence, layer: usize, positions: Range<usize>) -> Vec<u8> {
    // SAFETY: inside the page.
    positions.map(|position| unsafe { *key(cache, sequence, layer, position) }).collect()
}

fn marks(cache: &KvCache, sequence: Sequence) -> Vec<u8> {
    marks_at(cache, sequence, 1, 0..cache.len(sequence))
}

#[test]
fn a_fork_shares_pages_until_either_side_writes() {
    let mut cache = cache(8);
    let first = cache.open().unwrap();
    assert!(cache.reserve(first, 6) && write(&mut cache, first, 0, 6, 1));
    assert_eq!(cache.free_tokens(), 24);
    let second = cache.fork(first, 5).unwrap();
    assert_eq!((cache.len(second), cache.free_tokens()), (5, 24));
    assert!(cache.reserve(second, 7) && write(&mut cache, second, 5, 7, 2));
    assert!(write(&mut cache, first, 6, 8, 3));
    assert_eq!(marks(&cache, first), [1, 1, 1, 1, 1, 1, 3, 3]);
    assert_eq!(marks(&cache, second), [1, 1, 1, 1, 1, 2, 2]);
    cache.close(first);
    assert_eq!(marks(&cache, second), [1, 1, 1, 1, 1, 2, 2]);
    cache.close(second);
    assert_eq!(cache.free_tokens(), 32);
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut cache = cache(2);
    let first = cache.open().unwrap();
    assert!(!cache.reserve(first, 9) && cache.free_tokens() == 8);
    assert!(cache.reserve(first, 8));
    let others = [cache.open().unwrap(), cache.open().unwrap()];
    assert!(cache.open().is_none() && !cache.reserve(others[0], 1));
    assert!(!cache.make_writable(first, 7, 9), "not reserved");
    assert!(cache.fork(first, 1).is_none(), "longer than what is written");
    cache.close(others[1]);
    assert!(!cache.is_open(others[1]) && !cache.reserve(others[1], 1) && cache.open().is_some());
}

#[test]
fn a_quantized_block_has_room_for_codes_and_scales() {
    assert_eq!(block_bytes(KvType::Q8_0, 32, 64), 32 * 68);
    assert_eq!(block_bytes(KvType::F16, 32, 80), 32 * 160);
    let limits = Limits { kv_type: KvType::F32, page_tokens: 16, kv_tokens: 48, ..Limits::default() };
    assert_eq!(KvCache::bytes_for(&[layer(None)], &limits), 3 * 2 * 2 * 16 * 32 * 4);
}

#[test]
fn a_window_takes_the_room_of_a_window() {
    // Two windows of 20 on pages of 4 that begin anywhere, and a step of 8.
    let n_pages = 2 * (5 + 2) + 2;
    let [whole, sizes] = [limits(100), Limits { kv_tokens: 4 * n_pages, ..limits(100) }];
    assert_eq!(KvCache::bytes_for(&[layer(Some(20))], &whole), KvCache::bytes_for(&[layer(None)], &sizes));
    // No more than without one.
    assert_eq!(KvCache::bytes_for(&[layer(Some(20))], &limits(3)), KvCache::bytes_for(&[layer(None)], &limits(3)));
    assert_eq!(windowed(100, Some(20)).bytes(), KvCache::bytes_for(&[layer(Some(20)), layer(None)], &whole));
}

#[test]
fn long_texts_run_in_the_room_of_their_windows_and_are_gone_on_with_while_it_is_there() {
    // Room for 2 windows of 6, 20 tokens each in the end: 2 * (2 + 2) + 2 pages.
    let mut cache = windowed(60, Some(6));
    let sequences = [cache.open().unwrap(), cache.open().unwrap()];
    for from in (0..96).step_by(8) {
        for sequence in sequences {
            assert!(cache.reserve(sequence, from + 8) && write(&mut cache, sequence, from, from + 8, 1));
        }
    }
    assert_eq!(cache.free_tokens(), 4 * 60 - 2 * 96);
    let [first, second] = sequences;
    assert_eq!((cache.resumable(first, 96), cache.resumable(first, 95), cache.resumable(first, 8)), (96, 95, 0));
    assert!(cache.fork(first, 8).is_none());
    let fork = cache.fork(first, 96).unwrap();
    assert!(cache.reserve(fork, 97) && write(&mut cache, fork, 96, 97, 2));
    cache.close(second);
    // What is written goes on; what was taken back for good is run again from the beginning.
    assert_eq!(cache.truncate(first, 8), 0);
    assert_eq!(marks_at(&cache, fork, 0, 91..97), [1, 1, 1, 1, 1, 2]);
    assert!(cache.reserve(first, 40) && write(&mut cache, first, 0, 8, 3));
    [first, fork].into_iter().for_each(|sequence| cache.close(sequence));
    assert!(cache.paging.is_empty());
}

proptest! {
    #[test]
    fn sequences_never_see_each_others_writes(
        actions in prop::collection::vec((0_u8..5, 0_usize..3, 1_usize..9), 1..60),
    ) {
        let mut cache = cache(10);
        let mut model: Vec<Option<(Sequence, Vec<u8>)>> = vec![None, None, None];
        for (number, (action, slot, amount)) in actions.into_iter().enumerate() {
            let mark = number as u8 + 1;
            match (action, model[slot].clone()) {
                (0, None) => model[slot] = cache.open().map(|sequence| (sequence, Vec::new())),
                (1 | 2, Some((sequence, mut known))) => {
                    let (from, to) = (known.len(), known.len() + amount);
                    if cache.reserve(sequence, to) {
                        // Reserved pages may have been shared since; then a copy can be out of reach.
                        prop_assert!(write(&mut cache, sequence, from, to, mark));
                        known.resize(to, mark);
                        model[slot] = Some((sequence, known));
                    }
                }
                (3, Some((sequence, mut known))) => {
                    known.truncate(amount);
                    prop_assert_eq!(cache.truncate(sequence, amount), known.len());
                    model[slot] = Some((sequence, known));
                }
                (4, Some((sequence, known))) => match model.iter().position(Option::is_none) {
                    Some(free) if amount <= known.len() => {
                        let fork = cache.fork(sequence, amount);
                        model[free] = fork.map(|fork| (fork, known[..amount].to_vec()));
                    }
                    _ => {
                        cache.close(sequence);
                        model[slot] = None;
                    }
                },
                _ => {}
            }
            for (sequence, known) in model.iter().flatten() {
                prop_assert_eq!(&marks(&cache, *sequence), known);
            }
            let used: std::collections::BTreeSet<u32> =
                model.iter().flatten().flat_map(|(sequence, _)| cache.pages(*sequence, 1).to_vec()).collect();
            prop_assert_eq!(cache.free_tokens(), 4 * (10 - used.len()));
        }
    }

    /// Whatever is run, taken back, shared and given up: what rows look at is what was written, and what is said to be
    /// there is.
    #[test]
    fn what_windows_reach_is_always_there(
        window in 1_usize..24,
        n_pages in 6_usize..30,
        actions in prop::collection::vec((0_u8..7, 0_usize..3, 1_usize..9), 1..120),
    ) {
        let mut cache = windowed(n_pages, Some(window));
        let mut model: Vec<Option<(Sequence, Vec<u8>)>> = vec![None, None, None];
        for (number, (action, slot, amount)) in actions.into_iter().enumerate() {
            let mark = number as u8 + 1;
            match (action, model[slot].clone()) {
                (_, None) => model[slot] = cache.open().map(|sequence| (sequence, Vec::new())),
                (0..=3, Some((sequence, mut known))) => {
                    let (from, to) = (known.len(), known.len() + amount);
                    if cache.reserve(sequence, to) {
                        prop_assert_eq!(cache.resumable(sequence, from), from);
                        prop_assert!(write(&mut cache, sequence, from, to, mark));
                        known.resize(to, mark);
                        // Guesses that were wrong.
                        let kept = from + amount.div_ceil(2);
                        prop_assert_eq!(cache.truncate(sequence, kept), kept);
                        known.truncate(kept);
                        model[slot] = Some((sequence, known));
                    } else {
                        // Two windows always have room.
                        let others = model.iter().flatten().count();
                        prop_assert!(others > 2 || cache.free_tokens() < 4 * 5);
                        cache.close(sequence);
                        model[slot] = None;
                    }
                }
                (4, Some((sequence, mut known))) => {
                    let wanted = known.len() * amount / 8;
                    let resumable = cache.resumable(sequence, wanted);
                    prop_assert!(resumable <= wanted);
                    prop_assert_eq!(cache.truncate(sequence, wanted), resumable);
                    known.truncate(resumable);
                    model[slot] = Some((sequence, known));
                }
                (5, Some((sequence, known))) => {
                    if let Some(free) = model.iter().position(Option::is_none) {
                        let at = cache.resumable(sequence, known.len() * amount / 8);
                        let fork = cache.fork(sequence, at);
                        prop_assert!(fork.is_some());
                        model[free] = fork.map(|fork| (fork, known[..at].to_vec()));
                    }
                }
                (_, Some((sequence, _))) => {
                    cache.close(sequence);
                    model[slot] = None;
                }
            }
            for (sequence, known) in model.iter().flatten() {
                prop_assert_eq!(&marks(&cache, *sequence), known);
                for end in 0..=known.len() {
                    if cache.resumable(*sequence, end) == end {
                        let from = (end + 1).saturating_sub(window).min(end);
                        prop_assert_eq!(&marks_at(&cache, *sequence, 0, from..end), &known[from..end]);
                    }
                }
            }
            cache.paging.recount();
        }
        model.iter().flatten().for_each(|(sequence, _)| cache.close(*sequence));
        prop_assert!(cache.paging.is_empty());
    }
}

/// Sizes that no number holds are refused as memory that is not to be had, not wrapped to some that are.
#[test]
fn a_cache_beyond_all_memory_is_refused_with_its_bytes() {
    let limits = Limits { kv_tokens: 1 << 30, page_tokens: 1 << 16, max_windows: 1 << 20, ..limits(1) };
    for (n_kv_heads, dim) in [(1 << 20, 1 << 20), (1 << 34, 1 << 30), (usize::MAX / 2, 64)] {
        let layer = KvLayer { n_kv_heads, key_dim: dim, value_dim: dim, ..layer(None) };
        assert!(KvCache::bytes_for(std::slice::from_ref(&layer), &limits) >= 1 << 60);
        match KvCache::try_new(&[layer], &limits).map(|_| ()) {
            Err(DeviceError::OutOfMemory { needed_bytes, .. }) => assert!(needed_bytes >= 1 << 60),
            other => panic!("{other:?}"),
        }
    }
}
