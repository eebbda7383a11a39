//! Mirostat 2: keeps the surprise of a text near a target by a bound on the surprise of each token.
//!
//! Basu, Ramachandran, Keskar, Varshney 2021, algorithm 2. Surprise is that of the model's distribution after
//! penalties and temperature, in bits, before the bound leaves tokens out.

use super::candidates::{Candidate, Candidates};
use super::sampling::Mirostat;

/// The state of one text.
#[derive(Clone, Debug)]
pub(super) struct Surprise {
    target: Mirostat,
    /// Tokens of more surprise are left out, in bits.
    bound: f64,
}

impl Surprise {
    pub(super) fn new(target: Mirostat) -> Self {
        Self { target, bound: 2.0 * f64::from(target.tau) }
    }

    /// Chooses a token with `unit` in [0, 1) and corrects the bound.
    pub(super) fn choose(&mut self, candidates: &mut Candidates, temperature: f32, unit: f64) -> Option<Candidate> {
        let total = candidates.weigh(temperature);
        let surprise = |weight: f32| (total / f64::from(weight)).log2();
        // The best one has weight 1.
        let bound = self.bound.max(total.log2());
        candidates.retain_weighed(|_, weight| surprise(weight) <= bound);
        let chosen = candidates.weigh(temperature);
        let chosen = candidates.draw(chosen, unit)?;
        let most = candidates.largest();
        let weight = super::softmax::exp((chosen.logit - most) / temperature);
        self.bound -= f64::from(self.target.eta) * (surprise(weight) - f64::from(self.target.tau));
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::Random;

    fn mean_surprise(row: &[f32], tau: f32) -> f64 {
        let mut random = Random::new(5);
        let mut surprise = Surprise::new(Mirostat { tau, eta: 0.1 });
        let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        let (warm_up, n) = (500, 4000);
        let mut sum = 0.0;
        for step in 0..warm_up + n {
            let mut candidates = Candidates::default();
            candidates.set_row(row);
            let chosen = surprise.choose(&mut candidates, 1.0, random.unit()).unwrap();
            if step >= warm_up {
                sum -= (f64::from(chosen.logit).exp() / total).log2();
            }
        }
        sum / f64::from(n)
    }

    #[test]
    fn the_surprise_of_a_long_text_comes_to_the_target() {
        // A distribution of Zipf's kind over 2,000 tokens: its own entropy is about 7.5 bits.
        let row: Vec<f32> = (1..=2000).map(|rank| -(rank as f32).ln()).collect();
        for tau in [3.5, 5.0, 6.5] {
            let mean = mean_surprise(&row, tau);
            assert!((mean - f64::from(tau)).abs() < 0.1, "{mean} instead of {tau}");
        }
    }

    #[test]
    fn the_best_token_stays_when_the_bound_is_below_its_surprise() {
        let mut surprise = Surprise::new(Mirostat { tau: 0.001, eta: 1.0 });
        let mut candidates = Candidates::default();
        candidates.set_row(&[0.0, 0.1, 0.0]);
        assert_eq!(surprise.choose(&mut candidates, 1.0, 0.99).unwrap().id, 1);
    }
}
