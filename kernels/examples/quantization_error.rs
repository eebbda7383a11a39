//! Prints what each type that can be written costs and loses: the table in `docs/quantization.md`.
//!
//! Weights are normally distributed, as most of a trained model's are, in rows of 1024; with a path as argument, the
//! little-endian f32 values of that file. Error is the root of squared error over squared weights.
//!
//! `cargo run --release -p farpost-kernels --example quantization_error [WEIGHTS.f32]`

use farpost_kernels::quant::{can_encode, decode, encode};
use farpost_kernels::tensor::DType;

const ROW: usize = 1024;

/// Normally distributed numbers from a fixed seed.
fn normal_weights(count: usize) -> Vec<f32> {
    let mut state = 0x5EED_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    (0..count).map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32).collect()
}

fn squares(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value) * f64::from(value)).sum()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let weights = match std::env::args().nth(1) {
        Some(path) => std::fs::read(path)?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        None => normal_weights(512 * ROW),
    };
    println!("| type | bits a weight | mean error of a row | worst row |");
    println!("|---|---|---|---|");
    for dtype in DType::all().filter(|&dtype| can_encode(dtype)) {
        let errors: Vec<f64> = weights
            .chunks_exact(ROW)
            .map(|row| {
                let mut blocks = vec![0; dtype.row_bytes(ROW).unwrap_or(0)];
                let mut back = vec![0.0; ROW];
                encode(dtype, row, None, &mut blocks)?;
                decode(dtype, &blocks, &mut back)?;
                let error = squares(row.iter().zip(&back).map(|(before, after)| before - after));
                let size = squares(row.iter().copied());
                Ok(if size > 0.0 { (error / size).sqrt() } else { 0.0 })
            })
            .collect::<Result<_, farpost_kernels::quant::QuantError>>()?;
        let bits = dtype.block_bytes() as f64 * 8.0 / dtype.block_len() as f64;
        let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
        let worst = errors.iter().copied().fold(0.0, f64::max);
        println!("| {dtype} | {bits:.4} | {mean:.5} | {worst:.5} |");
    }
    Ok(())
}
