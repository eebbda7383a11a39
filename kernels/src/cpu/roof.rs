//! What this machine can do at best, measured and not looked up: bytes read from memory a second, int8 and f32
//! multiply-adds a second. Every speed is to be seen as a share of these.
//!
//! All rates are of the given instructions on the given number of threads at once. Of several rounds the best counts,
//! because other programs only ever make a round slower. On shared hosts the rates change within seconds: measure them
//! next to what is compared with them.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::linear::tile_products;
use super::pool::Team;
use super::vector::{Vector, dispatch};
use crate::backend::DeviceError;

/// Size of the buffer that is read, where there is memory for it: far more than caches hold.
const BUFFER_BYTES: u64 = 512 << 20;
/// The smallest buffer that says anything: a machine so short of memory has small caches.
const SMALLEST_BYTES: u64 = 64 << 20;
/// Parts of the buffer, read one a round: rounds of few milliseconds, of which some are left alone by other programs.
const PARTS: usize = 8;
/// The fewest rounds of which the best is taken.
const FEWEST_ROUNDS: usize = 3;
/// Repetitions in the first round of multiply-adds.
const FIRST_REPEATS: usize = 1 << 14;
/// Shortest round of multiply-adds: long against the start of the threads.
const ROUND: Duration = Duration::from_millis(2);

/// A rate and how it was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Bytes or multiply-adds a second in the best round, over all threads.
    pub per_second: f64,
    /// Rounds measured.
    pub rounds: usize,
}

/// Threads and a buffer to measure with, as often as wanted.
pub struct Roof {
    isa: Isa,
    threads: usize,
    team: Team,
    /// Empty where memory is too short.
    buffer: Vec<f32>,
    int8_repeats: usize,
    bf16_repeats: usize,
    f32_repeats: usize,
}

impl Roof {
    /// Prepares to measure with the instructions of `isa` on `threads` threads (at least 1).
    ///
    /// The buffer takes 512 MiB, but no more than a quarter of `free_bytes`, so that nothing else is pushed out.
    ///
    /// # Errors
    /// [`DeviceError::NoThreads`] where the system starts no threads.
    pub fn new(isa: Isa, threads: usize, free_bytes: Option<u64>) -> Result<Self, DeviceError> {
        assert!(isa.is_available(), "{isa} must come from `Isa::available`, `detect` or `choose`");
        let threads = threads.max(1);
        let team = Team::new(threads).map_err(|error| DeviceError::NoThreads { threads, reason: error.to_string() })?;
        let buffer = buffer(BUFFER_BYTES.min(free_bytes.unwrap_or(u64::MAX) / 4));
        Ok(Self {
            isa,
            threads,
            team,
            buffer,
            int8_repeats: FIRST_REPEATS,
            bf16_repeats: FIRST_REPEATS,
            f32_repeats: FIRST_REPEATS,
        })
    }

    /// Threads measured with.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Size of the buffer; 0 where memory is too short for one.
    pub fn buffer_bytes(&self) -> u64 {
        (self.buffer.len() * size_of::<f32>()) as u64
    }

    /// Reads the buffer part by part, again and again, for `patience`: bytes a second. `None` where there is no buffer.
    ///
    /// # Errors
    /// [`DeviceError::Wrong`] where a thread fails.
    pub fn read_bytes(&mut self, patience: Duration) -> Result<Option<Rate>, DeviceError> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let (isa, team) = (self.isa, &mut self.team);
        let parts: Vec<&[f32]> = self.buffer.chunks(self.buffer.len().div_ceil(PARTS)).collect();
        let mut next = parts.iter().cycle();
        let rate = best(patience, || {
            let part = next.next().copied().unwrap_or_default();
            let share = part.len().div_ceil(self.threads);
            let seconds = timed(team, &|number| {
                let own = part.chunks(share).nth(number).unwrap_or_default();
                // SAFETY: `new` checked the set.
                black_box(unsafe { sum(isa, own) });
            })?;
            Ok(Some(size_of_val(part) as f64 / seconds))
        });
        rate.map(Some)
    }

    /// Multiplies bytes and sums them exactly in 32 bits, on registers, for `patience`: multiply-adds a second.
    ///
    /// # Errors
    /// [`DeviceError::Wrong`] where a thread fails.
    pub fn int8_macs(&mut self, patience: Duration) -> Result<Rate, DeviceError> {
        let isa = self.isa;
        // SAFETY: `new` checked the set.
        peak(&mut self.team, &mut self.int8_repeats, patience, |repeats| unsafe { int8(isa, repeats) })
    }

    /// Multiplies tiles of bf16 and sums them in f32, on registers, for `patience`: multiply-adds a second. `None` where
    /// the instruction set has no tiles.
    ///
    /// # Errors
    /// [`DeviceError::Wrong`] where a thread fails.
    pub fn bf16_macs(&mut self, patience: Duration) -> Result<Option<Rate>, DeviceError> {
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Amx {
            let (team, repeats) = (&mut self.team, &mut self.bf16_repeats);
            // SAFETY: `new` checked the set.
            return peak(team, repeats, patience, |repeats| unsafe { tile_products(repeats) }).map(Some);
        }
        let _ = (patience, &mut self.bf16_repeats);
        Ok(None)
    }

    /// Multiplies and adds floats, on registers, for `patience`: multiply-adds a second.
    ///
    /// # Errors
    /// [`DeviceError::Wrong`] where a thread fails.
    pub fn f32_macs(&mut self, patience: Duration) -> Result<Rate, DeviceError> {
        let isa = self.isa;
        // SAFETY: `new` checked the set.
        peak(&mut self.team, &mut self.f32_repeats, patience, |repeats| unsafe { floats(isa, repeats) })
    }
}

/// Floats that take about `bytes`, every page of them really there; none where that is too little or not to be had.
fn buffer(bytes: u64) -> Vec<f32> {
    let mut buffer = Vec::new();
    if bytes < SMALLEST_BYTES {
        return buffer;
    }
    let Ok(len) = usize::try_from(bytes / size_of::<f32>() as u64) else { return buffer };
    if buffer.try_reserve_exact(len).is_ok() {
        // Small whole numbers: sums of them take no longer than others.
        buffer.extend((0..len).map(|index| (index & 7) as f32));
    }
    buffer
}

/// The best of the rates that `round` gives, for `patience`; `None` of a round does not count.
fn best(patience: Duration, mut round: impl FnMut() -> Result<Option<f64>, DeviceError>) -> Result<Rate, DeviceError> {
    let start = Instant::now();
    let mut rate = Rate { per_second: 0.0, rounds: 0 };
    while rate.rounds < FEWEST_ROUNDS || start.elapsed() < patience {
        if let Some(per_second) = round()? {
            rate.per_second = rate.per_second.max(per_second);
            rate.rounds += 1;
        }
    }
    Ok(rate)
}

/// Seconds until all threads have done `work`, which gets their number.
fn timed(team: &mut Team, work: &(dyn Fn(usize) + Sync)) -> Result<f64, DeviceError> {
    let start = Instant::now();
    team.run(&|worker| work(worker.index)).map_err(DeviceError::Wrong)?;
    Ok(start.elapsed().as_secs_f64().max(1e-9))
}

/// Multiply-adds a second of `kernel`, which repeats as often as it is told and tells how many multiply-adds that were.
/// `repeats` grows while rounds are too short, whenever that shows: an interrupted round looks long.
fn peak(
    team: &mut Team,
    repeats: &mut usize,
    patience: Duration,
    kernel: impl Fn(usize) -> usize + Sync,
) -> Result<Rate, DeviceError> {
    best(patience, || {
        let (n_macs, n_repeats) = (AtomicUsize::new(0), *repeats);
        let seconds = timed(team, &|_| {
            n_macs.fetch_add(kernel(n_repeats), Ordering::Relaxed);
        })?;
        if seconds < ROUND.as_secs_f64() {
            *repeats = repeats.saturating_mul(2);
            return Ok(None);
        }
        Ok(Some(n_macs.into_inner() as f64 / seconds))
    })
}

dispatch! {
    /// Sum of floats: next to nothing to compute, so that only reading takes time.
    fn sum(values: &[f32]) -> f32 = sum_in_lanes or sum_in_turn
}

unsafe fn sum_in_turn(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 32];
    let mut chunks = values.chunks_exact(lanes.len());
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += *value;
        }
    }
    lanes.iter().chain(chunks.remainder()).sum()
}

#[inline(always)]
unsafe fn sum_in_lanes<V: Vector>(values: &[f32]) -> f32 {
    // SAFETY: the set is there; every load lies inside its chunk.
    unsafe {
        let mut sums = [V::splat(0.0); 8];
        let mut chunks = values.chunks_exact(8 * V::LANES);
        for chunk in &mut chunks {
            for (part, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(V::load(chunk.as_ptr().add(part * V::LANES)));
            }
        }
        sums.into_iter().map(|sum| sum.sum()).sum::<f32>() + chunks.remainder().iter().sum::<f32>()
    }
}

dispatch! {
    /// `repeats` times some multiply-adds of floats; gives their number.
    fn floats(repeats: usize) -> usize = floats_in_lanes or floats_in_turn
}

unsafe fn floats_in_turn(repeats: usize) -> usize {
    let (factor, term) = black_box((0.5_f32, 1.0_f32));
    let mut sums = black_box([1.0_f32; 32]);
    for _ in 0..repeats {
        for sum in &mut sums {
            *sum = *sum * factor + term;
        }
    }
    black_box(sums);
    repeats * sums.len()
}

#[inline(always)]
unsafe fn floats_in_lanes<V: Vector>(repeats: usize) -> usize {
    // Enough that none waits for its own last sum, and no more than there are registers.
    let n_sums = if V::REGISTERS < 32 { 12 } else { 24 };
    // SAFETY: the set is there; registers only.
    unsafe {
        let (factor, term) = black_box((0.5_f32, 1.0_f32));
        let (factor, term) = (V::splat(factor), V::splat(term));
        let mut sums = black_box([term; 24]);
        for _ in 0..repeats {
            for sum in &mut sums[..n_sums] {
                *sum = sum.mul_add(factor, term);
            }
        }
        black_box(sums.into_iter().map(|sum| sum.sum()).sum::<f32>());
    }
    repeats * n_sums * V::LANES
}

/// `repeats` times some multiply-adds of bytes; gives their number.
///
/// # Safety
/// The processor has the set.
unsafe fn int8(isa: Isa, repeats: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => sets::avx512(repeats),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => sets::avx2(repeats),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => sets::neon(repeats),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => sets::neon_dot(repeats),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => sets::neon_i8mm(repeats),
            _ => int8_in_turn(repeats),
        }
    }
}

fn int8_in_turn(repeats: usize) -> usize {
    const LEN: usize = 256;
    let (left, right) = ([3_i8; LEN], [-5_i8; LEN]);
    let mut total = 0_i32;
    for _ in 0..repeats {
        let (left, right) = black_box((&left, &right));
        let sum: i32 = left.iter().zip(right).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
        total = total.wrapping_add(sum);
    }
    black_box(total);
    repeats * LEN
}

/// Makes a function of `$n` running sums, to each of which `$step` adds `$macs` products in every repeat.
///
/// Sums begin as different numbers that the compiler does not know, and products depend on them where they could be
/// moved out of the loop otherwise.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! int8_repeats {
    ($name:ident, $features:literal, $n:literal x $macs:literal, $splat:expr, |$sum:ident, $x:ident| $step:expr) => {
        #[target_feature(enable = $features)]
        #[allow(unused_unsafe)] // Some instructions are safe where their features are enabled.
        pub(super) unsafe fn $name(repeats: usize) -> usize {
            let splat = $splat;
            // SAFETY: the features are there; registers only.
            unsafe {
                let $x = splat(black_box(3));
                let mut sums = black_box([splat(1); $n]);
                for _ in 0..repeats {
                    for place in &mut sums {
                        let $sum = *place;
                        *place = $step;
                    }
                }
                black_box(sums);
            }
            repeats * $n * $macs
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod sets {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    int8_repeats!(avx512, "avx512f,avx512bw,avx512vnni", 24 x 64, |byte| _mm512_set1_epi8(byte), |sum, x| {
        _mm512_dpbusd_epi32(sum, x, x)
    });
    int8_repeats!(avx2, "avx2", 12 x 32, |byte| _mm256_set1_epi8(byte), |sum, x| {
        let pairs = _mm256_maddubs_epi16(x, sum);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    });
}

#[cfg(target_arch = "aarch64")]
mod sets {
    use std::arch::aarch64::*;
    use std::hint::black_box;

    use crate::cpu::linear::{sdot, smmla};

    int8_repeats!(neon_i8mm, "neon,i8mm", 24 x 32, |byte| vreinterpretq_s32_s8(vdupq_n_s8(byte)), |sum, x| {
        let bytes = vreinterpretq_s8_s32(x);
        smmla(sum, bytes, bytes)
    });
    int8_repeats!(neon_dot, "neon,dotprod", 24 x 16, |byte| vreinterpretq_s32_s8(vdupq_n_s8(byte)), |sum, x| {
        let bytes = vreinterpretq_s8_s32(x);
        sdot(sum, bytes, bytes)
    });
    int8_repeats!(neon, "neon", 12 x 16, |byte| vreinterpretq_s32_s8(vdupq_n_s8(byte)), |sum, x| {
        let (bytes, x) = (vreinterpretq_s8_s32(sum), vreinterpretq_s8_s32(x));
        let sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(bytes), vget_low_s8(x)));
        vpadalq_s16(sum, vmull_high_s8(bytes, x))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_is_read_whatever_the_set() {
        let values: Vec<f32> = (0..1003).map(|index| index as f32).collect();
        for isa in Isa::available() {
            // SAFETY: available.
            assert_eq!(unsafe { sum(isa, &values) }, 502_503.0, "{isa}");
        }
    }

    #[test]
    fn rates_grow_with_the_set_and_are_possible() {
        let mut last = 0.0;
        for isa in Isa::available() {
            let mut roof = Roof::new(isa, 1, Some(256 << 20)).unwrap();
            let int8 = roof.int8_macs(Duration::from_millis(10)).unwrap();
            let floats = roof.f32_macs(Duration::from_millis(10)).unwrap();
            let bf16 = roof.bf16_macs(Duration::from_millis(10)).unwrap();
            assert_eq!(bf16.is_some(), isa == Isa::Amx);
            assert!(bf16.is_none_or(|rate| (1e10..1e13).contains(&rate.per_second)), "{bf16:?}");
            assert!(int8.rounds >= FEWEST_ROUNDS);
            // From a slow board to a wide server core; outside, the compiler took the work away.
            assert!((1e7..2e12).contains(&int8.per_second), "{isa}: {}", int8.per_second);
            assert!((1e7..5e11).contains(&floats.per_second), "{isa}: {}", floats.per_second);
            assert!(int8.per_second > last / 2.0, "{isa}: {} after {last}", int8.per_second);
            last = int8.per_second;
        }
    }

    #[test]
    fn the_buffer_takes_a_quarter_of_what_is_free_or_is_left_out() {
        let mut roof = Roof::new(Isa::Scalar, 2, Some(256 << 20)).unwrap();
        assert_eq!((roof.threads(), roof.buffer_bytes()), (2, 64 << 20));
        let rate = roof.read_bytes(Duration::from_millis(1)).unwrap().unwrap();
        assert!((1e8..1e13).contains(&rate.per_second), "{}", rate.per_second);
        let mut roof = Roof::new(Isa::Scalar, 0, Some(255 << 20)).unwrap();
        assert_eq!((roof.threads(), roof.buffer_bytes()), (1, 0));
        assert_eq!(roof.read_bytes(Duration::ZERO), Ok(None));
    }
}
