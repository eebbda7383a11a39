//! Several models under one memory cap: loaded when they are asked for, unloaded when they idle or others need the room.
//!
//! What gives way to a model that is to be loaded, in this order: models that idle and are not pinned, least recently used
//! first; those that are being unloaded; a part of the new model's cache, down to one context; then it is refused, with
//! the bytes needed. It is known before whether all that may give way suffices: a model that is refused harms no other.
//! Models that work are never unloaded. Weights, also those of packed files, are mapped: they are the system's to drop and
//! count for nothing.
//!
//! A model that is being unloaded keeps its slot until its memory is free: who asks for it waits and then loads it anew,
//! and a load that lacks room waits for it before it is refused.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use farpost_kernels::backend::{DeviceError, DeviceInfo, MemoryUse};

use super::error::EngineError;
use super::failover::Backends;
use super::handle::Engine;
use super::ledger::{Holdings, Ledger};
use super::options::EngineOptions;
use crate::model::{Model, ModelError};

/// Opens a model by its name, and says how its engine is to be opened.
pub type OpenModel = dyn Fn(&str) -> Result<Opened, ModelError> + Send + Sync;

/// A model to be loaded.
pub struct Opened {
    /// The model.
    pub model: Model,
    /// A smaller model of the same vocabulary that guesses ahead, for [`super::Speculate::Draft`].
    pub draft: Option<Model>,
    /// How its engine is opened.
    pub options: EngineOptions,
}

impl Opened {
    /// A model by itself.
    pub fn new(model: Model, options: EngineOptions) -> Self {
        Self { model, draft: None, options }
    }
}

/// Settings of [`Models`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelsOptions {
    /// Bytes that caches, scratch and requests of all models may take together.
    pub memory_cap: Option<u64>,
    /// [`Models::unload_idle`] unloads what was not asked for in this time; `None` keeps all.
    pub idle: Option<Duration>,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its file.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The cap, with all given way that may.
    #[error("model '{name}' needs {needed_bytes} bytes, {free_bytes} of the cap of {cap_bytes} can be had")]
    Memory {
        /// The model.
        name: String,
        /// Bytes that it needs with the smallest cache.
        needed_bytes: u64,
        /// Bytes of the cap that nobody holds, or that models hold which may give way.
        free_bytes: u64,
        /// The cap.
        cap_bytes: u64,
    },
}

/// A model that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its name.
    pub name: String,
    /// Bytes by kind.
    pub memory: MemoryUse,
    /// Who holds how many bytes under the cap.
    pub holdings: Holdings,
    /// Whether it stays until it is unloaded by name.
    pub is_pinned: bool,
    /// Since it was asked for last.
    pub unused: Duration,
}

/// Models by name, each with its engine.
pub struct Models {
    open: Box<OpenModel>,
    backends: Backends,
    options: ModelsOptions,
    /// Of all engines.
    ledger: Arc<Ledger>,
    shelf: Mutex<Shelf>,
    /// A model came or went.
    is_changed: Condvar,
}

#[derive(Default)]
struct Shelf {
    slots: Vec<Slot>,
    /// One is loaded at a time, so that each sees all the room that is left.
    is_loading: bool,
}

struct Slot {
    name: String,
    engine: Engine,
    is_pinned: bool,
    used: Instant,
    /// It takes no more requests, and is gone when those it has are done.
    is_leaving: bool,
}

impl Shelf {
    /// The slot of a model that takes requests.
    fn slot(&mut self, name: &str) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.name == name && !slot.is_leaving)
    }
}

impl Models {
    /// None loaded yet. `open` makes a model of a name.
    pub fn new(open: Box<OpenModel>, backends: impl Into<Backends>, options: ModelsOptions) -> Self {
        let (backends, ledger) = (backends.into(), Ledger::new(options.memory_cap, None));
        Self { open, backends, options, ledger, shelf: Mutex::default(), is_changed: Condvar::new() }
    }

    /// The engine of a model, which is loaded if it is not. Ask anew for each request: an engine that was unloaded
    /// meanwhile refuses with [`super::Refusal::Closed`].
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn get(&self, name: &str) -> Result<Engine, LoadError> {
        let mut shelf = self.shelf();
        loop {
            if let Some(slot) = shelf.slot(name) {
                slot.used = Instant::now();
                return Ok(slot.engine.clone());
            }
            if !shelf.is_loading && !shelf.slots.iter().any(|slot| slot.name == name) {
                break;
            }
            shelf = self.is_changed.wait(shelf).unwrap_or_else(PoisonError::into_inner);
        }
        shelf.is_loading = true;
        drop(shelf);
        let _loading = Loading(self);
        let engine = self.load(name)?;
        let (name, used) = (name.to_owned(), Instant::now());
        self.shelf().slots.push(Slot { name, engine: engine.clone(), is_pinned: false, used, is_leaving: false });
        Ok(engine)
    }

    /// Marks a model as used now; false if it is not loaded.
    pub fn touch(&self, name: &str) -> bool {
        self.shelf().slot(name).map(|slot| slot.used = Instant::now()).is_some()
    }

    /// Bytes that caches, scratch and requests of all models may take together.
    pub fn memory_cap(&self) -> Option<u64> {
        self.options.memory_cap
    }

    /// What models may run on, best first. [`Engine::devices`] says what a loaded one runs on.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        self.backends.iter().map(|backend| backend.describe()).collect()
    }

    /// Devices that are there and not used, each with the reason.
    pub fn passed_over(&self) -> &[(DeviceInfo, String)] {
        self.backends.passed_over()
    }

    /// Keeps a loaded model from giving way, or no longer; false if it is not loaded.
    pub fn pin(&self, name: &str, is_pinned: bool) -> bool {
        self.shelf().slot(name).map(|slot| slot.is_pinned = is_pinned).is_some()
    }

    /// Unloads a model, when what it does now is done but within `most`; false if it is not loaded. Waits until its memory
    /// is free; until then it is among those that are [loaded](Models::loaded).
    pub fn unload(&self, name: &str, most: Duration) -> bool {
        let mut shelf = self.shelf();
        let Some(slot) = shelf.slot(name) else { return false };
        slot.is_leaving = true;
        let engine = slot.engine.clone();
        drop(shelf);
        self.see_off(name, engine, most);
        true
    }

    /// Waits until an engine that is leaving has ended and its memory is free; then its slot is, too.
    fn see_off(&self, name: &str, engine: Engine, most: Duration) {
        engine.drain(most);
        drop(engine);
        // There is one slot of a name.
        self.shelf().slots.retain(|slot| slot.name != name);
        self.is_changed.notify_all();
    }

    /// Unloads what idles for longer than [`ModelsOptions::idle`], but what is pinned; call it from time to time. Returns
    /// the names.
    pub fn unload_idle(&self) -> Vec<String> {
        let Some(idle) = self.options.idle else { return Vec::new() };
        let mut unloaded = Vec::new();
        while let Some(name) = self.unload_one(|slot| slot.used.elapsed() >= idle) {
            unloaded.push(name);
        }
        unloaded
    }

    /// What is loaded, in no order.
    pub fn loaded(&self) -> Vec<Loaded> {
        let of = |slot: &Slot| Loaded {
            name: slot.name.clone(),
            memory: slot.engine.memory(),
            holdings: slot.engine.holdings(),
            is_pinned: slot.is_pinned,
            unused: slot.used.elapsed(),
        };
        self.shelf().slots.iter().map(of).collect()
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unloads the least recently used that idles, is not pinned and may go.
    fn unload_one(&self, may_go: impl Fn(&Slot) -> bool) -> Option<String> {
        let mut shelf = self.shelf();
        let mut places: Vec<usize> = (0..shelf.slots.len())
            .filter(|&place| {
                let slot = &shelf.slots[place];
                !slot.is_pinned && !slot.is_leaving && may_go(slot)
            })
            .collect();
        places.sort_by_key(|&place| shelf.slots[place].used);
        let place = places.into_iter().find(|&place| shelf.slots[place].engine.close_if_idle())?;
        let slot = &mut shelf.slots[place];
        slot.is_leaving = true;
        let (name, engine) = (slot.name.clone(), slot.engine.clone());
        drop(shelf);
        // It has nothing to do: this waits for its threads to end.
        self.see_off(&name, engine, Duration::ZERO);
        Some(name)
    }

    /// Waits until one that is leaving is gone; false if there is none.
    fn await_leaving(&self) -> bool {
        let mut shelf = self.shelf();
        let n_leaving = |shelf: &Shelf| shelf.slots.iter().filter(|slot| slot.is_leaving).count();
        let n_before = n_leaving(&shelf);
        // Others may begin to leave meanwhile; then that is waited for as well.
        while n_before > 0 && n_leaving(&shelf) >= n_before {
            shelf = self.is_changed.wait(shelf).unwrap_or_else(PoisonError::into_inner);
        }
        n_before > 0
    }

    fn load(&self, name: &str) -> Result<Engine, LoadError> {
        let Opened { model, draft, mut options } = (self.open)(name)?;
        let (model, draft) = (Arc::new(model), draft.map(Arc::new));
        loop {
            let needed_bytes = Engine::needed_bytes(&model, draft.as_deref(), &**self.backends.first(), &options)?;
            let error = match self.make_room(needed_bytes) {
                Ok(()) => {
                    let whole = Some(Arc::clone(&self.ledger));
                    match Engine::open_under(Arc::clone(&model), draft.clone(), &self.backends, &options, whole) {
                        Ok(engine) => return Ok(engine),
                        Err(EngineError::Device(error @ DeviceError::OutOfMemory { .. })) => {
                            // The system has less than the cap allows, or requests have taken it meanwhile.
                            if self.unload_one(|_| true).is_some() || self.await_leaving() {
                                continue;
                            }
                            LoadError::Engine(error.into())
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(_) if self.await_leaving() => continue,
                Err(free_bytes) => {
                    let cap_bytes = self.options.memory_cap.unwrap_or(u64::MAX);
                    LoadError::Memory { name: name.to_owned(), needed_bytes, free_bytes, cap_bytes }
                }
            };
            let context = options.context_of(&model);
            let kv_tokens = options.kv_tokens_of(&model);
            if kv_tokens <= context {
                return Err(error);
            }
            options.kv_tokens = Some((kv_tokens / 2).max(context));
        }
    }

    /// Unloads what may give way until so many bytes are free; if all of it would not do, nothing, and says how many there
    /// would be.
    fn make_room(&self, needed_bytes: u64) -> Result<(), u64> {
        loop {
            let Some(free_bytes) = self.ledger.free().filter(|free| *free < needed_bytes) else { return Ok(()) };
            let may_go = |slot: &&Slot| !slot.is_pinned && !slot.is_leaving && slot.engine.is_idle();
            let held = |slot: &Slot| slot.engine.memory().kv.saturating_add(slot.engine.memory().scratch);
            let idle_bytes: u64 = self.shelf().slots.iter().filter(may_go).map(held).sum();
            let most_bytes = free_bytes.saturating_add(idle_bytes);
            if most_bytes < needed_bytes || self.unload_one(|_| true).is_none() {
                return Err(most_bytes);
            }
        }
    }
}

/// Ends the loading, however it ends.
struct Loading<'m>(&'m Models);

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.0.shelf().is_loading = false;
        self.0.is_changed.notify_all();
    }
}
