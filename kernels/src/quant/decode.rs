//! Decoding any number of whole blocks of any type.

use super::{QuantError, float, iq, k, legacy, mx, ternary};
use crate::tensor::DType;

/// Decodes whole blocks to f32, exactly; every bit pattern is legal (scales may be infinite or NaN, and so may weights).
///
/// `out.len()` must be a multiple of the type's block and `blocks` have the bytes of as many blocks.
pub fn decode(dtype: DType, blocks: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let weights = out.len();
    let expected = dtype.row_bytes(weights).ok_or(QuantError::PartialBlock { dtype, weights })?;
    if expected != blocks.len() {
        return Err(QuantError::Length { dtype, weights, expected, found: blocks.len() });
    }
    match dtype {
        DType::F32 => each(blocks, out, float::f32),
        DType::F16 => each(blocks, out, float::f16),
        DType::BF16 => each(blocks, out, float::bf16),
        DType::Q4_0 => each(blocks, out, legacy::q4_0),
        DType::Q4_1 => each(blocks, out, legacy::q4_1),
        DType::Q5_0 => each(blocks, out, legacy::q5_0),
        DType::Q5_1 => each(blocks, out, legacy::q5_1),
        DType::Q8_0 => each(blocks, out, legacy::q8_0),
        DType::Q2_K => each(blocks, out, k::q2_k),
        DType::Q3_K => each(blocks, out, k::q3_k),
        DType::Q4_K => each(blocks, out, k::q4_k),
        DType::Q5_K => each(blocks, out, k::q5_k),
        DType::Q6_K => each(blocks, out, k::q6_k),
        DType::IQ1_S => each(blocks, out, iq::iq1_s),
        DType::IQ1_M => each(blocks, out, iq::iq1_m),
        DType::IQ2_XXS => each(blocks, out, iq::iq2_xxs),
        DType::IQ2_XS => each(blocks, out, iq::iq2_xs),
        DType::IQ2_S => each(blocks, out, iq::iq2_s),
        DType::IQ3_XXS => each(blocks, out, iq::iq3_xxs),
        DType::IQ3_S => each(blocks, out, iq::iq3_s),
        DType::IQ4_NL => each(blocks, out, iq::iq4_nl),
        DType::IQ4_XS => each(blocks, out, iq::iq4_xs),
        DType::TQ1_0 => each(blocks, out, ternary::tq1_0),
        DType::TQ2_0 => each(blocks, out, ternary::tq2_0),
        DType::MXFP4 => each(blocks, out, mx::mxfp4),
        DType::NVFP4 => each(blocks, out, mx::nvfp4),
    }
    Ok(())
}

/// Decodes block after block; the caller checked that both sides hold the same number of them.
#[inline(always)]
fn each<const BYTES: usize, const LEN: usize>(
    blocks: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0) {
        decode(block, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farpost_firmware_tests::{golden, golden_f32};
    use proptest::prelude::*;

    #[test]
    fn every_type_decodes_the_golden_blocks_bit_for_bit() {
        let manifest = std::fs::read_to_string(golden("blocks/manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        let mut seen = 0;
        for (name, entry) in manifest.as_object().unwrap() {
            let dtype = DType::from_name(name).unwrap();
            assert_eq!(u64::from(dtype.id()), entry["ggml_type"].as_u64().unwrap(), "{name}");
            let blocks = std::fs::read(golden(&format!("blocks/{name}.bin"))).unwrap();
            let expected = golden_f32(&format!("blocks/{name}.f32"));
            assert_eq!(blocks.len() as u64, entry["blocks"].as_u64().unwrap() * dtype.block_bytes() as u64);
            let mut out = vec![0.0; expected.len()];
            decode(dtype, &blocks, &mut out).unwrap();
            for (weight, (out, expected)) in out.iter().zip(&expected).enumerate() {
                let is_same = out.to_bits() == expected.to_bits() || (out.is_nan() && expected.is_nan());
                assert!(is_same, "{name}: weight {weight} is {out:e}, expected {expected:e}");
            }
            seen += 1;
        }
        // Golden blocks exist for every type but the two plain floats that need none.
        assert_eq!(seen, DType::all().count() - 2);
    }

    #[test]
    fn plain_floats_decode_as_ieee_says() {
        let mut out = [0.0; 3];
        decode(DType::F16, &[0x00, 0x3C, 0x01, 0x00, 0xFF, 0xFB], &mut out).unwrap();
        assert_eq!(out, [1.0, 2_f32.powi(-24), -65504.0]);
        let bytes: Vec<u8> = [1.5_f32, -0.0, 1e-40].iter().flat_map(|v| v.to_le_bytes()).collect();
        decode(DType::F32, &bytes, &mut out).unwrap();
        assert_eq!(out.map(f32::to_bits), [1.5_f32, -0.0, 1e-40].map(f32::to_bits));
    }

    #[test]
    fn wrong_lengths_are_refused_with_both_numbers() {
        let error = decode(DType::Q4_K, &[0; 144], &mut [0.0; 255]).unwrap_err();
        assert_eq!(error.to_string(), "q4_k: 255 weights are not whole blocks of 256");
        let error = decode(DType::Q8_0, &[0; 33], &mut [0.0; 32]).unwrap_err();
        assert_eq!(error.to_string(), "q8_0: 32 weights take 34 bytes, found 33");
        decode(DType::Q8_0, &[], &mut []).unwrap();
    }

    #[test]
    fn a_block_of_zero_bytes_has_no_nan_in_any_type() {
        for dtype in DType::all() {
            let mut out = vec![f32::NAN; 2 * dtype.block_len()];
            decode(dtype, &vec![0; 2 * dtype.block_bytes()], &mut out).unwrap();
            assert!(out.iter().all(|weight| weight.abs() < 1e-35), "{dtype}");
        }
    }

    proptest! {
        #[test]
        fn any_bits_decode_without_a_trap(bytes in prop::collection::vec(any::<u8>(), 256)) {
            for dtype in DType::all() {
                let n_blocks = bytes.len() / dtype.block_bytes();
                let mut out = vec![0.0; n_blocks * dtype.block_len()];
                decode(dtype, &bytes[..n_blocks * dtype.block_bytes()], &mut out).unwrap();
            }
        }
    }
}
