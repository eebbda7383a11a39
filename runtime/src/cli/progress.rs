//! Progress of anything that takes more than a second: a bar on a terminal, now and then a line elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::amount;
use super::console::Console;

/// Work done sooner shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between lines where no bar can be drawn.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Tokens,
    Requests,
}

/// How far some work is. Takes the bar away when dropped.
pub struct Progress {
    what: &'static str,
    unit: Unit,
    total: u64,
    start: Instant,
    has_shown: bool,
    last_line: Option<Instant>,
    way: Way,
}

enum Way {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl Progress {
    /// Progress of `what` ("quantizing") over `total` units.
    pub fn new(console: &Console, what: &'static str, total: u64, unit: Unit) -> Self {
        let way = match (console.is_quiet(), console.draws_progress()) {
            (true, _) => Way::Silent,
            (false, true) => Way::Bar(bar(what, total, unit)),
            (false, false) => Way::Lines,
        };
        Self { what, unit, total, start: Instant::now(), has_shown: false, last_line: None, way }
    }

    /// So many units are done; `item` is what is being worked on.
    pub fn at(&mut self, done: u64, item: &str) {
        // What is over by the time it would show is not worth a word.
        if self.start.elapsed() < PATIENCE || (done >= self.total && !self.has_shown) {
            return;
        }
        self.has_shown = true;
        match &self.way {
            Way::Silent => {}
            Way::Bar(bar) => {
                if bar.is_hidden() {
                    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
                }
                bar.set_message(item.to_owned());
                bar.set_position(done);
            }
            Way::Lines => {
                if self.last_line.is_none_or(|last| last.elapsed() >= BETWEEN_LINES) {
                    self.last_line = Some(Instant::now());
                    eprintln_quietly(&self.line(done));
                }
            }
        }
    }

    /// Lets something else be written to standard error, with the bar out of its way.
    pub fn aside(&self, write: impl FnOnce()) {
        match &self.way {
            Way::Bar(bar) => bar.suspend(write),
            Way::Lines | Way::Silent => write(),
        }
    }

    fn line(&self, done: u64) -> String {
        let percent = u128::from(done) * 100 / u128::from(self.total.max(1));
        let amounts = match self.unit {
            Unit::Bytes => format!("{} of {}", amount::bytes(done), amount::bytes(self.total)),
            Unit::Tokens => format!("{} of {}", amount::grouped(done), amount::count(self.total, "token")),
            Unit::Requests => format!("{} of {}", amount::grouped(done), amount::count(self.total, "request")),
        };
        format!("{}: {percent} % ({amounts})", self.what)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Way::Bar(bar) = &self.way {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, total: u64, unit: Unit) -> ProgressBar {
    let amounts = match unit {
        Unit::Bytes => "{binary_bytes} of {binary_total_bytes}",
        Unit::Tokens => "{human_pos} of {human_len} tokens",
        Unit::Requests => "{human_pos} of {human_len} requests",
    };
    let template = format!("{what} {{bar:30}} {{percent:>3}} %  {amounts}  {{eta}} left  {{wide_msg}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    bar.set_style(style.progress_chars("━╸─"));
    bar
}

fn eprintln_quietly(line: &str) {
    use std::io::Write;
    // Where standard error is closed, nobody waits for progress.
    let _ = writeln!(std::io::stderr(), "{line}");
}
