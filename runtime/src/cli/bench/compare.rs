//! An earlier run to compare with: ratios, and whether they mean anything.

use std::path::Path;

use serde_json::Value as Json;

use crate::exit::{Exit, Failure};
use crate::text;

/// Differences below this mean nothing on any machine.
const LEAST_NOISE: f64 = 0.01;
/// With more noise than this the figures are the machine's, not the program's: no difference means anything.
const MOST_NOISE: f64 = 0.25;
/// With more noise than this, what lies within it may as well be a difference that matters.
const MOST_TO_BE_SAME: f64 = 0.05;

/// One test of a run, as far as comparing needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub test: String,
    pub model: String,
    pub threads: u64,
    pub kv_type: String,
    /// `None` where a run did not write it, as with [`activations`](Self::activations).
    pub isa: Option<String>,
    pub activations: Option<String>,
    /// The packed file in use.
    pub packed: Option<String>,
    pub tokens_per_second: f64,
    /// `None` of a single repetition.
    pub spread: Option<f64>,
    pub roof_share: Option<f64>,
}

/// What a ratio means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Faster,
    Slower,
    /// Difference and noise are below [`LEAST_NOISE`].
    Same,
    /// The difference lies within the noise, or the noise is too large, or unknown: one of the two was measured once
    /// only.
    Unclear,
}

impl Verdict {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Same => "same",
            Self::Unclear => "unclear",
        }
    }
}

/// A test beside itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub before: Measured,
    /// Now to before.
    pub ratio: f64,
    /// By how much the two may differ without a cause in program or settings, as a share; `None` if unknown.
    pub noise: Option<f64>,
    pub verdict: Verdict,
}

/// Compares two medians. Noise is both spreads together, and what the machine's roof has changed by meanwhile: by as
/// much the machine may be the cause.
pub fn compare(now: &Measured, before: &Measured) -> Comparison {
    let ratio = now.tokens_per_second / before.tokens_per_second;
    let roof = |measured: &Measured| measured.roof_share.map(|share| measured.tokens_per_second / share);
    let drift = roof(now).zip(roof(before)).map_or(0.0, |(now, before)| away(now / before));
    let noise = now.spread.zip(before.spread).map(|(now, before)| (now + before + drift).max(LEAST_NOISE));
    let verdict = match noise {
        Some(noise) if noise <= MOST_NOISE && away(ratio) > noise => {
            if ratio > 1.0 {
                Verdict::Faster
            } else {
                Verdict::Slower
            }
        }
        Some(noise) if noise <= MOST_TO_BE_SAME => Verdict::Same,
        _ => Verdict::Unclear,
    };
    Comparison { before: before.clone(), ratio, noise, verdict }
}

/// How far a ratio is from 1, alike in both directions.
fn away(ratio: f64) -> f64 {
    ratio.max(1.0 / ratio) - 1.0
}

/// The tests of an earlier run.
#[derive(Clone, Debug, PartialEq)]
pub struct Earlier(Vec<Measured>);

impl Earlier {
    /// Reads JSON lines that an earlier run wrote.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::new(Exit::Failed, format_args!("{}: {why}", path.display()));
        text::of_file(path)
            .and_then(|text| Self::parse(&text).map_err(wrong))
            .map_err(|failure| failure.hint("write such a file with 'farpost bench --json > FILE'"))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let tests: Vec<Measured> = lines
            .map(|(number, line)| parse_line(line).map_err(|why| format!("line {}: {why}", number + 1)))
            .collect::<Result<_, String>>()?;
        if tests.is_empty() { Err("there are no tests in it, expected JSON lines".to_owned()) } else { Ok(Self(tests)) }
    }

    /// The same test with as many threads and the same type of keys and values: the one most alike in what else it ran
    /// with, the model first, and the last where there are several.
    pub fn find(&self, now: &Measured) -> Option<&Measured> {
        let is_same = |before: &&Measured| {
            (&before.test, before.threads, &before.kv_type) == (&now.test, now.threads, &now.kv_type)
        };
        self.0.iter().filter(is_same).max_by_key(|before| {
            let is_packed_alike = before.packed.is_some() == now.packed.is_some();
            (before.model == now.model, before.isa == now.isa, is_packed_alike, before.activations == now.activations)
        })
    }
}

fn parse_line(line: &str) -> Result<Measured, String> {
    let json: Json = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    let wrong = |field: &str, expected: &str| format!("field '{field}' is {}, expected {expected}", json[field]);
    let text = |field: &str| json[field].as_str().map(str::to_owned).ok_or_else(|| wrong(field, "a text"));
    let positive = |field: &str| {
        json[field].as_f64().filter(|number| *number > 0.0).ok_or_else(|| wrong(field, "a number above 0"))
    };
    let maybe = |field: &str, least: f64| match json[field].as_f64() {
        Some(number) if number >= least => Ok(Some(number)),
        None if json[field].is_null() => Ok(None),
        _ => Err(wrong(field, "null or a number that is not negative")),
    };
    let maybe_text = |field: &str| match &json[field] {
        Json::Null => Ok(None),
        Json::String(text) => Ok(Some(text.clone())),
        _ => Err(wrong(field, "null or a text")),
    };
    Ok(Measured {
        test: text("test")?,
        model: text("model")?,
        threads: json["threads"].as_u64().ok_or_else(|| wrong("threads", "a whole number"))?,
        kv_type: text("kv_type")?,
        isa: maybe_text("isa")?,
        activations: maybe_text("activations")?,
        packed: maybe_text("packed")?,
        tokens_per_second: positive("tokens_per_second")?,
        spread: maybe("spread", 0.0)?,
        roof_share: maybe("roof_share", f64::MIN_POSITIVE)?,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A test with a median, its spread and a roof.
    pub fn measured(tokens_per_second: f64, spread: Option<f64>, roof: f64) -> Measured {
        Measured {
            test: "tg64".to_owned(),
            model: "m".to_owned(),
            threads: 2,
            kv_type: "f16".to_owned(),
            isa: Some("scalar".to_owned()),
            activations: Some("auto".to_owned()),
            packed: None,
            tokens_per_second,
            spread,
            roof_share: Some(tokens_per_second / roof),
        }
    }

    #[test]
    fn a_difference_beyond_both_spreads_has_a_direction_alike_both_ways() {
        let verdict = |now: f64, before: f64, spread| {
            compare(&measured(now, spread, 200.0), &measured(before, spread, 200.0)).verdict
        };
        assert_eq!(verdict(110.0, 100.0, Some(0.02)), Verdict::Faster);
        assert_eq!(verdict(100.0, 110.0, Some(0.02)), Verdict::Slower);
        assert_eq!(verdict(110.0, 100.0, Some(0.06)), Verdict::Unclear);
        assert_eq!(verdict(100.0, 110.0, Some(0.06)), Verdict::Unclear);
        assert_eq!(verdict(100.5, 100.0, Some(0.0)), Verdict::Same);
        assert_eq!(verdict(100.5, 100.0, Some(0.005)), Verdict::Same);
        assert_eq!(verdict(100.5, 100.0, Some(0.03)), Verdict::Unclear);
        assert_eq!(verdict(102.0, 100.0, Some(0.0)), Verdict::Faster);
        assert_eq!(verdict(200.0, 100.0, None), Verdict::Unclear);
    }

    #[test]
    fn with_much_noise_no_difference_means_anything() {
        let compared = |spread| compare(&measured(33.7, Some(spread), 200.0), &measured(100.0, Some(0.05), 200.0));
        assert_eq!((compared(0.19).verdict, compared(0.21).verdict), (Verdict::Slower, Verdict::Unclear));
        assert_eq!(compared(0.2).noise, Some(0.25));
        assert_eq!(compare(&measured(1.0, None, 1.0), &measured(1.0, Some(0.0), 1.0)).noise, None);
    }

    #[test]
    fn what_the_machine_changed_by_is_noise() {
        let before = measured(40.0, Some(0.01), 50.0);
        let now = compare(&measured(46.0, Some(0.01), 60.0), &before);
        assert_eq!((now.ratio, now.verdict), (1.15, Verdict::Unclear));
        assert!((now.noise.unwrap() - 0.22).abs() < 1e-9);
        assert_eq!(compare(&measured(60.0, Some(0.01), 55.0), &before).verdict, Verdict::Faster);
        let unknown = Measured { roof_share: None, ..before };
        assert_eq!(compare(&measured(46.0, Some(0.01), 60.0), &unknown).verdict, Verdict::Faster);
    }

    const LINE: &str = r#"{"test":"tg64","model":"m","threads":2,"kv_type":"f16","tokens_per_second":40.5,"spread":0.01,"roof_share":null,"more":[1]}"#;

    #[test]
    fn the_same_test_is_found_among_lines_the_most_alike_first_and_the_last_of_several() {
        let again = LINE.replace("40.5", "41.5");
        let packed = LINE.replace("40.5", "42.5").replace("null", "null,\"packed\":\"m.pack\"");
        let other = LINE.replace("\"m\"", "\"n\"");
        let earlier = Earlier::parse(&format!("{LINE}\n\n{again}\n{packed}\n{other}\n")).unwrap();
        let now = measured(50.0, None, 100.0);
        assert_eq!(earlier.find(&now).unwrap().tokens_per_second, 41.5);
        let is_packed = Measured { packed: Some("other/m.pack".to_owned()), ..now.clone() };
        assert_eq!(earlier.find(&is_packed).unwrap().tokens_per_second, 42.5);
        assert_eq!(earlier.find(&Measured { model: "o".to_owned(), ..now.clone() }).unwrap().model, "n");
        assert_eq!(earlier.find(&Measured { threads: 1, ..now.clone() }), None);
        assert_eq!(earlier.find(&Measured { kv_type: "q8_0".to_owned(), ..now }), None);
    }

    #[test]
    fn what_is_no_run_is_refused_with_line_and_field() {
        let why = |text: &str| Earlier::parse(text).unwrap_err();
        assert_eq!(why("\n"), "there are no tests in it, expected JSON lines");
        assert!(why(&format!("{LINE}\n{{")).starts_with("line 2: not JSON: "));
        let wrong = LINE.replace("40.5", "-1");
        assert_eq!(why(&wrong), "line 1: field 'tokens_per_second' is -1, expected a number above 0");
        assert_eq!(why("[]"), "line 1: field 'test' is null, expected a text");
        let wrong = LINE.replace("null", "null,\"isa\":1");
        assert_eq!(why(&wrong), "line 1: field 'isa' is 1, expected null or a text");
        let wrong = LINE.replace("0.01", "\"x\"");
        assert_eq!(why(&wrong), "line 1: field 'spread' is \"x\", expected null or a number that is not negative");
    }
}
