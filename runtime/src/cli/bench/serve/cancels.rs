//! How soon the server notices that a client went away, by the counts in its own metrics.
//!
//! Connections that were closed first are taken to be noticed first. A time is that of the look at which the count had
//! grown, so it is too long by up to the time between two looks; and whatever else is cancelled at this server meanwhile
//! is taken for ours.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::target::{Failed, Target};

/// Time between two looks, while anything is waited for.
const BETWEEN: Duration = Duration::from_millis(5);
/// What is not noticed after this will not be: the answer was complete when its client went away.
const PATIENCE: Duration = Duration::from_secs(2);

/// Clients that went away, and when the server noticed.
#[derive(Debug, Default)]
pub struct Cancels {
    closed: Mutex<VecDeque<Instant>>,
    news: Notify,
    is_over: AtomicBool,
}

impl Cancels {
    /// A client went away.
    pub fn closed(&self, at: Instant) {
        self.waiting().push_back(at);
        self.news.notify_one();
    }

    /// No other will go away.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.news.notify_one();
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<Instant>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the `n` that went away first off the list, and what nobody will notice any more.
    fn noticed(&self, n: u64, seen: Instant) -> Vec<f64> {
        let mut waiting = self.waiting();
        let n = waiting.len().min(n as usize);
        let latencies = waiting.drain(..n).map(|at| seen.saturating_duration_since(at).as_secs_f64()).collect();
        waiting.retain(|at| seen.saturating_duration_since(*at) < PATIENCE);
        latencies
    }

    /// Looks at the server's counts until it is ended and all is noticed; gives seconds from going away to that. `None`
    /// where the server has no such counts, or does not show them.
    pub async fn watch(&self, target: &Target) -> Option<Vec<f64>> {
        let mut known = count(target).await.ok().flatten()?;
        let mut latencies = Vec::new();
        loop {
            if self.waiting().is_empty() {
                if self.is_over.load(Ordering::SeqCst) {
                    return Some(latencies);
                }
                self.news.notified().await;
                continue;
            }
            let now = count(target).await.ok().flatten()?;
            latencies.extend(self.noticed(now.saturating_sub(known), Instant::now()));
            known = now;
            tokio::time::sleep(BETWEEN).await;
        }
    }
}

/// Requests whose client went away, since the server began.
async fn count(target: &Target) -> Result<Option<u64>, Failed> {
    let reply = target.get_beside("/metrics").await?;
    let is_success = reply.status.is_success();
    let page = reply.text().await?;
    Ok(if is_success { parse(&page) } else { None })
}

fn parse(page: &str) -> Option<u64> {
    const FAMILY: &str = "farpost_cancelled_total";
    let is_known = page.lines().any(|line| line.strip_prefix("# TYPE ").is_some_and(|rest| rest.starts_with(FAMILY)));
    let samples = page.lines().filter_map(|line| line.strip_prefix(FAMILY)?.rsplit_once(' ')?.1.parse::<u64>().ok());
    is_known.then(|| samples.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_went_away_first_is_noticed_first_and_nobody_is_waited_for_for_ever() {
        let cancels = Cancels::default();
        let start = Instant::now();
        [0, 10, 20].into_iter().for_each(|ms| cancels.closed(start + Duration::from_millis(ms)));
        let seen = |ms| start + Duration::from_millis(ms);
        assert_eq!(cancels.noticed(2, seen(30)), [0.03, 0.02]);
        assert_eq!((cancels.noticed(0, seen(40)), cancels.waiting().len()), (Vec::new(), 1));
        assert_eq!((cancels.noticed(0, seen(6000)), cancels.waiting().len()), (Vec::new(), 0));
        assert_eq!(cancels.noticed(5, seen(6000)), Vec::<f64>::new());
    }

    #[test]
    fn counts_of_all_models_and_phases_are_added() {
        let page = "# TYPE farpost_cancelled_total counter\nfarpost_cancelled_total{phase=\"queue\"} 2\n\
                    farpost_cancelled_total{model=\"a b\",phase=\"decode\"} 3\nother 4\n";
        assert_eq!(parse(page), Some(5));
        assert_eq!(parse("# TYPE farpost_cancelled_total counter\n"), Some(0));
        assert_eq!(parse("# TYPE vllm:request_success_total counter\n"), None);
    }
}
