//! From the works of a graph to kernels with their arguments.

use std::rc::Rc;

use super::cache::Cache;
use super::gpu::Buffer;
use super::rooms::{Angles, Rooms, SPLIT_ROWS};
use super::sources::Module;
use super::stage::{Args, Draft, DraftStage, Form, Inputs};
use super::upload::{Identity, Uploaded, Uploads, identity};
use crate::backend::{DeviceError, KvType};
use crate::device::fuse::{Attention, Heads, Input, Norm, Product, Work};
use crate::device::places::{Places, stride};
use crate::graph::{Activation, Graph, Moe, Op, Rope, RopeStyle, Value};
use crate::tensor::Weight;

/// Longest keys and values, in elements: what blocks have room for.
pub(super) const MAX_HEAD: usize = 1024;

/// Query heads of a block, at most.
const MOST_HEADS: usize = 8;

/// Inputs up to which the kernels for few are taken.
const FEW: u32 = 8;

/// Rows of weights, and inputs, that a block of the kernel for many makes.
const MANY: usize = 64;

/// Matrices that one kernel takes: see `products.cu`.
const MOST_MATRICES: usize = 3;

/// Stages of a plan: the layers, then rows with results brought together, the head, the arg-max.
#[derive(Default)]
pub(super) struct Drafts {
    pub(super) layers: Vec<DraftStage>,
    pub(super) gather: Vec<DraftStage>,
    pub(super) head: Vec<DraftStage>,
    pub(super) arg_max: Vec<DraftStage>,
}

/// Floats of rows.
#[derive(Clone, Copy)]
struct Rows {
    address: u64,
    stride: usize,
}

/// What products write to, and which rows they read.
struct Target {
    outs: Vec<Rows>,
    /// What is added to the product: rows as those of the output.
    other: u64,
    inputs: Inputs,
    gated: Option<Activation>,
    /// Of experts: who is chosen, rows of one, inputs that read the same row.
    experts: Option<(u64, usize, usize)>,
}

/// A value, and the norm that it was taken through.
type Held = (Value, Option<(Identity, u32)>);

fn held(x: &Input<'_>) -> Held {
    (x.value, x.norm.map(|norm| (identity(norm.weight), norm.eps.to_bits())))
}

/// Makes drafts of works.
pub(super) struct Lowering<'a, 'g> {
    pub(super) graph: &'a Graph,
    pub(super) places: &'a Places,
    pub(super) rooms: &'a Rooms,
    pub(super) angles: &'a Angles,
    pub(super) cache: &'a Cache,
    pub(super) uploads: Uploads<'g>,
    pub(super) kv_type: KvType,
    pub(super) page_tokens: usize,
    /// Parts that positions are split into where rows are few.
    pub(super) parts: usize,
    pub(super) is_fine: bool,
    /// What the rooms for inputs hold, of floats and of bytes.
    pub(super) held_floats: Option<Held>,
    pub(super) held_bytes: Option<Held>,
}

/// Rows of a value as a product reads them: where, and how many floats apart.
struct Ready {
    address: u64,
    stride: usize,
}

/// A matrix on the device, and its bias.
type Matrix = (Rc<Uploaded>, Option<Buffer>);

impl Lowering<'_, '_> {
    fn width(&self, value: Value) -> usize {
        self.graph.widths()[value.0]
    }

    fn rows(&self, value: Value) -> Rows {
        let spot = self.places.of_value[value.0];
        Rows { address: self.rooms.places[spot.place].address() + 4 * spot.offset as u64, stride: spot.stride }
    }

    fn step(&self) -> Args {
        Args::default().pointer(self.rooms.step.address())
    }

    fn pointwise(&self, kernel: &'static str, args: Args, blocks: usize) -> Draft {
        let module = Module::Pointwise { is_fine: self.is_fine };
        Draft { module, kernel, threads: 128, args, blocks, inputs_of_block: 1, parts: 1 }
    }

    /// All works.
    pub(super) fn run(&mut self, works: &[Work<'_>]) -> Result<Drafts, DeviceError> {
        let mut drafts = Drafts::default();
        for work in works {
            match work {
                Work::Op(op) => self.op(op, &mut drafts.layers)?,
                Work::Product(product) => self.dense(product, &mut drafts.layers)?,
                Work::NormAndSum { x, norm, other, out } => {
                    let other = self.rows(*other).address;
                    self.norm(*x, norm, other, *out, &mut drafts.layers)?;
                }
                Work::Attention(attention) => self.attention(attention, &mut drafts.layers)?,
                Work::Experts { x, moe, other, out } => self.experts(x, moe, *other, *out, &mut drafts.layers)?,
                Work::Head { x, weight, bias, scale, softcap } => {
                    self.head(x, weight, *bias, (*scale, *softcap), &mut drafts)?;
                }
            }
        }
        Ok(drafts)
    }

    fn op(&mut self, op: &Op, stages: &mut Vec<DraftStage>) -> Result<(), DeviceError> {
        match op {
            Op::Embed { table, scale, out } => {
                let uploaded = self.uploads.matrix(table)?;
                let out = self.rows(*out);
                let args = self.step().pointer(uploaded.codes.address()).pointer(address_of(&uploaded.scales));
                let args = args.pointer(out.address).words([uploaded.cols, uploaded.units(), out.stride]).float(*scale);
                let module = Module::products(&uploaded.layout, self.is_fine);
                let blocks = uploaded.units().div_ceil(64);
                let draft = Draft { module, kernel: "embed", threads: 64, args, blocks, inputs_of_block: 1, parts: 1 };
                stages.push(DraftStage::one(Inputs::Rows, draft));
            }
            Op::Norm { x, weight, eps, out } => {
                let norm = Norm { weight, eps: *eps };
                self.norm(*x, &norm, 0, *out, stages)?;
            }
            Op::Rope { x, head_dim, rope, out } => {
                let (from, to, width) = (self.rows(*x), self.rows(*out), self.width(*x));
                let args = self.step().pointer(from.address).pointer(to.address);
                let args = args.words([*head_dim, width, from.stride, to.stride]);
                let heads = Heads { value: *x, norm: None, rope: Some(rope) };
                let args = self.heads(&heads, args)?;
                // Nothing of it depends on how keys are kept.
                let module = Module::attention(self.kv_type, 1, 1);
                let blocks = width.div_ceil(128);
                let draft = Draft { module, kernel: "rope", threads: 128, args, blocks, inputs_of_block: 1, parts: 1 };
                stages.push(DraftStage::one(Inputs::Rows, draft));
            }
            Op::Glu { gate, up, activation, out } => {
                self.elementwise([*gate, *up, *out], kind(Some(*activation)), 1.0, stages);
            }
            Op::Add { a, b, out } => self.elementwise([*a, *b, *out], 0, 1.0, stages),
            Op::Scale { x, factor, out } => self.elementwise([*x, *x, *out], 3, *factor, stages),
            Op::Linear { .. } | Op::Attention { .. } | Op::Moe { .. } | Op::Head { .. } => {
                return Err(DeviceError::Refused("an op by itself that is always part of a work".to_owned()));
            }
        }
        Ok(())
    }

    /// Arguments of kernels that read rows of floats: see `Rows` in `pointwise.cu`.
    fn rows_args(&self, x: Rows, floats: u64, bytes: u64, width: usize, out_stride: usize, inputs: Inputs) -> Args {
        let args = self.step().pointer(x.address).pointer(floats).pointer(bytes);
        args.words([width, x.stride, out_stride]).word(inputs.word()).aligned()
    }

    fn elementwise(&self, [a, b, out]: [Value; 3], kind: u32, factor: f32, stages: &mut Vec<DraftStage>) {
        let (to, width) = (self.rows(out), self.width(out));
        let draft = self.elementwise_draft(self.rows(a), self.rows(b), to, width, (kind, factor), Inputs::Rows);
        stages.push(DraftStage::one(Inputs::Rows, draft));
    }

    fn elementwise_draft(
        &self,
        a: Rows,
        b: Rows,
        out: Rows,
        width: usize,
        (kind, factor): (u32, f32),
        inputs: Inputs,
    ) -> Draft {
        let args = self.rows_args(a, out.address, 0, width, out.stride, inputs);
        let args = args.pointer(b.address).words([b.stride]).word(kind).float(factor);
        self.pointwise("elementwise", args, width.div_ceil(128))
    }

    fn norm_draft(&mut self, args: Args, norm: &Norm<'_>, other: u64, width: usize) -> Result<Draft, DeviceError> {
        let len = norm.weight.cols();
        let args = args.pointer(self.uploads.vector(norm.weight)?.address()).pointer(other);
        Ok(self.pointwise("row_norm", args.words([len]).float(norm.eps), width / len.max(1)))
    }

    fn norm(
        &mut self,
        x: Value,
        norm: &Norm<'_>,
        other: u64,
        out: Value,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let (from, to, width) = (self.rows(x), self.rows(out), self.width(x));
        let args = self.rows_args(from, to.address, 0, width, to.stride, Inputs::Rows);
        let draft = self.norm_draft(args, norm, other, width)?;
        stages.push(DraftStage::one(Inputs::Rows, draft));
        Ok(())
    }

    /// Brings rows through their norm, as floats, bytes or both.
    fn carry(
        &mut self,
        x: &Input<'_>,
        (floats, bytes): (u64, u64),
        inputs: Inputs,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let (from, width) = (self.rows(x.value), self.width(x.value));
        let args = self.rows_args(from, floats, bytes, width, stride(width), inputs);
        let draft = match &x.norm {
            Some(norm) => self.norm_draft(args, norm, 0, width)?,
            None => self.pointwise("carry", args, width.div_ceil(128)),
        };
        stages.push(DraftStage::one(inputs, draft));
        Ok(())
    }

    /// Makes what products read ready: rows as floats, as bytes, or both.
    fn make_ready(
        &mut self,
        x: &Input<'_>,
        wants_floats: bool,
        wants_bytes: bool,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let key = held(x);
        let makes_floats = wants_floats && x.norm.is_some() && self.held_floats != Some(key);
        let makes_bytes = wants_bytes && self.held_bytes != Some(key);
        if !makes_floats && !makes_bytes {
            return Ok(());
        }
        let floats = if makes_floats { self.rooms.input_floats.address() } else { 0 };
        let bytes = if makes_bytes { self.rooms.input_bytes.address() } else { 0 };
        self.carry(x, (floats, bytes), Inputs::Rows, stages)?;
        if makes_floats {
            self.held_floats = Some(key);
        }
        if makes_bytes {
            self.held_bytes = Some(key);
        }
        Ok(())
    }

    /// Where a product with `weight` finds rows that were made ready.
    fn ready(&self, x: &Input<'_>, weight: &Weight) -> Ready {
        if weight.dtype().is_quantized() {
            return Ready { address: self.rooms.input_bytes.address(), stride: 0 };
        }
        match x.norm {
            Some(_) => Ready { address: self.rooms.input_floats.address(), stride: stride(self.width(x.value)) },
            None => {
                let rows = self.rows(x.value);
                Ready { address: rows.address, stride: rows.stride }
            }
        }
    }

    fn dense(&mut self, product: &Product<'_>, stages: &mut Vec<DraftStage>) -> Result<(), DeviceError> {
        let Product { x, weights, gated, other, outs } = product;
        let is_quantized = weights.iter().any(|(weight, _)| weight.dtype().is_quantized());
        self.make_ready(x, !is_quantized, is_quantized, stages)?;
        let ready = self.ready(x, weights[0].0);
        let target = Target {
            outs: outs.iter().map(|out| self.rows(*out)).collect(),
            other: other.map_or(0, |other| self.rows(other).address),
            inputs: Inputs::Rows,
            gated: *gated,
            experts: None,
        };
        self.product(&ready, weights, &target, stages)
    }

    /// Products of ready rows with weights of one type.
    fn product(
        &mut self,
        x: &Ready,
        weights: &[(&Weight, Option<&Weight>)],
        target: &Target,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let mut matrices = Vec::with_capacity(weights.len());
        for (weight, bias) in weights {
            let bias = bias.map(|bias| self.uploads.vector(bias)).transpose()?;
            matrices.push((self.uploads.matrix(weight)?, bias));
        }
        let args = |outs: &[Rows], gated: Option<Activation>| self.product_args(x, &matrices, outs, target, gated);
        let first = &matrices[0].0;
        let module = Module::products(&first.layout, self.is_fine);
        let is_quantized = weights[0].0.dtype().is_quantized();
        let draft = |kernel, args, blocks, inputs_of_block| {
            let module = module.clone();
            Draft { module, kernel, threads: 128, args, blocks, inputs_of_block, parts: 1 }
        };
        let rows_of = |uploaded: &Uploaded| target.experts.map_or(uploaded.rows, |(_, rows, _)| rows);
        let all_rows: usize = matrices.iter().map(|(uploaded, _)| rows_of(uploaded)).sum();
        // Two rows a warp, four warps a block.
        let few = |kernel, inputs| draft(kernel, args(&target.outs, target.gated), all_rows.div_ceil(8), inputs);
        let gate_blocks = |draft: Draft| match target.gated {
            Some(_) => Draft { blocks: rows_of(first).div_ceil(4), ..draft },
            None => draft,
        };
        let form = |most_inputs, draft: Draft| Form { most_inputs, kernels: vec![gate_blocks(draft)] };
        if target.experts.is_some() {
            // Each input has an expert of its own.
            stages.push(DraftStage::one(target.inputs, gate_blocks(few("product_1", 1))));
            return Ok(());
        }
        let mut forms = vec![form(1, few("product_1", 1))];
        if is_quantized {
            forms.extend([form(2, few("product_2", 2)), form(4, few("product_4", 4))]);
            forms.push(form(FEW, few("product_8", 8)));
        } else {
            forms.push(form(FEW, few("product_4", 4)));
        }
        let tiles = matrices.iter().map(|(uploaded, _)| uploaded.rows.div_ceil(MANY)).sum();
        let many = |outs: &[Rows]| draft("product_many", args(outs, None), tiles, MANY as u32);
        let kernels = match target.gated {
            None => vec![many(&target.outs)],
            Some(activation) => {
                let width = first.rows;
                let [gate, up] = self.gate_rooms(width);
                let unit = self.elementwise_draft(
                    gate,
                    up,
                    target.outs[0],
                    width,
                    (kind(Some(activation)), 1.0),
                    target.inputs,
                );
                vec![many(&[gate, up]), unit]
            }
        };
        forms.push(Form { most_inputs: u32::MAX, kernels });
        stages.push(DraftStage { inputs: target.inputs, forms });
        Ok(())
    }

    /// Rooms for gates and what they are met with, one row of each behind the other.
    fn gate_rooms(&self, width: usize) -> [Rows; 2] {
        let (address, own) = (self.rooms.gates.address(), stride(width));
        [0, own].map(|offset| Rows { address: address + 4 * offset as u64, stride: 2 * own })
    }

    fn product_args(
        &self,
        x: &Ready,
        matrices: &[Matrix],
        outs: &[Rows],
        target: &Target,
        gated: Option<Activation>,
    ) -> Args {
        let (chosen, expert_rows, inputs_per_x) = target.experts.unwrap_or((0, 0, 1));
        let mut args = self.step().pointer(x.address).pointer(chosen).pointer(target.other);
        let all = |of: &dyn Fn(&Matrix) -> u64, mut args: Args| {
            for number in 0..MOST_MATRICES {
                args = args.pointer(matrices.get(number).map_or(0, of));
            }
            args
        };
        args = all(&|(uploaded, _)| uploaded.codes.address(), args);
        args = all(&|(uploaded, _)| address_of(&uploaded.scales), args);
        args = all(&|(_, bias)| address_of(bias), args);
        for number in 0..MOST_MATRICES {
            args = args.pointer(outs.get(number).map_or(0, |out| out.address));
        }
        let rows = |(uploaded, _): &(Rc<Uploaded>, _)| if expert_rows > 0 { expert_rows } else { uploaded.rows };
        let n_out: [usize; MOST_MATRICES] = std::array::from_fn(|number| matrices.get(number).map_or(0, rows));
        let strides: [usize; MOST_MATRICES] =
            std::array::from_fn(|number| outs.get(number).map_or(0, |out| out.stride));
        let first = &matrices[0].0;
        args = args.words(n_out).words(strides).words([first.cols, first.units(), x.stride]);
        args.word(target.inputs.word()).words([expert_rows, inputs_per_x]).word(kind(gated))
    }

    fn rotation(&self, rope: Option<&Rope>) -> Result<[usize; 4], DeviceError> {
        let Some(rope) = rope else { return Ok([0; 4]) };
        let Some(at) = self.angles.at(rope) else {
            return Err(DeviceError::Refused("a rotation that is not of the graph".to_owned()));
        };
        let is_split = usize::from(rope.style == RopeStyle::HalfSplit);
        Ok([rope.frequencies.len(), is_split, at, self.angles.row_floats])
    }

    /// Adds what is done to heads: see `Heads` in `attention.cu`.
    fn heads(&mut self, heads: &Heads<'_>, args: Args) -> Result<Args, DeviceError> {
        let (weight, eps) = match heads.norm {
            Some(norm) => (self.uploads.vector(norm.weight)?.address(), norm.eps),
            None => (0, 0.0),
        };
        Ok(args.pointer(weight).float(eps).words(self.rotation(heads.rope)?).aligned())
    }

    fn attention(&mut self, work: &Attention<'_>, stages: &mut Vec<DraftStage>) -> Result<(), DeviceError> {
        let of = &self.graph.kv_layers()[work.layer];
        let (cache, page_tokens) = (self.cache, self.page_tokens);
        let (planes, pool) = (cache.layer(work.layer), cache.paging.pool_of(work.layer));
        let [q, k, v, out] = [work.q.value, work.k.value, work.v, work.out].map(|value| self.rows(value));
        let (keys, values) = (planes.keys.buffer.address(), planes.values.buffer.address());
        let per_kv_head = work.n_heads / of.n_kv_heads;
        let fits = |heads: &usize| per_kv_head.is_multiple_of(*heads) && heads * of.key_dim.div_ceil(4) <= MAX_HEAD / 4;
        let heads = (1..=MOST_HEADS).rev().find(fits).unwrap_or(1);
        let module = Module::attention(self.kv_type, heads, of.value_dim);
        let draft = |kernel, args, blocks, parts| {
            let module = module.clone();
            Draft { module, kernel, threads: 128, args, blocks, inputs_of_block: 1, parts }
        };

        let args = self.step().pointer(k.address).pointer(v.address).pointer(keys).pointer(values);
        let args = self.heads(&work.k, args)?.words([of.n_kv_heads, page_tokens, pool]);
        let args = args.words([of.key_dim, k.stride, of.value_dim, v.stride]);
        stages.push(DraftStage::one(Inputs::Rows, draft("store", args, (2 * of.n_kv_heads).div_ceil(4), 1)));

        let lanes = of.value_dim.div_ceil(4).next_power_of_two().min(128);
        // Windows longer than any context are none.
        let window = of.window.filter(|window| *window < 1 << 31).unwrap_or(0);
        let partial = self.rooms.partial.address();
        let args = self.step().pointer(q.address).pointer(keys).pointer(values).pointer(out.address).pointer(partial);
        let args = self.heads(&work.q, args)?.words([of.n_kv_heads, per_kv_head, of.key_dim, of.value_dim]);
        let args = args.words([q.stride, out.stride, stride(of.value_dim), page_tokens, pool, window, lanes]);
        let attend = |parts: usize| {
            let args = args.clone().words([parts]).float(work.scale).float(work.softcap.unwrap_or(0.0));
            draft("attention", args, work.n_heads / heads, parts as u32)
        };
        let mut forms = Vec::new();
        if self.parts > 1 {
            let args = self.step().pointer(partial).pointer(out.address).words([work.n_heads, of.value_dim]);
            let args = args.words([stride(of.value_dim), out.stride, self.parts]);
            let kernels = vec![attend(self.parts), draft("merge", args, work.n_heads, 1)];
            forms.push(Form { most_inputs: SPLIT_ROWS as u32, kernels });
        }
        forms.push(Form { most_inputs: u32::MAX, kernels: vec![attend(1)] });
        stages.push(DraftStage { inputs: Inputs::Rows, forms });
        Ok(())
    }

    fn experts(
        &mut self,
        x: &Input<'_>,
        moe: &Moe,
        other: Option<Value>,
        out: Value,
        stages: &mut Vec<DraftStage>,
    ) -> Result<(), DeviceError> {
        let rooms = self.rooms;
        let (ff, width, n_used) = (moe.ff(), moe.router.cols(), moe.n_used);
        let is_quantized = |weight: &Weight| weight.dtype().is_quantized();
        let read = [&moe.router, &moe.gate, &moe.up];
        let (wants_floats, wants_bytes) =
            (read.iter().any(|weight| !is_quantized(weight)), read.iter().any(|weight| is_quantized(weight)));
        self.make_ready(x, wants_floats, wants_bytes, stages)?;
        let rows = |buffer: &Buffer, width: usize| Rows { address: buffer.address(), stride: stride(width) };
        let logits = rows(&rooms.router, moe.n_experts());
        let router = Target { outs: vec![logits], other: 0, inputs: Inputs::Rows, gated: None, experts: None };
        let ready = self.ready(x, &moe.router);
        self.product(&ready, &[(&moe.router, None)], &router, stages)?;

        let args = self.step().pointer(logits.address).pointer(rooms.chosen.address()).pointer(rooms.shares.address());
        let args = args.words([moe.n_experts(), n_used, logits.stride, usize::from(moe.renormalise)]);
        stages.push(DraftStage::one(Inputs::Rows, Draft { threads: 32, ..self.pointwise("route", args, 1) }));

        let slots = Inputs::Slots(n_used as u32);
        let hidden = rows(&rooms.hidden, ff);
        let gated = |outs, gated| {
            let experts = Some((rooms.chosen.address(), ff, n_used));
            Target { outs, other: 0, inputs: slots, gated, experts }
        };
        if moe.gate.dtype() == moe.up.dtype() {
            let ready = self.ready(x, &moe.gate);
            let target = gated(vec![hidden], Some(moe.activation));
            self.product(&ready, &[(&moe.gate, None), (&moe.up, None)], &target, stages)?;
        } else {
            let [gate, up] = self.gate_rooms(ff);
            for (weight, out) in [(&moe.gate, gate), (&moe.up, up)] {
                let ready = self.ready(x, weight);
                self.product(&ready, &[(weight, None)], &gated(vec![out], None), stages)?;
            }
            let unit = self.elementwise_draft(gate, up, hidden, ff, (kind(Some(moe.activation)), 1.0), slots);
            stages.push(DraftStage::one(slots, unit));
        }
        let mut ready = Ready { address: hidden.address, stride: hidden.stride };
        if is_quantized(&moe.down) {
            ready.address = rooms.hidden_bytes.address();
            let args = self.rows_args(hidden, 0, ready.address, ff, hidden.stride, slots);
            stages.push(DraftStage::one(slots, self.pointwise("carry", args, ff.div_ceil(128))));
        }
        let results = rows(&rooms.results, width);
        let experts = Some((rooms.chosen.address(), width, 1));
        let down = Target { outs: vec![results], other: 0, inputs: slots, gated: None, experts };
        self.product(&ready, &[(&moe.down, None)], &down, stages)?;

        let (other, out) = (other.map_or(0, |other| self.rows(other).address), self.rows(out));
        let args = self.step().pointer(results.address).pointer(rooms.shares.address()).pointer(other);
        let args = args.pointer(out.address).words([n_used, width, results.stride, out.stride]);
        stages.push(DraftStage::one(Inputs::Rows, self.pointwise("combine", args, width.div_ceil(128))));
        Ok(())
    }

    fn head(
        &mut self,
        x: &Input<'_>,
        weight: &Weight,
        bias: Option<&Weight>,
        (scale, softcap): (f32, Option<f32>),
        drafts: &mut Drafts,
    ) -> Result<(), DeviceError> {
        let (inputs, rooms) = (Inputs::Wants, self.rooms);
        let (floats, mut bytes) = (rooms.head_floats.address(), 0);
        let mut ready = Ready { address: floats, stride: stride(weight.cols()) };
        if weight.dtype().is_quantized() {
            bytes = rooms.head_bytes.address();
            ready.address = bytes;
        }
        self.carry(x, (floats, bytes), inputs, &mut drafts.gather)?;
        let n_vocab = weight.rows();
        let logits = Rows { address: rooms.logits.address(), stride: stride(n_vocab) };
        let target = Target { outs: vec![logits], other: 0, inputs, gated: None, experts: None };
        self.product(&ready, &[(weight, bias)], &target, &mut drafts.head)?;
        if scale != 1.0 || softcap.is_some() {
            let args = self.step().pointer(logits.address).words([n_vocab, logits.stride]);
            let args = args.float(scale).float(softcap.unwrap_or(0.0));
            drafts.head.push(DraftStage::one(inputs, self.pointwise("finish", args, n_vocab.div_ceil(128))));
        }
        let args = self.step().pointer(logits.address).pointer(rooms.ids.address()).words([n_vocab, logits.stride]);
        let draft = Draft { threads: 256, ..self.pointwise("arg_max", args, 1) };
        drafts.arg_max.push(DraftStage::one(inputs, draft));
        Ok(())
    }
}

fn address_of(buffer: &Option<Buffer>) -> u64 {
    buffer.as_ref().map_or(0, Buffer::address)
}

/// The number of a unit in `activation.cu`; 0 is none.
fn kind(activation: Option<Activation>) -> u32 {
    match activation {
        None => 0,
        Some(Activation::Silu) => 1,
        Some(Activation::GeluTanh) => 2,
    }
}
