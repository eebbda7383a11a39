//! Which device an engine runs on: the best that does its work. One that fails is left for the next, and tried again after
//! a while, after each failure a longer one. The last of all is not left: it is begun anew a few times.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use farpost_kernels::backend::{Backend, DeviceError, DeviceInfo, Limits, Placement, Plan};

use crate::model::Model;

/// Times that the last device is begun anew before something comes of it.
const MOST_TRIES: u32 = 2;
/// Until a device that failed is tried again for the first time, and at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MOST_RETRY: Duration = Duration::from_secs(300);

/// Devices that an engine may run on, best first; there is one at least.
#[derive(Clone)]
pub struct Backends {
    devices: Vec<Arc<dyn Backend>>,
    passed_over: Vec<(DeviceInfo, String)>,
}

impl Backends {
    /// One device.
    pub fn one(backend: Arc<dyn Backend>) -> Self {
        Self { devices: vec![backend], passed_over: Vec::new() }
    }

    /// And where it fails, another one.
    #[must_use]
    pub fn or(mut self, backend: Arc<dyn Backend>) -> Self {
        self.devices.push(backend);
        self
    }

    /// Devices that are there and not used, each with the reason, for reports.
    #[must_use]
    pub fn passing_over(mut self, devices: impl IntoIterator<Item = (DeviceInfo, String)>) -> Self {
        self.passed_over.extend(devices);
        self
    }

    /// Devices that are there and not used.
    pub fn passed_over(&self) -> &[(DeviceInfo, String)] {
        &self.passed_over
    }

    /// The best one.
    pub fn first(&self) -> &Arc<dyn Backend> {
        &self.devices[0]
    }

    /// All, best first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        self.devices.iter()
    }
}

impl<B: Backend + 'static> From<Arc<B>> for Backends {
    fn from(backend: Arc<B>) -> Self {
        Self::one(backend)
    }
}

impl From<Arc<dyn Backend>> for Backends {
    fn from(backend: Arc<dyn Backend>) -> Self {
        Self::one(backend)
    }
}

/// How a device of an engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// What it is.
    pub info: DeviceInfo,
    /// Whether the engine runs on it.
    pub is_used: bool,
    /// Why it was left, while it is not to be used.
    pub failure: Option<String>,
    /// Dispatches that a token takes on it, while it is used; none on the processor.
    pub n_dispatches: Option<usize>,
    /// Where layers are, if it is used and has not all of them.
    pub placement: Option<Placement>,
}

/// The devices of an engine, as its owner sees them.
pub(super) struct Devices {
    /// Best first.
    devices: Vec<Device>,
    used: usize,
    /// What the last plan said of itself.
    n_dispatches: Option<usize>,
    placement: Option<Placement>,
    /// Times that the last one was begun anew since something came of it.
    n_tries: u32,
}

struct Device {
    backend: Arc<dyn Backend>,
    info: DeviceInfo,
    down: Option<Down>,
    /// From its last failure until it was tried again.
    wait: Duration,
    /// Since it was taken up again.
    used_since: Option<Instant>,
}

/// Why and until when a device is not used.
struct Down {
    reason: String,
    retry: Instant,
    /// What comes of a self-test that runs.
    test: Option<Receiver<Result<(), DeviceError>>>,
}

impl Devices {
    pub(super) fn new(backends: &Backends) -> Self {
        let device = |backend: &Arc<dyn Backend>| Device {
            backend: Arc::clone(backend),
            info: backend.describe(),
            down: None,
            wait: Duration::ZERO,
            used_since: None,
        };
        let devices = backends.iter().map(device).collect();
        Self { devices, used: 0, n_dispatches: None, placement: None, n_tries: 0 }
    }

    /// The one that is used.
    pub(super) fn backend(&self) -> &Arc<dyn Backend> {
        &self.devices[self.used].backend
    }

    /// Compiles for it, with a cache that holds a context.
    pub(super) fn compile(
        &mut self,
        model: &Model,
        limits: &Limits,
        context: usize,
    ) -> Result<Box<dyn Plan>, DeviceError> {
        let compiled = catch_unwind(AssertUnwindSafe(|| self.backend().compile(model.graph(), limits)));
        let mut plan = compiled.unwrap_or_else(|_| Err(DeviceError::Lost("it panicked".to_owned())))?;
        if plan.kv().free_tokens() < context {
            return Err(DeviceError::Refused(format!("its cache has no room for {context} tokens")));
        }
        (self.n_dispatches, self.placement) = (plan.n_dispatches(), plan.placement());
        Ok(plan)
    }

    /// Whether there is another one to go on with.
    pub(super) fn has_next(&self) -> bool {
        self.next().is_some()
    }

    fn next(&self) -> Option<usize> {
        (self.used + 1..self.devices.len()).find(|&place| self.devices[place].down.is_none())
    }

    /// The device that is used has failed. True if there is one to begin anew on: the next, or for some times the last.
    pub(super) fn fail(&mut self, error: &DeviceError, now: Instant) -> bool {
        match self.next() {
            Some(next) => {
                self.devices[self.used].leave(error, now);
                (self.used, self.n_tries) = (next, 0);
                true
            }
            None => {
                self.n_tries += 1;
                let is_tried = self.n_tries <= MOST_TRIES;
                if !is_tried {
                    self.n_tries = 0;
                }
                is_tried
            }
        }
    }

    /// There was a new token: something has come of beginning anew.
    pub(super) fn worked(&mut self) {
        self.n_tries = 0;
    }

    /// When a device that was left is to be looked at, if there is one.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.devices[..self.used].iter().filter_map(|device| device.down.as_ref()).map(|down| down.retry).min()
    }

    /// Tests devices that are better than the one that is used and were left, in threads of their own, when their time has
    /// come. True if one of them works again: it is used from now on.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let used = self.used;
        for (place, device) in self.devices[..used].iter_mut().enumerate() {
            if device.look(now) {
                (self.used, self.n_tries) = (place, 0);
                return true;
            }
        }
        false
    }

    pub(super) fn states(&self) -> Vec<DeviceState> {
        let state = |(place, device): (usize, &Device)| DeviceState {
            info: device.info.clone(),
            is_used: place == self.used,
            failure: device.down.as_ref().map(|down| down.reason.clone()),
            n_dispatches: self.n_dispatches.filter(|_| place == self.used),
            placement: self.placement.filter(|_| place == self.used),
        };
        self.devices.iter().enumerate().map(state).collect()
    }
}

impl Device {
    fn leave(&mut self, error: &DeviceError, now: Instant) {
        let has_lasted = self.used_since.take().is_some_and(|since| now.saturating_duration_since(since) > MOST_RETRY);
        self.wait = if has_lasted { FIRST_RETRY } else { (2 * self.wait).clamp(FIRST_RETRY, MOST_RETRY) };
        self.down = Some(Down { reason: error.to_string(), retry: now + self.wait, test: None });
    }

    /// Begins a self-test when it is time, or sees what came of it; true if the device can be used again.
    fn look(&mut self, now: Instant) -> bool {
        let Some(down) = self.down.as_mut().filter(|down| down.retry <= now) else { return false };
        let Some(test) = &down.test else {
            let (backend, (teller, test)) = (Arc::clone(&self.backend), mpsc::channel());
            let run = move || {
                // Nobody may be there any more.
                let _ = teller.send(backend.self_test());
            };
            // Without a thread the sender is dropped, and that is a test that failed.
            let _ = std::thread::Builder::new().name("farpost-retry".to_owned()).spawn(run);
            down.test = Some(test);
            return false;
        };
        match test.try_recv() {
            Ok(Ok(())) => {
                (self.down, self.used_since) = (None, Some(now));
                true
            }
            Ok(Err(error)) => {
                self.leave(&error, now);
                false
            }
            Err(TryRecvError::Disconnected) => {
                self.leave(&DeviceError::Lost("its self-test panicked".to_owned()), now);
                false
            }
            Err(TryRecvError::Empty) => false,
        }
    }
}
