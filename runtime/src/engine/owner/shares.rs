//! Fair shares among callers: who was served least comes first (start-time fair queueing, Goyal et al. 1996).
//!
//! A caller who comes back after a pause begins at what the least served of those present has had: waiting saves nothing
//! up.

use std::collections::HashMap;
use std::sync::Arc;

/// Callers above which debts of those that are gone are forgotten.
const MOST_CALLERS: usize = 4096;

/// Rows run for each caller that has work.
#[derive(Debug, Default)]
pub(super) struct Shares {
    served: HashMap<Arc<str>, Share>,
    /// What those present have had at least, once.
    floor: u64,
}

#[derive(Debug)]
struct Share {
    n_rows: u64,
    n_choices: usize,
}

impl Shares {
    /// `caller` has a choice more.
    pub(super) fn enter(&mut self, caller: &Arc<str>) {
        let present = |share: &&Share| share.n_choices > 0;
        let least = self.served.values().filter(present).map(|share| share.n_rows).min();
        let most = self.served.values().map(|share| share.n_rows).max();
        self.floor = least.or(most).unwrap_or(self.floor).max(self.floor);
        let floor = self.floor;
        // Who is gone is remembered only as long as it owes something, and not without bound.
        let keeps_debts = self.served.len() < MOST_CALLERS;
        self.served.retain(|_, share| share.n_choices > 0 || (keeps_debts && share.n_rows > floor));
        let share = self.served.entry(Arc::clone(caller)).or_insert(Share { n_rows: floor, n_choices: 0 });
        share.n_choices += 1;
    }

    /// `caller` has a choice less.
    pub(super) fn leave(&mut self, caller: &str) {
        if let Some(share) = self.served.get_mut(caller) {
            share.n_choices = share.n_choices.saturating_sub(1);
        }
    }

    /// Rows were run for `caller`.
    pub(super) fn charge(&mut self, caller: &str, n_rows: usize) {
        if let Some(share) = self.served.get_mut(caller) {
            share.n_rows += n_rows as u64;
        }
    }

    pub(super) fn served(&self, caller: &str) -> u64 {
        self.served.get(caller).map_or(0, |share| share.n_rows)
    }

    /// True if nobody has a choice.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.served.values().all(|share| share.n_choices == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_late_or_back_begins_with_the_least_served() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut shares = Shares::default();
        shares.enter(&a);
        shares.charge(&a, 100);
        shares.enter(&b);
        assert_eq!((shares.served(&a), shares.served(&b)), (100, 100));
        shares.charge(&b, 100);
        shares.leave(&a);
        shares.enter(&a);
        assert_eq!(shares.served(&a), 200);
        shares.charge(&a, 100);
        shares.leave(&a);
        shares.enter(&a);
        assert_eq!(shares.served(&a), 300, "leaving pays no debts");
        shares.leave(&b);
        shares.leave(&a);
        assert!(shares.is_empty());
        shares.leave("a");
        shares.charge("nobody", 1);
        assert_eq!(shares.served("nobody"), 0);
    }
}
