//! What all connections share: the model, once it is loaded, the settings, and whether the server is about to stop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use farpost_models::gguf::ContentHash;

use rustls::ServerConfig;

use super::error::Problem;
use super::guard::Caller;
use super::keys::Keys;
use super::live::Live;
use super::metrics::Metrics;
use super::options::{ServerError, ServerOptions};
use super::quota::Account;
use crate::engine::{Engine, Sampling, fresh_seed};

/// A model as it is served.
pub struct Served {
    /// What requests call it.
    pub name: String,
    /// Runs it.
    pub engine: Engine,
    /// How tokens are chosen where a request does not say.
    pub sampling: Sampling,
}

/// A served model, with what the server knows of it.
pub(super) struct Hosted {
    pub(super) name: String,
    pub(super) engine: Engine,
    pub(super) sampling: Sampling,
    /// Seconds since 1970 when it was loaded.
    pub(super) created: u64,
    /// Known some time after loading: it reads the whole file.
    pub(super) hash: OnceLock<ContentHash>,
}

impl Hosted {
    pub(super) fn new(served: Served) -> Self {
        let Served { name, engine, sampling } = served;
        Self { name, engine, sampling, created: unix_seconds(), hash: OnceLock::new() }
    }

    /// Build and model, short; `None` until the file's hash is known.
    pub(super) fn fingerprint(&self) -> Option<String> {
        let hash = self.hash.get()?.to_string();
        Some(format!("fp_{}_{}", env!("CARGO_PKG_VERSION"), &hash[..8]))
    }
}

/// Shared by all connections.
pub(super) struct App {
    pub(super) options: ServerOptions,
    pub(super) metrics: Metrics,
    pub(super) keys: Option<Live<Keys>>,
    pub(super) tls: Option<Live<ServerConfig>>,
    pub(super) started: Instant,
    hosted: OnceLock<Arc<Hosted>>,
    is_draining: AtomicBool,
    /// When a step was due last, and how many there were.
    stall: Mutex<Option<(u64, Instant)>>,
    n_requests: AtomicU64,
    /// What keys have used, by their ids.
    accounts: Mutex<BTreeMap<Arc<str>, Arc<Account>>>,
    /// Sets the ids of this process apart from those of others.
    salt: u64,
}

impl App {
    /// Checks the settings and reads the files they name.
    pub(super) fn new(options: ServerOptions) -> Result<Self, ServerError> {
        options.check()?;
        let keys = options.keys.clone().map(|path| Live::new(vec![path.clone()], move || Keys::of_file(&path)));
        let tls = options.tls.clone().map(|files| Live::new(files.paths(), move || files.config()));
        Ok(Self {
            keys: keys.transpose()?,
            tls: tls.transpose()?,
            options,
            metrics: Metrics::default(),
            started: Instant::now(),
            hosted: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            stall: Mutex::new(None),
            n_requests: AtomicU64::new(0),
            accounts: Mutex::default(),
            salt: fresh_seed(),
        })
    }

    /// What the key with this id has used, since the server began.
    pub(super) fn account(&self, id: &Arc<str>) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(accounts.entry(Arc::clone(id)).or_insert_with(|| Arc::new(Account::new(Instant::now()))))
    }

    /// Reads files of settings again: those that have changed, or all.
    pub(super) fn refresh(&self, all: bool) {
        if let Some(keys) = &self.keys {
            self.tell_refreshed("keys", &keys.names(), keys.refresh(all));
        }
        if let Some(tls) = &self.tls {
            self.tell_refreshed("tls", &tls.names(), tls.refresh(all));
        }
    }

    fn tell_refreshed(&self, what: &'static str, files: &str, read: Option<Result<(), ServerError>>) {
        let Some(read) = read else { return };
        self.metrics.count_reload(what, read.is_ok());
        match read {
            Ok(()) => super::log::note(self, &format!("{files}: read again")),
            Err(error) => super::log::warn(self, &format!("{error}; what was read before stays in force")),
        }
    }

    /// A connection that never came to a request.
    pub(super) fn log_handshake(&self, peer: SocketAddr, why: &str) {
        self.metrics.count_refusal("tls_handshake");
        super::log::note(self, &format!("{peer}: the TLS handshake failed: {why}"));
    }

    /// The model is there from now on.
    pub(super) fn host(&self, hosted: Arc<Hosted>) {
        // There is one model; a second one would be a mistake of this module.
        self.metrics.of(&hosted.name, "");
        let _ = self.hosted.set(hosted);
    }

    /// The model, if it is loaded.
    pub(super) fn hosted(&self) -> Option<&Arc<Hosted>> {
        self.hosted.get()
    }

    /// Takes no more requests.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// The model that a request names. Who may not ask it is told the same as where there is none.
    pub(super) fn model(&self, name: &str, caller: &Caller) -> Result<Arc<Hosted>, Problem> {
        if self.is_draining() {
            return Err(Problem::Draining);
        }
        let hosted = self.hosted().ok_or(Problem::Loading)?;
        match hosted.name == name && caller.may_ask(name) {
            true => Ok(Arc::clone(hosted)),
            false => Err(Problem::NoModel(name.to_owned())),
        }
    }

    /// True if there is work and no step for too long.
    pub(super) fn is_stalled(&self) -> bool {
        let Some(hosted) = self.hosted() else { return false };
        let metrics = hosted.engine.metrics();
        let mut stall = self.stall.lock().unwrap_or_else(PoisonError::into_inner);
        if metrics.running + metrics.waiting == 0 {
            *stall = None;
            return false;
        }
        match *stall {
            Some((steps, since)) if steps == metrics.steps => since.elapsed() > self.options.stall_timeout,
            _ => {
                *stall = Some((metrics.steps, Instant::now()));
                false
            }
        }
    }

    /// An id that no other request has.
    pub(super) fn fresh_id(&self) -> String {
        let number = self.n_requests.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{number:08x}", self.salt)
    }
}

/// Now, in seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
