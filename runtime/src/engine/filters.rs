//! What leaves out candidates: top-k, typical, top-p, min-p, XTC. Each keeps at least one.

use super::candidates::{Candidate, Candidates, ranking};
use super::sampling::{Sampling, Xtc};
use super::softmax::exp;
use std::cmp::Ordering;

/// How many of the best are tried before all are looked at.
const FEW: usize = 128;

/// Bins for keys, eight to each power of two.
const BINS: usize = 2048;

/// The bin of a key that is not negative: bits of such floats are in the order of the numbers.
fn bin_of(key: f32) -> usize {
    (key.to_bits() >> 20) as usize % BINS
}

/// Finds the cut for filters that keep a share of the probability. Kept between draws for its memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    bins: Vec<f64>,
    members: Vec<Member>,
}

/// A candidate of the bin in which the cut lies. Low keys stay.
#[derive(Clone, Copy, Debug)]
struct Member {
    key: f32,
    candidate: Candidate,
    weight: f32,
}

/// Low keys first; of equals, the better one; of equals, the lower id.
fn order(a: &Member, b: &Member) -> Ordering {
    a.key.total_cmp(&b.key).then_with(|| ranking(&a.candidate, &b.candidate))
}

impl Filters {
    /// Bytes for `n` candidates at most, all of them in one bin.
    pub(super) fn bytes_for(n: usize) -> u64 {
        (BINS * size_of::<f64>() + n * size_of::<Member>()) as u64
    }

    /// Applies the filters that `sampling` asks for; `unit` gives random numbers.
    pub(super) fn apply(&mut self, candidates: &mut Candidates, sampling: &Sampling, unit: impl FnOnce() -> f64) {
        if sampling.top_k > 0 {
            candidates.keep_best(sampling.top_k);
        }
        if sampling.typical_p < 1.0 {
            self.keep_typical(candidates, sampling.typical_p);
        }
        if sampling.top_p < 1.0 {
            self.keep_likely(candidates, sampling.top_p);
        }
        if sampling.min_p > 0.0 {
            keep_near_best(candidates, sampling.min_p);
        }
        if sampling.xtc.probability > 0.0 && unit() < f64::from(sampling.xtc.probability) {
            exclude_top_choices(candidates, sampling.xtc);
        }
    }

    /// Top-p: the best that together have the share `p`.
    fn keep_likely(&mut self, candidates: &mut Candidates, p: f32) {
        let total = candidates.weigh(1.0);
        let most = candidates.largest();
        let weight = |logit: f32| f64::from(exp(logit - most));
        // Mostly a few have it, and those are found in a pass that is quicker than bins.
        let mut left = total * f64::from(p);
        let last = candidates.top(FEW).iter().copied().find(|candidate| {
            left -= weight(candidate.logit);
            left <= 0.0
        });
        if let Some(last) = last {
            return candidates.retain(|candidate| ranking(&candidate, &last).is_le());
        }
        self.keep_share(candidates, total * f64::from(p), |logit| most - logit);
    }

    /// Typical: those whose surprise is nearest to the expected one and that together have the share `p`.
    fn keep_typical(&mut self, candidates: &mut Candidates, p: f32) {
        let total = candidates.weigh(1.0);
        let most = candidates.largest();
        let below_best = |logit: f32| f64::from(most - logit);
        let expected: f64 =
            candidates.weighed().map(|(candidate, weight)| f64::from(weight) * below_best(candidate.logit)).sum();
        // Surprise is ln(total) + below_best(logit): the first part is in both and falls out of the difference.
        let expected = expected / total;
        self.keep_share(candidates, total * f64::from(p), |logit| (below_best(logit) - expected).abs() as f32);
    }

    /// Keeps candidates of ascending `key` (0 or more, of a logit) until their weights reach `target`.
    fn keep_share(&mut self, candidates: &mut Candidates, target: f64, key: impl Fn(f32) -> f32) {
        self.bins.clear();
        self.bins.resize(BINS, 0.0);
        for (candidate, weight) in candidates.weighed() {
            self.bins[bin_of(key(candidate.logit))] += f64::from(weight);
        }
        let mut below = 0.0;
        let mut cut_bin = None;
        for (bin, &weight) in self.bins.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            if let Some((_, before)) = cut_bin {
                below += before;
            }
            cut_bin = Some((bin, weight));
            if below + weight >= target {
                break;
            }
        }
        let Some((cut_bin, _)) = cut_bin else { return };
        let members =
            candidates.weighed().map(|(candidate, weight)| Member { key: key(candidate.logit), candidate, weight });
        self.members.clear();
        self.members.extend(members.filter(|member| bin_of(member.key) == cut_bin));
        let Some(last) = last_of_share(&mut self.members, target - below) else { return };
        candidates.retain(|candidate| {
            let key = key(candidate.logit);
            key < last.key || (key == last.key && order(&Member { key, candidate, weight: 0.0 }, &last).is_le())
        });
    }
}

/// The member with which, counted in order, the weights reach `target`; the last one if they don't.
fn last_of_share(members: &mut [Member], target: f64) -> Option<Member> {
    let mut rest = members;
    let mut left = target;
    while rest.len() > 1 {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, order);
        let (lower, upper) = rest.split_at_mut(middle);
        let weight: f64 = lower.iter().map(|member| f64::from(member.weight)).sum();
        if weight >= left {
            rest = lower;
        } else {
            left -= weight;
            rest = upper;
        }
    }
    rest.first().copied()
}

/// Min-p: those with at least the share `p` of the best one's probability.
fn keep_near_best(candidates: &mut Candidates, p: f32) {
    let least = candidates.largest() + p.ln();
    candidates.retain(|candidate| candidate.logit >= least);
}

/// XTC: all above the threshold but the least likely of them go, if there are two or more.
fn exclude_top_choices(candidates: &mut Candidates, xtc: Xtc) {
    let total = candidates.weigh(1.0);
    let is_top = |weight: f32| f64::from(weight) >= f64::from(xtc.threshold) * total;
    let tops = candidates.weighed().filter(|(_, weight)| is_top(*weight));
    let Some((stays, _)) = tops.max_by(|(a, _), (b, _)| ranking(a, b)) else { return };
    candidates.retain_weighed(|candidate, weight| !is_top(weight) || candidate.id == stays.id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(row: &[f32]) -> Candidates {
        let mut candidates = Candidates::default();
        candidates.set_row(row);
        candidates
    }

    fn ids(candidates: &Candidates) -> Vec<u32> {
        candidates.iter().map(|candidate| candidate.id).collect()
    }

    fn apply(row: &[f32], sampling: &Sampling) -> Vec<u32> {
        let mut candidates = of(row);
        Filters::default().apply(&mut candidates, sampling, || 0.0);
        ids(&candidates)
    }

    /// Probabilities in double precision, with their ids.
    fn probabilities(row: &[f32]) -> Vec<(u32, f64)> {
        let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        (0..).zip(row).map(|(id, &logit)| (id, f64::from(logit).exp() / total)).collect()
    }

    /// Checks that `kept` is the shortest beginning of `ordered` that has the share `p`, up to rounding.
    fn is_shortest_share(kept: &[u32], ordered: &[(u32, f64)], p: f64) -> Result<(), TestCaseError> {
        let mut expected: Vec<u32> = ordered[..kept.len()].iter().map(|(id, _)| *id).collect();
        expected.sort_unstable();
        prop_assert_eq!(kept, &expected);
        let mass = |n: usize| ordered[..n].iter().map(|(_, probability)| probability).sum::<f64>();
        prop_assert!(mass(kept.len()) >= p - 1e-5, "{} of {p}", mass(kept.len()));
        prop_assert!(mass(kept.len() - 1) < p + 1e-5, "one less would do");
        Ok(())
    }

    fn row() -> impl Strategy<Value = Vec<f32>> {
        prop_oneof![
            prop::collection::vec(-9.0_f32..9.0, 1..300),
            prop::collection::vec((-6_i32..6).prop_map(|step| step as f32 * 0.7), 1..300),
            prop::collection::vec(-0.01_f32..0.01, 1..300),
            prop::collection::vec(-200.0_f32..200.0, 1..300),
        ]
    }

    proptest! {
        #[test]
        fn top_p_keeps_the_shortest_beginning_of_the_ranking_that_has_the_share(row in row(), p in 0.001_f32..0.999) {
            let kept = apply(&row, &Sampling { top_p: p, ..Sampling::default() });
            let mut sorted = of(&row).iter().collect::<Vec<_>>();
            sorted.sort_by(ranking);
            let by_id = probabilities(&row);
            let ordered: Vec<_> = sorted.iter().map(|candidate| by_id[candidate.id as usize]).collect();
            is_shortest_share(&kept, &ordered, f64::from(p))?;
        }

        #[test]
        fn typical_keeps_those_of_expected_surprise(row in prop::collection::vec(-9.0_f32..9.0, 1..300), p in 0.001_f32..0.999) {
            let kept = apply(&row, &Sampling { typical_p: p, ..Sampling::default() });
            let probabilities = probabilities(&row);
            let expected: f64 = probabilities.iter().map(|(_, p)| -p * p.ln()).sum();
            let distance = |&(_, p): &(u32, f64)| (-p.ln() - expected).abs();
            prop_assert!(!kept.is_empty());
            let is_kept = |id: u32| kept.binary_search(&id).is_ok();
            let far = probabilities.iter().filter(|(id, _)| is_kept(*id)).map(distance).fold(0.0, f64::max);
            for other in probabilities.iter().filter(|(id, _)| !is_kept(*id)) {
                prop_assert!(distance(other) > far - 1e-4);
            }
            let mass: f64 = probabilities.iter().filter(|(id, _)| is_kept(*id)).map(|(_, p)| p).sum();
            prop_assert!(mass >= f64::from(p) - 1e-5);
            let without_last: f64 = probabilities
                .iter()
                .filter(|one| is_kept(one.0) && distance(one) < far - 1e-4)
                .map(|(_, p)| p)
                .sum();
            prop_assert!(without_last < f64::from(p) + 1e-5);
        }

        #[test]
        fn min_p_keeps_what_is_near_enough_to_the_best(row in row(), p in 0.001_f32..1.0) {
            let kept = apply(&row, &Sampling { min_p: p, ..Sampling::default() });
            let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            for (id, &logit) in (0..).zip(&row) {
                let share = (f64::from(logit) - most).exp();
                if (share / f64::from(p) - 1.0).abs() > 1e-4 {
                    prop_assert_eq!(kept.contains(&id), share > f64::from(p));
                }
            }
            prop_assert!(!kept.is_empty());
        }

        #[test]
        fn xtc_leaves_out_all_top_choices_but_the_least(row in prop::collection::vec(-2.0_f32..2.0, 1..12), threshold in 0.01_f32..0.5) {
            let xtc = Xtc { probability: 1.0, threshold };
            let kept = apply(&row, &Sampling { xtc, ..Sampling::default() });
            let mut tops: Vec<_> = probabilities(&row).into_iter().filter(|(_, p)| *p >= f64::from(threshold)).collect();
            tops.sort_by(|a, b| b.1.total_cmp(&a.1));
            tops.pop();
            let expected: Vec<u32> =
                (0..row.len() as u32).filter(|id| tops.iter().all(|(top, _)| top != id)).collect();
            prop_assert_eq!(kept, expected);
        }

        #[test]
        fn any_filters_together_keep_at_least_one_in_order(
            row in row(), top_k in 0_usize..20, top_p in 1e-6_f32..1.0, min_p in 0.0_f32..1.0, typical_p in 1e-6_f32..1.0,
        ) {
            let xtc = Xtc { probability: 1.0, threshold: 0.1 };
            let kept = apply(&row, &Sampling { top_k, top_p, min_p, typical_p, xtc, ..Sampling::default() });
            prop_assert!(!kept.is_empty());
            prop_assert!(kept.is_sorted());
        }
    }

    #[test]
    fn min_p_of_one_keeps_the_best_alone_and_its_equals() {
        assert_eq!(apply(&[1.0, 3.0, 2.0, 3.0], &Sampling { min_p: 1.0, ..Sampling::default() }), [1, 3]);
    }

    #[test]
    fn a_tiny_share_keeps_the_best_with_the_lowest_id() {
        assert_eq!(apply(&[0.0; 5], &Sampling { top_p: 1e-6, ..Sampling::default() }), [0]);
    }

    #[test]
    fn xtc_does_nothing_when_chance_says_so() {
        let mut candidates = of(&[5.0, 5.0, 1.0]);
        let sampling = Sampling { xtc: Xtc { probability: 0.3, threshold: 0.1 }, ..Sampling::default() };
        Filters::default().apply(&mut candidates, &sampling, || 0.31);
        assert_eq!(ids(&candidates), [0, 1, 2]);
        Filters::default().apply(&mut candidates, &sampling, || 0.29);
        assert_eq!(ids(&candidates), [1, 2]);
    }
}
