//! Slots of the templates: for each name in braces, words as people say them and the argument they stand for.

use crate::names;
use crate::rng::Rng;
use crate::spoken;

/// An argument: key and value.
pub type Argument = (String, String);

/// Which argument a percentage is, by tool.
fn percent_key(tool: &str) -> &'static str {
    match tool {
        "set_pump" => "speed",
        "set_valve" => "percent",
        _ => "brightness",
    }
}

fn id(phrase: &str) -> String {
    phrase.replace(' ', "_")
}

const ORDINALS: [&str; 6] = ["first", "second", "third", "fourth", "fifth", "sixth"];

/// Something known by its number ("pump two", "pump number 2", "pump #2") and its id.
fn numbered(rng: &mut Rng, kind: &str) -> (String, String) {
    let n = 1 + rng.below(12);
    let text = match rng.below(20) {
        0..4 => format!("{kind} number {}", spoken::number(rng, n)),
        4 => format!("{kind} #{n}"),
        5 | 6 if n <= ORDINALS.len() => format!("{} {kind}", ORDINALS[n - 1]),
        _ => format!("{kind} {}", spoken::number(rng, n)),
    };
    (text, format!("{kind}_{n}"))
}

/// A named or numbered unit ("sump pump", "pump number two") and its id.
fn unit(rng: &mut Rng, kind: &str, names: &[&str], percent_numbered: usize) -> (String, String) {
    if rng.chance(percent_numbered) {
        return numbered(rng, kind);
    }
    let name = rng.pick(names);
    (format!("{name} {kind}"), id(name))
}

fn pair(rng: &mut Rng, pairs: &[(&str, &str)]) -> (String, String) {
    let (phrase, id) = pairs[rng.below(pairs.len())];
    (phrase.to_owned(), id.to_owned())
}

fn room(rng: &mut Rng) -> (String, String) {
    if rng.chance(7) {
        let kind = rng.pick(names::NUMBERED_ROOMS);
        return numbered(rng, kind);
    }
    pair(rng, names::ROOMS)
}

fn place(rng: &mut Rng) -> (String, String) {
    match rng.below(20) {
        0..12 => room(rng),
        12 => {
            let kind = rng.pick(names::NUMBERED_PLACES);
            numbered(rng, kind)
        }
        _ => pair(rng, names::PLACES),
    }
}

/// A time, a delay: words, argument and value.
pub fn when(rng: &mut Rng) -> (String, &'static str, String) {
    if rng.chance(70) {
        let (text, value) = spoken::at(rng);
        (text, "at", value)
    } else {
        let (text, value) = spoken::duration(rng);
        let text = if rng.chance(15) { format!("{text} from now") } else { format!("in {text}") };
        (text, "in", value)
    }
}

/// How long something lasts: words and value.
pub fn lasting(rng: &mut Rng) -> (String, String) {
    let (text, value) = spoken::duration(rng);
    (format!("for {text}"), value)
}

/// Words for `slot` and the argument they stand for, if any; `None` if there is no such slot.
pub fn fill(rng: &mut Rng, tool: &str, slot: &str) -> Option<(String, Option<Argument>)> {
    let argument = |key: &str, (text, value): (String, String)| (text, Some((key.to_owned(), value)));
    let plain = |rng: &mut Rng, words: &[&str]| (rng.pick(words).to_owned(), None);
    Some(match slot {
        "room" => argument("room", room(rng)),
        "place" => argument("place", place(rng)),
        "sensor" => argument("sensor", pair(rng, names::SENSORS)),
        "pump" => argument("pump", unit(rng, "pump", names::PUMPS, 25)),
        "valve" => argument("valve", unit(rng, "valve", names::VALVES, 25)),
        "camera" => argument("camera", unit(rng, "camera", names::CAMERAS, 15)),
        "label" => {
            let label = rng.pick(names::LABELS);
            argument("label", (label.to_owned(), id(label)))
        }
        "onoff" => {
            let state = rng.pick(&["on", "off"]);
            argument("state", (state.to_owned(), state.to_owned()))
        }
        "pct" => argument(percent_key(tool), spoken::percent(rng)),
        "deg" => argument("temperature", spoken::degrees(rng)),
        "dur" => argument("duration", spoken::duration(rng)),
        "when" => {
            let (text, key, value) = when(rng);
            argument(key, (text, value))
        }
        "for" => argument("for", lasting(rng)),
        "light" => plain(rng, &["light", "light", "lights", "lights", "lamp", "lamps"]),
        "lights" => plain(rng, &["lights", "lights", "lamps"]),
        "heating" => plain(rng, &["heating", "heating", "heater", "heat", "radiator", "thermostat"]),
        "device" => plain(rng, names::DEVICES),
        "appliance" => plain(rng, names::APPLIANCES),
        "color" => plain(rng, names::COLORS),
        "country" => plain(rng, names::COUNTRIES),
        "day" => plain(rng, names::DAYS),
        "game" => plain(rng, names::GAMES),
        "thing" => plain(rng, names::THINGS),
        "person" => plain(rng, names::PEOPLE),
        "animal" => plain(rng, names::ANIMALS),
        "music" => plain(rng, names::MUSIC),
        "number" => {
            let n = rng.below(100);
            (spoken::number(rng, n), None)
        }
        _ => return None,
    })
}

/// What `before` ends in made to fit the words of a slot: people say "pump two" more often than "the pump two", "on the
/// porch" rather than "in the porch", and sometimes "my bedroom".
pub fn fit(rng: &mut Rng, before: &mut String, slot: &str, words: &str) {
    // One article is enough: "set a" and "a minute".
    if (before == "a " || before.ends_with(" a ")) && words.starts_with("a ") {
        before.truncate(before.len() - "a ".len());
    }
    if !before.ends_with("the ") {
        return;
    }
    let is_place = matches!(slot, "room" | "place");
    let kinds = ["pump", "valve", "camera"].iter().chain(names::NUMBERED_ROOMS).chain(names::NUMBERED_PLACES);
    let is_number = {
        let mut parts = kinds.filter_map(|kind| words.strip_prefix(kind)?.strip_prefix(' '));
        parts.next().is_some()
    };
    if is_number && !names::ROOMS.iter().chain(names::PLACES).any(|(phrase, _)| *phrase == words) {
        if rng.chance(80) {
            before.truncate(before.len() - "the ".len());
        }
        return;
    }
    if !is_place {
        return;
    }
    if before.ends_with("in the ") {
        let word = names::ON_OR_AT.iter().find(|(phrase, _)| *phrase == words).map(|(_, word)| *word);
        if let Some(word) = word.filter(|_| rng.chance(60)) {
            before.truncate(before.len() - "in the ".len());
            before.push_str(word);
            before.push_str(" the ");
        }
    }
    if slot == "room" && rng.chance(5) {
        before.truncate(before.len() - "the ".len());
        before.push_str(rng.pick(&["my ", "my ", "our "]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(before: &str, slot: &str, words: &str) -> Vec<String> {
        let one = |index| {
            let mut text = before.to_owned();
            fit(&mut Rng::new(1, 0, index), &mut text, slot, words);
            text + words
        };
        let mut all: Vec<String> = (0..200).map(one).collect();
        all.sort();
        all.dedup();
        all
    }

    #[test]
    fn words_before_a_slot_fit_what_is_in_it() {
        assert_eq!(fitted("open the ", "valve", "valve 3"), ["open the valve 3", "open valve 3"]);
        assert_eq!(fitted("open the ", "valve", "gas valve"), ["open the gas valve"]);
        let porch = fitted("light in the ", "room", "porch");
        for said in ["light in the porch", "light on the porch", "light on my porch"] {
            assert!(porch.contains(&said.to_owned()), "{said} is not in {porch:?}");
        }
        assert_eq!(fitted("set a ", "dur", "a minute"), ["set a minute"]);
        assert!(fitted("in the ", "place", "boiler").iter().all(|said| said == "in the boiler"));
    }

    #[test]
    fn a_number_is_the_id_however_it_is_said() {
        let mut rng = Rng::new(1, 0, 0);
        for _ in 0..500 {
            let (text, id) = numbered(&mut rng, "pump");
            let n: usize = id.strip_prefix("pump_").unwrap().parse().unwrap();
            let ordinal = n <= ORDINALS.len() && text == format!("{} pump", ORDINALS[n - 1]);
            let said = ordinal || text.ends_with(&n.to_string()) || text.ends_with(&spoken::words(n));
            assert!(said, "{text} -> {id}");
        }
    }

    #[test]
    fn there_is_no_slot_of_another_name() {
        assert!(fill(&mut Rng::new(1, 0, 0), "set_light", "spaceship").is_none());
    }
}
