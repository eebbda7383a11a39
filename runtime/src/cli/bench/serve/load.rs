//! Sends the requests: by so many clients of which each waits for its answer (closed loop), or when they arrive (open
//! loop).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::cancels::Cancels;
use super::exchange::{Manner, Outcome, Planned, Record, exchange};
use super::plan::Plan;
use super::target::{Failed, Target};
use crate::interrupt::Interrupt;

/// Requests that may be open at once in an open loop: what most systems let a program open.
const MOST_OPEN: usize = 1000;
/// How often Ctrl-C is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Who sends requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// So many clients.
    Closed(usize),
    /// Whoever arrives.
    Open,
}

/// What all clients share.
#[derive(Debug)]
pub struct Shared {
    pub target: Target,
    pub manner: Manner,
    pub cancels: Cancels,
}

/// What came of a load.
#[derive(Debug)]
pub struct Ran {
    pub records: Vec<Record>,
    /// See [`Cancels::watch`].
    pub cancel_latencies: Option<Vec<f64>>,
    /// Ctrl-C ended it.
    pub is_interrupted: bool,
}

/// Sends all that is planned, in `seconds` at most if that is given; what was sent by then is waited for. `told` hears of
/// each request that ended.
pub async fn run(
    shared: Arc<Shared>,
    plan: Plan,
    way: Loop,
    seconds: Option<f64>,
    interrupt: &Interrupt,
    mut told: impl FnMut(&Record),
) -> Ran {
    let watches = plan.cancel_share > 0.0;
    let watcher = watches.then(|| {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { shared.cancels.watch(&shared.target).await })
    });
    let start = Instant::now();
    let end = seconds.map(|seconds| start + Duration::from_secs_f64(seconds));
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let tasks: Vec<_> = match way {
        Loop::Closed(n_clients) => {
            let plan = Arc::new(Mutex::new(plan));
            let client = |_| tokio::spawn(client(Arc::clone(&shared), Arc::clone(&plan), start, end, sender.clone()));
            (0..n_clients).map(client).collect()
        }
        Loop::Open => vec![tokio::spawn(arrivals(Arc::clone(&shared), plan, start, end, sender.clone()))],
    };
    drop(sender);
    let (mut records, mut is_interrupted) = (Vec::new(), false);
    loop {
        match tokio::time::timeout(LOOK, receiver.recv()).await {
            Ok(Some(record)) => {
                told(&record);
                records.push(record);
            }
            Ok(None) => break,
            Err(_) => {}
        }
        if interrupt.is_asked() {
            is_interrupted = true;
            break;
        }
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    shared.cancels.end();
    let cancel_latencies = match watcher {
        Some(watcher) if !is_interrupted => watcher.await.ok().flatten(),
        _ => None,
    };
    Ran { records, cancel_latencies, is_interrupted }
}

async fn client(
    shared: Arc<Shared>,
    plan: Arc<Mutex<Plan>>,
    start: Instant,
    end: Option<Instant>,
    sender: mpsc::UnboundedSender<Record>,
) {
    while end.is_none_or(|end| Instant::now() < end) {
        let planned = plan.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(planned) = planned else { return };
        let record = one(&shared, &planned, start).await;
        let is_refused = matches!(&record.outcome, Outcome::Failed(failed) if failed.kind == "connect");
        if sender.send(record).is_err() {
            return;
        }
        if is_refused {
            // A server that is away is not asked as fast as this machine can.
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn arrivals(
    shared: Arc<Shared>,
    plan: Plan,
    start: Instant,
    end: Option<Instant>,
    sender: mpsc::UnboundedSender<Record>,
) {
    let n_open = Arc::new(AtomicUsize::new(0));
    for planned in plan {
        let at = planned.at.and_then(|at| start.checked_add(at));
        if end.is_some_and(|end| at.is_none_or(|at| at >= end)) {
            return;
        }
        if let Some(at) = at {
            tokio::time::sleep_until(at.into()).await;
        }
        if n_open.load(Ordering::Relaxed) >= MOST_OPEN {
            let why = Failed::new("not_sent", format_args!("{MOST_OPEN} requests were open"));
            if sender.send(unsent(&planned, start, why)).is_err() {
                return;
            }
            continue;
        }
        n_open.fetch_add(1, Ordering::Relaxed);
        let (shared, sender, n_open) = (Arc::clone(&shared), sender.clone(), Arc::clone(&n_open));
        tokio::spawn(async move {
            let record = one(&shared, &planned, start).await;
            n_open.fetch_sub(1, Ordering::Relaxed);
            // Nobody listens any more after Ctrl-C.
            let _ = sender.send(record);
        });
    }
}

async fn one(shared: &Shared, planned: &Planned, start: Instant) -> Record {
    exchange(&shared.target, &shared.manner, planned, start, |at| shared.cancels.closed(at)).await
}

/// A request that never left.
fn unsent(planned: &Planned, start: Instant, why: Failed) -> Record {
    Record { late: 0.0, outcome: Outcome::Failed(why), ..Record::new(planned, start, Instant::now()) }
}
