//! Bias, and the penalties on tokens that were there before: repetition, frequency, presence.

use super::candidates::Candidates;
use super::sampling::Sampling;

/// Adds the biases; tokens with a bias of negative infinity are left for [`Candidates::retain`] to take out.
pub(super) fn add_bias(candidates: &mut Candidates, sampling: &Sampling) {
    for (&id, &bias) in &sampling.logit_bias {
        candidates.change(id, |logit| logit + bias);
    }
}

/// Applies the three penalties for the tokens of `seen`, latest first; `scratch` is room to count in.
pub(super) fn penalise(
    candidates: &mut Candidates,
    sampling: &Sampling,
    seen: impl Iterator<Item = u32>,
    scratch: &mut Vec<u32>,
) {
    scratch.clear();
    scratch.extend(seen.take(sampling.penalty_last_n.unwrap_or(usize::MAX)));
    scratch.sort_unstable();
    for equal in scratch.chunk_by(|a, b| a == b) {
        let taken = sampling.presence_penalty + sampling.frequency_penalty * equal.len() as f32;
        candidates.change(equal[0], |logit| {
            let repetition = sampling.repetition_penalty;
            (if logit > 0.0 { logit / repetition } else { logit * repetition }) - taken
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalised(row: &[f32], sampling: &Sampling, seen: &[u32]) -> Vec<f32> {
        let mut candidates = Candidates::default();
        candidates.set_row(row);
        add_bias(&mut candidates, sampling);
        penalise(&mut candidates, sampling, seen.iter().rev().copied(), &mut Vec::new());
        candidates.iter().map(|candidate| candidate.logit).collect()
    }

    #[test]
    fn each_penalty_does_what_its_name_says() {
        let row = [4.0, -4.0, 4.0, -4.0];
        let seen = [0, 1, 0, 0, 9];
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(penalised(&row, &sampling, &seen), [2.0, -8.0, 4.0, -4.0]);
        let sampling = Sampling { presence_penalty: 0.5, ..Sampling::default() };
        assert_eq!(penalised(&row, &sampling, &seen), [3.5, -4.5, 4.0, -4.0]);
        let sampling = Sampling { frequency_penalty: 0.5, ..Sampling::default() };
        assert_eq!(penalised(&row, &sampling, &seen), [2.5, -4.5, 4.0, -4.0]);
    }

    #[test]
    fn only_the_last_tokens_asked_for_are_seen() {
        let row = [1.0; 4];
        let sampling = Sampling { presence_penalty: 1.0, penalty_last_n: Some(2), ..Sampling::default() };
        assert_eq!(penalised(&row, &sampling, &[0, 1, 2, 3]), [1.0, 1.0, 0.0, 0.0]);
        let sampling = Sampling { penalty_last_n: Some(0), ..sampling };
        assert_eq!(penalised(&row, &sampling, &[0, 1, 2, 3]), [1.0; 4]);
        let sampling = Sampling { penalty_last_n: None, ..sampling };
        assert_eq!(penalised(&row, &sampling, &[0, 1, 2, 3]), [0.0; 4]);
    }

    #[test]
    fn bias_comes_before_the_penalties() {
        let sampling = Sampling { logit_bias: [(1, 3.0)].into(), repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(penalised(&[1.0, -1.0], &sampling, &[1]), [1.0, 1.0]);
    }
}
