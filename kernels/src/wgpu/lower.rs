//! From the ops of a graph to dispatches over buffers.

use std::sync::Arc;

use super::cache::Cache;
use super::pipelines::{Shader, StoredAs, Tile};
use super::product::{Finish, Sum, Wiring, unit};
use super::stage::{Constants, Draft, DraftStage, Groups, Inputs};
use super::upload::{Stack, Uploads};
use crate::backend::{DeviceError, KvType};
use crate::device::fuse::{Attention, Heads, Input, Norm, Product, Work};
use crate::device::places::{Places, Spot, stride};
use crate::graph::{Graph, Moe, Op, Rope, RopeStyle, Value};
use crate::tensor::Weight;

/// Longest keys and values, in elements: what workgroups have room for.
pub(super) const MAX_HEAD: usize = 1024;

/// Room that the layers of experts share, of one row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ExpertRoom {
    logits: usize,
    routes: usize,
    hidden: usize,
    /// Of layers whose gate and what it is met with are of different types.
    apart: usize,
}

impl ExpertRoom {
    /// Of the largest layers.
    pub(super) fn new(graph: &Graph) -> Self {
        let moes = graph.ops().iter().filter_map(|op| match op {
            Op::Moe { moe, .. } => Some(moe),
            _ => None,
        });
        moes.fold(Self::default(), |most, moe| {
            let hidden = moe.n_used * stride(moe.ff());
            let is_one = moe.gate.dtype() == moe.up.dtype();
            Self {
                logits: most.logits.max(stride(moe.n_experts())),
                routes: most.routes.max(2 * moe.n_used),
                hidden: most.hidden.max(hidden),
                apart: most.apart.max(if is_one { 0 } else { hidden }),
            }
        })
    }

    /// Words of a row, buffer by buffer: logits, choices with shares, hidden, gates and what they are met with.
    pub(super) fn words(&self) -> [usize; 5] {
        [self.logits, self.routes, self.hidden, self.apart, self.apart]
    }
}

/// Buffers that stages work in.
pub(super) struct Rooms {
    pub(super) places: Vec<::wgpu::Buffer>,
    pub(super) experts: Vec<::wgpu::Buffer>,
    pub(super) angles: ::wgpu::Buffer,
    /// What parts of keys come to.
    pub(super) key_parts: ::wgpu::Buffer,
    pub(super) head_in: ::wgpu::Buffer,
    pub(super) logits: ::wgpu::Buffer,
    pub(super) ids: ::wgpu::Buffer,
}

/// Stages of a plan: the layers, then rows with results brought together, the head, the arg-max.
pub(super) struct Drafts {
    pub(super) layers: Vec<DraftStage>,
    pub(super) gather: Vec<DraftStage>,
    pub(super) head: Vec<DraftStage>,
    pub(super) arg_max: Vec<DraftStage>,
}

/// Rotations of a graph, each with the place of its first angle.
pub(super) struct Angles {
    pub(super) ropes: Vec<(Arc<Rope>, usize)>,
    /// Floats of all.
    pub(super) n_floats: usize,
}

impl Angles {
    /// Of steps of so many rows.
    pub(super) fn new(graph: &Graph, rows: usize) -> Self {
        let mut angles = Self { ropes: Vec::new(), n_floats: 0 };
        for op in graph.ops() {
            if let Op::Rope { rope, .. } = op
                && angles.at(rope).is_none()
            {
                angles.ropes.push((Arc::clone(rope), angles.n_floats));
                angles.n_floats += 2 * rope.frequencies.len() * rows;
            }
        }
        angles
    }

    fn at(&self, rope: &Rope) -> Option<usize> {
        self.ropes.iter().find(|(known, _)| **known == *rope).map(|(_, at)| *at)
    }
}

/// Makes drafts of ops.
pub(super) struct Lowering<'a, 'g> {
    pub(super) graph: &'a Graph,
    pub(super) places: &'a Places,
    pub(super) rooms: &'a Rooms,
    pub(super) angles: &'a Angles,
    pub(super) cache: &'a Cache,
    pub(super) uploads: Uploads<'g>,
    pub(super) kv_type: KvType,
    pub(super) page_tokens: usize,
    /// What many inputs of products are met as, where they may be rounded.
    pub(super) tile: Option<Tile>,
}

impl<'g> Lowering<'_, 'g> {
    fn spot(&self, value: Value) -> Spot {
        self.places.of_value[value.0]
    }

    fn buffer(&self, value: Value) -> &::wgpu::Buffer {
        &self.rooms.places[self.spot(value).place]
    }

    fn width(&self, value: Value) -> usize {
        self.graph.widths()[value.0]
    }

    fn stride(&self, value: Value) -> u32 {
        self.spot(value).stride as u32
    }

    fn norm(&mut self, norm: Option<Norm<'_>>) -> Result<Option<(u32, f32)>, DeviceError> {
        norm.map(|norm| Ok((self.uploads.vector(&[norm.weight])?, norm.eps))).transpose()
    }

    /// All works.
    pub(super) fn run(&mut self, works: &[Work<'_>]) -> Result<Drafts, DeviceError> {
        let mut drafts = Drafts { layers: vec![], gather: vec![], head: vec![], arg_max: vec![] };
        let layers = &mut drafts.layers;
        for work in works {
            match work {
                Work::Op(op) => self.op(op, layers)?,
                Work::Product(product) => self.product(product, layers)?,
                Work::NormAndSum { x, norm, other, out } => layers.push(self.norm_op(*x, *norm, Some(*other), *out)?),
                Work::Attention(attention) => self.attention(attention, layers)?,
                Work::Experts { x, moe, other, out } => self.experts(*x, moe, *other, *out, layers)?,
                Work::Head { x, weight, bias, scale, softcap } => {
                    let bias = bias.map(|bias| self.uploads.vector(&[bias])).transpose()?;
                    let finish = Finish { bias, factor: *scale, cap: *softcap, ..Finish::plain() };
                    [drafts.gather, drafts.head, drafts.arg_max] = self.head(*x, weight, finish)?;
                    break;
                }
            }
        }
        self.uploads.finish()?;
        Ok(drafts)
    }

    /// An op by itself.
    fn op(&mut self, op: &Op, layers: &mut Vec<DraftStage>) -> Result<(), DeviceError> {
        match op {
            Op::Embed { table, scale, out } => self.embed(table, *scale, *out, layers)?,
            Op::Norm { x, weight, eps, out } => {
                layers.push(self.norm_op(*x, Norm { weight, eps: *eps }, None, *out)?);
            }
            Op::Rope { x, head_dim, rope, out } => {
                let Some(at) = self.angles.at(rope) else { return Ok(()) };
                let width = self.width(*x);
                let buffers = vec![self.buffer(*x).clone(), self.rooms.angles.clone(), self.buffer(*out).clone()];
                let n_pairs = rope.frequencies.len() as u32;
                let params = vec![*head_dim as u32, width as u32, self.stride(*x), n_pairs, at as u32];
                let mut stage = each(Shader::Rope, buffers, params, width.div_ceil(64) as u32);
                stage[0].constants = vec![flag("IS_SPLIT", rope.style == RopeStyle::HalfSplit)];
                layers.push(stage);
            }
            Op::Glu { gate, up, activation, out } => {
                let buffers = [*gate, *up, *out].map(|value| self.buffer(value).clone());
                layers.push(elementwise(unit(*activation), buffers, self.stride(*out), 1, 1.0));
            }
            Op::Add { a, b, out } => {
                let buffers = [*a, *b, *out].map(|value| self.buffer(value).clone());
                layers.push(elementwise(0, buffers, self.stride(*out), 1, 1.0));
            }
            Op::Scale { x, factor, out } => {
                let buffers = [*x, *x, *out].map(|value| self.buffer(value).clone());
                layers.push(elementwise(3, buffers, self.stride(*out), 1, *factor));
            }
            Op::Linear { .. } | Op::Attention { .. } | Op::Moe { .. } | Op::Head { .. } => {
                unreachable!("these are works of their own")
            }
        }
        Ok(())
    }

    fn norm_op(
        &mut self,
        x: Value,
        norm: Norm<'_>,
        other: Option<Value>,
        out: Value,
    ) -> Result<DraftStage, DeviceError> {
        let (len, width) = (norm.weight.cols(), self.width(x));
        let weight_at = self.uploads.vector(&[norm.weight])?;
        let other_buffer = other.map_or(&self.uploads.nothing, |other| self.buffer(other)).clone();
        let buffers =
            vec![self.buffer(x).clone(), self.uploads.vectors.clone(), other_buffer, self.buffer(out).clone()];
        let other_stride = other.map_or(0, |other| self.stride(other));
        let params = vec![len as u32, self.stride(x), weight_at, other_stride, self.stride(out), norm.eps.to_bits()];
        let mut stage = each(Shader::Norm, buffers, params, (width / len) as u32);
        stage[0].constants = vec![flag("HAS_OTHER", other.is_some())];
        Ok(stage)
    }

    fn embed(
        &mut self,
        table: &Weight,
        scale: f32,
        out: Value,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let uploaded = self.uploads.matrix(&Stack::one(table))?;
        let units = uploaded.units() as u32;
        for part in &uploaded.parts {
            let buffers = vec![part.codes.clone(), part.scales.clone(), self.buffer(out).clone()];
            let [first, n_rows] = [part.first as u32, part.n_rows as u32];
            let params = vec![n_rows, first, table.cols() as u32, units, self.stride(out), scale.to_bits()];
            let mut stage = each(Shader::Embed, buffers, params, units.div_ceil(64));
            stage[0].constants = uploaded.layout.constants();
            stages.push(stage);
        }
        Ok(())
    }

    fn product(&mut self, product: &Product<'_>, stages: &mut Vec<DraftStage>) -> Result<(), DeviceError> {
        let Product { x, weights, gated, other, outs } = product;
        let norm = self.norm(x.norm)?;
        let rows = || weights.iter().map(|(weight, _)| *weight);
        let stack = match (gated, &weights[..]) {
            (Some(_), [(gate, _), (up, _)]) => Stack::gated(gate, up, 1),
            _ => Stack::rows(rows().collect()),
        };
        let matrix = self.uploads.matrix(&stack)?;
        let biases: Vec<&Weight> = weights.iter().filter_map(|(_, bias)| *bias).collect();
        let bias = if biases.is_empty() { None } else { Some(self.uploads.vector(&biases)?) };
        let sum = other.map_or(Sum::Nothing, |other| Sum::Rows(self.buffer(other)));
        let wiring = Wiring {
            x: self.buffer(x.value),
            norm,
            vectors: &self.uploads.vectors,
            out: self.buffer(outs[0]),
            out_stride: self.spot(outs[0]).stride,
            inputs: Inputs::Rows,
            experts: None,
            tile: self.tile,
            nothing: &self.uploads.nothing,
        };
        stages.extend(wiring.stages(&matrix, Finish { sum, bias, gated: *gated, ..Finish::plain() }));
        Ok(())
    }

    /// What is done to heads: parameters of the norm and the rotation, and constants.
    fn heads(&mut self, heads: &Heads<'_>) -> Result<([u32; 4], Constants), DeviceError> {
        let norm = self.norm(heads.norm)?;
        let (norm_at, eps) = norm.unwrap_or((0, 0.0));
        let rope = heads.rope.and_then(|rope| Some((rope, self.angles.at(rope)?)));
        let (n_pairs, angles_at) = rope.map_or((0, 0), |(rope, at)| (rope.frequencies.len(), at));
        let constants = vec![
            flag("HAS_NORM", norm.is_some()),
            flag("HAS_ROPE", rope.is_some()),
            flag("IS_SPLIT", rope.is_some_and(|(rope, _)| rope.style == RopeStyle::HalfSplit)),
        ];
        Ok(([norm_at, eps.to_bits(), n_pairs as u32, angles_at as u32], constants))
    }

    fn attention(&mut self, attention: &Attention<'_>, stages: &mut Vec<DraftStage>) -> Result<(), DeviceError> {
        let Attention { q, k, v, layer, n_heads, scale, softcap, out } = attention;
        let of = &self.graph.kv_layers()[*layer];
        let pool = self.cache.paging.pool_of(*layer);
        let ((of_k, k_constants), (of_q, mut q_constants)) = (self.heads(k)?, self.heads(q)?);
        let planes = self.cache.layer(*layer);
        let (keys, values) = (planes.keys.buffer.clone(), planes.values.buffer.clone());
        let (angles, vectors) = (self.rooms.angles.clone(), self.uploads.vectors.clone());
        let [q_spot, k_spot, v_spot] = [q.value, k.value, *v].map(|value| self.spot(value));
        let [q, k, v, out_buffer] = [q.value, k.value, *v, *out].map(|value| self.buffer(value).clone());
        let params = [
            of.n_kv_heads,
            self.page_tokens,
            pool,
            of.key_dim,
            k_spot.stride,
            k_spot.offset,
            of.value_dim,
            v_spot.stride,
            v_spot.offset,
        ];
        let params = params.into_iter().map(|param| param as u32).chain(of_k).collect();
        let stored_as = StoredAs::from(self.kv_type);
        let buffers = vec![k, v, angles.clone(), vectors.clone(), keys.clone(), values.clone()];
        let mut store = each(Shader::Store(stored_as), buffers, params, 2 * of.n_kv_heads as u32);
        store[0].constants = k_constants;
        stages.push(store);
        let lanes = of.value_dim.div_ceil(4).next_power_of_two().min(64);
        let params = [
            of.n_kv_heads,
            n_heads / of.n_kv_heads,
            of.key_dim,
            of.value_dim,
            q_spot.stride,
            self.spot(*out).stride,
            self.page_tokens,
            pool,
            // Windows longer than any context are none.
            of.window.filter(|window| *window < 1 << 31).unwrap_or(0),
            lanes,
        ];
        let more = [scale.to_bits(), softcap.unwrap_or(1.0).to_bits(), q_spot.offset as u32];
        let params: Vec<u32> = params.into_iter().map(|param| param as u32).chain(more).chain(of_q).collect();
        q_constants.push(flag("HAS_CAP", softcap.is_some()));
        let draft = |out: &::wgpu::Buffer, has_parts| Draft {
            shader: Shader::Attention(stored_as),
            constants: q_constants.iter().copied().chain([flag("HAS_PARTS", has_parts)]).collect(),
            buffers: [&q, &keys, &values, &angles, &vectors, out].map(Clone::clone).to_vec(),
            params: Vec::clone(&params),
            groups: Groups::Parts(*n_heads as u32),
            inputs: Inputs::Rows,
        };
        let parts = &self.rooms.key_parts;
        stages.push(vec![draft(&out_buffer, false), draft(parts, true)]);
        let params = vec![of.value_dim as u32, self.spot(*out).stride as u32];
        let mut merge = each(Shader::Merge, vec![parts.clone(), out_buffer], params, 0);
        merge[0].groups = Groups::Merged(*n_heads as u32);
        stages.push(merge);
        Ok(())
    }

    fn experts(
        &mut self,
        x: Input<'_>,
        moe: &Moe,
        other: Option<Value>,
        out: Value,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let norm = self.norm(x.norm)?;
        let [logits, routes, hidden, gates, ups] = std::array::from_fn(|n| self.rooms.experts[n].clone());
        let (ff, n_used, n_experts) = (moe.ff(), moe.n_used, moe.n_experts());
        let router = self.uploads.matrix(&Stack::one(&moe.router))?;
        let down = self.uploads.matrix(&Stack::of_experts(&moe.down, n_experts))?;
        let units = if moe.gate.dtype() == moe.up.dtype() {
            vec![(self.uploads.matrix(&Stack::gated(&moe.gate, &moe.up, n_experts))?, &hidden, Some(moe.activation))]
        } else {
            let gate = self.uploads.matrix(&Stack::of_experts(&moe.gate, n_experts))?;
            let up = self.uploads.matrix(&Stack::of_experts(&moe.up, n_experts))?;
            vec![(gate, &gates, None), (up, &ups, None)]
        };
        let slots = Inputs::Slots(n_used as u32);
        let to_router = Wiring {
            x: self.buffer(x.value),
            norm,
            vectors: &self.uploads.vectors,
            out: &logits,
            out_stride: stride(n_experts),
            inputs: Inputs::Rows,
            experts: None,
            tile: self.tile,
            nothing: &self.uploads.nothing,
        };
        stages.extend(to_router.stages(&router, Finish::plain()));
        let params = vec![n_experts as u32, n_used as u32, stride(n_experts) as u32];
        let mut route = each(Shader::Route, vec![logits.clone(), routes.clone()], params, 1);
        route[0].constants = vec![flag("IS_RENORMALISED", moe.renormalise)];
        stages.push(route);
        for (matrix, out, gated) in &units {
            let experts = Some((&routes, n_used));
            let to_units = Wiring { out, out_stride: stride(ff), inputs: slots, experts, ..to_router };
            stages.extend(to_units.stages(matrix, Finish { gated: *gated, ..Finish::plain() }));
        }
        if units.len() > 1 {
            let buffers = [gates.clone(), ups.clone(), hidden.clone()];
            stages.push(elementwise(unit(moe.activation), buffers, stride(ff) as u32, n_used as u32, 1.0));
        }
        let sum = other.map_or(Sum::Nothing, |other| Sum::Rows(self.buffer(other)));
        let (out, out_stride) = (self.buffer(out), self.spot(out).stride);
        let to_down = Wiring { x: &hidden, norm: None, out, out_stride, experts: Some((&routes, n_used)), ..to_router };
        stages.extend(to_down.mix(&down, sum));
        Ok(())
    }

    /// What brings rows with results together, the head, the arg-max.
    fn head(&mut self, x: Input<'_>, weight: &Weight, finish: Finish<'_>) -> Result<[Vec<DraftStage>; 3], DeviceError> {
        let Rooms { head_in, logits, ids, .. } = self.rooms;
        let norm = self.norm(x.norm)?;
        let (weight_at, eps) = norm.unwrap_or((0, 0.0));
        let matrix = self.uploads.matrix(&Stack::one(weight))?;
        let buffers = vec![self.buffer(x.value).clone(), self.uploads.vectors.clone(), head_in.clone()];
        let params = vec![self.width(x.value) as u32, self.stride(x.value), weight_at, eps.to_bits()];
        let mut gather = each(Shader::Gather, buffers, params, 1);
        gather[0].inputs = Inputs::Wants;
        gather[0].constants = vec![flag("HAS_NORM", norm.is_some())];
        let n_vocab = weight.rows();
        let to_head = Wiring {
            x: head_in,
            norm: None,
            vectors: &self.uploads.vectors,
            out: logits,
            out_stride: stride(n_vocab),
            inputs: Inputs::Wants,
            experts: None,
            tile: self.tile,
            nothing: &self.uploads.nothing,
        };
        let head = to_head.stages(&matrix, finish);
        let params = vec![n_vocab as u32, stride(n_vocab) as u32];
        let mut arg_max = each(Shader::ArgMax, vec![logits.clone(), ids.clone()], params, 1);
        arg_max[0].inputs = Inputs::Wants;
        Ok([vec![gather], head, vec![arg_max]])
    }
}

/// A constant that is set or not.
pub(super) fn flag(name: &'static str, is_set: bool) -> (&'static str, f64) {
    (name, f64::from(u8::from(is_set)))
}

/// A stage of so many groups for each row.
fn each(shader: Shader, buffers: Vec<::wgpu::Buffer>, params: Vec<u32>, groups: u32) -> DraftStage {
    let (constants, groups) = (Vec::new(), Groups::Each(groups));
    vec![Draft { shader, constants, buffers, params, groups, inputs: Inputs::Rows }]
}

fn elementwise(kind: u32, buffers: [::wgpu::Buffer; 3], stride: u32, per_row: u32, factor: f32) -> DraftStage {
    vec![Draft {
        shader: Shader::Elementwise,
        constants: vec![("KIND", f64::from(kind))],
        buffers: buffers.into(),
        params: vec![stride / 4, per_row, factor.to_bits()],
        groups: Groups::Threads(per_row * stride / 4),
        inputs: Inputs::Rows,
    }]
}
