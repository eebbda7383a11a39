//! How many rows a step may have for answers to keep their pace: within a share of the time that a step takes with
//! nothing but these answers in it.
//!
//! Both are measured. What a step of answers alone takes is tried out when it is not known or long ago. What one may have
//! beside them was once right and is soon out of date: so it is a little more after each step in time, and less in
//! proportion after one that was late.

use super::costs::Costs;

/// Steps after which the time of answers alone is measured anew while others run beside them.
const FRESH_STEPS: u64 = 64;
/// Weight of a time that is longer than the one before. Shorter ones count at once: steps are late for many reasons, and
/// early for none.
const RATE: f64 = 0.2;

/// Times of steps of answers alone, and rows of steps that keep within a share of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pace {
    rows: Option<f64>,
    /// By the number of answers.
    alone: Vec<Option<Alone>>,
    n_steps: u64,
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

    /// Rows of the next step, at least `least` and at most `most`; at first by what is known of costs.
    pub(super) fn rows(&mut self, costs: &Costs, ms: f64, least: usize, most: usize) -> usize {
        let rows = match self.rows {
            Some(rows) => rows,
            None => {
                let rows = costs.rows_within(ms, least, most) as f64;
                // Steps of one kind say nothing about others.
                self.rows = (costs.n_kinds() > 1).then_some(rows);
                rows
            }
        };
        (rows as usize).clamp(least.min(most), most)
    }

    /// A step of `n_rows` took `step_ms`, and may take `ms`.
    pub(super) fn learn(&mut self, n_rows: usize, step_ms: f64, ms: f64) {
        let Some(rows) = &mut self.rows else { return };
        if step_ms > ms {
            *rows = (n_rows as f64 * (ms / step_ms).clamp(0.5, 0.95)).min(*rows);
        } else if n_rows as f64 + 1.0 >= *rows {
            // Only a step that used what is allowed shows that more may be.
            *rows += (*rows / 16.0).max(0.25);
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
        let step_ms = |n_rows: usize| 10.0 + n_rows as f64;
        for wrong in [costs(&[(1, 11), (64, 700)]), costs(&[(1, 11), (64, 12)])] {
            let mut pace = Pace::default();
            let mut seen = Vec::new();
            for _ in 0..200 {
                let n_rows = pace.rows(&wrong, 40.0, 4, 512);
                seen.push(n_rows);
                pace.learn(n_rows, step_ms(n_rows), 40.0);
            }
            assert!(seen[100..].iter().all(|n| (26..=32).contains(n)), "{seen:?}");
        }
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
