//! Ops as they are run: a sum right behind a product whose result nobody else reads becomes part of the product.

use crate::graph::{Graph, Op, Value};
use crate::tensor::Weight;

/// What is run at once.
pub(super) enum Work<'g> {
    /// An op by itself.
    Op(&'g Op),
    /// `x * weightᵀ + bias + other`.
    ProductAndSum { x: Value, weight: &'g Weight, bias: Option<&'g Weight>, other: Value, out: Value },
}

impl Work<'_> {
    /// What it reads, and what it writes.
    pub(super) fn uses(&self) -> (Vec<Value>, Option<Value>) {
        match self {
            Self::Op(op) => uses(op),
            Self::ProductAndSum { x, other, out, .. } => (vec![*x, *other], Some(*out)),
        }
    }
}

/// All ops of a graph in order.
pub(super) fn fuse(graph: &Graph) -> Vec<Work<'_>> {
    let mut n_reads = vec![0; graph.widths().len()];
    for value in graph.ops().iter().flat_map(|op| uses(op).0) {
        n_reads[value.0] += 1;
    }
    let mut works = Vec::with_capacity(graph.ops().len());
    let mut ops = graph.ops().iter().peekable();
    while let Some(op) = ops.next() {
        let Op::Linear { x, weight, bias, out: product } = op else {
            works.push(Work::Op(op));
            continue;
        };
        let is_sum = |next: &&Op| matches!(next, Op::Add { a, b, .. } if (a == product) != (b == product) && n_reads[product.0] == 1);
        match ops.next_if(is_sum) {
            Some(Op::Add { a, b, out }) => {
                let other = if a == product { *b } else { *a };
                works.push(Work::ProductAndSum { x: *x, weight, bias: bias.as_ref(), other, out: *out });
            }
            _ => works.push(Work::Op(op)),
        }
    }
    works
}

fn uses(op: &Op) -> (Vec<Value>, Option<Value>) {
    match op {
        Op::Embed { out, .. } => (vec![], Some(*out)),
        Op::Norm { x, out, .. }
        | Op::Linear { x, out, .. }
        | Op::Rope { x, out, .. }
        | Op::Moe { x, out, .. }
        | Op::Scale { x, out, .. } => (vec![*x], Some(*out)),
        Op::Attention { q, k, v, out, .. } => (vec![*q, *k, *v], Some(*out)),
        Op::Glu { gate, up, out, .. } => (vec![*gate, *up], Some(*out)),
        Op::Add { a, b, out } => (vec![*a, *b], Some(*out)),
        Op::Head { x, .. } => (vec![*x], None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::GraphBuilder;

    fn weight(rows: usize) -> Weight {
        Weight::from_f32("w", rows, 4, &vec![0.0; rows * 4]).unwrap()
    }

    #[test]
    fn a_sum_joins_its_product_only_where_nobody_else_reads_that() {
        let mut graph = GraphBuilder::new();
        let x = graph.embed(weight(9), 1.0);
        let first = graph.linear(x, weight(4), None).unwrap();
        let joined = graph.add(x, first).unwrap();
        let second = graph.linear(joined, weight(4), None).unwrap();
        let twice = graph.add(second, second).unwrap();
        let third = graph.linear(twice, weight(4), None).unwrap();
        let read_again = graph.add(third, x).unwrap();
        let last = graph.add(read_again, third).unwrap();
        let graph = graph.head(last, weight(9), None, 1.0, None, 10).unwrap();
        let works = fuse(&graph);
        let kinds: Vec<bool> = works.iter().map(|work| matches!(work, Work::ProductAndSum { .. })).collect();
        assert_eq!(kinds, [false, true, false, false, false, false, false, false]);
        assert_eq!(works[1].uses(), (vec![x, x], Some(joined)));
    }
}
