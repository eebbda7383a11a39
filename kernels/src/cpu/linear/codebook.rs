//! Types whose codes are no bit planes: codebooks, and trits of which five share a byte.
//!
//! [`Format::unpack`](super::format::Format::unpack) is the truth about them. Instruction sets with vectors of their own
//! find out first, for a whole block, which entries of the codebook it names and which weights are negative; then entries
//! are loaded and signs applied, in the same way for all types.

use super::format::Format;
use crate::quant::iq_grids::{IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID};

/// How a block of 256 weights that is no bit planes is stored; see `crate::quant::iq` and `crate::quant::ternary`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packed {
    Iq1S,
    Iq1M,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Trits,
}

/// A codebook, with each weight as the code of its positive value.
#[derive(Clone, Copy)]
pub(crate) enum Book {
    /// Entries of eight codes.
    Eights(&'static [u64]),
    /// Entries of four codes.
    Fours(&'static [u32]),
}

/// What makes the code of a negative weight of the code of the positive one, as a difference.
#[derive(Clone, Copy)]
pub(crate) enum Negative {
    /// This less the code.
    From(u8),
    /// The code less this: the shift of the IQ1 types is their sign.
    Less(u8),
}

impl Packed {
    /// The codebook; none for trits.
    pub(crate) const fn book(self) -> Book {
        match self {
            Self::Iq1S | Self::Iq1M => Book::Eights(&IQ1.0),
            Self::Iq2Xxs => Book::Eights(&IQ2_XXS.0),
            Self::Iq2Xs => Book::Eights(&IQ2_XS.0),
            Self::Iq2S => Book::Eights(&IQ2_S.0),
            Self::Iq3Xxs => Book::Fours(&IQ3_XXS.0),
            Self::Iq3S => Book::Fours(&IQ3_S.0),
            Self::Trits => Book::Eights(&[]),
        }
    }

    /// Weights that are negative (or shifted down).
    pub(crate) const fn negative(self) -> Negative {
        match self {
            Self::Iq1S | Self::Iq1M | Self::Trits => Negative::Less(2),
            Self::Iq2Xxs | Self::Iq2Xs | Self::Iq2S => Negative::From(2 * IQ2_OFFSET),
            Self::Iq3Xxs => Negative::From(2 * IQ3_XXS_OFFSET),
            Self::Iq3S => Negative::From(2 * IQ3_S_OFFSET),
        }
    }
}

/// How the codes of a type lie that has no layout.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "NEON asks for planes of bits no further"))]
pub(super) const fn packed_of<F: Format>() -> Packed {
    match F::PACKED {
        Some(packed) => packed,
        // Compiled, but not run.
        None => Packed::Trits,
    }
}

/// What codes stand above their values.
pub(crate) const IQ2_OFFSET: u8 = 43;
pub(crate) const IQ3_XXS_OFFSET: u8 = 62;
pub(crate) const IQ3_S_OFFSET: u8 = 15;
/// Eightfold trits, an eighth up or down.
pub(crate) const IQ1_OFFSET: u8 = 9;

/// Entries that do not lie across two cache lines.
#[repr(C, align(64))]
struct Entries<T, const N: usize>([T; N]);

static IQ1: Entries<u64, 2048> = eights(&IQ1_GRID, 8, IQ1_OFFSET + 1);
static IQ2_XXS: Entries<u64, 256> = eights(&IQ2_XXS_GRID, 1, IQ2_OFFSET);
static IQ2_XS: Entries<u64, 512> = eights(&IQ2_XS_GRID, 1, IQ2_OFFSET);
static IQ2_S: Entries<u64, 1024> = eights(&IQ2_S_GRID, 1, IQ2_OFFSET);
static IQ3_XXS: Entries<u32, 256> = fours(&IQ3_XXS_GRID, IQ3_XXS_OFFSET);
static IQ3_S: Entries<u32, 512> = fours(&IQ3_S_GRID, IQ3_S_OFFSET);

const fn eights<const N: usize>(grid: &[[i8; 8]; N], factor: i8, offset: u8) -> Entries<u64, N> {
    let mut out = [0; N];
    let mut entry = 0;
    while entry < N {
        let mut codes = [0; 8];
        let mut place = 0;
        while place < 8 {
            codes[place] = (grid[entry][place] * factor).cast_unsigned().wrapping_add(offset);
            place += 1;
        }
        out[entry] = u64::from_le_bytes(codes);
        entry += 1;
    }
    Entries(out)
}

const fn fours<const N: usize>(grid: &[[i8; 4]; N], offset: u8) -> Entries<u32, N> {
    let mut out = [0; N];
    let mut entry = 0;
    while entry < N {
        let [a, b, c, d] = grid[entry];
        let code = [a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()];
        out[entry] = u32::from_le_bytes([code[0] + offset, code[1] + offset, code[2] + offset, code[3] + offset]);
        entry += 1;
    }
    Entries(out)
}
