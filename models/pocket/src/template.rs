//! Templates: the files under `data/`, their split, and how one becomes a sentence with its arguments.
//!
//! A line is `[? ] [key=value,... ::] text`. In the text `{slot}` stands for a random value and `[a|b]` for one of
//! several wordings; a leading `?` marks a phrase that is no imperative, so that "could you" does not go before it.
//! A template is in one split as a whole, by a hash of its text without articles: nothing of a test template is ever
//! trained on, and templates that differ in a "the" share their split.

use crate::rng::Rng;
use crate::slots;

/// Who may see a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Trained on.
    Train,
    /// For choices made while developing.
    Dev,
    /// For the figures of the model card.
    Test,
}

impl Split {
    /// The split named `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "train" => Some(Self::Train),
            "dev" => Some(Self::Dev),
            "test" => Some(Self::Test),
            _ => None,
        }
    }
}

/// One line of a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Tool its answer calls.
    pub tool: &'static str,
    /// Arguments that every sentence of it has.
    pub fixed: Vec<(String, String)>,
    /// The text with its slots.
    pub text: String,
    /// Whether "please" and "could you" fit before it.
    pub imperative: bool,
    /// Who may see it.
    pub split: Split,
}

const FILES: &[(&str, &str)] = &[
    ("set_light", include_str!("../data/light.txt")),
    ("set_heating", include_str!("../data/heating.txt")),
    ("set_pump", include_str!("../data/pump.txt")),
    ("set_valve", include_str!("../data/valve.txt")),
    ("camera", include_str!("../data/camera.txt")),
    ("set_timer", include_str!("../data/timer.txt")),
    ("cancel_timer", include_str!("../data/cancel.txt")),
    ("read_sensor", include_str!("../data/sensor.txt")),
    ("none", include_str!("../data/none.txt")),
];

/// Of 20 templates, those whose hash falls below this are for the test.
const TEST_OF_20: u64 = 3;

/// What decides a template's split: its words without those that come and go in speech.
pub fn skeleton(text: &str) -> String {
    let words = text.split(' ').filter(|word| !matches!(*word, "the" | "a" | "an" | "that" | "is" | "up"));
    words.collect::<Vec<_>>().join(" ").replace("'s", "")
}

fn split_of(tool: &str, text: &str) -> Split {
    // FNV-1a, then a mix so that the remainder depends on every byte.
    let hash = tool
        .bytes()
        .chain([0])
        .chain(skeleton(text).bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    match Rng::new(hash, 0, 0).next() % 20 {
        0..TEST_OF_20 => Split::Test,
        TEST_OF_20 => Split::Dev,
        _ => Split::Train,
    }
}

/// All templates of all tools, in file order.
pub fn all() -> Vec<Template> {
    let mut templates = Vec::new();
    for (tool, file) in FILES {
        for line in file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (body, imperative) = match line.strip_prefix("? ") {
                Some(body) => (body, false),
                None => (line, true),
            };
            let (fixed, text) = match body.split_once(" :: ") {
                Some((fixed, text)) => (fixed, text),
                None => ("", body),
            };
            let fixed = fixed
                .split(',')
                .filter_map(|pair| pair.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            templates.push(Template { tool, fixed, text: text.to_owned(), imperative, split: split_of(tool, text) });
        }
    }
    templates
}

impl Template {
    /// One sentence and its arguments.
    pub fn expand(&self, rng: &mut Rng) -> (String, Vec<(String, String)>) {
        let mut arguments = self.fixed.clone();
        let mut out = String::new();
        let mut rest = self.text.as_str();
        while let Some(start) = rest.find(['{', '[']) {
            out.push_str(&rest[..start]);
            let close = if rest.as_bytes()[start] == b'{' { '}' } else { ']' };
            let end = start + rest[start..].find(close).expect("the data files are checked by a test");
            let inside = &rest[start + 1..end];
            if close == '}' {
                let (words, argument) =
                    slots::fill(rng, self.tool, inside).expect("the data files are checked by a test");
                slots::fit(rng, &mut out, inside, &words);
                out.push_str(&words);
                // A refusal has no arguments but its reason.
                arguments.extend(argument.filter(|_| self.tool != "none"));
            } else {
                let ways: Vec<&str> = inside.split('|').collect();
                out.push_str(rng.pick(&ways));
            }
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        (out, arguments)
    }

    /// True if the sentence may take a time that its text does not already have.
    pub fn takes_time(&self) -> bool {
        let remark = ["it's ", "it is ", "i'm ", "i can't ", "nobody ", "the {room} is ", "there's ", "we're "];
        matches!(self.tool, "set_light" | "set_heating" | "set_pump" | "set_valve" | "camera")
            && !self.text.contains("{when}")
            && !remark.iter().any(|start| self.text.starts_with(start))
            && !self.fixed.iter().any(|(_, value)| value == "show")
    }

    /// True if it may also take a duration.
    pub fn takes_duration(&self) -> bool {
        self.takes_time()
            && !self.text.contains("{for}")
            && !self.fixed.iter().any(|(_, value)| value == "snapshot" || value == "stop")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn every_template_expands_to_a_call_of_its_tool() {
        for (index, template) in all().iter().enumerate() {
            let mut rng = Rng::new(7, 0, index as u64);
            for _ in 0..4 {
                let (text, arguments) = template.expand(&mut rng);
                assert!(!text.contains(['{', '}', '[', ']', '|']), "{text}");
                let json = crate::call::json(template.tool, &arguments);
                let json = json.unwrap_or_else(|| panic!("{}: {arguments:?}", template.text));
                let value: serde_json::Value = serde_json::from_str(&json).unwrap();
                assert_eq!(value["tool"], template.tool);
            }
        }
    }

    #[test]
    fn no_template_is_written_twice_and_splits_share_none() {
        let templates = all();
        let mut seen = HashSet::new();
        let mut splits = HashMap::new();
        for template in &templates {
            assert!(seen.insert((template.tool, template.text.clone())), "twice: {}", template.text);
            let split = splits.entry((template.tool, skeleton(&template.text))).or_insert(template.split);
            assert_eq!(*split, template.split, "{}", template.text);
        }
        for (tool, _) in FILES {
            let count = |split| templates.iter().filter(|t| t.tool == *tool && t.split == split).count();
            assert!(count(Split::Test) >= 5, "{tool}: {} test templates", count(Split::Test));
            assert!(count(Split::Train) >= 30, "{tool}: {} train templates", count(Split::Train));
        }
    }

    #[test]
    fn every_imperative_command_has_the_arguments_its_tool_needs() {
        let needs: &[(&str, &[&str])] = &[
            ("set_light", &["room", "state"]),
            ("set_heating", &["room"]),
            ("set_pump", &["pump", "state"]),
            ("set_valve", &["valve", "state"]),
            ("camera", &["camera", "action"]),
            ("set_timer", &["duration"]),
            ("cancel_timer", &["label"]),
            ("read_sensor", &["sensor", "place"]),
            ("none", &["reason"]),
        ];
        for template in all() {
            let (_, arguments) = template.expand(&mut Rng::new(3, 0, 0));
            let keys = needs.iter().find(|row| row.0 == template.tool).unwrap().1;
            for key in keys {
                assert_eq!(arguments.iter().filter(|a| a.0 == *key).count(), 1, "{} in {}", key, template.text);
            }
        }
    }
}
