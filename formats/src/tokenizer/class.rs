//! What kind of character stands at a place of a text, as the patterns of byte-level vocabularies ask.
//!
//! `\p{L}` and `\p{N}` are general categories; `char::is_alphabetic` is another set (it holds marks). `\s` is
//! Unicode's white space, which `char::is_whitespace` is exactly. A byte that begins no character is one of its own,
//! neither letter nor number nor space: any byte string is cut, and none is changed.

use unicode_general_category::{GeneralCategory, get_general_category};

/// What the patterns tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s` without the two of [`Class::Newline`]
    Space,
    /// `[\r\n]`
    Newline,
    /// `[^\s\p{L}\p{N}]`
    Other,
}

impl Class {
    /// Whether it is `\s`.
    pub(super) fn is_space(self) -> bool {
        matches!(self, Class::Space | Class::Newline)
    }

    fn of(character: char) -> Class {
        match get_general_category(character) {
            GeneralCategory::UppercaseLetter
            | GeneralCategory::LowercaseLetter
            | GeneralCategory::TitlecaseLetter
            | GeneralCategory::ModifierLetter
            | GeneralCategory::OtherLetter => Class::Letter,
            GeneralCategory::DecimalNumber | GeneralCategory::LetterNumber | GeneralCategory::OtherNumber => {
                Class::Number
            }
            _ if character.is_whitespace() => Class::Space,
            _ => Class::Other,
        }
    }
}

static ASCII: [Class; 128] = {
    let mut classes = [Class::Other; 128];
    let mut code = 0;
    while code < 128 {
        classes[code] = match code as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'\r' | b'\n' => Class::Newline,
            b' ' | b'\t' | 0x0B | 0x0C => Class::Space,
            _ => Class::Other,
        };
        code += 1;
    }
    classes
};

/// The class of what begins at `place` and its length in bytes; `None` past the end.
#[inline]
pub(super) fn at(text: &[u8], place: usize) -> Option<(Class, usize)> {
    let first = *text.get(place)?;
    match ASCII.get(usize::from(first)) {
        Some(&class) => Some((class, 1)),
        None => Some(
            character_at(text, place)
                .map_or((Class::Other, 1), |character| (Class::of(character), character.len_utf8())),
        ),
    }
}

/// The end of the run of `class` that begins at `place`, which may be empty.
#[inline]
pub(super) fn run(text: &[u8], mut place: usize, class: Class) -> usize {
    while let Some((found, length)) = at(text, place) {
        if found != class {
            break;
        }
        place += length;
    }
    place
}

/// The character that begins at `place` with a byte past ASCII, if one does.
fn character_at(text: &[u8], place: usize) -> Option<char> {
    let length = match text.get(place)? {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => return None,
    };
    std::str::from_utf8(text.get(place..place + length)?).ok()?.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_has_the_classes_of_the_categories() {
        for code in 0..128u8 {
            let expected =
                if matches!(code, b'\r' | b'\n') { Class::Newline } else { Class::of(char::from(code)) };
            assert_eq!(at(&[code], 0), Some((expected, 1)), "{code}");
        }
    }

    #[test]
    fn classes_are_categories_not_properties() {
        let class = |text: &str| at(text.as_bytes(), 0).expect("a character").0;
        // A combining mark is alphabetic and no letter; a Roman numeral is alphabetic and a number.
        assert!('\u{0345}'.is_alphabetic() && class("\u{0345}") == Class::Other);
        assert!('Ⅷ'.is_alphabetic() && class("Ⅷ") == Class::Number);
        assert_eq!(["é", "日", "ǅ", "½", "٣", "\u{85}", "\u{3000}"].map(class), {
            use Class::{Letter, Number, Space};
            [Letter, Letter, Letter, Number, Number, Space, Space]
        });
        // Information separators are space to Python and to nobody else.
        assert_eq!(class("\u{1c}"), Class::Other);
    }

    #[test]
    fn a_byte_that_begins_no_character_is_one_of_its_own() {
        for text in [&b"\xff"[..], b"\xe6\x97", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"] {
            assert_eq!(at(text, 0), Some((Class::Other, 1)), "{text:?}");
        }
        assert_eq!(at("é".as_bytes(), 1), Some((Class::Other, 1)));
        assert_eq!(at(b"", 0), None);
    }
}
