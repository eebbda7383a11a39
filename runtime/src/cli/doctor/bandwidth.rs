//! How fast this machine reads memory: the bound of every decode step, measured and not looked up.
//!
//! Every thread reads its share of a buffer much larger than caches, again and again for a while; the best round
//! counts, because other programs only ever make it slower.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Size of the buffer; smaller only on a machine that hasn't the memory.
const BUFFER_BYTES: u64 = 512 << 20;
/// The smallest buffer that says anything.
const SMALLEST_BYTES: u64 = 256 << 20;
/// How long to measure, and the fewest rounds that will do.
const PATIENCE: Duration = Duration::from_millis(500);
const FEWEST_ROUNDS: usize = 5;

/// A measurement.
#[derive(Clone, Copy, Debug)]
pub struct Bandwidth {
    /// Bytes read in a round.
    pub buffer_bytes: u64,
    /// Threads that read.
    pub threads: usize,
    /// Rounds measured.
    pub rounds: usize,
    /// Bytes a second in the best round.
    pub bytes_per_second: f64,
}

/// Reads memory on `threads` threads; `None` where memory is too short for it.
pub fn measure(threads: usize, most_bytes: Option<u64>) -> Option<Bandwidth> {
    // A quarter of what is free, so that nothing else is pushed out.
    let size = BUFFER_BYTES.min(most_bytes.unwrap_or(u64::MAX) / 4);
    if size < SMALLEST_BYTES {
        return None;
    }
    let words = usize::try_from(size / 8).ok()?;
    let mut buffer: Vec<u64> = Vec::new();
    buffer.try_reserve_exact(words).ok()?;
    // Written, so that every page is really there.
    buffer.extend((0..words as u64).map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let threads = threads.clamp(1, 256);
    let share = words.div_ceil(threads);
    let gate = Barrier::new(threads + 1);
    let is_over = AtomicBool::new(false);
    let mut best = Duration::MAX;
    let mut rounds = 0;
    std::thread::scope(|scope| {
        for part in buffer.chunks(share).map(Some).chain(std::iter::repeat(None)).take(threads) {
            let (gate, is_over) = (&gate, &is_over);
            scope.spawn(move || {
                loop {
                    gate.wait();
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    std::hint::black_box(sum(part.unwrap_or(&[])));
                    gate.wait();
                }
            });
        }
        let start = Instant::now();
        while rounds < FEWEST_ROUNDS || start.elapsed() < PATIENCE {
            gate.wait();
            let start = Instant::now();
            gate.wait();
            best = best.min(start.elapsed());
            rounds += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        gate.wait();
    });
    let bytes = (words * 8) as u64;
    let bytes_per_second = bytes as f64 / best.as_secs_f64().max(1e-9);
    Some(Bandwidth { buffer_bytes: bytes, threads, rounds, bytes_per_second })
}

/// A sum in sixteen lanes: nothing to compute, so that only reading takes time.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0_u64; 16];
    let mut chunks = words.chunks_exact(16);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().chain(chunks.remainder()).fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (0..1003).collect();
        assert_eq!(sum(&words), 1002 * 1003 / 2);
    }

    #[test]
    fn a_machine_without_room_for_the_buffer_is_not_measured() {
        assert!(measure(1, Some(256 << 20)).is_none());
    }
}
