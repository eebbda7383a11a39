//! From the ops of a graph to dispatches over buffers.

use std::sync::Arc;

use super::cache::Cache;
use super::fuse::Work;
use super::pipelines::{Shader, StoredAs};
use super::places::{Places, stride};
use super::stage::{Draft, DraftStage, Groups, Inputs};
use super::upload::{Part, Uploaded, Uploads};
use crate::backend::{DeviceError, KvType};
use crate::graph::{Activation, Graph, KvLayer, Moe, Op, Rope, RopeStyle, Value};
use crate::tensor::Weight;

/// Longest keys and values, in elements: what workgroups have room for.
pub(super) const MAX_HEAD: usize = 1024;

/// Rows of weights that a group of the product with few inputs makes, and inputs it meets them with.
const FEW_ROWS: usize = 4;
const FEW_INPUTS: u32 = 4;

/// Room that the layers of experts share, of one row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ExpertRoom {
    logits: usize,
    slots: usize,
    hidden: usize,
    out: usize,
}

impl ExpertRoom {
    /// Of the largest layers.
    pub(super) fn new(graph: &Graph) -> Self {
        let moes = graph.ops().iter().filter_map(|op| match op {
            Op::Moe { moe, .. } => Some(moe),
            _ => None,
        });
        moes.fold(Self::default(), |most, moe| Self {
            logits: most.logits.max(stride(moe.n_experts())),
            slots: most.slots.max(moe.n_used),
            hidden: most.hidden.max(moe.n_used * stride(moe.ff())),
            out: most.out.max(moe.n_used * stride(moe.router.cols())),
        })
    }

    /// Words of a row, buffer by buffer: logits, choices, shares, gates, what they are met with, hidden, results.
    pub(super) fn words(&self) -> [usize; 7] {
        [self.logits, self.slots, self.slots, self.hidden, self.hidden, self.hidden, self.out]
    }
}

/// Buffers that stages work in.
pub(super) struct Rooms {
    pub(super) places: Vec<::wgpu::Buffer>,
    pub(super) experts: Vec<::wgpu::Buffer>,
    pub(super) angles: ::wgpu::Buffer,
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

/// What products write to, and which rows they read.
struct Target<'b> {
    x: &'b ::wgpu::Buffer,
    out: &'b ::wgpu::Buffer,
    out_stride: usize,
    inputs: Inputs,
    /// What is added to the product.
    other: Option<&'b ::wgpu::Buffer>,
    /// Of experts: who is chosen, rows of one, slots that read the same row.
    experts: Option<(&'b ::wgpu::Buffer, usize, usize)>,
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
}

impl<'g> Lowering<'_, 'g> {
    fn buffer(&self, value: Value) -> &::wgpu::Buffer {
        &self.rooms.places[self.places.of_value[value.0]]
    }

    fn width(&self, value: Value) -> usize {
        self.graph.widths()[value.0]
    }

    fn stride(&self, value: Value) -> u32 {
        stride(self.width(value)) as u32
    }

    /// All ops.
    pub(super) fn run(&mut self, works: &[Work<'_>]) -> Result<Drafts, DeviceError> {
        let mut drafts = Drafts { layers: vec![], gather: vec![], head: vec![], arg_max: vec![] };
        for work in works {
            match *work {
                Work::Op(op) => self.op(op, &mut drafts)?,
                Work::ProductAndSum { x, weight, bias, other, out } => {
                    self.linear(x, weight, bias, Some(other), out, &mut drafts.layers)?;
                }
            }
        }
        Ok(drafts)
    }

    fn op(&mut self, op: &Op, drafts: &mut Drafts) -> Result<(), DeviceError> {
        let graph = self.graph;
        match op {
            Op::Embed { table, scale, out } => self.embed(table, *scale, *out, &mut drafts.layers)?,
            Op::Norm { x, weight, eps, out } => {
                let (len, width) = (weight.cols(), self.width(*x));
                let buffers = vec![self.buffer(*x).clone(), self.uploads.vector(weight)?, self.buffer(*out).clone()];
                let params = vec![len as u32, self.stride(*x), eps.to_bits()];
                drafts.layers.push(each(Shader::Norm, buffers, params, (width / len) as u32));
            }
            Op::Linear { x, weight, bias, out } => {
                self.linear(*x, weight, bias.as_ref(), None, *out, &mut drafts.layers)?;
            }
            Op::Rope { x, head_dim, rope, out } => {
                let Some(at) = self.angles.at(rope) else { return Ok(()) };
                let width = self.width(*x);
                let buffers = vec![self.buffer(*x).clone(), self.rooms.angles.clone(), self.buffer(*out).clone()];
                let n_pairs = rope.frequencies.len() as u32;
                let params = vec![*head_dim as u32, width as u32, self.stride(*x), n_pairs, at as u32];
                let mut stage = each(Shader::Rope, buffers, params, width.div_ceil(64) as u32);
                stage[0].constants = vec![flag("IS_SPLIT", rope.style == RopeStyle::HalfSplit)];
                drafts.layers.push(stage);
            }
            Op::Attention { q, k, v, layer, n_heads, scale, softcap, out } => {
                let of = &graph.kv_layers()[*layer];
                drafts.layers.push(self.store(*k, *v, *layer));
                let stage = self.attention((*q, *out), *layer, of, *n_heads, (*scale, *softcap));
                drafts.layers.push(stage);
            }
            Op::Glu { gate, up, activation, out } => {
                let buffers = [*gate, *up, *out].map(|value| self.buffer(value).clone());
                drafts.layers.push(elementwise(unit(*activation), buffers, self.stride(*out), 1, 1.0));
            }
            Op::Moe { x, moe, out } => self.experts(*x, moe, *out, &mut drafts.layers)?,
            Op::Add { a, b, out } => {
                let buffers = [*a, *b, *out].map(|value| self.buffer(value).clone());
                drafts.layers.push(elementwise(0, buffers, self.stride(*out), 1, 1.0));
            }
            Op::Scale { x, factor, out } => {
                let buffers = [*x, *x, *out].map(|value| self.buffer(value).clone());
                drafts.layers.push(elementwise(3, buffers, self.stride(*out), 1, *factor));
            }
            Op::Head { x, weight, bias, scale, softcap } => {
                self.head(*x, weight, bias.as_ref(), (*scale, *softcap), drafts)?;
            }
        }
        Ok(())
    }

    fn linear(
        &mut self,
        x: Value,
        weight: &Weight,
        bias: Option<&Weight>,
        other: Option<Value>,
        out: Value,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let [x, out_buffer] = [x, out].map(|value| self.buffer(value).clone());
        let other = other.map(|value| self.buffer(value).clone());
        let target = Target {
            x: &x,
            out: &out_buffer,
            out_stride: stride(self.width(out)),
            inputs: Inputs::Rows,
            other: other.as_ref(),
            experts: None,
        };
        self.product(weight, bias, &target, stages)
    }

    fn embed(
        &mut self,
        table: &Weight,
        scale: f32,
        out: Value,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let uploaded = self.uploads.matrix(table)?;
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

    /// Products with the rows of a weight, part after part.
    fn product(
        &mut self,
        weight: &Weight,
        bias: Option<&Weight>,
        target: &Target<'_>,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let uploaded = self.uploads.matrix(weight)?;
        let nothing = self.uploads.nothing.clone();
        let bias = bias.map(|bias| self.uploads.vector(bias)).transpose()?;
        for part in &uploaded.parts {
            stages.push(forms(&uploaded, part, bias.as_ref(), &nothing, target));
        }
        Ok(())
    }

    fn store(&self, k: Value, v: Value, layer: usize) -> DraftStage {
        let of = &self.graph.kv_layers()[layer];
        let planes = self.cache.layer(layer);
        let per_thread = if self.kv_type == KvType::Q8_0 { 32 } else { 4 };
        let groups = |dim: usize| (of.n_kv_heads * dim.div_ceil(per_thread)).div_ceil(64);
        let params = [
            of.n_kv_heads,
            self.page_tokens,
            self.cache.paging.pool_of(layer),
            groups(of.key_dim),
            of.key_dim,
            stride(self.width(k)),
            of.value_dim,
            stride(self.width(v)),
        ];
        let [k, v] = [k, v].map(|value| self.buffer(value).clone());
        let buffers = vec![k, v, planes.keys.buffer.clone(), planes.values.buffer.clone()];
        let params = params.into_iter().map(|param| param as u32).collect();
        let groups = (groups(of.key_dim) + groups(of.value_dim)) as u32;
        each(Shader::Store(StoredAs::from(self.kv_type)), buffers, params, groups)
    }

    fn attention(
        &self,
        (q, out): (Value, Value),
        layer: usize,
        of: &KvLayer,
        n_heads: usize,
        (scale, softcap): (f32, Option<f32>),
    ) -> DraftStage {
        let planes = self.cache.layer(layer);
        let buffers = vec![
            self.buffer(q).clone(),
            planes.keys.buffer.clone(),
            planes.values.buffer.clone(),
            self.buffer(out).clone(),
        ];
        let lanes = of.value_dim.div_ceil(4).next_power_of_two().min(64);
        let params = [
            of.n_kv_heads,
            n_heads / of.n_kv_heads,
            of.key_dim,
            of.value_dim,
            stride(self.width(q)),
            stride(self.width(out)),
            self.page_tokens,
            self.cache.paging.pool_of(layer),
            // Windows longer than any context are none.
            of.window.filter(|window| *window < 1 << 31).unwrap_or(0),
            lanes,
        ];
        let mut params: Vec<u32> = params.into_iter().map(|param| param as u32).collect();
        params.extend([scale.to_bits(), softcap.unwrap_or(1.0).to_bits()]);
        let mut stage = each(Shader::Attention(StoredAs::from(self.kv_type)), buffers, params, n_heads as u32);
        stage[0].constants = vec![flag("HAS_CAP", softcap.is_some())];
        stage
    }

    fn experts(&mut self, x: Value, moe: &Moe, out: Value, stages: &mut Vec<DraftStage>) -> Result<(), DeviceError> {
        let [logits, chosen, shares, gate, up, hidden, parts] = std::array::from_fn(|n| self.rooms.experts[n].clone());
        let x = self.buffer(x).clone();
        let (ff, width, n_used) = (moe.ff(), moe.router.cols(), moe.n_used);
        let router = Target {
            x: &x,
            out: &logits,
            out_stride: stride(moe.n_experts()),
            inputs: Inputs::Rows,
            other: None,
            experts: None,
        };
        self.product(&moe.router, None, &router, stages)?;
        stages.push(vec![Draft {
            shader: Shader::Route,
            constants: vec![flag("IS_RENORMALISED", moe.renormalise)],
            buffers: vec![logits.clone(), chosen.clone(), shares.clone()],
            params: vec![moe.n_experts() as u32, n_used as u32, stride(moe.n_experts()) as u32],
            groups: Groups::Threads(1),
            inputs: Inputs::Rows,
        }]);
        let slots = Inputs::Slots(n_used as u32);
        for (weight, out) in [(&moe.gate, &gate), (&moe.up, &up)] {
            let experts = Some((&chosen, ff, n_used));
            let target = Target { x: &x, out, out_stride: stride(ff), inputs: slots, other: None, experts };
            self.product(weight, None, &target, stages)?;
        }
        let buffers = [gate, up, hidden.clone()];
        stages.push(elementwise(unit(moe.activation), buffers, stride(ff) as u32, n_used as u32, 1.0));
        let experts = Some((&chosen, width, 1));
        let down = Target { x: &hidden, out: &parts, out_stride: stride(width), inputs: slots, other: None, experts };
        self.product(&moe.down, None, &down, stages)?;
        let vectors = (stride(width) / 4) as u32;
        let buffers = vec![parts, shares, self.buffer(out).clone()];
        stages.push(each(Shader::Combine, buffers, vec![n_used as u32, vectors], vectors.div_ceil(64)));
        Ok(())
    }

    fn head(
        &mut self,
        x: Value,
        weight: &Weight,
        bias: Option<&Weight>,
        (scale, softcap): (f32, Option<f32>),
        drafts: &mut Drafts,
    ) -> Result<(), DeviceError> {
        let Rooms { head_in, logits, ids, .. } = self.rooms;
        let vectors = self.stride(x) / 4;
        let mut gather =
            each(Shader::Gather, vec![self.buffer(x).clone(), head_in.clone()], vec![vectors], vectors.div_ceil(64));
        gather[0].inputs = Inputs::Wants;
        drafts.gather.push(gather);
        let n_vocab = weight.rows();
        let target = Target {
            x: head_in,
            out: logits,
            out_stride: stride(n_vocab),
            inputs: Inputs::Wants,
            other: None,
            experts: None,
        };
        self.product(weight, bias, &target, &mut drafts.head)?;
        if scale != 1.0 || softcap.is_some() {
            drafts.head.push(vec![Draft {
                shader: Shader::Finish,
                constants: vec![flag("HAS_CAP", softcap.is_some())],
                buffers: vec![logits.clone()],
                params: vec![stride(n_vocab) as u32, scale.to_bits(), softcap.unwrap_or(1.0).to_bits()],
                groups: Groups::Threads(stride(n_vocab) as u32),
                inputs: Inputs::Wants,
            }]);
        }
        let params = vec![n_vocab as u32, stride(n_vocab) as u32];
        let mut arg_max = each(Shader::ArgMax, vec![logits.clone(), ids.clone()], params, 1);
        arg_max[0].inputs = Inputs::Wants;
        drafts.arg_max.push(arg_max);
        Ok(())
    }
}

fn flag(name: &'static str, is_set: bool) -> (&'static str, f64) {
    (name, f64::from(u8::from(is_set)))
}

/// The kind of unit in `elementwise.wgsl`.
fn unit(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 1,
        Activation::GeluTanh => 2,
    }
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

/// Products with one part of a weight, for one input, few and many; with experts always one by one.
fn forms(
    weight: &Uploaded,
    part: &Part,
    bias: Option<&::wgpu::Buffer>,
    nothing: &::wgpu::Buffer,
    target: &Target<'_>,
) -> DraftStage {
    let mut constants = weight.layout.constants();
    constants.push(flag("IS_WHOLE", weight.cols.is_multiple_of(32)));
    constants.push(flag("IS_EXPERT", target.experts.is_some()));
    let (chosen, expert_rows, slots_per_x) = target.experts.unwrap_or((nothing, 0, 1));
    let input = match target.inputs {
        Inputs::Rows => 0,
        Inputs::Wants => 1,
        Inputs::Slots(per_row) => per_row + 1,
    };
    let params: Vec<u32> = [
        part.n_rows,
        part.first,
        weight.cols,
        weight.units(),
        stride(weight.cols) / 4,
        target.out_stride,
        usize::from(bias.is_some()),
        usize::from(target.other.is_some()),
        expert_rows,
        slots_per_x,
    ]
    .into_iter()
    .map(|param| param as u32)
    .chain([input])
    .collect();
    let bias = bias.unwrap_or(nothing);
    let other = target.other.unwrap_or(nothing);
    let buffers = [&part.codes, &part.scales, target.x, bias, other, chosen, target.out].map(Clone::clone);
    let few_of = if target.experts.is_some() { expert_rows } else { part.n_rows };
    let draft = |shader, more: Option<(&'static str, f64)>, groups| Draft {
        shader,
        constants: constants.iter().copied().chain(more).collect(),
        buffers: buffers.to_vec(),
        params: params.clone(),
        groups,
        inputs: target.inputs,
    };
    let few = |inputs: u32| {
        let groups = Groups::Few { groups: few_of.div_ceil(FEW_ROWS) as u32, inputs };
        draft(Shader::ProductFew, Some(("INPUTS", f64::from(inputs))), groups)
    };
    if target.experts.is_some() {
        return vec![few(1)];
    }
    let mut many = draft(Shader::ProductMany, None, Groups::Many(part.n_rows.div_ceil(64) as u32));
    // Its shader asks nobody whose rows they are.
    many.constants.retain(|(name, _)| *name != "IS_EXPERT");
    vec![few(1), few(FEW_INPUTS), many]
}
