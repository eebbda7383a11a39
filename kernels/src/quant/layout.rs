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

/// As [`field`], to write to.
#[inline(always)]
pub(crate) fn field_mut<const AT: usize, const N: usize, const B: usize>(block: &mut [u8; B]) -> &mut [u8; N] {
    const { assert!(AT + N <= B) };
    block[AT..].first_chunk_mut().expect("checked when compiled")
}

/// The half at byte `AT`, as f32.
#[inline(always)]
pub(crate) fn half_at<const AT: usize, const B: usize>(block: &[u8; B]) -> f32 {
    f16::from_le_bytes(*field::<AT, 2, B>(block)).to_f32()
}

/// Writes `half` at byte `AT`.
#[inline(always)]
pub(crate) fn put_half<const AT: usize, const B: usize>(block: &mut [u8; B], half: f16) {
    *field_mut::<AT, 2, B>(block) = half.to_le_bytes();
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

/// Writes planes of `BITS` bits: the inverse of [`read_planes`]. Bits of a code from `SHIFT` up are stored.
pub(crate) fn write_planes<const BITS: u32, const SHIFT: u32>(codes: &[u8], group: usize, bytes: &mut [u8]) {
    let planes = 8 / BITS as usize;
    bytes.fill(0);
    for (bytes, codes) in bytes.chunks_exact_mut(group).zip(codes.chunks_exact(group * planes)) {
        for (plane, codes) in codes.chunks_exact(group).enumerate() {
            for (code, byte) in codes.iter().zip(bytes.iter_mut()) {
                *byte |= ((code >> SHIFT) & (((1_u16 << BITS) - 1) as u8)) << (BITS * plane as u32);
            }
        }
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

    #[test]
    fn written_planes_read_back() {
        let codes: [u8; 16] = std::array::from_fn(|weight| (weight as u8 * 7) % 64);
        let (mut low, mut high, mut back) = ([0xFF; 8], [0xFF; 4], [0; 16]);
        write_planes::<4, 0>(&codes, 4, &mut low);
        write_planes::<2, 4>(&codes, 4, &mut high);
        read_planes::<4>(&low, 4, &mut back);
        let mut top = [0; 16];
        read_planes::<2>(&high, 4, &mut top);
        for (low, top) in back.iter_mut().zip(top) {
            *low |= top << 4;
        }
        assert_eq!(back, codes);
    }
}
