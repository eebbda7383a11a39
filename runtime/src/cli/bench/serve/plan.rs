//! Which requests are sent: drawn from distributions, or read from a trace.

use std::time::Duration;

use farpost::engine::Random;

use super::exchange::Planned;
use super::lengths::Lengths;
use super::prompts::{Prompt, Prompts};
use super::trace::{Asks, Entry};

/// Where requests come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Drawn; with a rate they arrive as a Poisson process of so many a second.
    Drawn { prompt_tokens: Lengths, answer_tokens: Lengths, rate: Option<f64> },
    /// Those of a trace, in order.
    Trace(std::vec::IntoIter<Entry>),
}

/// Gives one request after the other; the same seed gives the same ones.
#[derive(Debug)]
pub struct Plan {
    pub source: Source,
    pub prompts: Prompts,
    /// The share of requests whose client goes away.
    pub cancel_share: f64,
    /// Requests still to be given.
    pub left: u64,
    random: Random,
    /// When the last one arrived, in seconds.
    arrived: f64,
}

impl Plan {
    /// At most `most` requests.
    pub fn new(source: Source, prompts: Prompts, cancel_share: f64, most: u64, seed: u64) -> Self {
        Self { source, prompts, cancel_share, left: most, random: Random::new(seed), arrived: 0.0 }
    }
}

impl Iterator for Plan {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        self.left = self.left.checked_sub(1)?;
        let random = &mut self.random;
        let mut planned = match &mut self.source {
            Source::Drawn { prompt_tokens, answer_tokens, rate } => {
                let at = rate.map(|rate| {
                    // Times between arrivals are exponential. 1 - unit is never 0.
                    self.arrived -= (1.0 - random.unit()).ln() / rate;
                    Duration::try_from_secs_f64(self.arrived).unwrap_or(Duration::MAX)
                });
                let (prompt, answer_tokens) = (prompt_tokens.draw(random), answer_tokens.draw(random));
                let made = self.prompts.make(prompt, random);
                Planned { at, prompt: made, wanted_tokens: Some(prompt), answer_tokens, cancel_after: None }
            }
            Source::Trace(entries) => {
                let entry = entries.next()?;
                let (prompt, wanted_tokens) = match entry.asks {
                    Asks::Text(text) => (Prompt::Text(text), None),
                    Asks::Tokens(n) => (self.prompts.make(n, random), Some(n)),
                };
                let at = Some(entry.at);
                Planned { at, prompt, wanted_tokens, answer_tokens: entry.answer_tokens, cancel_after: None }
            }
        };
        // Always drawn, so that other shares change nothing else.
        let (whether, when) = (random.unit(), random.unit());
        if whether < self.cancel_share {
            // Before the last one: what has ended can't be cancelled.
            let most = planned.answer_tokens.saturating_sub(1).max(1);
            planned.cancel_after = Some(1 + ((when * f64::from(most)) as u32).min(most - 1));
        }
        Some(planned)
    }
}

#[cfg(test)]
mod tests {
    use super::super::prompts::{Material, Measure};
    use super::*;

    fn plan(rate: Option<f64>, cancel_share: f64, seed: u64) -> Vec<Planned> {
        let source = Source::Drawn { prompt_tokens: Lengths::Uniform(2, 9), answer_tokens: Lengths::Fixed(8), rate };
        Plan::new(source, Prompts::new(Material::Words(Measure::UNKNOWN), 0, seed), cancel_share, 5000, seed).collect()
    }

    #[test]
    fn arrivals_are_those_of_a_poisson_process_and_repeat_with_the_seed() {
        let first = plan(Some(50.0), 0.0, 1);
        assert_eq!(first, plan(Some(50.0), 0.0, 1));
        assert_ne!(first, plan(Some(50.0), 0.0, 2));
        let times: Vec<f64> = first.iter().map(|planned| planned.at.unwrap().as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.02).abs() < 0.001, "{mean}");
        // Of an exponential distribution 1/e is longer than the mean.
        let longer = gaps.iter().filter(|&&gap| gap > mean).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1.0_f64).exp()).abs() < 0.02, "{longer}");
        assert!(plan(None, 0.0, 1).iter().all(|planned| planned.at.is_none()));
    }

    #[test]
    fn the_share_that_goes_away_does_so_before_the_end_and_changes_no_prompt() {
        let (some, none) = (plan(None, 0.3, 1), plan(None, 0.0, 1));
        let cancelled: Vec<u32> = some.iter().filter_map(|planned| planned.cancel_after).collect();
        assert!(cancelled.len().abs_diff(1500) < 100, "{}", cancelled.len());
        assert!((1..=7).all(|n| cancelled.contains(&n)) && cancelled.iter().max() == Some(&7));
        assert!(some.iter().zip(&none).all(|(a, b)| a.prompt == b.prompt));
        assert!(none.iter().all(|planned| planned.cancel_after.is_none()));
    }

    #[test]
    fn a_trace_ends_where_it_ends_or_where_enough_was_asked() {
        let entry = |at| Entry { at: Duration::from_secs(at), asks: Asks::Text(at.to_string()), answer_tokens: 1 };
        let text = |texts: &[&str]| texts.iter().map(|text| Prompt::Text((*text).to_owned())).collect::<Vec<_>>();
        let with = |most| {
            let source = Source::Trace(vec![entry(1), entry(2), entry(3)].into_iter());
            Plan::new(source, Prompts::new(Material::Words(Measure::UNKNOWN), 0, 0), 0.0, most, 0)
                .map(|planned| planned.prompt)
                .collect::<Vec<_>>()
        };
        assert_eq!((with(2), with(9)), (text(&["1", "2"]), text(&["1", "2", "3"])));
    }
}
