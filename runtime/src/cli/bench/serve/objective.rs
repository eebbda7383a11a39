//! Objectives: what a request must keep to count as served well.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Bounds of one request; those that are `None` bound nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objective {
    /// To the first content.
    pub ttft: Option<Duration>,
    /// Between tokens, on the mean of the request.
    pub itl: Option<Duration>,
    /// To the end.
    pub e2e: Option<Duration>,
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected bounds of ttft, itl and e2e such as ttft=500ms,itl=50ms,e2e=10s".to_owned();
        let mut objective = Self::default();
        for bound in text.split(',') {
            let (name, time) = bound.split_once('=').ok_or_else(wrong)?;
            let place = match name.trim() {
                "ttft" => &mut objective.ttft,
                "itl" => &mut objective.itl,
                "e2e" => &mut objective.e2e,
                _ => return Err(wrong()),
            };
            if place.replace(duration(time.trim()).ok_or_else(wrong)?).is_some() {
                return Err(wrong());
            }
        }
        Ok(objective)
    }
}

/// `500ms` or `1.5s`, above zero and at most a day.
fn duration(text: &str) -> Option<Duration> {
    let (number, scale) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s')?, 1.0),
    };
    let seconds = number.parse::<f64>().ok()? * scale;
    (seconds > 0.0 && seconds <= 86_400.0).then(|| Duration::from_secs_f64(seconds))
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = [("ttft", self.ttft), ("itl", self.itl), ("e2e", self.e2e)];
        let bounds =
            bounds.iter().filter_map(|(name, bound)| Some(format!("{name}={}ms", bound.as_ref()?.as_secs_f64() * 1e3)));
        f.write_str(&bounds.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_as_they_are_written() {
        let objective: Objective = "ttft=500ms, itl=50ms".parse().unwrap();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(objective, Objective { ttft: ms(500), itl: ms(50), e2e: None });
        assert_eq!(objective.to_string(), "ttft=500ms,itl=50ms");
        assert_eq!("e2e=1.5s".parse::<Objective>().unwrap().e2e, ms(1500));
        for wrong in ["", "ttft", "ttft=5", "ttft=-1s", "ttft=0ms", "x=1s", "ttft=1s,ttft=2s", "ttft=nans", "ttft=1e9s"]
        {
            assert!(wrong.parse::<Objective>().is_err(), "{wrong}");
        }
    }
}
