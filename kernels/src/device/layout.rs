//! How weights lie on the device: whole 32-bit words, in a few forms that hold every type exactly.
//!
//! A row is units of 32 weights; a shorter last one is filled up with zeros. Codes of a unit are one vector of four words
//! (4 bits a code, lowest first), two (signed bytes), four (halves, upper halves of f32) or eight (f32). A weight of coded
//! types is `scale * level + minimum`; scales lie in a buffer of their own, row after row:
//!
//! | scales | words |
//! |---|---|
//! | halves | two scales a word |
//! | halves with minima | scale low, minimum high |
//! | f32 | one word a scale |
//! | f32 with minima | scale, minimum |
//!
//! A level is the 4-bit code less an offset, the 4-bit code looked up in a table of sixteen signed bytes, or a signed byte.
//! The codebook types (IQ1 to IQ3) have at most sixteen levels each, so they too lie as 4-bit codes. `weights.wgsl` reads
//! all of it.

use crate::cpu::linear::{Coded, coded};
use crate::tensor::DType;

/// Weights of a unit.
pub(crate) const UNIT: usize = 32;

/// Bytes of a vector of codes.
const VECTOR: usize = 16;

/// Levels of the codebook types: magnitudes of their grids, with signs.
const IQ1_LEVELS: [i8; 16] = [-9, -7, -1, 1, 7, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const IQ2_LEVELS: [i8; 16] = [-43, -25, -8, 8, 25, 43, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const IQ3_XXS_LEVELS: [i8; 16] = [-62, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 62];
const IQ3_S_LEVELS: [i8; 16] = [-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15];

/// How codes become levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Levels {
    /// 4-bit codes less an offset.
    Even(u8),
    /// 4-bit codes, and what they stand for.
    Table([i8; 16]),
    /// Signed bytes.
    Bytes,
}

/// The form of one type.
#[derive(Clone, Copy)]
pub(crate) enum Layout {
    /// Numbers of so many bits: 16, 17 (the upper half of f32) or 32.
    Plain(u32),
    /// Codes under scales.
    Coded(CodedLayout),
}

/// Codes under scales.
#[derive(Clone, Copy)]
pub(crate) struct CodedLayout {
    coded: Coded,
    levels: Levels,
    /// Whether codes are given as levels above the offset, to be looked up in the table.
    is_looked_up: bool,
}

impl Layout {
    /// The form of a type.
    pub(crate) fn of(dtype: DType) -> Self {
        let Some(coded) = coded(dtype) else {
            return Self::Plain(match dtype {
                DType::F16 => 16,
                DType::BF16 => 17,
                _ => 32,
            });
        };
        let above = |code: u8| code.wrapping_sub(coded.offset).cast_signed();
        let levels = match (dtype, coded.table) {
            (_, Some(table)) => Levels::Table(table.map(above)),
            (DType::IQ1_S | DType::IQ1_M, _) => Levels::Table(IQ1_LEVELS),
            (DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S, _) => Levels::Table(IQ2_LEVELS),
            (DType::IQ3_XXS, _) => Levels::Table(IQ3_XXS_LEVELS),
            (DType::IQ3_S, _) => Levels::Table(IQ3_S_LEVELS),
            (DType::Q5_0 | DType::Q5_1 | DType::Q8_0 | DType::Q5_K | DType::Q6_K, _) => Levels::Bytes,
            _ => Levels::Even(coded.offset),
        };
        let is_looked_up = coded.table.is_none() && matches!(levels, Levels::Table(_));
        Self::Coded(CodedLayout { coded, levels, is_looked_up })
    }

    /// Bits of a code as shaders count them.
    fn bits(&self) -> u32 {
        match self {
            Self::Plain(bits) => *bits,
            Self::Coded(CodedLayout { levels: Levels::Bytes, .. }) => 8,
            Self::Coded(_) => 4,
        }
    }

    /// What shaders are told.
    pub(crate) fn constants(&self) -> Vec<(&'static str, f64)> {
        let mut constants = vec![("BITS", f64::from(self.bits()))];
        let Self::Coded(CodedLayout { coded, levels, .. }) = self else { return constants };
        constants.push(("SUB", coded.sub as f64));
        constants.push(("HAS_MIN", f64::from(u8::from(coded.has_min))));
        constants.push(("HALVES", f64::from(u8::from(coded.stored_halves))));
        match levels {
            Levels::Even(offset) => constants.push(("OFFSET", f64::from(*offset))),
            Levels::Table(table) => {
                constants.push(("HAS_TABLE", 1.0));
                let names = ["TABLE_0", "TABLE_1", "TABLE_2", "TABLE_3"];
                for (name, levels) in names.into_iter().zip(table.as_chunks::<4>().0) {
                    constants.push((name, f64::from(u32::from_le_bytes(levels.map(i8::cast_unsigned)))));
                }
            }
            Levels::Bytes => {}
        }
        constants
    }

    /// Bytes of the codes of a row.
    pub(crate) fn code_bytes(&self, cols: usize) -> usize {
        let vectors = match self.bits() {
            17 => 4,
            bits => bits as usize / 4,
        };
        cols.div_ceil(UNIT) * vectors * VECTOR
    }

    /// Words of the scales of a row.
    pub(crate) fn scale_words(&self, cols: usize) -> usize {
        let Self::Coded(CodedLayout { coded, .. }) = self else { return 0 };
        let runs = cols.div_ceil(UNIT) * (UNIT / coded.sub);
        match (coded.stored_halves, coded.has_min) {
            (true, false) => runs.div_ceil(2),
            (false, true) => 2 * runs,
            _ => runs,
        }
    }

    /// Lays a row of stored blocks, in the order of model files, out in `codes` and `scales`, which have the lengths that
    /// [`Layout::code_bytes`] and [`Layout::scale_words`] say.
    pub(crate) fn lay(&self, row: &[u8], codes: &mut [u8], scales: &mut [u32]) {
        match self {
            Self::Plain(_) => {
                let (numbers, rest) = codes.split_at_mut(row.len());
                numbers.copy_from_slice(row);
                rest.fill(0);
            }
            Self::Coded(layout) => layout.lay(row, codes, scales),
        }
    }
}

impl CodedLayout {
    fn lay(&self, row: &[u8], codes: &mut [u8], scales: &mut [u32]) {
        let Coded { sub, offset, has_min, stored_halves, .. } = self.coded;
        let place_of = self.places();
        let per_code = if self.levels == Levels::Bytes { 1 } else { 2 };
        let mut codes = codes;
        let runs_of_chunk = 256 / sub;
        let mut run = 0;
        scales.fill(0);
        self.coded.for_each_chunk(row, |found, of_scales, of_mins| {
            let n_codes = found.len().min(codes.len() * per_code);
            let (own, rest) = std::mem::take(&mut codes).split_at_mut(n_codes / per_code);
            codes = rest;
            if self.levels == Levels::Bytes {
                for (byte, code) in own.iter_mut().zip(found) {
                    *byte = code.wrapping_sub(offset);
                }
            } else {
                for (byte, pair) in own.iter_mut().zip(found.as_chunks::<2>().0) {
                    let [low, high] = pair.map(|code| place_of[usize::from(code)]);
                    *byte = low | high << 4;
                }
            }
            for (scale, min) in of_scales.iter().zip(of_mins).take(runs_of_chunk) {
                let (scale, min) = (scale.to_bits(), min.to_bits());
                let word = match (stored_halves, has_min) {
                    (true, false) => scales.get_mut(run / 2).map(|word| *word |= scale << (16 * (run % 2))),
                    (true, true) => scales.get_mut(run).map(|word| *word = scale | min << 16),
                    (false, false) => scales.get_mut(run).map(|word| *word = scale),
                    (false, true) => {
                        scales.get_mut(2 * run..2 * run + 2).map(|pair| pair.copy_from_slice(&[scale, min]))
                    }
                };
                // Behind the end of the row there is no place.
                if word.is_some() {
                    run += 1;
                }
            }
        });
    }

    /// The 4 bits that stand for each code.
    fn places(&self) -> [u8; 256] {
        let mut places: [u8; 256] = std::array::from_fn(|code| code as u8 & 15);
        if let (Levels::Table(table), true) = (self.levels, self.is_looked_up) {
            for (place, level) in table.iter().enumerate().rev() {
                places[usize::from(level.cast_unsigned().wrapping_add(self.coded.offset))] = place as u8;
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant;
    use proptest::prelude::*;

    /// What `weights.wgsl` makes of a row.
    fn read(layout: &Layout, codes: &[u8], scales: &[u32], weight: usize) -> f32 {
        let half = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
        match layout {
            Layout::Plain(16) => half(u32::from(u16::from_le_bytes([codes[2 * weight], codes[2 * weight + 1]]))),
            Layout::Plain(17) => half::bf16::from_le_bytes([codes[2 * weight], codes[2 * weight + 1]]).to_f32(),
            Layout::Plain(_) => f32::from_le_bytes(*codes[4 * weight..].first_chunk().unwrap()),
            Layout::Coded(CodedLayout { coded, levels, .. }) => {
                let nibble = || (codes[weight / 2] >> (4 * (weight % 2))) & 15;
                let level = match levels {
                    Levels::Even(offset) => i32::from(nibble()) - i32::from(*offset),
                    Levels::Table(table) => i32::from(table[usize::from(nibble())]),
                    Levels::Bytes => i32::from(codes[weight].cast_signed()),
                };
                let run = weight / coded.sub;
                let (scale, min) = match (coded.stored_halves, coded.has_min) {
                    (true, false) => (half(scales[run / 2] >> (16 * (run % 2))), 0.0),
                    (true, true) => (half(scales[run]), half(scales[run] >> 16)),
                    (false, false) => (f32::from_bits(scales[run]), 0.0),
                    (false, true) => (f32::from_bits(scales[2 * run]), f32::from_bits(scales[2 * run + 1])),
                };
                scale * level as f32 + min
            }
        }
    }

    fn check(dtype: DType, bytes: &[u8], cols: usize) {
        let layout = Layout::of(dtype);
        let row = &bytes[..dtype.row_bytes(cols).unwrap()];
        let mut expected = vec![0.0; cols];
        quant::decode(dtype, row, &mut expected).unwrap();
        let mut codes = vec![0xAA; layout.code_bytes(cols)];
        let mut scales = vec![0x5555_5555; layout.scale_words(cols)];
        layout.lay(row, &mut codes, &mut scales);
        for (weight, expected) in expected.iter().enumerate() {
            let found = read(&layout, &codes, &scales, weight);
            // The scalar decoders round once or twice in another place; bits are the same but for that.
            let is_near = (found - expected).abs() <= 4e-7 * expected.abs().max(f32::MIN_POSITIVE);
            let has_min = matches!(layout, Layout::Coded(CodedLayout { coded: Coded { has_min: true, .. }, .. }));
            assert!(
                is_near || !expected.is_finite() && !found.is_finite() || has_min && (found - expected).abs() < 0.1,
                "{dtype} {cols}: weight {weight} is {found:e}, expected {expected:e}"
            );
        }
    }

    #[test]
    fn golden_blocks_lie_as_what_they_decode_to() {
        for dtype in DType::all().filter(|dtype| !matches!(dtype, DType::F32 | DType::F16)) {
            let bytes = std::fs::read(farpost_firmware_tests::golden(&format!("blocks/{dtype}.bin"))).unwrap();
            let n_weights = bytes.len() / dtype.block_bytes() * dtype.block_len();
            check(dtype, &bytes, n_weights);
        }
    }

    proptest! {
        #[test]
        fn any_row_lies_as_what_it_decodes_to(bytes in prop::collection::vec(any::<u8>(), 3 * 256), n in 1..4_usize) {
            for dtype in DType::all() {
                let n_blocks = n.min(bytes.len() / dtype.block_bytes());
                check(dtype, &bytes, n_blocks * dtype.block_len());
            }
        }
    }
}
