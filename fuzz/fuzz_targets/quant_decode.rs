//! Any bits as blocks of the type that the first byte chooses: they decode; and what they decode to, if finite, encodes
//! again to as many bytes.

#![no_main]

use farpost_kernels::quant::{can_encode, decode, encode};
use farpost_kernels::tensor::DType;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, blocks)) = bytes.split_first() else { return };
    let types: Vec<DType> = DType::all().collect();
    let dtype = types[usize::from(choice) % types.len()];
    let n_blocks = blocks.len() / dtype.block_bytes();
    let used = &blocks[..n_blocks * dtype.block_bytes()];
    let mut weights = vec![0.0_f32; n_blocks * dtype.block_len()];
    decode(dtype, used, &mut weights).expect("whole blocks of any bits decode");
    // One weight too many for the blocks is refused.
    assert!(n_blocks == 0 || decode(dtype, used, &mut weights[1..]).is_err());
    if can_encode(dtype) {
        let mut again = vec![0; used.len()];
        let is_finite = weights.iter().all(|weight| weight.is_finite());
        assert_eq!(encode(dtype, &weights, None, &mut again).is_ok(), is_finite);
    }
});
