//! The engine as its users hold it: requests go in by any thread, each comes back as a stream.

mod file;
mod room;
#[cfg(feature = "server")]
mod several;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use farpost_kernels::backend::{Backend, DeviceError, ImageShape, Limits, MemoryUse};

use super::dry::Breakers;
use super::error::EngineError;
use super::failover::{Backends, DeviceState, Devices};
use super::grammar::{self, Constraint};
use super::guesser::{Guesser, with_draft};
use super::ledger::{Charge, Holder, Holdings, Ledger};
use super::lookup::{self, Drafter, Speculate};
use super::metrics::Metrics;
use super::options::{EngineOptions, Sizes, after};
use super::owner::choice::{Choice, Job};
use super::owner::prefixes::Hashing;
use super::owner::{Board, Clock, Load, Order, Owner};
use super::pooling::Pooled;
use super::request::{MOST_CHOICES, Refusal, Request};
use super::sampler::Sampler;
use super::stream::{self, Stream};
use crate::model::Model;

#[cfg(feature = "server")]
pub(crate) use several::{Form, Held};

/// Rows that a draft model runs at most to catch up with a text: answers wait for it.
const DRAFT_ROWS: usize = 64;

/// What a draft model runs with beside a model with `limits`.
fn draft_limits(limits: &Limits, max_running: usize) -> Limits {
    let max_rows = limits.max_rows.min(DRAFT_ROWS);
    Limits { max_rows, max_sequences: max_running, max_windows: max_running, ..limits.clone() }
}

/// Many requests on one model: they share its steps, its cache and its memory.
///
/// Cheap to clone; all clones are one engine. It closes with the last of them: what runs then ends with
/// [`super::Finish::Closed`]. [`Engine::drain`] waits for it first.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    model: Arc<Model>,
    sizes: Sizes,
    max_waiting: usize,
    kv_token_bytes: u64,
    has_draft_model: bool,
    /// Of saved texts.
    image: ImageShape,
    /// Whether a text is saved or restored.
    is_copying: AtomicBool,
    kv_tokens: usize,
    memory: MemoryUse,
    ledger: Arc<Ledger>,
    load_ms: f64,
    orders: Sender<Order>,
    board: Arc<Board>,
    clock: Clock,
    hashing: Hashing,
    n_requests: AtomicU64,
    owner: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Compiles `model` for the best of `backends` that can, and starts the thread that owns it. Where a device fails, all
    /// goes on with the next.
    ///
    /// # Errors
    /// Options out of range; what the device refuses, most of all too little memory; a thread that cannot start.
    pub fn open(
        model: Arc<Model>,
        backends: impl Into<Backends>,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        Self::open_under(model, None, &backends.into(), options, None)
    }

    /// The same, with a draft model for [`Speculate::Draft`]: a smaller model of the same vocabulary.
    ///
    /// # Errors
    /// As [`Engine::open`], and a draft model of another vocabulary.
    pub fn open_with_draft(
        model: Arc<Model>,
        draft: Arc<Model>,
        backends: impl Into<Backends>,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        Self::open_under(model, Some(draft), &backends.into(), options, None)
    }

    /// The same, under the cap of others too.
    pub(super) fn open_under(
        model: Arc<Model>,
        draft: Option<Arc<Model>>,
        backends: &Backends,
        options: &EngineOptions,
        whole: Option<Arc<Ledger>>,
    ) -> Result<Self, EngineError> {
        let (engine, owner) = Self::parts(model, draft, backends, options, whole, Arc::new(Instant::now))?;
        let thread = std::thread::Builder::new().name("farpost-owner".to_owned()).spawn(move || owner.run());
        let thread = thread.map_err(|error| DeviceError::NoThreads { threads: 1, reason: error.to_string() })?;
        *engine.inner.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(engine)
    }

    /// An engine and its owner, who does not run yet.
    pub(super) fn parts(
        model: Arc<Model>,
        draft: Option<Arc<Model>>,
        backends: &Backends,
        options: &EngineOptions,
        whole: Option<Arc<Ledger>>,
        clock: Clock,
    ) -> Result<(Self, Owner), EngineError> {
        let start = Instant::now();
        let mut sizes = options.sizes(&model)?;
        let ledger = Ledger::new(options.memory_cap, whole);
        let cached_bytes = room::cached_bytes(options.max_cached, sizes.context);
        let beside = room::beside_bytes(&model, options.max_cached, sizes.context);
        sizes.limits.memory_cap = ledger.free().map(|free| free.saturating_sub(beside));
        let mut devices = Devices::new(backends);
        let mut plan = loop {
            match devices.compile(&model, &sizes.limits, sizes.context) {
                Ok(plan) => break plan,
                Err(error) if devices.has_next() => _ = devices.fail(&error, clock()),
                Err(error) => return Err(error.into()),
            }
        };
        let kv_tokens = plan.kv().free_tokens();
        let (mut memory, image) = (plan.memory(), plan.kv().image());
        let left = sizes.limits.memory_cap.map(|cap| cap.saturating_sub(memory.kv + memory.scratch));
        let of_draft = Limits { memory_cap: left, ..draft_limits(&sizes.limits, options.max_running) };
        let guesser = draft
            .map(|draft| Guesser::open(&model, draft, &**devices.backend(), &of_draft, sizes.context))
            .transpose()?;
        let kv_token_bytes = memory.kv / kv_tokens.max(1) as u64;
        memory = with_draft(memory, guesser.as_ref());
        memory.scratch = memory.scratch.saturating_add(cached_bytes);
        let needed_bytes = memory.kv.saturating_add(memory.scratch);
        let charge = ledger.charge(Holder::Engine, needed_bytes).map_err(|short| {
            let (what, free_bytes) = ("scratch, keys and values", Some(short.free_bytes));
            DeviceError::OutOfMemory { what, needed_bytes, free_bytes }
        })?;
        let (orders, receiver) = crossbeam_channel::unbounded();
        let board = Arc::new(Board::default());
        let load_ms = model.open_ms() + start.elapsed().as_secs_f64() * 1e3;
        let hashing = Hashing::default();
        let has_draft_model = guesser.is_some();
        let owner = Owner::new(
            Arc::clone(&model),
            devices,
            plan,
            sizes.clone(),
            options,
            receiver,
            Arc::clone(&board),
            Arc::clone(&clock),
            hashing.clone(),
            guesser,
            charge,
        );
        let inner = Inner {
            model,
            sizes,
            max_waiting: options.max_waiting,
            kv_token_bytes,
            has_draft_model,
            image,
            is_copying: AtomicBool::new(false),
            kv_tokens,
            memory,
            ledger,
            load_ms,
            orders,
            board,
            clock,
            hashing,
            n_requests: AtomicU64::new(0),
            owner: Mutex::new(None),
        };
        Ok((Self { inner: Arc::new(inner) }, owner))
    }

    /// How the devices are that it may run on, best first.
    pub fn devices(&self) -> Vec<DeviceState> {
        self.inner.board.devices()
    }

    /// Bytes that must be free for an engine to open with these options. Nothing is taken.
    pub(super) fn needed_bytes(
        model: &Model,
        draft: Option<&Model>,
        backend: &dyn Backend,
        options: &EngineOptions,
    ) -> Result<u64, EngineError> {
        let Sizes { context, limits } = options.sizes(model)?;
        let of_plan = room::plan_bytes(model, backend, &limits)?;
        let of_draft = draft.map_or(Ok(0), |draft| {
            let limits = Guesser::limits(draft, &draft_limits(&limits, options.max_running), context);
            room::plan_bytes(draft, backend, &limits)
        })?;
        let beside = room::beside_bytes(model, options.max_cached, context);
        Ok(of_plan.saturating_add(of_draft).saturating_add(beside))
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.inner.model
    }

    /// Whether it was opened with a draft model.
    pub fn has_draft_model(&self) -> bool {
        self.inner.has_draft_model
    }

    /// Tokens that a prompt and its answer may have together.
    pub fn context(&self) -> usize {
        self.inner.sizes.context
    }

    /// Bytes that the engine takes for as long as it is open, by kind.
    pub fn memory(&self) -> MemoryUse {
        self.inner.memory
    }

    /// Who holds how many bytes, as of the last step.
    pub fn holdings(&self) -> Holdings {
        let (inner, metrics) = (&self.inner, self.metrics());
        let of_tokens = |tokens: usize| tokens as u64 * inner.kv_token_bytes;
        Holdings {
            cap: inner.ledger.cap(),
            kv: inner.memory.kv,
            kv_promised: of_tokens(metrics.kv_promised_tokens),
            kv_free: of_tokens(metrics.kv_free_tokens),
            scratch: inner.memory.scratch,
            requests: inner.ledger.requests(),
        }
    }

    /// Opening the model and compiling it, in milliseconds.
    pub fn load_ms(&self) -> f64 {
        self.inner.load_ms
    }

    /// Counts, as of the last step.
    pub fn metrics(&self) -> Metrics {
        self.inner.board.metrics()
    }

    /// Takes a request, or says at once why not. Never waits.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn submit(&self, request: &Request) -> Result<Stream, Refusal> {
        self.submit_formed(request, None)
    }

    /// The same, with the form of the request made ready before.
    fn submit_formed(&self, request: &Request, form: Option<&Constraint>) -> Result<Stream, Refusal> {
        let submitted = self.inner.submit(request, form);
        let board = &self.inner.board;
        let count = if submitted.is_ok() { &board.n_accepted } else { &board.n_refused };
        count.fetch_add(1, Ordering::Relaxed);
        submitted
    }

    /// True if there is nothing to do. Unlike [`Engine::metrics`] it knows of requests that came since the last step.
    pub fn is_idle(&self) -> bool {
        let board = &self.inner.board;
        board.n_sent.load(Ordering::SeqCst) == 0
            && board.n_waiting.load(Ordering::SeqCst) == 0
            && self.metrics().running == 0
    }

    /// Takes no more requests, if there are none now; false if there are.
    pub(super) fn close_if_idle(&self) -> bool {
        let board = &self.inner.board;
        // First no more may come, then there must be none: `submit` does it the other way round.
        let was_closed = board.is_closed.swap(true, Ordering::SeqCst);
        let is_idle = self.is_idle();
        if !is_idle && !was_closed {
            board.is_closed.store(false, Ordering::SeqCst);
        }
        is_idle
    }

    /// Takes no more requests and waits until all are done, but no longer than `most`: what is left then ends with
    /// [`super::Finish::Closed`]. True if all were done.
    pub fn drain(&self, most: Duration) -> bool {
        self.inner.close(after((self.inner.clock)(), most));
        self.inner.join();
        self.metrics().closed == 0
    }
}

impl Inner {
    fn submit(&self, request: &Request, form: Option<&Constraint>) -> Result<Stream, Refusal> {
        self.check(request)?;
        self.check_memory(request)?;
        let charge = self.charge(request)?;
        let choices = self.choices(request, charge, form)?;
        let load = self.board.load();
        if let Some(deadline) = request.deadline {
            let options = &request.options;
            let of = |load: &Load| load.estimate(request.priority, request.prompt.len(), options.max_tokens, request.n);
            if let Some(estimate) = of(&load).filter(|estimate| *estimate > deadline) {
                let is_queue = of(&load.idle()).is_some_and(|alone| alone <= deadline);
                return Err(Refusal::Deadline {
                    deadline,
                    estimate,
                    retry_after: is_queue.then(|| estimate - deadline),
                });
            }
        }
        let sent = self.board.n_sent.fetch_add(1, Ordering::SeqCst);
        if self.board.is_closed.load(Ordering::SeqCst) {
            self.board.n_sent.fetch_sub(1, Ordering::SeqCst);
            return Err(Refusal::Closed);
        }
        let waiting = sent + self.board.n_queued.load(Ordering::Relaxed);
        if waiting >= self.max_waiting {
            self.board.n_sent.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::QueueFull { waiting, retry_after: self.until_place() });
        }
        let (choice, stream) = choices;
        if self.orders.send(Order::Serve(choice)).is_err() {
            self.board.n_sent.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Closed);
        }
        Ok(stream)
    }

    /// All choices of a request may share its prompt; each has its own answer.
    fn check_memory(&self, request: &Request) -> Result<(), Refusal> {
        let most = request.prompt.len();
        if most <= self.kv_tokens {
            return Ok(());
        }
        Err(Refusal::Memory {
            what: "keys and values",
            tokens: most,
            needed_bytes: most as u64 * self.kv_token_bytes,
            allowed_bytes: self.kv_tokens as u64 * self.kv_token_bytes,
            retry_after: None,
        })
    }

    /// Time until somebody is done, from measured times; one second if nothing was measured yet.
    fn until_place(&self) -> Duration {
        self.board.load().until_place().unwrap_or(Duration::from_secs(1))
    }

    /// The first choice of a request with the others behind it, and its stream.
    fn choices(
        &self,
        request: &Request,
        charge: Charge,
        form: Option<&Constraint>,
    ) -> Result<(Box<Choice>, Stream), EngineError> {
        let charge = Arc::new(charge);
        let (options, tokenizer) = (&request.options, self.model.tokenizer());
        let dry = &options.sampling.dry;
        let breakers =
            if dry.multiplier > 0.0 { Breakers::of(&dry.sequence_breakers, tokenizer) } else { Breakers::default() };
        let drafter = match options.speculate {
            Speculate::Lookup { max_draft } if !request.reproducible => Some(Drafter::new(&request.prompt, max_draft)),
            _ => None,
        };
        let max_draft = match options.speculate {
            Speculate::Draft { max_draft } if !request.reproducible => max_draft,
            _ => 0,
        };
        let constraint = match form {
            Some(form) => Some(form.clone()),
            None => grammar::constraint(&self.model, options)?,
        };
        let (teller, stream) = stream::pair(&self.model, request, Arc::clone(&charge));
        let submitted = (self.clock)();
        let job = Arc::new(Job {
            number: self.n_requests.fetch_add(1, Ordering::Relaxed),
            teller,
            priority: request.priority,
            submitted,
            deadline: request.deadline.and_then(|deadline| submitted.checked_add(deadline)),
            caller: request.caller.as_str().into(),
            scope: self.hashing.scope(&request.prefix_scope),
            supersede: request.supersede.as_deref().map(Into::into),
            group: request.group,
            reproducible: request.reproducible,
            ignore_eos: options.ignore_eos,
            max_tokens: options.max_tokens.unwrap_or(usize::MAX),
            prompt_tokens: request.prompt.len(),
            _charge: charge,
        });
        let hashes = self.hashing.of(&request.prompt, job.scope);
        let pooling = self.model.pooling().filter(|_| request.is_embedding);
        let pooled = pooling.map(|how| Pooled::new(how, request.prompt.len(), self.model.graph().width()));
        let choice = |index: usize| {
            let mut sampling = options.sampling.clone();
            sampling.seed = sampling.seed.wrapping_add(index as u64);
            let sampler = Sampler::new(sampling, self.model.graph().n_vocab(), breakers.clone())?;
            let mut sampler = sampler.with_constraint(constraint.clone());
            sampler.reserve()?;
            Ok(Choice {
                job: Arc::clone(&job),
                index,
                tokens: request.prompt.clone(),
                is_parked: false,
                pooled: pooled.clone(),
                hashes: hashes.clone(),
                sequence: None,
                n_written: 0,
                sampler,
                drafter: drafter.clone(),
                max_draft,
                siblings: Vec::new(),
                cached_tokens: 0,
                drafted_tokens: 0,
                accepted_tokens: 0,
                begun: None,
                first_token: None,
                promised_tokens: 0,
                last_step: 0,
                finish: None,
                ahead: None,
            })
        };
        let mut first: Choice = choice(0)?;
        first.siblings = (1..request.n).map(choice).collect::<Result<_, EngineError>>()?;
        Ok((Box::new(first), stream))
    }

    fn check(&self, request: &Request) -> Result<(), EngineError> {
        let (prompt, context) = (&request.prompt, self.sizes.context);
        super::session::check_prompt(prompt, context, self.model.graph().n_vocab())?;
        if request.is_embedding && self.model.pooling().is_none() {
            return Err(EngineError::NoEmbeddings { model: self.model.name().to_owned() });
        }
        let most = if request.is_embedding { 1 } else { MOST_CHOICES };
        if !(1..=most).contains(&request.n) {
            let expected = if most == 1 { "1 for an embedding".to_owned() } else { format!("1 to {most}") };
            return Err(EngineError::OutOfRange { parameter: "n", found: request.n, expected });
        }
        if let Some(number) = request.options.stop.iter().position(String::is_empty) {
            return Err(EngineError::EmptyStop { number });
        }
        lookup::check(request.options.speculate, self.has_draft_model)
    }

    fn close(&self, at: Instant) {
        self.board.is_closed.store(true, Ordering::Relaxed);
        // An owner that is gone has closed already.
        let _ = self.orders.send(Order::Close(at));
    }

    fn join(&self) {
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(owner) = owner {
            // It has caught and told what panicked in a backend.
            let _ = owner.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close((self.clock)());
        self.join();
    }
}
