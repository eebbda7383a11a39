//! A thread that reads a file that is not in the system's cache in one go, while others begin to use it.
//!
//! Faults on first use read the file as well, but one place at a time, and wait for each: measured in
//! `docs/decisions/012-reading-ahead.md`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::file::File;
use super::map::Map;

/// Bytes asked for at a time: the thread ends as soon as so many are there.
const PIECE: usize = 4 << 20;

/// Reading that goes on until all is there or this is dropped.
pub struct ReadAhead {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only gives hints: there is nothing to learn from how it ended.
            let _ = thread.join();
        }
    }
}

impl File {
    /// Starts to read the mapped parts that the system has not cached, in order.
    ///
    /// `None` where that is no use: everything is there, the model takes more than `most_bytes` (reading its end would
    /// drive out its beginning), it is no map, or there is no thread to be had.
    pub fn read_ahead(&self, most_bytes: u64) -> Option<ReadAhead> {
        if self.size_bytes() > most_bytes {
            return None;
        }
        let maps: Vec<Arc<Map>> = self.shared_maps().filter(|map| !map.is_cached()).cloned().collect();
        if maps.is_empty() {
            return None;
        }
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_stopped);
        let read = move || {
            for map in maps {
                let mut start = 0;
                while !stopped.load(Ordering::Relaxed) && map.read_piece(start, PIECE) {
                    start += PIECE;
                }
            }
        };
        let thread = std::thread::Builder::new().name("farpost-read-ahead".to_owned()).spawn(read).ok()?;
        Some(ReadAhead { is_stopped, thread: Some(thread) })
    }
}
