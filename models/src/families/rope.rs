//! Rotary position embedding: what files say of it, folded into one table of frequencies.
//!
//! The pair `i` of a head turns by `base^(-2i / dims)` radians a position (RoFormer, arXiv 2104.09864). Longer contexts
//! are reached by turning slower: all pairs alike (linear), slow pairs more than fast ones (YaRN, arXiv 2309.00071), or
//! each by a divisor of its own that the file brings (Llama 3, LongRoPE). All of it is computed here, in f64.

use std::f64::consts::TAU;
use std::sync::Arc;

use farpost_kernels::graph::{Rope, RopeStyle};

use super::error::FamilyError;
use super::keys::Keys;

/// How frequencies are stretched for contexts longer than those first trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all, or only by the file's divisors.
    None,
    /// Every frequency is divided.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// YaRN: frequencies that turn less than `beta_slow` times over the original context are divided, those that turn
    /// more than `beta_fast` times are kept, the others are blended.
    Yarn {
        /// The divisor.
        factor: f32,
        /// Share of the kept frequencies in the blend; 1 unless the file says otherwise, 0 makes it linear.
        mix: f32,
        /// Turns from which on a frequency is kept.
        beta_fast: f32,
        /// Turns up to which a frequency is divided.
        beta_slow: f32,
    },
}

/// What a file says of its rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSettings {
    /// Elements of a head that rotate; even, the others stay as they are.
    pub dims: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// Base in layers with a sliding window, if the file names another one.
    pub windowed_base: Option<f32>,
    /// Stretching.
    pub scaling: RopeScaling,
    /// Factor on cos and sin, if the file names one.
    pub attention_factor: Option<f32>,
    /// Positions trained for before stretching.
    pub original_context: usize,
}

impl RopeSettings {
    /// Reads and checks the keys `rope.*`.
    pub(super) fn read(
        keys: &Keys<'_>,
        key_dim: usize,
        trained_context: usize,
        max_context: usize,
    ) -> Result<Self, FamilyError> {
        let dims = keys.size("rope.dimension_count", key_dim)?.unwrap_or(key_dim);
        if !dims.is_multiple_of(2) {
            return Err(keys.out_of_range("rope.dimension_count", dims.to_string(), "an even number").into());
        }
        let original_context = keys.size("rope.scaling.original_context_length", max_context)?;
        let attention_factor = match keys.positive("rope.scaling.attn_factor")? {
            None => keys.positive("rope.scaling.yarn_attn_factor")?,
            found => found,
        };
        Ok(Self {
            dims,
            base: base(keys, "rope.freq_base")?.unwrap_or(10_000.0),
            windowed_base: base(keys, "rope.freq_base_swa")?,
            scaling: RopeScaling::read(keys)?,
            attention_factor,
            original_context: original_context.unwrap_or(trained_context),
        })
    }

    /// The same without any stretching and with another base: layers with a sliding window.
    pub(super) fn unscaled(&self, base: f32) -> Self {
        Self { base, scaling: RopeScaling::None, attention_factor: None, ..self.clone() }
    }

    /// The table for the graph. `divisors` holds one number a pair.
    pub(super) fn table(&self, style: RopeStyle, divisors: Option<&[f32]>) -> Rope {
        let (dims, base) = (self.dims as f64, f64::from(self.base));
        let plain = (0..self.dims / 2).map(|pair| {
            let divisor = divisors.and_then(|divisors| divisors.get(pair)).map_or(1.0, |divisor| f64::from(*divisor));
            base.powf(-2.0 * pair as f64 / dims) / divisor
        });
        let frequencies: Arc<[f64]> = match self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / f64::from(factor)).collect(),
            RopeScaling::Yarn { factor, mix, beta_fast, beta_slow } => {
                let pair_of = |turns: f32| self.pair_that_turns(f64::from(turns));
                let first = pair_of(beta_fast).floor().max(0.0);
                let last = pair_of(beta_slow).ceil().min(dims - 1.0);
                let blend = |(pair, frequency): (usize, f64)| {
                    let divided = ((pair as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                    let kept = (1.0 - divided) * f64::from(mix);
                    frequency * kept + frequency / f64::from(factor) * (1.0 - kept)
                };
                plain.enumerate().map(blend).collect()
            }
        };
        Rope { style, frequencies, magnitude: self.magnitude() }
    }

    /// The pair (as a real number) that turns `turns` times over the original context.
    fn pair_that_turns(&self, turns: f64) -> f64 {
        let longest = self.original_context as f64 / (turns * TAU);
        self.dims as f64 * longest.ln() / (2.0 * f64::from(self.base).ln())
    }

    fn magnitude(&self) -> f32 {
        match (self.attention_factor, self.scaling) {
            (Some(factor), _) => factor,
            (None, RopeScaling::Yarn { factor, mix, .. }) if factor > 1.0 && mix > 0.0 => {
                (1.0 + 0.1 * f64::from(factor).ln()) as f32
            }
            _ => 1.0,
        }
    }
}

impl RopeScaling {
    fn read(keys: &Keys<'_>) -> Result<Self, FamilyError> {
        let factor = match keys.positive("rope.scaling.factor")? {
            None => keys.positive("rope.scale_linear")?,
            found => found,
        };
        let Some(factor) = factor.filter(|factor| *factor != 1.0) else {
            Self::check_kind(keys)?;
            return Ok(Self::None);
        };
        match Self::check_kind(keys)? {
            "linear" => Ok(Self::Linear { factor }),
            "yarn" => {
                let mix = keys.not_negative("rope.scaling.yarn_ext_factor")?.unwrap_or(1.0).min(1.0);
                let beta_fast = keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0);
                let beta_slow = keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0);
                Ok(Self::Yarn { factor, mix, beta_fast, beta_slow })
            }
            // With "longrope" the divisors do everything.
            _ => Ok(Self::None),
        }
    }

    /// The file's kind of scaling, refused if it is none of ours; a factor alone means linear.
    fn check_kind<'f>(keys: &Keys<'f>) -> Result<&'f str, FamilyError> {
        let kind = keys.string("rope.scaling.type")?.unwrap_or("linear");
        if ["none", "linear", "yarn", "longrope"].contains(&kind) {
            return Ok(kind);
        }
        let expected = "'none', 'linear', 'yarn' or 'longrope'";
        Err(keys.out_of_range("rope.scaling.type", format!("'{}'", kind.escape_debug()), expected).into())
    }
}

/// A base above 1: frequencies must fall.
fn base(keys: &Keys<'_>, key: &str) -> Result<Option<f32>, FamilyError> {
    match keys.positive(key)? {
        Some(found) if found <= 1.0 => Err(keys.out_of_range(key, found.to_string(), "a number above 1").into()),
        found => Ok(found),
    }
}
