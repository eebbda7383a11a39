//! The level sets codes stand for, and the nearest level to a number: what every search rounds with.

use super::iq::IQ4_LEVELS;
use super::mx::E2M1_DOUBLED;

/// A set of levels. Numbers given to it are finite; ties may go either way, but always the same.
pub(crate) trait Levels {
    /// Lowest level.
    const LOW: f32;
    /// Highest level.
    const HIGH: f32;

    /// A typical distance between the outermost levels.
    const STEP: f32;

    /// The level nearest to `value`.
    fn nearest(value: f32) -> f32;

    /// The code of the level nearest to `value`.
    fn code(value: f32) -> u8;
}

/// Whole numbers from `LOW` to `HIGH`; the code of a level counts from `LOW`.
pub(crate) struct Linear<const LOW: i32, const HIGH: i32>;

impl<const LOW: i32, const HIGH: i32> Levels for Linear<LOW, HIGH> {
    const LOW: f32 = LOW as f32;
    const HIGH: f32 = HIGH as f32;
    const STEP: f32 = 1.0;

    #[inline(always)]
    fn nearest(value: f32) -> f32 {
        // Adding 1.5 * 2^23 leaves no bits for a fraction: rounds to nearest even on any processor, in two additions.
        const MAGIC: f32 = 12_582_912.0;
        (limited(value, Self::LOW, Self::HIGH) + MAGIC) - MAGIC
    }

    #[inline(always)]
    fn code(value: f32) -> u8 {
        (Self::nearest(value) as i32 - LOW) as u8
    }
}

/// Sixteen uneven levels: whole numbers within ±127.
pub(crate) trait Table {
    const LEVELS: [i8; 16];
    /// Code of the nearest level for each half step from -128 up: every border between two whole numbers lies on one.
    const CODES: &'static [u8; 512];
    /// Lowest and highest level, and a typical distance between those far out.
    const SHAPE: (f32, f32, f32);
}

/// The levels of IQ4_NL and IQ4_XS.
pub(crate) struct Iq4;

impl Table for Iq4 {
    const LEVELS: [i8; 16] = IQ4_LEVELS;
    const CODES: &'static [u8; 512] = &nearest_codes(&IQ4_LEVELS);
    const SHAPE: (f32, f32, f32) = (-127.0, 113.0, 20.0);
}

/// The doubled E2M1 levels of MXFP4.
pub(crate) struct E2m1;

impl Table for E2m1 {
    const LEVELS: [i8; 16] = E2M1_DOUBLED;
    const CODES: &'static [u8; 512] = &nearest_codes(&E2M1_DOUBLED);
    const SHAPE: (f32, f32, f32) = (-12.0, 12.0, 4.0);
}

impl<T: Table> Levels for T {
    const LOW: f32 = T::SHAPE.0;
    const HIGH: f32 = T::SHAPE.1;
    const STEP: f32 = T::SHAPE.2;

    #[inline(always)]
    fn nearest(value: f32) -> f32 {
        f32::from(T::LEVELS[usize::from(Self::code(value) & 15)])
    }

    #[inline(always)]
    fn code(value: f32) -> u8 {
        T::CODES[half_step(value)]
    }
}

#[inline(always)]
fn half_step(value: f32) -> usize {
    // From 0 to 511 by the limits; the mask only tells the compiler so.
    ((limited(value, -128.0, 127.75) + 128.0) * 2.0) as usize & 511
}

/// `value` between `low` and `high`; anything that is not a number becomes `low`.
#[inline(always)]
pub(crate) fn limited(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

const fn nearest_codes(levels: &[i8; 16]) -> [u8; 512] {
    let mut codes = [0; 512];
    let mut step = 0;
    while step < 512 {
        // The middle of the half step, in quarters.
        let middle = step as i32 * 2 + 1 - 512;
        let mut code = 1;
        while code < 16 {
            let best = levels[codes[step] as usize] as i32 * 4 - middle;
            if (levels[code] as i32 * 4 - middle).abs() < best.abs() {
                codes[step] = code as u8;
            }
            code += 1;
        }
        step += 1;
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn distance(levels: &[i8; 16], value: f32) -> f32 {
        levels.iter().map(|&level| (f32::from(level) - value).abs()).fold(f32::INFINITY, f32::min)
    }

    proptest! {
        #[test]
        fn no_level_is_nearer_than_the_nearest(value in -200.0_f32..200.0) {
            prop_assert_eq!((Iq4::nearest(value) - value).abs(), distance(&IQ4_LEVELS, value));
            prop_assert_eq!((E2m1::nearest(value) - value).abs(), distance(&E2M1_DOUBLED, value));
            prop_assert_eq!(Linear::<-8, 7>::nearest(value), value.round_ties_even().clamp(-8.0, 7.0));
            prop_assert_eq!(f32::from(Linear::<-8, 7>::code(value)), Linear::<-8, 7>::nearest(value) + 8.0);
        }
    }

    #[test]
    fn numbers_out_of_range_take_the_ends() {
        assert_eq!([Iq4::nearest(-1e30), Iq4::nearest(1e30)], [-127.0, 113.0]);
        assert_eq!([E2m1::nearest(-1e30), E2m1::nearest(1e30)], [-12.0, 12.0]);
        assert_eq!([Linear::<0, 15>::code(f32::NAN), Linear::<0, 15>::code(f32::INFINITY)], [0, 15]);
    }
}
