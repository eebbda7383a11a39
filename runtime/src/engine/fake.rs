//! A device for tests: its next token is a function of all tokens before it, which it takes from its own cache.
//!
//! It is as strict as the contract of plans: positions must come without gaps, be reserved, and be few enough.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use farpost_kernels::backend::{
    Answer, Backend, Batch, DeviceError, DeviceInfo, ImageShape, Interrupt, KvStore, Limits, MemoryUse, Output, Plan,
    Sequence, WantKind,
};
use farpost_kernels::graph::Graph;

use crate::model::Model;

/// Logits after some tokens.
pub(in crate::engine) type Next = Arc<dyn Fn(&[u32]) -> Vec<f32> + Send + Sync>;

/// Called for every step.
pub(in crate::engine) type OnStep = Arc<dyn Fn(&Batch) + Send + Sync>;

/// Compiles to a [`FakePlan`].
#[derive(Clone)]
pub(in crate::engine) struct Fake {
    pub(in crate::engine) next: Next,
    /// Batches of all steps.
    pub(in crate::engine) steps: Arc<Mutex<Vec<Batch>>>,
    /// Steps, counted from 0, that fail.
    pub(in crate::engine) failing: Vec<usize>,
    /// Steps, counted from 0, that give wrong results.
    pub(in crate::engine) wrong: Vec<usize>,
    /// Steps that ask for more answers than this give wrong results.
    pub(in crate::engine) most_answers: Option<usize>,
    /// What else a step does: the time it takes, say.
    pub(in crate::engine) on_step: OnStep,
}

impl Fake {
    pub(in crate::engine) fn new(next: impl Fn(&[u32]) -> Vec<f32> + Send + Sync + 'static) -> Self {
        Self {
            next: Arc::new(next),
            steps: Arc::default(),
            failing: vec![],
            wrong: vec![],
            most_answers: None,
            on_step: Arc::new(|_| ()),
        }
    }
}

struct FakePlan {
    next: Next,
    steps: Arc<Mutex<Vec<Batch>>>,
    failing: Vec<usize>,
    wrong: Vec<usize>,
    most_answers: Option<usize>,
    on_step: OnStep,
    limits: Limits,
    n_vocab: usize,
    cache: Cache,
}

/// Sequences of tokens in pages that they share; as strict as a real one is about what may be written.
pub(super) struct Cache {
    page_tokens: usize,
    n_users: Vec<u32>,
    sequences: Vec<Option<Held>>,
}

#[derive(Clone, Default)]
struct Held {
    tokens: Vec<u32>,
    pages: Vec<usize>,
}

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
            wrong: self.wrong.clone(),
            most_answers: self.most_answers,
            on_step: Arc::clone(&self.on_step),
            limits: limits.clone(),
            n_vocab: graph.n_vocab(),
            cache: Cache {
                page_tokens: limits.page_tokens,
                n_users: vec![0; limits.kv_tokens.div_ceil(limits.page_tokens)],
                sequences: vec![None; limits.max_sequences],
            },
        }))
    }
}

impl Plan for FakePlan {
    fn step(&mut self, batch: &Batch, out: &mut Output) -> Result<(), DeviceError> {
        let number = self.steps.lock().unwrap().len();
        self.steps.lock().unwrap().push(batch.clone());
        assert!(!batch.rows.is_empty() && batch.rows.len() <= self.limits.max_rows);
        let mut seen: Vec<Vec<u32>> = Vec::new();
        let mut ends: BTreeMap<Sequence, Vec<u32>> = BTreeMap::new();
        for row in &batch.rows {
            let held = self.cache.held(row.sequence);
            let tokens = ends.entry(row.sequence).or_insert_with(|| held.tokens.clone());
            assert_eq!(row.position, tokens.len(), "positions come without gaps");
            assert!(row.position < held.pages.len() * self.cache.page_tokens, "positions are reserved");
            assert_eq!(self.cache.n_users[held.pages[row.position / self.cache.page_tokens]], 1, "pages are its own");
            assert!((row.token as usize) < self.n_vocab);
            tokens.push(row.token);
            seen.push(tokens.clone());
        }
        (self.on_step)(batch);
        if batch.interrupt.as_ref().is_some_and(Interrupt::is_set) {
            return Err(DeviceError::Interrupted);
        }
        if self.failing.contains(&number) {
            return Err(DeviceError::Lost("on cue".to_owned()));
        }
        if self.wrong.contains(&number) || self.most_answers.is_some_and(|most| batch.want.len() > most) {
            return Err(DeviceError::Wrong("logits are not finite".to_owned()));
        }
        out.results.clear();
        for want in &batch.want {
            let logits = (self.next)(&seen[want.row]);
            assert_eq!(logits.len(), self.n_vocab);
            out.results.push(answer(logits, want.kind));
        }
        for (sequence, tokens) in ends {
            self.cache.held_mut(sequence).tokens = tokens;
        }
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
        // As good as any row: tests know its logits.
        WantKind::Hidden => Answer::Hidden(logits),
    }
}

impl Cache {
    fn held(&self, sequence: Sequence) -> &Held {
        self.sequences[sequence.0 as usize].as_ref().expect("the sequence is open")
    }

    fn held_mut(&mut self, sequence: Sequence) -> &mut Held {
        self.sequences[sequence.0 as usize].as_mut().expect("the sequence is open")
    }

    fn take_page(&mut self) -> usize {
        let page = self.n_users.iter().position(|n| *n == 0).expect("a page is free");
        self.n_users[page] = 1;
        page
    }
}

impl KvStore for Cache {
    fn open(&mut self) -> Option<Sequence> {
        let slot = self.sequences.iter().position(Option::is_none)?;
        self.sequences[slot] = Some(Held::default());
        Some(Sequence(slot as u32))
    }

    fn reserve(&mut self, sequence: Sequence, tokens: usize) -> bool {
        let held = self.held(sequence);
        let (len, n_have) = (held.tokens.len(), held.pages.len());
        let copied = held.pages.get(len / self.page_tokens).copied();
        let copied = copied.filter(|&page| tokens > len && self.n_users[page] > 1);
        let n_more = tokens.div_ceil(self.page_tokens).saturating_sub(n_have);
        if n_more + usize::from(copied.is_some()) > self.free_tokens() / self.page_tokens {
            return false;
        }
        if let Some(page) = copied {
            self.n_users[page] -= 1;
            let own = self.take_page();
            let index = len / self.page_tokens;
            self.held_mut(sequence).pages[index] = own;
        }
        for _ in 0..n_more {
            let page = self.take_page();
            self.held_mut(sequence).pages.push(page);
        }
        true
    }

    fn len(&self, sequence: Sequence) -> usize {
        self.held(sequence).tokens.len()
    }

    fn resumable(&self, sequence: Sequence, tokens: usize) -> usize {
        tokens.min(self.len(sequence))
    }

    fn truncate(&mut self, sequence: Sequence, tokens: usize) -> usize {
        let n_pages = tokens.div_ceil(self.page_tokens);
        let held = self.held_mut(sequence);
        held.tokens.truncate(tokens);
        let len = held.tokens.len();
        let freed = held.pages.split_off(n_pages.min(held.pages.len()));
        freed.into_iter().for_each(|page| self.n_users[page] -= 1);
        len
    }

    fn fork(&mut self, from: Sequence, tokens: usize) -> Option<Sequence> {
        let mut held = self.held(from).clone();
        assert!(tokens <= held.tokens.len(), "a fork is no longer than what is written");
        let fork = self.open()?;
        held.tokens.truncate(tokens);
        held.pages.truncate(tokens.div_ceil(self.page_tokens));
        held.pages.iter().for_each(|page| self.n_users[*page] += 1);
        *self.held_mut(fork) = held;
        Some(fork)
    }

    fn close(&mut self, sequence: Sequence) {
        self.truncate(sequence, 0);
        self.sequences[sequence.0 as usize] = None;
    }

    fn free_tokens(&self) -> usize {
        self.n_users.iter().filter(|n| **n == 0).count() * self.page_tokens
    }

    /// A position is its token.
    fn image(&self) -> ImageShape {
        ImageShape::new([(None, size_of::<u32>())])
    }

    fn read(&self, sequence: Sequence, n_tokens: usize, positions: Range<usize>, out: &mut [u8]) -> bool {
        let tokens = self.held(sequence).tokens.get(..n_tokens).and_then(|tokens| tokens.get(positions));
        let Some(tokens) = tokens.filter(|tokens| size_of_val(*tokens) == out.len()) else { return false };
        out.as_chunks_mut().0.iter_mut().zip(tokens).for_each(|(bytes, token)| *bytes = token.to_le_bytes());
        true
    }

    fn append(&mut self, sequence: Sequence, n_tokens: usize, n_positions: usize, bytes: &[u8]) -> bool {
        let tokens: Vec<u32> = bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let held = self.held(sequence);
        let (from, to) = (held.tokens.len(), held.tokens.len() + tokens.len());
        if tokens.len() != n_positions || to > n_tokens || to > held.pages.len() * self.page_tokens {
            return false;
        }
        let own = |position: usize| self.n_users[held.pages[position / self.page_tokens]] == 1;
        assert!((from..to).all(own), "pages are its own");
        self.held_mut(sequence).tokens.extend(tokens);
        true
    }
}

/// Mixes all tokens into a number.
pub(in crate::engine) fn mixed(tokens: &[u32]) -> u64 {
    tokens.iter().fold(17, |hash: u64, &id| (hash ^ u64::from(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29))
}

/// Ids of tokens that are plain text.
pub(in crate::engine) fn text_ids(model: &Model) -> Vec<u32> {
    let tokenizer = model.tokenizer();
    let is_text =
        |id: &u32| !tokenizer.kind(*id).is_special() && !tokenizer.is_stop(*id) && tokenizer.token_text(*id).is_ascii();
    (0..tokenizer.n_vocab() as u32).filter(is_text).collect()
}

/// Logits in which one token of text stands out, by all tokens before.
pub(in crate::engine) fn logits(ids: &[u32], n_vocab: usize, tokens: &[u32]) -> Vec<f32> {
    let mut logits: Vec<f32> =
        (0..n_vocab as u64).map(|id| ((mixed(tokens) ^ (id * 7919)) % 97) as f32 / 50.0).collect();
    logits[ids[(mixed(tokens) % ids.len() as u64) as usize] as usize] += 4.0;
    logits
}

/// A device for `model` that goes on with text.
pub(in crate::engine) fn fake(model: &Model) -> Fake {
    let (ids, n_vocab) = (text_ids(model), model.graph().n_vocab());
    Fake::new(move |tokens| logits(&ids, n_vocab, tokens))
}

/// Tokens that texts of [`copying`] are made of.
pub(in crate::engine) const N_COPIED: usize = 12;

/// A device that is often guessed right: after the last two tokens comes what came after them before, but for one time in `surprise`.
pub(in crate::engine) fn copying(model: &Model, surprise: u64) -> Fake {
    let (ids, n_vocab) = (text_ids(model)[..N_COPIED].to_vec(), model.graph().n_vocab());
    Fake::new(move |tokens| {
        let hash = mixed(tokens);
        let before = |place: &usize| tokens[place - 2..*place] == tokens[tokens.len() - 2..];
        let known = (2..tokens.len()).rev().find(before).map(|place| tokens[place]);
        let next = known.filter(|_| !hash.is_multiple_of(surprise)).unwrap_or(ids[(hash >> 8) as usize % ids.len()]);
        let mut logits: Vec<f32> =
            (0..n_vocab as u64).map(|id| ((hash ^ (id * 7919)) % 97) as f32 / 50.0 - 9.0).collect();
        ids.iter().for_each(|&id| logits[id as usize] += 8.0);
        logits[next as usize] += 3.0;
        logits
    })
}

/// The greedy continuation without any cache.
pub(in crate::engine) fn expected(model: &Model, prompt: &[u32], n: usize) -> Vec<u32> {
    continued(&fake(model), prompt, n)
}

/// As [`expected`], on `device`.
pub(in crate::engine) fn continued(device: &Fake, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        let logits = (device.next)(&tokens);
        let best = (0..)
            .zip(&logits)
            .fold((0, f32::MIN), |best, (id, &logit)| if logit > best.1 { (id, logit) } else { best });
        tokens.push(best.0);
    }
    tokens.split_off(prompt.len())
}
