//! How a sentence really arrives: hesitations, lost apostrophes and articles, slips of the finger, capitals, full stops.
//!
//! Nothing here changes what is meant; words so short that a slip could make another of them are left alone.

use crate::rng::Rng;

/// `text` as somebody said or typed it.
pub fn noisy(rng: &mut Rng, text: &str) -> String {
    let mut text = text.to_owned();
    if rng.chance(4) {
        let gaps: Vec<usize> = text.match_indices(' ').map(|(at, _)| at).collect();
        if !gaps.is_empty() {
            text.insert_str(gaps[rng.below(gaps.len())], rng.pick(&[" uh", " um", " er"]));
        }
    }
    if rng.chance(10) {
        text.retain(|c| c != '\'');
    }
    if rng.chance(5) {
        text = text.split(' ').filter(|word| *word != "the").collect::<Vec<_>>().join(" ");
    }
    if rng.chance(4) {
        text = slip(rng, &text);
    }
    match rng.below(100) {
        0..18 => text = first_upper(&text),
        18..20 => text = text.to_uppercase(),
        20..22 => text = text.split(' ').map(first_upper).collect::<Vec<_>>().join(" "),
        _ => {}
    }
    if rng.chance(18) {
        text.push_str(rng.pick(&[".", ".", ".", "!", "?"]));
    }
    text
}

fn first_upper(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// One letter inside one longer word doubled, left out or changed with the next. First and last letters stay, so that
/// "eighty" does not become "eight".
fn slip(rng: &mut Rng, text: &str) -> String {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let is_long = |word: &str| word.len() >= 5 && word.bytes().all(|b| b.is_ascii_alphabetic());
    let long: Vec<usize> = (0..words.len()).filter(|at| is_long(&words[*at])).collect();
    if long.is_empty() {
        return text.to_owned();
    }
    let word = &mut words[long[rng.below(long.len())]];
    let mut letters: Vec<char> = word.chars().collect();
    let at = 1 + rng.below(letters.len() - 3);
    match rng.below(3) {
        0 => letters.insert(at, letters[at]),
        1 => drop(letters.remove(at)),
        _ => letters.swap(at, at + 1),
    }
    *word = letters.into_iter().collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_keeps_the_ends_of_a_word_and_all_short_words() {
        for index in 0..200 {
            let said = slip(&mut Rng::new(1, 0, index), "set it to eighty");
            let last = said.strip_prefix("set it to ").unwrap();
            assert!(last.starts_with('e') && last.ends_with('y') && last.len().abs_diff(6) <= 1, "{said}");
        }
        assert_eq!(slip(&mut Rng::new(1, 0, 0), "turn it on at 9"), "turn it on at 9");
    }

    #[test]
    fn noise_leaves_something_to_read() {
        for index in 0..500 {
            let said = noisy(&mut Rng::new(2, 0, index), "the");
            assert!(said.len() <= 4, "{said}");
        }
    }
}
