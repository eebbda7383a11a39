//! Every kernel against the plain one, and the plain one against decoded weights.

use super::*;
use crate::order::{Order, to_sixteens};
use crate::quant;
use proptest::prelude::*;

/// A small generator, so that cases are cheap to make and to repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// How the bits of blocks are made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bits {
    Random,
    AllOnes,
    AllZero,
    ZeroScales,
    SubnormalScales,
}

/// Where a block type keeps its halves.
fn halves(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
        DType::IQ1_M | DType::MXFP4 | DType::NVFP4 => &[],
        _ => &[0],
    }
}

fn weights(dtype: DType, rows: usize, cols: usize, bits: Bits, random: &mut Random) -> Vec<u8> {
    if !dtype.is_quantized() {
        let value = |random: &mut Random| match bits {
            Bits::AllZero | Bits::ZeroScales => 0.0,
            Bits::AllOnes => 65504.0,
            Bits::Random => random.value(),
            Bits::SubnormalScales => random.value() * 1e-6,
        };
        let values: Vec<f32> = (0..rows * cols).map(|_| value(random)).collect();
        let mut bytes = vec![0; rows * dtype.row_bytes(cols).unwrap()];
        quant::encode(dtype, &values, None, &mut bytes).unwrap();
        return bytes;
    }
    let byte = |random: &mut Random| match bits {
        Bits::AllZero => 0,
        Bits::AllOnes => 255,
        _ => (random.next() >> 32) as u8,
    };
    let mut bytes: Vec<u8> = (0..rows * dtype.row_bytes(cols).unwrap()).map(|_| byte(random)).collect();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        let half = |random: &mut Random| match bits {
            Bits::AllZero | Bits::ZeroScales => 0,
            Bits::SubnormalScales => (random.next() as u16) & 0x83FF,
            _ => 0x2000 | (random.next() as u16 & 0x8FFF),
        };
        for at in halves(dtype) {
            block[*at..at + 2].copy_from_slice(&half(random).to_le_bytes());
        }
        match (dtype, bits) {
            // Exponents near one; an exponent of 255 would be close to the end of the range.
            (DType::MXFP4, Bits::Random | Bits::AllOnes) => block[0] = 120 + (random.next() % 16) as u8,
            (DType::MXFP4, Bits::SubnormalScales) => block[0] %= 2,
            (DType::MXFP4 | DType::NVFP4, Bits::ZeroScales) => block[..4].fill(0),
            // The half of IQ1_M lies in the top nibbles of its scale words.
            (DType::IQ1_M, _) => {
                let bits = half(random);
                for word in 0..4 {
                    block[49 + 2 * word] = block[49 + 2 * word] & 15 | ((bits >> (4 * word)) as u8 & 15) << 4;
                }
            }
            _ => {}
        }
    }
    bytes
}

/// Far more than half of the energy of a block of numbers up to one.
const SPIKE: f32 = 37.0;

struct Case {
    dtype: DType,
    /// Of the input.
    kind: InputKind,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    order: Order,
    values: Vec<f32>,
}

impl Case {
    fn new(dtype: DType, rows: usize, cols: usize, input_rows: usize, bits: Bits, seed: u64) -> Self {
        let mut random = Random(seed | 1);
        let bytes = weights(dtype, rows, cols, bits, &mut random);
        let mut values: Vec<f32> = (0..input_rows * cols)
            .map(|at| match bits {
                Bits::AllOnes => {
                    if at % 3 == 0 {
                        -1.0
                    } else {
                        1.0
                    }
                }
                _ => random.value(),
            })
            .collect();
        if bits == Bits::Random {
            // One element that stands out in every third block.
            for (block, values) in values.chunks_mut(32).enumerate().step_by(3) {
                values[block * 7 % values.len()] = if block % 2 == 0 { SPIKE } else { -SPIKE };
            }
        }
        Self { dtype, kind: input_kind(dtype), rows, cols, bytes, order: Order::Rows, values }
    }

    /// The same with finely rounded inputs, which weights of plain numbers have no use for.
    fn fine(self) -> Option<Self> {
        self.dtype.is_quantized().then_some(Self { kind: InputKind::Q16x32, ..self })
    }

    /// The same with the rows of weights side by side.
    fn woven(&self) -> Self {
        let mut bytes = vec![0; self.bytes.len()];
        to_sixteens(self.dtype, self.cols, &self.bytes, &mut bytes);
        Self { bytes, order: Order::Sixteens, values: self.values.clone(), ..*self }
    }

    fn input(&self, isa: Isa) -> Input {
        let n_rows = self.values.len() / self.cols;
        let input = Input::try_new(isa, self.kind, n_rows, self.cols).unwrap();
        input.begin(n_rows);
        for (row, values) in self.values.chunks_exact(self.cols).enumerate() {
            // SAFETY: one thread, an available set.
            unsafe { input.fill_row(row, values) };
        }
        // SAFETY: as above.
        unsafe { input.settle(0..input.rows()) };
        input
    }

    /// All products, the weight rows from `first` on cut into jobs of `per_job`.
    fn multiply(&self, isa: Isa, first: usize, per_job: usize) -> Vec<f32> {
        let input = self.input(isa);
        let weight =
            WeightView { dtype: self.dtype, rows: self.rows, cols: self.cols, bytes: &self.bytes, order: self.order };
        let mut scratch = Scratch::try_new(isa, self.cols).unwrap();
        let mut out = vec![f32::NAN; input.rows() * self.rows];
        for row in (0..first).chain((first..self.rows).step_by(per_job)) {
            let end = if row < first { row + 1 } else { (row + per_job).min(self.rows) };
            // SAFETY: one thread; the vector has a row of `rows` elements for each input row.
            unsafe {
                let out = OutRows::new(out.as_mut_ptr(), self.rows, input.rows(), self.rows);
                multiply(isa, &weight, row..end, &input, 0..input.rows(), &mut scratch, out);
            }
        }
        out
    }

    /// Per result the sum of magnitudes of its terms: what rounding errors are measured against.
    fn magnitudes(&self) -> Vec<f32> {
        let mut decoded = vec![0.0; self.rows * self.cols];
        quant::decode(self.dtype, &self.bytes, &mut decoded).unwrap();
        let mut out = Vec::new();
        for values in self.values.chunks_exact(self.cols) {
            for row in decoded.chunks_exact(self.cols) {
                out.push(row.iter().zip(values).map(|(w, x)| (w * x).abs()).sum());
            }
        }
        out
    }

    /// Compares the products of every instruction set with those of decoded weights and inputs as they are.
    fn check_fine(&self, bits: Bits) {
        let (exact, magnitudes) = (self.exact(), self.magnitudes());
        let mut decoded = vec![0.0; self.rows * self.cols];
        quant::decode(self.dtype, &self.bytes, &mut decoded).unwrap();
        // Outliers are kept; the rest, up to 1, is off by half of a 127th of half of a 127th.
        let rounding = |row: &[f32]| row.iter().map(|w| f64::from(w.abs())).sum::<f64>() / 127_f64.powi(2) / 4.0;
        let roundings: Vec<f64> = decoded.chunks_exact(self.cols).map(rounding).collect();
        for isa in Isa::available() {
            let found = self.multiply(isa, self.rows.min(3) - 1, 19);
            for (at, found) in found.iter().enumerate() {
                let truth = exact[at];
                let allowed = f64::from(magnitudes[at]) * 4e-5 + roundings[at % self.rows] + 1e-30;
                assert!(
                    (f64::from(*found) - truth).abs() <= allowed,
                    "{} {isa} {bits:?} {} x {}: result {at} is {found:e}, expected {truth:e} within {allowed:e}",
                    self.dtype,
                    self.rows,
                    self.cols,
                );
            }
        }
    }

    /// The products in f64, of decoded weights and inputs as they are.
    fn exact(&self) -> Vec<f64> {
        let mut decoded = vec![0.0; self.rows * self.cols];
        quant::decode(self.dtype, &self.bytes, &mut decoded).unwrap();
        let dot =
            |row: &[f32], values: &[f32]| row.iter().zip(values).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        let per_input = |values| decoded.chunks_exact(self.cols).map(move |row| dot(row, values));
        self.values.chunks_exact(self.cols).flat_map(per_input).collect()
    }

    /// Compares the products of every instruction set with the plain ones.
    fn check_all(&self, bits: Bits) {
        let (plain, magnitudes) = (self.multiply(Isa::Scalar, 0, self.rows), self.magnitudes());
        for isa in Isa::available().into_iter().skip(1) {
            self.check(isa, bits, &plain, &magnitudes);
        }
    }

    fn check(&self, isa: Isa, bits: Bits, plain: &[f32], magnitudes: &[f32]) {
        let (first, per_job) = (self.rows.min(3) - 1, 19);
        let found = self.multiply(isa, first, per_job);
        // Tiles hold both sides rounded to eight bits, which is less than rounding the inputs to int8: they are near the
        // exact product and not near the plain one. Otherwise minima and code offsets are added after the product:
        // terms that cancel leave their rounding behind.
        let (truth, share) = if self.input(isa).is_tiles() {
            (self.exact(), 1.0 / 256.0 + 1e-4)
        } else {
            (plain.iter().copied().map(f64::from).collect(), 4e-5)
        };
        for (at, (found, truth)) in found.iter().zip(&truth).enumerate() {
            let (input_row, row) = (at / self.rows, at % self.rows);
            let allowed = f64::from(magnitudes[at] * share + 1e-30);
            assert!(
                (f64::from(*found) - truth).abs() <= allowed,
                "{} {isa} {bits:?} {} x {}: [{input_row}][{row}] is {found:e}, expected {truth:e} within {allowed:e}",
                self.dtype,
                self.rows,
                self.cols,
            );
        }
    }
}

const COLS: [usize; 8] = [32, 96, 224, 256, 640, 896, 512, 1792];
const INPUT_ROWS: [usize; 9] = [1, 2, 3, 5, 8, 16, 17, 33, 64];

#[test]
fn scalar_products_are_those_of_decoded_weights_and_rounded_inputs() {
    for dtype in DType::all() {
        let cols = if dtype.block_len() == 256 { 512 } else { 320 };
        let case = Case::new(dtype, 5, cols, 3, Bits::Random, 77);
        let found = case.multiply(Isa::Scalar, 0, 5);
        let mut decoded = vec![0.0; 5 * cols];
        quant::decode(dtype, &case.bytes, &mut decoded).unwrap();
        for (input_row, values) in case.values.chunks_exact(cols).enumerate() {
            for (row, weights) in decoded.chunks_exact(cols).enumerate() {
                let exact: f64 = weights.iter().zip(values).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let norm: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
                // Outliers are kept; rounding the rest to a step of 1/127 of its peak is uniform noise of variance step^2 / 12; six sigma.
                let noise = if dtype.is_quantized() {
                    6.0 * norm / 127.0 / 12_f64.sqrt()
                } else {
                    1e-6 * f64::from(SPIKE) * norm
                };
                let found = f64::from(found[input_row * 5 + row]);
                assert!((found - exact).abs() <= noise, "{dtype}: {found} is not {exact} within {noise}");
            }
        }
    }
}

#[test]
fn every_kernel_agrees_with_the_plain_one_at_every_tail() {
    for dtype in DType::all() {
        for (index, cols) in COLS.into_iter().enumerate() {
            if cols % dtype.block_len() != 0 {
                continue;
            }
            for (number, input_rows) in INPUT_ROWS.into_iter().enumerate() {
                if (index + number) % 3 != 0 && cols > 256 {
                    continue;
                }
                let rows = [1, 7, 16, 21, 33][(index + number) % 5];
                let seed = (cols * 131 + input_rows) as u64;
                Case::new(dtype, rows, cols, input_rows, Bits::Random, seed).check_all(Bits::Random);
            }
        }
    }
}

/// What guesses ahead are checked with several rows at once, and must be what one row after the other gives.
#[test]
#[cfg(target_arch = "x86_64")]
fn results_are_the_same_to_the_bit_for_one_row_and_for_sixteen() {
    for isa in Isa::available().into_iter().filter(|isa| matches!(isa, Isa::Avx512 | Isa::Amx)) {
        for dtype in DType::all().filter(|dtype| dtype.is_quantized()) {
            for kind in [InputKind::Q8x32, InputKind::Q16x32] {
                let n_rows = max_flat_rows(isa, dtype);
                let case = Case { kind, ..Case::new(dtype, 53, 768, n_rows, Bits::Random, 11) };
                let together = case.multiply(isa, 0, 53);
                for (values, together) in case.values.chunks_exact(case.cols).zip(together.chunks_exact(case.rows)) {
                    let alone = Case { bytes: case.bytes.clone(), values: values.to_vec(), ..case };
                    assert_eq!(alone.multiply(isa, 0, 53), together, "{dtype} {isa} {kind:?}");
                }
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn words_begin_where_the_kernels_look_for_them() {
    use crate::order::odd_bytes;
    for dtype in DType::all() {
        let odd = with_format!(
            dtype,
            F => <F as format::Format>::LAYOUT
                .filter(|_| <F as format::Format>::LEN == <F as format::Format>::SUB)
                .map(|layout| layout.low.at % 4),
            None
        );
        assert_eq!(odd_bytes(dtype), odd, "{dtype}");
    }
}

#[test]
fn results_are_the_same_to_the_bit_where_rows_lie_side_by_side() {
    for isa in Isa::available() {
        for dtype in DType::all().filter(|&dtype| order_for(isa, dtype) == Order::Sixteens) {
            for bits in [Bits::Random, Bits::AllOnes, Bits::AllZero, Bits::ZeroScales, Bits::SubnormalScales] {
                for (number, input_rows) in INPUT_ROWS.into_iter().enumerate() {
                    let cols = dtype.block_len() * [1, 7, 28, 64][number % 4];
                    let rows = [16, 53, 7, 96][(number / 2) % 4];
                    for kind in [InputKind::Q8x32, InputKind::Q16x32] {
                        let plain = Case::new(dtype, rows, cols, input_rows, bits, 5 + number as u64);
                        let plain = Case { kind, ..plain };
                        let woven = plain.woven();
                        for per_job in [32, 96] {
                            let of = |case: &Case| case.multiply(isa, 0, per_job);
                            let same = of(&woven).iter().zip(&of(&plain)).all(|(a, b)| a.to_bits() == b.to_bits());
                            assert!(same, "{dtype} {isa} {kind:?} {bits:?} {rows} x {cols}, {input_rows} input rows");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn extreme_codes_and_scales_neither_saturate_nor_trap() {
    for dtype in DType::all() {
        for bits in [Bits::AllOnes, Bits::AllZero, Bits::ZeroScales, Bits::SubnormalScales] {
            for input_rows in [1, 4, 20] {
                let cols = dtype.block_len().max(32) * 3;
                Case::new(dtype, 18, cols, input_rows, bits, 5).check_all(bits);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_kernel_agrees_with_the_plain_one(
        type_index in 0..26_usize,
        blocks in 1..12_usize,
        rows in 1..40_usize,
        input_rows in 1..40_usize,
        seed in any::<u64>(),
    ) {
        let dtype = DType::all().nth(type_index).unwrap();
        let cols = if dtype.is_quantized() { dtype.block_len() * blocks.min(4 + 256 / dtype.block_len()) } else { blocks * 29 };
        Case::new(dtype, rows, cols, input_rows, Bits::Random, seed).check_all(Bits::Random);
    }

    #[test]
    fn finely_rounded_inputs_give_the_products_of_decoded_weights(
        type_index in 0..26_usize,
        blocks in 1..12_usize,
        rows in 1..40_usize,
        input_rows in 1..40_usize,
        seed in any::<u64>(),
    ) {
        let dtype = DType::all().nth(type_index).unwrap();
        let cols = if dtype.is_quantized() { dtype.block_len() * blocks.min(4 + 256 / dtype.block_len()) } else { blocks * 29 };
        if let Some(case) = Case::new(dtype, rows, cols, input_rows, Bits::Random, seed).fine() {
            case.check_fine(Bits::Random);
        }
    }
}

#[test]
fn finely_rounded_inputs_give_the_products_of_decoded_weights_in_all_types() {
    for dtype in DType::all() {
        for bits in [Bits::Random, Bits::AllOnes, Bits::AllZero, Bits::ZeroScales, Bits::SubnormalScales] {
            // More than one call takes, for random bits only: it is slow with plain code.
            for input_rows in [1, 3, 20, 140].into_iter().take(if bits == Bits::Random { 4 } else { 3 }) {
                let cols = dtype.block_len().max(32) * if input_rows > 128 { 2 } else { 9 };
                if let Some(case) = Case::new(dtype, 35, cols, input_rows, bits, 11).fine() {
                    case.check_fine(bits);
                }
            }
        }
    }
}

#[test]
fn an_input_that_is_not_finite_gives_results_that_are_not_numbers() {
    for isa in Isa::available() {
        for dtype in DType::all() {
            let cols = dtype.block_len().max(32);
            for (input_rows, is_fine) in [(1, false), (20, false), (1, true), (20, true)] {
                let mut case = Case::new(dtype, 17, cols, input_rows, Bits::Random, 9);
                case.values[cols * (input_rows - 1) + 5] = f32::NAN;
                let Some(case) = (if is_fine { case.fine() } else { Some(case) }) else { continue };
                let out = case.multiply(isa, 0, 17);
                let (good, bad) = out.split_at(17 * (input_rows - 1));
                assert!(good.iter().all(|value| value.is_finite()), "{dtype} {isa}");
                assert!(bad.iter().all(|value| value.is_nan()), "{dtype} {isa}");
            }
        }
    }
}

/// Where nothing is rounded, tiles give the very sums: scales are powers of two, codes have no more than eight bits.
#[test]
fn tiles_of_numbers_that_bf16_holds_give_exact_products() {
    if !Isa::available().contains(&Isa::Amx) {
        return;
    }
    let mut random = Random(3);
    for (number, dtype) in
        [DType::Q4_0, DType::Q5_0, DType::Q8_0, DType::IQ4_NL, DType::TQ2_0, DType::TQ1_0, DType::Q4_1]
            .into_iter()
            .enumerate()
    {
        for input_rows in [17, 31, 32, 48, 70] {
            let (rows, cols) = ([1, 15, 64, 70, 129, 300, 33][number], [256, 512, 768][input_rows % 3]);
            let mut case = Case::new(dtype, rows, cols, input_rows, Bits::Random, 11);
            for block in case.bytes.chunks_exact_mut(dtype.block_bytes()) {
                for at in halves(dtype) {
                    let power = 0x3000 + (random.next() % 3) as u16 * 0x400;
                    block[*at..at + 2].copy_from_slice(&power.to_le_bytes());
                }
            }
            for value in &mut case.values {
                *value = (random.next() % 17) as f32 - 8.0;
            }
            let found = case.multiply(Isa::Amx, 0, 256);
            for (at, (found, exact)) in found.into_iter().zip(case.exact()).enumerate() {
                assert_eq!(f64::from(found), exact, "{dtype} [{}][{}]", at / rows, at % rows);
            }
        }
    }
}

/// More rows of either side than wait for the next columns together, and inputs that start inside of a tile.
#[test]
fn tiles_cover_blocks_of_both_sides_and_any_range() {
    if !Isa::available().contains(&Isa::Amx) {
        return;
    }
    let (rows, cols, input_rows) = (290, 512, 560);
    let case = Case::new(DType::Q4_K, rows, cols, input_rows, Bits::Random, 5);
    case.check(Isa::Amx, Bits::Random, &[], &case.magnitudes());
    let whole = case.multiply(Isa::Amx, 0, rows);
    let (input, mut scratch) = (case.input(Isa::Amx), Scratch::try_new(Isa::Amx, cols).unwrap());
    let weight = WeightView { dtype: case.dtype, rows, cols, bytes: &case.bytes, order: Order::Rows };
    for (range, weight_rows) in [(5..8, 3..77), (15..17, 0..290), (37..555, 64..65)] {
        let mut out = vec![f32::NAN; input_rows * rows];
        // SAFETY: one thread; room for all results.
        unsafe {
            let to = OutRows::new(out.as_mut_ptr(), rows, input_rows, rows);
            multiply(Isa::Amx, &weight, weight_rows.clone(), &input, range.clone(), &mut scratch, to);
        }
        for (at, (found, whole)) in out.into_iter().zip(&whole).enumerate() {
            let is_there = range.contains(&(at / rows)) && weight_rows.contains(&(at % rows));
            assert!(if is_there { found == *whole } else { found.is_nan() }, "[{}][{}]", at / rows, at % rows);
        }
    }
}
