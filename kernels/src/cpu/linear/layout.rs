//! Where the bits of a block lie, said as data.
//!
//! [`Format::unpack`](super::format::Format::unpack) is the truth about a type. A [`Layout`] says the same once more for
//! all types but codebooks and trits (see `codebook`), so that each instruction set can unpack whole chunks into its
//! registers with code that is written per kind of plane and scale, not per type.

use super::format::Format;

/// A block type's codes and scales.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    /// The low bits of codes.
    pub(crate) low: Planes,
    /// The bits above them.
    pub(crate) high: High,
    /// Scales and minima.
    pub(crate) scales: Scales,
}

/// Planes of bits, as in `crate::quant::layout`: from byte `at` on, in each group of `group` bytes, byte `l` holds the
/// codes of weights `l`, `l + group`, `l + 2 * group`, … from its lowest bits up. Planes of eight bits are signed.
#[derive(Clone, Copy)]
pub(crate) struct Planes {
    pub(crate) at: usize,
    pub(crate) bits: usize,
    pub(crate) group: usize,
}

impl Planes {
    /// For the weights from `weight` (a multiple of 8) on: their first byte, counted from the first plane, and how far
    /// up their bits stand in it.
    pub(crate) const fn place(self, weight: usize) -> (usize, usize) {
        let plane = weight / self.group % (8 / self.bits);
        let group = weight / (self.group * (8 / self.bits));
        (group * self.group + weight % self.group, plane * self.bits)
    }

    /// The weight in plane `plane` of a byte.
    pub(crate) const fn weight(self, byte: usize, plane: usize) -> usize {
        let group = byte / self.group;
        (group * (8 / self.bits) + plane) * self.group + byte % self.group
    }
}

/// Bits above the low ones.
#[derive(Clone, Copy)]
pub(crate) enum High {
    /// None.
    None,
    /// One a weight, in the order of weights, in the 32-bit word at this byte.
    Word(usize),
    /// Planes.
    Planes(Planes),
}

/// How scales are stored; numbers are places of halves in the block, `d` the factor of integer scales.
#[derive(Clone, Copy)]
pub(crate) enum Scales {
    /// One half for the whole block.
    Half { d: usize },
    /// One half, and one for the minimum.
    HalfAndMin { d: usize, min: usize },
    /// The exponent in byte 0 (E8M0).
    Exponent,
    /// Four E4M3 numbers from byte 0 on, one per 16 weights.
    Small,
    /// Q4_K and Q5_K: halves of scales and minima, then twelve bytes of 6-bit integers.
    SixBitPairs,
    /// Q2_K: sixteen bytes from byte 0 on, scale in the low nibble, minimum in the high one.
    NibblePairs { d: usize, min: usize },
    /// Q3_K: twelve bytes of 6-bit integers from byte `at` on.
    SixBits { at: usize, d: usize },
    /// Q6_K: sixteen signed bytes from byte `at` on.
    Bytes { at: usize, d: usize },
    /// IQ4_XS: a half, a word of high bits, four bytes of nibbles.
    Split,
}

/// Low bits alone.
pub(crate) const fn planes(at: usize, bits: usize, group: usize) -> Planes {
    Planes { at, bits, group }
}

/// The low planes of a type; any for codebooks, for which this is compiled but not run.
pub(super) const fn low_of<F: Format>() -> Planes {
    match F::LAYOUT {
        Some(Layout { low, .. }) => low,
        None => planes(0, 8, 32),
    }
}

/// The high planes of a type, where it has them.
pub(super) const fn high_of<F: Format>() -> Planes {
    match F::LAYOUT {
        Some(Layout { high: High::Planes(planes), .. }) => planes,
        _ => low_of::<F>(),
    }
}

/// The largest code a type has (after its table).
pub(super) const fn largest_code<F: Format>() -> usize {
    match (F::LAYOUT, F::TABLE) {
        (_, Some(table)) => {
            let (mut largest, mut code) = (0, 0);
            while code < table.len() {
                largest = if table[code] > largest { table[code] } else { largest };
                code += 1;
            }
            largest as usize
        }
        (Some(Layout { low, high, .. }), None) => {
            let above = match high {
                High::None => 0,
                High::Word(_) => 1,
                High::Planes(planes) => planes.bits,
            };
            (1 << (low.bits + above)) - 1
        }
        // Magnitudes with signs, and trits, lie around the offset.
        (None, None) => 2 * F::OFFSET as usize,
    }
}

/// The code (after its table) of one weight of a row that begins at `row`, of a type with a [`Layout`].
///
/// # Safety
/// The weight is there.
#[inline(always)]
pub(super) unsafe fn code_at<F: Format>(row: *const u8, at: usize) -> u8 {
    let (block, weight) = (row.wrapping_add(at / F::LEN * F::BYTES), at % F::LEN);
    let Some(Layout { low, high, .. }) = F::LAYOUT else { return 0 };
    // SAFETY: the caller's promise: the block is there.
    unsafe {
        let bits_of = |planes: Planes| {
            let (byte, up) = planes.place(weight);
            *block.add(planes.at + byte) >> up & (u8::MAX >> (8 - planes.bits))
        };
        let mut code = bits_of(low);
        if low.bits == 8 {
            code ^= 0x80;
        }
        match high {
            High::None => {}
            High::Word(at) => {
                let word = block.add(at).cast::<u32>().read_unaligned();
                code |= ((u32::from_le(word) >> weight & 1) as u8) << low.bits;
            }
            High::Planes(planes) => code |= bits_of(planes) << low.bits,
        }
        match F::TABLE {
            Some(table) => table[usize::from(code & 15)],
            None => code,
        }
    }
}

/// Some blocks of a row.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub(super) start: *const u8,
    pub(super) len: usize,
}

impl Blocks {
    /// Byte `at` of a block; of the last one where there are not so many.
    #[inline(always)]
    pub(super) fn at<F: Format>(self, block: usize, at: usize) -> *const u8 {
        self.start.wrapping_add(block.min(self.len - 1) * F::BYTES + at)
    }
}
