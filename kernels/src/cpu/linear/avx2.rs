//! AVX2 with FMA: `vpmaddubsw` on raw unsigned codes where two products fit 16 bits (codes up to 128), else on
//! magnitudes with the signs moved over to the activations (which are never -128).

use std::arch::x86_64::*;

use super::drive::{self, Engine};
use super::drive_floats;
use super::format::{Format, Unpacked};
use super::input::{CHUNK, Outlier, QuantRow};
use super::job::{Job, PANEL_ROWS};
use super::layout::{code_at, largest_code};
use super::scalar::Float;
use super::unpack_avx2::{self, Chunk};

pub(crate) struct Avx2;

/// Input rows of a tile: 4 integer and 4 float accumulators of 16 registers.
const TILE: usize = 4;

macro_rules! kernel {
    ($name:ident<$T:ident: $bound:path> => $body:expr) => {
        /// # Safety
        /// The processor has AVX2, FMA and F16C; the job keeps its promises.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) unsafe fn $name<$T: $bound>(job: &Job<'_>) {
            // SAFETY: the caller's promises.
            unsafe { $body(job) }
        }
    };
}
kernel!(flat<F: Format> => drive::flat::<Avx2, F>);
kernel!(tall<F: Format> => drive::tall::<Avx2, F>);
kernel!(floats_flat<T: Float> => drive_floats::floats_flat::<Avx2, T>);
kernel!(floats_tall<T: Float> => drive_floats::floats_tall::<Avx2, T, 8>);

/// Weights in the form a product takes: codes, or magnitudes and the values they came from.
#[derive(Clone, Copy)]
struct Weights {
    unsigned: __m256i,
    signed: __m256i,
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn weights<F: Format>(codes: __m256i) -> Weights {
    if F::OFFSET < 128 {
        return Weights { unsigned: codes, signed: codes };
    }
    // SAFETY: the caller's promise.
    unsafe {
        let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
        Weights { unsigned: _mm256_abs_epi8(signed), signed }
    }
}

/// Sums of two neighbouring products.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn pairs_of<F: Format>(weights: Weights, x: __m256i) -> __m256i {
    // SAFETY: the caller's promise. Two products stay within 2 * 128 * 127 = 32,512.
    unsafe {
        let x = if F::OFFSET < 128 { x } else { _mm256_sign_epi8(x, weights.signed) };
        _mm256_maddubs_epi16(weights.unsigned, x)
    }
}

/// The largest magnitude of what is multiplied with an activation.
const fn largest<F: Format>() -> usize {
    if F::OFFSET == 128 { 128 } else { largest_code::<F>() }
}

/// Whether so many products fit 16 bits.
const fn fit<F: Format>(products: usize) -> bool {
    products * 127 * largest::<F>() <= i16::MAX as usize
}

/// How many pairs of products a 16-bit sum can take: a power of two, at most those of a sub-block.
const fn pairs_per_sum<F: Format>() -> usize {
    let mut pairs = F::SUB / 4;
    while pairs > 1 && !fit::<F>(2 * pairs) {
        pairs /= 2;
    }
    pairs
}

/// Sums of neighbouring 16-bit numbers.
#[inline(always)]
unsafe fn pairs(numbers: __m256i) -> __m256i {
    // SAFETY: the caller has the instructions.
    unsafe { _mm256_madd_epi16(numbers, _mm256_set1_epi16(1)) }
}

/// Products of 128 columns, sixteen each: element `4 * n + part` belongs to columns `32 * part + 16 * n` on.
///
/// # Safety
/// The processor has AVX2; the columns are there.
#[inline(always)]
unsafe fn four_parts<F: Format>(codes: &[__m256i; 4], x: *const i8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let mut fours = [_mm256_setzero_si256(); 4];
        for (part, four) in fours.iter_mut().enumerate() {
            let x = _mm256_loadu_si256(x.add(32 * part).cast());
            *four = pairs(pairs_of::<F>(weights::<F>(codes[part]), x));
        }
        // Packed to 16 bits, where they fit, neighbours are added by one instruction.
        if const { fit::<F>(8) } {
            let first = pairs(_mm256_packs_epi32(fours[0], fours[1]));
            let last = pairs(_mm256_packs_epi32(fours[2], fours[3]));
            return pairs(_mm256_packs_epi32(first, last));
        }
        if const { fit::<F>(4) } {
            let first = _mm256_castsi256_ps(pairs(_mm256_packs_epi32(fours[0], fours[1])));
            let last = _mm256_castsi256_ps(pairs(_mm256_packs_epi32(fours[2], fours[3])));
            return _mm256_add_epi32(
                _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(first, last)),
                _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(first, last)),
            );
        }
        let first =
            _mm256_add_epi32(_mm256_unpacklo_epi32(fours[0], fours[1]), _mm256_unpackhi_epi32(fours[0], fours[1]));
        let last =
            _mm256_add_epi32(_mm256_unpacklo_epi32(fours[2], fours[3]), _mm256_unpackhi_epi32(fours[2], fours[3]));
        _mm256_add_epi32(_mm256_unpacklo_epi64(first, last), _mm256_unpackhi_epi64(first, last))
    }
}

/// Whether minima are to be added: the 128-offset types are multiplied signed, so theirs are not.
#[inline(always)]
fn adds_mins<F: Format>() -> bool {
    F::HAS_MIN || (F::OFFSET > 0 && Avx2::takes_offset_back::<F>())
}

/// # Safety
/// The processor has the engine's instructions.
#[cold]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_plain<F: Format>(bytes: &[u8], out: &mut Unpacked) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = Avx2::no_weights();
        Avx2::unpack::<F>(bytes, &mut weights);
        Avx2::spill(&weights, out);
    }
}

// SAFETY (all functions): callers have the instructions; pointers are to whole chunks, as `Engine` demands.
impl Engine for Avx2 {
    type Weights = Chunk;
    type Sum = [__m256; 2];
    type Floats = __m256;
    const LANES: usize = 8;
    const ROWS: usize = 8;
    const FEW_REGISTERS: bool = true;
    const UNSIGNED: bool = true;

    #[inline(always)]
    fn takes_offset_back<F: Format>() -> bool {
        F::OFFSET < 128
    }

    #[inline(always)]
    fn adds_outliers<F: Format>() -> bool {
        F::LAYOUT.is_some()
    }

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        // SAFETY: see the impl.
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn no_weights() -> Chunk {
        // SAFETY: see the impl.
        unsafe {
            let none = [_mm256_setzero_ps(); 2];
            Chunk { codes: [_mm256_setzero_si256(); 8], scales: none, mins: none }
        }
    }

    #[inline(always)]
    unsafe fn unpack<F: Format>(bytes: &[u8], out: &mut Chunk) {
        // SAFETY: see the impl.
        unsafe { unpack_avx2::unpack::<F>(bytes, Self::takes_offset_back::<F>(), out) };
    }

    #[inline(always)]
    unsafe fn spill(weights: &Chunk, out: &mut Unpacked) {
        // SAFETY: see the impl; the arrays are aligned.
        unsafe {
            for (part, codes) in weights.codes.into_iter().enumerate() {
                _mm256_store_si256(out.codes.as_mut_ptr().add(32 * part).cast(), codes);
            }
            for half in 0..2 {
                _mm256_store_ps(out.scales.as_mut_ptr().add(8 * half), weights.scales[half]);
                _mm256_store_ps(out.mins.as_mut_ptr().add(8 * half), weights.mins[half]);
            }
        }
    }

    #[inline(always)]
    unsafe fn spill_again<F: Format>(bytes: &[u8], _: &Chunk, out: &mut Unpacked) {
        // SAFETY: see the impl.
        unsafe { unpack_plain::<F>(bytes, out) };
    }

    #[inline(always)]
    unsafe fn dot<F: Format>(sum: Self::Sum, weights: &Chunk, input: QuantRow) -> Self::Sum {
        // SAFETY: see the impl.
        unsafe {
            let own = _mm256_loadu_ps(input.scales);
            let codes = &weights.codes;
            let quarters = [
                four_parts::<F>(&[codes[0], codes[1], codes[2], codes[3]], input.codes),
                four_parts::<F>(&[codes[4], codes[5], codes[6], codes[7]], input.codes.add(CHUNK / 2)),
            ];
            let [mut sum, mut of_mins] = sum;
            if F::SUB == 32 {
                let [first, last] = quarters;
                let lower = _mm256_permute2x128_si256::<0x20>(first, last);
                let upper = _mm256_permute2x128_si256::<0x31>(first, last);
                let products = _mm256_cvtepi32_ps(_mm256_add_epi32(lower, upper));
                sum = _mm256_fmadd_ps(products, _mm256_mul_ps(weights.scales[0], own), sum);
                if adds_mins::<F>() {
                    of_mins = _mm256_fmadd_ps(weights.mins[0], _mm256_loadu_ps(input.sums32), of_mins);
                }
                return [sum, of_mins];
            }
            let twice = [_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)];
            for half in 0..2 {
                let in_order = _mm256_permutevar8x32_epi32(quarters[half], _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                let scales = _mm256_mul_ps(weights.scales[half], _mm256_permutevar8x32_ps(own, twice[half]));
                sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(in_order), scales, sum);
                if adds_mins::<F>() {
                    let sums = _mm256_loadu_ps(input.sums16.add(8 * half));
                    of_mins = _mm256_fmadd_ps(weights.mins[half], sums, of_mins);
                }
            }
            [sum, of_mins]
        }
    }

    #[inline(always)]
    unsafe fn add_outliers<F: Format>(sum: Self::Sum, weights: &Chunk, start: *const u8, input: QuantRow) -> Self::Sum {
        let mut scales = [0.0; 16];
        // SAFETY: see the impl. Codes are read where they lie: in registers no place can be named.
        unsafe {
            _mm256_storeu_ps(scales.as_mut_ptr(), weights.scales[0]);
            _mm256_storeu_ps(scales.as_mut_ptr().add(8), weights.scales[1]);
            let mut products = 0.0_f32;
            for Outlier { at, value } in input.outliers_of_chunk() {
                let code = drive::as_multiplied::<Self, F>(code_at::<F>(start, at)) as f32;
                products = (scales[at / F::SUB] * code).mul_add(value, products);
            }
            [_mm256_add_ps(sum[0], _mm256_zextps128_ps256(_mm_set_ss(products))), sum[1]]
        }
    }

    #[inline(always)]
    unsafe fn interleave(
        rows: &[Unpacked; PANEL_ROWS],
        subs: usize,
        codes: *mut u32,
        scales: *mut f32,
        mins: *mut f32,
    ) {
        // SAFETY: see the impl; whole vectors of arrays that lie `size_of::<Unpacked>()` bytes apart.
        unsafe {
            transpose(rows[0].codes.as_ptr(), CHUNK / 16, codes);
            transpose(rows[0].scales.as_ptr().cast(), subs / 4, scales.cast());
            transpose(rows[0].mins.as_ptr().cast(), subs / 4, mins.cast());
        }
    }

    #[inline(always)]
    unsafe fn total(sum: Self::Sum) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let sum = _mm256_add_ps(sum[0], sum[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: a hint; any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }

    #[inline(always)]
    unsafe fn tiles<F: Format>(job: &Job<'_>, row: usize, n_rows: usize) {
        let mut start = job.input_rows.start;
        while start < job.input_rows.end {
            // SAFETY: see the impl; the tile's input rows are inside the job.
            start += unsafe {
                if job.input_rows.end - start >= TILE {
                    tile::<F, TILE>(job, row, n_rows, start)
                } else {
                    tile::<F, 1>(job, row, n_rows, start)
                }
            };
        }
    }

    #[inline(always)]
    unsafe fn floats_zero() -> Self::Floats {
        // SAFETY: see the impl.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        // SAFETY: see the impl.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load<T: Float>(bytes: *const u8) -> Self::Floats {
        // SAFETY: see the impl.
        unsafe {
            if T::BYTES == 4 {
                _mm256_loadu_ps(bytes.cast())
            } else if T::IS_HALF {
                _mm256_cvtph_ps(_mm_loadu_si128(bytes.cast()))
            } else {
                let upper = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(upper))
            }
        }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, sum: Self::Floats) -> Self::Floats {
        // SAFETY: see the impl.
        unsafe { _mm256_fmadd_ps(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn store(values: Self::Floats, out: *mut f32) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_ps(out, values) };
    }
}

/// Turns 8 rows of `4 * n_fours` words, [`Unpacked`] to [`Unpacked`] apart, into columns of 8 words.
///
/// # Safety
/// The processor has AVX2; the words are there, `out` is aligned and has room.
#[inline(always)]
unsafe fn transpose(rows: *const u8, n_fours: usize, out: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe {
        for four in 0..n_fours {
            let load = |row: usize| _mm_loadu_si128(rows.add(row * size_of::<Unpacked>() + 16 * four).cast());
            // Rows `row` and `row + 4`.
            let lanes = |row: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(row)), load(row + 4));
            let (a, b, c, d) = (lanes(0), lanes(1), lanes(2), lanes(3));
            let (low_ab, high_ab) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (low_cd, high_cd) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            let columns = [
                _mm256_unpacklo_epi64(low_ab, low_cd),
                _mm256_unpackhi_epi64(low_ab, low_cd),
                _mm256_unpacklo_epi64(high_ab, high_cd),
                _mm256_unpackhi_epi64(high_ab, high_cd),
            ];
            for (column, words) in columns.into_iter().enumerate() {
                _mm256_store_si256(out.add(8 * (4 * four + column)).cast(), words);
            }
        }
    }
}

/// The panel times `N` input rows from `start` on: 8 weight rows in the lanes, 4 columns an instruction.
#[inline(always)]
unsafe fn tile<F: Format, const N: usize>(job: &Job<'_>, row: usize, n_rows: usize, start: usize) -> usize {
    let input = job.input.quant_row(start);
    let (stride, n_chunks) = (job.input.stride(), job.input.n_chunks());
    let pairs = const { pairs_per_sum::<F>() };
    let (scale_stride, sums_stride) = (n_chunks * 8, n_chunks * CHUNK / F::SUB);
    let sums_of = if F::SUB == 32 { input.sums32 } else { input.sums16 };
    let (mut codes, mut x) = (job.panel.values.at(0).cast_const(), input.codes);
    let (scales, mins) = (job.panel.scales.at(0).cast_const(), job.panel.mins.at(0).cast_const());
    // SAFETY: the panel and `N` input rows have `cols / SUB` sub-blocks; instructions as the caller promised.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); N];
        for sub in 0..job.cols() / F::SUB {
            let mut totals = [_mm256_setzero_si256(); N];
            for run in 0..F::SUB / 4 / pairs {
                let mut products = [_mm256_setzero_si256(); N];
                for step in run * pairs..(run + 1) * pairs {
                    let weights = weights::<F>(_mm256_load_si256(codes.add(32 * step).cast()));
                    for (index, products) in products.iter_mut().enumerate() {
                        let four = x.add(index * stride + 4 * step).cast::<i32>().read_unaligned();
                        *products = _mm256_add_epi16(*products, pairs_of::<F>(weights, _mm256_set1_epi32(four)));
                    }
                }
                for (total, products) in totals.iter_mut().zip(products) {
                    *total = _mm256_add_epi32(*total, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
                }
            }
            codes = codes.add(8 * F::SUB);
            x = x.add(F::SUB);
            let scale = _mm256_load_ps(scales.add(8 * sub));
            let min = _mm256_load_ps(mins.add(8 * sub));
            for (index, sum) in sums.iter_mut().enumerate() {
                let own = _mm256_set1_ps(*input.scales.add(index * scale_stride + sub * F::SUB / 32));
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[index]), _mm256_mul_ps(scale, own), *sum);
                if adds_mins::<F>() {
                    let own = _mm256_set1_ps(*sums_of.add(index * sums_stride + sub));
                    *sum = _mm256_fmadd_ps(min, own, *sum);
                }
            }
        }
        for (index, sum) in sums.into_iter().enumerate() {
            let mut lanes = [0.0; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), sum);
            drive::put(job, start + index, row, n_rows, &lanes);
        }
    }
    N
}
