//! What only shows inside: which stages a graph becomes, split contexts, results of every kind, errors that name a
//! layer.

use std::sync::Arc;

use super::lower::lower;
use super::stage::{After, RowOp, Stage};
use crate::backend::{
    Answer, Backend, Batch, DeviceError, Interrupt, KvType, Limits, Output, Plan, Row, Sequence, Want, WantKind,
};
use crate::cpu::Cpu;
use crate::cpu::isa::Isa;
use crate::graph::{Activation, Graph, GraphBuilder, KvLayer, Rope, RopeStyle};
use crate::tensor::Weight;

const WIDTH: usize = 32;
const VOCABULARY: usize = 50;

fn weight(name: &str, rows: usize, cols: usize) -> Weight {
    let seed = name.bytes().fold(7_u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let values: Vec<f32> = (0..rows * cols)
        .map(|at| ((at as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .map(|value| value * 1.5 / (cols as f32).sqrt())
        .collect();
    Weight::from_f32(name, rows, cols, &values).unwrap()
}

/// One ordinary layer; `bad` becomes a weight with a NaN in it.
fn graph(bad: &str) -> Graph {
    let mut graph = GraphBuilder::new();
    let named = |name: &str, rows: usize, cols: usize| {
        if name == bad {
            Weight::from_f32(name, rows, cols, &vec![f32::NAN; rows * cols]).unwrap()
        } else {
            weight(name, rows, cols)
        }
    };
    let ones = || Weight::from_f32("norm", 1, WIDTH, &[1.0; WIDTH]).unwrap();
    let x = graph.embed(named("table", VOCABULARY, WIDTH), 1.0);
    let normed = graph.norm(x, ones(), 1e-5).unwrap();
    let q = graph.linear(normed, named("q", 2 * 16, WIDTH), None).unwrap();
    let k = graph.linear(normed, named("k", 16, WIDTH), None).unwrap();
    let v = graph.linear(normed, named("v", 16, WIDTH), None).unwrap();
    let frequencies = (0..8).map(|pair| 10_f64.powi(-pair)).collect();
    let rope = Arc::new(Rope { style: RopeStyle::Normal, frequencies, magnitude: 1.0 });
    let q = graph.rope(q, 16, &rope).unwrap();
    let k = graph.rope(k, 16, &rope).unwrap();
    let kv = KvLayer { n_kv_heads: 1, key_dim: 16, value_dim: 16, window: None };
    let attended = graph.attention((q, k, v), kv, 2, 0.25, None).unwrap();
    let mixed = graph.linear(attended, named("o", WIDTH, 32), None).unwrap();
    let x = graph.add(x, mixed).unwrap();
    let normed = graph.norm(x, ones(), 1e-5).unwrap();
    let gate = graph.linear(normed, named("gate", 64, WIDTH), None).unwrap();
    let up = graph.linear(normed, named("up", 64, WIDTH), None).unwrap();
    let unit = graph.glu(gate, up, Activation::Silu).unwrap();
    let fed = graph.linear(unit, named("down", WIDTH, 64), None).unwrap();
    let x = graph.add(x, fed).unwrap();
    let last = graph.norm(x, ones(), 1e-5).unwrap();
    graph.head(last, named("head", VOCABULARY, WIDTH), None, 1.0, None, 2000).unwrap()
}

fn plan(threads: usize, bad: &str) -> Box<dyn Plan> {
    let limits = Limits { max_rows: 128, kv_tokens: 1500, kv_type: KvType::F32, threads, ..Limits::default() };
    Cpu::detect().compile(&graph(bad), &limits).unwrap()
}

/// Runs `n` tokens and answers `kinds` for the last.
fn run(plan: &mut dyn Plan, sequence: Sequence, n: usize, kinds: &[WantKind]) -> Result<Vec<Answer>, DeviceError> {
    let start = plan.kv().len(sequence);
    assert!(plan.kv().reserve(sequence, start + n));
    let row = |position: usize| Row { token: (position * 7 % VOCABULARY) as u32, position, sequence };
    let rows = (start..start + n).map(row).collect();
    let want = kinds.iter().map(|&kind| Want { row: n - 1, kind }).collect();
    let mut out = Output::default();
    plan.step(&Batch { rows, want, interrupt: None }, &mut out).map(|()| out.results)
}

#[test]
fn plans_for_few_rows_have_room_for_the_long_runs_of_wide_weights() {
    const WIDE: usize = 30_000;
    let wide = || {
        let mut graph = GraphBuilder::new();
        let x = graph.embed(weight("table", VOCABULARY, WIDTH), 1.0);
        let gate = graph.linear(x, weight("gate", WIDE, WIDTH), None).unwrap();
        let up = graph.linear(x, weight("up", WIDE, WIDTH), None).unwrap();
        let unit = graph.glu(gate, up, Activation::Silu).unwrap();
        let fed = graph.linear(unit, weight("down", WIDTH, WIDE), None).unwrap();
        graph.head(fed, weight("head", VOCABULARY, WIDTH), None, 1.0, None, 2000).unwrap()
    };
    let answers = |max_rows: usize| {
        let limits = Limits { max_rows, kv_tokens: 64, threads: 1, ..Limits::default() };
        let mut plan = Cpu::detect().compile(&wide(), &limits).unwrap();
        let sequence = plan.kv().open().unwrap();
        run(&mut *plan, sequence, 1, &[WantKind::Logits]).unwrap()
    };
    let expected = answers(128);
    for max_rows in [1, 2, 3, 16, 17] {
        assert_eq!(answers(max_rows), expected, "room for {max_rows} rows");
    }
}

#[test]
fn an_ordinary_layer_becomes_few_stages() {
    let lowered = lower(&graph(""));
    let names: Vec<String> = lowered
        .stages
        .iter()
        .map(|stage| match stage {
            Stage::Rows(ops) => {
                let op = |op: &RowOp| match op {
                    RowOp::Embed { .. } => "embed",
                    RowOp::Rope { .. } => "rope",
                    RowOp::Store { .. } => "store",
                    _ => "other",
                };
                ops.iter().map(op).collect::<Vec<_>>().join(" ")
            }
            Stage::Linear(linear) => {
                let after = |part: &super::stage::Part| match part.after {
                    After::Nothing => part.weight.name().to_owned(),
                    After::Add(_) => format!("x + {}", part.weight.name()),
                    After::Glu { ref up, .. } => format!("{} * {}", part.weight.name(), up.name()),
                };
                let norm = if linear.source.norm.is_some() { "norm: " } else { "" };
                format!("{norm}{}", linear.parts.iter().map(after).collect::<Vec<_>>().join(", "))
            }
            Stage::Attention(_) => "attention".to_owned(),
            Stage::Moe(_) => "experts".to_owned(),
            Stage::Head(_) => "head".to_owned(),
        })
        .collect();
    let expected =
        ["embed", "norm: q, k, v", "rope rope store", "attention", "x + o", "norm: gate * up", "x + down", "head"];
    assert_eq!(names, expected);
}

#[test]
fn a_long_context_split_over_workers_gives_the_same_result() {
    let logits = |threads: usize| {
        let mut plan = plan(threads, "");
        let sequence = plan.kv().open().unwrap();
        for _ in 0..11 {
            run(&mut *plan, sequence, 100, &[]).unwrap();
        }
        match run(&mut *plan, sequence, 1, &[WantKind::Logits]).unwrap().remove(0) {
            Answer::Logits(logits) => logits,
            other => panic!("{other:?}"),
        }
    };
    let whole = logits(1);
    for threads in [2, 3, 7] {
        for (whole, split) in whole.iter().zip(logits(threads)) {
            assert!((whole - split).abs() < 1e-5, "{threads} threads: {whole} {split}");
        }
    }
}

#[test]
fn results_of_every_kind_agree_with_the_logits() {
    for threads in [1, 3] {
        let mut plan = plan(threads, "");
        let sequence = plan.kv().open().unwrap();
        let kinds =
            [WantKind::Logits, WantKind::Greedy, WantKind::TopK(5), WantKind::Score(17), WantKind::TopK(VOCABULARY)];
        let answers = run(&mut *plan, sequence, 9, &kinds).unwrap();
        let [Answer::Logits(logits), Answer::Greedy(id), five, score, all] = &answers[..] else {
            panic!("{answers:?}")
        };
        let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let sum = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        assert_eq!(*id, order[0].0);
        for (answer, k) in [(five, 5), (all, VOCABULARY)] {
            let Answer::TopK { best, log_sum_exp } = answer else { panic!("{answer:?}") };
            assert_eq!(best[..], order[..k]);
            assert!((log_sum_exp - sum).abs() < 1e-9);
        }
        let Answer::Score { logit, log_sum_exp } = score else { panic!("{score:?}") };
        assert!(*logit == logits[17] && (log_sum_exp - sum).abs() < 1e-9);
    }
}

#[test]
fn a_weight_that_is_no_number_is_named_and_no_position_counts() {
    for bad in ["q", "o", "up", "down", "head", "table"] {
        for threads in [1, 2] {
            let mut plan = plan(threads, bad);
            let sequence = plan.kv().open().unwrap();
            let error = run(&mut *plan, sequence, 6, &[WantKind::Greedy]).unwrap_err().to_string();
            let expected = match bad {
                "q" => "values are not finite after q, k, v".to_owned(),
                "up" => "values are not finite after gate, up".to_owned(),
                "head" => "logits are not finite".to_owned(),
                _ => format!("values are not finite after {bad}"),
            };
            assert_eq!(error, format!("wrong result: {expected}"));
            assert_eq!(plan.kv().len(sequence), 0);
        }
    }
}

#[test]
fn limits_are_checked_before_anything_is_allocated() {
    let compile =
        |limits: Limits| Cpu::new(Isa::Scalar).compile(&graph(""), &limits).err().map(|error| error.to_string());
    let tight = Limits { kv_type: KvType::F32, ..Limits::default() };
    assert_eq!(
        compile(Limits { max_rows: 0, ..tight.clone() }),
        Some("refused: limit max_rows is 0, expected 1 to 1048576".to_owned())
    );
    assert_eq!(
        compile(Limits { kv_type: KvType::Q8_0, ..tight.clone() }),
        Some("refused: a q8_0 cache needs heads of a multiple of 32 elements, layer 0 has 16".to_owned())
    );
    let error = compile(Limits { memory_cap: Some(1000), ..tight.clone() }).unwrap();
    assert!(error.starts_with("out of memory: ") && error.ends_with(" needed for scratch, 1000 B allowed"));
    let room = Limits { max_rows: 8, threads: 1, kv_tokens: 4096, memory_cap: Some(1 << 20), ..tight.clone() };
    assert_eq!(compile(room.clone()), None);
    let error = compile(Limits { kv_tokens: 1 << 20, ..room }).unwrap();
    assert!(error.contains(" needed for keys and values"), "{error}");
}

#[test]
fn what_a_plan_says_it_takes_is_what_it_was_allowed() {
    let limits = Limits { max_rows: 64, threads: 2, ..Limits::default() };
    let plan = Cpu::detect().compile(&graph(""), &limits).unwrap();
    let memory = plan.memory();
    assert_eq!(memory.kv, 4096 * 2 * 16 * 2);
    let cap = memory.scratch + memory.kv;
    // A little under what is taken must be refused, a little over must do.
    let try_cap = |cap| Cpu::detect().compile(&graph(""), &Limits { memory_cap: Some(cap), ..limits.clone() }).is_ok();
    assert!(try_cap(cap + 4096) && !try_cap(cap - 4096));
}

#[test]
fn a_step_that_is_interrupted_leaves_nothing_behind() {
    let (mut plan, mut other) = (plan(2, ""), plan(2, ""));
    let [sequence, same] = [&mut plan, &mut other].map(|plan| plan.kv().open().unwrap());
    for plan in [&mut plan, &mut other] {
        run(&mut **plan, sequence, 3, &[]).unwrap();
    }
    assert!(plan.kv().reserve(sequence, 103));
    let rows = (3..103).map(|position| Row { token: 1, position, sequence }).collect();
    let interrupt = Interrupt::default();
    let batch =
        Batch { rows, want: vec![Want { row: 99, kind: WantKind::Greedy }], interrupt: Some(interrupt.clone()) };
    interrupt.set();
    let stopped = plan.step(&batch, &mut Output::default());
    assert!(matches!(stopped, Err(DeviceError::Interrupted)), "{stopped:?}");
    assert_eq!(plan.kv().len(sequence), 3);
    let kinds = [WantKind::Logits];
    assert_eq!(run(&mut *plan, sequence, 20, &kinds).unwrap(), run(&mut *other, same, 20, &kinds).unwrap());
}

#[test]
fn an_empty_batch_does_nothing() {
    let mut plan = plan(2, "");
    let mut out = Output { results: vec![Answer::Greedy(3)] };
    plan.step(&Batch::default(), &mut out).unwrap();
    assert!(out.results.is_empty());
}
