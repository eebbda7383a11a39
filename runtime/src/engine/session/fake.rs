//! A device for tests: its next token is a function of all tokens before it, which it takes from its own cache.
//!
//! It is as strict as the contract of plans: positions must come without gaps, be reserved, and be few enough.

use std::sync::{Arc, Mutex};

use farpost_kernels::backend::{
    Answer, Backend, Batch, DeviceError, DeviceInfo, KvStore, Limits, MemoryUse, Output, Plan, Sequence, WantKind,
};
use farpost_kernels::graph::Graph;

/// Logits after some tokens.
pub(in crate::engine) type Next = Arc<dyn Fn(&[u32]) -> Vec<f32> + Send + Sync>;

/// Compiles to a [`FakePlan`].
pub(in crate::engine) struct Fake {
    pub(in crate::engine) next: Next,
    /// Batches of all steps.
    pub(in crate::engine) steps: Arc<Mutex<Vec<Batch>>>,
    /// Steps, counted from 0, that fail.
    pub(in crate::engine) failing: Vec<usize>,
    /// Steps that ask for more answers than this give wrong results.
    pub(in crate::engine) most_answers: Option<usize>,
}

impl Fake {
    pub(in crate::engine) fn new(next: impl Fn(&[u32]) -> Vec<f32> + Send + Sync + 'static) -> Self {
        Self { next: Arc::new(next), steps: Arc::default(), failing: vec![], most_answers: None }
    }
}

struct FakePlan {
    next: Next,
    steps: Arc<Mutex<Vec<Batch>>>,
    failing: Vec<usize>,
    most_answers: Option<usize>,
    limits: Limits,
    n_vocab: usize,
    cache: Cache,
}

struct Cache {
    is_open: bool,
    tokens: Vec<u32>,
    reserved: usize,
    most: usize,
}

const SEQUENCE: Sequence = Sequence(7);

impl Backend for Fake {
    fn describe(&self) -> DeviceInfo {
        DeviceInfo::default()
    }

    fn self_test(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError> {
        Ok(Box::new(FakePlan {
            next: Arc::clone(&self.next),
            steps: Arc::clone(&self.steps),
            failing: self.failing.clone(),
            most_answers: self.most_answers,
            limits: limits.clone(),
            n_vocab: graph.n_vocab(),
            cache: Cache { is_open: false, tokens: vec![], reserved: 0, most: limits.kv_tokens },
        }))
    }
}

impl Plan for FakePlan {
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        let number = self.steps.lock().unwrap().len();
        self.steps.lock().unwrap().push(batch.clone());
        assert!(!batch.rows.is_empty() && batch.rows.len() <= self.limits.max_rows);
        let start = self.cache.tokens.len();
        let mut tokens = self.cache.tokens.clone();
        for row in &batch.rows {
            assert_eq!((row.sequence, row.position), (SEQUENCE, tokens.len()));
            assert!(row.position < self.cache.reserved && (row.token as usize) < self.n_vocab);
            tokens.push(row.token);
        }
        if self.failing.contains(&number) {
            return Err(DeviceError::Lost("on cue".to_owned()));
        }
        if self.most_answers.is_some_and(|most| batch.want.len() > most) {
            return Err(DeviceError::Wrong("logits are not finite".to_owned()));
        }
        out.results.clear();
        for want in &batch.want {
            let logits = (self.next)(&tokens[..=start + want.row]);
            assert_eq!(logits.len(), self.n_vocab);
            out.results.push(answer(logits, want.kind));
        }
        self.cache.tokens = tokens;
        Ok(())
    }

    fn kv(&mut self) -> &mut dyn KvStore {
        &mut self.cache
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }
}

fn answer(logits: Vec<f32>, kind: WantKind) -> Answer {
    let log_sum_exp = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    let mut best: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    match kind {
        WantKind::Greedy => Answer::Greedy(best[0].0),
        WantKind::TopK(k) => Answer::TopK { best: best[..k].to_vec(), log_sum_exp },
        WantKind::Logits => Answer::Logits(logits),
        WantKind::Score(id) => Answer::Score { logit: logits[id as usize], log_sum_exp },
    }
}

impl KvStore for Cache {
    fn open(&mut self) -> Option<Sequence> {
        (!std::mem::replace(&mut self.is_open, true)).then_some(SEQUENCE)
    }

    fn reserve(&mut self, sequence: Sequence, tokens: usize) -> bool {
        assert_eq!(sequence, SEQUENCE);
        self.reserved = if tokens <= self.most { self.reserved.max(tokens) } else { self.reserved };
        tokens <= self.most
    }

    fn len(&self, _: Sequence) -> usize {
        self.tokens.len()
    }

    fn truncate(&mut self, sequence: Sequence, tokens: usize) {
        assert!(sequence == SEQUENCE && tokens <= self.tokens.len());
        self.tokens.truncate(tokens);
        self.reserved = tokens;
    }

    fn fork(&mut self, _: Sequence, _: usize) -> Option<Sequence> {
        None
    }

    fn close(&mut self, _: Sequence) {
        self.is_open = false;
    }

    fn free_tokens(&self) -> usize {
        self.most - self.reserved
    }
}
