//! Searching scales: of all ways to code some weights, one with little squared error.
//!
//! A weight is coded as `scale * level - minimum`. For fixed codes the best scale (and minimum) is a small
//! least-squares problem; codes are found by rounding under a list of trial scales, the best of which is polished by
//! turns of fitting and rounding. Errors are weighted by importance; sums have a fixed order (eight lanes, then
//! pairwise), so the result is the same on every machine. Inputs went through [`Block::new`], so that nothing here
//! overflows.

use half::f16;

use super::levels::{Levels, limited};

const LANES: usize = 8;

/// Weights to code, a multiple of eight, and how much each matters.
#[derive(Clone, Copy)]
pub(crate) struct Sample<'a> {
    pub x: &'a [f32],
    pub importance: &'a [f32],
}

/// Magnitudes above are out of reach of any half scale times any level, so a limit changes no code.
const LARGEST: f32 = 1e12;
/// Magnitudes below are far under half of the smallest step that a half scale can make.
const SMALLEST: f32 = 1e-12;

/// One block to encode.
pub(crate) struct Block<'a, const N: usize> {
    /// The finite weights as given.
    pub raw: &'a [f32; N],
    /// The weights in the range in which the search cannot overflow.
    limited: [f32; N],
    /// Importance, at most 1.
    importance: [f32; N],
}

impl<'a, const N: usize> Block<'a, N> {
    /// Brings weights and importance into range; without importance, or if it is all zero, all weights count alike.
    pub fn new(raw: &'a [f32; N], importance: Option<&[f32; N]>) -> Self {
        let limited = raw.map(|x| if x.abs() < SMALLEST { 0.0 } else { limited(x, -LARGEST, LARGEST) });
        let largest = importance.map_or(0.0, |importance| importance.iter().copied().fold(0.0, f32::max));
        let importance = match importance {
            Some(importance) if largest > 0.0 => importance.map(|weight| weight / largest),
            _ => [1.0; N],
        };
        Self { raw, limited, importance }
    }

    /// True if at least a part of 32 weights lies above zero and none below.
    pub fn is_lopsided(&self) -> bool {
        let one_sided =
            |is_out: fn(&f32) -> bool| self.limited.chunks(32).filter(|part| !part.iter().any(is_out)).count();
        one_sided(|x| *x <= 0.0) > one_sided(|x| *x >= 0.0)
    }

    /// The block with all signs changed.
    pub fn mirrored(&self) -> Self {
        Self { raw: self.raw, limited: self.limited.map(|x| -x), importance: self.importance }
    }

    /// All weights.
    pub fn sample(&self) -> Sample<'_> {
        Sample { x: &self.limited, importance: &self.importance }
    }
}

/// A scale and the minimum that is subtracted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fit {
    pub scale: f32,
    pub minimum: f32,
}

/// The half nearest to `value`: at the ends of the range instead of infinite, never zero unless `value` is.
pub(crate) fn half_near(value: f32) -> f16 {
    let half = f16::from_f32(limited(value, -65504.0, 65504.0));
    if half.to_f32() != 0.0 || value == 0.0 {
        return half;
    }
    f16::from_bits(if value < 0.0 { 0x8001 } else { 1 })
}

/// Sums over a sample and its levels, each term times importance.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
    pub level: f32,
    pub level_level: f32,
    pub x_level: f32,
}

/// Sums over a sample that no code changes.
#[derive(Clone, Copy)]
pub(crate) struct Totals {
    pub count: f32,
    pub x: f32,
    pub x_x: f32,
}

impl<'a> Sample<'a> {
    /// Part `number` of `len` weights.
    pub fn part(&self, number: usize, len: usize) -> Self {
        let range = number * len..(number + 1) * len;
        Self { x: &self.x[range.clone()], importance: &self.importance[range] }
    }

    /// Squared error when weights are rounded to the nearest levels under `fit`.
    pub fn error<L: Levels>(&self, fit: Fit) -> f32 {
        let inverse = inverse(fit.scale);
        let mut sum = [0.0; LANES];
        for (x, importance) in self.lanes() {
            for lane in 0..LANES {
                let target = x[lane] + fit.minimum;
                let off = target - fit.scale * L::nearest(target * inverse);
                sum[lane] += importance[lane] * off * off;
            }
        }
        total(sum)
    }

    /// Codes of the nearest levels under `fit`.
    pub fn codes<L: Levels>(&self, fit: Fit, codes: &mut [u8]) {
        let inverse = inverse(fit.scale);
        for (code, x) in codes.iter_mut().zip(self.x) {
            *code = L::code((x + fit.minimum) * inverse);
        }
    }

    /// The weight of largest magnitude, with its sign.
    pub fn peak(&self) -> f32 {
        self.x.iter().copied().fold(0.0, |peak: f32, x| if x.abs() > peak.abs() { x } else { peak })
    }

    /// The scale with the least error found, without a minimum. `trials` is how many are tried on either side.
    pub fn best_scale<L: Levels>(&self, trials: u32) -> f32 {
        let peak = self.peak();
        if peak == 0.0 {
            return 0.0;
        }
        let mut best = peak / L::LOW;
        let mut best_gain = 0.0;
        let mut consider = |scale: f32| {
            let sums = self.moments::<L>(Fit { scale, minimum: 0.0 });
            let scale = sums.x_level / sums.level_level;
            let gain = sums.x_level * scale;
            let is_better = gain > best_gain;
            if is_better {
                best_gain = gain;
            }
            is_better.then_some(scale)
        };
        for end in [L::LOW, L::HIGH] {
            // The peak may lie from a bit inside the last level to a bit beyond it.
            for trial in 0..=trials {
                let stretch = (trial as f32 / trials as f32 - 0.4) * 2.2 * L::STEP;
                best = consider(peak / (end + end.signum() * stretch)).unwrap_or(best);
            }
        }
        polished(best, consider)
    }

    /// The scale and minimum with the least error found. `is_floored` keeps the minimum from being negative.
    pub fn best_affine<L: Levels>(&self, trims: &[f32], is_floored: bool) -> Fit {
        let (mut low, high) = self.x.iter().fold((f32::MAX, f32::MIN), |(low, high), &x| (low.min(x), high.max(x)));
        if is_floored {
            low = low.min(0.0);
        }
        let step = (high - low) / L::HIGH;
        let mut best = Fit { scale: step.max(0.0), minimum: -low };
        if high - low <= 0.0 {
            return best;
        }
        let totals = self.totals();
        let mut best_error = f32::INFINITY;
        let mut consider = |from: Fit| {
            let sums = self.moments::<L>(from);
            let (fit, error) = totals.solve(sums, is_floored)?;
            let is_better = error < best_error;
            if is_better {
                best_error = error;
            }
            is_better.then_some(fit)
        };
        for bottom in trims {
            for top in trims {
                let scale = (high - low - (bottom + top) * step) / L::HIGH;
                best = consider(Fit { scale, minimum: -(low + bottom * step) }).unwrap_or(best);
            }
        }
        polished(best, consider)
    }

    /// Sums over the nearest levels under `fit`.
    pub fn moments<L: Levels>(&self, fit: Fit) -> Moments {
        let inverse = inverse(fit.scale);
        let (mut level_, mut level_level, mut x_level) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for (x, importance) in self.lanes() {
            for lane in 0..LANES {
                let level = L::nearest((x[lane] + fit.minimum) * inverse);
                let weighted = importance[lane] * level;
                level_[lane] += weighted;
                level_level[lane] += weighted * level;
                x_level[lane] += weighted * x[lane];
            }
        }
        Moments { level: total(level_), level_level: total(level_level), x_level: total(x_level) }
    }

    /// Sums over the weights alone.
    pub fn totals(&self) -> Totals {
        let (mut count, mut x_, mut x_x) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for (x, importance) in self.lanes() {
            for lane in 0..LANES {
                let weighted = importance[lane] * x[lane];
                count[lane] += importance[lane];
                x_[lane] += weighted;
                x_x[lane] += weighted * x[lane];
            }
        }
        Totals { count: total(count), x: total(x_), x_x: total(x_x) }
    }

    fn lanes(&self) -> impl Iterator<Item = (&'a [f32; LANES], &'a [f32; LANES])> + use<'a> {
        self.x.as_chunks().0.iter().zip(self.importance.as_chunks().0)
    }
}

impl Totals {
    /// Least squares for given codes, with the error left; `None` where all codes are alike.
    fn solve(&self, sums: Moments, is_floored: bool) -> Option<(Fit, f32)> {
        let determinant = self.count * sums.level_level - sums.level * sums.level;
        if determinant <= 1e-6 * self.count * sums.level_level {
            return None;
        }
        let mut scale = (self.count * sums.x_level - sums.level * self.x) / determinant;
        let mut start = (sums.level_level * self.x - sums.level * sums.x_level) / determinant;
        if is_floored && start > 0.0 {
            (scale, start) = (sums.x_level / sums.level_level, 0.0);
        }
        let error = self.x_x - scale * sums.x_level - start * self.x;
        (scale > 0.0).then_some((Fit { scale, minimum: -start }, error))
    }
}

/// Fits and rounds by turns from `best` on, while that helps.
fn polished<T: Copy>(mut best: T, mut consider: impl FnMut(T) -> Option<T>) -> T {
    for _ in 0..4 {
        match consider(best) {
            Some(better) => best = better,
            None => break,
        }
    }
    best
}

/// 1 / scale, and 0 for a scale of 0: all weights then take the level nearest to 0.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}
