//! A thread that reads a file that is not in the system's cache in one go, while others begin to use it; and once more a
//! file that is there in small pages.
//!
//! Faults on first use read the file as well, but one place at a time, and wait for each. A file that was written, and not
//! read from its disk since, lies in small pages, from which weights come a quarter more slowly. Both measured in
//! `docs/decisions/012-reading-ahead.md`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::file::File;
use super::map::Map;

/// Bytes asked for at a time: the thread ends as soon as so many are there.
const PIECE: usize = 4 << 20;

/// Bytes of a trial of reading again.
const TRIAL: usize = 32 << 20;
/// Longest time of the trial: from slower disks (below some 500 MB a second) nothing is read twice.
const PATIENCE: Duration = Duration::from_millis(64);

/// Reading that goes on until all is there or this is dropped.
pub struct ReadAhead {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ReadAhead {
    /// Reads maps one after the other; `None` if there is no thread to be had.
    fn start(maps: Vec<Arc<Map>>) -> Option<Self> {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_stopped);
        let read = move || {
            for map in maps {
                let goes_on = || !stopped.load(Ordering::Relaxed);
                if map.is_cached() {
                    if map.is_in_small_pages(usize::MAX) {
                        read_again(&map, goes_on);
                    }
                    continue;
                }
                let mut start = 0;
                while goes_on() && map.read_piece(start, PIECE) {
                    start += PIECE;
                }
            }
        };
        let thread = std::thread::Builder::new().name("farpost-read-ahead".to_owned()).spawn(read).ok()?;
        Some(Self { is_stopped, thread: Some(thread) })
    }
}

/// Reads a map once more, piece by piece, if a trial shows that the disk is fast and that the pages become huge.
fn read_again(map: &Map, goes_on: impl Fn() -> bool) {
    let (begin, mut start) = (Instant::now(), 0);
    while goes_on() && map.read_piece_again(start, PIECE) {
        start += PIECE;
        if start == TRIAL && (begin.elapsed() > PATIENCE || map.is_in_small_pages(TRIAL)) {
            return;
        }
    }
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
    /// Starts to read the mapped parts that the system has not cached, in order, and those once more that it has in small
    /// pages, if the disk is fast.
    ///
    /// `None` where that is no use: the model takes more than `most_bytes` (reading its end would drive out its
    /// beginning), it is no map, or there is no thread to be had.
    pub fn read_ahead(&self, most_bytes: u64) -> Option<ReadAhead> {
        if self.size_bytes() > most_bytes {
            return None;
        }
        let maps: Vec<Arc<Map>> = self.shared_maps().cloned().collect();
        if maps.is_empty() {
            return None;
        }
        ReadAhead::start(maps)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Weak;

    use farpost_kernels::tensor::ByteOwner;

    /// A file of nothing but a hole, which no cache holds, that goes away with the test.
    struct Hole(PathBuf);

    impl Hole {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("farpost-ahead-{}-{test}", std::process::id()));
            fs::File::create(&path).unwrap().set_len(3 * PIECE as u64 + 5).unwrap();
            Self(path)
        }

        fn map(&self) -> Arc<Map> {
            Arc::new(Map::open(&self.0).unwrap())
        }
    }

    impl Drop for Hole {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_thread_ends_when_all_is_there_and_lets_go_of_the_map() {
        let hole = Hole::new("end");
        let map = hole.map();
        assert!(!map.is_cached());
        let mut ahead = ReadAhead::start(vec![Arc::clone(&map)]).unwrap();
        ahead.thread.take().unwrap().join().unwrap();
        assert_eq!(Arc::strong_count(&map), 1);
        // Systems before Linux 5.14 refuse the request.
        assert!(map.is_cached() || !map.read_piece(0, 1));
    }

    #[test]
    fn a_map_stays_open_while_it_is_read_and_is_closed_when_reading_is_stopped() {
        let hole = Hole::new("stop");
        let maps: Vec<Arc<Map>> = (0..64).map(|_| hole.map()).collect();
        let held: Vec<Weak<Map>> = maps.iter().map(Arc::downgrade).collect();
        // The thread is now the only one that has them.
        let ahead = ReadAhead::start(maps).unwrap();
        drop(ahead);
        assert!(held.iter().all(|map| map.upgrade().is_none()));
    }

    #[test]
    fn a_file_that_is_read_again_keeps_its_bytes() {
        let hole = Hole::new("again");
        let bytes: Vec<u8> = (0..2 * TRIAL as u32 / 4).flat_map(u32::to_le_bytes).collect();
        fs::write(&hole.0, &bytes).unwrap();
        fs::File::open(&hole.0).unwrap().sync_all().unwrap();
        let map = hole.map();
        assert!(map.is_cached());
        read_again(&map, || true);
        assert!(map.read_piece_again(TRIAL + 1, 2 * TRIAL) && !map.read_piece_again(2 * TRIAL, 1));
        assert!(map.bytes() == bytes, "other bytes");
    }

    #[test]
    fn a_file_that_was_cut_ends_the_thread() {
        let hole = Hole::new("cut");
        let map = hole.map();
        fs::File::options().write(true).open(&hole.0).unwrap().set_len(PIECE as u64 / 2).unwrap();
        let mut ahead = ReadAhead::start(vec![map]).unwrap();
        ahead.thread.take().unwrap().join().unwrap();
    }
}
