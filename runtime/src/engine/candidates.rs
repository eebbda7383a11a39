//! The tokens that may still be drawn, with their logits.
//!
//! Invariant: always in ascending order of id. Filters find out where to cut in a copy and keep from the list, so that
//! the draw meets candidates in the same order however the cut was found. A vocabulary of 262,144 must not be sorted
//! for one token: cuts are found by partial selection and by bins.

use std::cmp::Ordering;

use super::softmax;

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

/// Best first; of equals, the lowest id.
pub(super) fn ranking(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The candidates of one draw. Kept between draws for its memory.
///
/// Ids and logits lie apart, so that loops over logits become vector code.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    ids: Vec<u32>,
    logits: Vec<f32>,
    /// Of each candidate, after [`Candidates::weigh`].
    weights: Vec<f32>,
    /// Room for a copy to select in.
    scratch: Vec<Candidate>,
}

impl Candidates {
    /// Takes the memory that whole rows of `n_vocab` logits need, or says how much that is where there is none.
    pub(super) fn reserve(&mut self, n_vocab: usize) -> Result<(), u64> {
        let taken = [
            self.ids.try_reserve_exact(n_vocab),
            self.logits.try_reserve_exact(n_vocab),
            self.weights.try_reserve_exact(n_vocab),
            self.scratch.try_reserve_exact(n_vocab),
        ];
        if taken.iter().all(Result::is_ok) { Ok(()) } else { Err(Self::bytes_for(n_vocab)) }
    }

    /// Bytes for rows of `n_vocab` logits.
    pub(super) fn bytes_for(n_vocab: usize) -> u64 {
        (n_vocab * (size_of::<u32>() + 2 * size_of::<f32>() + size_of::<Candidate>())) as u64
    }

    /// Starts with a whole row.
    pub(super) fn set_row(&mut self, row: &[f32]) {
        self.ids.clear();
        self.ids.extend((0..).zip(row).map(|(id, _)| id));
        self.logits.clear();
        self.logits.extend_from_slice(row);
    }

    /// Starts with none.
    pub(super) fn clear(&mut self) {
        self.ids.clear();
        self.logits.clear();
    }

    /// Adds those of up to 32 tokens in a row, from `first` on, whose bit of `mask` is set; their ids are above those that
    /// are there.
    pub(super) fn push_masked(&mut self, first: u32, logits: &[f32], mask: u32) {
        if mask == u32::MAX {
            self.ids.extend((first..).zip(logits).map(|(id, _)| id));
            self.logits.extend_from_slice(logits);
            return;
        }
        let mut left = mask;
        while left != 0 {
            let at = left.trailing_zeros();
            left &= left - 1;
            if let Some(&logit) = logits.get(at as usize) {
                self.ids.push(first + at);
                self.logits.push(logit);
            }
        }
    }

    /// Starts with the `k` best of a row.
    pub(super) fn set_best(&mut self, row: &[f32], k: usize) {
        best((0..).zip(row).map(|(id, &logit)| Candidate { id, logit }), k, &mut self.scratch);
        self.take_scratch();
    }

    /// Starts with given tokens, each of which comes once.
    pub(super) fn set(&mut self, tokens: impl Iterator<Item = (u32, f32)>) {
        self.scratch.clear();
        self.scratch.extend(tokens.map(|(id, logit)| Candidate { id, logit }));
        self.take_scratch();
    }

    fn take_scratch(&mut self) {
        self.scratch.sort_unstable_by_key(|candidate| candidate.id);
        self.ids.clear();
        self.ids.extend(self.scratch.iter().map(|candidate| candidate.id));
        self.logits.clear();
        self.logits.extend(self.scratch.iter().map(|candidate| candidate.logit));
    }

    /// In order of ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = Candidate> + Clone {
        self.ids.iter().zip(&self.logits).map(|(&id, &logit)| Candidate { id, logit })
    }

    /// The candidates with their weights.
    pub(super) fn weighed(&self) -> impl Iterator<Item = (Candidate, f32)> + Clone {
        self.iter().zip(self.weights.iter().copied())
    }

    /// Changes the logit of one token of a whole row. Others are no longer in question and ignored.
    pub(super) fn change(&mut self, id: u32, change: impl FnOnce(f32) -> f32) {
        if self.ids.get(id as usize) == Some(&id)
            && let Some(logit) = self.logits.get_mut(id as usize)
        {
            *logit = change(*logit);
        }
    }

    /// Keeps those for which `stays` is true.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(Candidate) -> bool) {
        // Without a branch that depends on the data: of a flat row half the candidates may go, at random places.
        let mut n_kept = 0;
        for at in 0..self.ids.len().min(self.logits.len()) {
            let candidate = Candidate { id: self.ids[at], logit: self.logits[at] };
            (self.ids[n_kept], self.logits[n_kept]) = (candidate.id, candidate.logit);
            n_kept += usize::from(stays(candidate));
        }
        self.ids.truncate(n_kept);
        self.logits.truncate(n_kept);
    }

    /// As [`Candidates::retain`], by the weights of the last [`Candidates::weigh`].
    pub(super) fn retain_weighed(&mut self, mut stays: impl FnMut(Candidate, f32) -> bool) {
        let weights = std::mem::take(&mut self.weights);
        let mut left = weights.iter();
        self.retain(|candidate| left.next().is_some_and(|&weight| stays(candidate, weight)));
        self.weights = weights;
    }

    /// Keeps the `k` best.
    pub(super) fn keep_best(&mut self, k: usize) {
        if k < self.ids.len() {
            self.top(k);
            self.take_scratch();
        }
    }

    /// The `k` best, best first.
    pub(super) fn top(&mut self, k: usize) -> &[Candidate] {
        let tokens = self.ids.iter().zip(&self.logits).map(|(&id, &logit)| Candidate { id, logit });
        best(tokens, k, &mut self.scratch);
        &self.scratch
    }

    /// The best one, of equals that of the lowest id.
    pub(super) fn best(&self) -> Option<Candidate> {
        self.iter().reduce(|best, next| if next.logit > best.logit { next } else { best })
    }

    /// Largest logit.
    pub(super) fn largest(&self) -> f32 {
        softmax::largest(&self.logits)
    }

    /// Gives each candidate its weight at `temperature` (1 for the best one) and returns their sum.
    pub(super) fn weigh(&mut self, temperature: f32) -> f64 {
        let most = self.largest();
        self.weights.clear();
        self.weights.extend(self.logits.iter().map(|&logit| softmax::exp((logit - most) / temperature)));
        softmax::sum(&self.weights)
    }

    /// Draws by the weights, with `unit` in [0, 1); `total` is their sum.
    pub(super) fn draw(&self, total: f64, unit: f64) -> Option<Candidate> {
        /// Weights summed up at once before the place is looked for among them.
        const STRIDE: usize = 1024;
        let mut left = unit * total;
        for (stride, weights) in self.weights.chunks(STRIDE).enumerate() {
            let sum = softmax::sum(weights);
            if left >= sum {
                left -= sum;
                continue;
            }
            for (place, &weight) in weights.iter().enumerate() {
                left -= f64::from(weight);
                if left < 0.0 {
                    return self.at(stride * STRIDE + place);
                }
            }
        }
        // Rounding may leave a trifle at the end.
        self.at(self.ids.len().checked_sub(1)?)
    }

    fn at(&self, place: usize) -> Option<Candidate> {
        Some(Candidate { id: *self.ids.get(place)?, logit: *self.logits.get(place)? })
    }
}

/// Puts the `k` best of `tokens` into `found`, best first. One pass; most tokens cost one comparison.
pub(super) fn best(tokens: impl Iterator<Item = Candidate>, k: usize, found: &mut Vec<Candidate>) {
    found.clear();
    if k == 0 {
        return;
    }
    let room = k.saturating_mul(2).saturating_add(64);
    // Tokens come in order of their ids, so one that only equals the k-th best is no better.
    let mut worst = None;
    for token in tokens {
        if worst.is_some_and(|worst| token.logit <= worst) {
            continue;
        }
        found.push(token);
        if found.len() == room {
            let (_, kth, _) = found.select_nth_unstable_by(k - 1, ranking);
            worst = Some(kth.logit);
            found.truncate(k);
        }
    }
    if found.len() > k {
        found.select_nth_unstable_by(k - 1, ranking);
        found.truncate(k);
    }
    found.sort_unstable_by(ranking);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row() -> impl Strategy<Value = Vec<f32>> {
        // Few different values, so that ties are common.
        prop::collection::vec((-8_i32..8).prop_map(|step| step as f32 * 0.5), 1..400)
    }

    proptest! {
        #[test]
        fn the_best_are_those_of_a_full_sort(row in row(), k in 0_usize..90) {
            let mut sorted: Vec<_> = (0..).zip(&row).map(|(id, &logit)| Candidate { id, logit }).collect();
            sorted.sort_by(ranking);
            sorted.truncate(k);
            let mut found = Vec::new();
            best((0..).zip(&row).map(|(id, &logit)| Candidate { id, logit }), k, &mut found);
            prop_assert_eq!(&found, &sorted);
            sorted.sort_by_key(|candidate| candidate.id);
            let mut candidates = Candidates::default();
            candidates.set_best(&row, k);
            prop_assert_eq!(candidates.iter().collect::<Vec<_>>(), sorted.clone());
            candidates.set_row(&row);
            candidates.keep_best(k);
            prop_assert_eq!(candidates.iter().collect::<Vec<_>>(), sorted.clone());
        }

        #[test]
        fn a_mask_takes_what_its_bits_say(
            row in row(),
            masks in prop::collection::vec(prop::sample::select(vec![0, 1, u32::MAX, 0x8000_0001, 0x00F0_1234]), 13),
        ) {
            let mut candidates = Candidates::default();
            for (word, logits) in row.chunks(32).enumerate() {
                candidates.push_masked(word as u32 * 32, logits, masks[word]);
            }
            let is_set = |id: &u32| masks[*id as usize / 32] >> (id % 32) & 1 == 1;
            let all = (0..).zip(&row).map(|(id, &logit)| Candidate { id, logit });
            let expected: Vec<Candidate> = all.filter(|candidate| is_set(&candidate.id)).collect();
            prop_assert_eq!(candidates.iter().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn the_best_one_has_the_lowest_id_of_equals(row in row()) {
            let mut candidates = Candidates::default();
            candidates.set_row(&row);
            let best = candidates.best().unwrap();
            prop_assert!(row.iter().all(|&logit| logit <= best.logit));
            prop_assert!(row[..best.id as usize].iter().all(|&logit| logit < best.logit));
        }
    }

    #[test]
    fn draws_follow_the_weights_from_end_to_end() {
        let mut candidates = Candidates::default();
        candidates.set_row(&[0.0, 1.0_f32.ln(), 2.0_f32.ln()]);
        let total = candidates.weigh(1.0);
        let draw = |unit| candidates.draw(total, unit).unwrap().id;
        assert_eq!([0.0, 0.24, 0.26, 0.49, 0.51, 0.999_999_999].map(draw), [0, 0, 1, 1, 2, 2]);
        assert_eq!(candidates.draw(total, 1.0).unwrap().id, 2, "rounding at the end finds the last one");
    }
}
