//! The answer: one tool call in canonical JSON.
//!
//! Keys come in the order of [`TOOLS`]; values are normalised; there is no white space. Numbers are written as JSON
//! numbers, everything else as strings.

/// A tool, its arguments in canonical order, and which of them are numbers.
pub const TOOLS: &[(&str, &[&str])] = &[
    ("set_light", &["room", "state", "brightness", "at", "in", "for"]),
    ("set_heating", &["room", "state", "temperature", "at", "in", "for"]),
    ("set_pump", &["pump", "state", "speed", "at", "in", "for"]),
    ("set_valve", &["valve", "state", "percent", "at", "in", "for"]),
    ("camera", &["camera", "action", "at", "in", "for"]),
    ("set_timer", &["duration", "label"]),
    ("cancel_timer", &["label"]),
    ("read_sensor", &["sensor", "place"]),
    ("none", &["reason"]),
];

/// True for arguments written as JSON numbers.
pub fn is_number(key: &str) -> bool {
    matches!(key, "brightness" | "temperature" | "speed" | "percent")
}

/// The canonical JSON of a call; `None` if the tool or an argument is unknown.
pub fn json(tool: &str, arguments: &[(String, String)]) -> Option<String> {
    let (_, keys) = TOOLS.iter().find(|row| row.0 == tool)?;
    if arguments.iter().any(|(key, _)| !keys.contains(&key.as_str())) {
        return None;
    }
    let mut text = format!("{{\"tool\":\"{tool}\",\"arguments\":{{");
    let mut first = true;
    for key in *keys {
        let Some((_, value)) = arguments.iter().find(|argument| argument.0 == *key) else { continue };
        if !first {
            text.push(',');
        }
        first = false;
        if is_number(key) {
            text.push_str(&format!("\"{key}\":{value}"));
        } else {
            text.push_str(&format!("\"{key}\":\"{value}\""));
        }
    }
    text.push_str("}}");
    Some(text)
}

/// Pieces of canonical JSON that each become one token of the vocabulary, so that an answer is mostly its values.
pub fn scaffold() -> Vec<String> {
    let mut pieces = Vec::new();
    for (tool, keys) in TOOLS {
        pieces.push(format!("{{\"tool\":\"{tool}\",\"arguments\":{{\"{}\":\"", keys[0]));
    }
    let mut keys: Vec<&str> = TOOLS.iter().flat_map(|(_, keys)| keys[1..].iter().copied()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        if is_number(key) {
            pieces.push(format!("\",\"{key}\":"));
        } else {
            pieces.push(format!("\",\"{key}\":\""));
            pieces.push(format!(",\"{key}\":\""));
        }
    }
    pieces.push("\"}}".to_owned());
    pieces.push("}}".to_owned());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_take_their_canonical_order() {
        let arguments: Vec<(String, String)> =
            [("at", "21:00"), ("brightness", "40"), ("room", "porch"), ("state", "on")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        let text = json("set_light", &arguments).unwrap();
        assert_eq!(
            text,
            r#"{"tool":"set_light","arguments":{"room":"porch","state":"on","brightness":40,"at":"21:00"}}"#
        );
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    }

    #[test]
    fn unknown_arguments_are_refused() {
        assert_eq!(json("camera", &[("room".into(), "porch".into())]), None);
        assert_eq!(json("fly", &[]), None);
    }
}
