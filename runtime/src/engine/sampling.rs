//! What a request may ask of sampling, and the ranges that are allowed.
//!
//! Everything is off by default but temperature 1: the model's own distribution.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

/// Most alternatives that are told with log-probabilities.
pub const MOST_LOGPROBS: usize = 100;

/// How the next token is chosen from a row of logits.
///
/// The steps come in this order, each seeing what the one before left:
///
/// 1. `logit_bias`, then the repetition, frequency and presence penalties;
/// 2. DRY;
/// 3. top-k, typical, top-p, min-p, XTC (or mirostat in place of all five, after temperature);
/// 4. temperature, and a draw with the seed's random numbers.
///
/// With temperature 0 the best token after steps 1 and 2 is taken, of equals that of the lowest id; step 3 has no say.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides logits before the draw: 0 to 10; 0 takes the best.
    pub temperature: f32,
    /// Only the `top_k` best stay; 0 keeps all.
    pub top_k: usize,
    /// The best stay until they have this share of the probability: above 0, up to 1; 1 keeps all.
    pub top_p: f32,
    /// Those at least this share of the best one's probability stay: 0 to 1; 0 keeps all.
    pub min_p: f32,
    /// The most typical stay until they have this share of the probability: above 0, up to 1; 1 keeps all.
    /// Typical are tokens whose surprise is near the expected one (Meister et al. 2022).
    pub typical_p: f32,
    /// Positive logits of tokens seen are divided by it, negative ones multiplied: 0.01 to 10; 1 is none.
    pub repetition_penalty: f32,
    /// Taken once from the logits of tokens seen: -10 to 10.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens seen as often as they were seen: -10 to 10.
    pub frequency_penalty: f32,
    /// How many of the last tokens the three penalties see; `None` for all.
    pub penalty_last_n: Option<usize>,
    /// Whether penalties and DRY see the prompt, too, or only what was generated.
    pub penalise_prompt: bool,
    /// Penalty on going on as before after a repeated passage.
    pub dry: Dry,
    /// Now and then leaves out the obvious.
    pub xtc: Xtc,
    /// Steers the surprise of the text to a target, in place of the filters.
    pub mirostat: Option<Mirostat>,
    /// Decides all random numbers: the same seed, model and request give the same text.
    pub seed: u64,
    /// Added to logits, by token: -1000 to 1000, or negative infinity, which forbids the token.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Tell the log-probability of the chosen token and of so many of the likeliest: 0 to 100. They are those of the
    /// model's own distribution, before anything here changes it.
    pub logprobs: Option<usize>,
}

/// "Don't repeat yourself": if the end of the text, `n` tokens long, was there before, then the token that followed it
/// is penalised by `multiplier * base^(n - allowed_length)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    /// 0 to 100; 0 is off.
    pub multiplier: f32,
    /// 1 to 16.
    pub base: f32,
    /// Repeated passages shorter than this go unpunished: 1 or more.
    pub allowed_length: usize,
    /// How many of the last tokens are looked at; `None` for all.
    pub last_n: Option<usize>,
    /// A token with one of these in its text ends a passage. None may be empty.
    pub sequence_breakers: Vec<String>,
}

/// "Exclude top choices": with some probability all tokens above a threshold but the least of them are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xtc {
    /// How often, 0 to 1; 0 is off.
    pub probability: f32,
    /// Above which probability a token is a top choice: 0 to 0.5; at more than 0.5 there would never be two.
    pub threshold: f32,
}

/// Mirostat 2 (Basu et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mirostat {
    /// Surprise aimed at, in bits a token: above 0, up to 100.
    pub tau: f32,
    /// How quickly errors are corrected: above 0, up to 1.
    pub eta: f32,
}

impl Default for Dry {
    fn default() -> Self {
        let sequence_breakers = ["\n", ":", "\"", "*"].map(str::to_owned).to_vec();
        Self { multiplier: 0.0, base: 1.75, allowed_length: 2, last_n: None, sequence_breakers }
    }
}

impl Default for Xtc {
    fn default() -> Self {
        Self { probability: 0.0, threshold: 0.1 }
    }
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { tau: 5.0, eta: 0.1 }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: Some(64),
            penalise_prompt: true,
            dry: Dry::default(),
            xtc: Xtc::default(),
            mirostat: None,
            seed: 0,
            logit_bias: BTreeMap::new(),
            logprobs: None,
        }
    }
}

/// A parameter out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A value that is not allowed.
    #[error("{parameter} is {found}, expected {expected}")]
    OutOfRange {
        /// As requests name it.
        parameter: &'static str,
        /// The value.
        found: String,
        /// The range.
        expected: &'static str,
    },
    /// A bias for a token that the model does not have.
    #[error("logit_bias names token {id}, the model has {n_vocab}")]
    NoSuchToken {
        /// The token.
        id: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
}

fn refuse(parameter: &'static str, found: impl fmt::Display, expected: &'static str) -> Result<(), SamplingError> {
    Err(SamplingError::OutOfRange { parameter, found: found.to_string(), expected })
}

fn within(
    parameter: &'static str,
    value: f32,
    range: RangeInclusive<f32>,
    expected: &'static str,
) -> Result<(), SamplingError> {
    if range.contains(&value) { Ok(()) } else { refuse(parameter, value, expected) }
}

/// As [`within`], from 0, which is not allowed itself.
fn above_zero(parameter: &'static str, value: f32, most: f32, expected: &'static str) -> Result<(), SamplingError> {
    if value > 0.0 && value <= most { Ok(()) } else { refuse(parameter, value, expected) }
}

impl Sampling {
    /// Always the best token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// The first one out of its range, by the name requests use, with what was found and expected.
    pub fn validate(&self) -> Result<(), SamplingError> {
        within("temperature", self.temperature, 0.0..=10.0, "0 to 10")?;
        above_zero("top_p", self.top_p, 1.0, "above 0, up to 1")?;
        within("min_p", self.min_p, 0.0..=1.0, "0 to 1")?;
        above_zero("typical_p", self.typical_p, 1.0, "above 0, up to 1")?;
        within("repetition_penalty", self.repetition_penalty, 0.01..=10.0, "0.01 to 10")?;
        within("presence_penalty", self.presence_penalty, -10.0..=10.0, "-10 to 10")?;
        within("frequency_penalty", self.frequency_penalty, -10.0..=10.0, "-10 to 10")?;
        within("dry_multiplier", self.dry.multiplier, 0.0..=100.0, "0 to 100")?;
        within("dry_base", self.dry.base, 1.0..=16.0, "1 to 16")?;
        if self.dry.allowed_length == 0 {
            refuse("dry_allowed_length", 0, "1 or more")?;
        }
        if self.dry.sequence_breakers.iter().any(String::is_empty) {
            refuse("dry_sequence_breakers", "an empty text", "texts of at least one character")?;
        }
        within("xtc_probability", self.xtc.probability, 0.0..=1.0, "0 to 1")?;
        within("xtc_threshold", self.xtc.threshold, 0.0..=0.5, "0 to 0.5")?;
        if let Some(mirostat) = self.mirostat {
            above_zero("mirostat_tau", mirostat.tau, 100.0, "above 0, up to 100")?;
            above_zero("mirostat_eta", mirostat.eta, 1.0, "above 0, up to 1")?;
        }
        for &bias in self.logit_bias.values().filter(|bias| **bias != f32::NEG_INFINITY) {
            within("logit_bias", bias, -1000.0..=1000.0, "-1000 to 1000, or negative infinity")?;
        }
        match self.logprobs {
            Some(n) if n > MOST_LOGPROBS => refuse("logprobs", n, "0 to 100"),
            _ => Ok(()),
        }
    }

    /// True if the best token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// True if any of the three penalties does something.
    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// True if logits are changed before anything is left out, so that the best of the model's own order do not
    /// suffice.
    pub(super) fn changes_logits(&self) -> bool {
        self.has_penalties() || self.dry.multiplier > 0.0 || !self.logit_bias.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_allowed() {
        Sampling::default().validate().unwrap();
        Sampling::greedy().validate().unwrap();
        Sampling { mirostat: Some(Mirostat::default()), logprobs: Some(20), ..Sampling::default() }.validate().unwrap();
    }

    #[test]
    fn every_parameter_out_of_range_is_refused_by_its_name() {
        type Change = fn(&mut Sampling, f32);
        let parameters: [(&str, Change, &[f32], &[f32]); 14] = [
            ("temperature", |s, v| s.temperature = v, &[0.0, 2.0, 10.0], &[-0.1, 10.1]),
            ("top_p", |s, v| s.top_p = v, &[1e-6, 1.0], &[0.0, -1.0, 1.1]),
            ("min_p", |s, v| s.min_p = v, &[0.0, 1.0], &[-0.1, 1.1]),
            ("typical_p", |s, v| s.typical_p = v, &[1e-6, 1.0], &[0.0, 1.1]),
            ("repetition_penalty", |s, v| s.repetition_penalty = v, &[0.5, 10.0], &[0.0, -1.0, 11.0]),
            ("presence_penalty", |s, v| s.presence_penalty = v, &[-2.0, 2.0], &[-11.0, 11.0]),
            ("frequency_penalty", |s, v| s.frequency_penalty = v, &[-2.0, 2.0], &[-11.0, 11.0]),
            ("dry_multiplier", |s, v| s.dry.multiplier = v, &[0.0, 100.0], &[-1.0, 101.0]),
            ("dry_base", |s, v| s.dry.base = v, &[1.0, 16.0], &[0.9, 17.0]),
            ("xtc_probability", |s, v| s.xtc.probability = v, &[0.0, 1.0], &[-0.1, 1.1]),
            ("xtc_threshold", |s, v| s.xtc.threshold = v, &[0.0, 0.5], &[-0.1, 0.6]),
            ("mirostat_tau", |s, v| s.mirostat = Some(Mirostat { tau: v, eta: 0.1 }), &[5.0], &[0.0, 101.0]),
            ("mirostat_eta", |s, v| s.mirostat = Some(Mirostat { tau: 5.0, eta: v }), &[1.0], &[0.0, 1.1]),
            ("logit_bias", |s, v| s.logit_bias = [(3, v)].into(), &[-100.0, f32::NEG_INFINITY], &[1e4, -1e4]),
        ];
        for (name, change, good, bad) in parameters {
            for &value in good {
                let mut sampling = Sampling::default();
                change(&mut sampling, value);
                assert_eq!(sampling.validate(), Ok(()), "{name} {value}");
            }
            for &value in bad.iter().chain(&[f32::NAN, f32::INFINITY]) {
                let mut sampling = Sampling::default();
                change(&mut sampling, value);
                let error = sampling.validate().unwrap_err();
                assert!(
                    matches!(&error, SamplingError::OutOfRange { parameter, .. } if *parameter == name),
                    "{name} {value}: {error}"
                );
            }
        }
    }

    #[test]
    fn counts_and_texts_out_of_range_are_refused() {
        let message = |sampling: Sampling| sampling.validate().unwrap_err().to_string();
        let sampling = Sampling { logprobs: Some(101), ..Sampling::default() };
        assert_eq!(message(sampling), "logprobs is 101, expected 0 to 100");
        let sampling = Sampling { dry: Dry { allowed_length: 0, ..Dry::default() }, ..Sampling::default() };
        assert_eq!(message(sampling), "dry_allowed_length is 0, expected 1 or more");
        let dry = Dry { sequence_breakers: vec![String::new()], ..Dry::default() };
        let sampling = Sampling { dry, ..Sampling::default() };
        let expected = "dry_sequence_breakers is an empty text, expected texts of at least one character";
        assert_eq!(message(sampling), expected);
    }
}
