//! The models of a server by name: which are here, which are being loaded, and how whoever asks for one gets it.
//!
//! Models are loaded one at a time, on a thread of their own ([`Catalogue::work`]). A model is shown to requests once it
//! has answered a trial. A request that waits for one gets no part of an answer before: loading can fail, and what can
//! fail is known before the status is told. So it is held for a bounded time, or refused at once where that is known not
//! to suffice, with the time after which to come again.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use farpost_kernels::backend::{DeviceError, DeviceInfo, Placement};
use farpost_models::gguf::ContentHash;
use farpost_models::template::ChatTemplate;
use farpost_models::tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

use super::app::{App, unix_seconds};
use super::error::Problem;
use super::log;
use super::options::ServerError;
use crate::engine::{
    DeviceState, Engine, EngineError, GenerateOptions, LoadError, Models, Request, Sampling, Speculate, after,
};
use crate::model::Model;

/// After a model could not be loaded, all who ask for it are told so for this time without trying again.
pub(super) const PAUSE: Duration = Duration::from_secs(5);
/// Nobody is told to come again later than this: what is known of loading is a guess.
const MOST_RETRY: Duration = Duration::from_secs(60);
/// How often to look for models that idle.
const ROUND: Duration = Duration::from_secs(1);

/// A model as it is served.
#[derive(Clone, Debug)]
pub struct Served {
    /// What requests call it, and what [`Models`] opens it by.
    pub name: String,
    /// How tokens are chosen where a request does not say.
    pub sampling: Sampling,
    /// How tokens are guessed ahead where a request does not say.
    pub speculate: Speculate,
    /// Load it when it is asked for, not at the start.
    pub is_on_demand: bool,
    /// Never unload it to make room or because it idles.
    pub is_pinned: bool,
}

impl Served {
    /// A model that is loaded at the start and may give way to others.
    pub fn new(name: String, sampling: Sampling) -> Self {
        Self { name, sampling, speculate: Speculate::Off, is_on_demand: false, is_pinned: false }
    }
}

/// A model that is loaded.
pub(super) struct Hosted {
    pub(super) name: String,
    pub(super) engine: Engine,
    pub(super) sampling: Sampling,
    pub(super) speculate: Speculate,
    /// Seconds since 1970 when it was loaded.
    pub(super) created: u64,
    /// What tells the model from others, short; known at once.
    pub(super) print: String,
    /// Of the longest token of the vocabulary.
    longest_token_bytes: usize,
    /// Known some time after loading: it reads the whole file.
    pub(super) hash: OnceLock<ContentHash>,
    /// How many steps there were when work without a step was first seen, and when that was.
    stall: Mutex<Option<(u64, Instant)>>,
}

impl Hosted {
    /// A model that was loaded just now.
    pub(super) fn new(served: &Served, engine: Engine) -> Self {
        Self {
            name: served.name.clone(),
            print: print(engine.model()),
            longest_token_bytes: longest_token_bytes(engine.model().tokenizer()),
            engine,
            sampling: served.sampling.clone(),
            speculate: served.speculate,
            created: unix_seconds(),
            hash: OnceLock::new(),
            stall: Mutex::new(None),
        }
    }

    /// Build and model, short: the same for as long as neither changes.
    pub(super) fn fingerprint(&self) -> String {
        format!("fp_{}_{}", env!("CARGO_PKG_VERSION"), self.print)
    }

    /// Tokens that a text of so many bytes has at least.
    pub(super) fn least_tokens(&self, n_bytes: usize) -> usize {
        n_bytes / self.longest_token_bytes
    }

    /// True if there is work and no step for longer than `most`.
    pub(super) fn is_stalled(&self, most: Duration) -> bool {
        let n_steps = self.engine.metrics().steps;
        let mut stall = self.stall.lock().unwrap_or_else(PoisonError::into_inner);
        if self.engine.is_idle() {
            *stall = None;
            return false;
        }
        match *stall {
            Some((steps, since)) if steps == n_steps => since.elapsed() > most,
            _ => {
                *stall = Some((n_steps, Instant::now()));
                false
            }
        }
    }
}

/// How a device is, seen over all models.
pub(super) struct Standing {
    pub(super) info: DeviceInfo,
    is_used: bool,
    failure: Option<String>,
    /// Why it was not chosen, of one that is there and not used.
    passed_over: Option<String>,
    n_dispatches: Option<usize>,
    placement: Option<Placement>,
}

impl Standing {
    /// As `/version` tells it.
    pub(super) fn json(&self) -> serde_json::Value {
        let (state, reason) = match (&self.failure, &self.passed_over, self.is_used) {
            (Some(why), ..) => ("failed", why.clone()),
            (None, Some(why), _) => ("passed_over", why.clone()),
            (None, None, true) => ("ok", format!("computes with {}{}", self.info.driver, self.share())),
            (None, None, false) => ("spare", format!("would compute with {}", self.info.driver)),
        };
        serde_json::json!({ "name": self.info.backend, "device": self.info.name, "state": state, "reason": reason })
    }

    /// What of a model is on it.
    fn share(&self) -> String {
        let layers = self.placement.map(|Placement { n_layers, of }| format!(", {n_layers} of {of} layers"));
        let dispatches = self.n_dispatches.map(|n_dispatches| format!(", {n_dispatches} dispatches a token"));
        layers.into_iter().chain(dispatches).collect()
    }

    /// Whether a model may be computed on it.
    pub(super) fn is_up(&self) -> bool {
        self.failure.is_none() && self.passed_over.is_none()
    }

    /// What is wrong with it, with its name.
    pub(super) fn trouble(&self) -> Option<String> {
        self.failure.as_ref().map(|why| format!("{}: {why}", self.info.backend))
    }
}

/// Where a model is.
enum State {
    Away,
    /// Since then.
    Loading(Instant),
    Here(Arc<Hosted>),
    Failed(Problem, Instant),
}

/// One model.
pub(super) struct Entry {
    pub(super) served: Served,
    state: Mutex<State>,
    is_changed: Condvar,
    /// From being asked for to being here, the last time.
    load_time: Mutex<Option<Duration>>,
}

impl Entry {
    fn new(served: Served) -> Self {
        let state = if served.is_on_demand { State::Away } else { State::Loading(Instant::now()) };
        Self { served, state: Mutex::new(state), is_changed: Condvar::new(), load_time: Mutex::default() }
    }

    /// Time that loading should still take, by the last time; `None` if it was never loaded, or takes longer than that.
    fn left_of(&self, since: Instant) -> Option<Duration> {
        let load_time = *self.load_time.lock().unwrap_or_else(PoisonError::into_inner);
        load_time?.checked_sub(since.elapsed())
    }

    /// What who will not wait until it is loaded is told. Where nothing is known it takes as long again as it took so far.
    fn loading(&self, since: Instant) -> Problem {
        Problem::Loading { retry_after: self.left(since) }
    }

    fn left(&self, since: Instant) -> Duration {
        let left = self.left_of(since).unwrap_or_else(|| since.elapsed());
        left.clamp(Duration::from_secs(1), MOST_RETRY)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.is_changed.notify_all();
    }

    /// It is loaded no more. False if it was not shown to be.
    fn forget(&self) -> bool {
        let mut state = self.state();
        let was_here = matches!(*state, State::Here(_));
        if was_here {
            *state = State::Away;
        }
        was_here
    }

    /// The model if it is loaded.
    pub(super) fn hosted(&self) -> Option<Arc<Hosted>> {
        match &*self.state() {
            State::Here(hosted) => Some(Arc::clone(hosted)),
            _ => None,
        }
    }

    /// The same with a reason, where there is one to tell; `is_told`: why it can't be loaded, too.
    pub(super) fn standing(&self, is_told: bool) -> (&'static str, Option<String>) {
        let name = self.state_name();
        let reason = match &*self.state() {
            State::Failed(Problem::ModelFailed { cause, .. }, _) => {
                Some(Problem::ModelFailed { cause: Arc::clone(cause), is_told }.to_string())
            }
            State::Failed(problem, _) => Some(problem.to_string()),
            &State::Loading(since) => Some(match self.left_of(since) {
                Some(left) => format!("it is being loaded, which should take {} s more", left.as_secs_f64().ceil()),
                None => "it is being loaded".to_owned(),
            }),
            State::Away | State::Here(_) => None,
        };
        (name, reason)
    }

    /// "away", "loading", "loaded" or "failed".
    pub(super) fn state_name(&self) -> &'static str {
        match &*self.state() {
            State::Away => "away",
            State::Loading(_) => "loading",
            State::Here(_) => "loaded",
            State::Failed(..) => "failed",
        }
    }
}

/// All models of a server.
pub(super) struct Catalogue {
    pub(super) models: Models,
    entries: Vec<Arc<Entry>>,
    wanted: (Sender<Arc<Entry>>, Receiver<Arc<Entry>>),
    /// Nobody waits for a model any more.
    is_closed: AtomicBool,
}

impl Catalogue {
    /// Checks the names.
    pub(super) fn new(models: Models, served: Vec<Served>) -> Result<Self, ServerError> {
        let mut entries: Vec<Arc<Entry>> = Vec::new();
        for served in served {
            let is_known = entries.iter().any(|entry| entry.served.name == served.name);
            if !is_name(&served.name) || is_known {
                return Err(ServerError::Name { name: served.name });
            }
            entries.push(Arc::new(Entry::new(served)));
        }
        Ok(Self { models, entries, wanted: unbounded(), is_closed: AtomicBool::new(false) })
    }

    /// Whoever waits for a model is told that it does not come.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        for entry in &self.entries {
            // Whoever has looked before it was closed waits by now.
            let _state = entry.state();
            entry.is_changed.notify_all();
        }
    }

    /// All of them, in the order they were given.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    /// How the devices are, best first.
    pub(super) fn backends(&self) -> Vec<Standing> {
        let of_models: Vec<Vec<DeviceState>> = self.hosted().map(|hosted| hosted.engine.devices()).collect();
        let standing = |(place, info): (usize, DeviceInfo)| {
            let mut states = of_models.iter().filter_map(|states| states.get(place));
            let failure = states.clone().find_map(|state| state.failure.clone());
            let is_used = states.any(|state| state.is_used) || (of_models.is_empty() && place == 0);
            let used = of_models.iter().filter_map(|states| states.get(place)).find(|state| state.is_used);
            let (n_dispatches, placement) = (used.and_then(|it| it.n_dispatches), used.and_then(|it| it.placement));
            Standing { info, is_used, failure, passed_over: None, n_dispatches, placement }
        };
        let passed_over = self.models.passed_over().iter().map(|(info, why)| Standing {
            info: info.clone(),
            is_used: false,
            failure: None,
            passed_over: Some(why.clone()),
            n_dispatches: None,
            placement: None,
        });
        self.models.devices().into_iter().enumerate().map(standing).chain(passed_over).collect()
    }

    /// Time until all that are being loaded are there, as whoever asks for them is told; a second or more.
    pub(super) fn loading(&self) -> Duration {
        let left = self.entries.iter().filter_map(|entry| match *entry.state() {
            State::Loading(since) => Some(entry.left(since)),
            _ => None,
        });
        left.fold(Duration::from_secs(1), Duration::max)
    }

    /// Those that are loaded.
    pub(super) fn hosted(&self) -> impl Iterator<Item = Arc<Hosted>> {
        self.entries.iter().filter_map(|entry| entry.hosted())
    }

    pub(super) fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| entry.served.name == name)
    }

    /// A model that is loaded; if it is not, that is begun and waited for, but no longer than `most`, and not at all where
    /// it should take longer.
    pub(super) fn ask(&self, entry: &Arc<Entry>, most: Duration) -> Result<Arc<Hosted>, Problem> {
        let end = after(Instant::now(), most);
        let mut state = entry.state();
        loop {
            match &*state {
                State::Here(hosted) if self.models.touch(&entry.served.name) => return Ok(Arc::clone(hosted)),
                State::Failed(problem, at) if at.elapsed() < PAUSE => return Err(problem.clone()),
                &State::Loading(since) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if self.is_closed.load(Ordering::SeqCst) {
                        return Err(Problem::Draining);
                    }
                    if left.is_zero() || entry.left_of(since).is_some_and(|needed| needed > left) {
                        return Err(entry.loading(since));
                    }
                    let waited = entry.is_changed.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                State::Here(_) | State::Away | State::Failed(..) => {
                    *state = State::Loading(Instant::now());
                    // The receiver lives as long as the sender.
                    let _ = self.wanted.0.send(Arc::clone(entry));
                }
            }
        }
    }

    /// Unloads a model, when what it does now is done but within `most`; false if it is not loaded.
    pub(super) fn unload(&self, entry: &Entry, most: Duration) -> bool {
        let mut state = entry.state();
        if !matches!(*state, State::Here(_)) {
            return false;
        }
        *state = State::Away;
        drop(state);
        self.models.unload(&entry.served.name, most)
    }

    /// Loads what is wanted at the start, one model at least, then calls `ready`, then loads what is asked for and unloads what idles, until
    /// the server drains.
    pub(super) fn work(&self, app: &App, ready: impl FnOnce()) -> Result<(), ServerError> {
        let mut failure = None;
        std::thread::scope(|scope| {
            let hash = |hosted: Arc<Hosted>| {
                let named = std::thread::Builder::new().name("farpost-hash".to_owned());
                // Without it the model works as well, and is told without a hash.
                let _ = named.spawn_scoped(scope, move || read_hash(app, &hosted));
            };
            for entry in self.entries.iter().filter(|entry| !entry.served.is_on_demand) {
                if app.is_draining() {
                    return Ok(());
                }
                match self.load(app, entry) {
                    Ok(hosted) => hash(hosted),
                    // The others are of use without it; it is tried again when it is asked for.
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            if let Some(error) = failure.filter(|_| self.hosted().next().is_none()) {
                return Err(error);
            }
            ready();
            while !app.is_draining() {
                if let Ok(entry) = self.wanted.1.recv_timeout(ROUND) {
                    match self.load(app, &entry) {
                        Ok(hosted) => hash(hosted),
                        // At the start it ends the server, and is said at the end.
                        Err(error) => log::warn(app, &error.to_string()),
                    }
                }
                self.let_go(app);
            }
            Ok(())
        })
    }

    /// Loads a model and shows it, or shows why it can't be.
    fn load(&self, app: &App, entry: &Entry) -> Result<Arc<Hosted>, ServerError> {
        let name = &entry.served.name;
        let loaded = catch_unwind(AssertUnwindSafe(|| self.try_load(&entry.served)));
        let panicked = || ServerError::Trial { name: name.clone(), reason: "loading it panicked".to_owned() };
        let loaded = loaded.unwrap_or_else(|_| Err(panicked()));
        app.metrics.count_load(name, loaded.is_ok());
        // What has made room is seen to be gone by whoever sees the new one.
        self.tell_gone(app);
        match &loaded {
            Ok(hosted) => {
                app.metrics.of(name, "");
                log::note(app, &format!("model {name:?} was loaded in {:.0} ms", hosted.engine.load_ms()));
                if let State::Loading(since) = *entry.state() {
                    *entry.load_time.lock().unwrap_or_else(PoisonError::into_inner) = Some(since.elapsed());
                }
                entry.set(State::Here(Arc::clone(hosted)));
            }
            Err(error) => {
                entry.set(State::Failed(problem(error), Instant::now()));
            }
        }
        loaded
    }

    fn try_load(&self, served: &Served) -> Result<Arc<Hosted>, ServerError> {
        let name = || served.name.clone();
        let engine = self
            .models
            .get(&served.name)
            .map_err(|source| ServerError::Load { name: name(), source: Box::new(source) })?;
        if let Err(reason) = trial(&engine) {
            self.models.unload(&served.name, Duration::ZERO);
            return Err(ServerError::Trial { name: name(), reason });
        }
        self.models.pin(&served.name, served.is_pinned);
        Ok(Arc::new(Hosted::new(served, engine)))
    }

    /// Unloads what idles, and lets go of what was unloaded to make room.
    fn let_go(&self, app: &App) {
        for name in self.models.unload_idle() {
            log::note(app, &format!("model {name:?} was unloaded: nobody asked for it"));
            if let Some(entry) = self.entry(&name) {
                entry.forget();
            }
        }
        self.tell_gone(app);
    }

    /// Lets go of what was unloaded to make room.
    fn tell_gone(&self, app: &App) {
        let loaded = self.models.loaded();
        let is_loaded = |entry: &Entry| loaded.iter().any(|loaded| loaded.name == entry.served.name);
        for entry in self.entries.iter().filter(|entry| !is_loaded(entry)) {
            if entry.forget() {
                log::note(app, &format!("model {:?} was unloaded: another one needed the room", entry.served.name));
            }
        }
    }
}

/// Names stand in paths of URLs and mean no files.
fn is_name(name: &str) -> bool {
    let is_wrong = |c: char| c.is_control() || matches!(c, '/' | '\\');
    !name.is_empty() && name == name.trim() && !name.contains("..") && !name.contains(is_wrong)
}

/// One real step.
fn trial(engine: &Engine) -> Result<(), String> {
    let options = GenerateOptions { sampling: Sampling::greedy(), max_tokens: Some(1), ..GenerateOptions::default() };
    let request = match engine.model().pooling() {
        Some(_) => Request::embedding(vec![0]),
        None => Request::new(vec![0], options),
    };
    let stream = engine.submit(&request).map_err(|refusal| refusal.to_string())?;
    stream.finish().map(|_| ()).map_err(|error| error.to_string())
}

/// What whoever asks for a model that can't be loaded is told.
fn problem(error: &ServerError) -> Problem {
    let failed = || Problem::ModelFailed { cause: error.to_string().into(), is_told: false };
    let ServerError::Load { source, .. } = error else { return failed() };
    let (needed_bytes, allowed_bytes, retry_after) = match &**source {
        // Where others hold the rest of the cap they may be done by then, and idle ones give way.
        LoadError::Memory { needed_bytes, free_bytes, cap_bytes, .. } => {
            (*needed_bytes, *free_bytes, (needed_bytes <= cap_bytes).then_some(PAUSE))
        }
        LoadError::Engine(EngineError::Device(DeviceError::OutOfMemory { needed_bytes, free_bytes, .. })) => {
            (*needed_bytes, free_bytes.unwrap_or(0), None)
        }
        _ => return failed(),
    };
    Problem::ModelMemory { needed_bytes, allowed_bytes, retry_after }
}

/// What tells a model from others without reading all of it: where its weights lie, the beginnings of some of them, and its
/// template.
fn print(model: &Model) -> String {
    const SAMPLES: usize = 16;
    const SAMPLE_BYTES: usize = 256;
    let (file, mut hasher) = (model.file(), Sha256::new());
    hasher.update(file.size_bytes().to_le_bytes());
    let every = file.tensors().len().div_ceil(SAMPLES).max(1);
    for (number, tensor) in file.tensors().iter().enumerate() {
        hasher.update(format!("{} {:?} {:?} {}\n", tensor.name(), tensor.dtype(), tensor.dims(), tensor.offset()));
        if number % every == 0 {
            let bytes = tensor.weight().bytes().as_slice();
            hasher.update(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
        }
    }
    hasher.update(model.template().map_or("", ChatTemplate::source));
    hasher.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn longest_token_bytes(tokenizer: &Tokenizer) -> usize {
    let ids = 0..u32::try_from(tokenizer.n_vocab()).unwrap_or(u32::MAX);
    ids.map(|id| tokenizer.token_bytes(id).len()).max().unwrap_or(0).max(1)
}

/// Whoever asks for the model's version before that gets it without the hash.
fn read_hash(app: &App, hosted: &Hosted) {
    let mut go_on = |_: u64, _: u64| match app.is_draining() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    if let Ok(Some(hash)) = hosted.engine.model().content_hash_with(&mut go_on) {
        // It is set here only.
        let _ = hosted.hash.set(hash);
    }
}
