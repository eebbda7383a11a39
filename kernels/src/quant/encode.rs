//! Encoding any number of whole blocks: every type that has an encoder.
//!
//! Blocks are encoded one by one, by the same arithmetic everywhere, so the bytes depend on nothing but the values.
//!
//! A search finds a good scale, not the best there is; under uneven importance it can end in a worse place than without
//! (10 % worse was seen). So a block with importance is coded both ways, and the one with less weighted error stays.

use super::search::Block;
use super::{QuantError, decode, float, iq, k, legacy, mx, ternary};
use crate::tensor::DType;

/// True for the types that [`encode`] can write.
pub fn can_encode(dtype: DType) -> bool {
    encode(dtype, &[], None, &mut []).is_ok()
}

/// Encodes whole rows into blocks with little squared error.
///
/// `importance`, where given, holds how much each weight of a row matters (from 0 up; a row's worth, used for every
/// row). All values must be finite. What is too large for a type's scale becomes the largest it can hold.
pub fn encode(dtype: DType, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), QuantError> {
    let weights = values.len();
    let expected = dtype.row_bytes(weights).ok_or(QuantError::PartialBlock { dtype, weights })?;
    if expected != out.len() {
        return Err(QuantError::Length { dtype, weights, expected, found: out.len() });
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(QuantError::NotFinite { dtype, index, value: values[index] });
    }
    if let Some(importance) = importance {
        check_importance(dtype, weights, importance)?;
    }
    let job = Job { dtype, values, importance };
    match dtype {
        DType::F32 => job.run(out, float::encode_f32),
        DType::F16 => job.run(out, float::encode_f16),
        DType::BF16 => job.run(out, float::encode_bf16),
        DType::Q4_0 => job.run(out, legacy::encode_q4_0),
        DType::Q4_1 => job.run(out, legacy::encode_q4_1),
        DType::Q5_0 => job.run(out, legacy::encode_q5_0),
        DType::Q5_1 => job.run(out, legacy::encode_q5_1),
        DType::Q8_0 => job.run(out, legacy::encode_q8_0),
        DType::Q2_K => job.run(out, k::encode_q2_k),
        DType::Q3_K => job.run(out, k::encode_q3_k),
        DType::Q4_K => job.run(out, k::encode_q4_k),
        DType::Q5_K => job.run(out, k::encode_q5_k),
        DType::Q6_K => job.run(out, k::encode_q6_k),
        DType::IQ4_NL => job.run(out, iq::encode_iq4_nl),
        DType::IQ4_XS => job.run(out, iq::encode_iq4_xs),
        DType::TQ1_0 => job.run(out, ternary::encode_tq1_0),
        DType::TQ2_0 => job.run(out, ternary::encode_tq2_0),
        DType::MXFP4 => job.run(out, mx::encode_mxfp4),
        DType::IQ1_S
        | DType::IQ1_M
        | DType::IQ2_XXS
        | DType::IQ2_XS
        | DType::IQ2_S
        | DType::IQ3_XXS
        | DType::IQ3_S
        | DType::NVFP4 => return Err(QuantError::NoEncoder { dtype }),
    }
    Ok(())
}

fn check_importance(dtype: DType, weights: usize, importance: &[f32]) -> Result<(), QuantError> {
    let found = importance.len();
    if found == 0 || !weights.is_multiple_of(found) || dtype.row_bytes(found).is_none() {
        return Err(QuantError::ImportanceLength { dtype, weights, found });
    }
    match importance.iter().position(|value| !value.is_finite() || *value < 0.0) {
        Some(index) => Err(QuantError::BadImportance { dtype, index, value: importance[index] }),
        None => Ok(()),
    }
}

/// Checked input.
struct Job<'a> {
    dtype: DType,
    values: &'a [f32],
    importance: Option<&'a [f32]>,
}

impl Job<'_> {
    fn run<const BYTES: usize, const LEN: usize>(
        &self,
        out: &mut [u8],
        encode: impl Fn(&Block<'_, LEN>, &mut [u8; BYTES]),
    ) {
        let blocks = self.values.as_chunks::<LEN>().0.iter().zip(out.as_chunks_mut::<BYTES>().0);
        let mut row = self.importance.map(|row| row.as_chunks::<LEN>().0.iter().cycle());
        for (values, out) in blocks {
            let importance = row.as_mut().and_then(Iterator::next);
            encode(&Block::new(values, importance), out);
            let Some(importance) = importance else { continue };
            let mut plain = [0; BYTES];
            encode(&Block::new(values, None), &mut plain);
            let error = |block: &[u8; BYTES]| weighted_error(self.dtype, block, values, importance);
            if error(&plain) < error(out) {
                *out = plain;
            }
        }
    }
}

/// Squared error that `block` leaves of `values`, each weight's times its importance.
fn weighted_error<const LEN: usize>(dtype: DType, block: &[u8], values: &[f32; LEN], importance: &[f32; LEN]) -> f64 {
    let mut back = [0.0; LEN];
    decode(dtype, block, &mut back).expect("a block of a type with an encoder can be decoded");
    let off = values.iter().zip(&back).map(|(value, back)| f64::from(*value) - f64::from(*back));
    off.zip(importance).map(|(off, importance)| off * off * f64::from(*importance)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::*;
    use farpost_firmware_tests::{golden, golden_f32};
    use proptest::prelude::*;

    fn encodable() -> impl Iterator<Item = DType> {
        DType::all().filter(|dtype| can_encode(*dtype))
    }

    fn encoded(dtype: DType, values: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
        let mut blocks = vec![0xAA; dtype.row_bytes(values.len()).unwrap()];
        encode(dtype, values, importance, &mut blocks).unwrap();
        blocks
    }

    fn through(dtype: DType, values: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
        let mut back = vec![f32::NAN; values.len()];
        decode(dtype, &encoded(dtype, values, importance), &mut back).unwrap();
        back
    }

    /// Sum of squares of `a - b`, each times importance.
    fn squared_error(a: &[f32], b: &[f32], importance: Option<&[f32]>) -> f64 {
        let squares = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        match importance {
            Some(importance) => squares.zip(importance).map(|(square, weight)| square * f64::from(*weight)).sum(),
            None => squares.sum(),
        }
    }

    #[test]
    fn every_row_of_the_fixture_has_no_more_error_than_the_reference_quantizer_leaves() {
        const COLS: usize = 1024;
        let weights = golden_f32("quant/weights.f32");
        let reference = std::fs::read_to_string(golden("quant/reference_error.json")).unwrap();
        let reference: serde_json::Value = serde_json::from_str(&reference).unwrap();
        for (name, reference) in reference.as_object().unwrap() {
            let dtype = DType::from_name(name).unwrap();
            let blocks = encoded(dtype, &weights, None);
            assert_eq!(blocks.len() as u64, reference["bytes"].as_u64().unwrap(), "{name}");
            let back = through(dtype, &weights, None);
            let rows = weights.chunks_exact(COLS).zip(back.chunks_exact(COLS));
            let errors: Vec<f64> = rows
                .map(|(row, back)| {
                    let size = squared_error(row, &[0.0; COLS], None);
                    let error = squared_error(row, back, None);
                    if size == 0.0 { error } else { (error / size).sqrt() }
                })
                .collect();
            for (row, error) in errors.iter().enumerate() {
                let allowed = reference["row_relative_rms_error"][row].as_f64().unwrap();
                assert!(*error <= allowed * 1.001, "{name}: row {row} has error {error}, the reference {allowed}");
            }
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            let allowed = reference["mean_relative_rms_error"].as_f64().unwrap();
            assert!(mean <= allowed, "{name}: mean error {mean}, the reference {allowed}");
        }
        assert_eq!(reference.as_object().unwrap().len(), encodable().count() - 3, "all but the plain floats");
    }

    #[test]
    fn the_types_with_an_encoder_are_those_promised() {
        let names: Vec<&str> = encodable().map(DType::name).collect();
        let expected = "f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs tq1_0 tq2_0 mxfp4";
        assert_eq!(names.join(" "), expected);
        let error = encode(DType::IQ2_XS, &[0.0; 256], None, &mut [0; 74]).unwrap_err();
        assert_eq!(error.to_string(), "iq2_xs can be decoded only, there is no encoder for it");
    }

    #[test]
    fn zeros_stay_zeros() {
        for dtype in encodable() {
            for zero in [0.0, -0.0] {
                let back = through(dtype, &[zero; 512], None);
                assert!(back.iter().all(|weight| *weight == 0.0), "{dtype}");
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_are_refused_by_index() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [0.5; 512];
            values[300] = bad;
            for dtype in encodable() {
                let error = encode(dtype, &values, None, &mut vec![0; dtype.row_bytes(512).unwrap()]).unwrap_err();
                let expected = format!("{dtype}: weight 300 is {bad}, only finite values can be encoded");
                assert_eq!(error.to_string(), expected);
            }
        }
    }

    #[test]
    fn importance_must_be_a_row_of_finite_values_from_zero_up() {
        let refusal = |importance: &[f32]| {
            encode(DType::Q4_0, &[1.0; 64], Some(importance), &mut [0; 36]).unwrap_err().to_string()
        };
        assert_eq!(refusal(&[1.0; 48]), "q4_0: 64 weights are not whole rows of 48 importance values");
        assert_eq!(refusal(&[]), "q4_0: 64 weights are not whole rows of 0 importance values");
        let mut importance = [1.0; 32];
        importance[7] = -1.0;
        assert_eq!(refusal(&importance), "q4_0: importance 7 is -1, expected a finite value from 0 up");
        importance[7] = f32::NAN;
        assert_eq!(refusal(&importance), "q4_0: importance 7 is NaN, expected a finite value from 0 up");
    }

    #[test]
    fn the_largest_and_smallest_rows_keep_finite_scales_and_their_signs() {
        let wave: Vec<f32> = (0..256).map(|weight| (weight as f32 * 0.7).sin()).collect();
        for dtype in encodable() {
            for size in [f32::MAX, 1e30, 1e9, 1e-3, 1e-7, 1e-20, f32::MIN_POSITIVE, 1e-45] {
                let values: Vec<f32> = wave.iter().map(|weight| weight * size).collect();
                let back = through(dtype, &values, None);
                for (value, back) in values.iter().zip(&back) {
                    assert!(back.is_finite(), "{dtype} {size:e}: {value:e} became {back}");
                    assert!(
                        *back == 0.0 || value * back.signum() >= -0.4 * size,
                        "{dtype} {size:e}: {value:e} became {back:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn importance_lowers_the_weighted_error_of_every_type_with_a_search() {
        let weights = &golden_f32("quant/weights.f32")[..64 * 1024];
        let importance: Vec<f32> = (0..1024_u32).map(|at| ((at * 7919 % 1021) as f32 / 1021.0).powi(4)).collect();
        let all: Vec<f32> = importance.iter().cycle().take(weights.len()).copied().collect();
        let error = |dtype, given| squared_error(weights, &through(dtype, weights, given), Some(&all));
        for name in "q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs".split(' ') {
            let dtype = DType::from_name(name).unwrap();
            let (with, without) = (error(dtype, Some(&importance)), error(dtype, None));
            println!("{name}: {:.3} of the error without importance", with / without);
            assert!(with < 0.95 * without, "{name}: {with} with, {without} without");
        }
    }

    #[test]
    fn ternary_weights_survive_ternary_types_exactly() {
        let values: Vec<f32> = (0..512).map(|weight| f32::from((weight * 7 % 3) as i8 - 1) * 0.0625).collect();
        for dtype in [DType::TQ1_0, DType::TQ2_0] {
            assert_eq!(through(dtype, &values, None), values);
        }
    }

    #[test]
    fn weights_that_were_coded_before_come_back_almost_as_they_are() {
        let weights = golden_f32("quant/weights.f32");
        for dtype in encodable() {
            let once = through(dtype, &weights, None);
            let twice = through(dtype, &once, None);
            let (first, second) = (squared_error(&weights, &once, None), squared_error(&once, &twice, None));
            assert!(second <= 0.02 * first, "{dtype}: {second} after {first}");
            let n_alike = once.iter().zip(&twice).filter(|(once, twice)| once == twice).count();
            if matches!(dtype, DType::Q4_0 | DType::IQ4_NL | DType::MXFP4 | DType::TQ1_0 | DType::TQ2_0) {
                assert_eq!(n_alike, weights.len(), "{dtype}");
            }
        }
    }

    #[test]
    fn kernels_may_negate_the_codes_of_q8_0_and_the_scales_of_q6_k() {
        let values: Vec<f32> = (0..4096).map(|weight| ((weight * 7919 % 4093) as f32 / 2046.5 - 1.0).powi(3)).collect();
        for block in encoded(DType::Q8_0, &values, None).chunks_exact(34) {
            assert!(block[2..].iter().all(|code| *code != 0x80));
        }
        for block in encoded(DType::Q6_K, &values, None).chunks_exact(210) {
            assert!(block[192..208].iter().all(|scale| *scale != 0x80));
        }
    }

    fn finite() -> impl Strategy<Value = f32> {
        any::<u32>().prop_map(f32::from_bits).prop_map(|value| if value.is_finite() { value } else { 1.0 })
    }

    fn weights() -> impl Strategy<Value = Vec<f32>> {
        let spread = prop_oneof![Just(0.0_f32), Just(1.0), Just(5.0)];
        (spread, -3.0_f32..3.0).prop_flat_map(|(spread, shift)| {
            let one = (-1.0_f32..1.0).prop_map(move |x| (x * x * x * spread + x + shift) * 0.1);
            prop::collection::vec(one, 256)
        })
    }

    proptest! {
        #[test]
        fn any_finite_values_encode_to_finite_weights(values in prop::collection::vec(finite(), 256)) {
            for dtype in encodable() {
                let back = through(dtype, &values, None);
                prop_assert!(back.iter().all(|weight| weight.is_finite()), "{}", dtype);
            }
        }

        #[test]
        fn no_block_is_coded_worse_than_by_zeros_and_more_bits_bound_the_error(values in weights()) {
            let size = squared_error(&values, &[0.0; 256], None);
            for dtype in encodable() {
                // Shares of the size that the root of the error may have, on any input of this kind.
                let share = match dtype.block_bytes() * 8 / dtype.block_len() {
                    16.. => 0.005,
                    8.. => 0.02,
                    6.. => 0.05,
                    5.. => 0.1,
                    4.. => 0.25,
                    3.. => 0.3,
                    _ => 1.0,
                };
                let error = squared_error(&values, &through(dtype, &values, None), None);
                prop_assert!(error.sqrt() <= share * size.sqrt() + 1e-9, "{}: {} of {}", dtype, error.sqrt(), size.sqrt());
            }
        }

        #[test]
        fn importance_never_makes_the_weighted_error_worse(
            values in weights(),
            importance in prop::collection::vec(0.0_f32..4.0, 256),
        ) {
            let importance: Vec<f32> = importance.iter().map(|weight| weight.powi(4)).collect();
            for dtype in encodable() {
                let with = squared_error(&values, &through(dtype, &values, Some(&importance)), Some(&importance));
                let without = squared_error(&values, &through(dtype, &values, None), Some(&importance));
                // No block is worse; the margin is for the rounding of these sums.
                prop_assert!(with <= without * (1.0 + 1e-9), "{}: {} with, {} without", dtype, with, without);
            }
        }

        #[test]
        fn equal_importance_is_no_importance(values in weights(), weight in 1e-30_f32..1e30) {
            for dtype in encodable() {
                let plain = encoded(dtype, &values, None);
                prop_assert_eq!(&encoded(dtype, &values, Some(&[weight; 256])), &plain);
                prop_assert_eq!(&encoded(dtype, &values, Some(&[0.0; 256])), &plain);
            }
        }

        #[test]
        fn blocks_do_not_depend_on_their_neighbours(first in weights(), second in weights()) {
            let both: Vec<f32> = first.iter().chain(&second).copied().collect();
            for dtype in encodable() {
                let apart = [encoded(dtype, &first, None), encoded(dtype, &second, None)].concat();
                prop_assert_eq!(encoded(dtype, &both, None), apart);
            }
        }
    }
}
