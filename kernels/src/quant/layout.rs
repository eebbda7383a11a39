//! Bits and fields inside a block, for decoders and encoders alike.
//!
//! Almost every format stores codes as bit planes: byte `l` of a group holds the codes of weights `l`, `l + n`,
//! `l + 2n`, … in its bits from the lowest up, `n` being the number of bytes. Nibbles, 2-bit planes and single high
//! bits are all that one pattern.

use half::f16;

/// `N` bytes of `block` from `AT` on; checked when compiled.
#[inline(always)]
pub(crate) fn field<const AT: usize, const N: usize, const B: usize>(block: &[u8; B]) -> &[u8; N] {
    const { assert!(AT + N <= B) };
    block[AT..].first_chunk().expect("checked when compiled")
}

/// The half at byte `AT`, as f32.
#[inline(always)]
pub(crate) fn half_at<const AT: usize, const B: usize>(block: &[u8; B]) -> f32 {
    f16::from_le_bytes(*field::<AT, 2, B>(block)).to_f32()
}

/// The little-endian u32 at byte `at` of `bytes`; zero past the end.
#[inline(always)]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |four| u32::from_le_bytes(*four))
}

/// The little-endian u16 at byte `at` of `bytes`; zero past the end.
#[inline(always)]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |two| u16::from_le_bytes(*two))
}

/// Reads planes of `BITS` bits: code `p * group + l` is bits `BITS * p..` of byte `l` in each group of `group` bytes.
#[inline(always)]
pub(crate) fn read_planes<const BITS: u32>(bytes: &[u8], group: usize, codes: &mut [u8]) {
    let planes = 8 / BITS as usize;
    for (bytes, codes) in bytes.chunks_exact(group).zip(codes.chunks_exact_mut(group * planes)) {
        for (plane, codes) in codes.chunks_exact_mut(group).enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = (byte >> (BITS * plane as u32)) & (((1_u16 << BITS) - 1) as u8);
            }
        }
    }
}

/// Adds planes of `BITS` bits to codes, shifted up by `SHIFT`: the high bits that a format stores apart.
#[inline(always)]
pub(crate) fn read_high_planes<const BITS: u32, const SHIFT: u32>(bytes: &[u8], group: usize, codes: &mut [u8; 256]) {
    let mut high = [0_u8; 256];
    read_planes::<BITS>(bytes, group, &mut high);
    for (code, high) in codes.iter_mut().zip(&high) {
        *code |= high << SHIFT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_read_lowest_bits_first() {
        let mut codes = [0; 8];
        read_planes::<2>(&[0b11_10_01_00, 0b00_01_10_11], 2, &mut codes);
        assert_eq!(codes, [0, 3, 1, 2, 2, 1, 3, 0]);
        read_planes::<4>(&[0x21, 0x43, 0x65, 0x87], 2, &mut codes);
        assert_eq!(codes, [1, 3, 2, 4, 5, 7, 6, 8]);
    }
}
