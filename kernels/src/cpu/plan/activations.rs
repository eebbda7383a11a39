//! How finely products with quantized weights round their input.
//!
//! One int8 code a value is what the speed of large models comes from. Two cost up to twice as much, where computing and
//! not reading weights takes the time, and leave no error that could be told from that of floats. Small models are fast
//! anyway (see `docs/decisions/008`).

use crate::backend::Activations;
use crate::cpu::linear::{InputKind, input_kind};
use crate::graph::{Graph, Op};
use crate::tensor::{DType, Weight};

/// Weights a token meets, at most, in models whose activations are rounded finely unless otherwise asked.
const MOST_FINE_WEIGHTS: usize = 8 << 20;

/// True if `graph` is to round finely.
pub(crate) fn are_fine(graph: &Graph, activations: Activations) -> bool {
    match activations {
        Activations::Int8 => false,
        Activations::Int16 => true,
        Activations::Auto => weights_of_a_token(graph) <= MOST_FINE_WEIGHTS,
    }
}

/// Kind of the input that products with weights of `dtype` read.
pub(super) fn kind(dtype: DType, is_fine: bool) -> InputKind {
    if is_fine && dtype.is_quantized() { InputKind::Q16x32 } else { input_kind(dtype) }
}

/// Quantized weights that one token is multiplied with; of experts those it is sent to.
fn weights_of_a_token(graph: &Graph) -> usize {
    let count = |weight: &Weight| if weight.dtype().is_quantized() { weight.rows() * weight.cols() } else { 0 };
    let of_op = |op: &Op| match op {
        Op::Linear { weight, .. } | Op::Head { weight, .. } => count(weight),
        Op::Moe { moe, .. } => {
            let experts: usize = [&moe.gate, &moe.up, &moe.down].map(count).iter().sum();
            count(&moe.router) + experts / moe.n_experts() * moe.n_used
        }
        _ => 0,
    };
    graph.ops().iter().map(of_op).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Activation, GraphBuilder, Moe};
    use crate::tensor::Bytes;

    fn weight(dtype: DType, rows: usize, cols: usize) -> Weight {
        let bytes = vec![0; rows * dtype.row_bytes(cols).unwrap()];
        Weight::new("w", dtype, rows, cols, Bytes::from(bytes)).unwrap()
    }

    /// Experts and a head, 1,024 wide; a token meets two of `n_experts`.
    fn graph(dtype: DType, n_experts: usize, ff: usize, n_vocab: usize) -> Graph {
        const WIDTH: usize = 1024;
        let mut graph = GraphBuilder::new();
        let x = graph.embed(weight(dtype, n_vocab, WIDTH), 1.0);
        let moe = Moe {
            router: weight(DType::F32, n_experts, WIDTH),
            gate: weight(dtype, n_experts * ff, WIDTH),
            up: weight(dtype, n_experts * ff, WIDTH),
            down: weight(dtype, n_experts * WIDTH, ff),
            n_used: 2,
            renormalise: true,
            activation: Activation::Silu,
        };
        let x = graph.moe(x, moe).unwrap();
        graph.head(x, weight(dtype, n_vocab, WIDTH), None, 1.0, None, 64).unwrap()
    }

    #[test]
    fn counted_are_quantized_weights_that_a_token_meets() {
        let per_expert = 3 * 256 * 1024;
        assert_eq!(weights_of_a_token(&graph(DType::Q8_0, 8, 256, 512)), 2 * per_expert + 512 * 1024);
        assert_eq!(weights_of_a_token(&graph(DType::F16, 8, 256, 512)), 0);
    }

    #[test]
    fn only_small_models_are_rounded_finely_unless_asked() {
        let (small, large) = (graph(DType::Q8_0, 2, 256, 512), graph(DType::Q8_0, 2, 256, 8192));
        let are = |activations| [&small, &large].map(|graph| are_fine(graph, activations));
        assert_eq!(are(Activations::Auto), [true, false]);
        assert_eq!((are(Activations::Int8), are(Activations::Int16)), ([false; 2], [true; 2]));
    }
}
