//! Threads that run one job together: claim chunks of work, meet at barriers, go to sleep when there is nothing.
//!
//! A [`Team`] of `n` is `n - 1` threads of its own and the thread that calls [`Team::run`], so a job starts without
//! handing it to anybody. Waiters spin for some tens of microseconds, then sleep: a barrier between two stages is far
//! shorter than a wake-up, an idle program must cost nothing. Where waits keep ending in sleep the machine is shared
//! with others, and spinning is cut down, so that a neighbour takes its share and no more.
//!
//! A chunk that panics marks the job as failed; everybody still passes every barrier, so nobody waits forever, and
//! [`Team::run`] reports it.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

/// Longest spin of a waiter, in microseconds.
const MAX_SPIN_MICROS: u32 = 50;

/// A number that only grows and can be waited for.
#[derive(Default)]
struct Gate {
    value: AtomicU32,
    n_sleepers: AtomicU32,
    mutex: Mutex<()>,
    condvar: Condvar,
}

impl Gate {
    fn now(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    /// Steps on and wakes whoever sleeps.
    fn advance(&self) {
        // SeqCst on both sides: either the sleeper sees the new value or we see the sleeper.
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.n_sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.mutex.lock().unwrap_or_else(PoisonError::into_inner));
            self.condvar.notify_all();
        }
    }

    /// Returns once the value is no longer `old`; true if that took no sleep.
    fn wait(&self, old: u32, spin: Duration) -> bool {
        if self.now() != old {
            return true;
        }
        let start = Instant::now();
        loop {
            for _ in 0..32 {
                std::hint::spin_loop();
                if self.now() != old {
                    return true;
                }
            }
            if start.elapsed() >= spin {
                break;
            }
        }
        let mut guard = self.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        self.n_sleepers.fetch_add(1, Ordering::SeqCst);
        while self.value.load(Ordering::SeqCst) == old {
            guard = self.condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.n_sleepers.fetch_sub(1, Ordering::SeqCst);
        false
    }
}

/// What a team works on. The lifetime is erased; [`Team::run`] does not return before everybody is done with it.
type Job = *const (dyn Fn(&Worker<'_>) + Sync);

struct Shared {
    n_workers: usize,
    /// A new job, or the end.
    start: Gate,
    barrier: Gate,
    n_arrived: CachePadded<AtomicUsize>,
    /// Current spin limit at barriers, in microseconds.
    spin_micros: AtomicU32,
    job: Mutex<Option<SendJob>>,
    has_failed: AtomicBool,
    is_closing: AtomicBool,
    message: Mutex<Option<String>>,
}

struct SendJob(Job);
// SAFETY: the closure is `Sync`, and `Team::run` keeps it alive while workers may use it.
unsafe impl Send for SendJob {}

/// One participant of a running job.
pub(crate) struct Worker<'a> {
    /// From 0, below [`Worker::n_workers`]; 0 is the calling thread.
    pub(crate) index: usize,
    shared: &'a Shared,
}

impl Worker<'_> {
    /// Number of participants.
    pub(crate) fn n_workers(&self) -> usize {
        self.shared.n_workers
    }

    /// Runs `work` for every number below `n_chunks` that `next` has not given to somebody else yet.
    ///
    /// `next` starts at 0 and serves one such loop per job. Nothing runs any more once a chunk panicked.
    pub(crate) fn claim(&self, next: &AtomicUsize, n_chunks: usize, mut work: impl FnMut(usize)) {
        let claims = || {
            while !self.shared.has_failed.load(Ordering::Relaxed) {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= n_chunks {
                    break;
                }
                work(chunk);
            }
        };
        self.guarded(claims);
    }

    /// As [`Worker::claim`], in runs of numbers: long ones first, so that each worker goes through much of its share in
    /// order, and ever shorter ones, but none below `least`, so that all end at about the same time.
    pub(crate) fn claim_runs(
        &self,
        next: &AtomicUsize,
        n_chunks: usize,
        least: usize,
        mut work: impl FnMut(Range<usize>),
    ) {
        let shared_out = if self.n_workers() == 1 { 1 } else { 2 * self.n_workers() };
        let claims = || {
            let mut start = next.load(Ordering::Relaxed);
            while start < n_chunks && !self.shared.has_failed.load(Ordering::Relaxed) {
                let left = n_chunks - start;
                let end = start + (left / shared_out).max(least).clamp(1, left);
                match next.compare_exchange_weak(start, end, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => {
                        work(start..end);
                        start = next.load(Ordering::Relaxed);
                    }
                    Err(now) => start = now,
                }
            }
        };
        self.guarded(claims);
    }

    /// Runs `work`, turning a panic into failure of the job.
    pub(crate) fn guarded(&self, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let text = panic_text(&*panic);
            self.shared.message.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
            self.shared.has_failed.store(true, Ordering::SeqCst);
        }
    }

    /// Returns when all participants have come here; what they wrote before is visible then.
    pub(crate) fn barrier(&self) {
        let shared = self.shared;
        if shared.n_workers == 1 {
            return;
        }
        let generation = shared.barrier.now();
        if shared.n_arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.n_workers {
            shared.n_arrived.store(0, Ordering::Relaxed);
            shared.barrier.advance();
            return;
        }
        let micros = shared.spin_micros.load(Ordering::Relaxed);
        let is_short = shared.barrier.wait(generation, Duration::from_micros(micros.into()));
        // Halved by every sleep, regained slowly.
        let next = if is_short { (micros + 1).min(MAX_SPIN_MICROS) } else { (micros / 2).max(1) };
        if next != micros {
            shared.spin_micros.store(next, Ordering::Relaxed);
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a kernel panicked".to_owned())
}

/// A fixed number of threads that work on one job at a time.
pub(crate) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `n_workers` (at least 1), the calling thread counted in.
    pub(crate) fn new(n_workers: usize) -> std::io::Result<Self> {
        let n_workers = n_workers.max(1);
        let shared = Arc::new(Shared {
            n_workers,
            start: Gate::default(),
            barrier: Gate::default(),
            n_arrived: CachePadded::new(AtomicUsize::new(0)),
            spin_micros: AtomicU32::new(MAX_SPIN_MICROS),
            job: Mutex::new(None),
            has_failed: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            message: Mutex::new(None),
        });
        let mut team = Self { shared, threads: Vec::with_capacity(n_workers - 1) };
        for index in 1..n_workers {
            let shared = Arc::clone(&team.shared);
            let thread = std::thread::Builder::new().name(format!("farpost-cpu-{index}"));
            // On failure `team` is dropped and closes what was started.
            team.threads.push(thread.spawn(move || serve(index, &shared))?);
        }
        Ok(team)
    }

    /// Runs `job` once on every participant and returns when all are done; an error is what a panic said.
    ///
    /// All participants must pass the same barriers in the same order.
    pub(crate) fn run(&mut self, job: &(dyn Fn(&Worker<'_>) + Sync)) -> Result<(), String> {
        let shared = &*self.shared;
        shared.has_failed.store(false, Ordering::SeqCst);
        *shared.message.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if shared.n_workers > 1 {
            // SAFETY: only the lifetime changes; the last barrier below ends every use before `job` does.
            let erased = unsafe {
                std::mem::transmute::<&(dyn Fn(&Worker<'_>) + Sync), &'static (dyn Fn(&Worker<'_>) + Sync)>(job)
            };
            *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(SendJob(erased));
            shared.start.advance();
        }
        let worker = Worker { index: 0, shared };
        worker.guarded(|| job(&worker));
        worker.barrier();
        if !shared.has_failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let message = shared.message.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(message.unwrap_or_else(|| "a kernel panicked".to_owned()))
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::SeqCst);
        self.shared.start.advance();
        for thread in self.threads.drain(..) {
            // A worker catches every panic, and there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

/// The life of a thread of the team.
fn serve(index: usize, shared: &Shared) {
    let mut seen = 0;
    loop {
        shared.start.wait(seen, Duration::from_micros(MAX_SPIN_MICROS.into()));
        seen = seen.wrapping_add(1);
        if shared.is_closing.load(Ordering::SeqCst) {
            return;
        }
        let job = shared.job.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|job| job.0);
        let worker = Worker { index, shared };
        if let Some(job) = job {
            // SAFETY: `Team::run` waits at the barrier below before the closure may end.
            worker.guarded(|| unsafe { (*job)(&worker) });
        }
        worker.barrier();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_and_stages_do_not_overlap() {
        for n_workers in [1, 2, 3, 7] {
            let mut team = Team::new(n_workers).unwrap();
            for round in 0..200 {
                let counters: Vec<AtomicUsize> = (0..5).map(|_| AtomicUsize::new(0)).collect();
                let runs: Vec<AtomicUsize> = (0..5 * 13).map(|_| AtomicUsize::new(0)).collect();
                team.run(&|worker| {
                    for (stage, next) in counters.iter().enumerate() {
                        worker.claim(next, 13, |chunk| {
                            let earlier = &runs[..stage * 13];
                            assert!(earlier.iter().all(|run| run.load(Ordering::Relaxed) == 1), "round {round}");
                            runs[stage * 13 + chunk].fetch_add(1, Ordering::Relaxed);
                        });
                        worker.barrier();
                    }
                })
                .unwrap();
                assert!(runs.iter().all(|run| run.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn runs_cover_every_chunk_once_whatever_their_least_length() {
        for (n_workers, n_chunks, least) in [(1, 100, 7), (2, 100, 0), (3, 1000, 16), (4, 5, 9), (2, 0, 3), (2, 1, 1)] {
            let mut team = Team::new(n_workers).unwrap();
            let next = AtomicUsize::new(0);
            let runs: Vec<AtomicUsize> = (0..n_chunks).map(|_| AtomicUsize::new(0)).collect();
            team.run(&|worker| {
                worker.claim_runs(&next, n_chunks, least, |run| {
                    assert!(run.len() >= least.max(1) || run.end == n_chunks, "{run:?} is shorter than {least}");
                    run.for_each(|chunk| _ = runs[chunk].fetch_add(1, Ordering::Relaxed));
                });
            })
            .unwrap();
            assert!(runs.iter().all(|run| run.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_fails_the_job_with_its_message_and_the_team_goes_on() {
        for n_workers in [1, 2, 4] {
            let mut team = Team::new(n_workers).unwrap();
            let next = AtomicUsize::new(0);
            let error = team.run(&|worker| {
                worker.claim(&next, 100, |chunk| assert!(chunk != 50, "chunk 50 is bad"));
                worker.barrier();
            });
            assert_eq!(error, Err("chunk 50 is bad".to_owned()));
            let ran = AtomicUsize::new(0);
            let all = |worker: &Worker<'_>| {
                ran.fetch_add(1 + worker.index, Ordering::Relaxed);
            };
            team.run(&all).unwrap();
            assert_eq!(ran.load(Ordering::Relaxed), n_workers * (n_workers + 1) / 2);
        }
    }

    #[test]
    fn a_team_that_slept_wakes_up() {
        let mut team = Team::new(3).unwrap();
        let ran = AtomicUsize::new(0);
        // Longer than any spin: the workers have gone to sleep by the time of the second job.
        for _ in 0..3 {
            team.run(&|worker| {
                if worker.index == 1 {
                    let start = Instant::now();
                    while start.elapsed() < Duration::from_millis(2) {
                        std::hint::spin_loop();
                    }
                }
                worker.barrier();
                ran.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(2) {
                std::hint::spin_loop();
            }
        }
        assert_eq!(ran.load(Ordering::Relaxed), 9);
    }
}
