//! Character classes of the pre-tokenizers' regular expressions: `\p{L}`, `\p{N}`, `\p{M}`, `\p{P}`, `\p{S}`, `\s`.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// A set of classes as bits; a character is in at most one of L, N, M, P, S and space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    pub(super) const LETTER: Self = Self(1);
    pub(super) const NUMBER: Self = Self(2);
    pub(super) const SPACE: Self = Self(4);
    pub(super) const MARK: Self = Self(8);
    pub(super) const PUNCTUATION: Self = Self(16);
    pub(super) const SYMBOL: Self = Self(32);
    /// Of a letter: upper or title case.
    const UPPER: Self = Self(64);
    /// Of a letter: lower case.
    const LOWER: Self = Self(128);
    const OTHER: Self = Self(0);

    /// Both sets.
    pub(super) const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if the character is in one of `classes`.
    #[inline]
    pub(super) fn is(self, classes: Self) -> bool {
        self.0 & classes.0 != 0
    }

    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
    pub(super) fn may_begin_cased(self) -> bool {
        self.is(Self::LETTER.or(Self::MARK)) && !self.is(Self::LOWER)
    }

    /// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
    pub(super) fn may_end_cased(self) -> bool {
        self.is(Self::LETTER.or(Self::MARK)) && !self.is(Self::UPPER)
    }
}

const ASCII: [Class; 128] = {
    let mut classes = [Class::OTHER; 128];
    let mut code = 0;
    while code < 128 {
        classes[code] = match code as u8 {
            b'A'..=b'Z' => Class::LETTER.or(Class::UPPER),
            b'a'..=b'z' => Class::LETTER.or(Class::LOWER),
            b'0'..=b'9' => Class::NUMBER,
            b'\t'..=b'\r' | b' ' => Class::SPACE,
            b'$' | b'+' | b'<' | b'=' | b'>' | b'^' | b'`' | b'|' | b'~' => Class::SYMBOL,
            b'!'..=b'~' => Class::PUNCTUATION,
            _ => Class::OTHER,
        };
        code += 1;
    }
    classes
};

/// The classes of a character.
#[inline]
pub(super) fn class(character: char) -> Class {
    match ASCII.get(character as usize) {
        Some(&class) => class,
        None => beyond_ascii(character),
    }
}

fn beyond_ascii(character: char) -> Class {
    if character.is_whitespace() {
        return Class::SPACE;
    }
    let category = character.general_category();
    match category {
        GeneralCategory::UppercaseLetter | GeneralCategory::TitlecaseLetter => return Class::LETTER.or(Class::UPPER),
        GeneralCategory::LowercaseLetter => return Class::LETTER.or(Class::LOWER),
        _ => {}
    }
    match character.general_category_group() {
        GeneralCategoryGroup::Letter => Class::LETTER,
        GeneralCategoryGroup::Number => Class::NUMBER,
        GeneralCategoryGroup::Mark => Class::MARK,
        GeneralCategoryGroup::Punctuation => Class::PUNCTUATION,
        GeneralCategoryGroup::Symbol => Class::SYMBOL,
        _ => Class::OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ascii_table_says_what_the_unicode_tables_say() {
        for code in 0..128u8 {
            let character = char::from(code);
            assert_eq!(class(character), beyond_ascii(character), "{character:?}");
        }
    }
}
