//! What every device with memory of its own is tested for, against the plain definitions and the processor.

use std::sync::Arc;

use farpost_kernels::backend::{
    Activations, Answer, Backend, Batch, DeviceError, Interrupt, KvType, Limits, Output, Placement, Plan, Row,
    Sequence, Want, WantKind,
};
use farpost_kernels::cpu::Cpu;
use farpost_kernels::graph::{Activation, Graph, GraphBuilder, KvLayer, RopeStyle};
use farpost_kernels::placed::{Layers, Placed};
use farpost_kernels::quant;
use farpost_kernels::reference::Reference;
use farpost_kernels::tensor::{DType, Weight};

use crate::drive::{error, limits, results};
use crate::models::{FAMILIES, Family, N_LAYERS, Random, Shape, VOCABULARY, model, rope, shape};

/// Sums in another order and functions of the device: of squared errors over squares.
pub const EXACT: f64 = 1e-9;

/// A device, and how exact it is with coded weights.
pub struct Subject {
    pub device: Arc<dyn Backend>,
    pub coded: f64,
}

impl Subject {
    fn bound(&self, dtype: DType) -> f64 {
        if dtype.is_quantized() { self.coded } else { EXACT }
    }
}

pub fn check(device: &dyn Backend, shape: Shape, kv_type: KvType, bound: f64) {
    let (graph, limits) = (model(shape, 5), limits(kv_type, 1, Activations::Auto));
    let expected = results(&Reference, &graph, &limits);
    let found = results(device, &graph, &limits);
    let error = error(&expected, &found);
    println!("{shape:?} {kv_type:?}: error {error:.1e}");
    assert!(error <= bound, "{shape:?} {kv_type:?}: error {error:.2e}, bound {bound:e}");
}

pub fn every_family_computes_what_its_ops_say(subject: &Subject) {
    let device = &*subject.device;
    for family in FAMILIES {
        check(device, shape(DType::F32, family), KvType::F32, EXACT);
        let odd = Shape { width: 75, n_heads: 3, n_kv_heads: 3, head_dim: 20, ff: 37, ..shape(DType::F32, family) };
        check(device, odd, KvType::F32, EXACT);
    }
}

pub fn layers_on_two_devices_are_those_of_one(subject: &Subject) {
    let device = &subject.device;
    let place = |layers| Placed::new(Arc::clone(device), Arc::new(Cpu::detect()), layers);
    // The first layer with a window or the last one on the processor, or all but one.
    for (family, n_layers) in [(Family::Gemma, 1), (Family::Gemma, 2), (Family::Moe, 1), (Family::Llama, 9)] {
        let (graph, limits) = (model(shape(DType::F32, family), 5), limits(KvType::F32, 1, Activations::Auto));
        let placed = place(Layers::Last(n_layers));
        let plan = placed.compile(&graph, &limits).unwrap();
        let expected = (n_layers < N_LAYERS).then_some(Placement { n_layers, of: N_LAYERS });
        assert_eq!(plan.placement(), expected);
        let error = error(&results(&Reference, &graph, &limits), &results(&placed, &graph, &limits));
        assert!(error <= EXACT, "{family:?} {n_layers}: error {error:.2e}");
    }
    // What is kept can be taken to another device, and on.
    let graph = model(shape(DType::F32, Family::Gemma), 5);
    let limits = limits(KvType::F16, 1, Activations::Auto);
    let (cpu, two) = (Cpu::detect(), place(Layers::Last(2)));
    let mut images = Vec::new();
    for backend in [&cpu as &dyn Backend, &two] {
        let mut plan = backend.compile(&graph, &limits).unwrap();
        let sequence = plan.kv().open().unwrap();
        assert!(plan.kv().reserve(sequence, 20));
        plan.step(&batch(sequence, 0..19, WantKind::Greedy), &mut Output::default()).unwrap();
        let mut bytes = vec![0; plan.kv().image().bytes(19, 0..19) as usize];
        assert!(plan.kv().read(sequence, 19, 0..19, &mut bytes));
        let second = plan.kv().open().unwrap();
        assert!(plan.kv().reserve(second, 20) && plan.kv().append(second, 19, 19, &bytes));
        let mut again = vec![0; bytes.len()];
        assert!(plan.kv().read(second, 19, 0..19, &mut again));
        assert!(bytes == again);
        images.push(bytes);
    }
    assert_eq!(images[0].len(), images[1].len());
    // Halves, of numbers that differ in their last bits.
    let halves = |bytes: &[u8]| -> Vec<Vec<f32>> {
        vec![bytes.as_chunks::<2>().0.iter().map(|half| half::f16::from_le_bytes(*half).to_f32()).collect()]
    };
    let error = error(&halves(&images[0]), &halves(&images[1]));
    assert!(error <= 1e-6, "error {error:.2e}");
}

pub fn long_contexts_are_attended_to_in_parts(subject: &Subject) {
    let device = &*subject.device;
    let sizes = Limits { max_rows: 600, max_sequences: 2, max_windows: 2, kv_tokens: 1400, ..Limits::default() };
    let limits = Limits { kv_type: KvType::F32, ..sizes };
    // With a window and without; three heads of twenty elements; more than one tile for each of some parts.
    for family in [Family::Gemma, Family::Parallel] {
        let small = Shape { width: 60, n_heads: 3, n_kv_heads: 3, head_dim: 20, ff: 32, ..shape(DType::F32, family) };
        let graph = model(small, 5);
        let run = |backend: &dyn Backend| {
            let mut plan = backend.compile(&graph, &limits).unwrap();
            let (first, second) = (plan.kv().open().unwrap(), plan.kv().open().unwrap());
            assert!(plan.kv().reserve(first, 630) && plan.kv().reserve(second, 2));
            let mut output = Output::default();
            plan.step(&batch(first, 0..511, WantKind::Greedy), &mut output).unwrap();
            let mut rows = Vec::new();
            // One row with 512 keys, some with more, then with rows of a sequence that is short.
            for positions in [511..512, 512..515, 515..620] {
                plan.step(&batch(first, positions, WantKind::Logits), &mut output).unwrap();
                rows.extend(output.results.drain(..).map(logits));
            }
            let mut mixed = batch(first, 620..621, WantKind::Logits);
            let short = batch(second, 0..2, WantKind::Logits);
            mixed.rows.extend(short.rows);
            mixed.want.extend((1..3).map(|row| Want { row, kind: WantKind::Logits }));
            plan.step(&mixed, &mut output).unwrap();
            rows.extend(output.results.drain(..).map(logits));
            rows
        };
        let error = error(&run(&Reference), &run(device));
        assert!(error <= EXACT, "{family:?}: error {error:.2e}");
    }
}

pub fn what_neighbours_share_is_left_alone(subject: &Subject) {
    let device = &*subject.device;
    let mut random = Random(3);
    let mut graph = GraphBuilder::new();
    let mut weight = |rows: usize, cols: usize| random.weight(DType::F32, rows, cols);
    let x = graph.embed(weight(VOCABULARY, 64), 1.0);
    // Queries are keys too, after a rotation; values are added to something; the gate is both sides of its unit.
    let q = graph.linear(x, weight(64, 64), None).unwrap();
    let q = graph.rope(q, 32, &rope(RopeStyle::HalfSplit, 12, 1.0)).unwrap();
    let v = graph.linear(x, weight(64, 64), None).unwrap();
    let kv = KvLayer { n_kv_heads: 2, key_dim: 32, value_dim: 32, window: None };
    let attended = graph.attention((q, q, v), kv, 2, 0.2, None).unwrap();
    let x = graph.add(attended, v).unwrap();
    let gate = graph.linear(x, weight(96, 64), None).unwrap();
    let unit = graph.glu(gate, gate, Activation::GeluTanh).unwrap();
    let x = graph.linear(unit, weight(64, 96), None).unwrap();
    let head = weight(31, 64);
    let graph = graph.head(x, head, None, 1.0, None, 100).unwrap();
    let steps = [1, 2, 9, 37, 5, 1];
    let error = error(&all_logits(&Reference, &graph, &steps), &all_logits(device, &graph, &steps));
    // Keys and values are halves.
    assert!(error <= 1e-5, "error {error:.2e}");
}

pub fn caches_of_every_type_are_as_exact_as_on_the_processor(subject: &Subject) {
    let device = &*subject.device;
    for family in [Family::Llama, Family::Gemma] {
        check(device, shape(DType::F32, family), KvType::F16, 1e-5);
        check(device, shape(DType::F32, family), KvType::Q8_0, 1e-3);
        // The same bytes are kept, whichever device computes.
        let graph = model(shape(DType::F32, family), 5);
        for kv_type in [KvType::F16, KvType::Q8_0] {
            let limits = limits(kv_type, 1, Activations::Auto);
            let (expected, found) = (results(&Cpu::detect(), &graph, &limits), results(device, &graph, &limits));
            let error = error(&expected, &found);
            println!("{family:?} {kv_type:?} against the processor: error {error:.1e}");
            assert!(error <= 1e-6, "{family:?} {kv_type:?}: error {error:.2e}");
        }
    }
}

pub fn every_weight_type_that_can_be_written_is_exact(subject: &Subject) {
    let device = &*subject.device;
    for dtype in DType::all().filter(|dtype| quant::can_encode(*dtype)) {
        let len = dtype.block_len();
        let family = if len == 32 { Family::Moe } else { Family::Llama };
        let (width, head_dim, ff) = (len.max(96), if len > 32 { 64 } else { 32 }, len.max(160));
        let n_heads = width / head_dim;
        let n_kv_heads = if n_heads.is_multiple_of(2) { n_heads / 2 } else { n_heads };
        check(
            device,
            Shape { dtype, width, n_heads, n_kv_heads, head_dim, ff, family },
            KvType::F32,
            subject.bound(dtype),
        );
    }
}

/// Blocks of any bits, but that scales stay in the middle of their range.
fn blocks(random: &mut Random, dtype: DType, rows: usize, cols: usize) -> Weight {
    let n_bytes = rows * dtype.row_bytes(cols).unwrap();
    if !dtype.is_quantized() {
        return random.weight(dtype, rows, cols);
    }
    let mut byte = || (random.value().abs() * 255.0) as u8 & 0xBF | 0x20;
    let mut bytes: Vec<u8> = (0..n_bytes).map(|_| byte()).collect();
    if dtype == DType::MXFP4 {
        // Their scales are exponents alone: all from an eighth to one.
        bytes.chunks_exact_mut(dtype.block_bytes()).for_each(|block| block[0] = 0x7C | block[0] & 3);
    }
    Weight::new(dtype.name(), dtype, rows, cols, bytes.into()).unwrap()
}

/// Rows of a table, a product, the head; no step is like another in its number of rows.
fn products(dtype: DType, rows: usize, n_blocks: usize) -> Graph {
    let mut random = Random(77);
    let cols = n_blocks * dtype.block_len();
    let mut graph = GraphBuilder::new();
    let x = graph.embed(blocks(&mut random, dtype, VOCABULARY, cols), 1.0);
    let x = graph.norm(x, random.vector(cols, 1.0), 1e-5).unwrap();
    let x = graph.linear(x, blocks(&mut random, dtype, rows, cols), Some(random.vector(rows, 0.0))).unwrap();
    graph.head(x, random.weight(DType::F32, 31, rows), None, 1.0, None, 100).unwrap()
}

fn all_logits(backend: &dyn Backend, graph: &Graph, steps: &[usize]) -> Vec<Vec<f32>> {
    let limits = Limits { max_rows: 64, kv_tokens: 200, ..Limits::default() };
    let mut plan = backend.compile(graph, &limits).unwrap();
    let sequence = plan.kv().open().unwrap();
    let (mut output, mut all) = (Output::default(), Vec::new());
    for &n_rows in steps {
        let from = plan.kv().len(sequence);
        assert!(plan.kv().reserve(sequence, from + n_rows));
        let row = |place: usize| Row { token: ((from + place) * 5 % 31) as u32, position: from + place, sequence };
        let want = (0..n_rows).map(|row| Want { row, kind: WantKind::Logits }).collect();
        plan.step(&Batch { rows: (0..n_rows).map(row).collect(), want, interrupt: None }, &mut output).unwrap();
        all.extend(output.results.drain(..).map(|answer| match answer {
            Answer::Logits(row) => row,
            other => panic!("{other:?}"),
        }));
    }
    all
}

pub fn products_of_every_type_are_exact_whatever_the_rows(subject: &Subject) {
    let device = &*subject.device;
    for dtype in DType::all() {
        // Blocks of plain numbers are one of them: odd widths, shorter and longer than a unit of 32.
        let n_blocks = if dtype.is_quantized() { [1, 3] } else { [3, 77] };
        for (rows, n_blocks) in [5, 130].into_iter().zip(n_blocks) {
            let graph = products(dtype, rows, n_blocks);
            let steps = [1, 2, 9, 37, 5, 1];
            let (expected, found) = (all_logits(&Reference, &graph, &steps), all_logits(device, &graph, &steps));
            let error = error(&expected, &found);
            assert!(error <= subject.bound(dtype), "{dtype}, {rows} rows of {n_blocks} blocks: error {error:.2e}");
        }
    }
}

pub fn logits(answer: Answer) -> Vec<f32> {
    match answer {
        Answer::Logits(row) | Answer::Hidden(row) => row,
        other => panic!("{other:?}"),
    }
}

/// Positions of one sequence, with a result of each.
pub fn batch(sequence: Sequence, positions: std::ops::Range<usize>, kind: WantKind) -> Batch {
    let rows: Vec<Row> =
        positions.map(|position| Row { token: (position * 7 % 199) as u32, position, sequence }).collect();
    let want = (0..rows.len()).map(|row| Want { row, kind }).collect();
    Batch { rows, want, interrupt: None }
}

fn opened(device: &dyn Backend, family: Family, kv_type: KvType) -> (Box<dyn Plan>, Sequence) {
    let graph = model(shape(DType::F32, family), 5);
    let mut plan = device.compile(&graph, &limits(kv_type, 1, Activations::Auto)).unwrap();
    let sequence = plan.kv().open().unwrap();
    (plan, sequence)
}

pub fn every_kind_of_result_is_what_the_logits_say(subject: &Subject) {
    let device = &*subject.device;
    let (mut plan, sequence) = opened(device, Family::Gemma, KvType::F32);
    assert!(plan.kv().reserve(sequence, 9));
    let mut output = Output::default();
    plan.step(&batch(sequence, 0..9, WantKind::Logits), &mut output).unwrap();
    let rows: Vec<Vec<f32>> = output.results.into_iter().map(logits).collect();
    assert_eq!(plan.kv().truncate(sequence, 0), 0);
    assert!(plan.kv().reserve(sequence, 9));
    // Of the last row twice, in whatever order.
    let mut mixed = batch(sequence, 0..9, WantKind::Greedy);
    mixed.want[1].kind = WantKind::TopK(5);
    mixed.want[2].kind = WantKind::Score(17);
    mixed.want[3].kind = WantKind::Logits;
    mixed.want[4].kind = WantKind::Hidden;
    mixed.want[7] = Want { row: 8, kind: WantKind::Greedy };
    mixed.want[5] = Want { row: 0, kind: WantKind::TopK(1) };
    let mut output = Output::default();
    plan.step(&mixed, &mut output).unwrap();
    let is_near = |a: f64, b: f64| (a - b).abs() < 1e-4;
    for (want, answer) in mixed.want.iter().zip(&output.results) {
        let row = &rows[want.row];
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        let sum = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        match (want.kind, answer) {
            (WantKind::Greedy, Answer::Greedy(id)) => assert_eq!(*id as usize, order[0]),
            (WantKind::TopK(k), Answer::TopK { best, log_sum_exp }) => {
                let ids: Vec<usize> = best.iter().map(|(id, _)| *id as usize).collect();
                assert!(ids == order[..k] && is_near(*log_sum_exp, sum), "{best:?}");
            }
            (WantKind::Score(token), Answer::Score { logit, log_sum_exp }) => {
                assert!(is_near((*logit).into(), row[token as usize].into()) && is_near(*log_sum_exp, sum));
            }
            (WantKind::Logits, Answer::Logits(found)) => {
                assert!(row.iter().zip(found).all(|(a, b)| is_near((*a).into(), (*b).into())));
            }
            (WantKind::Hidden, Answer::Hidden(found)) => assert_eq!(found.len(), 96),
            other => panic!("{other:?}"),
        }
    }
}

pub fn positions_that_were_read_and_appended_go_on_as_before(subject: &Subject) {
    let device = &*subject.device;
    for kv_type in [KvType::F16, KvType::Q8_0, KvType::F32] {
        let (mut plan, first) = opened(device, Family::Gemma, kv_type);
        let mut output = Output::default();
        assert!(plan.kv().reserve(first, 22));
        plan.step(&batch(first, 0..21, WantKind::Greedy), &mut output).unwrap();
        // Windows begin in the midst of a page, and pieces do too.
        let image = plan.kv().image();
        let mut bytes = vec![0; image.bytes(21, 0..21) as usize];
        let (begun, rest) = bytes.split_at_mut(image.bytes(21, 0..13) as usize);
        assert!(plan.kv().read(first, 21, 0..13, begun) && plan.kv().read(first, 21, 13..21, rest));
        let second = plan.kv().open().unwrap();
        assert!(plan.kv().reserve(second, 22));
        let (begun, rest) = bytes.split_at(image.bytes(21, 0..10) as usize);
        assert!(plan.kv().append(second, 21, 10, begun) && plan.kv().append(second, 21, 11, rest));
        assert_eq!(plan.kv().len(second), 21);
        let mut again = vec![0; bytes.len()];
        assert!(plan.kv().read(second, 21, 0..21, &mut again));
        assert!(again == bytes, "{kv_type:?}");
        let mut rows = Vec::new();
        for sequence in [first, second] {
            plan.step(&batch(sequence, 21..22, WantKind::Logits), &mut output).unwrap();
            rows.push(output.results.drain(..).map(logits).collect::<Vec<_>>());
        }
        assert_eq!(rows[0], rows[1], "{kv_type:?}");
        assert!(!plan.kv().read(first, 22, 0..3, &mut again), "no such length");
        assert!(!plan.kv().append(second, 30, 1, &again), "neither");
    }
}

pub fn sessions_go_from_the_processor_to_another_device(subject: &Subject) {
    let device = &*subject.device;
    for kv_type in [KvType::F16, KvType::Q8_0] {
        let graph = model(shape(DType::F32, Family::Gemma), 5);
        let limits = limits(kv_type, 1, Activations::Auto);
        let mut rows = Vec::new();
        let mut bytes = Vec::new();
        for backend in [&Cpu::detect() as &dyn Backend, device] {
            let mut plan = backend.compile(&graph, &limits).unwrap();
            let sequence = plan.kv().open().unwrap();
            let mut output = Output::default();
            assert!(plan.kv().reserve(sequence, 20));
            let n_bytes = plan.kv().image().bytes(19, 0..19) as usize;
            if bytes.is_empty() {
                plan.step(&batch(sequence, 0..19, WantKind::Greedy), &mut output).unwrap();
                bytes.resize(n_bytes, 0);
                assert!(plan.kv().read(sequence, 19, 0..19, &mut bytes));
            } else {
                assert_eq!(n_bytes, bytes.len());
                assert!(plan.kv().append(sequence, 19, 19, &bytes));
            }
            plan.step(&batch(sequence, 19..20, WantKind::Logits), &mut output).unwrap();
            rows.push(output.results.drain(..).map(logits).collect::<Vec<_>>());
        }
        let error = error(&rows[0], &rows[1]);
        assert!(error <= 1e-6, "{kv_type:?}: {error:.1e}");
    }
}

pub fn what_breaks_the_contract_is_refused_and_counts_nothing(subject: &Subject) {
    let device = &*subject.device;
    let (mut plan, sequence) = opened(device, Family::Llama, KvType::F16);
    let mut output = Output::default();
    assert!(plan.kv().reserve(sequence, 8));
    for (batch, expected) in [
        (batch(sequence, 1..2, WantKind::Greedy), "row 0: position 1, expected 0 in its sequence"),
        (batch(Sequence(3), 0..1, WantKind::Greedy), "row 0: sequence 3 is not open"),
        (batch(sequence, 0..9, WantKind::Greedy), "sequence 0: 9 positions are not reserved"),
        (batch(sequence, 0..1, WantKind::TopK(0)), "result 0: the best 0 of 203, expected 1 to all"),
    ] {
        assert_eq!(
            plan.step(&batch, &mut output).err().map(|error| error.to_string()),
            Some(format!("refused: {expected}"))
        );
    }
    let interrupt = Interrupt::default();
    interrupt.set();
    let ending = Batch { interrupt: Some(interrupt), ..batch(sequence, 0..3, WantKind::Greedy) };
    assert_eq!(plan.step(&ending, &mut output), Err(DeviceError::Interrupted));
    assert_eq!(plan.kv().len(sequence), 0);
    plan.step(&batch(sequence, 0..3, WantKind::Greedy), &mut output).unwrap();
    assert_eq!(plan.kv().len(sequence), 3);
}

pub fn logits_that_are_no_numbers_are_an_error(subject: &Subject) {
    let device = &*subject.device;
    for bad in [f32::NAN, f32::INFINITY] {
        let mut graph = GraphBuilder::new();
        let mut table = vec![0.5; 8 * 32];
        table[3 * 32 + 7] = bad;
        let x = graph.embed(Weight::from_f32("table", 8, 32, &table).unwrap(), 1.0);
        let head = Weight::from_f32("head", 9, 32, &[0.25; 9 * 32]).unwrap();
        let graph = graph.head(x, head, None, 1.0, Some(5.0), 10).unwrap();
        let mut plan = device.compile(&graph, &Limits { max_rows: 4, kv_tokens: 8, ..Limits::default() }).unwrap();
        for kind in [WantKind::Greedy, WantKind::TopK(2), WantKind::Score(1), WantKind::Logits, WantKind::Hidden] {
            let sequence = plan.kv().open().unwrap();
            assert!(plan.kv().reserve(sequence, 2));
            let row = |position: usize, token| Row { token, position, sequence };
            let mut batch = batch(sequence, 0..2, kind);
            batch.rows = vec![row(0, 2), row(1, 3)];
            let mut output = Output::default();
            let error = plan.step(&batch, &mut output).err();
            assert!(matches!(&error, Some(DeviceError::Wrong(_))), "{bad} {kind:?}: {error:?}, {output:?}");
            batch.rows.truncate(1);
            batch.want.truncate(1);
            plan.step(&batch, &mut output).unwrap();
            plan.kv().close(sequence);
        }
    }
}

pub fn too_much_memory_is_an_error(subject: &Subject) {
    let device = &*subject.device;
    let graph = model(shape(DType::F32, Family::Llama), 5);
    let limits = limits(KvType::F32, 1, Activations::Auto);
    let capped = Limits { memory_cap: Some(1000), ..limits.clone() };
    let error = device.compile(&graph, &capped).err();
    assert!(matches!(error, Some(DeviceError::OutOfMemory { what: "scratch", .. })), "{error:?}");
    let huge = Limits { kv_tokens: 1 << 30, ..limits };
    let error = device.compile(&graph, &huge).err();
    assert!(matches!(error, Some(DeviceError::OutOfMemory { .. } | DeviceError::Refused(_))), "{error:?}");
    device.self_test().unwrap();
}
