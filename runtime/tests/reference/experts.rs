//! Mixtures of experts, the long way: every expert works on every token, and most of it counts for nothing.

use candle_core::{Result, Tensor};
use candle_nn::ops::softmax_last_dim;

/// `x`: `[tokens, width]`; `stacks`: gate, up and down of all experts, `[experts, rows, columns]`.
pub fn mixture(x: &Tensor, router: &Tensor, stacks: [&Tensor; 3], n_used: usize) -> Result<Tensor> {
    let odds = softmax_last_dim(&x.matmul(&router.t()?)?)?.to_vec2::<f32>()?;
    let shares: Vec<Vec<f32>> = odds.iter().map(|odds| shares(odds, n_used)).collect();
    let n_experts = router.dim(0)?;
    let mut sum = x.zeros_like()?;
    for expert in 0..n_experts {
        let [gate, up, down] = stacks;
        let times = |x: &Tensor, stack: &Tensor| x.matmul(&stack.get(expert)?.t()?);
        let out = times(&(times(x, gate)?.silu()? * times(x, up)?)?, down)?;
        let share: Vec<f32> = shares.iter().map(|shares| shares[expert]).collect();
        sum = (sum + out.broadcast_mul(&Tensor::from_vec(share, (x.dim(0)?, 1), x.device())?)?)?;
    }
    Ok(sum)
}

/// The odds of the `n_used` likeliest experts, shared out so that they sum to 1; 0 for the others.
fn shares(odds: &[f32], n_used: usize) -> Vec<f32> {
    let mut order: Vec<usize> = (0..odds.len()).collect();
    order.sort_by(|a, b| odds[*b].total_cmp(&odds[*a]));
    let chosen = &order[..n_used];
    let total: f32 = chosen.iter().map(|expert| odds[*expert]).sum();
    (0..odds.len()).map(|expert| if chosen.contains(&expert) { odds[expert] / total } else { 0.0 }).collect()
}
