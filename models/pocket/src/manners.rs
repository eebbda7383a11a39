//! What people say around a command without changing it, and what makes a command impossible here.

use crate::rng::Rng;
use crate::spoken;

/// Said before a sentence.
pub const OPENERS: &[&str] = &[
    "hey",
    "okay",
    "ok",
    "so",
    "uh",
    "um",
    "hey farpost",
    "farpost",
    "computer",
    "listen",
    "right",
    "alright",
    "hi",
    "now",
    "oh",
    "and",
    "okay so",
    "ah",
    "good morning",
    "hello",
    "yes",
    "also",
    "hey there",
    "excuse me",
    "hey computer",
    "ok farpost",
    "good evening",
    "sorry",
    "quick one",
];

/// Said before an imperative.
pub const REQUESTS: &[&str] = &[
    "please",
    "please",
    "please",
    "can you",
    "can you",
    "could you",
    "could you",
    "would you",
    "will you",
    "can you please",
    "could you please",
    "would you please",
    "i want you to",
    "i'd like you to",
    "i need you to",
    "i would like you to",
    "go ahead and",
    "go and",
    "just",
    "quickly",
    "let's",
    "you can",
    "you need to",
    "it's time to",
    "help me and",
    "be so kind and",
    "do me a favor and",
    "remember to",
    "don't forget to",
    "we need to",
    "i need to",
    "i want to",
    "try to",
    "you should",
    "time to",
    "please just",
    "you may",
    "kindly",
    "can you just",
    "could you quickly",
    "i'd like to",
    "make sure to",
];

/// Said after an imperative.
pub const CLOSERS: &[&str] = &[
    "please",
    "please",
    "please",
    "please",
    "thanks",
    "thank you",
    "now",
    "right now",
    "for me",
    "will you",
    "would you",
    "okay",
    "if you can",
    "if possible",
    "as soon as you can",
    "immediately",
    "quickly",
    "it's late",
    "we have guests",
    "i'm going to bed",
    "i'm in a hurry",
    "before i forget",
    "thank you very much",
    "right away",
    "if you don't mind",
    "i'm busy",
    "thank you so much",
    "cheers",
    "when you can",
    "my hands are full",
    "i can't get up",
    "that would be great",
    "if that's okay",
];

/// Said after any sentence.
pub const SHORT_CLOSERS: &[&str] = &["please", "please", "thanks", "thank you", "now", "right now", "okay"];

/// Words that make any command one that the tools can't carry out (days, repetition, conditions, an end in time), and
/// whether they go before it.
pub fn impossible(rng: &mut Rng) -> (String, bool) {
    let time = spoken::at(rng).0;
    let (text, before) = match rng.below(16) {
        0 => ("tomorrow".to_owned(), false),
        1 => (format!("tomorrow {time}"), false),
        2 => ("tomorrow".to_owned(), true),
        3 => (format!("on {}", rng.pick(WEEKDAYS)), false),
        4 => (format!("on {} {time}", rng.pick(WEEKDAYS)), rng.chance(50)),
        5 => (rng.pick(REPEATS).to_owned(), false),
        6 => (format!("{} {time}", rng.pick(REPEATS)), rng.chance(50)),
        7 | 8 => {
            (format!("{} {}", rng.pick(&["when", "once", "if", "as soon as", "whenever"]), rng.pick(EVENTS)), false)
        }
        9 | 10 => (format!("{} {}", rng.pick(&["when", "if", "once", "as soon as"]), rng.pick(EVENTS)), true),
        11 => (format!("unless {}", rng.pick(EVENTS)), false),
        12 => (rng.pick(&["next week", "next month", "the day after tomorrow", "this weekend"]).to_owned(), false),
        _ => {
            let clock = time.split_once(' ').map_or("noon", |(_, clock)| clock);
            (format!("{} {clock}", rng.pick(&["until", "until", "till"])), false)
        }
    };
    (text, before)
}

const WEEKDAYS: &[&str] = &["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
const REPEATS: &[&str] = &[
    "every day",
    "every morning",
    "every evening",
    "every night",
    "every hour",
    "every monday",
    "every sunday",
    "on weekdays",
    "on weekends",
    "daily",
    "twice a day",
];
const EVENTS: &[&str] = &[
    "i come home",
    "i get home",
    "i leave",
    "it gets dark",
    "it is dark",
    "it rains",
    "it's raining",
    "the sun goes down",
    "the sun is up",
    "someone comes in",
    "there is motion",
    "somebody is at the door",
    "the tank is full",
    "the tank is empty",
    "the temperature drops below ten",
    "it gets too cold",
    "it's too warm",
    "the pressure is too high",
    "we go to bed",
    "nobody is here",
];
