//! The tokens that may still be drawn, with their logits.
//!
//! Invariant: always in ascending order of id. Filters find out where to cut in a copy and keep from the list, so that
//! the draw meets candidates in the same order however the cut was found. A vocabulary of 262,144 must not be sorted
//! for one token: cuts are found by partial selection and by bins.

use std::cmp::Ordering;

use super::softmax::{self, exp, largest};

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
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    /// Room for a copy to select in.
    scratch: Vec<Candidate>,
    /// Of each in `list`, after [`Candidates::weigh`].
    weights: Vec<f32>,
}

impl Candidates {
    /// Starts with a whole row.
    pub(super) fn set_row(&mut self, row: &[f32]) {
        self.list.clear();
        self.list.extend((0..).zip(row).map(|(id, &logit)| Candidate { id, logit }));
    }

    /// Starts with the `k` best of a row.
    pub(super) fn set_best(&mut self, row: &[f32], k: usize) {
        best((0..).zip(row).map(|(id, &logit)| Candidate { id, logit }), k, &mut self.list);
        self.list.sort_unstable_by_key(|candidate| candidate.id);
    }

    /// Starts with given tokens, each of which comes once.
    pub(super) fn set(&mut self, tokens: impl Iterator<Item = (u32, f32)>) {
        self.list.clear();
        self.list.extend(tokens.map(|(id, logit)| Candidate { id, logit }));
        self.list.sort_unstable_by_key(|candidate| candidate.id);
    }

    /// In order of ids.
    #[cfg(test)]
    pub(super) fn as_slice(&self) -> &[Candidate] {
        &self.list
    }

    /// Changes the logit of one token of a whole row. Others are no longer in question and ignored.
    pub(super) fn change(&mut self, id: u32, change: impl FnOnce(f32) -> f32) {
        if let Some(candidate) = self.list.get_mut(id as usize).filter(|candidate| candidate.id == id) {
            candidate.logit = change(candidate.logit);
        }
    }

    /// Keeps those for which `stays` is true.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&Candidate) -> bool) {
        // Without a branch that depends on the data: of a flat row half the candidates may go, at random places.
        let mut n_kept = 0;
        for at in 0..self.list.len() {
            let candidate = self.list[at];
            self.list[n_kept] = candidate;
            n_kept += usize::from(stays(&candidate));
        }
        self.list.truncate(n_kept);
    }

    /// Keeps those whose weight of the last [`Candidates::weigh`] and place in the list pass.
    pub(super) fn retain_weighed(&mut self, mut stays: impl FnMut(&Candidate, f32) -> bool) {
        let mut weights = self.weights.iter();
        self.list.retain(|candidate| weights.next().is_some_and(|&weight| stays(candidate, weight)));
    }

    /// Keeps the `k` best.
    pub(super) fn keep_best(&mut self, k: usize) {
        if k >= self.list.len() {
            return;
        }
        best(self.list.iter().copied(), k, &mut self.scratch);
        self.scratch.sort_unstable_by_key(|candidate| candidate.id);
        std::mem::swap(&mut self.list, &mut self.scratch);
    }

    /// The best one, of equals that of the lowest id.
    pub(super) fn best(&self) -> Option<Candidate> {
        self.list.iter().copied().reduce(|best, next| if next.logit > best.logit { next } else { best })
    }

    /// Largest logit.
    pub(super) fn largest(&self) -> f32 {
        largest(self.list.iter().map(|candidate| candidate.logit))
    }

    /// Gives each candidate its weight at `temperature` (1 for the best one) and returns their sum.
    pub(super) fn weigh(&mut self, temperature: f32) -> f64 {
        let most = self.largest();
        self.weights.clear();
        self.weights.extend(self.list.iter().map(|candidate| exp((candidate.logit - most) / temperature)));
        softmax::sum(&self.weights)
    }

    /// The candidates with their weights.
    pub(super) fn weighed(&self) -> impl Iterator<Item = (Candidate, f32)> + Clone {
        self.list.iter().copied().zip(self.weights.iter().copied())
    }

    /// Draws by the weights, with `unit` in [0, 1); `total` is their sum.
    pub(super) fn draw(&self, total: f64, unit: f64) -> Option<Candidate> {
        let mut left = unit * total;
        for (candidate, weight) in self.weighed() {
            left -= f64::from(weight);
            if left < 0.0 {
                return Some(candidate);
            }
        }
        self.list.last().copied()
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
            prop_assert_eq!(candidates.as_slice(), &sorted);
            candidates.set_row(&row);
            candidates.keep_best(k);
            prop_assert_eq!(candidates.as_slice(), &sorted);
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
