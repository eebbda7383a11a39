//! Stop strings in streamed text: found wherever the text was cut into pieces, never let out in part.
//!
//! The text ends at the stop string that is whole first; of several that end at the same place, at the one that began
//! first. One automaton a stop string (Knuth, Morris, Pratt) goes through each byte once, so neither long stop strings
//! nor texts made to almost match them cost more.

use std::sync::Arc;

/// Watches for stop strings.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<Automaton>,
    /// Text that may be the beginning of a stop string.
    held: String,
    /// What the last push let out.
    released: String,
    found: Option<usize>,
}

/// Finds one stop string. Clones share what never changes.
#[derive(Clone, Debug)]
struct Automaton {
    text: Arc<[u8]>,
    /// For each length of a beginning: the longest shorter beginning that it ends with.
    shorter: Arc<[usize]>,
    /// How much of `text` the bytes so far end with.
    matched: usize,
}

impl Automaton {
    fn new(text: &str) -> Self {
        let text = text.as_bytes();
        let mut shorter = vec![0; text.len() + 1];
        let mut matched = 0;
        for at in 1..text.len() {
            while matched > 0 && text[at] != text[matched] {
                matched = shorter[matched];
            }
            matched += usize::from(text[at] == text[matched]);
            shorter[at + 1] = matched;
        }
        Self { text: text.into(), shorter: shorter.into(), matched: 0 }
    }

    /// Takes one byte more; true if the text is whole with it. Not to be called again after that.
    fn push(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.shorter[self.matched];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
        self.matched == self.text.len()
    }
}

impl StopMatcher {
    /// Watches for `stops`. Empty ones would stop everything at once and are passed over: refuse them before.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops.iter().map(|stop| Automaton::new(stop.as_ref())).collect();
        Self { stops, ..Self::default() }
    }

    /// Takes the next piece and gives the text that is certain now. After a stop string was found it is empty.
    pub fn push(&mut self, text: &str) -> &str {
        self.released.clear();
        if self.found.is_some() {
            return "";
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (place, &byte) in text.as_bytes().iter().enumerate() {
            let mut longest = 0;
            for (number, stop) in self.stops.iter_mut().enumerate().filter(|(_, stop)| !stop.text.is_empty()) {
                if stop.push(byte) && stop.text.len() > longest {
                    longest = stop.text.len();
                    self.found = Some(number);
                }
            }
            if self.found.is_some() {
                self.release(before + place + 1 - longest);
                self.held.clear();
                return &self.released;
            }
        }
        let unsure = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        self.release(self.held.len() - unsure);
        &self.released
    }

    /// Lets out the first `n_bytes` of what is held. Stop strings begin at a character, so the cut is between two.
    fn release(&mut self, n_bytes: usize) {
        self.released.push_str(&self.held[..n_bytes]);
        self.held.drain(..n_bytes);
    }

    /// Bytes that are held back.
    #[cfg(feature = "server")]
    pub(crate) fn n_held(&self) -> usize {
        self.held.len()
    }

    /// Which stop string was found.
    pub fn found(&self) -> Option<usize> {
        self.found
    }

    /// What was held back, if nothing more comes. Nothing if a stop string was found.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|stop| stop.matched = 0);
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By the definition, on the whole text.
    fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            let ended = (0..).zip(stops).filter(|(_, stop)| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            // Of equal ones the first.
            if let Some((number, stop)) = ended.min_by_key(|(_, stop)| std::cmp::Reverse(stop.len())) {
                return (text[..end - stop.len()].to_owned(), Some(number));
            }
        }
        (text.to_owned(), None)
    }

    fn streamed(stops: &[String], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops);
        let mut text = String::new();
        for piece in pieces {
            text.push_str(matcher.push(piece));
            // Whatever comes, what is out stays out.
            let so_far = pieces.concat();
            assert!(naive(stops, &so_far).0.starts_with(&text), "{text:?} of {so_far:?}");
        }
        text.push_str(&matcher.finish());
        (text, matcher.found())
    }

    fn all_splits_in_three(text: &str) -> impl Iterator<Item = [&str; 3]> {
        let places: Vec<usize> = (0..=text.len()).filter(|place| text.is_char_boundary(*place)).collect();
        let pairs: Vec<(usize, usize)> =
            places.iter().flat_map(|&a| places.iter().filter(move |&&b| a <= b).map(move |&b| (a, b))).collect();
        pairs.into_iter().map(move |(a, b)| [&text[..a], &text[a..b], &text[b..]])
    }

    proptest! {
        #[test]
        fn however_a_text_is_split_it_stops_where_the_whole_text_does(
            text in "[abé]{0,16}",
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
        ) {
            let expected = naive(&stops, &text);
            for pieces in all_splits_in_three(&text) {
                prop_assert_eq!(&streamed(&stops, &pieces), &expected, "{:?}", pieces);
            }
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
            prop_assert_eq!(&streamed(&stops, &characters), &expected);
        }
    }

    #[test]
    fn only_what_may_become_a_stop_is_held_back() {
        let mut matcher = StopMatcher::new(&["\nUser:"]);
        assert_eq!(matcher.push("yes"), "yes");
        assert_eq!(matcher.push(".\nUs"), ".");
        assert_eq!(matcher.push("ed\n"), "\nUsed");
        assert_eq!(matcher.push("User"), "");
        assert_eq!(matcher.push(": next"), "");
        assert_eq!(matcher.found(), Some(0));
        assert_eq!(matcher.push("more"), "");
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn a_stop_at_the_very_start_lets_nothing_out() {
        let stops = ["###".to_owned()];
        assert_eq!(streamed(&stops, &["#", "##", " head"]), (String::new(), Some(0)));
    }

    #[test]
    fn without_stops_everything_comes_at_once() {
        let mut matcher = StopMatcher::new::<&str>(&[]);
        assert_eq!(matcher.push("a"), "a");
        assert_eq!(matcher.push("日本"), "日本");
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn a_long_stop_and_a_text_that_almost_matches_it_are_quick() {
        let stop = format!("{}b", "a".repeat(50_000));
        let mut matcher = StopMatcher::new(&[stop]);
        let mut n_out = 0;
        for _ in 0..100_000 {
            n_out += matcher.push("a").len();
        }
        assert_eq!(n_out, 50_000);
        assert_eq!(matcher.push("b").len(), 0);
        assert_eq!(matcher.found(), Some(0));
    }
}
