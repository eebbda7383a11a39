//! One step of a language model as a list of coarse ops over named values.
//!
//! A value is a matrix of `n_rows x width` floats, `n_rows` known only when a step runs; an op reads earlier values
//! and writes one. [`GraphBuilder`] checks every shape when the op is added, so a [`Graph`] that exists is sound and
//! backends need not check again. Backends see whole patterns (linears that share an input, norm before linear) and
//! fuse neighbours themselves.

use std::sync::Arc;

use crate::order::Order;
use crate::tensor::{DType, Weight};

/// Names a value of the graph; index into [`Graph::widths`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value(pub usize);

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Pairs (2i, 2i + 1): files of architecture `llama`.
    Normal,
    /// Pairs (i, i + dims / 2): qwen, gemma, phi.
    HalfSplit,
}

/// Rotary position embedding with every scaling variant already folded in.
///
/// The pair `i` of a row at position `p` turns by `p * frequencies[i]` radians; cos and sin are multiplied by
/// `magnitude`. Elements past `2 * frequencies.len()` stay as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Which elements pair up.
    pub style: RopeStyle,
    /// Radians per position of each pair.
    pub frequencies: Arc<[f64]>,
    /// Factor on cos and sin (YaRN and long-rope attention factor), else 1.
    pub magnitude: f32,
}

/// Non-linearity of a gated unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// Gaussian error unit in its tanh form.
    GeluTanh,
}

/// What one layer keeps per token.
#[derive(Clone, Debug, PartialEq)]
pub struct KvLayer {
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Elements of one key head.
    pub key_dim: usize,
    /// Elements of one value head.
    pub value_dim: usize,
    /// Positions `p - window + 1 ..= p` are seen; `None` sees all.
    pub window: Option<usize>,
}

/// Mixture of gated experts. Expert matrices are stacked by rows: expert `e` of `gate` is rows `e * ff .. (e + 1) * ff`.
#[derive(Clone, Debug)]
pub struct Moe {
    /// `n_experts x width`.
    pub router: Weight,
    /// `n_experts * ff x width`.
    pub gate: Weight,
    /// `n_experts * ff x width`.
    pub up: Weight,
    /// `n_experts * width x ff`.
    pub down: Weight,
    /// Experts chosen per row, after a softmax over all of them.
    pub n_used: usize,
    /// Whether the chosen weights are renormalised to sum to 1.
    pub renormalise: bool,
    /// Non-linearity of the gate.
    pub activation: Activation,
}

impl Moe {
    /// Number of experts.
    pub fn n_experts(&self) -> usize {
        self.router.rows()
    }

    /// Hidden width of one expert.
    pub fn ff(&self) -> usize {
        self.gate.rows() / self.n_experts()
    }
}

/// One op. `out` is written whole; inputs are values of earlier ops.
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub enum Op {
    /// Rows of `table` by token id, times `scale`.
    Embed { table: Weight, scale: f32, out: Value },
    /// Root-mean-square norm over groups of `weight.cols()` neighbours (the row, or each head of it), times `weight`.
    Norm { x: Value, weight: Weight, eps: f32, out: Value },
    /// `x * weightᵀ + bias`.
    Linear { x: Value, weight: Weight, bias: Option<Weight>, out: Value },
    /// Rotates heads of `head_dim` by the row's position.
    Rope { x: Value, head_dim: usize, rope: Arc<Rope>, out: Value },
    /// Appends `k`, `v` to the cache of `layer`, then attends causally. Scores are `q·k * scale`, capped by
    /// `softcap * tanh(score / softcap)` where given.
    Attention {
        q: Value,
        k: Value,
        v: Value,
        layer: usize,
        n_heads: usize,
        scale: f32,
        softcap: Option<f32>,
        out: Value,
    },
    /// `activation(gate) * up`.
    Glu { gate: Value, up: Value, activation: Activation, out: Value },
    /// Mixture of experts.
    Moe { x: Value, moe: Arc<Moe>, out: Value },
    /// `a + b`.
    Add { a: Value, b: Value, out: Value },
    /// `x * factor`.
    Scale { x: Value, factor: f32, out: Value },
    /// Logits of the wanted rows: `x * weightᵀ + bias`, times `scale`, then capped. Always the last op.
    Head { x: Value, weight: Weight, bias: Option<Weight>, scale: f32, softcap: Option<f32> },
}

impl Op {
    /// The values it reads; one that it reads twice, twice.
    pub fn reads(&self) -> Vec<Value> {
        match self {
            Self::Embed { .. } => vec![],
            Self::Norm { x, .. }
            | Self::Linear { x, .. }
            | Self::Rope { x, .. }
            | Self::Moe { x, .. }
            | Self::Scale { x, .. }
            | Self::Head { x, .. } => vec![*x],
            Self::Attention { q, k, v, .. } => vec![*q, *k, *v],
            Self::Glu { gate, up, .. } => vec![*gate, *up],
            Self::Add { a, b, .. } => vec![*a, *b],
        }
    }

    /// The value it makes; the head makes none.
    pub fn result(&self) -> Option<Value> {
        match self {
            Self::Embed { out, .. }
            | Self::Norm { out, .. }
            | Self::Linear { out, .. }
            | Self::Rope { out, .. }
            | Self::Moe { out, .. }
            | Self::Scale { out, .. }
            | Self::Attention { out, .. }
            | Self::Glu { out, .. }
            | Self::Add { out, .. } => Some(*out),
            Self::Head { .. } => None,
        }
    }
}

/// A checked list of ops.
#[derive(Clone, Debug)]
pub struct Graph {
    widths: Vec<usize>,
    ops: Vec<Op>,
    kv_layers: Vec<KvLayer>,
    n_vocab: usize,
    width: usize,
    max_context: usize,
    given: Option<Value>,
}

impl Graph {
    /// Width of each value.
    pub fn widths(&self) -> &[usize] {
        &self.widths
    }
    /// The ops in order; the last is [`Op::Head`].
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }
    /// What each attention layer keeps.
    pub fn kv_layers(&self) -> &[KvLayer] {
        &self.kv_layers
    }
    /// Logits per row.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }
    /// Elements of a row as the head reads it: columns of its weight.
    pub fn width(&self) -> usize {
        self.width
    }
    /// Largest number of positions the graph was built for.
    pub fn max_context(&self) -> usize {
        self.max_context
    }
    /// The value whose rows come with each step instead of from an op: the second part of a graph that was cut has one.
    pub fn given(&self) -> Option<Value> {
        self.given
    }

    /// Cuts the graph before a layer: the first part's head reads the rows ([`crate::backend::WantKind::Hidden`]) that the
    /// second part is given. `None` where more than one value goes across, or nothing is on one side.
    pub fn cut(&self, layer: usize) -> Option<(Self, Self)> {
        let attends = |op: &Op, of: usize| matches!(op, Op::Attention { layer, .. } if *layer == of);
        let from = 1 + self.ops.iter().position(|op| attends(op, layer.checked_sub(1).unwrap_or(usize::MAX)))?;
        let to = self.ops.iter().position(|op| attends(op, layer))?;
        // The last place with one value across: what comes before the layer's first norm, not what is in its midst.
        let (place, value) = (from..=to).rev().find_map(|place| Some((place, self.across(place)?)))?;
        let Some(Op::Head { weight, bias, scale, softcap, .. }) = self.ops.last() else { return None };
        let (before, behind) = self.ops.split_at(place);
        let mut first = self.clone();
        first.ops = before.to_vec();
        // What rows are read by: its weight has a row for each token, as tokens are checked by that.
        let width = self.widths[value.0];
        if width != weight.cols() {
            return None;
        }
        let (weight, bias, scale, softcap) = (weight.clone(), bias.clone(), *scale, *softcap);
        first.ops.push(Op::Head { x: value, weight, bias, scale, softcap });
        first.kv_layers.truncate(layer);
        let mut second = Self { given: Some(value), ops: behind.to_vec(), ..self.clone() };
        second.kv_layers.drain(..layer);
        for op in &mut second.ops {
            if let Op::Attention { layer: number, .. } = op {
                *number -= layer;
            }
        }
        Some((first, second))
    }

    /// The one value that is made before an op and read by it or later.
    fn across(&self, place: usize) -> Option<Value> {
        let (before, behind) = self.ops.split_at(place);
        let is_made: std::collections::HashSet<Value> = before.iter().filter_map(Op::result).collect();
        let mut across = behind.iter().flat_map(Op::reads).filter(|value| is_made.contains(value));
        let value = across.next()?;
        across.all(|other| other == value).then_some(value)
    }

    /// Puts other weights of the same shape and type in place of those that `find` has one for: the same numbers in
    /// another place or order.
    ///
    /// # Errors
    /// A weight of another shape or type, or one whose rows lie side by side where rows are used one by one.
    pub fn replace_weights(&mut self, mut find: impl FnMut(&Weight) -> Option<Weight>) -> Result<(), GraphError> {
        let mut replace = |weight: &mut Weight, part_rows: Option<usize>| {
            let Some(other) = find(weight) else { return Ok(()) };
            let shape = |weight: &Weight| (weight.dtype(), weight.rows(), weight.cols());
            require(shape(weight) == shape(&other), "replacing", || {
                format!("tensor '{}' is of another shape or type", weight.name())
            })?;
            let is_whole = part_rows.is_some_and(|rows| other.order().is_cut_at(0, rows, other.rows()));
            require(other.order() == Order::Rows || is_whole, "replacing", || {
                format!("tensor '{}' is in order {}, which its use can't have", weight.name(), other.order().name())
            })?;
            *weight = other;
            Ok(())
        };
        for op in &mut self.ops {
            match op {
                Op::Embed { table, .. } => {
                    let rows = table.rows();
                    replace(table, Some(rows))?;
                }
                Op::Norm { weight, .. } => replace(weight, None)?,
                Op::Linear { weight, bias, .. } | Op::Head { weight, bias, .. } => {
                    let rows = weight.rows();
                    replace(weight, Some(rows))?;
                    bias.as_mut().map_or(Ok(()), |bias| replace(bias, None))?;
                }
                Op::Moe { moe, .. } => {
                    let moe = Arc::make_mut(moe);
                    let (n_experts, ff, width) = (moe.n_experts(), moe.ff(), moe.router.cols());
                    replace(&mut moe.router, Some(n_experts))?;
                    replace(&mut moe.gate, Some(ff))?;
                    replace(&mut moe.up, Some(ff))?;
                    replace(&mut moe.down, Some(width))?;
                }
                Op::Rope { .. } | Op::Attention { .. } | Op::Glu { .. } | Op::Add { .. } | Op::Scale { .. } => {}
            }
        }
        Ok(())
    }

    /// Weights that products read, in order of use, each with the rows of the parts it is used in: all of its own, or
    /// those of one expert.
    pub fn products(&self) -> impl Iterator<Item = (&Weight, usize)> {
        self.ops.iter().flat_map(|op| match op {
            Op::Linear { weight, .. } | Op::Head { weight, .. } => vec![(weight, weight.rows())],
            Op::Moe { moe, .. } => {
                let (ff, width) = (moe.ff(), moe.router.cols());
                vec![(&moe.router, moe.router.rows()), (&moe.gate, ff), (&moe.up, ff), (&moe.down, width)]
            }
            _ => vec![],
        })
    }

    /// Every stored matrix and vector the graph uses, in order of use.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        self.ops.iter().flat_map(|op| -> Vec<&Weight> {
            match op {
                Op::Embed { table, .. } => vec![table],
                Op::Norm { weight, .. } => vec![weight],
                Op::Linear { weight, bias, .. } | Op::Head { weight, bias, .. } => {
                    std::iter::once(weight).chain(bias).collect()
                }
                Op::Moe { moe, .. } => vec![&moe.router, &moe.gate, &moe.up, &moe.down],
                Op::Rope { .. } | Op::Attention { .. } | Op::Glu { .. } | Op::Add { .. } | Op::Scale { .. } => vec![],
            }
        })
    }
}

/// An op that does not fit its inputs.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A weight's shape is not what the op needs.
    #[error("tensor '{tensor}': {op} expects {expected}, found {rows} x {cols}")]
    Shape { tensor: String, op: &'static str, expected: String, rows: usize, cols: usize },
    /// A weight that must be plain floats is not F32.
    #[error("tensor '{tensor}': {op} needs type f32, found {dtype}")]
    NotF32 { tensor: String, op: &'static str, dtype: DType },
    /// Values or parameters do not fit together.
    #[error("{op}: {message}")]
    Mismatch { op: &'static str, message: String },
}

/// Builds a [`Graph`] op by op, checking shapes as it goes.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    widths: Vec<usize>,
    ops: Vec<Op>,
    kv_layers: Vec<KvLayer>,
}

fn require(ok: bool, op: &'static str, message: impl FnOnce() -> String) -> Result<(), GraphError> {
    if ok { Ok(()) } else { Err(GraphError::Mismatch { op, message: message() }) }
}

fn require_cols(weight: &Weight, op: &'static str, cols: usize) -> Result<(), GraphError> {
    if weight.cols() == cols {
        return Ok(());
    }
    Err(GraphError::Shape {
        tensor: weight.name().to_owned(),
        op,
        expected: format!("{cols} columns"),
        rows: weight.rows(),
        cols: weight.cols(),
    })
}

fn require_vector(weight: &Weight, op: &'static str, len: usize) -> Result<(), GraphError> {
    if weight.dtype() != DType::F32 {
        return Err(GraphError::NotF32 { tensor: weight.name().to_owned(), op, dtype: weight.dtype() });
    }
    if weight.rows() == 1 && weight.cols() == len {
        return Ok(());
    }
    Err(GraphError::Shape {
        tensor: weight.name().to_owned(),
        op,
        expected: format!("a vector of {len}"),
        rows: weight.rows(),
        cols: weight.cols(),
    })
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Width of a value made so far.
    pub fn width(&self, value: Value) -> usize {
        self.widths[value.0]
    }

    fn value(&mut self, width: usize) -> Value {
        self.widths.push(width);
        Value(self.widths.len() - 1)
    }

    /// Adds [`Op::Embed`].
    pub fn embed(&mut self, table: Weight, scale: f32) -> Value {
        let out = self.value(table.cols());
        self.ops.push(Op::Embed { table, scale, out });
        out
    }

    /// Adds [`Op::Norm`]; `weight` is an F32 vector whose length divides the width of `x`.
    pub fn norm(&mut self, x: Value, weight: Weight, eps: f32) -> Result<Value, GraphError> {
        let width = self.width(x);
        require_vector(&weight, "norm", weight.cols())?;
        require(weight.cols() > 0 && width.is_multiple_of(weight.cols()), "norm", || {
            format!("tensor '{}' has {} elements, which do not divide the width {width}", weight.name(), weight.cols())
        })?;
        let out = self.value(width);
        self.ops.push(Op::Norm { x, weight, eps, out });
        Ok(out)
    }

    /// Adds [`Op::Linear`]; `weight` is `out width x width of x`.
    pub fn linear(&mut self, x: Value, weight: Weight, bias: Option<Weight>) -> Result<Value, GraphError> {
        require_cols(&weight, "linear", self.width(x))?;
        if let Some(bias) = &bias {
            require_vector(bias, "linear bias", weight.rows())?;
        }
        let out = self.value(weight.rows());
        self.ops.push(Op::Linear { x, weight, bias, out });
        Ok(out)
    }

    /// Adds [`Op::Rope`] over heads of `head_dim`.
    pub fn rope(&mut self, x: Value, head_dim: usize, rope: &Arc<Rope>) -> Result<Value, GraphError> {
        let width = self.width(x);
        require(head_dim > 0 && width.is_multiple_of(head_dim), "rope", || {
            format!("head dimension {head_dim} does not divide the width {width}")
        })?;
        require(2 * rope.frequencies.len() <= head_dim, "rope", || {
            format!("{} rotated pairs do not fit a head of {head_dim}", rope.frequencies.len())
        })?;
        let out = self.value(width);
        self.ops.push(Op::Rope { x, head_dim, rope: Arc::clone(rope), out });
        Ok(out)
    }

    /// Adds [`Op::Attention`] with a cache layer of its own.
    pub fn attention(
        &mut self,
        (q, k, v): (Value, Value, Value),
        kv: KvLayer,
        n_heads: usize,
        scale: f32,
        softcap: Option<f32>,
    ) -> Result<Value, GraphError> {
        require(kv.n_kv_heads > 0 && n_heads.is_multiple_of(kv.n_kv_heads), "attention", || {
            format!("{n_heads} heads are no multiple of {} key/value heads", kv.n_kv_heads)
        })?;
        for (name, value, heads, dim) in [
            ("query", q, n_heads, kv.key_dim),
            ("key", k, kv.n_kv_heads, kv.key_dim),
            ("value", v, kv.n_kv_heads, kv.value_dim),
        ] {
            require(self.width(value) == heads * dim, "attention", || {
                format!("{name} width {} is not {heads} heads of {dim}", self.width(value))
            })?;
        }
        require(kv.window != Some(0), "attention", || "a window of 0 sees nothing".to_owned())?;
        let out = self.value(n_heads * kv.value_dim);
        let layer = self.kv_layers.len();
        self.kv_layers.push(kv);
        self.ops.push(Op::Attention { q, k, v, layer, n_heads, scale, softcap, out });
        Ok(out)
    }

    /// Adds [`Op::Glu`].
    pub fn glu(&mut self, gate: Value, up: Value, activation: Activation) -> Result<Value, GraphError> {
        let out = self.same_width("glu", gate, up)?;
        self.ops.push(Op::Glu { gate, up, activation, out });
        Ok(out)
    }

    /// Adds [`Op::Moe`].
    pub fn moe(&mut self, x: Value, moe: Moe) -> Result<Value, GraphError> {
        let width = self.width(x);
        let n_experts = moe.n_experts();
        require(moe.n_used > 0 && moe.n_used <= n_experts, "moe", || {
            format!("{} experts used of {n_experts}", moe.n_used)
        })?;
        for weight in [&moe.router, &moe.gate, &moe.up] {
            require_cols(weight, "moe", width)?;
        }
        let ff = moe.ff();
        require_cols(&moe.down, "moe", ff)?;
        for (weight, rows) in [(&moe.gate, n_experts * ff), (&moe.up, n_experts * ff), (&moe.down, n_experts * width)] {
            require(weight.rows() == rows, "moe", || {
                format!("tensor '{}' has {} rows, expected {rows}", weight.name(), weight.rows())
            })?;
        }
        let out = self.value(width);
        self.ops.push(Op::Moe { x, moe: Arc::new(moe), out });
        Ok(out)
    }

    /// Adds [`Op::Add`].
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value, GraphError> {
        let out = self.same_width("add", a, b)?;
        self.ops.push(Op::Add { a, b, out });
        Ok(out)
    }

    /// Adds [`Op::Scale`].
    pub fn scale(&mut self, x: Value, factor: f32) -> Value {
        let out = self.value(self.width(x));
        self.ops.push(Op::Scale { x, factor, out });
        out
    }

    /// Adds [`Op::Head`] and closes the graph.
    pub fn head(
        mut self,
        x: Value,
        weight: Weight,
        bias: Option<Weight>,
        scale: f32,
        softcap: Option<f32>,
        max_context: usize,
    ) -> Result<Graph, GraphError> {
        require_cols(&weight, "head", self.width(x))?;
        if let Some(bias) = &bias {
            require_vector(bias, "head bias", weight.rows())?;
        }
        require(weight.rows() > 0, "head", || "the vocabulary is empty".to_owned())?;
        require(max_context > 0, "head", || "a context of 0 holds nothing".to_owned())?;
        let (n_vocab, width) = (weight.rows(), weight.cols());
        self.ops.push(Op::Head { x, weight, bias, scale, softcap });
        let (widths, ops, kv_layers) = (self.widths, self.ops, self.kv_layers);
        Ok(Graph { widths, ops, kv_layers, n_vocab, width, max_context, given: None })
    }

    fn same_width(&mut self, op: &'static str, a: Value, b: Value) -> Result<Value, GraphError> {
        let (left, right) = (self.width(a), self.width(b));
        require(left == right, op, || format!("widths {left} and {right} differ"))?;
        Ok(self.value(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(rows: usize) -> Weight {
        Weight::from_f32("w", rows, 4, &vec![0.0; rows * 4]).unwrap()
    }

    #[test]
    fn a_graph_is_cut_where_a_layer_begins() {
        let mut graph = GraphBuilder::new();
        let vector = || Weight::from_f32("v", 1, 4, &[1.0; 4]).unwrap();
        let mut x = graph.embed(weight(9), 1.0);
        let mut borders = vec![x];
        for _ in 0..3 {
            let normed = graph.norm(x, vector(), 1e-5).unwrap();
            let [q, k, v] = [0; 3].map(|_| graph.linear(normed, weight(4), None).unwrap());
            let kv = KvLayer { n_kv_heads: 1, key_dim: 4, value_dim: 4, window: None };
            let attended = graph.attention((q, k, v), kv, 1, 1.0, None).unwrap();
            x = graph.add(x, attended).unwrap();
            let fed = graph.linear(x, weight(4), None).unwrap();
            x = graph.add(x, fed).unwrap();
            borders.push(x);
        }
        let graph = graph.head(x, weight(9), None, 1.0, None, 10).unwrap();
        for (layer, &border) in borders.iter().enumerate().take(3).skip(1) {
            let (first, second) = graph.cut(layer).unwrap();
            assert_eq!((first.kv_layers().len(), second.kv_layers().len()), (layer, 3 - layer));
            assert_eq!((first.given(), second.given()), (None, Some(border)));
            assert_eq!(first.ops().len() + second.ops().len(), graph.ops().len() + 1);
            assert!(matches!(first.ops().last(), Some(Op::Head { x, .. }) if *x == border));
            let layers: Vec<usize> = second
                .ops()
                .iter()
                .filter_map(|op| match op {
                    Op::Attention { layer, .. } => Some(*layer),
                    _ => None,
                })
                .collect();
            assert_eq!(layers, (0..3 - layer).collect::<Vec<_>>());
        }
        assert!([0, 3, 4].iter().all(|layer| graph.cut(*layer).is_none()));
    }
}
