//! Options that say how text is chosen; their ranges are checked by the engine.

use farpost::engine::{Dry, Mirostat, Sampling, Xtc, fresh_seed};

use super::amount;

/// How the next token is chosen.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// How freely to choose: 0 always takes the likeliest [default: 0.8; 0 for the built-in model]
    #[arg(short, long, value_name = "X", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Choose among the N likeliest only; 0 is off
    #[arg(long, value_name = "N", default_value_t = 40, allow_negative_numbers = true, value_parser = amount::whole::<usize>(0..))]
    pub top_k: usize,
    /// Choose among the likeliest that have this share of the probability; 1 is off
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Choose among those with at least this share of the likeliest one's probability; 0 is off
    #[arg(long, value_name = "P", default_value_t = 0.05, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Choose among the most typical that have this share of the probability; 1 is off
    #[arg(long, hide_short_help = true, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub typical_p: f32,
    /// Decides all random numbers: the same seed gives the same text [default: another one each time]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = amount::whole::<u64>(0..))]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub penalties: PenaltyArgs,
    #[command(flatten)]
    pub unusual: UnusualArgs,
    /// Add to the logit of a token before anything else; -inf forbids it (may be given several times)
    #[arg(long, hide_short_help = true, value_name = "ID=X", value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Tell the log-probabilities of each token and of the N likeliest in its place (with --json)
    #[arg(long, hide_short_help = true, value_name = "N", requires = "json", allow_negative_numbers = true, value_parser = amount::whole::<usize>(0..))]
    pub logprobs: Option<usize>,
}

/// Against repetition.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Sampling: against repetition")]
pub struct PenaltyArgs {
    /// Make tokens that were there before less likely, by a factor; 1 is off
    #[arg(long, hide_short_help = true, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Make tokens that were there before less likely, once
    #[arg(long, hide_short_help = true, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Make tokens that were there before less likely, as often as they were there
    #[arg(long, hide_short_help = true, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// How many of the last tokens these three look at, or 'all'
    #[arg(long, hide_short_help = true, value_name = "N", default_value = "64", allow_negative_numbers = true, value_parser = count_or_all)]
    penalty_last_n: CountOrAll,
    /// Penalties and DRY look at what was generated only, not at the prompt
    #[arg(long, hide_short_help = true)]
    no_prompt_penalty: bool,
    /// DRY: how strongly to keep from repeating whole passages; 0 is off
    #[arg(long, hide_short_help = true, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    dry_multiplier: f32,
    /// DRY: how quickly the penalty grows with the length of the passage
    #[arg(long, hide_short_help = true, value_name = "X", default_value_t = Dry::default().base, allow_negative_numbers = true)]
    dry_base: f32,
    /// DRY: the longest passage that may be repeated freely, in tokens
    #[arg(long, hide_short_help = true, value_name = "N", default_value_t = Dry::default().allowed_length, allow_negative_numbers = true, value_parser = amount::whole::<usize>(0..))]
    dry_allowed_length: usize,
    /// DRY: how many of the last tokens are looked at, or 'all'
    #[arg(long, hide_short_help = true, value_name = "N", default_value = "all", allow_negative_numbers = true, value_parser = count_or_all)]
    dry_penalty_last_n: CountOrAll,
    /// DRY: a text that ends a passage (may be given several times) [default: line break : " *]
    #[arg(long, hide_short_help = true, value_name = "TEXT")]
    dry_sequence_breakers: Vec<String>,
}

/// Rarely wanted.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Sampling: rarely wanted")]
pub struct UnusualArgs {
    /// XTC: how often to leave out the obvious tokens; 0 is off
    #[arg(long, hide_short_help = true, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    xtc_probability: f32,
    /// XTC: from which probability on a token is obvious
    #[arg(long, hide_short_help = true, value_name = "P", default_value_t = Xtc::default().threshold, allow_negative_numbers = true)]
    xtc_threshold: f32,
    /// Mirostat 2: steer the surprise of the text to so many bits a token, in place of all filters
    #[arg(long, hide_short_help = true, value_name = "BITS", allow_negative_numbers = true)]
    mirostat_tau: Option<f32>,
    /// Mirostat 2: how quickly it steers
    #[arg(long, hide_short_help = true, value_name = "X", default_value_t = Mirostat::default().eta, requires = "mirostat_tau", allow_negative_numbers = true)]
    mirostat_eta: f32,
}

/// A number of tokens, or all (`None`); a type of its own, because clap takes an option for an absent argument.
#[derive(Clone, Copy, Debug)]
pub struct CountOrAll(Option<usize>);

impl SamplingArgs {
    /// What the engine is asked for. Without a temperature, the built-in model, which writes commands, takes the best.
    pub fn sampling(&self, is_built_in: bool) -> Sampling {
        let (penalties, unusual) = (&self.penalties, &self.unusual);
        let mut dry = Dry {
            multiplier: penalties.dry_multiplier,
            base: penalties.dry_base,
            allowed_length: penalties.dry_allowed_length,
            last_n: penalties.dry_penalty_last_n.0,
            ..Dry::default()
        };
        if !penalties.dry_sequence_breakers.is_empty() {
            dry.sequence_breakers.clone_from(&penalties.dry_sequence_breakers);
        }
        Sampling {
            temperature: self.temperature.unwrap_or(if is_built_in { 0.0 } else { 0.8 }),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: penalties.repetition_penalty,
            presence_penalty: penalties.presence_penalty,
            frequency_penalty: penalties.frequency_penalty,
            penalty_last_n: penalties.penalty_last_n.0,
            penalise_prompt: !penalties.no_prompt_penalty,
            dry,
            xtc: Xtc { probability: unusual.xtc_probability, threshold: unusual.xtc_threshold },
            mirostat: unusual.mirostat_tau.map(|tau| Mirostat { tau, eta: unusual.mirostat_eta }),
            seed: self.seed.unwrap_or_else(fresh_seed),
            logit_bias: self.logit_bias.iter().copied().collect(),
            logprobs: self.logprobs,
        }
    }
}

fn count_or_all(text: &str) -> Result<CountOrAll, String> {
    if text == "all" {
        return Ok(CountOrAll(None));
    }
    text.parse()
        .map(|count| CountOrAll(Some(count)))
        .map_err(|_| "expected a whole number, 0 or more, or 'all'".to_owned())
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected a token id, '=' and a number, such as 42=-1.5")?;
    let id = id.trim().parse().map_err(|_| format!("'{id}' is no token id"))?;
    let bias = bias.trim().parse().map_err(|_| format!("'{bias}' is no number"))?;
    Ok((id, bias))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_name_a_token_and_a_number() {
        assert_eq!(bias("42=-1.5"), Ok((42, -1.5)));
        assert_eq!(bias("7=-inf"), Ok((7, f32::NEG_INFINITY)));
        assert!(bias("7").is_err() && bias("x=1").is_err() && bias("7=y").is_err());
    }

    #[test]
    fn counts_are_numbers_or_all() {
        assert_eq!(count_or_all("all").unwrap().0, None);
        assert_eq!(count_or_all("0").unwrap().0, Some(0));
        assert!(count_or_all("-1").is_err());
    }
}
