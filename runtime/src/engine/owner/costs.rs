//! How long steps take, learnt from those that ran: by the number of their rows, in powers of two; and how many rows a
//! step may have to keep a pace.

use std::time::Duration;

/// Weight of the latest step.
const RATE: f64 = 0.2;
/// Steps of 1, 2, 4 ... rows.
const KINDS: usize = 24;

/// Times of steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine) struct Costs {
    /// Mean rows and mean milliseconds of each kind that was seen.
    kinds: [Option<(f64, f64)>; KINDS],
}

fn kind(n_rows: usize) -> usize {
    (n_rows.max(1).ilog2() as usize).min(KINDS - 1)
}

impl Costs {
    /// A step of `n_rows` took `time`.
    pub(in crate::engine) fn learn(&mut self, n_rows: usize, time: Duration) {
        let (rows, ms) = (n_rows as f64, time.as_secs_f64() * 1e3);
        let mean = self.kinds[kind(n_rows)].get_or_insert((rows, ms));
        mean.0 += RATE * (rows - mean.0);
        mean.1 += RATE * (ms - mean.1);
    }

    /// Milliseconds of a step of `n_rows`; `None` if no step was seen. Between kinds that were seen and above them on a
    /// straight line; above a single one, in proportion.
    pub(in crate::engine) fn step_ms(&self, n_rows: usize) -> Option<f64> {
        let rows = n_rows.max(1) as f64;
        let mut known = self.kinds.iter().flatten().copied();
        let first = known.next()?;
        let Some(mut second) = known.next() else { return Some(first.1 * (rows / first.0).max(1.0)) };
        let mut before = first;
        for next in known {
            if rows <= second.0 {
                break;
            }
            (before, second) = (second, next);
        }
        if rows <= before.0 {
            return Some(before.1);
        }
        let slope = ((second.1 - before.1) / (second.0 - before.0).max(1.0)).max(0.0);
        Some(before.1 + slope * (rows - before.0))
    }

    /// Most rows, at least `least` and at most `most`, whose step takes no longer than `ms`.
    pub(in crate::engine) fn rows_within(&self, ms: f64, least: usize, most: usize) -> usize {
        let (mut fits, mut too_many) = (least.min(most), most + 1);
        while fits + 1 < too_many {
            let middle = fits.midpoint(too_many);
            match self.step_ms(middle) {
                Some(predicted) if predicted <= ms => fits = middle,
                _ => too_many = middle,
            }
        }
        fits
    }
}

/// Rows of steps that keep within a time. What steps took once is soon out of date: so it is tried out, a little more
/// after each step in time, and less in proportion after one that was late.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine) struct Pace {
    rows: Option<f64>,
}

impl Pace {
    /// Rows of the next step, at least `least` and at most `most`; at first by what is known of costs.
    pub(in crate::engine) fn rows(&mut self, costs: &Costs, ms: f64, least: usize, most: usize) -> usize {
        let rows = match self.rows {
            Some(rows) => rows,
            None => {
                let rows = costs.rows_within(ms, least, most) as f64;
                // Steps of one kind say nothing about others.
                self.rows = (costs.kinds.iter().flatten().count() > 1).then_some(rows);
                rows
            }
        };
        (rows as usize).clamp(least.min(most), most)
    }

    /// A step of `n_rows` took `step_ms`, and may take `ms`.
    pub(in crate::engine) fn learn(&mut self, n_rows: usize, step_ms: f64, ms: f64) {
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
    use super::*;

    fn costs(seen: &[(usize, u64)]) -> Costs {
        let mut costs = Costs::default();
        seen.iter().for_each(|&(n_rows, ms)| costs.learn(n_rows, Duration::from_millis(ms)));
        costs
    }

    #[test]
    fn nothing_is_known_before_a_step_and_one_step_counts_in_proportion() {
        assert_eq!(Costs::default().step_ms(1), None);
        let one = costs(&[(1, 10)]);
        assert_eq!([1, 2, 8].map(|n| one.step_ms(n)), [Some(10.0), Some(20.0), Some(80.0)]);
        assert_eq!(costs(&[(512, 100)]).step_ms(1), Some(100.0));
    }

    #[test]
    fn times_between_and_beyond_lie_on_straight_lines() {
        let costs = costs(&[(1, 10), (16, 25), (256, 265)]);
        assert_eq!([1, 2, 16, 32, 256, 512].map(|n| costs.step_ms(n).unwrap()), [10.0, 11.0, 25.0, 41.0, 265.0, 521.0]);
        assert_eq!(costs.rows_within(15.0, 1, 512), 6);
        assert_eq!(costs.rows_within(5.0, 4, 512), 4);
        assert_eq!(costs.rows_within(1e9, 4, 512), 512);
        assert_eq!(costs.rows_within(1e9, 4, 2), 2);
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
    fn late_steps_weigh_more() {
        let mut costs = costs(&[(1, 100)]);
        (0..30).for_each(|_| costs.learn(1, Duration::from_millis(10)));
        assert!((10.0..11.0).contains(&costs.step_ms(1).unwrap()));
    }
}
