//! The reference's tidying of decoded text: no space before `?!.,`, none around a lone apostrophe, none before
//! `'s 'm 're 've`. It loses information, so nothing here uses it unasked.

/// Tidies in place.
pub(super) fn tidy(text: &mut Vec<u8>) {
    *text = pass(text, |before, rest| before == b' ' && matches!(rest, [b'?' | b'!' | b'.' | b',', ..]));
    *text = lone_apostrophes(text);
    *text = pass(text, |before, rest| {
        before == b' ' && matches!(rest, [b'\'', b's' | b'm', ..] | [b'\'', b'r' | b'v', b'e', ..])
    });
}

/// Drops the byte before each place where `joins` says so, given that byte and what follows.
fn pass(text: &[u8], joins: impl Fn(u8, &[u8]) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for (at, &byte) in text.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|before| text.get(before));
        if before.is_some_and(|&before| joins(before, &text[at..])) {
            out.pop();
        }
        out.push(byte);
    }
    out
}

/// `x ' y` becomes `x'y`.
fn lone_apostrophes(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        // The space after it is gone too, also as the space before another.
        if out.last() == Some(&b' ') && text.get(at - 1..at + 2) == Some(b" ' ") {
            out.pop();
            at += 1;
        }
        out.push(byte);
        at += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_before_punctuation_and_contractions_go() {
        let tidied = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            tidy(&mut bytes);
            String::from_utf8(bytes).expect("only spaces were dropped")
        };
        assert_eq!(tidied("a , b . c ? d !"), "a, b. c? d!");
        assert_eq!(tidied("'s 't 're 've 'm 'll 'd 'S 'T"), "'s 't're've'm 'll 'd 'S 'T");
        assert_eq!(tidied("do n ' t"), "do n't");
        assert_eq!(tidied("a ' ' ' ' b"), "a'''' b");
        assert_eq!(tidied(" "), " ");
        assert_eq!(tidied(""), "");
        assert_eq!(tidied(" ."), ".");
    }
}
