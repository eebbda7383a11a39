//! What is kept of logits while they are made: the best `k`, the log-sum-exp, and the first that is not finite.
//!
//! Every worker reduces the logits of its vocabulary ids with a [`Chooser`] of its own; merged in any order, over any
//! division of the ids, they give the same bits: the order among logits is total (ties go to the lowest id) and the
//! sum of exponentials is one of integers.

mod best;
mod log_sum;

use crate::cpu::isa::Isa;
use best::Best;
use log_sum::LogSum;

/// Logits looked at together.
const BLOCK: usize = 64;

/// A running reduction of one row of logits.
#[derive(Clone, Debug)]
pub struct Chooser {
    best: Best,
    log_sum: Option<LogSum>,
    first_not_finite: Option<u32>,
}

impl Chooser {
    /// Room for the best `max_k`; [`Chooser::begin`] may ask for fewer without allocating.
    pub fn new(max_k: usize) -> Self {
        Self { best: Best::new(max_k), log_sum: None, first_not_finite: None }
    }

    /// Starts a row of which the best `k` are wanted (1 for the arg-max), and perhaps the log-sum-exp.
    pub fn begin(&mut self, k: usize, wants_log_sum: bool) {
        self.best.begin(k);
        self.log_sum = wants_log_sum.then(LogSum::new);
        self.first_not_finite = None;
    }

    /// Takes the logits of ids `first_id..first_id + logits.len()`, each id once in a row.
    ///
    /// # Safety
    /// `isa` is available.
    pub unsafe fn take(&mut self, isa: Isa, first_id: u32, logits: &[f32]) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: available by the caller's promise.
            Isa::Avx512 | Isa::Amx => unsafe { take_avx512(self, first_id, logits) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: available by the caller's promise.
            Isa::Avx2 => unsafe { take_avx2(self, first_id, logits) },
            _ => self.take_blocks(first_id, logits),
        }
    }

    #[inline(always)]
    fn take_blocks(&mut self, first_id: u32, logits: &[f32]) {
        let (blocks, rest) = logits.as_chunks::<BLOCK>();
        let mut id = first_id;
        for block in blocks {
            self.take_block(id, block);
            id += BLOCK as u32;
        }
        if !rest.is_empty() {
            self.take_singly(id, rest);
        }
    }

    #[inline(always)]
    fn take_block(&mut self, id: u32, block: &[f32; BLOCK]) {
        let (mut largest, mut magnitude) = ([f32::NEG_INFINITY; 16], [0; 16]);
        for part in block.as_chunks::<16>().0 {
            for lane in 0..16 {
                largest[lane] = if part[lane] > largest[lane] { part[lane] } else { largest[lane] };
                magnitude[lane] = (part[lane].to_bits() & 0x7FFF_FFFF).max(magnitude[lane]);
            }
        }
        if magnitude.iter().any(|bits| *bits >= f32::INFINITY.to_bits()) {
            self.take_singly(id, block);
            return;
        }
        let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
        if self.best.may_take(largest) {
            for (index, logit) in block.iter().enumerate() {
                self.best.take(id + index as u32, *logit);
            }
        }
        if let Some(log_sum) = &mut self.log_sum {
            log_sum.take_block(block);
        }
    }

    /// One by one: the last of a slice, or what has a logit among it that is not finite.
    fn take_singly(&mut self, first_id: u32, logits: &[f32]) {
        for (id, logit) in (first_id..).zip(logits) {
            if logit.is_finite() {
                self.best.take(id, *logit);
                if let Some(log_sum) = &mut self.log_sum {
                    log_sum.take(*logit);
                }
            } else {
                self.first_not_finite = Some(self.first_not_finite.map_or(id, |first| first.min(id)));
            }
        }
    }

    /// Takes over what another has seen of the same row; both began alike.
    pub fn merge(&mut self, other: &Self) {
        self.best.merge(&other.best);
        if let (Some(log_sum), Some(other)) = (&mut self.log_sum, &other.log_sum) {
            log_sum.merge(other);
        }
        self.first_not_finite = match (self.first_not_finite, other.first_not_finite) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// The lowest id whose logit is NaN or infinite: then the row is worthless.
    pub fn first_not_finite(&self) -> Option<u32> {
        self.first_not_finite
    }

    /// Id of the largest logit, the lowest among equals; `None` before any was taken.
    pub fn arg_max(&self) -> Option<u32> {
        self.best.first()
    }

    /// Writes the best, the largest first, the lowest id first among equals.
    pub fn best_into(&self, out: &mut Vec<(u32, f32)>) {
        self.best.sorted_into(out);
    }

    /// Natural log of the sum of exponentials of all logits, within 1e-10 of the sum; NaN where a logit was not
    /// finite, minus infinity where there was none. Wanted by [`Chooser::begin`], else NaN.
    pub fn log_sum_exp(&self) -> f64 {
        match (&self.log_sum, self.first_not_finite) {
            (Some(log_sum), None) => log_sum.value(),
            _ => f64::NAN,
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn take_avx512(chooser: &mut Chooser, first_id: u32, logits: &[f32]) {
    chooser.take_blocks(first_id, logits);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn take_avx2(chooser: &mut Chooser, first_id: u32, logits: &[f32]) {
    chooser.take_blocks(first_id, logits);
}

#[cfg(test)]
mod tests;
