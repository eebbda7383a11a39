//! Who holds how many bytes under a memory cap: what is to be taken is charged first, and given back when it is dropped.
//!
//! Invariant: what all hold together is never above the cap, nor above that of the ledger it is part of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that an engine holds beside the model's file, whose pages are the system's to drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Bytes that all of it together may take; `None` where the system is the bound.
    pub cap: Option<u64>,
    /// Keys and values: taken when the engine opens, whatever is in them.
    pub kv: u64,
    /// Of these, what is promised to answers that run.
    pub kv_promised: u64,
    /// Of these, what nothing is in. The rest, beside what runs, is cached and gives way first.
    pub kv_free: u64,
    /// What a step works in, and what is known of cached texts; taken when the engine opens.
    pub scratch: u64,
    /// Requests that wait, run or are not read to their end: texts, events, what tokens are chosen with.
    pub requests: u64,
}

/// For what bytes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Taken for as long as the engine is open.
    Engine,
    /// Comes and goes.
    Requests,
}

/// There is not as much left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short {
    /// Bytes that are.
    pub(super) free_bytes: u64,
    /// Bytes there would be with no requests at all.
    pub(super) most_bytes: u64,
}

/// What is held, of no more than a cap.
#[derive(Debug)]
pub(super) struct Ledger {
    cap: Option<u64>,
    whole: Option<Arc<Self>>,
    engine: AtomicU64,
    requests: AtomicU64,
    /// Both.
    held: AtomicU64,
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    ledger: Arc<Ledger>,
    holder: Holder,
    bytes: u64,
}

impl Ledger {
    /// Nothing held yet; all of it counts in `whole` as well.
    pub(super) fn new(cap: Option<u64>, whole: Option<Arc<Self>>) -> Arc<Self> {
        let none = AtomicU64::default;
        Arc::new(Self { cap, whole, engine: none(), requests: none(), held: none() })
    }

    /// Bytes that may be charged; `None` where there is no bound.
    pub(super) fn free(&self) -> Option<u64> {
        let own = self.cap.map(|cap| cap.saturating_sub(self.held.load(Ordering::SeqCst)));
        own.into_iter().chain(self.whole.as_ref().and_then(|whole| whole.free())).min()
    }

    /// Bytes that could be charged if there were no requests at all; `None` where there is no bound.
    pub(super) fn most(&self) -> Option<u64> {
        let own = self.cap.map(|cap| cap.saturating_sub(self.engine.load(Ordering::SeqCst)));
        own.into_iter().chain(self.whole.as_ref().and_then(|whole| whole.most())).min()
    }

    /// Bytes that requests hold.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// The least of the caps.
    pub(super) fn cap(&self) -> Option<u64> {
        self.cap.into_iter().chain(self.whole.as_ref().and_then(|whole| whole.cap())).min()
    }

    /// Holds so many bytes, if there are as many.
    pub(super) fn charge(self: &Arc<Self>, holder: Holder, bytes: u64) -> Result<Charge, Short> {
        if !self.take(holder, bytes) {
            let [free_bytes, most_bytes] = [self.free(), self.most()].map(|bytes| bytes.unwrap_or(u64::MAX));
            return Err(Short { free_bytes, most_bytes });
        }
        Ok(Charge { ledger: Arc::clone(self), holder, bytes })
    }

    fn count(&self, holder: Holder) -> &AtomicU64 {
        match holder {
            Holder::Engine => &self.engine,
            Holder::Requests => &self.requests,
        }
    }

    fn take(&self, holder: Holder, bytes: u64) -> bool {
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| self.cap.is_none_or(|cap| *sum <= cap));
        if self.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_err() {
            return false;
        }
        if self.whole.as_ref().is_some_and(|whole| !whole.take(holder, bytes)) {
            self.held.fetch_sub(bytes, Ordering::SeqCst);
            return false;
        }
        self.count(holder).fetch_add(bytes, Ordering::SeqCst);
        true
    }

    fn give_back(&self, holder: Holder, bytes: u64) {
        self.count(holder).fetch_sub(bytes, Ordering::SeqCst);
        self.held.fetch_sub(bytes, Ordering::SeqCst);
        self.whole.iter().for_each(|whole| whole.give_back(holder, bytes));
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.give_back(self.holder, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_each_cap_allows() {
        let whole = Ledger::new(Some(100), None);
        let one = Ledger::new(Some(70), Some(Arc::clone(&whole)));
        let other = Ledger::new(None, Some(Arc::clone(&whole)));
        let engine = one.charge(Holder::Engine, 40).unwrap();
        assert_eq!((one.free(), other.free(), other.cap()), (Some(30), Some(60), Some(100)));
        assert_eq!(one.charge(Holder::Requests, 31).unwrap_err(), Short { free_bytes: 30, most_bytes: 30 });
        let first = other.charge(Holder::Requests, 50).unwrap();
        assert_eq!(one.charge(Holder::Requests, 11).unwrap_err(), Short { free_bytes: 10, most_bytes: 30 });
        assert_eq!(other.charge(Holder::Requests, u64::MAX).unwrap_err(), Short { free_bytes: 10, most_bytes: 60 });
        assert_eq!((one.requests(), other.requests(), whole.requests(), whole.free()), (0, 50, 50, Some(10)));
        drop(first);
        drop(engine);
        assert_eq!((one.free(), other.free(), whole.requests()), (Some(70), Some(100), 0));
        assert!(Ledger::new(None, None).charge(Holder::Engine, u64::MAX).is_ok());
    }

    #[test]
    fn what_many_take_at_once_stays_under_the_cap_and_comes_back() {
        let ledger = Ledger::new(Some(1000), None);
        std::thread::scope(|scope| {
            for salt in 0..4 {
                let ledger = &ledger;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for number in 0..2000_u64 {
                        held.extend(ledger.charge(Holder::Requests, (number * 7 + salt) % 300).ok());
                        assert!(ledger.held.load(Ordering::SeqCst) <= 1000);
                        if number % 3 == 0 {
                            held.clear();
                        }
                    }
                });
            }
        });
        assert_eq!((ledger.free(), ledger.requests()), (Some(1000), 0));
    }
}
