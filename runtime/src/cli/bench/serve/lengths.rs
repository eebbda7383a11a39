//! Lengths of prompts and answers: a number, or a distribution to draw them from.

use std::fmt;
use std::str::FromStr;

use farpost::engine::Random;

/// Longer than any context, and short enough to make a prompt of.
const MOST: u32 = 1 << 20;
/// A standard deviation of more than this says nothing of lengths.
const MOST_SIGMA: f64 = 5.0;

/// How long something is, in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    /// Always so many.
    Fixed(u32),
    /// Any number from the first to the last, both among them, equally often.
    Uniform(u32, u32),
    /// `median * e^(sigma * z)` with normal `z`, rounded, 1 to `most`.
    Lognormal { median: f64, sigma: f64, most: u32 },
}

impl Lengths {
    /// One length.
    pub fn draw(&self, random: &mut Random) -> u32 {
        match *self {
            Self::Fixed(n) => n,
            Self::Uniform(least, most) => {
                let width = f64::from(most - least) + 1.0;
                least + ((random.unit() * width) as u32).min(most - least)
            }
            Self::Lognormal { median, sigma, most } => {
                let length = median * (sigma * normal(random)).exp();
                // A cast of what is too large gives the largest.
                (length.round() as u32).clamp(1, most)
            }
        }
    }
}

/// A number of the standard normal distribution (Box and Muller 1958).
fn normal(random: &mut Random) -> f64 {
    // 1 - unit is never 0.
    let radius = (-2.0 * (1.0 - random.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.unit()).cos()
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "expected tokens as N, A..B or lognormal:MEDIAN,SIGMA[,MOST], with 1 to {MOST} tokens and SIGMA 0 to \
                 {MOST_SIGMA}"
            )
        };
        let whole = |text: &str| text.trim().parse().ok().filter(|n| (1..=MOST).contains(n)).ok_or_else(wrong);
        if let Some(numbers) = text.strip_prefix("lognormal:") {
            let numbers: Vec<&str> = numbers.split(',').collect();
            let (median, sigma, most) = match numbers[..] {
                [median, sigma] => (median, sigma, MOST),
                [median, sigma, most] => (median, sigma, whole(most)?),
                _ => return Err(wrong()),
            };
            let sigma: f64 = sigma.trim().parse().map_err(|_| wrong())?;
            if !(0.0..=MOST_SIGMA).contains(&sigma) {
                return Err(wrong());
            }
            return Ok(Self::Lognormal { median: whole(median)?.into(), sigma, most });
        }
        match text.split_once("..") {
            None => Ok(Self::Fixed(whole(text)?)),
            Some((least, most)) => match (whole(least)?, whole(most)?) {
                (least, most) if least <= most => Ok(Self::Uniform(least, most)),
                _ => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Uniform(least, most) => write!(f, "{least}..{most}"),
            Self::Lognormal { median, sigma, most: MOST } => write!(f, "lognormal:{median},{sigma}"),
            Self::Lognormal { median, sigma, most } => write!(f, "lognormal:{median},{sigma},{most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str) -> Vec<u32> {
        let lengths: Lengths = text.parse().unwrap();
        assert_eq!(lengths.to_string(), text);
        let mut random = Random::new(3);
        (0..20_000).map(|_| lengths.draw(&mut random)).collect()
    }

    #[test]
    fn uniform_lengths_are_all_of_a_range_equally_often() {
        let drawn = drawn("5..8");
        let counts = [5, 6, 7, 8].map(|n| drawn.iter().filter(|&&length| length == n).count());
        assert_eq!(counts.iter().sum::<usize>(), drawn.len());
        assert!(counts.iter().all(|n| n.abs_diff(5000) < 250), "{counts:?}");
    }

    #[test]
    fn lognormal_lengths_have_their_median_and_spread_and_end_where_told() {
        let mut lengths = drawn("lognormal:200,0.5");
        lengths.sort_unstable();
        assert!(lengths[10_000].abs_diff(200) <= 4, "{}", lengths[10_000]);
        // One standard deviation above: 200 * e^0.5 = 329.7, with 84.13 % below.
        assert!(lengths[16_826].abs_diff(330) <= 8, "{}", lengths[16_826]);
        let bounded = drawn("lognormal:200,2,300");
        assert_eq!((bounded.iter().max(), bounded.iter().min()), (Some(&300), Some(&1)));
        assert!(drawn("lognormal:64,0").iter().all(|&n| n == 64) && drawn("7").iter().all(|&n| n == 7));
    }

    #[test]
    fn what_is_no_length_is_refused() {
        for wrong in [
            "",
            "0",
            "-1",
            "x",
            "1.5",
            "9..8",
            "0..3",
            "1..",
            "..2",
            "1..2..3",
            "2000000",
            "lognormal:",
            "lognormal:5",
            "lognormal:5,-1",
            "lognormal:5,nan",
            "lognormal:0,1",
            "lognormal:5,1,0",
            "lognormal:5,1,9,9",
            "normal:5,1",
        ] {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }
}
