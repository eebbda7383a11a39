//! The date for templates that print it: civil time from a count of seconds, and `strftime`.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// A date and a time of day, in whatever time zone the caller means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CivilTime {
    /// Year of the Gregorian calendar.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const DAY_SECONDS: i64 = 86_400;

impl CivilTime {
    /// The time `seconds` after the start of 1970.
    pub fn from_unix(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
        // Years that begin in March make the leap day the last of its year; 400 of them have 146,097 days.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// Now, in UTC.
    pub fn now_utc() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self::from_unix(i64::try_from(since).unwrap_or(0))
    }

    /// Days before this one in its year.
    fn day_of_year(&self) -> i64 {
        let leap = (self.year % 4 == 0 && self.year % 100 != 0) || self.year % 400 == 0;
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let month = usize::from(self.month.clamp(1, 12)) - 1;
        before[month] + i64::from(leap && month > 1) + i64::from(self.day) - 1
    }

    /// 0 for Monday.
    fn weekday(&self) -> usize {
        let years = self.year - 1;
        let days = years * 365 + years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400);
        // 1 January of year 1 was a Monday.
        (days + self.day_of_year()).rem_euclid(7) as usize
    }

    /// Writes the time as C's and Python's `strftime` does in the C locale. What is not known stays as it is.
    pub fn format(&self, pattern: &str) -> String {
        let mut out = String::new();
        let mut rest = pattern.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut code = rest.next();
            let plain = code == Some('-');
            if plain {
                code = rest.next();
            }
            self.write(code, plain, &mut out);
        }
        out
    }

    fn write(&self, code: Option<char>, plain: bool, out: &mut String) {
        let twelve = (self.hour + 11) % 12 + 1;
        let month = MONTHS[usize::from(self.month.clamp(1, 12)) - 1];
        let weekday = WEEKDAYS[self.weekday()];
        let mut number = |value: i64, width: usize| {
            let width = if plain { 0 } else { width };
            // Writing to a string does not fail.
            let _ = write!(out, "{value:0width$}");
        };
        match code {
            Some('Y') => number(self.year, 1),
            Some('y') => number(self.year.rem_euclid(100), 2),
            Some('m') => number(self.month.into(), 2),
            Some('d') => number(self.day.into(), 2),
            Some('H') => number(self.hour.into(), 2),
            Some('I') => number(twelve.into(), 2),
            Some('M') => number(self.minute.into(), 2),
            Some('S') => number(self.second.into(), 2),
            Some('j') => number(self.day_of_year() + 1, 3),
            Some('u') => number(self.weekday() as i64 + 1, 1),
            Some('w') => number((self.weekday() as i64 + 1) % 7, 1),
            Some('f') => number(0, 6),
            Some('e') => {
                let _ = write!(out, "{:2}", self.day);
            }
            Some('B') => out.push_str(month),
            Some('b' | 'h') => out.push_str(&month[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('p') => out.push_str(if self.hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&self.format("%Y-%m-%d")),
            Some('T' | 'X') => out.push_str(&self.format("%H:%M:%S")),
            Some('R') => out.push_str(&self.format("%H:%M")),
            Some('D' | 'x') => out.push_str(&self.format("%m/%d/%y")),
            Some('c') => out.push_str(&self.format("%a %b %e %H:%M:%S %Y")),
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            // Python's naive times have no zone.
            Some('z' | 'Z') => {}
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                if plain {
                    out.push('-');
                }
                out.extend(other);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_dates() {
        let of = |seconds| CivilTime::from_unix(seconds).format("%F %T %a %j");
        assert_eq!(of(0), "1970-01-01 00:00:00 Thu 001");
        assert_eq!(of(951_827_696), "2000-02-29 12:34:56 Tue 060");
        assert_eq!(of(1_767_322_980 + 65), "2026-01-02 03:04:05 Fri 002");
        assert_eq!(of(-1), "1969-12-31 23:59:59 Wed 365");
        assert_eq!(of(4_102_444_799), "2099-12-31 23:59:59 Thu 365");
    }

    #[test]
    fn patterns_of_real_templates_are_written() {
        let time = CivilTime { year: 2026, month: 1, day: 2, hour: 15, minute: 4, second: 5 };
        assert_eq!(time.format("%d %b %Y"), "02 Jan 2026");
        assert_eq!(time.format("%B %d, %Y"), "January 02, 2026");
        assert_eq!(time.format("%A, %-d %B at %I:%M %p"), "Friday, 2 January at 03:04 PM");
        assert_eq!(time.format("100%% %Q %"), "100% %Q %");
    }
}
