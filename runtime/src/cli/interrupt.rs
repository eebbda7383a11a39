//! Ctrl-C: the first asks the work to stop in good order; what a second one does depends on the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::exit::{Exit, Failure};

/// Knows whether somebody pressed Ctrl-C (or a service manager asked the program to end).
#[derive(Clone, Debug)]
pub struct Interrupt {
    is_asked: Arc<AtomicBool>,
    /// While it is set, Ctrl-C ends the program at once.
    is_final: Arc<AtomicBool>,
}

impl Interrupt {
    /// For work that is done once: the second Ctrl-C ends the program at once.
    pub fn listen() -> Result<Self, Failure> {
        let is_asked = Arc::new(AtomicBool::new(false));
        Self { is_final: Arc::clone(&is_asked), is_asked }.register(&[SIGINT, SIGTERM])
    }

    /// For a conversation: Ctrl-C stops an answer, however often it is pressed; a service manager ends the program at once.
    pub fn listen_for_answers() -> Result<Self, Failure> {
        let is_asked = Arc::new(AtomicBool::new(false));
        let interrupt = Self { is_asked, is_final: Arc::new(AtomicBool::new(false)) }.register(&[SIGINT])?;
        // Who asks the program to end means the conversation.
        let ends = Self { is_asked: Arc::default(), is_final: Arc::new(AtomicBool::new(true)) };
        ends.register(&[SIGTERM])?;
        Ok(interrupt)
    }

    fn register(self, signals: &[i32]) -> Result<Self, Failure> {
        let code = i32::from(Exit::Interrupted.code());
        for &signal in signals {
            // In this order: where both flags are one, the second signal finds what the first has set.
            signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&self.is_final))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&self.is_asked)))
                .map_err(|error| Failure::system("listen for signals", &error))?;
        }
        Ok(self)
    }

    /// True once it was pressed.
    pub fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed)
    }

    /// What was pressed before counts no more.
    pub fn forget(&self) {
        self.is_asked.store(false, Ordering::Relaxed);
    }

    /// Waits for input that does not take Ctrl-C as a key: there is nothing to stop, so it ends the program.
    pub fn at_pipe<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.is_final.store(true, Ordering::Relaxed);
        let input = wait();
        self.is_final.store(false, Ordering::Relaxed);
        input
    }
}
