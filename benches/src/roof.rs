//! What the machine itself can do: the roofs that kernels are measured against, for one thread.

/// Multiply-adds of [`int8`] per call.
pub const INT8_PER_CALL: u64 = 16 * 64 * 4096;

/// Runs byte dot products on registers alone, as fast as the processor issues them; `None` without AVX-512 VNNI.
pub fn int8() -> Option<i32> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: just detected.
        return Some(unsafe { int8_avx512() });
    }
    None
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn int8_avx512() -> i32 {
    use std::arch::x86_64::*;
    use std::hint::black_box;
    let (weights, x) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(5)));
    let mut sums = [_mm512_setzero_si512(); 16];
    for _ in 0..INT8_PER_CALL / (16 * 64) {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, weights, x);
        }
    }
    sums.into_iter().fold(0, |total, sum| total.wrapping_add(_mm512_reduce_add_epi32(sum)))
}

/// Reads all of `words`, in order.
pub fn read(words: &[[u64; 64]]) -> u64 {
    let mut sums = [0_u64; 64];
    for words in words {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum ^= word;
        }
    }
    sums.into_iter().fold(0, |total, sum| total ^ sum)
}
