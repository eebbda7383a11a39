//! The plain backend: one op after the other, as written, in f64 on decoded weights.
//!
//! It reads like the definition of each op and shares no code with the fast backends, so they are tested against it
//! (`tests/conformance/`). It keeps everything in memory and computes slowly; nothing uses it to serve.

use std::ops::Range;

use crate::backend::{
    Answer, Backend, Batch, DeviceError, DeviceInfo, ImageShape, KvStore, Limits, MemoryUse, Output, Plan, Row,
    Sequence, WantKind,
};
use crate::checks::check_limits;
use crate::graph::{Activation, Graph, KvLayer, Moe, Op, Rope, RopeStyle, Value};
use crate::order;
use crate::tensor::Weight;

/// The backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
    fn describe(&self) -> DeviceInfo {
        DeviceInfo { backend: "reference", name: "plain definitions".to_owned(), ..DeviceInfo::default() }
    }

    fn self_test(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError> {
        check_limits(graph, limits)?;
        let store = Store { limits: limits.clone(), layers: graph.kv_layers().to_vec(), sequences: Vec::new() };
        Ok(Box::new(ReferencePlan { graph: graph.clone(), store }))
    }
}

struct ReferencePlan {
    graph: Graph,
    store: Store,
}

/// Keys and values of each sequence: `[layer][position]`.
struct Store {
    limits: Limits,
    layers: Vec<KvLayer>,
    sequences: Vec<Option<Kept>>,
}

#[derive(Clone, Default)]
struct Kept {
    len: usize,
    reserved: usize,
    layers: Vec<Vec<(Vec<f64>, Vec<f64>)>>,
}

impl Store {
    fn kept(&mut self, sequence: Sequence) -> Option<&mut Kept> {
        self.sequences.get_mut(sequence.0 as usize)?.as_mut()
    }
}

impl KvStore for Store {
    fn open(&mut self) -> Option<Sequence> {
        let free = self.sequences.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.sequences.len());
        if slot >= self.limits.max_sequences {
            return None;
        }
        self.sequences.resize(self.sequences.len().max(slot + 1), None);
        self.sequences[slot] = Some(Kept::default());
        Some(Sequence(slot as u32))
    }

    fn reserve(&mut self, sequence: Sequence, tokens: usize) -> bool {
        let used: usize = self.sequences.iter().flatten().map(|kept| kept.reserved).sum();
        let limit = self.limits.kv_tokens;
        let Some(kept) = self.kept(sequence) else { return false };
        if used - kept.reserved + tokens.max(kept.reserved) > limit {
            return false;
        }
        kept.reserved = kept.reserved.max(tokens);
        true
    }

    fn len(&self, sequence: Sequence) -> usize {
        self.sequences.get(sequence.0 as usize).and_then(Option::as_ref).map_or(0, |kept| kept.len)
    }

    /// Everything is kept.
    fn resumable(&self, sequence: Sequence, tokens: usize) -> usize {
        self.len(sequence).min(tokens)
    }

    fn truncate(&mut self, sequence: Sequence, tokens: usize) -> usize {
        let Some(kept) = self.kept(sequence) else { return 0 };
        kept.len = kept.len.min(tokens);
        kept.reserved = kept.reserved.min(tokens);
        kept.len
    }

    fn fork(&mut self, from: Sequence, tokens: usize) -> Option<Sequence> {
        let source = self.kept(from).filter(|kept| tokens <= kept.len)?.clone();
        let fork = self.open()?;
        *self.kept(fork)? = Kept { len: tokens, reserved: tokens, ..source };
        Some(fork)
    }

    fn close(&mut self, sequence: Sequence) {
        if let Some(kept) = self.sequences.get_mut(sequence.0 as usize) {
            *kept = None;
        }
    }

    fn free_tokens(&self) -> usize {
        let used: usize = self.sequences.iter().flatten().map(|kept| kept.reserved).sum();
        self.limits.kv_tokens.saturating_sub(used)
    }

    /// Of whole texts, be there a window or not.
    fn image(&self) -> ImageShape {
        let floats = |layer: &KvLayer| layer.n_kv_heads * (layer.key_dim + layer.value_dim);
        ImageShape::new(self.layers.iter().map(|layer| (None, floats(layer) * size_of::<f64>())))
    }

    fn read(&self, sequence: Sequence, n_tokens: usize, positions: Range<usize>, out: &mut [u8]) -> bool {
        let Some(kept) = self.sequences.get(sequence.0 as usize).and_then(Option::as_ref) else { return false };
        let is_there = positions.end <= n_tokens && n_tokens <= kept.len;
        if !is_there || out.len() as u64 != self.image().bytes(n_tokens, positions.clone()) {
            return false;
        }
        let floats = positions.flat_map(|position| {
            kept.layers.iter().flat_map(move |layer| layer[position].0.iter().chain(&layer[position].1))
        });
        for (bytes, float) in out.chunks_exact_mut(size_of::<f64>()).zip(floats) {
            bytes.copy_from_slice(&float.to_le_bytes());
        }
        true
    }

    fn append(&mut self, sequence: Sequence, n_tokens: usize, n_positions: usize, bytes: &[u8]) -> bool {
        let (image, layers) = (self.image(), self.layers.clone());
        let Some(kept) = self.kept(sequence) else { return false };
        let end = kept.len.saturating_add(n_positions);
        if end > n_tokens || end > kept.reserved || bytes.len() as u64 != image.bytes(n_tokens, kept.len..end) {
            return false;
        }
        kept.layers.resize(layers.len(), Vec::new());
        let mut floats = bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
        for position in kept.len..end {
            for (cache, layer) in kept.layers.iter_mut().zip(&layers) {
                let mut take = |dim: usize| floats.by_ref().take(layer.n_kv_heads * dim).collect::<Vec<f64>>();
                cache.truncate(position);
                cache.push((take(layer.key_dim), take(layer.value_dim)));
            }
        }
        kept.len = end;
        true
    }
}

impl Plan for ReferencePlan {
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        let mut ends = Vec::with_capacity(batch.rows.len());
        for row in &batch.rows {
            ends.push(self.run_row(row)?);
        }
        out.results = batch.want.iter().map(|want| answer(want.kind, &ends[want.row])).collect();
        Ok(())
    }

    fn kv(&mut self) -> &mut dyn KvStore {
        &mut self.store
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }
}

impl ReferencePlan {
    /// One token through all ops; what they end in.
    fn run_row(&mut self, row: &Row) -> Result<End, DeviceError> {
        let Self { graph, store } = self;
        let kv_layers = graph.kv_layers().to_vec();
        let kept = store.kept(row.sequence).filter(|kept| row.position == kept.len && row.position < kept.reserved);
        let kept = kept.ok_or_else(|| DeviceError::Refused("the position is not the next reserved one".to_owned()))?;
        kept.layers.resize(kv_layers.len(), Vec::new());
        let mut values: Vec<Vec<f64>> = graph.widths().iter().map(|&width| vec![0.0; width]).collect();
        let mut end = End::default();
        for op in graph.ops() {
            let get = |value: &Value| &values[value.0];
            match op {
                Op::Embed { table, scale, out } => {
                    let row = decode_row(table, row.token as usize);
                    values[out.0] = row.iter().map(|x| x * f64::from(*scale)).collect();
                }
                Op::Norm { x, weight, eps, out } => {
                    let weight = decode_row(weight, 0);
                    let groups = get(x).chunks_exact(weight.len());
                    values[out.0] = groups.flat_map(|x| rms_norm(x, &weight, f64::from(*eps))).collect();
                }
                Op::Linear { x, weight, bias, out } => values[out.0] = linear(get(x), weight, bias.as_ref()),
                Op::Rope { x, head_dim, rope, out } => {
                    let heads = get(x).chunks_exact(*head_dim);
                    values[out.0] = heads.flat_map(|head| rotate(head, rope, row.position)).collect();
                }
                Op::Attention { q, k, v, layer, n_heads, scale, softcap, out } => {
                    let cache = &mut kept.layers[*layer];
                    cache.truncate(row.position);
                    cache.push((get(k).clone(), get(v).clone()));
                    let softcap = softcap.map(f64::from);
                    values[out.0] = attention(get(q), cache, &kv_layers[*layer], *n_heads, f64::from(*scale), softcap);
                }
                Op::Glu { gate, up, activation, out } => {
                    let pairs = get(gate).iter().zip(get(up));
                    values[out.0] = pairs.map(|(gate, up)| activate(*activation, *gate) * up).collect();
                }
                Op::Moe { x, moe, out } => values[out.0] = experts(get(x), moe),
                Op::Add { a, b, out } => values[out.0] = get(a).iter().zip(get(b)).map(|(a, b)| a + b).collect(),
                Op::Scale { x, factor, out } => values[out.0] = get(x).iter().map(|x| x * f64::from(*factor)).collect(),
                Op::Head { x, weight, bias, scale, softcap } => {
                    end = End { hidden: get(x).clone(), logits: linear(get(x), weight, bias.as_ref()) };
                    for logit in &mut end.logits {
                        *logit *= f64::from(*scale);
                        if let Some(cap) = softcap.map(f64::from) {
                            *logit = cap * (*logit / cap).tanh();
                        }
                    }
                }
            }
        }
        kept.len += 1;
        Ok(end)
    }
}

fn decode_row(weight: &Weight, row: usize) -> Vec<f64> {
    let mut values = vec![0.0_f32; weight.cols()];
    order::decode_row(&weight.view(), row, &mut values).expect("a weight's rows are whole blocks");
    values.into_iter().map(f64::from).collect()
}

fn linear(x: &[f64], weight: &Weight, bias: Option<&Weight>) -> Vec<f64> {
    let bias = bias.map(|bias| decode_row(bias, 0));
    let row = |row: usize| {
        let product: f64 = decode_row(weight, row).iter().zip(x).map(|(w, x)| w * x).sum();
        product + bias.as_ref().map_or(0.0, |bias| bias[row])
    };
    (0..weight.rows()).map(row).collect()
}

fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
}

fn rotate(head: &[f64], rope: &Rope, position: usize) -> Vec<f64> {
    let mut out = head.to_vec();
    let n_pairs = rope.frequencies.len();
    for (pair, frequency) in rope.frequencies.iter().enumerate() {
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        let magnitude = f64::from(rope.magnitude);
        let (first, second) = match rope.style {
            RopeStyle::Normal => (2 * pair, 2 * pair + 1),
            RopeStyle::HalfSplit => (pair, pair + n_pairs),
        };
        out[first] = magnitude * (head[first] * cos - head[second] * sin);
        out[second] = magnitude * (head[first] * sin + head[second] * cos);
    }
    out
}

fn attention(
    q: &[f64],
    cache: &[(Vec<f64>, Vec<f64>)],
    layer: &KvLayer,
    n_heads: usize,
    scale: f64,
    softcap: Option<f64>,
) -> Vec<f64> {
    let (group, position) = (n_heads / layer.n_kv_heads, cache.len() - 1);
    let first = layer.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let head = |head: usize| {
        let q = &q[head * layer.key_dim..][..layer.key_dim];
        let kv_head = head / group;
        let score = |(key, _): &(Vec<f64>, Vec<f64>)| {
            let key = &key[kv_head * layer.key_dim..][..layer.key_dim];
            let score = q.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() * scale;
            softcap.map_or(score, |cap| cap * (score / cap).tanh())
        };
        let scores: Vec<f64> = cache[first..].iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut out = vec![0.0; layer.value_dim];
        for (weight, (_, value)) in weights.iter().zip(&cache[first..]) {
            for (out, value) in out.iter_mut().zip(&value[kv_head * layer.value_dim..]) {
                *out += weight / sum * value;
            }
        }
        out
    };
    (0..n_heads).flat_map(head).collect()
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

fn experts(x: &[f64], moe: &Moe) -> Vec<f64> {
    let logits = linear(x, &moe.router, None);
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    order.truncate(moe.n_used);
    let over = |all: bool| if all { weights.iter().sum() } else { order.iter().map(|e| weights[*e]).sum::<f64>() };
    let sum = over(!moe.renormalise);
    let (ff, width) = (moe.ff(), x.len());
    let mut out = vec![0.0; width];
    let slice = |weight: &Weight, expert: usize, rows: usize| {
        weight.slice_rows(expert * rows..(expert + 1) * rows).expect("the graph builder checked the experts")
    };
    for expert in order {
        let gate = linear(x, &slice(&moe.gate, expert, ff), None);
        let up = linear(x, &slice(&moe.up, expert, ff), None);
        let hidden: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| activate(moe.activation, *g) * u).collect();
        let down = linear(&hidden, &slice(&moe.down, expert, width), None);
        for (out, down) in out.iter_mut().zip(down) {
            *out += weights[expert] / sum * down;
        }
    }
    out
}

/// What a row ends in.
#[derive(Default)]
struct End {
    hidden: Vec<f64>,
    logits: Vec<f64>,
}

fn answer(kind: WantKind, End { hidden, logits }: &End) -> Answer {
    let narrow = |row: &[f64]| row.iter().map(|number| *number as f32).collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum_exp = max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    match kind {
        WantKind::Greedy => Answer::Greedy(order[0]),
        WantKind::TopK(k) => {
            let best = order.iter().take(k).map(|&id| (id, logits[id as usize] as f32)).collect();
            Answer::TopK { best, log_sum_exp }
        }
        WantKind::Logits => Answer::Logits(narrow(logits)),
        WantKind::Hidden => Answer::Hidden(narrow(hidden)),
        WantKind::Score(id) => Answer::Score { logit: logits[id as usize] as f32, log_sum_exp },
    }
}
