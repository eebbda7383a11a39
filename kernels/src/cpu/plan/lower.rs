//! From a graph's ops to a plan's stages: neighbours that can share a stage do.
//!
//! - Ops that need nothing but their own row run one after the other in one stage.
//! - A norm that only products read is computed while their input is quantized.
//! - Products of the same value are one stage; a residual or a gated unit behind them is computed on the way out.
//! - Rotation, scaling and norms happen in place where nobody else reads the value.

use std::sync::Arc;

use super::stage::{After, Attention, Head, Linear, Moe, Norm, Part, RowOp, Source, Stage, Stages};
use crate::graph::{Graph, Op, Rope, Value};
use crate::tensor::{DType, Weight};

/// The stages of `graph`.
pub(super) fn lower(graph: &Graph) -> Stages {
    let mut lowering = Lowering::new(graph);
    for index in 0..graph.ops().len() {
        if !lowering.is_done[index] {
            lowering.op(index);
        }
    }
    Stages { stages: lowering.stages, ropes: lowering.ropes, place_of: lowering.place_of }
}

struct Lowering<'g> {
    graph: &'g Graph,
    is_done: Vec<bool>,
    /// Ops that read each value.
    readers: Vec<Vec<usize>>,
    /// Whether a value has been computed by a stage so far.
    is_there: Vec<bool>,
    /// Norms that are left to the products that read them.
    left: Vec<Option<(Value, Norm)>>,
    place_of: Vec<Value>,
    ropes: Vec<Arc<Rope>>,
    stages: Vec<Stage>,
}

impl<'g> Lowering<'g> {
    fn new(graph: &'g Graph) -> Self {
        let n_values = graph.widths().len();
        let mut readers = vec![Vec::new(); n_values];
        for (index, op) in graph.ops().iter().enumerate() {
            for value in inputs(op) {
                readers[value.0].push(index);
            }
        }
        Self {
            graph,
            is_done: vec![false; graph.ops().len()],
            readers,
            is_there: vec![false; n_values],
            left: vec![None; n_values],
            place_of: (0..n_values).map(Value).collect(),
            ropes: Vec::new(),
            stages: Vec::new(),
        }
    }

    fn op(&mut self, index: usize) {
        self.is_done[index] = true;
        match &self.graph.ops()[index] {
            Op::Embed { table, scale, out } => {
                self.row(RowOp::Embed { table: table.clone(), scale: *scale, out: *out }, *out);
            }
            Op::Norm { x, weight, eps, out } => {
                let norm = Norm { weight: floats(weight), eps: *eps };
                let ops = self.graph.ops();
                let is_read_by_products = self.readers[out.0]
                    .iter()
                    .all(|&reader| matches!(ops[reader], Op::Linear { .. } | Op::Head { .. }));
                if is_read_by_products && norm.weight.len() == self.graph.widths()[x.0] {
                    self.left[out.0] = Some((*x, norm));
                } else {
                    self.take_over(*x, *out);
                    self.row(RowOp::Norm { x: *x, norm, out: *out }, *out);
                }
            }
            Op::Linear { x, .. } => self.linears(*x),
            Op::Rope { x, head_dim, rope, out } => {
                self.take_over(*x, *out);
                let rope = self.rope(rope);
                self.row(RowOp::Rope { x: *x, head_dim: *head_dim, rope, out: *out }, *out);
            }
            Op::Attention { q, k, v, layer, n_heads, scale, softcap, out } => {
                self.push_row(RowOp::Store { k: *k, v: *v, layer: *layer });
                let (q, layer, n_heads, out) = (*q, *layer, *n_heads, *out);
                let attention = Attention { q, layer, n_heads, scale: *scale, softcap: *softcap, out };
                self.stage(Stage::Attention(attention), out);
            }
            Op::Glu { gate, up, activation, out } => {
                let op = RowOp::Glu { gate: *gate, up: *up, activation: *activation, out: *out };
                self.row(op, *out);
            }
            Op::Moe { x, moe, out } => {
                self.stage(Stage::Moe(Moe { x: *x, moe: Arc::clone(moe), out: *out }), *out);
            }
            Op::Add { a, b, out } => self.row(RowOp::Add { a: *a, b: *b, out: *out }, *out),
            Op::Scale { x, factor, out } => {
                self.take_over(*x, *out);
                self.row(RowOp::Scale { x: *x, factor: *factor, out: *out }, *out);
            }
            Op::Head { x, weight, bias, scale, softcap } => {
                let source = self.source(*x);
                let bias = bias.as_ref().map(floats);
                let head = Head { source, weight: weight.clone(), bias, scale: *scale, softcap: *softcap };
                self.stages.push(Stage::Head(head));
            }
        }
    }

    /// Adds an op that makes `out`.
    fn row(&mut self, op: RowOp, out: Value) {
        self.is_there[out.0] = true;
        self.push_row(op);
    }

    fn push_row(&mut self, op: RowOp) {
        if let Some(Stage::Rows(ops)) = self.stages.last_mut() {
            ops.push(op);
        } else {
            self.stages.push(Stage::Rows(vec![op]));
        }
    }

    fn stage(&mut self, stage: Stage, out: Value) {
        self.is_there[out.0] = true;
        self.stages.push(stage);
    }

    fn source(&self, x: Value) -> Source {
        match &self.left[x.0] {
            Some((x, norm)) => Source { x: *x, norm: Some(norm.clone()) },
            None => Source { x, norm: None },
        }
    }

    fn rope(&mut self, rope: &Arc<Rope>) -> usize {
        let known = self.ropes.iter().position(|known| {
            known.frequencies == rope.frequencies && known.magnitude == rope.magnitude && known.style == rope.style
        });
        known.unwrap_or_else(|| {
            self.ropes.push(Arc::clone(rope));
            self.ropes.len() - 1
        })
    }

    /// Lets `out` have the place of `x` if nothing else reads `x`.
    fn take_over(&mut self, x: Value, out: Value) {
        if self.readers[x.0].len() == 1 {
            self.place_of[out.0] = self.place_of[x.0];
        }
    }

    /// True if every read of `value` is in a stage made so far.
    fn is_read_up(&self, value: Value) -> bool {
        let ops = self.graph.ops();
        self.readers[value.0].iter().all(|&reader| match &ops[reader] {
            // A norm that was left to products is read when they are.
            Op::Norm { out, .. } if self.left[out.0].is_some() => self.is_read_up(*out),
            _ => self.is_done[reader],
        })
    }

    /// The op that alone reads `value`.
    fn only_reader(&self, value: Value) -> Option<usize> {
        match self.readers[value.0][..] {
            [reader] if !self.is_done[reader] => Some(reader),
            _ => None,
        }
    }

    /// All products of `x` that are left, as one stage.
    fn linears(&mut self, x: Value) {
        let ops = self.graph.ops();
        let all: Vec<usize> =
            self.readers[x.0].iter().copied().filter(|&reader| matches!(ops[reader], Op::Linear { .. })).collect();
        for &index in &all {
            self.is_done[index] = true;
        }
        let source = self.source(x);
        let mut parts = Vec::new();
        let mut taken = vec![false; all.len()];
        for (number, &index) in all.iter().enumerate() {
            if taken[number] {
                continue;
            }
            let Op::Linear { weight, bias, out, .. } = &ops[index] else { continue };
            let (weight, bias) = (weight.clone(), bias.as_ref().map(floats));
            let reader = self.only_reader(*out);
            let part = match reader.map(|reader| (reader, &ops[reader])) {
                Some((reader, Op::Add { a, b, out: sum })) => {
                    let other = if a == out { *b } else { *a };
                    if self.is_there[other.0] && other != *out {
                        self.is_done[reader] = true;
                        // While some workers write results, others may still be reading the input.
                        let is_input = self.place_of[other.0] == self.place_of[source.x.0];
                        if self.is_read_up(other) && !is_input {
                            self.place_of[sum.0] = self.place_of[other.0];
                        }
                        Part { weight, bias, after: After::Add(other), out: *sum }
                    } else {
                        Part { weight, bias, after: After::Nothing, out: *out }
                    }
                }
                Some((reader, Op::Glu { gate, up, activation, out: unit })) => {
                    let other = all.iter().enumerate().skip(number + 1).find_map(|(place, &index)| match &ops[index] {
                        Op::Linear { weight, bias, out: other, .. }
                            if (other == up || other == gate) && self.readers[other.0] == [reader] =>
                        {
                            Some((place, weight, bias, other))
                        }
                        _ => None,
                    });
                    match other {
                        Some((place, second, second_bias, second_out)) => {
                            taken[place] = true;
                            self.is_done[reader] = true;
                            let mut halves = [(weight, bias), (second.clone(), second_bias.as_ref().map(floats))];
                            if second_out == gate {
                                halves.reverse();
                            }
                            let [(weight, bias), (up, up_bias)] = halves;
                            let after = After::Glu { up, up_bias, activation: *activation };
                            Part { weight, bias, after, out: *unit }
                        }
                        None => Part { weight, bias, after: After::Nothing, out: *out },
                    }
                }
                _ => Part { weight, bias, after: After::Nothing, out: *out },
            };
            parts.push(part);
        }
        for part in &parts {
            self.is_there[part.out.0] = true;
        }
        self.stages.push(Stage::Linear(Linear { source, parts }));
    }
}

/// Values an op reads.
fn inputs(op: &Op) -> Vec<Value> {
    match op {
        Op::Embed { .. } => vec![],
        Op::Norm { x, .. }
        | Op::Linear { x, .. }
        | Op::Rope { x, .. }
        | Op::Moe { x, .. }
        | Op::Scale { x, .. }
        | Op::Head { x, .. } => vec![*x],
        Op::Attention { q, k, v, .. } => vec![*q, *k, *v],
        Op::Glu { gate: a, up: b, .. } | Op::Add { a, b, .. } => vec![*a, *b],
    }
}

/// The numbers of a vector, copied: they are few, and a file need not align them.
fn floats(weight: &Weight) -> Arc<[f32]> {
    debug_assert_eq!(weight.dtype(), DType::F32, "the graph builder checked vectors");
    let bytes = weight.view().bytes;
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
