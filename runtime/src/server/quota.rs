//! What a key may use in a time: requests, tokens and answers at once.
//!
//! What was used runs off evenly, a whole limit in its period, so there is no edge of a minute to wait for. A request is
//! let in if its prompt fits; its answer is counted when it is written, though it exceeds the limit, and then what comes
//! next waits for it. What is larger than a limit is let in when nothing else is used: no request is refused for ever.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::Problem;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// When to come again if too many answers are being written: nobody knows when one ends.
const SOON: Duration = Duration::from_secs(1);

/// Limits of a key; `None` for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) requests_per_minute: Option<u64>,
    /// Of prompts and answers.
    pub(super) tokens_per_minute: Option<u64>,
    pub(super) tokens_per_day: Option<u64>,
    pub(super) concurrent_requests: Option<u64>,
}

/// What was used of a limit and has not run off yet.
#[derive(Debug)]
struct Used {
    amount: f64,
    at: Instant,
}

impl Used {
    fn new(now: Instant) -> Self {
        Self { amount: 0.0, at: now }
    }

    fn run_off(&mut self, limit: u64, period: Duration, now: Instant) {
        let share = now.saturating_duration_since(self.at).as_secs_f64() / period.as_secs_f64();
        self.amount = (self.amount - share * limit as f64).max(0.0);
        self.at = now;
    }

    /// Time until `amount` more is within the limit.
    fn until(&self, amount: u64, limit: u64, period: Duration) -> Duration {
        let excess = self.amount + amount.min(limit) as f64 - limit as f64;
        // Less than a thousandth of one is a rounding error.
        if excess < 1e-3 { Duration::ZERO } else { period.mul_f64(excess / limit.max(1) as f64) }
    }
}

#[derive(Debug)]
struct State {
    requests: Used,
    minute: Used,
    day: Used,
    running: u64,
}

/// What one key has used. It outlives a change of the key's limits.
#[derive(Debug)]
pub(super) struct Account(Mutex<State>);

/// How a limit stands, for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) limit: u64,
    pub(super) remaining: u64,
    /// Until all of it is there again.
    pub(super) reset: Duration,
}

impl Account {
    pub(super) fn new(now: Instant) -> Self {
        let used = || Used::new(now);
        Self(Mutex::new(State { requests: used(), minute: used(), day: used(), running: 0 }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request, or says when one may come.
    pub(super) fn take_request(&self, quota: &Quota, now: Instant) -> Result<(), Problem> {
        let mut state = self.state();
        if let Some(limit) = quota.requests_per_minute {
            state.requests.run_off(limit, MINUTE, now);
            let retry_after = state.requests.until(1, limit, MINUTE);
            if !retry_after.is_zero() {
                return Err(Problem::Rate { what: "requests per minute", limit, retry_after });
            }
            state.requests.amount += 1.0;
        }
        Ok(())
    }

    /// Counts the tokens of prompts and a place among those that run, or says when they may come.
    pub(super) fn begin(self: &Arc<Self>, quota: Quota, n_tokens: u64, now: Instant) -> Result<Running, Problem> {
        let mut state = self.state();
        if let Some(limit) = quota.concurrent_requests
            && state.running >= limit
        {
            return Err(Problem::Rate { what: "requests at once", limit, retry_after: SOON });
        }
        if let Some(limit) = quota.tokens_per_day {
            state.day.run_off(limit, DAY, now);
            let retry_after = state.day.until(n_tokens, limit, DAY);
            if !retry_after.is_zero() {
                return Err(Problem::Quota { limit, retry_after });
            }
        }
        if let Some(limit) = quota.tokens_per_minute {
            state.minute.run_off(limit, MINUTE, now);
            let retry_after = state.minute.until(n_tokens, limit, MINUTE);
            if !retry_after.is_zero() {
                return Err(Problem::Rate { what: "tokens per minute", limit, retry_after });
            }
        }
        state.running += 1;
        state.add_tokens(&quota, n_tokens as f64);
        drop(state);
        Ok(Running { account: Arc::clone(self), quota })
    }

    /// How requests and tokens per minute stand.
    pub(super) fn standing(&self, quota: &Quota, now: Instant) -> [Option<Standing>; 2] {
        let mut state = self.state();
        let standing = |used: &mut Used, limit: Option<u64>| {
            let limit = limit?;
            used.run_off(limit, MINUTE, now);
            let remaining = (limit as f64 - used.amount).max(0.0);
            let reset = MINUTE.mul_f64(used.amount / limit.max(1) as f64);
            Some(Standing { limit, remaining: remaining as u64, reset })
        };
        [standing(&mut state.requests, quota.requests_per_minute), standing(&mut state.minute, quota.tokens_per_minute)]
    }
}

impl State {
    fn add_tokens(&mut self, quota: &Quota, n_tokens: f64) {
        if quota.tokens_per_minute.is_some() {
            self.minute.amount += n_tokens;
        }
        if quota.tokens_per_day.is_some() {
            self.day.amount += n_tokens;
        }
    }
}

/// A request that runs. Its place is free when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    account: Arc<Account>,
    quota: Quota,
}

impl Running {
    /// Counts tokens of its answers.
    pub(super) fn add_tokens(&self, n_tokens: usize) {
        self.account.state().add_tokens(&self.quota, n_tokens as f64);
    }

    /// Gives back the tokens of prompts that are not served after all.
    pub(super) fn give_back(&self, n_tokens: u64) {
        let mut state = self.account.state();
        state.add_tokens(&self.quota, -(n_tokens as f64));
        state.minute.amount = state.minute.amount.max(0.0);
        state.day.amount = state.day.amount.max(0.0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.account.state();
        state.running = state.running.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry_after(refused: Result<impl Sized, Problem>) -> Duration {
        match refused.err() {
            Some(Problem::Rate { retry_after, .. } | Problem::Quota { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_run_off_evenly() {
        let start = Instant::now();
        let (account, quota) = (Account::new(start), Quota { requests_per_minute: Some(6), ..Quota::default() });
        (0..6).for_each(|_| account.take_request(&quota, start).unwrap());
        assert_eq!(retry_after(account.take_request(&quota, start)), Duration::from_secs(10));
        let later = start + Duration::from_secs(25);
        let [requests, tokens] = account.standing(&quota, later);
        let expected = Standing { limit: 6, remaining: 2, reset: Duration::from_secs(35) };
        assert_eq!((requests, tokens), (Some(expected), None));
        assert!(account.take_request(&quota, later).is_ok() && account.take_request(&quota, later).is_ok());
        assert_eq!(retry_after(account.take_request(&quota, later)), Duration::from_secs(5));
    }

    #[test]
    fn answers_are_counted_when_they_are_written() {
        let start = Instant::now();
        let account = Arc::new(Account::new(start));
        let quota = Quota { tokens_per_minute: Some(60), tokens_per_day: Some(1000), ..Quota::default() };
        let running = account.begin(quota, 20, start).unwrap();
        // More than the limit: what comes next waits for all of it.
        running.add_tokens(100);
        assert_eq!(retry_after(account.begin(quota, 10, start)), Duration::from_secs(70));
        running.give_back(20);
        let later = start + Duration::from_secs(50);
        assert!(account.begin(quota, 10, later).is_ok());
        // What is larger than the limit comes in when nothing else is used.
        let much_later = later + Duration::from_secs(120);
        account.begin(quota, 500, much_later).unwrap();
        assert_eq!(retry_after(account.begin(quota, 60, much_later)), Duration::from_secs(500));
        let next = much_later + Duration::from_secs(600);
        assert!(matches!(account.begin(quota, 800, next), Err(Problem::Quota { limit: 1000, .. })));
    }

    #[test]
    fn places_are_free_when_what_runs_has_ended() {
        let start = Instant::now();
        let account = Arc::new(Account::new(start));
        let quota = Quota { concurrent_requests: Some(2), ..Quota::default() };
        let (first, _second) = (account.begin(quota, 1, start).unwrap(), account.begin(quota, 1, start).unwrap());
        assert_eq!(retry_after(account.begin(quota, 1, start)), SOON);
        drop(first);
        assert!(account.begin(quota, 1, start).is_ok());
    }
}
