//! Examples: a template's sentence, wrapped as people speak, with its one right answer.
//!
//! Example `i` of a split depends on the seed, the split and `i` alone, so any part of the corpus can be made again
//! in any order. Wrappers (politeness, fillers, reasons, times) are shared by all splits; the templates they go
//! around are not.

use crate::call;
use crate::manners::{self, CLOSERS, OPENERS, REQUESTS, SHORT_CLOSERS};
use crate::noise::noisy;
use crate::rng::Rng;
use crate::slots;
use crate::template::{self, Split, Template};

/// A sentence and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// What the user says.
    pub text: String,
    /// Canonical JSON.
    pub answer: String,
    /// Tool of the answer.
    pub tool: &'static str,
}

/// Share of the tools among examples.
const SHARES: &[(&str, usize)] = &[
    ("set_light", 15),
    ("set_heating", 14),
    ("set_pump", 13),
    ("set_valve", 12),
    ("camera", 9),
    ("set_timer", 10),
    ("cancel_timer", 4),
    ("read_sensor", 10),
    ("none", 17),
];

/// Share of examples that hold two commands at once, which the model refuses.
const PERCENT_DOUBLE: usize = 3;

/// Share of examples with a day, a repetition or a condition, which no tool takes.
const PERCENT_IMPOSSIBLE: usize = 4;

/// The templates of one split, by tool.
pub struct Corpus {
    seed: u64,
    split: Split,
    tools: Vec<(&'static str, usize, Vec<Template>)>,
}

impl Corpus {
    /// The corpus of `split` under `seed`.
    pub fn new(seed: u64, split: Split) -> Self {
        let templates = template::all();
        let tools = SHARES
            .iter()
            .map(|(tool, share)| {
                let own = templates.iter().filter(|t| t.tool == *tool && t.split == split).cloned().collect();
                (*tool, *share, own)
            })
            .collect();
        Self { seed, split, tools }
    }

    /// Example `index`.
    pub fn example(&self, index: u64) -> Example {
        let mut rng = Rng::new(self.seed, self.split as u64, index);
        if rng.chance(PERCENT_DOUBLE) {
            return self.double(&mut rng);
        }
        if rng.chance(PERCENT_IMPOSSIBLE) {
            return self.impossible(&mut rng);
        }
        let template = self.choose(&mut rng);
        let (text, arguments) = command(&mut rng, template);
        let text = noisy(&mut rng, &text);
        let answer = call::json(template.tool, &arguments).expect("slots give only arguments of their tool (tested)");
        Example { text, answer, tool: template.tool }
    }

    fn choose(&self, rng: &mut Rng) -> &Template {
        let mut left = rng.below(SHARES.iter().map(|row| row.1).sum());
        for (_, share, templates) in &self.tools {
            if left < *share {
                return &templates[rng.below(templates.len())];
            }
            left -= share;
        }
        unreachable!("the shares were summed just above")
    }

    /// Two commands in one sentence.
    fn double(&self, rng: &mut Rng) -> Example {
        let mut part = || loop {
            let template = self.choose(rng);
            if template.imperative && template.tool != "none" {
                return template.expand(rng).0;
            }
        };
        let (first, second) = (part(), part());
        let join = rng.pick(&[" and ", " and ", " and then ", " then ", " and also "]);
        let mut text = format!("{first}{join}{second}");
        if rng.chance(40) {
            text = format!("{} {text}", rng.pick(REQUESTS));
        }
        if rng.chance(30) {
            text = format!("{text} {}", rng.pick(CLOSERS));
        }
        let text = noisy(rng, &text);
        refusal(text, "one_at_a_time")
    }

    /// A command that a day, a repetition or a condition puts out of reach.
    fn impossible(&self, rng: &mut Rng) -> Example {
        let template = loop {
            let template = self.choose(rng);
            if template.imperative && template.takes_time() {
                break template;
            }
        };
        let mut text = template.expand(rng).0;
        let (words, is_before) = manners::impossible(rng);
        if rng.chance(40) {
            text = format!("{} {text}", rng.pick(REQUESTS));
        }
        text = if is_before { format!("{words} {text}") } else { format!("{text} {words}") };
        if rng.chance(20) {
            text = format!("{text} {}", rng.pick(SHORT_CLOSERS));
        }
        let text = noisy(rng, &text);
        refusal(text, "out_of_scope")
    }
}

fn refusal(text: String, reason: &str) -> Example {
    let arguments = [("reason".to_owned(), reason.to_owned())];
    let answer = call::json("none", &arguments).expect("a reason is all that 'none' takes");
    Example { text, answer, tool: "none" }
}

/// The sentence with its time, its politeness and its reasons.
fn command(rng: &mut Rng, template: &Template) -> (String, Vec<(String, String)>) {
    let (mut text, mut arguments) = template.expand(rng);
    if template.takes_duration() && rng.chance(10) {
        let (words, value) = slots::lasting(rng);
        text = format!("{text} {words}");
        arguments.push(("for".to_owned(), value));
    }
    let mut front = String::new();
    if template.takes_time() && rng.chance(35) {
        let (words, key, value) = slots::when(rng);
        arguments.push((key.to_owned(), value));
        if rng.chance(25) {
            front = words;
        } else {
            text = format!("{text} {words}");
        }
    }
    if template.imperative && rng.chance(45) {
        text = format!("{} {text}", rng.pick(REQUESTS));
    }
    if !front.is_empty() {
        text = format!("{front} {text}");
    }
    if rng.chance(18) {
        let comma = if rng.chance(30) { "," } else { "" };
        text = format!("{}{comma} {text}", rng.pick(OPENERS));
    }
    if rng.chance(25) {
        let comma = if rng.chance(20) { "," } else { "" };
        let closer = rng.pick(if template.imperative { CLOSERS } else { SHORT_CLOSERS });
        text = format!("{text}{comma} {closer}");
    }
    (text, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn examples_depend_on_seed_split_and_index_alone() {
        let (a, b) = (Corpus::new(1, Split::Train), Corpus::new(1, Split::Train));
        let forward: Vec<Example> = (0..200).map(|index| a.example(index)).collect();
        let mut backward: Vec<Example> = (0..200).rev().map(|index| b.example(index)).collect();
        backward.reverse();
        assert_eq!(forward, backward);
        assert_ne!(forward[0], Corpus::new(2, Split::Train).example(0));
    }

    #[test]
    fn answers_are_canonical_json() {
        let corpus = Corpus::new(5, Split::Test);
        for index in 0..2000 {
            let example = corpus.example(index);
            let value: serde_json::Value = serde_json::from_str(&example.answer).unwrap();
            assert_eq!(serde_json::to_string(&value).unwrap(), example.answer, "{}", example.text);
        }
    }

    #[test]
    fn one_sentence_never_has_two_answers() {
        let mut answers = std::collections::HashMap::new();
        for split in [Split::Train, Split::Dev, Split::Test] {
            let corpus = Corpus::new(11, split);
            for index in 0..20_000 {
                let example = corpus.example(index);
                let known = answers.entry(example.text.clone()).or_insert_with(|| example.answer.clone());
                assert_eq!(*known, example.answer, "{}", example.text);
            }
        }
    }

    #[test]
    fn no_test_sentence_is_in_the_training_text() {
        let train = Corpus::new(1, Split::Train);
        let seen: HashSet<String> = (0..50_000).map(|index| train.example(index).text.to_lowercase()).collect();
        for split in [Split::Dev, Split::Test] {
            let held_out = Corpus::new(1, split);
            for index in 0..5000 {
                let text = held_out.example(index).text;
                assert!(!seen.contains(&text.to_lowercase()), "{text}");
            }
        }
    }

    #[test]
    fn every_tool_and_every_reason_is_asked_for() {
        for split in [Split::Train, Split::Dev, Split::Test] {
            let corpus = Corpus::new(1, split);
            let answers: Vec<String> = (0..2000).map(|index| corpus.example(index).answer).collect();
            for (tool, _) in call::TOOLS {
                assert!(answers.iter().any(|answer| answer.contains(tool)), "{tool}");
            }
            for reason in ["out_of_scope", "unclear", "nothing_to_do", "one_at_a_time"] {
                assert!(answers.iter().any(|answer| answer.contains(reason)), "{reason}");
            }
        }
    }
}
