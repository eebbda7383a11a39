//! What a plan is made of: stages, each a piece of work that all workers share, with a barrier behind it.

use std::sync::Arc;

use crate::graph::{Activation, Rope, Value};
use crate::tensor::Weight;

/// One piece of a step.
pub(super) enum Stage {
    /// Work that needs nothing but its own row, op after op; rows are shared out.
    Rows(Vec<RowOp>),
    /// Products of several weights with the same rows.
    Linear(Linear),
    /// Queries against the cache.
    Attention(Attention),
    /// Mixture of experts.
    Moe(Moe),
    /// Logits of the wanted rows.
    Head(Head),
}

/// Work on one row. `out` may be the place of `x` in ops that have one.
pub(super) enum RowOp {
    /// A row of the table, by token.
    Embed { table: Weight, scale: f32, out: Value },
    /// Root-mean-square norm of groups of `weight.len()`.
    Norm { x: Value, norm: Norm, out: Value },
    /// Rotation by the row's position.
    Rope { x: Value, head_dim: usize, rope: usize, out: Value },
    /// Sum.
    Add { a: Value, b: Value, out: Value },
    /// Multiple.
    Scale { x: Value, factor: f32, out: Value },
    /// Gated unit.
    Glu { gate: Value, up: Value, activation: Activation, out: Value },
    /// Keys and values into the cache.
    Store { k: Value, v: Value, layer: usize },
}

/// Weights of a norm.
#[derive(Clone)]
pub(super) struct Norm {
    pub(super) weight: Arc<[f32]>,
    pub(super) eps: f32,
}

/// Rows as a product reads them: a value, or the norm of one.
pub(super) struct Source {
    pub(super) x: Value,
    pub(super) norm: Option<Norm>,
}

/// Several weights times the same rows.
pub(super) struct Linear {
    pub(super) source: Source,
    pub(super) parts: Vec<Part>,
}

/// One weight of a stage, or two whose results meet in a gated unit, and what happens to the results.
pub(super) struct Part {
    pub(super) weight: Weight,
    pub(super) bias: Option<Arc<[f32]>>,
    pub(super) after: After,
    pub(super) out: Value,
}

/// What happens to results before they are written.
pub(super) enum After {
    /// Nothing.
    Nothing,
    /// They are added to a value.
    Add(Value),
    /// They are the gate of a unit whose other half comes from a second weight of the same shape.
    Glu { up: Weight, up_bias: Option<Arc<[f32]>>, activation: Activation },
}

impl Part {
    /// All weights of the part.
    pub(super) fn weights(&self) -> impl Iterator<Item = &Weight> {
        let up = match &self.after {
            After::Glu { up, .. } => Some(up),
            _ => None,
        };
        std::iter::once(&self.weight).chain(up)
    }
}

/// Causal attention of the step's rows.
pub(super) struct Attention {
    pub(super) q: Value,
    pub(super) layer: usize,
    pub(super) n_heads: usize,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) out: Value,
}

/// Experts of one layer.
pub(super) struct Moe {
    pub(super) x: Value,
    pub(super) moe: Arc<crate::graph::Moe>,
    pub(super) out: Value,
}

/// The language-model head.
pub(super) struct Head {
    pub(super) source: Source,
    pub(super) weight: Weight,
    pub(super) bias: Option<Arc<[f32]>>,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
}

/// The stages of a graph.
pub(super) struct Stages {
    pub(super) stages: Vec<Stage>,
    /// Different rotations, by the index that [`RowOp::Rope`] uses.
    pub(super) ropes: Vec<Arc<Rope>>,
    /// For each value the one whose place it takes over, itself in most cases.
    pub(super) place_of: Vec<Value>,
}

impl Stage {
    /// Values read, and values written.
    pub(super) fn uses(&self) -> (Vec<Value>, Vec<Value>) {
        match self {
            Self::Rows(ops) => {
                let (mut reads, mut writes) = (Vec::new(), Vec::new());
                for op in ops {
                    match op {
                        RowOp::Embed { out, .. } => writes.push(*out),
                        RowOp::Norm { x, out, .. } | RowOp::Rope { x, out, .. } | RowOp::Scale { x, out, .. } => {
                            reads.push(*x);
                            writes.push(*out);
                        }
                        RowOp::Add { a: first, b: second, out } | RowOp::Glu { gate: first, up: second, out, .. } => {
                            reads.extend([*first, *second]);
                            writes.push(*out);
                        }
                        RowOp::Store { k, v, .. } => reads.extend([*k, *v]),
                    }
                }
                (reads, writes)
            }
            Self::Linear(linear) => {
                let added = linear.parts.iter().filter_map(|part| match part.after {
                    After::Add(value) => Some(value),
                    _ => None,
                });
                let reads = std::iter::once(linear.source.x).chain(added).collect();
                (reads, linear.parts.iter().map(|part| part.out).collect())
            }
            Self::Attention(attention) => (vec![attention.q], vec![attention.out]),
            Self::Moe(moe) => (vec![moe.x], vec![moe.out]),
            Self::Head(head) => (vec![head.source.x], Vec::new()),
        }
    }

    /// What the stage is called in messages: a weight of it, where it has one.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Rows(ops) => {
                let embed = ops.iter().find_map(|op| match op {
                    RowOp::Embed { table, .. } => Some(table.name().to_owned()),
                    _ => None,
                });
                embed.unwrap_or_else(|| "row operations".to_owned())
            }
            Self::Linear(linear) => {
                let names: Vec<&str> = linear.parts.iter().flat_map(Part::weights).map(Weight::name).collect();
                names.join(", ")
            }
            Self::Attention(attention) => format!("attention of layer {}", attention.layer),
            Self::Moe(moe) => format!("{} and its experts", moe.moe.router.name()),
            Self::Head(head) => head.weight.name().to_owned(),
        }
    }
}
