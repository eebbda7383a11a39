//! How many rows a step may have for answers to keep their pace: within a share of the time that a step takes with
//! nothing but these answers in it.
//!
//! What a step of answers alone takes is measured: tried out when it is not known or long ago. What it takes with rows
//! beside them is foretold by what steps of as many rows took before, and by how wrong that was of late: machines become
//! slower and faster within seconds.

use super::costs::Costs;

/// Steps after which the time of answers alone is measured anew while others run beside them.
const FRESH_STEPS: u64 = 64;
/// Weight of a time that is longer than the one before. Shorter ones count at once: steps are late for many reasons, and
/// early for none.
const RATE: f64 = 0.2;
/// Weight of the latest step in how much longer steps take than foretold: most of it if it was late, as answers wait for
/// it; little if it was early.
const LATE_RATE: f64 = 0.5;
const EARLY_RATE: f64 = 0.1;
/// By how much what was foretold is taken to be wrong, at most.
const MOST_OFF: f64 = 16.0;

/// Times of steps of answers alone, and how right foretold times are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pace {
    /// Times that steps took, to times foretold.
    off: f64,
    /// By the number of answers.
    alone: Vec<Option<Alone>>,
    n_steps: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { off: 1.0, alone: Vec::new(), n_steps: 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Alone {
    ms: f64,
    /// The step that it was measured in last.
    step: u64,
}

impl Pace {
    /// Milliseconds of a step of so many answers and nothing else; `None` if it was not measured.
    pub(super) fn alone_ms(&self, n_answers: usize) -> Option<f64> {
        Some(self.alone.get(n_answers)?.as_ref()?.ms)
    }

    /// Whether that was measured lately.
    pub(super) fn is_fresh(&self, n_answers: usize) -> bool {
        let known = self.alone.get(n_answers).and_then(Option::as_ref);
        known.is_some_and(|known| self.n_steps - known.step < FRESH_STEPS)
    }

    /// A step of so many answers and nothing else took `ms`.
    pub(super) fn learn_alone(&mut self, n_answers: usize, ms: f64) {
        if self.alone.len() <= n_answers {
            self.alone.resize(n_answers + 1, None);
        }
        let step = self.n_steps;
        let known = self.alone[n_answers].get_or_insert(Alone { ms, step });
        known.ms += if ms < known.ms { 1.0 } else { RATE } * (ms - known.ms);
        known.step = step;
    }

    /// A step of whatever kind ran.
    pub(super) fn count_step(&mut self) {
        self.n_steps += 1;
    }

    /// Rows of the next step, at least `least` and at most `most`, for it to take `ms`.
    pub(super) fn rows(&self, costs: &Costs, ms: f64, least: usize, most: usize) -> usize {
        costs.rows_within(ms / self.off, least, most)
    }

    /// A step with rows beside answers took `ms`, foretold were `foretold_ms`.
    pub(super) fn learn(&mut self, ms: f64, foretold_ms: f64) {
        let off = (ms / foretold_ms).clamp(1.0 / MOST_OFF, MOST_OFF);
        // Not a number where no time passed.
        if off.is_finite() {
            self.off += if off > self.off { LATE_RATE } else { EARLY_RATE } * (off - self.off);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn costs(seen: &[(usize, u64)]) -> Costs {
        let mut costs = Costs::default();
        seen.iter().for_each(|&(n_rows, ms)| costs.learn(n_rows, n_rows, Duration::from_millis(ms)));
        costs
    }

    #[test]
    fn a_pace_is_found_from_either_side_and_kept() {
        let step_ms = |n_rows: usize| 10 + n_rows as u64;
        for mut wrong in [costs(&[(1, 11), (64, 700)]), costs(&[(1, 11), (64, 12)])] {
            let mut pace = Pace::default();
            let mut seen = Vec::new();
            for _ in 0..200 {
                let n_rows = pace.rows(&wrong, 40.0, 4, 512);
                seen.push(n_rows);
                pace.learn(step_ms(n_rows) as f64, wrong.step_ms(n_rows).unwrap());
                wrong.learn(n_rows, n_rows, Duration::from_millis(step_ms(n_rows)));
            }
            assert!(seen[100..].iter().all(|n| (26..=32).contains(n)), "{seen:?}");
        }
    }

    #[test]
    fn more_answers_may_have_more_beside_them_at_once() {
        let known = costs(&[(1, 20), (8, 40), (16, 80)]);
        let pace = Pace::default();
        assert_eq!([30.0, 45.0, 60.0].map(|ms| pace.rows(&known, ms, 2, 512)), [4, 9, 12]);
    }

    #[test]
    fn answers_alone_are_measured_from_time_to_time_and_the_shortest_counts() {
        let mut pace = Pace::default();
        assert!(!pace.is_fresh(3) && pace.alone_ms(3).is_none());
        pace.learn_alone(3, 100.0);
        assert_eq!((pace.is_fresh(3), pace.is_fresh(2), pace.alone_ms(3)), (true, false, Some(100.0)));
        pace.learn_alone(3, 10.0);
        assert_eq!(pace.alone_ms(3), Some(10.0));
        pace.learn_alone(3, 20.0);
        assert_eq!(pace.alone_ms(3), Some(12.0));
        (0..FRESH_STEPS).for_each(|_| pace.count_step());
        assert!(!pace.is_fresh(3));
    }
}
