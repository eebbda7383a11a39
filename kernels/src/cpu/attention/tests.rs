//! The plain pass against a definition in f64, and every set against the plain pass.

use half::f16;
use proptest::prelude::*;

use super::*;
use crate::backend::KvType;

/// A small generator, so that cases are cheap to make and to repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }
}

/// One head with its pages in random order, and queries over it.
struct Case {
    kv_type: KvType,
    key_dim: usize,
    value_dim: usize,
    page_tokens: usize,
    n_tokens: usize,
    pages: Vec<u32>,
    keys: Vec<u8>,
    values: Vec<u8>,
    queries: Vec<(Vec<f32>, usize, usize)>,
    scores: Scores,
    order: Order,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    kv_type: KvType,
    key_dim: usize,
    value_dim: usize,
    page_tokens: usize,
    n_tokens: usize,
    n_queries: usize,
}

impl Case {
    /// `group` queries a token, as of the last tokens of a sequence; `window` positions seen.
    fn new(sizes: Sizes, group: usize, window: usize, softcap: Option<f32>, seed: u64) -> Self {
        let Sizes { kv_type, key_dim, value_dim, page_tokens, n_tokens, n_queries } = sizes;
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let n_pages = n_tokens.div_ceil(page_tokens);
        let mut pages: Vec<u32> = (0..n_pages as u32 + 2).collect();
        for at in (1..pages.len()).rev() {
            pages.swap(at, random.below(at + 1));
        }
        let (key_stride, value_stride) = (page_tokens * key_dim * 4 + 64, page_tokens * value_dim * 4);
        // Whatever nobody wrote is NaN, so that reading it shows.
        let mut keys = vec![0xFF; key_stride * (n_pages + 2)];
        let mut values = vec![0xFF; value_stride * (n_pages + 2)];
        for token in 0..n_tokens {
            let page = pages[token / page_tokens] as usize;
            for (plane, stride, dim) in [(&mut keys, key_stride, key_dim), (&mut values, value_stride, value_dim)] {
                let vector: Vec<f32> = (0..dim).map(|_| random.value()).collect();
                let block = plane[page * stride..].as_mut_ptr();
                // SAFETY: scalar is available; the block has room for `page_tokens` vectors of any type.
                unsafe { store(Isa::Scalar, kv_type, &vector, block, page_tokens, token % page_tokens) };
            }
        }
        let queries = (0..n_queries)
            .map(|index| {
                let to = (n_tokens + index / group + 1).saturating_sub(n_queries.div_ceil(group)).min(n_tokens);
                let q = (0..key_dim).map(|_| 3.0 * random.value()).collect();
                (q, to.saturating_sub(window), to)
            })
            .collect();
        let scores = Scores { scale: 1.0 / (key_dim as f32).sqrt(), softcap };
        Self {
            kv_type,
            key_dim,
            value_dim,
            page_tokens,
            n_tokens,
            pages,
            keys,
            values,
            queries,
            scores,
            order: Order::Fastest,
        }
    }

    fn head(&self) -> KvHead<'_> {
        let n_pages = self.pages.len();
        KvHead {
            kv_type: self.kv_type,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            page_tokens: self.page_tokens,
            pages: &self.pages,
            keys: self.keys.as_ptr(),
            key_page_stride: self.keys.len() / n_pages,
            values: self.values.as_ptr(),
            value_page_stride: self.values.len() / n_pages,
        }
    }

    /// Partial rows after attending to `ranges` one after the other.
    fn partials(&self, isa: Isa, ranges: &[(usize, usize)]) -> Vec<Vec<f32>> {
        let len = partial_len(self.value_dim);
        let stride = len + 3;
        let mut rows = vec![7.0; stride * self.queries.len()];
        rows.chunks_mut(stride).for_each(|row| reset(&mut row[..len]));
        let queries: Vec<Query> =
            self.queries.iter().map(|(q, from, to)| Query { q: q.as_ptr(), from: *from, to: *to }).collect();
        // What an earlier call left behind must not matter.
        let mut scratch = Scratch::try_new(self.queries.len(), self.key_dim.max(self.value_dim)).unwrap();
        for block in [&scratch.keys, &scratch.values, &scratch.scores, &scratch.queries, &scratch.sums] {
            // SAFETY: the whole of a block that is ours; all ones are NaN.
            unsafe { block.at(0).write_bytes(0xFF, block.bytes() as usize / 4) };
        }
        for (from, to) in ranges {
            let partials = PartialRows { start: rows.as_mut_ptr(), stride };
            // SAFETY: an available set; all tokens are written; rows and queries live on.
            unsafe {
                attend(isa, &self.head(), &queries, *from..*to, self.scores, self.order, &mut scratch, partials);
            }
        }
        rows.chunks(stride)
            .map(|row| {
                assert_eq!(row[len..], [7.0; 3], "nothing is written beside a row");
                row[..len].to_vec()
            })
            .collect()
    }

    fn finished(&self, partials: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let finished = |partial: &Vec<f32>| {
            let mut out = vec![f32::NAN; self.value_dim];
            finish(partial, &mut out);
            out
        };
        partials.iter().map(finished).collect()
    }

    fn run(&self, isa: Isa) -> Vec<Vec<f32>> {
        self.finished(&self.partials(isa, &[(0, self.n_tokens)]))
    }

    /// A stored vector, decoded here by the layout's description.
    fn stored(&self, is_key: bool, token: usize) -> Vec<f64> {
        let (plane, dim) = if is_key { (&self.keys, self.key_dim) } else { (&self.values, self.value_dim) };
        let page = self.pages[token / self.page_tokens] as usize;
        let block = &plane[page * (plane.len() / self.pages.len())..];
        let token = token % self.page_tokens;
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
        (0..dim)
            .map(|at| match self.kv_type {
                KvType::F32 => {
                    let bytes = &block[4 * (token * dim + at)..][..4];
                    f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                }
                KvType::F16 => half(2 * (token * dim + at)),
                KvType::Q8_0 => {
                    let scale = half(self.page_tokens * dim + 2 * (token * (dim / 32) + at / 32));
                    f64::from(block[token * dim + at] as i8) * scale
                }
            })
            .collect()
    }

    /// Softmax of all scores at once, in f64.
    fn defined(&self) -> Vec<Vec<f64>> {
        let row = |(q, from, to): &(Vec<f32>, usize, usize)| {
            let scores: Vec<f64> = (*from..*to)
                .map(|token| {
                    let key = self.stored(true, token);
                    let product: f64 = q.iter().zip(key).map(|(a, b)| f64::from(*a) * b).sum();
                    let score = product * f64::from(self.scores.scale);
                    self.scores.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                })
                .collect();
            let largest = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
            let mut out = vec![0.0; self.value_dim];
            for (token, score) in (*from..*to).zip(&scores) {
                for (out, value) in out.iter_mut().zip(self.stored(false, token)) {
                    *out += (score - largest).exp() / total * value;
                }
            }
            out
        };
        self.queries.iter().map(row).collect()
    }
}

fn close(found: &[Vec<f32>], expected: &[Vec<f32>], allowed: f32) -> Result<(), String> {
    for (query, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            // NaN is not close to anything.
            let is_close = (found - expected).abs() <= allowed;
            if !is_close {
                return Err(format!("query {query} element {at}: {found}, not {expected}"));
            }
        }
    }
    Ok(())
}

fn kv_type() -> impl Strategy<Value = KvType> {
    prop_oneof![Just(KvType::F16), Just(KvType::Q8_0), Just(KvType::F32)]
}

fn dims(kv_type: KvType, at: usize) -> usize {
    const ANY: [usize; 10] = [16, 20, 24, 40, 64, 80, 96, 128, 256, 5];
    const WHOLE: [usize; 5] = [32, 64, 96, 128, 256];
    if kv_type == KvType::Q8_0 { WHOLE[at % WHOLE.len()] } else { ANY[at % ANY.len()] }
}

proptest! {
    #[test]
    fn every_set_gives_the_defined_result_whole_and_in_parts(
        kv_type in kv_type(),
        (key_at, value_at) in (0_usize..10, 0_usize..10),
        page_tokens in prop_oneof![Just(32_usize), Just(16), Just(1), Just(7), Just(128)],
        n_tokens in 1_usize..200,
        n_queries in 1_usize..80,
        group in 1_usize..9,
        window in prop_oneof![Just(usize::MAX), 1_usize..100],
        softcap in prop_oneof![Just(None), Just(Some(5.0_f32))],
        cut in 0_usize..200,
        order in prop_oneof![Just(Order::Fastest), Just(Order::Fixed)],
        seed in any::<u64>(),
    ) {
        let (key_dim, value_dim) = (dims(kv_type, key_at), dims(kv_type, value_at));
        let sizes = Sizes { kv_type, key_dim, value_dim, page_tokens, n_tokens, n_queries };
        let case = Case { order, ..Case::new(sizes, group, window, softcap, seed) };
        let defined: Vec<Vec<f32>> =
            case.defined().iter().map(|row| row.iter().map(|value| *value as f32).collect()).collect();
        let cut = cut.min(n_tokens);
        for isa in Isa::available() {
            let whole = case.run(isa);
            close(&whole, &defined, 4e-6).map_err(|message| TestCaseError::fail(format!("{isa}: {message}")))?;
            let in_parts = case.partials(isa, &[(cut, n_tokens), (0, cut)]);
            close(&case.finished(&in_parts), &defined, 4e-6)
                .map_err(|message| TestCaseError::fail(format!("{isa} in parts: {message}")))?;
            let (mut first, second) = (case.partials(isa, &[(0, cut)]), case.partials(isa, &[(cut, n_tokens)]));
            for (first, second) in first.iter_mut().zip(&second) {
                // SAFETY: an available set.
                unsafe { merge(isa, first, second) };
            }
            close(&case.finished(&first), &defined, 4e-6)
                .map_err(|message| TestCaseError::fail(format!("{isa} merged: {message}")))?;
        }
    }

    #[test]
    fn in_fixed_order_a_query_gets_the_same_bits_beside_any_others_and_from_parts_merged(
        kv_type in kv_type(),
        at in 0_usize..10,
        n_tokens in 1_usize..300,
        n_queries in 1_usize..70,
        group in 1_usize..9,
        window in prop_oneof![Just(usize::MAX), 1_usize..100],
        softcap in prop_oneof![Just(None), Just(Some(5.0_f32))],
        cut in 0_usize..300,
        seed in any::<u64>(),
    ) {
        let dim = dims(kv_type, at);
        let sizes = Sizes { kv_type, key_dim: dim, value_dim: dim, page_tokens: 32, n_tokens, n_queries };
        let mut case = Case { order: Order::Fixed, ..Case::new(sizes, group, window, softcap, seed) };
        let cut = cut.min(n_tokens);
        for isa in Isa::available() {
            let together = case.partials(isa, &[(0, cut), (cut, n_tokens)]);
            let (mut merged, second) = (case.partials(isa, &[(0, cut)]), case.partials(isa, &[(cut, n_tokens)]));
            for (first, second) in merged.iter_mut().zip(&second) {
                // SAFETY: an available set.
                unsafe { merge(isa, first, second) };
            }
            prop_assert_eq!(&merged, &together, "{} merged", isa);
            let queries = case.queries.clone();
            for (query, together) in queries.iter().zip(together) {
                case.queries = vec![query.clone()];
                prop_assert_eq!(&case.partials(isa, &[(0, cut), (cut, n_tokens)]), &[together], "{} alone", isa);
            }
            case.queries = queries;
        }
    }

    #[test]
    fn large_scores_lose_no_more_than_their_own_rounding(
        n_queries in 1_usize..40,
        size in 1.0_f32..3e3,
        seed in any::<u64>(),
    ) {
        let sizes =
            Sizes { kv_type: KvType::F16, key_dim: 64, value_dim: 64, page_tokens: 32, n_tokens: 150, n_queries };
        let mut case = Case::new(sizes, 2, usize::MAX, None, seed);
        case.queries.iter_mut().for_each(|(q, ..)| q.iter_mut().for_each(|value| *value *= size));
        let truth = case.run(Isa::Scalar);
        for isa in Isa::available() {
            // Scores of up to `size * 14`, in f32, move the exponentials by their rounding.
            close(&case.run(isa), &truth, 2e-5 + size * 1e-5).map_err(TestCaseError::fail)?;
        }
    }
}

fn small(n_queries: usize) -> Case {
    let sizes = Sizes { kv_type: KvType::F32, key_dim: 24, value_dim: 40, page_tokens: 16, n_tokens: 130, n_queries };
    Case::new(sizes, 1, usize::MAX, None, 5)
}

#[test]
fn a_query_that_sees_nothing_keeps_its_row_and_ends_as_zeros() {
    for isa in Isa::available() {
        for n_queries in [1, 3, 9, 16, 33] {
            let mut case = small(n_queries);
            let blind = n_queries / 2;
            (case.queries[blind].1, case.queries[blind].2) = (70, 70);
            let mut untouched = vec![0.0; partial_len(40)];
            reset(&mut untouched);
            let partials = case.partials(isa, &[(0, 130)]);
            assert_eq!(partials[blind], untouched, "{isa}");
            assert_eq!(case.finished(&partials)[blind], [0.0; 40]);
            // A range apart from what anybody sees changes nothing at all.
            case.queries.iter_mut().for_each(|query| (query.1, query.2) = (0, 64));
            assert!(case.partials(isa, &[(64, 130)]).iter().all(|partial| *partial == untouched), "{isa}");
        }
    }
}

#[test]
fn a_single_key_gives_its_value() {
    for isa in Isa::available() {
        for n_queries in [1, 2, 4, 12, 32] {
            let mut case = small(n_queries);
            case.queries
                .iter_mut()
                .enumerate()
                .for_each(|(index, query)| (query.1, query.2) = (60 + index, 61 + index));
            for (index, row) in case.run(isa).iter().enumerate() {
                let value: Vec<f32> = case.stored(false, 60 + index).iter().map(|value| *value as f32).collect();
                assert_eq!(*row, value, "{isa}");
            }
        }
    }
}

#[test]
fn nan_in_a_query_a_key_or_a_value_shows_in_all_that_see_it() {
    for isa in Isa::available() {
        for n_queries in [1, 3, 10, 40] {
            let mut in_query = small(n_queries);
            in_query.queries[n_queries / 3].0[5] = f32::NAN;
            let rows = in_query.run(isa);
            assert!(rows[n_queries / 3].iter().all(|value| value.is_nan()), "{isa}");
            assert!(rows.iter().enumerate().all(|(at, row)| at == n_queries / 3 || row.iter().all(|v| v.is_finite())));

            for is_key in [true, false] {
                for bad in [f32::NAN, f32::INFINITY] {
                    let mut case = small(n_queries);
                    let page = case.pages[70 / 16] as usize;
                    let (plane, dim) = if is_key { (&mut case.keys, 24) } else { (&mut case.values, 40) };
                    let stride = plane.len() / case.pages.len();
                    let at = page * stride + 4 * (70 % 16 * dim + 3);
                    plane[at..at + 4].copy_from_slice(&bad.to_le_bytes());
                    for (index, row) in case.run(isa).iter().enumerate() {
                        // An infinite key may give a score of minus infinity, which counts nothing.
                        if case.queries[index].2 > 70 && (bad.is_nan() || !is_key) {
                            let is_finite = row.iter().all(|value| value.is_finite());
                            assert!(!is_finite, "{isa}: query {index} of {n_queries}, key {is_key}, {bad}");
                        }
                    }
                    // Where nobody sees it, it is not read.
                    for row in case.finished(&case.partials(isa, &[(0, 70), (71, 130)])) {
                        assert!(row.iter().all(|value| value.is_finite()), "{isa}");
                    }
                }
            }
        }
    }
}

#[test]
fn scores_of_minus_infinity_count_nothing() {
    for isa in Isa::available() {
        for n_queries in [1, 3, 20] {
            let mut case = small(n_queries);
            // All keys are positive in element 0, all queries minus infinity there.
            let page_floats = case.keys.len() / case.pages.len() / 4;
            for token in 0..130 {
                let at = 4 * (case.pages[token / 16] as usize * page_floats + token % 16 * 24);
                case.keys[at..at + 4].copy_from_slice(&1.0_f32.to_le_bytes());
            }
            case.queries.iter_mut().for_each(|query| query.0[0] = f32::NEG_INFINITY);
            assert!(case.run(isa).iter().all(|row| *row == [0.0; 40]), "{isa}");
        }
    }
}
