//! How long steps take, learnt from those that ran: by the number of their rows, in powers of two, and by how many
//! positions they attend to.

use std::time::Duration;

/// Weight of the latest step.
const RATE: f64 = 0.2;
/// Weight of the latest step for what a position costs: that shows only over many steps.
const SLOW_RATE: f64 = 0.02;
/// Positions a row by which steps must differ for their times to say what a position costs.
const TELLING_POSITIONS: f64 = 32.0;
/// Steps of 1, 2, 4 ... rows.
const KINDS: usize = 24;

/// Times of steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine) struct Costs {
    /// Mean rows and mean milliseconds of each kind that was seen.
    kinds: [Option<(f64, f64)>; KINDS],
    attention: [Option<Attention>; KINDS],
}

/// How the time of a kind of step goes with the positions that its rows attend to, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Attention {
    /// Positions of the steps whose mean time [`Costs`] tells.
    latest_positions: f64,
    /// Means of many more steps.
    rows: f64,
    positions: f64,
    ms: f64,
    /// Of positions and milliseconds, and of positions.
    covariance: f64,
    variance: f64,
}

impl Attention {
    fn learn(&mut self, rows: f64, positions: f64, ms: f64) {
        let (of_positions, of_ms) = (positions - self.positions, ms - self.ms);
        self.latest_positions += RATE * (positions - self.latest_positions);
        self.rows += SLOW_RATE * (rows - self.rows);
        self.positions += SLOW_RATE * of_positions;
        self.ms += SLOW_RATE * of_ms;
        let keep = 1.0 - SLOW_RATE;
        self.covariance = keep * (self.covariance + SLOW_RATE * of_positions * of_ms);
        self.variance = keep * (self.variance + SLOW_RATE * of_positions * of_positions);
    }

    /// Milliseconds of a position: the slope of the straight line, which is drawn to zero where all steps attended to
    /// much the same.
    fn position_ms(&self) -> f64 {
        let telling = TELLING_POSITIONS * self.rows;
        let slope = self.covariance / (self.variance + telling * telling);
        // At most all of the time goes to attention.
        slope.clamp(0.0, self.ms / self.positions.max(1.0))
    }
}

fn kind(n_rows: usize) -> usize {
    (n_rows.max(1).ilog2() as usize).min(KINDS - 1)
}

impl Costs {
    /// A step of `n_rows`, which attended to so many positions together, took `time`.
    pub(in crate::engine) fn learn(&mut self, n_rows: usize, positions: usize, time: Duration) {
        let (rows, ms) = (n_rows as f64, time.as_secs_f64() * 1e3);
        let positions = positions as f64;
        let first = Attention { latest_positions: positions, rows, positions, ms, ..Attention::default() };
        self.attention[kind(n_rows)].get_or_insert(first).learn(rows, positions, ms);
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

    /// Milliseconds that a position more adds to steps of about `n_rows`, and the positions of those that were seen.
    pub(in crate::engine) fn attention(&self, n_rows: usize) -> (f64, f64) {
        let wanted = kind(n_rows);
        let known = self.attention.iter().enumerate().filter_map(|(kind, known)| Some((kind, known.as_ref()?)));
        let nearest = known.min_by_key(|(kind, _)| kind.abs_diff(wanted)).map(|(_, nearest)| nearest);
        nearest.map_or((0.0, 0.0), |nearest| {
            // Of a kind with other rows: as many positions for each.
            let scale = if nearest.rows > 0.0 { n_rows as f64 / nearest.rows } else { 1.0 };
            (nearest.position_ms(), nearest.latest_positions * scale)
        })
    }

    /// Milliseconds of a step of `n_rows` that attend to so many positions together.
    pub(in crate::engine) fn step_ms_at(&self, n_rows: usize, positions: f64) -> Option<f64> {
        let (position_ms, usual) = self.attention(n_rows);
        self.step_ms(n_rows).map(|ms| (ms + position_ms * (positions - usual)).max(0.0))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(seen: &[(usize, u64)]) -> Costs {
        let mut costs = Costs::default();
        seen.iter().for_each(|&(n_rows, ms)| costs.learn(n_rows, n_rows, Duration::from_millis(ms)));
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

    /// Milliseconds of steps whose attention is not for nothing.
    fn attending_ms(n_rows: usize, positions: usize) -> f64 {
        8.0 + 0.2 * n_rows as f64 + 0.004 * positions as f64
    }

    #[test]
    fn what_a_position_costs_is_learnt_from_texts_of_many_lengths() {
        let mut costs = Costs::default();
        for number in 0..400_usize {
            let n_rows = if number.is_multiple_of(5) { 64 } else { 1 };
            let positions = n_rows * (100 + number * 7919 % 2000);
            // A few percent of noise.
            let noise = 1.0 + 0.04 * ((number * 31 % 11) as f64 / 5.0 - 1.0);
            costs.learn(n_rows, positions, Duration::from_secs_f64(attending_ms(n_rows, positions) * noise / 1e3));
        }
        for (n_rows, of_each) in [(1, 50), (1, 4000), (64, 50), (64, 3000)] {
            let (found, right) =
                (costs.step_ms_at(n_rows, (n_rows * of_each) as f64), attending_ms(n_rows, n_rows * of_each));
            let off = found.unwrap() / right - 1.0;
            assert!(off.abs() < 0.15, "{n_rows} rows at {of_each}: {found:?} for {right}");
        }
    }

    #[test]
    fn texts_of_one_length_say_nothing_of_what_a_position_costs() {
        let mut costs = Costs::default();
        for number in 0..400_usize {
            let noise = 1.0 + 0.1 * ((number * 31 % 11) as f64 / 5.0 - 1.0);
            costs.learn(1, 1000 + number % 16, Duration::from_secs_f64(0.01 * noise));
        }
        assert!((7.0..14.0).contains(&costs.step_ms_at(1, 8000.0).unwrap()), "{costs:?}");
        assert_eq!(Costs::default().step_ms_at(1, 1.0), None);
    }

    #[test]
    fn late_steps_weigh_more() {
        let mut costs = costs(&[(1, 100)]);
        (0..30).for_each(|_| costs.learn(1, 1, Duration::from_millis(10)));
        assert!((10.0..11.0).contains(&costs.step_ms(1).unwrap()));
    }
}
