//! From a graph and limits to a plan: everything is checked, counted against the cap and then allocated.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use crossbeam_utils::CachePadded;

use super::activations;
use super::arena::Layout;
use super::attend::{max_partials, span_rows};
use super::head::RowsOut;
use super::linear::{OWN_INPUT_ROWS, results_len};
use super::lower::lower;
use super::moe::{MoeInputs, MoeRoom};
use super::stage::{Part, Stage, Stages};
use super::step::{Bounds, Step};
use super::{Compiled, Core, CpuPlan, InputNumbers, Local, Queries, StageInputs};
use crate::backend::{DeviceError, Limits, Plan};
use crate::checks::{self, check_limits};
use crate::cpu::attention::{self, partial_len};
use crate::cpu::isa::Isa;
use crate::cpu::kv::KvCache;
use crate::cpu::linear::{Input, InputKind, Scratch};
use crate::cpu::memory::{Block, room, zeros};
use crate::cpu::pool::Team;
use crate::graph::{Graph, KvLayer, Moe, Op};
use crate::order::Order;
use crate::tensor::Weight;

/// Kind, rows and columns of an input.
type Shape = (InputKind, usize, usize);

/// Inputs that stages share, found by what they hold.
struct Inputs {
    /// Whether rows are rounded finely.
    is_fine: bool,
    shapes: Vec<Shape>,
}

impl Inputs {
    fn number(&mut self, shape: Shape) -> usize {
        self.shapes.iter().position(|known| *known == shape).unwrap_or_else(|| {
            self.shapes.push(shape);
            self.shapes.len() - 1
        })
    }

    /// The inputs that products with `weights` read, `rows` rows of them.
    fn for_weights<'w>(&mut self, weights: impl Iterator<Item = &'w Weight>, rows: usize) -> InputNumbers {
        let mut numbers = [None; 3];
        for weight in weights {
            let kind = activations::kind(weight.dtype(), self.is_fine);
            numbers[kind as usize] = Some(self.number((kind, rows, weight.cols())));
        }
        numbers
    }

    /// Rows of the copies that workers have for themselves.
    fn own(shape: &Shape) -> Shape {
        (shape.0, OWN_INPUT_ROWS.min(shape.1), shape.2)
    }
}

fn make_input(isa: Isa, (kind, rows, cols): Shape) -> Result<Input, DeviceError> {
    Input::try_new(isa, kind, rows, cols)
}

/// Sizes of everything that is not a value or the cache.
struct Sizes {
    max_cols: usize,
    max_width: usize,
    results: usize,
    /// Floats of one worker's running softmax.
    own_partials: usize,
    /// Floats of parts that are merged.
    partials: usize,
    angles: usize,
    /// Queries of a chunk of attention, and elements of the longest head.
    max_queries: usize,
    max_head: usize,
}

impl Sizes {
    fn new(isa: Isa, graph: &Graph, stages: &Stages, max_rows: usize, n_workers: usize) -> Self {
        let max_cols = graph.weights().map(Weight::cols).max().unwrap_or(0);
        let mut sizes = Self {
            max_cols,
            max_width: graph.widths().iter().copied().max().unwrap_or(0),
            results: 2 * results_len(isa, max_rows),
            own_partials: 0,
            partials: 0,
            max_queries: 0,
            max_head: 0,
            angles: stages.ropes.iter().map(|rope| 2 * rope.frequencies.len() * max_rows).sum(),
        };
        for (group, layer) in groups(graph) {
            let (partial, n_queries) = (partial_len(layer.value_dim), group * span_rows(largest_group(graph)));
            sizes.max_queries = sizes.max_queries.max(n_queries);
            sizes.max_head = sizes.max_head.max(layer.key_dim).max(layer.value_dim);
            sizes.own_partials = sizes.own_partials.max(n_queries * partial);
            sizes.partials = sizes.partials.max(partial * max_partials(layer, group, max_rows, n_workers));
        }
        sizes
    }

    /// What one worker works in.
    fn local(&self, isa: Isa, inputs: &Inputs) -> Result<Local, DeviceError> {
        Ok(Local {
            scratch: Scratch::try_new(isa, self.max_cols)?,
            inputs: inputs.shapes.iter().map(|shape| make_input(isa, Inputs::own(shape))).collect::<Result<_, _>>()?,
            results: zeros(self.results)?,
            row: zeros(self.max_width)?,
            queries: Queries(room(self.max_queries)?),
            attention: attention::Scratch::try_new(self.max_queries, self.max_head)?,
            partials: zeros(self.own_partials)?,
            reductions: Vec::new(),
        })
    }

    fn local_bytes(&self, isa: Isa, inputs: &Inputs) -> u64 {
        let own = inputs.shapes.iter().map(Inputs::own);
        let floats = self.max_width + self.results + self.own_partials;
        own.map(|(kind, rows, cols)| Input::bytes_for(isa, kind, rows, cols)).sum::<u64>()
            + Scratch::bytes_for(isa, self.max_cols)
            + attention::Scratch::bytes_for(self.max_queries, self.max_head)
            + (floats * size_of::<f32>()) as u64
    }
}

/// Heads per KV head of every attention layer.
fn groups(graph: &Graph) -> impl Iterator<Item = (usize, &KvLayer)> {
    graph.ops().iter().filter_map(|op| match op {
        Op::Attention { layer, n_heads, .. } => {
            let layer = &graph.kv_layers()[*layer];
            Some((n_heads / layer.n_kv_heads, layer))
        }
        _ => None,
    })
}

fn largest_group(graph: &Graph) -> usize {
    groups(graph).map(|(group, _)| group).max().unwrap_or(1)
}

fn expert_layers(stages: &Stages) -> impl Iterator<Item = &Moe> + Clone {
    stages.stages.iter().filter_map(|stage| match stage {
        Stage::Moe(moe) => Some(&*moe.moe),
        _ => None,
    })
}

/// Makes the plan of `graph` within `limits`.
pub(in crate::cpu) fn compile(
    isa: Isa,
    graph: &Graph,
    limits: &Limits,
    n_workers: usize,
) -> Result<Box<dyn Plan>, DeviceError> {
    check_limits(graph, limits)?;
    let max_rows = limits.max_rows;
    let stages = lower(graph);
    let is_fine = activations::are_fine(graph, limits.activations);
    let layout = Layout::new(&stages, graph.widths(), max_rows);
    let sizes = Sizes::new(isa, graph, &stages, max_rows, n_workers);
    let mut inputs = Inputs { is_fine, shapes: Vec::new() };
    let stage_inputs: Vec<StageInputs> =
        stages.stages.iter().map(|stage| inputs_of(stage, &mut inputs, max_rows)).collect();

    let kv_bytes = KvCache::bytes_for(graph.kv_layers(), limits);
    let of_inputs = inputs.shapes.iter().map(|(kind, rows, cols)| Input::bytes_for(isa, *kind, *rows, *cols));
    let of_rest = [
        layout.bytes(),
        MoeRoom::bytes_for(expert_layers(&stages), max_rows),
        Block::<f32>::bytes_for(sizes.partials),
        Block::<f32>::bytes_for(sizes.angles),
        sizes.local_bytes(isa, &inputs).saturating_mul(n_workers as u64),
    ];
    let scratch_bytes = of_inputs.chain(of_rest).fold(0, u64::saturating_add);
    if let Some(cap) = limits.memory_cap {
        for (what, needed_bytes, free_bytes) in
            [("scratch", scratch_bytes, cap), ("keys and values", kv_bytes, cap.saturating_sub(scratch_bytes))]
        {
            if needed_bytes > free_bytes {
                return Err(DeviceError::OutOfMemory { what, needed_bytes, free_bytes: Some(free_bytes) });
            }
        }
    }

    // Threads first: what they take of memory as they start can't be refused in order, what follows can.
    let team = Team::new(n_workers)
        .map_err(|error| DeviceError::NoThreads { threads: n_workers, reason: error.to_string() })?;
    // One part lacks memory: what all of them need is what people can act on.
    let needed_bytes = scratch_bytes.saturating_add(kv_bytes);
    let of_all = move |error| match error {
        DeviceError::OutOfMemory { .. } => {
            DeviceError::OutOfMemory { what: "scratch, keys and values", needed_bytes, free_bytes: None }
        }
        other => other,
    };
    let locals = (0..n_workers).map(|_| sizes.local(isa, &inputs).map(Mutex::new));
    let locals = locals.collect::<Result<_, _>>().map_err(of_all)?;
    let angle_offsets = stages.ropes.iter().scan(0, |next, rope| {
        let offset = *next;
        *next += 2 * rope.frequencies.len() * max_rows;
        Some(offset)
    });
    let core = Core {
        isa,
        n_vocab: graph.n_vocab(),
        width: graph.width(),
        angle_offsets: angle_offsets.collect(),
        angles: Block::try_new(sizes.angles).map_err(of_all)?,
        arena: layout.allocate().map_err(of_all)?,
        inputs: inputs.shapes.iter().map(|shape| make_input(isa, *shape)).collect::<Result<_, _>>().map_err(of_all)?,
        kv: KvCache::try_new(graph.kv_layers(), limits).map_err(of_all)?,
        kv_layers: graph.kv_layers().to_vec(),
        partials: Block::try_new(sizes.partials).map_err(of_all)?,
        moe_room: MoeRoom::try_new(expert_layers(&stages), max_rows).map_err(of_all)?,
        step: Step::try_new(max_rows).map_err(of_all)?,
        rows_out: RowsOut::default(),
        weights_mapped: weight_bytes(graph, |order| order == Order::Rows),
        weights_packed: weight_bytes(graph, |order| order != Order::Rows),
        ropes: stages.ropes,
        stages: stages
            .stages
            .into_iter()
            .zip(stage_inputs)
            .map(|(stage, inputs)| Compiled {
                stage,
                inputs,
                counters: std::array::from_fn(|_| CachePadded::new(AtomicUsize::new(0))),
            })
            .collect(),
    };
    let of_batch = checks::Bounds { max_rows, n_vocab: graph.n_vocab(), max_context: graph.max_context() };
    let bounds = Bounds { of_batch, span_rows: span_rows(largest_group(graph)) };
    Ok(Box::new(CpuPlan { core, bounds, team, locals }))
}

fn inputs_of(stage: &Stage, inputs: &mut Inputs, max_rows: usize) -> StageInputs {
    match stage {
        Stage::Rows(_) | Stage::Attention(_) => StageInputs::None,
        Stage::Linear(linear) => {
            StageInputs::Products(inputs.for_weights(linear.parts.iter().flat_map(Part::weights), max_rows))
        }
        Stage::Moe(stage) => {
            let moe = &stage.moe;
            let n_slots = max_rows * moe.n_used;
            StageInputs::Experts(MoeInputs {
                router: inputs.for_weights(std::iter::once(&moe.router), max_rows),
                up: inputs.for_weights([&moe.gate, &moe.up].into_iter(), n_slots),
                down: inputs.for_weights(std::iter::once(&moe.down), n_slots),
            })
        }
        Stage::Head(head) => StageInputs::Products(inputs.for_weights(std::iter::once(&head.weight), max_rows)),
    }
}

/// Bytes of the weights in some orders, one that is used twice (a tied embedding) counted once.
fn weight_bytes(graph: &Graph, is_counted: impl Fn(Order) -> bool) -> u64 {
    let mut seen = HashSet::new();
    let mut once = |weight: &Weight| seen.insert((weight.bytes().as_slice().as_ptr(), weight.bytes().len()));
    graph
        .weights()
        .filter(|weight| is_counted(weight.order()) && once(weight))
        .map(|weight| weight.bytes().len() as u64)
        .sum()
}
