//! Ops as they are run: neighbours become one dispatch where nobody else looks at what lies between them.
//!
//! - A norm of whole rows is taken by the products that read it, if nobody else does.
//! - Products with queries, keys and values are one, their rows side by side, where weights have the same type; norms of
//!   heads and rotations behind them are done where keys are stored and queries are read.
//! - Products of a gated unit are one, which writes the unit.
//! - A sum right behind a product, experts or a norm becomes part of it.

use crate::graph::{Activation, Graph, Moe, Op, Rope, Value};
use crate::tensor::Weight;

/// What a product reads: a value, or the norm of its rows with a weight.
#[derive(Clone, Copy)]
pub(crate) struct Input<'g> {
    pub(crate) value: Value,
    pub(crate) norm: Option<Norm<'g>>,
}

/// A root-mean-square norm.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'g> {
    pub(crate) weight: &'g Weight,
    pub(crate) eps: f32,
}

/// Heads of queries or keys: what becomes of a value before it is attended with.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'g> {
    pub(crate) value: Value,
    pub(crate) norm: Option<Norm<'g>>,
    pub(crate) rope: Option<&'g Rope>,
}

/// Products of one input with weights of one type.
pub(crate) struct Product<'g> {
    pub(crate) x: Input<'g>,
    /// Each with its bias: all have one or none has. A gated unit has two of the same shape, the gate first.
    pub(crate) weights: Vec<(&'g Weight, Option<&'g Weight>)>,
    pub(crate) gated: Option<Activation>,
    /// Added to the product.
    pub(crate) other: Option<Value>,
    /// One for each weight, but one for a gated unit.
    pub(crate) outs: Vec<Value>,
}

/// What is run at once.
pub(crate) enum Work<'g> {
    /// An op by itself.
    Op(&'g Op),
    Product(Product<'g>),
    /// `norm(x) + other`.
    NormAndSum {
        x: Value,
        norm: Norm<'g>,
        other: Value,
        out: Value,
    },
    Attention(Attention<'g>),
    /// Experts, and what is added to what they say.
    Experts {
        x: Input<'g>,
        moe: &'g Moe,
        other: Option<Value>,
        out: Value,
    },
    Head {
        x: Input<'g>,
        weight: &'g Weight,
        bias: Option<&'g Weight>,
        scale: f32,
        softcap: Option<f32>,
    },
}

/// [`Op::Attention`] with what is done to queries and keys before.
pub(crate) struct Attention<'g> {
    pub(crate) q: Heads<'g>,
    pub(crate) k: Heads<'g>,
    pub(crate) v: Value,
    pub(crate) layer: usize,
    pub(crate) n_heads: usize,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    pub(crate) out: Value,
}

impl Work<'_> {
    /// What it reads, and what it writes.
    pub(crate) fn uses(&self) -> (Vec<Value>, Vec<Value>) {
        match self {
            Self::Op(op) => (op.reads(), op.result().into_iter().collect()),
            Self::Product(Product { x, other, outs, .. }) => {
                (std::iter::once(x.value).chain(*other).collect(), outs.clone())
            }
            Self::NormAndSum { x, other, out, .. } => (vec![*x, *other], vec![*out]),
            Self::Attention(Attention { q, k, v, out, .. }) => (vec![q.value, k.value, *v], vec![*out]),
            Self::Experts { x, other, out, .. } => (std::iter::once(x.value).chain(*other).collect(), vec![*out]),
            Self::Head { x, .. } => (vec![x.value], vec![]),
        }
    }
}

/// All ops of a graph in order.
pub(crate) fn fuse(graph: &Graph) -> Vec<Work<'_>> {
    let mut fusing = Fusing::new(graph);
    fusing.take_norms();
    for place in 0..graph.ops().len() {
        match &graph.ops()[place] {
            Op::Attention { .. } => fusing.attention(place),
            Op::Glu { .. } => fusing.gated(place),
            _ => {}
        }
    }
    for place in 0..graph.ops().len() {
        if let Op::Add { a, b, out } = &graph.ops()[place] {
            fusing.sum(place, *a, *b, *out);
        }
    }
    fusing.finish()
}

/// A graph on the way to its works.
struct Fusing<'g> {
    graph: &'g Graph,
    /// Of each value, the op that makes it and those that read it.
    made_by: Vec<Option<usize>>,
    readers: Vec<Vec<usize>>,
    /// Of each value that is a norm taken by its readers: what it is of.
    norms: Vec<Option<(Value, Norm<'g>)>>,
    /// Of each op, what is run in its place; ops that are part of another have `Some(None)`.
    works: Vec<Option<Option<Work<'g>>>>,
}

impl<'g> Fusing<'g> {
    fn new(graph: &'g Graph) -> Self {
        let n_values = graph.widths().len();
        let (mut made_by, mut readers) = (vec![None; n_values], vec![Vec::new(); n_values]);
        for (place, op) in graph.ops().iter().enumerate() {
            op.reads().into_iter().for_each(|value| readers[value.0].push(place));
            op.result().into_iter().for_each(|value| made_by[value.0] = Some(place));
        }
        let works = graph.ops().iter().map(|_| None).collect();
        Self { graph, made_by, readers, norms: vec![None; n_values], works }
    }

    /// The op that makes a value, if it is run by itself so far and one op reads what it makes, once.
    fn sole(&self, value: Value) -> Option<&'g Op> {
        let place = self.made_by[value.0]?;
        let is_free = self.works[place].is_none();
        (is_free && self.readers[value.0].len() == 1).then(|| &self.graph.ops()[place])
    }

    /// Makes the op that makes a value part of another one.
    fn join(&mut self, value: Value) {
        if let Some(place) = self.made_by[value.0] {
            self.works[place] = Some(None);
        }
    }

    fn input(&self, value: Value) -> Input<'g> {
        match self.norms[value.0] {
            Some((value, norm)) => Input { value, norm: Some(norm) },
            None => Input { value, norm: None },
        }
    }

    fn take_norms(&mut self) {
        for op in self.graph.ops() {
            let Op::Norm { x, weight, eps, out } = op else { continue };
            let is_whole = weight.cols() == self.graph.widths()[x.0];
            let multiplies = |place: &usize| {
                matches!(self.graph.ops()[*place], Op::Linear { .. } | Op::Moe { .. } | Op::Head { .. })
            };
            if is_whole && !self.readers[out.0].is_empty() && self.readers[out.0].iter().all(multiplies) {
                self.norms[out.0] = Some((*x, Norm { weight, eps: *eps }));
                self.join(*out);
            }
        }
    }

    /// What heads of `head_dim` are made of, whose makers become part of who reads them.
    fn heads(&mut self, value: Value, head_dim: usize) -> Heads<'g> {
        let mut heads = Heads { value, norm: None, rope: None };
        if let Some(Op::Rope { x, head_dim: of, rope, .. }) = self.sole(value)
            && *of == head_dim
        {
            self.join(value);
            (heads.value, heads.rope) = (*x, Some(&**rope));
        }
        if let Some(Op::Norm { x, weight, eps, .. }) = self.sole(heads.value)
            && weight.cols() == head_dim
        {
            self.join(heads.value);
            (heads.value, heads.norm) = (*x, Some(Norm { weight, eps: *eps }));
        }
        heads
    }

    fn attention(&mut self, place: usize) {
        let Op::Attention { q, k, v, layer, n_heads, scale, softcap, out } = &self.graph.ops()[place] else { return };
        let key_dim = self.graph.kv_layers()[*layer].key_dim;
        let (q, k) = (self.heads(*q, key_dim), self.heads(*k, key_dim));
        self.side_by_side([q.value, k.value, *v]);
        let (layer, n_heads, scale, softcap, out) = (*layer, *n_heads, *scale, *softcap, *out);
        self.works[place] = Some(Some(Work::Attention(Attention { q, k, v: *v, layer, n_heads, scale, softcap, out })));
    }

    /// Makes products of the same input with weights of the same type one.
    fn side_by_side(&mut self, values: [Value; 3]) {
        for (number, first) in values.into_iter().enumerate() {
            let Some(Op::Linear { x, weight, bias, .. }) = self.sole(first) else { continue };
            let is_like = |value: &Value| match self.sole(*value) {
                Some(Op::Linear { x: of, weight: other, bias: and, .. }) => {
                    of == x && other.dtype() == weight.dtype() && and.is_some() == bias.is_some()
                }
                _ => false,
            };
            let outs: Vec<Value> = values[number..].iter().copied().filter(is_like).collect();
            if outs.len() < 2 {
                continue;
            }
            let weights = outs.iter().filter_map(|out| match self.sole(*out) {
                Some(Op::Linear { weight, bias, .. }) => Some((weight, bias.as_ref())),
                _ => None,
            });
            let (weights, x) = (weights.collect(), self.input(*x));
            let Some(earliest) = outs.iter().filter_map(|out| self.made_by[out.0]).min() else { continue };
            outs.iter().for_each(|out| self.join(*out));
            self.works[earliest] = Some(Some(Work::Product(Product { x, weights, gated: None, other: None, outs })));
        }
    }

    fn gated(&mut self, place: usize) {
        let Op::Glu { gate, up, activation, out } = &self.graph.ops()[place] else { return };
        let (Some(Op::Linear { x, weight, bias: None, .. }), Some(Op::Linear { x: of, weight: other, bias: None, .. })) =
            (self.sole(*gate), self.sole(*up))
        else {
            return;
        };
        if gate == up || x != of || weight.dtype() != other.dtype() || weight.rows() != other.rows() {
            return;
        }
        let (weights, x) = (vec![(weight, None), (other, None)], self.input(*x));
        self.join(*gate);
        self.join(*up);
        let product = Product { x, weights, gated: Some(*activation), other: None, outs: vec![*out] };
        self.works[place] = Some(Some(Work::Product(product)));
    }

    fn sum(&mut self, place: usize, a: Value, b: Value, out: Value) {
        // What was made last: the other one is there by then.
        let (value, other) = if self.made_by[a.0] > self.made_by[b.0] { (a, b) } else { (b, a) };
        if a == b {
            return;
        }
        let work = match self.sole(value) {
            Some(Op::Linear { x, weight, bias, .. }) => {
                let weights = vec![(weight, bias.as_ref())];
                Work::Product(Product { x: self.input(*x), weights, gated: None, other: Some(other), outs: vec![out] })
            }
            Some(Op::Norm { x, weight, eps, .. }) if weight.cols() == self.graph.widths()[x.0] => {
                Work::NormAndSum { x: *x, norm: Norm { weight, eps: *eps }, other, out }
            }
            Some(Op::Moe { x, moe, .. }) => Work::Experts { x: self.input(*x), moe, other: Some(other), out },
            _ => return,
        };
        self.join(value);
        self.works[place] = Some(Some(work));
    }

    fn finish(mut self) -> Vec<Work<'g>> {
        let works = std::mem::take(&mut self.works);
        let alone = |op: &'g Op| match op {
            Op::Linear { x, weight, bias, out } => {
                let weights = vec![(weight, bias.as_ref())];
                Work::Product(Product { x: self.input(*x), weights, gated: None, other: None, outs: vec![*out] })
            }
            Op::Moe { x, moe, out } => Work::Experts { x: self.input(*x), moe, other: None, out: *out },
            Op::Head { x, weight, bias, scale, softcap } => {
                let (scale, softcap) = (*scale, *softcap);
                Work::Head { x: self.input(*x), weight, bias: bias.as_ref(), scale, softcap }
            }
            op => Work::Op(op),
        };
        let fused = works.into_iter().zip(self.graph.ops());
        fused.filter_map(|(work, op)| work.unwrap_or_else(|| Some(alone(op)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::{GraphBuilder, KvLayer, RopeStyle};

    fn weight(rows: usize) -> Weight {
        Weight::from_f32("w", rows, 4, &vec![0.0; rows * 4]).unwrap()
    }

    fn names(graph: &Graph) -> String {
        let name = |work: &Work<'_>| match work {
            Work::Op(Op::Embed { .. }) => "embed".to_owned(),
            Work::Op(Op::Norm { .. }) => "norm".to_owned(),
            Work::Op(Op::Rope { .. }) => "rope".to_owned(),
            Work::Op(Op::Glu { .. }) => "glu".to_owned(),
            Work::Op(Op::Add { .. }) => "add".to_owned(),
            Work::Op(op) => format!("{op:?}"),
            Work::Product(Product { x, weights, gated, other, .. }) => {
                let norm = if x.norm.is_some() { "norm " } else { "" };
                let gated = if gated.is_some() { " gated" } else { "" };
                let sum = if other.is_some() { " sum" } else { "" };
                format!("{norm}product {}{gated}{sum}", weights.len())
            }
            Work::NormAndSum { .. } => "norm sum".to_owned(),
            Work::Attention(Attention { q, k, .. }) => {
                let of = |heads: &Heads<'_>| (usize::from(heads.norm.is_some()), usize::from(heads.rope.is_some()));
                format!("attention {:?} {:?}", of(q), of(k))
            }
            Work::Experts { other, .. } => format!("experts{}", if other.is_some() { " sum" } else { "" }),
            Work::Head { x, .. } => format!("{}head", if x.norm.is_some() { "norm " } else { "" }),
        };
        fuse(graph).iter().map(name).collect::<Vec<_>>().join(", ")
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
        assert_eq!(names(&graph), "embed, product 1 sum, product 1, add, product 1, add, add, head");
        assert_eq!(fuse(&graph)[1].uses(), (vec![x, x], vec![joined]));
    }

    /// A layer as families write it, with or without what keeps neighbours apart.
    fn layer(is_apart: bool) -> Graph {
        let mut graph = GraphBuilder::new();
        let vector = || Weight::from_f32("v", 1, 4, &[1.0; 4]).unwrap();
        let rope = Arc::new(Rope { style: RopeStyle::Normal, frequencies: [1.0].into(), magnitude: 1.0 });
        let mut x = graph.embed(weight(9), 1.0);
        let normed = graph.norm(x, vector(), 1e-5).unwrap();
        let [mut q, mut k, v] = [0; 3].map(|_| graph.linear(normed, weight(4), None).unwrap());
        q = graph.norm(q, vector(), 1e-5).unwrap();
        q = graph.rope(q, 4, &rope).unwrap();
        k = graph.rope(k, 4, &rope).unwrap();
        let kv = KvLayer { n_kv_heads: 1, key_dim: 4, value_dim: 4, window: None };
        let attended = graph.attention((q, if is_apart { q } else { k }, v), kv, 1, 1.0, None).unwrap();
        let out = graph.linear(attended, weight(4), None).unwrap();
        let out = graph.norm(out, vector(), 1e-5).unwrap();
        x = graph.add(out, x).unwrap();
        let normed = graph.norm(x, vector(), 1e-5).unwrap();
        let (gate, up) =
            (graph.linear(normed, weight(4), None).unwrap(), graph.linear(normed, weight(4), None).unwrap());
        let unit = graph.glu(gate, if is_apart { gate } else { up }, Activation::Silu).unwrap();
        let down = graph.linear(unit, weight(4), None).unwrap();
        x = graph.add(x, down).unwrap();
        if is_apart {
            x = graph.add(x, normed).unwrap();
        }
        let normed = graph.norm(x, vector(), 1e-5).unwrap();
        graph.head(normed, weight(9), None, 1.0, None, 10).unwrap()
    }

    #[test]
    fn a_layer_is_few_works() {
        let expected = "embed, norm product 3, attention (1, 1) (0, 1), product 1, norm sum, norm product 2 gated, \
                        product 1 sum, norm head";
        assert_eq!(names(&layer(false)), expected);
    }

    #[test]
    fn what_others_read_stays_by_itself() {
        let works = names(&layer(true));
        // Queries are read as keys too; a norm is added later; what would be keys nobody reads.
        assert!(works.contains("rope, rope, attention (0, 0) (0, 0)") && works.contains("norm sum, norm, "), "{works}");
        assert!(works.contains("glu, product 1 sum, add"), "{works}");
    }
}
