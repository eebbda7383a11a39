//! The alphabet of byte-level vocabularies: each byte is one printable character.
//!
//! Bytes that are printable in Latin-1 stand for themselves, the other 68 are U+0100 onwards in order of their value
//! (published with GPT-2).

/// The byte that each character below U+0144 stands for; 256 where there is none.
const BYTES: [u16; 0x144] = {
    let mut bytes = [256; 0x144];
    let (mut byte, mut next) = (0usize, 0x100);
    while byte < 256 {
        if is_itself(byte) {
            bytes[byte] = byte as u16;
        } else {
            bytes[next] = byte as u16;
            next += 1;
        }
        byte += 1;
    }
    bytes
};

const fn is_itself(byte: usize) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Appends the bytes that `text` stands for, and says whether all of it was in the alphabet; if not, nothing is
/// appended.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let (character, after) = match first {
            0x21..=0x7E => {
                out.push(first);
                rest = after;
                continue;
            }
            // Two bytes of UTF-8: U+0080 to U+07FF.
            0xC2..=0xDF => match after.split_first() {
                Some((&second, after)) if second & 0xC0 == 0x80 => {
                    (usize::from(first & 0x1F) << 6 | usize::from(second & 0x3F), after)
                }
                _ => (usize::MAX, after),
            },
            _ => (usize::MAX, after),
        };
        match BYTES.get(character) {
            Some(&byte) if byte < 256 => out.push(byte as u8),
            _ => {
                out.truncate(start);
                return false;
            }
        }
        rest = after;
    }
    true
}

/// The character that `byte` is written as.
#[cfg(test)]
pub(super) fn character(byte: u8) -> char {
    let code = BYTES.iter().position(|&b| b == u16::from(byte)).expect("every byte has a character");
    char::from_u32(code as u32).expect("below U+0144")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back_from_its_character() {
        for byte in 0..=255 {
            let mut out = Vec::new();
            assert!(decode(character(byte).to_string().as_bytes(), &mut out));
            assert_eq!(out, [byte]);
        }
        assert_eq!(character(b' '), 'Ġ');
        assert_eq!(character(b'\n'), 'Ċ');
    }

    #[test]
    fn text_outside_the_alphabet_is_left_alone() {
        for text in ["a b", "\u{144}", "<｜end｜>", "\u{AD}", "\n"] {
            let mut out = vec![9];
            assert!(!decode(text.as_bytes(), &mut out), "{text}");
            assert_eq!(out, [9]);
        }
        assert!(!decode(&[0xC4], &mut Vec::new()));
        assert!(!decode(&[0xFF], &mut Vec::new()));
    }
}
