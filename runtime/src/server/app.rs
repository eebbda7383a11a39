//! What all connections share: the models, the settings, and whether the server is about to stop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use farpost_models::template::CivilTime;
use rustls::ServerConfig;
use tokio::sync::Semaphore;

use super::catalogue::{Catalogue, Entry, Hosted, Served};
use super::error::Problem;
use super::guard::Visit;
use super::keys::Keys;
use super::live::Live;
use super::metrics::Metrics;
use super::options::{ServerError, ServerOptions};
use super::otlp::Otlp;
use super::quota::Account;
use crate::engine::{Models, fresh_seed};

/// Shared by all connections.
pub(super) struct App {
    pub(super) options: ServerOptions,
    pub(super) metrics: Metrics,
    pub(super) catalogue: Catalogue,
    pub(super) keys: Option<Live<Keys>>,
    pub(super) tls: Option<Live<ServerConfig>>,
    pub(super) otlp: Option<Otlp>,
    /// One permit for each request that may be read at once.
    pub(super) readers: Arc<Semaphore>,
    pub(super) started: Instant,
    /// The same in seconds since 1970.
    pub(super) started_at: u64,
    /// What is wanted at the start is loaded.
    is_loaded: AtomicBool,
    is_draining: AtomicBool,
    /// When connections were seen to be looked after last, in milliseconds since the start.
    beat_ms: AtomicU64,
    n_requests: AtomicU64,
    n_groups: AtomicU64,
    /// What keys have used, by their ids.
    accounts: Mutex<BTreeMap<Arc<str>, Arc<Account>>>,
    /// Sets the ids of this process apart from those of others.
    salt: u64,
}

impl App {
    /// Checks the settings and reads the files they name.
    pub(super) fn new(options: ServerOptions, models: Models, served: Vec<Served>) -> Result<Self, ServerError> {
        options.check()?;
        let keys = options.keys.clone().map(|path| Live::new(vec![path.clone()], move || Keys::of_file(&path)));
        let tls = options.tls.clone().map(|files| Live::new(files.paths(), move || files.config()));
        let app = Self {
            catalogue: Catalogue::new(models, served)?,
            keys: keys.transpose()?,
            tls: tls.transpose()?,
            otlp: options.otlp.clone().map(Otlp::new),
            options,
            metrics: Metrics::default(),
            readers: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from))),
            started: Instant::now(),
            started_at: unix_seconds(),
            is_loaded: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            beat_ms: AtomicU64::new(0),
            n_requests: AtomicU64::new(0),
            n_groups: AtomicU64::new(0),
            accounts: Mutex::default(),
            salt: fresh_seed(),
        };
        app.tell_unknown_models();
        Ok(app)
    }

    /// Says which models keys may ask that are not here. Lists of keys are shared between servers, so they are no error.
    fn tell_unknown_models(&self) {
        let Some(keys) = &self.keys else { return };
        let known: Vec<String> = self.catalogue.entries().map(|entry| entry.served.name.clone()).collect();
        for unknown in keys.get().unknown_models(&known) {
            super::log::warn(self, &format!("{}: {unknown}, which is no model of this server", keys.names()));
        }
    }

    /// What the key with this id has used, since the server began.
    pub(super) fn account(&self, id: &Arc<str>) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(accounts.entry(Arc::clone(id)).or_insert_with(|| Arc::new(Account::new(Instant::now()))))
    }

    /// Reads files of settings again: those that have changed, or all.
    pub(super) fn refresh(&self, all: bool) {
        if let Some(keys) = &self.keys {
            let read = keys.refresh(all);
            let is_new = matches!(read, Some(Ok(())));
            self.tell_refreshed("keys", &keys.names(), read);
            if is_new {
                self.tell_unknown_models();
            }
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
        self.metrics.count_refusal("tls_handshake", "", "");
        super::log::note(self, &format!("{peer}: the TLS handshake failed: {why}"));
    }

    /// The whole answer to a request that never comes to a handler; the connection ends with it.
    pub(super) fn refuse_unread(&self, problem: &Problem) -> Vec<u8> {
        self.metrics.count_refusal(problem.reason(), "", "");
        let id = format!("req_{}", self.fresh_id());
        let status = StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::BAD_REQUEST);
        super::log::note(self, &format!("{} {id} reason={}", status.as_u16(), problem.reason()));
        let body = super::wire::error(problem);
        let retry_after = problem.retry_after().map(|seconds| format!("retry-after: {seconds}\r\n"));
        let head = format!(
            "HTTP/1.1 {} {}\r\nconnection: close\r\ncontent-type: application/json\r\nx-request-id: {id}\r\n\
             x-farpost-version: {}\r\nopenai-processing-ms: 0\r\n{}content-length: {}\r\ndate: {}\r\n\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default(),
            env!("CARGO_PKG_VERSION"),
            retry_after.unwrap_or_default(),
            body.len(),
            // As HTTP writes it (RFC 9110, section 5.6.7).
            CivilTime::now_utc().format("%a, %d %b %Y %H:%M:%S GMT"),
        );
        (head + &body).into_bytes()
    }

    /// What is wanted at the start is there from now on.
    pub(super) fn set_loaded(&self) {
        self.is_loaded.store(true, Ordering::Relaxed);
    }

    /// Takes no more requests.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
        self.catalogue.close();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }

    /// A model by the name that a request gives. Who may not ask it is told the same as where there is none.
    pub(super) fn entry(&self, name: &str, visit: &Visit) -> Result<&Arc<Entry>, Problem> {
        let entry = self.catalogue.entry(name).filter(|_| visit.caller.may_ask(name));
        let entry = entry.ok_or_else(|| Problem::NoModel(name.to_owned()))?;
        visit.about.set_name(name);
        Ok(entry)
    }

    /// The model that a request names, loaded; may wait for that. Who is to get a stream is not left in silence for longer
    /// than streams ever are.
    pub(super) fn model(&self, name: &str, visit: &Visit, is_stream: bool) -> Result<Arc<Hosted>, Problem> {
        let entry = self.entry(name, visit)?;
        if self.is_draining() {
            return Err(Problem::Draining);
        }
        let options = &self.options;
        let most = if is_stream { options.load_wait.min(options.ping_interval) } else { options.load_wait };
        let hosted = self.catalogue.ask(entry, most)?;
        visit.about.set_model(&hosted);
        Ok(hosted)
    }

    /// "ready", or why it is not.
    pub(super) fn readiness(&self) -> &'static str {
        let is_stalled = |hosted: Arc<Hosted>| hosted.is_stalled(self.options.stall_timeout);
        match self.is_loaded.load(Ordering::Relaxed) {
            _ if self.is_draining() => "draining",
            false => "loading",
            true if self.catalogue.hosted().any(is_stalled) => "stalled",
            true => "ready",
        }
    }

    /// Connections are looked after.
    pub(super) fn beat(&self) {
        self.beat_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// False if there is work and no step, or connections are not looked after.
    pub(super) fn is_well(&self) -> bool {
        let since_beat =
            self.started.elapsed().saturating_sub(Duration::from_millis(self.beat_ms.load(Ordering::Relaxed)));
        let is_beating = since_beat < self.options.stall_timeout.max(3 * self.options.watch_interval);
        is_beating && self.readiness() != "stalled"
    }

    /// A number for prompts that are asked for together.
    pub(super) fn fresh_group(&self) -> u64 {
        1 + self.n_groups.fetch_add(1, Ordering::Relaxed)
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
