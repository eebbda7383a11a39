//! How well two runs over the same tokens agree: what they would choose, and how far their distributions are apart.

use super::greedy;

/// Logits that lie this close, as a share of the larger, are a tie: rounding alone may decide between them.
///
/// For models with random weights, whose logits are flat: their best two are closer than this at one position in ten.
pub const TIE: f32 = 0.02;

/// The comparison of two runs.
pub struct Agreement {
    /// Positions compared.
    pub n: usize,
    /// Positions at which both choose the same token.
    pub n_equal: usize,
    /// Positions at which they do, or at which the expected logits of their choices are a tie.
    pub n_equal_or_tied: usize,
    /// Kullback-Leibler divergences in nats, in ascending order.
    divergences: Vec<f64>,
}

impl Agreement {
    /// Compares logits row by row.
    pub fn of(expected: &[Vec<f32>], found: &[Vec<f32>]) -> Self {
        assert!(expected.len() == found.len() && !expected.is_empty());
        let mut agreement = Self { n: expected.len(), n_equal: 0, n_equal_or_tied: 0, divergences: Vec::new() };
        for (expected, found) in expected.iter().zip(found) {
            let (wanted, chosen) = (greedy(expected), greedy(found));
            let (best, other) = (expected[wanted as usize], expected[chosen as usize]);
            agreement.n_equal += usize::from(wanted == chosen);
            agreement.n_equal_or_tied += usize::from(wanted == chosen || best - other <= TIE * best.abs());
            agreement.divergences.push(divergence(expected, found));
        }
        assert!(agreement.divergences.iter().all(|divergence| divergence.is_finite()), "a logit is not finite");
        agreement.divergences.sort_by(f64::total_cmp);
        agreement
    }

    /// Mean divergence.
    pub fn mean(&self) -> f64 {
        self.divergences.iter().sum::<f64>() / self.n as f64
    }

    /// Divergence at the middle position.
    pub fn median(&self) -> f64 {
        self.divergences[self.n / 2]
    }
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { n, n_equal, n_equal_or_tied, .. } = self;
        let (mean, median) = (self.mean(), self.median());
        write!(f, "{n_equal} of {n} equal, {n_equal_or_tied} with ties, divergence mean {mean:.1e} median {median:.1e}")
    }
}

/// How far the distribution of `found` is from that of `expected`, in nats (Kullback and Leibler).
pub fn divergence(expected: &[f32], found: &[f32]) -> f64 {
    let log_sum_exp = |logits: &[f32]| {
        let largest = logits.iter().fold(f64::NEG_INFINITY, |largest, logit| largest.max((*logit).into()));
        logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum::<f64>().ln() + largest
    };
    let (of_expected, of_found) = (log_sum_exp(expected), log_sum_exp(found));
    let share = |(a, b): (&f32, &f32)| {
        let (a, b) = (f64::from(*a) - of_expected, f64::from(*b) - of_found);
        a.exp() * (a - b)
    };
    expected.iter().zip(found).map(share).sum()
}
