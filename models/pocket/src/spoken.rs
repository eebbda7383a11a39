//! Numbers, clock times and durations as people say them, each with its normal form.

use crate::rng::Rng;

const ONES: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// `n` (0 to 100) in words.
pub fn words(n: usize) -> String {
    match n {
        0..20 => ONES[n].to_owned(),
        100 => "one hundred".to_owned(),
        _ if n.is_multiple_of(10) => TENS[n / 10].to_owned(),
        _ => format!("{} {}", TENS[n / 10], ONES[n % 10]),
    }
}

/// `n` in words or digits.
pub fn number(rng: &mut Rng, n: usize) -> String {
    match rng.below(20) {
        0..8 => n.to_string(),
        8 => words(n).replace(' ', "-"),
        _ if n == 100 && rng.chance(50) => "a hundred".to_owned(),
        _ => words(n),
    }
}

/// A percentage and its digits.
pub fn percent(rng: &mut Rng) -> (String, String) {
    let n = match rng.below(10) {
        0..5 => 10 * (1 + rng.below(10)),
        5..7 => 5 * (1 + rng.below(20)),
        _ => 1 + rng.below(100),
    };
    let text = match rng.below(20) {
        0 if n == 50 => "half".to_owned(),
        0 | 1 if n == 25 => "a quarter".to_owned(),
        0 | 1 if n == 75 => "three quarters".to_owned(),
        0 | 1 if n == 100 => "full".to_owned(),
        0..4 => format!("{n}%"),
        4 => format!("{n} %"),
        _ => format!("{} percent", number(rng, n)),
    };
    (text, n.to_string())
}

/// A room temperature and its digits: 5 to 30 degrees in halves.
pub fn degrees(rng: &mut Rng) -> (String, String) {
    let n = if rng.chance(80) { 15 + rng.below(11) } else { 5 + rng.below(26) };
    let (mut text, value) = if rng.chance(15) {
        let text = match rng.below(3) {
            0 => format!("{n}.5"),
            1 => format!("{} point five", number(rng, n)),
            _ => format!("{} and a half", number(rng, n)),
        };
        (text, format!("{n}.5"))
    } else {
        (number(rng, n), n.to_string())
    };
    text.push_str(match rng.below(20) {
        0..11 => " degrees",
        11 => " degrees celsius",
        12 => " celsius",
        13 => " degree",
        14 => "°",
        15 => "°c",
        16 => " c",
        _ => "",
    });
    (text, value)
}

/// A duration and its normal form: hours, minutes, seconds, as in `1h30m`, `45s`.
pub fn duration(rng: &mut Rng) -> (String, String) {
    match rng.below(27) {
        24 => match rng.below(4) {
            0 => ("half a minute".to_owned(), "30s".to_owned()),
            1 => ("three quarters of an hour".to_owned(), "45m".to_owned()),
            2 => ("a minute and a half".to_owned(), "1m30s".to_owned()),
            _ => ("one and a half hours".to_owned(), "1h30m".to_owned()),
        },
        25 => {
            let of = if rng.chance(80) { " of" } else { "" };
            let (unit, letter) = [("minutes", 'm'), ("hours", 'h')][rng.below(2)];
            (format!("a couple{of} {unit}"), format!("2{letter}"))
        }
        26 => {
            // As written in a hurry.
            let n = if rng.chance(60) { 5 * (1 + rng.below(12)) } else { 2 + rng.below(98) };
            match rng.below(4) {
                0 => (format!("{n}min"), format!("{n}m")),
                1 => (format!("{n}m"), format!("{n}m")),
                2 => (format!("{n}s"), format!("{n}s")),
                _ => {
                    let n = 2 + rng.below(11);
                    (format!("{n}h"), format!("{n}h"))
                }
            }
        }
        0 => ("half an hour".to_owned(), "30m".to_owned()),
        1 => {
            let text = ["a quarter of an hour", "quarter of an hour"][rng.below(2)];
            (text.to_owned(), "15m".to_owned())
        }
        2 => (["an hour", "one hour", "1 hour"][rng.below(3)].to_owned(), "1h".to_owned()),
        3 => (["a minute", "one minute", "1 minute"][rng.below(3)].to_owned(), "1m".to_owned()),
        4 => ("an hour and a half".to_owned(), "1h30m".to_owned()),
        5 => {
            let n = 1 + rng.below(6);
            (format!("{} and a half hours", number(rng, n)), format!("{n}h30m"))
        }
        6..9 => {
            let n = 2 + rng.below(11);
            let unit = if rng.chance(4) { "hrs" } else { "hours" };
            (format!("{} {unit}", number(rng, n)), format!("{n}h"))
        }
        9..12 => {
            let n = if rng.chance(60) { 5 * (1 + rng.below(11)) } else { 2 + rng.below(98) };
            let unit = if rng.chance(10) { "secs" } else { "seconds" };
            (format!("{} {unit}", number(rng, n)), format!("{n}s"))
        }
        12..14 => {
            let (hours, minutes) = (1 + rng.below(6), 5 * (1 + rng.below(11)));
            let hour = if hours == 1 {
                ["one hour", "an hour"][rng.below(2)].to_owned()
            } else {
                number(rng, hours) + " hours"
            };
            let and = if rng.chance(70) { " and" } else { "" };
            (format!("{hour}{and} {} minutes", number(rng, minutes)), format!("{hours}h{minutes}m"))
        }
        14 => {
            let (minutes, seconds) = (2 + rng.below(19), 5 * (1 + rng.below(11)));
            let and = if rng.chance(70) { " and" } else { "" };
            let text = format!("{} minutes{and} {} seconds", number(rng, minutes), number(rng, seconds));
            (text, format!("{minutes}m{seconds}s"))
        }
        _ => {
            let n = if rng.chance(60) { 5 * (1 + rng.below(12)) } else { 2 + rng.below(98) };
            let unit = match rng.below(20) {
                0 => "min",
                1 => "mins",
                _ => "minutes",
            };
            (format!("{} {unit}", number(rng, n)), format!("{n}m"))
        }
    }
}

/// Half of the day that was said with a clock time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Unsaid,
    Morning,
    Evening,
}

/// `hour` (1 to 12) on the 24-hour clock; an unsaid half leaves the hour as it was spoken.
fn hour24(hour: usize, half: Half) -> usize {
    match (hour, half) {
        (12, Half::Morning) => 0,
        (12, _) => 12,
        (_, Half::Evening) => hour + 12,
        _ => hour,
    }
}

/// A clock time in words without its half of the day, and its hour (1 to 12) and minute.
fn clock(rng: &mut Rng) -> (String, usize, usize) {
    let hour = 1 + rng.below(12);
    let before = if hour == 1 { 12 } else { hour - 1 };
    let a = if rng.chance(30) { "a " } else { "" };
    match rng.below(20) {
        0..6 => (number(rng, hour), hour, 0),
        6 => (format!("{} o'clock", number(rng, hour)), hour, 0),
        7..10 => (format!("half past {}", number(rng, hour)), hour, 30),
        10 => (format!("{a}quarter past {}", number(rng, hour)), hour, 15),
        11 | 12 => (format!("{a}quarter to {}", number(rng, hour)), before, 45),
        13 => {
            let minute = [5, 10, 20, 25][rng.below(4)];
            (format!("{} past {}", number(rng, minute), number(rng, hour)), hour, minute)
        }
        14 => {
            let minute = [5, 10, 20, 25][rng.below(4)];
            (format!("{} to {}", number(rng, minute), number(rng, hour)), before, 60 - minute)
        }
        15 | 16 => {
            let minute = [10, 15, 20, 30, 40, 45, 50][rng.below(7)];
            (format!("{} {}", words(hour), words(minute)), hour, minute)
        }
        17 => (format!("{} oh five", words(hour)), hour, 5),
        _ => {
            let minute = if rng.chance(60) { 15 * rng.below(4) } else { rng.below(60) };
            (format!("{hour}:{minute:02}"), hour, minute)
        }
    }
}

/// The word for a half of the day right after a clock time: "pm", and the ways people write it.
fn half_word(rng: &mut Rng, spoken: &str, letter: char) -> String {
    let joined = spoken.ends_with(|c: char| c.is_ascii_digit());
    match rng.below(10) {
        0..2 if joined => format!("{spoken}{letter}m"),
        2 => format!("{spoken} {letter}.m."),
        3 => format!("{spoken} {letter} m"),
        _ => format!("{spoken} {letter}m"),
    }
}

/// A point in time as an adverb ("at half past nine in the evening") and its normal form `HH:MM`.
pub fn at(rng: &mut Rng) -> (String, String) {
    let at = match rng.below(20) {
        0 => "around",
        1 => "by",
        _ => "at",
    };
    match rng.below(20) {
        0 => return (format!("{at} noon"), "12:00".to_owned()),
        1 => return (format!("{at} midnight"), "00:00".to_owned()),
        3 => {
            // "nineteen thirty", as on a timetable.
            let (hour, minute) = (13 + rng.below(11), [0, 10, 15, 20, 30, 40, 45, 50][rng.below(8)]);
            let rest = if minute == 0 { "hundred".to_owned() } else { words(minute) };
            return (format!("{at} {} {rest}", words(hour)), format!("{hour}:{minute:02}"));
        }
        2 => {
            let (hour, minute) = (13 + rng.below(11), if rng.chance(60) { 15 * rng.below(4) } else { rng.below(60) });
            return (format!("{at} {hour}:{minute:02}"), format!("{hour}:{minute:02}"));
        }
        _ => {}
    }
    let (spoken, hour, minute) = clock(rng);
    let half = [Half::Unsaid, Half::Unsaid, Half::Morning, Half::Evening, Half::Evening][rng.below(5)];
    let text = match half {
        Half::Unsaid => format!("{at} {spoken}"),
        // Nobody says "tonight at one" for 13:00, so words for a part of the day go with the hours they fit.
        Half::Morning => match rng.below(4) {
            0 if hour < 12 => format!("this morning {at} {spoken}"),
            1 | 2 if hour < 12 => format!("{at} {spoken} in the morning"),
            _ => format!("{at} {}", half_word(rng, &spoken, 'a')),
        },
        Half::Evening => match (rng.below(8), hour) {
            (0, 5..12) => format!("tonight {at} {spoken}"),
            (1, 5..12) => format!("{at} {spoken} tonight"),
            (2, 5..12) => format!("this evening {at} {spoken}"),
            (3, 5..12) => format!("{at} {spoken} in the evening"),
            (0..4, _) => format!("{at} {spoken} in the afternoon"),
            _ => format!("{at} {}", half_word(rng, &spoken, 'p')),
        },
    };
    (text, format!("{:02}:{minute:02}", hour24(hour, half)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_follow_the_half_of_the_day() {
        assert_eq!(hour24(9, Half::Unsaid), 9);
        assert_eq!(hour24(9, Half::Evening), 21);
        assert_eq!(hour24(12, Half::Morning), 0);
        assert_eq!(hour24(12, Half::Evening), 12);
        assert_eq!(hour24(12, Half::Unsaid), 12);
    }

    #[test]
    fn numbers_read_as_spoken() {
        assert_eq!(words(21), "twenty one");
        assert_eq!(words(40), "forty");
        assert_eq!(words(100), "one hundred");
    }

    #[test]
    fn normal_forms_have_their_shape() {
        let mut rng = Rng::new(1, 0, 0);
        for _ in 0..2000 {
            let (_, time) = at(&mut rng);
            assert_eq!(time.len(), 5, "{time}");
            let (hour, minute) = time.split_once(':').unwrap();
            assert!(hour.parse::<u8>().unwrap() < 24 && minute.parse::<u8>().unwrap() < 60, "{time}");
            let (text, value) = duration(&mut rng);
            assert!(value.ends_with(['h', 'm', 's']), "{text} -> {value}");
            let (text, value) = degrees(&mut rng);
            assert!((5.0..=30.5).contains(&value.parse::<f64>().unwrap()), "{text} -> {value}");
        }
    }
}
