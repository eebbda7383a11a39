//! The thread that owns a plan: takes requests, puts rows of many into each step, and tells what comes of them.
//!
//! Invariants: the plan's cache holds, for each running choice, its first `n_written` tokens, and for each cached prefix
//! all of its tokens; no other sequence is open but the one that is copied. Whoever loses its place is made again from its tokens, so preemption
//! and a lost device are one thing. No lock is held while the plan works.

mod admit;
#[cfg(all(test, feature = "pocket"))]
mod cache_tests;
pub(super) mod choice;
mod compose;
pub(super) mod costs;
#[cfg(all(test, feature = "pocket"))]
mod draft_tests;
mod estimate;
#[cfg(all(test, feature = "pocket"))]
mod failover_tests;
pub(super) mod hold;
#[cfg(all(test, feature = "pocket"))]
mod hold_tests;
mod no_plan;
mod pace;
#[cfg(all(test, feature = "pocket"))]
mod place_tests;
pub(super) mod prefixes;
#[cfg(all(test, feature = "pocket"))]
mod room_tests;
#[cfg(all(test, feature = "pocket"))]
mod schedule_tests;
mod shares;
#[cfg(all(test, feature = "pocket"))]
mod simulation;
mod step;
#[cfg(all(test, feature = "pocket"))]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use farpost_kernels::backend::{Batch, Output, Plan, Sequence};

use super::error::EngineError;
use super::failover::{DeviceState, Devices};
use super::generate::Finish;
use super::guesser::Guesser;
use super::ledger::Charge;
use super::metrics::Metrics;
use super::options::Sizes;
use super::request::Priority;
use super::session_file::SessionFileError;
use super::stream::Told;
use crate::model::Model;
use choice::{Choice, ms};
use compose::Part;
use costs::Costs;
use estimate::Ends;
pub(super) use estimate::Load;
use hold::{Copied, Copy};
use pace::Pace;
use prefixes::{Hashing, Prefixes};
use shares::Shares;

/// Between two looks at a device that was left, while there is nothing else to do.
const LEAST_WAIT: Duration = Duration::from_millis(20);

/// Tells the time; tests have their own.
pub(super) type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// What the owner is told to do.
#[derive(Debug)]
pub(super) enum Order {
    /// Serve this one.
    Serve(Box<Choice>),
    /// Do a part of a copy, and tell what came of it.
    Copy(Copy, Sender<Result<Copied, SessionFileError>>),
    /// Take no more; end what is not done at this time.
    Close(Instant),
}

/// What the owner shows to others.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// Requests on their way to the owner.
    pub(super) n_sent: AtomicUsize,
    /// Choices that wait there.
    pub(super) n_waiting: AtomicUsize,
    /// Requests of which nothing has begun: further choices of one that has, and whoever lost a place, were let in before.
    pub(super) n_queued: AtomicUsize,
    pub(super) is_closed: AtomicBool,
    /// Requests taken and refused.
    pub(super) n_accepted: AtomicUsize,
    pub(super) n_refused: AtomicUsize,
    shown: Mutex<(Metrics, Load)>,
    devices: Mutex<Vec<DeviceState>>,
}

impl Board {
    pub(super) fn metrics(&self) -> Metrics {
        let metrics = self.shown.lock().unwrap_or_else(PoisonError::into_inner).0;
        let (accepted, refused) = (&self.n_accepted, &self.n_refused);
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed) as u64;
        Metrics { accepted: count(accepted), refused: count(refused), ..metrics }
    }

    pub(super) fn load(&self) -> Load {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    pub(super) fn devices(&self) -> Vec<DeviceState> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The owner of a plan.
pub(super) struct Owner {
    model: Arc<Model>,
    devices: Devices,
    sizes: Sizes,
    max_running: usize,
    inter_token_percent: usize,
    plan: Box<dyn Plan>,
    /// False where no device could compile; then `plan` is none that does anything.
    has_plan: bool,
    orders: Receiver<Order>,
    board: Arc<Board>,
    clock: Clock,
    /// In no order.
    waiting: Vec<Choice>,
    /// Highest lane first, then in order of arrival.
    running: Vec<Choice>,
    /// When what is left ends, once the engine closes.
    closes: Option<Instant>,
    /// The text that is copied out or in.
    held: Option<Sequence>,
    prefixes: Prefixes,
    hashing: Hashing,
    costs: Costs,
    pace: Pace,
    /// Answers whose pace the step keeps; `None` where nothing is beside them.
    paced: Option<usize>,
    /// Rows that such a step may have.
    allowed: usize,
    shares: Shares,
    batch: Batch,
    output: Output,
    parts: Vec<Part>,
    /// Which reproducible choice had a step of its own last; `None` after a step of the others.
    alone: Option<u64>,
    is_queue_changed: bool,
    metrics: Metrics,
    /// Mean tokens of an answer.
    mean_answer: f64,
    /// How often answers end before their limit.
    ends: Ends,
    /// The draft model.
    guesser: Option<Guesser>,
    /// Memory that the plans take.
    _charge: Charge,
}

/// What there is to do after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// More steps.
    Work,
    /// Nothing until an order comes.
    Wait,
    /// Nothing any more.
    End,
}

impl Owner {
    pub(super) fn new(
        model: Arc<Model>,
        devices: Devices,
        plan: Box<dyn Plan>,
        sizes: Sizes,
        options: &super::options::EngineOptions,
        orders: Receiver<Order>,
        board: Arc<Board>,
        clock: Clock,
        hashing: Hashing,
        guesser: Option<Guesser>,
        charge: Charge,
    ) -> Self {
        let mut owner = Self {
            model,
            devices,
            sizes,
            max_running: options.max_running,
            inter_token_percent: options.inter_token_percent,
            plan,
            has_plan: true,
            orders,
            board,
            clock,
            waiting: Vec::new(),
            running: Vec::new(),
            closes: None,
            held: None,
            prefixes: Prefixes::new(options.max_cached, hashing.clone()),
            hashing,
            costs: Costs::default(),
            pace: Pace::default(),
            paced: None,
            allowed: 0,
            shares: Shares::default(),
            batch: Batch::default(),
            output: Output::default(),
            parts: Vec::new(),
            alone: None,
            is_queue_changed: false,
            metrics: Metrics::default(),
            mean_answer: 0.0,
            ends: Ends::default(),
            guesser,
            _charge: charge,
        };
        owner.metrics.kv_tokens = owner.plan.kv().free_tokens();
        owner.show_devices();
        owner.show();
        owner
    }

    /// Works until the engine closes.
    pub(super) fn run(mut self) {
        loop {
            match self.turn() {
                Next::Work => {}
                Next::End => return,
                Next::Wait => {
                    let order = match self.devices.next_look() {
                        None => self.orders.recv().map_err(RecvTimeoutError::from),
                        Some(at) => {
                            let time = at.saturating_duration_since(self.now()).max(LEAST_WAIT);
                            self.orders.recv_timeout(time)
                        }
                    };
                    match order {
                        Ok(order) => self.obey(order),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => self.close(self.now()),
                    }
                }
            }
        }
    }

    fn now(&self) -> Instant {
        (self.clock)()
    }

    /// One step and all around it.
    pub(super) fn turn(&mut self) -> Next {
        let start = self.now();
        let in_plans = self.metrics.step_ms + self.metrics.draft_ms;
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.obey(order),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.close(start);
                    break;
                }
            }
        }
        self.sweep(start);
        if self.devices.look(start) || (!self.has_plan && !self.waiting.is_empty()) {
            self.begin_anew();
        }
        self.admit(start);
        self.compose();
        let has_work = !self.parts.is_empty();
        if has_work {
            if self.running.len() != self.metrics.running {
                // A step may take long.
                self.show();
            }
            self.work();
            self.remove_ended();
        }
        let is_empty = self.waiting.is_empty() && self.running.is_empty();
        self.metrics.overhead_ms += ms(self.now() - start) - (self.metrics.step_ms + self.metrics.draft_ms - in_plans);
        self.show();
        match (has_work, is_empty, self.closes) {
            (_, true, Some(_)) => self.end(),
            (_, true, None) => {
                // Rows of logits can be large; nobody holds them any more.
                self.output = Output::default();
                Next::Wait
            }
            // Someone waits for something that a turn brings about: a prefix, a place.
            _ => Next::Work,
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Close(at) => self.close(at),
            Order::Copy(part, teller) => {
                let copied = self.copy(part);
                // Whoever asked may be gone; then forgetting it is on its way.
                let _ = teller.send(copied);
            }
            Order::Serve(choice) => {
                let (job, now) = (Arc::clone(&choice.job), self.now());
                if let Some(key) = &job.supersede {
                    let is_older = |other: &Choice| {
                        other.job.number != job.number
                            && (job.group == 0 || other.job.group != job.group)
                            && other.job.supersede.as_ref() == Some(key)
                            && other.job.caller == job.caller
                    };
                    self.end_where(Finish::Superseded, now, is_older);
                }
                (0..=choice.siblings.len()).for_each(|_| self.shares.enter(&job.caller));
                self.board.n_waiting.fetch_add(1, Ordering::SeqCst);
                self.board.n_queued.fetch_add(1, Ordering::Relaxed);
                self.board.n_sent.fetch_sub(1, Ordering::SeqCst);
                self.enqueue(*choice);
            }
        }
    }

    fn enqueue(&mut self, choice: Choice) {
        self.waiting.push(choice);
        self.is_queue_changed = true;
    }

    fn close(&mut self, at: Instant) {
        self.board.is_closed.store(true, Ordering::Relaxed);
        self.closes = Some(self.closes.map_or(at, |before| before.min(at)));
    }

    /// Frees everything.
    fn end(&mut self) -> Next {
        while self.evict(None) {}
        self.show();
        Next::End
    }

    /// Ends what nobody wants any more, or is too late.
    fn sweep(&mut self, now: Instant) {
        if self.closes.is_some_and(|at| at <= now) {
            self.end_where(Finish::Closed, now, |_| true);
        }
        self.end_where(Finish::Cancelled, now, |choice| {
            choice.job.teller.is_cancelled() || choice.job.teller.is_enough(choice.index)
        });
        self.end_where(Finish::Deadline, now, |choice| choice.job.deadline.is_some_and(|deadline| deadline <= now));
    }

    fn end_where(&mut self, finish: Finish, now: Instant, is_over: impl Fn(&Choice) -> bool) {
        let mut place = 0;
        while let Some(choice) = self.waiting.get(place) {
            if is_over(choice) {
                let choice = self.waiting.swap_remove(place);
                self.is_queue_changed = true;
                self.end_choice(choice, finish, now);
            } else {
                place += 1;
            }
        }
        place = 0;
        while let Some(choice) = self.running.get(place) {
            if is_over(choice) {
                let choice = self.running.remove(place);
                self.end_choice(choice, finish, now);
            } else {
                place += 1;
            }
        }
    }

    /// Ends a choice that is in no list any more, and its siblings that have not begun.
    fn end_choice(&mut self, mut choice: Choice, finish: Finish, now: Instant) {
        let siblings = std::mem::take(&mut choice.siblings);
        self.count_end(&choice, finish);
        choice.tell_end(finish, now);
        self.shares.leave(&choice.job.caller);
        let scope = choice.job.scope;
        self.set_aside(&mut choice, scope);
        for sibling in siblings {
            self.end_choice(sibling, finish, now);
        }
    }

    fn count_end(&mut self, choice: &Choice, finish: Finish) {
        let metrics = &mut self.metrics;
        let count = match finish {
            Finish::EndToken(_) | Finish::StopString(_) | Finish::Length => &mut metrics.finished,
            // The reader has found a stop string.
            Finish::Cancelled if !choice.job.teller.is_cancelled() => &mut metrics.finished,
            Finish::Cancelled => &mut metrics.cancelled,
            Finish::Closed => &mut metrics.closed,
            Finish::Superseded => &mut metrics.superseded,
            Finish::Deadline => &mut metrics.missed_deadlines,
        };
        *count += 1;
        let is_length = finish == Finish::Length;
        let is_own_end = matches!(finish, Finish::EndToken(_) | Finish::StopString(_) | Finish::Cancelled);
        if is_length || (is_own_end && !choice.job.teller.is_cancelled()) {
            self.ends.learn(choice.n_generated(), !is_length);
        }
        if matches!(finish, Finish::EndToken(_) | Finish::StopString(_) | Finish::Length) {
            let rate = if self.mean_answer == 0.0 { 1.0 } else { 0.05 };
            self.mean_answer += rate * (choice.n_generated() as f64 - self.mean_answer);
        }
    }

    /// Takes a choice out of the cache; what it holds becomes a cached prefix of a scope, where that is of use.
    fn set_aside(&mut self, choice: &mut Choice, scope: u64) {
        if choice.pooled.as_ref().is_some_and(|pooled| !pooled.may_skip()) {
            self.forget(choice);
        }
        if let Some(sequence) = choice.sequence.take() {
            let tokens = choice.tokens[..choice.n_written.min(choice.tokens.len())].to_vec();
            self.metrics.evicted += self.prefixes.keep(sequence, tokens, scope, self.plan.kv());
        }
        choice.n_written = 0;
        choice.promised_tokens = 0;
    }

    /// Fails the whole request of a choice.
    fn fail(&mut self, number: u64, error: EngineError) {
        let error = Arc::new(error);
        let is_of = |choice: &Choice| choice.job.number == number;
        let (failed, others) = std::mem::take(&mut self.waiting).into_iter().partition(|choice| is_of(choice));
        self.waiting = others;
        let mut failed: Vec<Choice> = failed;
        let mut place = 0;
        while let Some(choice) = self.running.get(place) {
            if is_of(choice) { failed.push(self.running.remove(place)) } else { place += 1 }
        }
        if let Some(first) = failed.first() {
            first.tell_failed(&error);
        }
        self.is_queue_changed |= !failed.is_empty();
        for mut choice in failed {
            self.metrics.failed += 1 + choice.siblings.len() as u64;
            (0..=choice.siblings.len()).for_each(|_| self.shares.leave(&choice.job.caller));
            self.forget(&mut choice);
        }
    }

    /// Takes a choice out of the cache, and what it holds: what led to an error is nothing to go on from.
    fn forget(&mut self, choice: &mut Choice) {
        if let Some(sequence) = choice.sequence.take() {
            self.prefixes.leave(sequence);
            self.plan.kv().close(sequence);
        }
        choice.n_written = 0;
    }

    /// Ends running choices that their last step ended.
    fn remove_ended(&mut self) {
        let now = self.now();
        let mut place = 0;
        while let Some(choice) = self.running.get(place) {
            match choice.finish {
                Some(finish) => {
                    let choice = self.running.remove(place);
                    self.end_choice(choice, finish, now);
                }
                None => place += 1,
            }
        }
    }

    /// Shows how the devices are.
    fn show_devices(&self) {
        *self.board.devices.lock().unwrap_or_else(PoisonError::into_inner) = self.devices.states();
    }

    /// Shows how things stand, and tells those who wait where they are.
    fn show(&mut self) {
        if std::mem::take(&mut self.is_queue_changed) {
            self.waiting
                .sort_by_key(|choice| (std::cmp::Reverse(choice.job.priority), choice.job.number, choice.index));
            for (ahead, choice) in self.waiting.iter_mut().enumerate() {
                if choice.begun.is_none() && choice.index == 0 && choice.ahead != Some(ahead) {
                    choice.ahead = Some(ahead);
                    choice.job.teller.tell(Told::Queued { ahead });
                }
            }
        }
        let metrics = &mut self.metrics;
        metrics.waiting = self.waiting.len();
        metrics.waiting_by_lane =
            Priority::ALL.map(|lane| self.waiting.iter().filter(|of| of.job.priority == lane).count());
        metrics.running = self.running.len();
        metrics.cached_prefixes = self.prefixes.len();
        metrics.kv_free_tokens = self.plan.kv().free_tokens();
        metrics.kv_promised_tokens = self.running.iter().map(|choice| choice.promised_tokens).sum();
        let load = self.load();
        *self.board.shown.lock().unwrap_or_else(PoisonError::into_inner) = (self.metrics, load);
        // Last: whoever finds none waiting finds those that run now.
        self.board.n_waiting.store(self.waiting.len(), Ordering::SeqCst);
        let is_queued = |choice: &&Choice| choice.begun.is_none() && choice.index == 0;
        self.board.n_queued.store(self.waiting.iter().filter(is_queued).count(), Ordering::Relaxed);
    }
}
