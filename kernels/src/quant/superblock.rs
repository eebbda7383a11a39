//! Blocks of sub-blocks: small integer scales (and minima) times one half each, found together.
//!
//! First every sub-block gets the best scale of its own; these are rounded under a common half; then turns of two
//! steps: each sub-block tries the neighbours of its integers, and the halves are fitted anew to all weights.

use half::f16;

use super::levels::Levels;
use super::search::{Block, Fit, Sample, half_near};

/// What a format allows: the range of integer scales and, where it has minima, their largest integer.
#[derive(Clone, Copy)]
pub(crate) struct Ranges {
    pub lowest_scale: i32,
    pub highest_scale: i32,
    pub highest_minimum: i32,
}

/// Turns of fitting halves and moving integers.
const TURNS: u32 = 3;

/// How many scales are tried for a sub-block on either side of zero.
const SCALE_TRIALS: u32 = 8;

/// The scales of a block of `SUBS` sub-blocks: weight = `d * scale * level - dmin * minimum`.
#[derive(Clone, Copy)]
pub(crate) struct Super<const SUBS: usize> {
    pub d: f16,
    pub dmin: f16,
    pub scales: [i32; SUBS],
    pub minima: [i32; SUBS],
    pub error: f32,
}

impl<const SUBS: usize> Super<SUBS> {
    /// The best found block with minima, and its codes.
    ///
    /// Minima cannot be negative; where that hurts (weights mostly above zero), the mirrored block is searched and
    /// both halves change sign.
    pub fn affine<L: Levels>(block: &Block<'_, 256>, highest: i32, trims: &[f32]) -> (Self, [u8; 256]) {
        let ranges = Ranges { lowest_scale: 0, highest_scale: highest, highest_minimum: highest };
        let search = |sample: Sample<'_>| {
            let wanted = std::array::from_fn(|sub| sample.part(sub, 256 / SUBS).best_affine::<L>(trims, true));
            let most = wanted.iter().fold(0.0, |most: f32, fit| most.max(fit.scale));
            let found = Self::search::<L>(sample, &wanted, most / highest as f32, ranges, TURNS);
            (found, found.codes::<L>(sample))
        };
        let upright = search(block.sample());
        if !block.is_lopsided() {
            return upright;
        }
        let mut mirrored = search(block.mirrored().sample());
        if mirrored.0.error >= upright.0.error {
            return upright;
        }
        (mirrored.0.d, mirrored.0.dmin) = (-mirrored.0.d, -mirrored.0.dmin);
        mirrored
    }

    /// The best found block with scales only, and its codes.
    pub fn centred<L: Levels>(block: &Block<'_, 256>, ranges: Ranges) -> (Self, [u8; 256]) {
        let sample = block.sample();
        let wanted = std::array::from_fn(|sub| {
            let scale = sample.part(sub, 256 / SUBS).best_scale::<L>(SCALE_TRIALS);
            Fit { scale, minimum: 0.0 }
        });
        let peak =
            wanted.iter().fold(0.0, |peak: f32, fit| if fit.scale.abs() > peak.abs() { fit.scale } else { peak });
        let d = peak / ranges.lowest_scale as f32;
        let found = Self::search::<L>(sample, &wanted, d, ranges, TURNS);
        (found, found.codes::<L>(sample))
    }

    fn fit(&self, sub: usize) -> Fit {
        Fit { scale: self.d.to_f32() * self.scales[sub] as f32, minimum: self.dmin.to_f32() * self.minima[sub] as f32 }
    }

    /// The codes of all weights of `sample`.
    fn codes<L: Levels>(&self, sample: Sample<'_>) -> [u8; 256] {
        let mut codes = [0; 256];
        for (sub, codes) in codes.chunks_exact_mut(256 / SUBS).enumerate() {
            sample.part(sub, 256 / SUBS).codes::<L>(self.fit(sub), codes);
        }
        codes
    }

    /// Finds halves and integers for the `wanted` scales and minima of the sub-blocks, in `turns` turns.
    fn search<L: Levels>(sample: Sample<'_>, wanted: &[Fit; SUBS], d: f32, ranges: Ranges, turns: u32) -> Self {
        let dmin = match ranges.highest_minimum {
            0 => 0.0,
            highest => wanted.iter().fold(0.0, |most: f32, fit| most.max(fit.minimum)) / highest as f32,
        };
        let (d, dmin) = (half_near(d), half_near(dmin));
        let nearest = |value: f32, unit: f16, low: i32, high: i32| match unit.to_f32() {
            0.0 => 0,
            unit => ((value / unit).round_ties_even() as i32).clamp(low, high),
        };
        let scales = wanted.map(|fit| nearest(fit.scale, d, ranges.lowest_scale, ranges.highest_scale));
        let minima = wanted.map(|fit| nearest(fit.minimum, dmin, 0, ranges.highest_minimum));
        let mut now = Self { d, dmin, scales, minima, error: 0.0 };
        now.improve_integers::<L>(sample, ranges);
        let mut best = now;
        for _ in 0..turns {
            let Some((d, dmin)) = now.refit::<L>(sample) else { break };
            if (d, dmin) == (now.d, now.dmin) {
                break;
            }
            (now.d, now.dmin) = (d, dmin);
            now.improve_integers::<L>(sample, ranges);
            if now.error >= best.error {
                break;
            }
            best = now;
        }
        best
    }

    /// Moves every sub-block to the best of its integers and their neighbours; sums up the error.
    fn improve_integers<L: Levels>(&mut self, sample: Sample<'_>, ranges: Ranges) {
        self.error = 0.0;
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for sub in 0..SUBS {
            let part = sample.part(sub, 256 / SUBS);
            let (scale, minimum) = (self.scales[sub], self.minima[sub]);
            let mut least = f32::INFINITY;
            for minimum in around(minimum, 0, ranges.highest_minimum) {
                for scale in around(scale, ranges.lowest_scale, ranges.highest_scale) {
                    let error = part.error::<L>(Fit { scale: d * scale as f32, minimum: dmin * minimum as f32 });
                    if error < least {
                        (least, self.scales[sub], self.minima[sub]) = (error, scale, minimum);
                    }
                }
            }
            self.error += least;
        }
    }

    /// The halves that fit the present codes and integers best.
    fn refit<L: Levels>(&self, sample: Sample<'_>) -> Option<(f16, f16)> {
        // Normal equations of x = d * a - dmin * b with a = scale * level and b = minimum.
        let (mut aa, mut ab, mut bb, mut xa, mut xb) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for sub in 0..SUBS {
            let part = sample.part(sub, 256 / SUBS);
            let (sums, totals) = (part.moments::<L>(self.fit(sub)), part.totals());
            let (scale, minimum) = (f64::from(self.scales[sub]), f64::from(self.minima[sub]));
            aa += scale * scale * f64::from(sums.level_level);
            ab += scale * minimum * f64::from(sums.level);
            bb += minimum * minimum * f64::from(totals.count);
            xa += scale * f64::from(sums.x_level);
            xb += minimum * f64::from(totals.x);
        }
        let determinant = aa * bb - ab * ab;
        let (d, dmin) = if determinant > 1e-9 * aa * bb {
            ((xa * bb - xb * ab) / determinant, (xa * ab - xb * aa) / determinant)
        } else if aa > 0.0 {
            (xa / aa, f64::from(self.dmin))
        } else {
            return None;
        };
        Some((half_near(d as f32), half_near(dmin as f32)))
    }
}

fn around(middle: i32, low: i32, high: i32) -> impl Iterator<Item = i32> {
    (middle - 1).max(low)..=(middle + 1).min(high)
}
