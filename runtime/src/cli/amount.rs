//! Numbers as people read them: grouped thousands, bytes with a unit, durations.

use std::time::Duration;

/// Thousands grouped: 1,048,576.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in powers of 1024 with three digits: 241 MiB, 5.62 GiB.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut size = n as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1000 or more is written in the next unit.
    while size >= 999.5 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    let decimals = if size < 9.995 { 2 } else { usize::from(size < 99.95) };
    format!("{size:.decimals$} {}", UNITS[unit])
}

/// Bytes as people write them: 1000000, 512K, 512M, 2G, 1.5GiB, all in powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "expected a number of bytes, or one with K, M, G or T, such as 512M".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let unit = lower.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = lower.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
    let power = match unit.trim_start().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    let bytes = number * 1024_f64.powi(power);
    // Beyond 2^53 not every byte can be told apart, and there is no such memory.
    if bytes.fract() == 0.0 && bytes <= 9e15 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Reads a whole number of a range, as the value of an option.
pub fn whole<T: TryFrom<u64>>(
    range: impl std::ops::RangeBounds<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let least = match range.start_bound() {
        Included(&least) => least,
        Excluded(&below) => below.saturating_add(1),
        Unbounded => 0,
    };
    let most = match range.end_bound() {
        Included(&most) => Some(most),
        Excluded(&above) => Some(above.saturating_sub(1)),
        Unbounded => None,
    };
    move |text| {
        let number = text.parse().ok().filter(|&n| n >= least && most.is_none_or(|most| n <= most));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match most {
            Some(most) => format!("expected a whole number, {least} to {most}"),
            None if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && !is_below(text, least) => {
                "expected a smaller number".to_owned()
            }
            None => format!("expected a whole number, {least} or more"),
        })
    }
}

fn is_below(text: &str, least: u64) -> bool {
    text.parse::<u64>().is_ok_and(|number| number < least)
}

/// A duration with three digits: 0.25 ms, 12.3 s, 2 min 5 s.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds < 0.01 => format!("{:.2} ms", seconds * 1e3),
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 9.995 => format!("{seconds:.2} s"),
        _ if seconds < 60.0 => format!("{seconds:.1} s"),
        _ => {
            let seconds = seconds.round() as u64;
            format!("{} min {} s", seconds / 60, seconds % 60)
        }
    }
}

/// A measured number as JSON tells it: digits beyond three decimals say nothing.
pub fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// A measured number with at least three digits: 0.50, 12.3, 12346.
pub fn decimal(number: f64) -> String {
    let decimals = if number < 9.995 { 2 } else { usize::from(number < 999.5) };
    format!("{number:.decimals$}")
}

/// A count and what is counted, in the plural where it is one.
pub fn count(n: u64, singular: &str) -> String {
    if n == 1 { format!("1 {singular}") } else { format!("{} {singular}s", grouped(n)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_the_right_unit() {
        let shown = [0, 1023, 1024, 10_240, 1_023_000, 1 << 20, 253_116_960, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            ["0 B", "1023 B", "1.00 KiB", "10.0 KiB", "999 KiB", "1.00 MiB", "241 MiB", "16.0 EiB"].map(str::to_owned)
        );
    }

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        let read = |text: &str| parse_bytes(text).ok();
        assert_eq!([read("0"), read("1000"), read("1.5g")], [Some(0), Some(1000), Some(3 << 29)]);
        assert_eq!([read("512M"), read("512 MiB"), read("2T")], [Some(512 << 20), Some(512 << 20), Some(2 << 40)]);
        assert_eq!([read(""), read("-1"), read("1x"), read("0.3"), read("1e9"), read("99999999T")], [None; 6]);
    }

    #[test]
    fn whole_numbers_are_of_a_range_and_told_so() {
        let message = |text: &str| whole::<u32>(1..)(text).unwrap_err();
        assert_eq!([whole::<u32>(1..)("7"), whole::<u32>(..=9)("0")], [Ok(7), Ok(0)]);
        for text in ["0", "-1", "x", "", "1.5", "1e3", " 7"] {
            assert_eq!(message(text), "expected a whole number, 1 or more", "{text}");
        }
        assert_eq!([message("4294967296"), message(&"9".repeat(30))], ["expected a smaller number"; 2]);
        assert_eq!(whole::<u16>(1..=256)("257").unwrap_err(), "expected a whole number, 1 to 256");
    }

    #[test]
    fn measured_numbers_have_three_digits() {
        assert_eq!(
            [0.5, 9.994, 9.996, 12.34, 999.4, 12_345.6].map(decimal),
            ["0.50", "9.99", "10.0", "12.3", "999.4", "12346"]
        );
    }

    #[test]
    fn durations_and_counts_read_well() {
        let shown = [0.000_25, 0.25, 2.5, 12.34, 125.2].map(|seconds| duration(Duration::from_secs_f64(seconds)));
        assert_eq!(shown, ["0.25 ms", "250 ms", "2.50 s", "12.3 s", "2 min 5 s"].map(str::to_owned));
        assert_eq!([rounded(33.333_333_333), rounded(0.000_6)], [33.333, 0.001]);
        assert_eq!([count(1, "token"), count(1234, "token")], ["1 token".to_owned(), "1,234 tokens".to_owned()]);
    }
}
