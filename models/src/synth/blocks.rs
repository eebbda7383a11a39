//! Random valid blocks of every type with a chosen standard deviation.
//!
//! Codes are random bytes; the scale fields are then set. A type with codes drawn uniformly and a scale of one has the
//! deviation in the table below (measured with independent software over a million weights), so the scale follows
//! from the deviation wanted. Scales vary between blocks and change sign at random, which makes the mean zero even
//! where the codes are not symmetric. Layouts: kernels.md, block formats.

use farpost_kernels::tensor::DType;
use half::{bf16, f16};

use super::random::Random;

/// How one type is made: places of half-precision fields with their ratio to the scale, and the deviation at scale 1.
struct Recipe {
    fields: &'static [(usize, f32)],
    unit: f32,
}

/// `None` for types that need more than half-precision fields.
fn recipe(dtype: DType) -> Option<Recipe> {
    let (fields, unit): (&'static [(usize, f32)], f32) = match dtype {
        DType::Q4_0 => (&[(0, 1.0)], 4.64),
        DType::Q4_1 => (&[(0, 1.0), (2, -7.5)], 4.61),
        DType::Q5_0 => (&[(0, 1.0)], 9.25),
        DType::Q5_1 => (&[(0, 1.0), (2, -15.5)], 9.23),
        DType::Q8_0 => (&[(0, 1.0)], 73.9),
        DType::Q2_K => (&[(80, 1.0), (82, 1.5)], 13.84),
        DType::Q3_K => (&[(108, 1.0)], 43.4),
        DType::Q4_K => (&[(0, 1.0), (2, 7.5)], 258.0),
        DType::Q5_K => (&[(0, 1.0), (2, 15.5)], 529.0),
        DType::Q6_K => (&[(208, 1.0)], 1366.0),
        DType::IQ4_NL => (&[(0, 1.0)], 67.6),
        DType::IQ4_XS => (&[(0, 1.0)], 1246.0),
        DType::IQ2_XXS => (&[(0, 1.0)], 53.4),
        DType::IQ2_XS => (&[(0, 1.0)], 55.8),
        DType::IQ2_S => (&[(0, 1.0)], 56.3),
        DType::IQ3_XXS => (&[(0, 1.0)], 142.9),
        DType::IQ3_S => (&[(0, 1.0)], 140.0),
        DType::IQ1_S => (&[(0, 1.0)], 7.22),
        DType::TQ1_0 => (&[(52, 1.0)], 0.817),
        DType::TQ2_0 => (&[(64, 1.0)], 0.866),
        _ => return None,
    };
    Some(Recipe { fields, unit })
}

/// Scales to choose from, both signs of 32 sizes.
const VARIANTS: usize = 64;

/// Makes blocks of one type and deviation.
pub(super) struct Blocks {
    dtype: DType,
    deviation: f32,
    /// Scale fields ready to be copied: place, and bytes for every variant.
    fields: Vec<(usize, [[u8; 2]; VARIANTS])>,
}

impl Blocks {
    pub(super) fn new(dtype: DType, deviation: f32) -> Self {
        let recipe = recipe(dtype).unwrap_or(Recipe { fields: &[], unit: 1.0 });
        let fields = recipe.fields.iter().map(|&(place, ratio)| {
            let bytes = std::array::from_fn(|variant| {
                f16::from_f32(vary(variant) * deviation / recipe.unit * ratio).to_le_bytes()
            });
            (place, bytes)
        });
        Self { dtype, deviation, fields: fields.collect() }
    }

    /// Fills `out`, which is whole blocks.
    pub(super) fn fill(&self, random: &mut Random, out: &mut [u8]) {
        let deviation = self.deviation;
        let mut float = || (random.unit() as f32 * 2.0 - 1.0) * 3_f32.sqrt() * deviation;
        match self.dtype {
            DType::F32 => return super::put(out, float),
            DType::F16 => return put_halves(out, || f16::from_f32(float()).to_le_bytes()),
            DType::BF16 => return put_halves(out, || bf16::from_f32(float()).to_le_bytes()),
            _ => random.fill(out),
        }
        for block in out.chunks_exact_mut(self.dtype.block_bytes()) {
            let bits = random.bits();
            let variant = bits as usize % VARIANTS;
            for (place, bytes) in &self.fields {
                block[*place..*place + 2].copy_from_slice(&bytes[variant]);
            }
            match self.dtype {
                // The code 3 is a weight that no quantizer makes.
                DType::TQ2_0 => block[..64].iter_mut().for_each(|byte| *byte ^= *byte & (*byte >> 1) & 0x55),
                DType::IQ1_M => put_spread_scale(block, vary(variant) * deviation / 7.18),
                DType::MXFP4 => block[0] = power_of_two(deviation / 5.84, bits),
                DType::NVFP4 => block[..4].fill(e4m3(deviation / 2.93)),
                _ => {}
            }
        }
    }
}

/// A factor around one, of either sign, whose mean square is one.
fn vary(variant: usize) -> f32 {
    let size = 0.75 + (variant / 2) as f32 / 62.0;
    let sign = if variant.is_multiple_of(2) { 1.0 } else { -1.0 };
    sign * size / 1.0107
}

fn put_halves(out: &mut [u8], mut value: impl FnMut() -> [u8; 2]) {
    for place in out.chunks_exact_mut(2) {
        place.copy_from_slice(&value());
    }
}

/// IQ1_M keeps its half-precision scale in the upper four bits of four words.
fn put_spread_scale(block: &mut [u8], scale: f32) {
    let bits = f16::from_f32(scale).to_bits();
    for word in 0..4 {
        let high = &mut block[48 + 2 * word + 1];
        *high = (*high & 0x0F) | (((bits >> (4 * word)) & 15) as u8) << 4;
    }
}

/// MXFP4's exponent byte next to `scale`, up or down at random so that the mean square comes near.
fn power_of_two(scale: f32, bits: u64) -> u8 {
    let exponent = f64::from(scale).log2();
    let up = (bits >> 32) as f64 / (1_u64 << 32) as f64 <= exponent - exponent.floor();
    (exponent.floor() + 128.0 + f64::from(u8::from(up))).clamp(1.0, 254.0) as u8
}

/// The unsigned E4M3 code (bias 7) of the number nearest to `scale`.
fn e4m3(scale: f32) -> u8 {
    let value = |code: u8| {
        let (exponent, mantissa) = (i32::from(code >> 3), f32::from(code & 7));
        if exponent == 0 { mantissa * 2_f32.powi(-9) } else { (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7) }
    };
    let distance = |code: &u8| (value(*code) - scale).abs();
    (1..=0x7E).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(1)
}
